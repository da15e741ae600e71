"""Tests that compute one thing twice leave room for rounding: each still fails where an error is planted.

The tests themselves are run, with one function of theirs replaced by one that errs.
"""

import dataclasses
import importlib
from collections.abc import Callable
from types import SimpleNamespace
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

TOLERANCE = 'Not equal to tolerance'


class Case(NamedTuple):
    """What is planted: ``change`` of the function ``name`` of ``module`` (its file without ``test_``, or a folder's),
    where ``test(*arguments())`` then says ``said``.
    """

    module: str
    test: str
    name: str
    change: Callable
    said: str = TOLERANCE
    arguments: Callable[[], tuple] = tuple


def a_pixel_aside(real):
    return lambda picture, *rest: real(jnp.roll(picture, 1, 2), *rest)


def first_key_for_all(real):
    return lambda keys, *rest: real(keys[jnp.zeros(keys.shape, int)] if keys.ndim else keys, *rest)


def moves_a_little(real):
    return lambda *given, deform: real(*given, deform=deform and (lambda points: deform(points) + 1e-3))


def rounded_filter(real):
    def planted(x, f):
        return real(x, f.astype(jnp.bfloat16).astype(f.dtype) if x.dtype == jnp.bfloat16 else f)

    return planted


def first_call_starts_elsewhere(real):
    calls = []

    def planted(loss, params, *rest):
        calls.append(0)
        return real(loss, jax.tree.map(lambda x: x + 1e-4, params) if len(calls) == 1 else params, *rest)

    return planted


def rounded_between_parts(real):
    def planted(loss, state, key, count, config, *rest):
        state, out = real(loss, state, key, count, config, *rest)
        if count < config.steps:
            state = state._replace(params=jax.tree.map(lambda x: jax.lax.reduce_precision(x, 8, 7), state.params))
        return state, out

    return planted


def the_last_code(real):
    def planted(*given, **options):
        given = [dataclasses.replace(x, return_previous=False) if hasattr(x, 'return_previous') else x for x in given]
        return real(*given, **options)

    return planted


def rest_subtracted_in_half_precision(real):
    def planted(config, params, mesh, given):
        views = real(config.replace(deformation__antisymmetric=False), params, mesh, given)
        if not config.deformation.antisymmetric:
            return views
        return views.replace(shift=views.shift - views.shift.astype(jnp.bfloat16).astype(jnp.float32))

    return planted


def a_column_aside(real):
    return lambda *given: jnp.roll(real(*given), 1, 1)


def moves_with_any_mirror(real):
    return lambda mesh, shape, expression, *mirror: real(mesh, shape, expression, *mirror) + 1e-5 * len(mirror)


def first_style_row(real):
    return lambda net, variables, rgb, x, ws: real(net, variables, rgb, x, ws[:, :1] if ws.shape[1] > 1 else ws)


def labels_shine_through(real):
    def planted(*given, config=None, **options):
        if config is None:
            return real(*given, **options)
        changes = (
            {'c_gen_conditioning_zero': False, 'c_scale': 0.01} if config.rendering.c_gen_conditioning_zero else {}
        )
        return real(*given, config=config.replace(rendering=changes), **options)

    return planted


def rounded_picture_for_options(real):
    def planted(net, variables, rgb, *rest, **options):
        return real(net, variables, rgb.astype(jnp.bfloat16).astype(rgb.dtype) if options else rgb, *rest, **options)

    return planted


def shifted_features(real):
    """Of random pictures: neither their renderer nor the real one has to run for the comparison."""
    rgb = jnp.asarray(np.random.default_rng(0).uniform(-1, 1, (2, 8, 8, 3)), jnp.float32)

    def planted(method, *given, **options):
        del given, options
        if method == 'render':
            return SimpleNamespace(rgb=rgb, features=rgb + jnp.float32(1e-5))
        return {'image_raw': rgb} if method == 'synthesis' else rgb

    return planted


def reference_trajectory():
    from tests.parity import golden

    path = golden.root() / 'otavatar' / 'toy_decoupling_by_inverting.npz'
    return golden.load(path), jnp.dtype('float32'), 'float32'


def random_numbers():
    return (np.random.default_rng(0),)


def mesh_of_codes():
    from avatar_jax.methods.hidenerf import secc

    return (secc.procedural_mesh(),)


def fresh_networks():
    from avatar_jax.methods.hidenerf import model

    return (model.init(model.ModelConfig.tiny(), jax.random.key(0))['params'],)


slow = pytest.mark.slow
CASES = {
    'pyramids of one picture': Case(
        'losses',
        'pyramid_sees_edges_that_a_plain_distance_does_not',
        'pyramid_loss',
        a_pixel_aside,
        '< 1e-06',
        random_numbers,
    ),
    'parts of one face': Case(
        'losses',
        'local_loss_looks_at_mouth_and_eyes_alone',
        'local_loss',
        a_pixel_aside,
        '< 1e-06',
        random_numbers,
    ),
    'points of a person': Case(
        'losses', 'points_of_a_person_do_not_depend_on_the_batch', 'regularisers.random_points', first_key_for_all
    ),
    'a deformation that is none': Case(
        'nofa_geometry', 'a_deformation_that_moves_nothing_changes_nothing', 'render_rays', moves_a_little
    ),
    'half precision': Case(
        'ops_resample',
        'half_precision_is_rounded_once',
        'resample.filter2d',
        rounded_filter,
        f'{TOLERANCE}|< 0.02',
    ),
    'people side by side': Case(
        'tuning', 'people_side_by_side_stop_by_themselves', 'tuning.tune', first_call_starts_elsewhere
    ),
    'some steps at a time': Case(
        'tuning', 'some_steps_at_a_time_are_the_same', 'tuning.advance', rounded_between_parts
    ),
    'the code before the last step': Case('inversion', 'previous_code_and_fixed_parts', 'run_stage', the_last_code),
    'codes of a resting face': Case(
        'hidenerf_secc', 'codes_know_shape_and_expression', 'secc.canonical', a_column_aside, '< 0.01', mesh_of_codes
    ),
    'no mirror': Case(
        'hidenerf_secc',
        'the_mirror_leaves_the_expression_alone',
        'secc.points',
        moves_with_any_mirror,
        'no mirror',
        mesh_of_codes,
    ),
    'antisymmetric deformation': Case(
        'hidenerf',
        'antisymmetric_deformation_rests_without_expression',
        'run',
        rest_subtracted_in_half_precision,
        'assert .* == 0',
        fresh_networks,
    ),
    'the last style row': Case(
        'models_stylegan',
        'superresolution_uses_the_last_style_row_and_resizes',
        'apply',
        first_style_row,
        'over the bound',
    ),
    'the raw image': Case(
        'models_stylegan',
        'raw_image_as_the_release_reports_it',
        'apply',
        rounded_picture_for_options,
        'over the bound',
        lambda: ('2X', 4, False),
    ),
    'colours that are features': Case(
        'render_triplane',
        'stages_compose_and_views_share_planes',
        'apply',
        shifted_features,
        f'{TOLERANCE} .*atol=1e-06',
    ),
    'a trajectory in single precision': Case(
        'parity.test_otavatar_training',
        'decoupling_by_inverting',
        'run_stage',
        the_last_code,
        'times the allowed',
        reference_trajectory,
    ),
    'a mapping that sees no camera': Case('render_triplane', 'conditioning_switches', 'apply', labels_shine_through),
}
SLOW = {
    'antisymmetric deformation',
    'the last style row',
    'the raw image',
    'a trajectory in single precision',
    'a mapping that sees no camera',
}


@pytest.mark.parametrize('name', [pytest.param(n, marks=slow) if n in SLOW else n for n in CASES])
def test_planted_errors_do_not_pass(name, monkeypatch):
    case = CASES[name]
    module = importlib.import_module(f'tests.{case.module if "." in case.module else f"test_{case.module}"}')
    owner, *path = case.name.split('.')
    where, last = (module, owner) if not path else (getattr(module, owner), *path)
    monkeypatch.setattr(where, last, case.change(getattr(where, last)))
    with pytest.raises(AssertionError, match=case.said):
        getattr(module, f'test_{case.test}')(*case.arguments())
