"""Training of HiDe-NeRF at a tiny size: flips and what belongs to them, the step, discriminators, devices and parts."""

import dataclasses
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from avatar_jax.configure import from_plain, to_plain
from avatar_jax.errors import UserError
from avatar_jax.faces.camera_labels import label_from_pose
from avatar_jax.losses.perception import PerceptionBank
from avatar_jax.methods.eg3d.augment.pipe import AugmentConfig
from avatar_jax.methods.hidenerf import adversary, cameras, losses, model, secc
from avatar_jax.methods.hidenerf import train as training
from avatar_jax.methods.hidenerf.config import ModelConfig
from avatar_jax.methods.hidenerf.train import DRIVER, SOURCE, Flags, RunConfig
from avatar_jax.methods.hidenerf.training import with_parts
from avatar_jax.procedural import ProceduralHead
from tests.comparison import close

PLAIN = ModelConfig.tiny()
# One configuration for (nearly) all programs, which take long to compile: with as few layers as the networks can have.
GAN = ModelConfig.tiny(
    appearance__single_scale=True,
    appearance__residual=0,
    deformation__residual=0,
    refine__residual=0,
    loss__adversarial=0.05,
    train__batch_size=4,
    train__flip_both=0.5,
    augment__mode='ada',
    augment__p=0.4,
    augment__interval=1,
    augment__kimg=0.01,
    augment__transforms=dataclasses.asdict(AugmentConfig(brightness=1.0)),
)
MESH = secc.procedural_mesh()
STORE = secc.CodeStore(MESH, PLAIN.secc)
FROZEN = {'mesh': MESH, 'bank': None}
EARLY, PENALISED = Flags(False, False, refine=False), Flags(True, True)


def batch(count=2, seed=0, size=32):
    """As ``data_pipelines.sets`` gives it."""
    rng = np.random.default_rng([4, seed])
    y, x = np.mgrid[:size, :size] / size
    waves = [np.sin(rng.uniform(2, 8) * x + rng.uniform(2, 8) * y + k) for k in range(6 * count)]
    angles = rng.uniform(-0.4, 0.4, (count, 2, 3)).astype(np.float32)
    labels = [[label_from_pose(a, np.zeros(3, np.float32), 'raw') for a in row] for row in angles]
    mask = (((x - 0.45) / 0.35) ** 2 + ((y - 0.5) / 0.45) ** 2 < 1) * 255
    return {
        'images': np.moveaxis(np.float32(waves).reshape(count, 2, 3, size, size), 2, -1),
        'labels': np.asarray(labels, np.float32),
        'windows': rng.uniform(0, 0.5, (count, 2, 27, 70)).astype(np.float32),
        'masks': np.broadcast_to(mask, (count, 2, size, size)).astype(np.uint8),
        'landmarks': rng.uniform(8, 24, (count, 2, 68, 2)).astype(np.float32),
        'shapes': rng.normal(size=(count, 2, 80)).astype(np.float32),
        'depths': rng.uniform(2.4, 2.9, (count, 2, size, size)).astype(np.float32),
    }


def arrays(config, count=2, **more):
    return training.with_host_arrays(config, batch(count), MESH, **more)


@functools.partial(jax.jit, static_argnames=('config', 'flags'))
def step(state, data, mesh, config, flags):
    return training.train_step(config, 0, flags, state, data, {'mesh': mesh, 'bank': None})


@functools.partial(jax.jit, static_argnums=0)
def prepared(config, data):
    return training.prepared(config, data)


@functools.lru_cache(maxsize=2)
def start(config):
    return training.fresh_state(config, 0)


@functools.cache
def first_step():
    """(state, metrics) after the first step of ``GAN``, for several tests."""
    return step(start(GAN), arrays(GAN, 4, codes=STORE), MESH, GAN, PENALISED)


# ------------------------------------------------------------------------------------------------------------ flipping


@pytest.mark.slow
def test_flips_carry_everything_along():
    config = PLAIN.replace(shape='own', loss__depth=0.1)
    data = jax.device_get(prepared(config, arrays(config, 4)))
    source, both = np.array([False, True, False, True]), np.array([False, False, True, True])
    found = jax.device_get(jax.jit(functools.partial(training.flip, config))(data, source, both, MESH))
    turned = {SOURCE: [False, True, True, False], DRIVER: [False, False, True, True]}
    names = {SOURCE: ('source', 'source_label'), DRIVER: ('target', 'label')}
    mirror = jax.jit(cameras.mirror)
    for frame, flags in turned.items():
        picture, label = names[frame]
        for i, flag in enumerate(flags):
            own, camera = data['images'][i, frame], data['labels'][i, frame]
            close(found[picture][i], own[:, ::-1] if flag else own, atol=2e-6, what=picture)
            close(found[label][i], mirror(camera) if flag else camera, atol=2e-6, what=label)
    close(found['mask'][2], data['masks'][2, DRIVER][:, ::-1], atol=2e-6, what='mask')
    close(found['importance'][3], data['importance'][3][:, ::-1], atol=2e-6, what='importance')
    close(found['depths'][3], data['depths'][3][:, ::-1], atol=2e-6, what='depths')
    # Codes: the mirrored shape with the driver's own expression; all of it turned where both are flipped.
    draw = jax.jit(lambda m, s, e, f: secc.codes(m, s, e, config.secc, mirrored=f))
    codes = np.asarray(draw(MESH, data['shapes'], data['expression'], source))
    close(found['driving'][:2], codes[:2], atol=2e-6, what='driving')
    close(found['driving'][2:], secc.flipped(codes[2:]), atol=2e-6, what='both flipped')
    assert np.abs(found['driving'][1] - draw(MESH, data['shapes'], data['expression'], ~source)[1]).max() > 0.02
    drawn_before = {
        **data,
        'codes': training.host_codes(STORE, *map(np.asarray, (data['shapes'], data['expression']))),
    }
    again = jax.device_get(jax.jit(functools.partial(training.flip, config))(drawn_before, source, both, MESH))
    for name in ('driving', 'canonical'):
        assert (np.abs(again[name] - found[name]).max(-1) > 1e-2).mean() < 0.005, name


def test_mirrored_labels_know_the_principal_point():
    label = np.asarray(batch()['labels'][0, 0])
    label[[16, 18, 20]] = 4.0, 0.45, 4.1
    turned = np.asarray(cameras.mirror(jnp.asarray(label)))
    assert turned[18] == np.float32(0.55) and turned[16] == 4.0 and turned[20] == np.float32(4.1)
    close(cameras.mirror(jnp.asarray(turned)), label, atol=1e-6, what='twice')


def test_pictures_are_masked():
    images = np.full((1, 2, 4, 4, 3), 0.3, np.float32)
    masks = np.zeros((1, 2, 4, 4), np.float32)
    masks[:, :, 1:3], masks[:, :, 3] = 1, 0.5
    found = np.asarray(jax.jit(model.masked)(images, masks, -1.0))
    np.testing.assert_allclose(found[0, 0, :, 0, 0], [-1, 0.3, 0.3, -0.35], rtol=1e-6)
    data = jax.device_get(prepared(PLAIN, arrays(PLAIN)))
    assert float(data['images'][0, 0, 0, 0, 0]) == PLAIN.fill == 1.0


# ---------------------------------------------------------------------------------------------------------------- step


@pytest.mark.slow
def test_losses_fall_discriminators_learn_and_a_step_is_a_function_of_its_state():
    state, data = start(GAN), arrays(GAN, 4, codes=STORE)
    assert set(state.groups) == {'generator', *adversary.NAMES}
    first, seen = state, []
    for k in range(12):
        if k == 3:
            state = jax.tree.map(np.array, state)  # as a checkpoint gives it back
        before = state
        state, metrics = step(state, data, MESH, GAN, PENALISED) if k else first_step()
        seen.append(float(metrics['loss'] - sum(metrics[f'adversarial_{name}'] for name in adversary.NAMES)))
    again, _ = step(before, data, MESH, GAN, PENALISED)
    for a, b in zip(jax.tree.leaves(again), jax.tree.leaves(state), strict=True):
        np.testing.assert_array_equal(a, b)
    assert int(state.step) == 12 and np.mean(seen[-3:]) < 0.95 * np.mean(seen[:3]), seen
    told, ended, first = jax.device_get((metrics, state, first))
    for name in ('psnr', 'pixel', 'perceptual', 'deformation', 'opacity', 'focus', 'generator/grad_norm'):
        assert np.isfinite(told[name]), name
    assert float(told['shift']) > 0  # the deformation has left zero
    for name in adversary.NAMES:
        assert int(ended.groups[name].opt_state.count) == 24  # loss and penalty, each a step
        for term in ('main/fake', 'main/real', 'penalty/r1', 'main/grad_norm', 'p'):
            assert np.isfinite(told[f'{name}/{term}']), term
        assert float(told[f'adversarial_{name}']) > 0
        assert float(ended.extra[name].p) != float(first.extra[name].p)
        moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), ended.groups[name].params, first.groups[name].params)
        assert max(jax.tree.leaves(moved)) > 0
    averaged, raw = (training.variables_of(ended, a)['params'] for a in (True, False))
    assert any(np.abs(a - b).max() > 0 for a, b in zip(jax.tree.leaves(averaged), jax.tree.leaves(raw), strict=True))
    sheet, scores = training.sample_sheet(GAN, state, data, FROZEN)
    assert sheet.shape == (64, 6 * 16, 3) and sheet.dtype == np.uint8
    assert np.isfinite(list(scores.values())).all() and set(scores) == {'sample/psnr', 'sample/psnr_raw'}


@pytest.mark.slow
def test_discriminators_rest_before_their_warm_up_is_over():
    """Before, their arrays leave the step as they came, and nothing of them is computed."""
    state, data = start(GAN), arrays(GAN, 4, codes=STORE)
    programs = {}
    for flags in (EARLY, PENALISED):
        traced = step.trace(state, data, MESH, GAN, flags)  # the one with discriminators is known from the test before
        programs[flags], (_, metrics) = traced.jaxpr, traced.out_info
        assert any('discriminator' in name for name in metrics) == (flags == PENALISED)
    places = dict.fromkeys(adversary.NAMES, 0)
    paths = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(state)]
    for flags, program in programs.items():
        for path, before, after in zip(paths, program.jaxpr.invars, program.jaxpr.outvars, strict=False):
            name = next((n for n in adversary.NAMES if f"groups['{n}']" in path), None)
            if name is not None and '.params' in path:
                places[name] += 1
                assert (before is after) == (flags == EARLY), path
    assert min(places.values()) > 10
    # Nor of the refine network: its parameters meet nothing but the optimizer.
    refine = next(i for i, path in enumerate(paths) if "groups['generator'].params['refine']" in path)
    for flags, program in programs.items():
        assert _convolved(program.jaxpr, program.jaxpr.invars[refine]) == flags.refine
    plain = jax.eval_shape(lambda: training.fresh_state(PLAIN, 0))
    assert set(plain.groups) == {'generator'} and not plain.extra


@pytest.mark.slow
def test_devices_change_nothing():
    """Two devices as an axis of vmap, with discriminators and their penalty."""
    state, data = start(GAN), arrays(GAN, 4, codes=STORE)
    whole, told = jax.device_get(first_step())
    shares = {k: v.reshape(2, 2, *v.shape[1:]) for k, v in data.items()}

    # All numbers are arguments: XLA works out what follows from constants while it compiles, and slowly.
    def share(state, data, mesh):
        return training.train_step(GAN, 0, PENALISED, state, data, {'mesh': mesh, 'bank': None}, 'data')

    many = jax.vmap(share, in_axes=(None, 0, None), axis_name='data')
    state, (spread, metrics) = jax.device_get((state, jax.jit(many)(state, shares, MESH)))
    assert metrics.keys() == told.keys()
    for name in told:
        close(metrics[name][0], told[name], rtol=2e-3, atol=1e-5, what=name)
    for name, group in whole.groups.items():
        moved = jax.tree.map(lambda a, b: a - b, group.params, state.groups[name].params)
        away = jax.tree.map(lambda a, b: a[0] - b, spread.groups[name].params, group.params)
        size, error = (np.sqrt(sum(float((x**2).sum()) for x in jax.tree.leaves(t))) for t in (moved, away))
        # Adam's first step is the sign of the gradient: entries near zero may go the other way.
        assert error < 0.15 * size, (name, error, size)


@pytest.mark.slow
def test_augmentation_is_an_option():
    images = jax.random.uniform(jax.random.key(1), (2, 8, 8, 3))
    keys, ada = jax.random.split(jax.random.key(2), 2), start(GAN).extra['discriminator'].replace(p=jnp.float32(1))
    assert np.abs(np.asarray(jax.jit(functools.partial(adversary.seen, GAN))(images, ada, keys)) - images).max() > 1e-3
    assert adversary.seen(PLAIN, images, ada, keys) is images


def test_parts_change_nothing():
    params, inputs = (
        {'a': jnp.arange(3.0)},
        {'x': jnp.arange(12.0).reshape(4, 3), 'k': jax.random.split(jax.random.key(0), 4)},
    )

    def function(params, inputs):
        y = (inputs['x'] * params['a']).sum(-1) + jax.vmap(jax.random.uniform)(inputs['k'])
        return jnp.mean(y**2), ({'mean': y.mean()}, {'y': y})

    whole, parts = (jax.jit(functools.partial(training.in_parts, function, parts=n))(params, inputs) for n in (1, 2))
    for a, b in zip(jax.tree.leaves(whole), jax.tree.leaves(parts), strict=True):
        close(b, a, rtol=1e-5, what='parts')


def test_when_discriminators_begin():
    config = GAN.replace(train__gan_from=3, train__r1_every=2)
    flags = [training.flags_at(config, k) for k in range(7)]
    assert [f.adversarial for f in flags] == [False] * 3 + [True] * 4
    assert [f.penalty for f in flags] == [False] * 3 + [True, False, True, False]
    assert not any(training.flags_at(PLAIN, k).adversarial for k in (0, 10**6))
    assert not training.flags_at(config.replace(loss__r1_gamma=0.0), 3).penalty


@pytest.mark.slow
def test_the_camera_conditions_both_discriminators():
    """Invariant 11, second half; and the penalty's weight."""
    params = start(GAN).groups
    labels = jnp.asarray(batch(4)['labels'][:, 0])
    for name, size in (('raw_discriminator', 8), ('discriminator', 16)):
        images = jax.random.normal(jax.random.key(0), (4, size, size, 3))
        judge = jax.jit(functools.partial(adversary.logits, GAN, name))
        first, second = (judge(params[name].params, images, c) for c in (labels, labels[::-1]))
        assert first.shape == (4, 1) and np.abs(first - second).max() > 1e-6
        value, terms = jax.jit(functools.partial(adversary.penalty, GAN, name))(params[name].params, images, labels)
        gamma = GAN.loss.r1_gamma * size**2 / 4
        close(value, gamma / 2 * terms['r1'], rtol=1e-5, what=name)
    paper = ModelConfig.paper()
    gammas = [paper.loss.r1_gamma * s**2 / paper.train.batch_size for s in (paper.raw_size, paper.image_size)]
    np.testing.assert_allclose(gammas, [0.026, 0.41], rtol=0.02)


# -------------------------------------------------------------------------------------------------------------- losses


def test_when_the_refine_network_begins():
    config = PLAIN.replace(train__refine_from=2)
    assert [training.flags_at(config, k).refine for k in (1, 2)] == [False, True]


def _convolved(jaxpr, variable):
    """Whether a convolution depends on a variable of a program."""
    known = {variable}
    for equation in jaxpr.eqns:
        if any(x in known for x in equation.invars if not hasattr(x, 'val')):
            if 'conv_general_dilated' in str(equation):
                return True
            known.update(equation.outvars)
    return False


@pytest.mark.slow
def test_terms():
    rng = np.random.default_rng(0)

    def random(*shape):
        return rng.uniform(-1, 1, shape).astype(np.float32)

    views = model.Views(
        random(2, 8, 8, 3), random(2, 16, 16, 3), random(2, 8, 8, 1), random(2, 8, 8, 1), random(2, 8, 8, 4, 3)
    )
    target, mask = random(2, 16, 16, 3), np.ones((2, 16, 16), np.float32)
    config = PLAIN.loss
    distance = losses.distance_of(config, None)
    reconstruction = jax.jit(losses.reconstruction, static_argnums=(0, 1))
    terms = reconstruction(config, distance, views, target, mask, mask)
    assert set(terms) == {'pixel', 'perceptual', 'deformation', 'opacity', 'focus'}
    small = np.asarray(training.resize(target, 8, antialias=True))
    expected = np.mean((views.image - target) ** 2) + np.mean((views.raw - small) ** 2)
    close(terms['pixel'], expected, rtol=1e-5, what='pixel')
    close(terms['focus'], expected, rtol=1e-5, what='equal importance is the plain error')
    close(terms['deformation'], 0.1 * np.abs(views.shift).sum(-1).mean(), rtol=1e-5, what='deformation')
    close(terms['opacity'], 0.5 * np.mean((views.opacity - 1) ** 2), rtol=1e-5, what='opacity')
    deep, surface = dataclasses.replace(config, depth=2.0), np.zeros((2, 16, 16), np.float32)
    surface[:, :8] = 0.25
    raw = reconstruction(deep, distance, views.replace(image=None), target, mask, mask, surface)
    # The row next to the surface's edge sees beyond it.
    close(raw['depth'], np.abs(views.depth[:, :3] - 0.25).sum() * 2 / 128, rtol=1e-4, what='depth, where a surface is')
    close(raw['pixel'], np.mean((views.raw - small) ** 2), rtol=1e-5, what='without a final picture')
    assert 0 < raw['perceptual'] < terms['perceptual']
    paper = ModelConfig.paper().loss
    published = jax.eval_shape(functools.partial(losses.reconstruction, paper, distance), views, target)
    assert set(published) == {'pixel', 'perceptual', 'deformation'}
    perfect = views.replace(image=target, raw=small)
    assert float(reconstruction(paper, distance, perfect, target)['perceptual']) < 1e-6
    assert losses.network_of(paper, None) == losses.network_of(paper, PerceptionBank()) == 'pyramid'
    with pytest.raises(UserError, match='needs the weights of LPIPS'):
        losses.network_of(ModelConfig.paper(loss__network='vgg16').loss, None)


# ---------------------------------------------------------------------------------------------------------------- data


def test_data_that_do_not_fit_are_one_line():
    data = batch()
    with pytest.raises(UserError, match='no masks of the head'):
        training.with_host_arrays(PLAIN, {k: v for k, v in data.items() if k != 'masks'}, MESH)
    data.pop('depths')
    own = PLAIN.replace(shape='own')
    with pytest.raises(UserError, match='10 shape coefficients, the head model has 80'):
        training.with_host_arrays(own, {**data, 'shapes': data['shapes'][..., :10]}, MESH)
    with pytest.raises(UserError, match="train.codes: 'host'; must be 'device' for pose-coupled codes"):
        PLAIN.replace(deformation__pose_coupled=True, train__codes='host')
    with pytest.raises(UserError, match='have no depths'):
        training.with_host_arrays(PLAIN.replace(loss__depth=1.0), data, MESH)
    with pytest.raises(UserError, match='train.gan_from'):
        GAN.replace(train__refine_from=5)
    assert not np.any(training.with_host_arrays(PLAIN, data, MESH)['shapes'])
    np.testing.assert_array_equal(training.with_host_arrays(own, data, MESH)['shapes'], data['shapes'][:, SOURCE])
    with pytest.raises(UserError, match='multiple of 6'):
        training.check_batch(GAN.replace(train__accumulate=2), 3)
    with pytest.raises(UserError, match='raw_discriminator.mbstd_group_size: 2'):
        training.check_batch(GAN, 4)
    training.check_batch(GAN, 2)


def test_parts_of_other_weights():
    """Finer rays leave the networks of planes and points as they are; the refine network has other levels."""
    coarse, fine = PLAIN, PLAIN.replace(raw_size=16, refine__identity=(4, 8, 8), refine__decoder=(8, 8, 8))
    known, fresh = (made_up(c, k) for k, c in enumerate((coarse, fine)))
    run = RunConfig(model=fine, init='before', init_parts=('appearance', 'points'))
    found = with_parts(run, known, fresh)['params']
    for part in found:
        chex.assert_trees_all_equal(found[part], (known if part in run.init_parts else fresh)['params'][part])
    with pytest.raises(UserError, match="init_parts: 'refine' of before has other sizes than here; leave it out"):
        with_parts(dataclasses.replace(run, init_parts=('refine',)), narrowed(known), fresh)
    with pytest.raises(UserError, match='init_parts: .*generator.*; may have appearance, identity'):
        RunConfig(init='before', init_parts=('generator',))
    with pytest.raises(UserError, match='init_parts: .*; needs init, the weights that have these parts'):
        RunConfig(init_parts=('points',))


def made_up(config, seed):
    """Variables of random numbers, without compiling anything."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda x: rng.normal(size=x.shape).astype(np.float32), model.abstract(config))


def narrowed(variables):
    """Variables whose refine network has half the channels."""
    return {
        'params': variables['params'] | {'refine': jax.tree.map(lambda x: x[..., ::2], variables['params']['refine'])}
    }


def test_runs_survive_their_files():
    run = RunConfig(model=GAN)
    assert from_plain(RunConfig, to_plain(run)) == run and run.loop().total_steps == GAN.train.iterations
    with pytest.raises(UserError, match='this configuration is of'):
        RunConfig(method='nerf')
    with pytest.raises(UserError, match='storage'):
        RunConfig(storage='int8')
    scales = [float(training.learning_rate_scale(PLAIN, k)) for k in (2, 3)]
    np.testing.assert_allclose(scales, [1, PLAIN.train.gamma], rtol=1e-6)
    assert ProceduralHead.basis == PLAIN.basis
