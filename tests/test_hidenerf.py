"""HiDe-NeRF's networks: the reference's invariants (section 10), sizes and costs (section 9)."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from avatar_jax.configure import differences
from avatar_jax.errors import UserError
from avatar_jax.methods.base import method
from avatar_jax.methods.hidenerf import config as configuration
from avatar_jax.methods.hidenerf import field, model, parts, secc
from avatar_jax.methods.hidenerf.appearance import Appearance, Extractor, Pyramid, look_up
from avatar_jax.methods.hidenerf.config import ModelConfig
from avatar_jax.methods.hidenerf.deformation import Deformation, to_channels, to_points
from avatar_jax.methods.hidenerf.refine import IdentityEncoder, Refine
from avatar_jax.models.decoder import decode
from avatar_jax.ops.resize import resize
from avatar_jax.render.cameras import focal_to_intrinsics, look_at_pose, mirror_label, pack_label
from avatar_jax.train.costs import count
from avatar_jax.train.state import num_params
from tests.comparison import close

CONFIG = ModelConfig.tiny()
MESH = secc.procedural_mesh()
PIVOT = CONFIG.volume.pivot


def label(yaw=0.0, pitch=0.0):
    pose = look_at_pose(jnp.float32(np.pi / 2 + yaw), jnp.float32(np.pi / 2 + pitch), PIVOT, 2.7)
    return np.asarray(pack_label(pose, focal_to_intrinsics()))


def inputs(count=2, seed=0):
    rng = np.random.default_rng(seed)
    return {
        'images': rng.uniform(-1, 1, (count, 16, 16, 3)).astype(np.float32),
        'source': np.stack([label(0.3 * k) for k in range(count)]),
        'shape': rng.normal(size=(count, 80)).astype(np.float32),
        'expression': rng.uniform(0, 0.8, (count, 64)).astype(np.float32),
        'driver': np.stack([label(-0.2 * k, 0.1) for k in range(count)]),
        'noise': rng.normal(size=(count, 8, 8, 4, 3)).astype(np.float32),
    }


@functools.partial(jax.jit, static_argnames='config')
def run(config, params, mesh, given):
    source = model.encode(params, config, mesh, given['images'], given['source'], given['shape'])
    driving = model.driving_codes(config, mesh, given['shape'], given['expression'], given['driver'])
    draws = model.Draws(perturbation=given['noise'])
    return model.render(params, config, source, driving, given['driver'], draws)


@pytest.fixture(scope='module')
def fresh():
    return model.init(CONFIG, jax.random.key(0))['params']


def changed(params, part, path, value):
    """Parameters with one array replaced: ``value`` of its shape, or a number."""
    tree = {**params, part: jax.tree.map(lambda x: x, params[part])}
    node = tree[part]
    *groups, last = path
    for group in groups:
        node[group] = dict(node[group])
        node = node[group]
    node[last] = jnp.full_like(node[last], value) if np.isscalar(value) else jnp.asarray(value, jnp.float32)
    return tree


def moving(params, seed=5):
    """Parameters whose deformation is not zero."""
    shape = params['deformation']['last']['weight'].shape
    weight = 0.3 * np.random.default_rng(seed).normal(size=shape)
    return changed(params, 'deformation', ('last', 'weight'), weight)


def blind(params):
    """Parameters whose point network does not see the positional encoding."""
    weight = np.array(params['points']['net']['0']['weight'])
    weight[CONFIG.features :] = 0
    return changed(params, 'points', ('net', '0', 'weight'), weight)


@pytest.mark.slow
def test_nothing_moves_at_first(fresh):
    """Invariants 1 and 11: no displacement, whatever codes and noise; the final picture is the enlarged raw one."""
    given = inputs()
    views = run(CONFIG, fresh, MESH, given)
    assert float(jnp.abs(views.shift).max()) == 0
    other = run(CONFIG, fresh, MESH, given | {'expression': given['expression'][::-1], 'noise': 9 * given['noise']})
    np.testing.assert_array_equal(views.raw, other.raw)
    close(views.image, resize(views.raw, 16), atol=1e-6, what='final picture')
    assert float(views.raw.std()) > 1e-3 and float(jnp.abs(views.raw[0] - views.raw[1]).max()) > 1e-3
    assert views.raw.shape == (2, 8, 8, 3) and views.depth.shape == views.opacity.shape == (2, 8, 8, 1)
    assert float(views.opacity.min()) > 0 and float(views.opacity.max()) < 1
    assert float(views.depth.min()) >= 2.25 and float(views.depth.max()) <= 3.3


def test_codes_move_points(fresh):
    given = inputs()
    views = run(CONFIG, moving(fresh), MESH, given)
    still = run(CONFIG, moving(fresh), MESH, given | {'expression': 0 * given['expression']})
    assert float(jnp.abs(views.shift).max()) > 1e-3
    assert float(jnp.abs(views.shift - still.shift).max()) > 1e-5
    assert float(jnp.abs(still.shift).max()) > 1e-3


@pytest.mark.slow
def test_antisymmetric_deformation_rests_without_expression(fresh):
    """Invariant 2."""
    given = inputs()
    config = CONFIG.replace(deformation__antisymmetric=True)
    rest = given | {'expression': 0 * given['expression']}
    still, subtracted = (run(c, moving(fresh), MESH, rest) for c in (config, CONFIG))
    assert float(jnp.abs(still.shift).max()) == 0 and float(jnp.abs(subtracted.shift).max()) > 1e-3
    moved, plain = (run(c, moving(fresh), MESH, given) for c in (config, CONFIG))
    assert float(jnp.abs(moved.shift).max()) > 1e-3
    close(moved.shift, plain.shift - subtracted.shift, atol=1e-5, what='what is subtracted')


def test_a_common_rotation_of_everything_changes_nothing(fresh):
    """Invariant 5: with 'exact'; the positional encoding breaks it by design."""
    given = inputs()
    turn = np.asarray(look_at_pose(jnp.float32(np.pi / 2 + 0.5), jnp.float32(np.pi / 2 + 0.2), (0, 0, 0), 1.0))[:3, :3]

    def turned(labels):
        pose = labels[:, :16].reshape(-1, 4, 4).copy()
        pose[:, :3, 3] = (pose[:, :3, 3] - PIVOT) @ turn.T + PIVOT
        pose[:, :3, :3] = turn @ pose[:, :3, :3]
        return np.concatenate([pose.reshape(-1, 16), labels[:, 16:]], 1).astype(np.float32)

    after = given | {'source': turned(given['source']), 'driver': turned(given['driver'])}
    views, views_after = (run(CONFIG, blind(fresh), MESH, x) for x in (given, after))
    close(views_after.raw, views.raw, atol=2e-4, what='raw picture')
    assert np.abs(run(CONFIG, fresh, MESH, after).raw - run(CONFIG, fresh, MESH, given).raw).max() > 1e-3
    assert np.abs(run(CONFIG, blind(fresh), MESH, given | {'source': after['source']}).raw - views.raw).max() > 1e-3


@pytest.mark.slow
def test_the_source_camera_enters_through_the_transform_alone(fresh):
    """Invariant 6."""
    given = inputs(1)
    for mode, used in (('none', False), ('exact', True)):
        config = CONFIG.replace(appearance__transform=mode)

        @jax.jit
        def gradient(source, params, given, config=config):
            def total(source):
                view = run(config, params, MESH, {**given, 'source': source})
                return (view.raw**2).sum() + (view.image**2).sum()

            return jax.grad(total)(source)

        found = np.asarray(gradient(given['source'], moving(fresh), given))[:, :12]
        assert np.isfinite(found).all() and (np.abs(found).max() > 1e-4) == used, mode


@pytest.mark.slow
def test_perturbation_reaches_the_deformation_only(fresh):
    """Invariant 7: a deformation that ignores its input leaves the picture alone; one that does not moves it."""
    given = inputs()
    constant = changed(fresh, 'deformation', ('last', 'bias'), 0.5)
    quiet, loud = (run(CONFIG, constant, MESH, given | {'noise': s * given['noise']}) for s in (0, 50))
    np.testing.assert_array_equal(quiet.raw, loud.raw)
    close(quiet.shift, np.full(quiet.shift.shape, 0.05), rtol=1e-6, what='0.5 of a tenth of the box')
    shifted = [run(CONFIG, moving(fresh), MESH, given | {'noise': s * given['noise']}).shift for s in (0, 50)]
    assert np.abs(shifted[0] - shifted[1]).max() > 1e-4
    config = CONFIG.replace(deformation__perturbation=0.0)
    assert model.Draws.from_key(jax.random.key(0), config, 2).perturbation is None


def test_order_of_points_and_of_pictures(fresh):
    """Invariant 8."""
    points = np.arange(2 * 3 * 4 * 5 * 3).reshape(2, 3, 4, 5, 3)
    np.testing.assert_array_equal(to_points(to_channels(points)), points)
    assert to_channels(points)[1, 2, 3, 3 * 4 + 1] == points[1, 2, 3, 4, 1]
    given = inputs()
    views, back = (run(CONFIG, moving(fresh), MESH, jax.tree.map(lambda x, s=s: x[::s], given)) for s in (1, -1))
    for name in ('raw', 'image', 'shift'):
        close(getattr(back, name)[::-1], getattr(views, name), atol=1e-5, what=name)
    rays = field.rays_of(CONFIG.volume, given['driver'], 8)
    assert rays.points.shape == (2, 64, 4, 3)
    spacing = (3.3 - 2.25) / 4
    close(rays.depths[0, 0], 2.25 + (np.arange(4) + 0.5) * spacing, rtol=1e-6, what='middles of the strata')
    jittered = field.rays_of(CONFIG.volume, given['driver'], 8, jnp.full((2, 64, 4), 0.999)).depths
    assert float(jittered.max()) <= 3.3


@pytest.mark.slow
def test_planes_are_averaged_levels_are_side_by_side():
    """Invariants 9 and 13."""
    values = np.float32([1, 4, 7])[None, :, None, None, None]
    levels = tuple(jnp.broadcast_to(values + 10 * j, (1, 3, h, h, 2)) for j, h in enumerate((4, 8)))
    affine = np.eye(3, 4, dtype=np.float32)[None]
    inside = np.random.default_rng(0).uniform(-0.7, 0.7, (1, 20, 3)).astype(np.float32)
    found = look_up(levels, affine, inside)
    close(found, np.broadcast_to(np.float32([4, 4, 14, 14]), (1, 20, 4)), rtol=1e-5, what='means')
    outside = look_up(levels, affine, np.float32([[[0.99, 0, 0], [1.05, 1.05, 1.05], [3, 3, 3]]]))
    assert float(outside[0, 0, 0]) > 0 and float(outside[0, 2].max()) == 0
    assert float(outside[0, 1, 0]) < float(outside[0, 0, 0])
    single = CONFIG.replace(appearance__single_scale=True).appearance
    shapes = jax.eval_shape(
        lambda image, affine, extent: Appearance(single).init_with_output(
            jax.random.key(0), image, affine, extent, PIVOT
        )[0],
        *(jax.ShapeDtypeStruct(x, jnp.float32) for x in ((1, 16, 16, 3), (1, 3, 4), (1,))),
    )
    assert [x.shape for x in shapes] == [(1, 3, 16, 16, 12)] and CONFIG.features == 12
    parts = model.abstract(CONFIG.replace(appearance__single_scale=True))['params']
    assert parts['points']['net']['0']['weight'].shape[0] == 12 + 6 * CONFIG.volume.octaves


def test_everything_mirrored_mirrors_the_picture(fresh):
    """Invariant 10."""
    rng = np.random.default_rng(3)
    planes = tuple(rng.normal(size=(2, 3, h, h, 4)).astype(np.float32) for h in (8, 16, 32))
    turned = tuple(np.stack([p[:, 0, :, ::-1], p[:, 1, :, ::-1], p[:, 2]], 1) for p in planes)
    # Plane yz does not know x: reversed columns of xy and xz are all that changes.
    given = inputs()
    params = blind(fresh)

    @jax.jit
    def show(planes, source, driver):
        from avatar_jax.methods.hidenerf import cameras
        from avatar_jax.render.cameras import unpack_label

        affine = cameras.look_up_map(*unpack_label(source), 'exact', PIVOT)
        rays = field.rays_of(CONFIG.volume, driver, 8)
        found = field.render(params['points'], CONFIG, planes, affine, rays, jnp.zeros((*rays.depths.shape, 3)))
        return found.features.reshape(2, 8, 8, 3)

    own = show(planes, given['source'], given['driver'])
    other = show(turned, *(mirror_label(jnp.asarray(given[k])) for k in ('source', 'driver')))
    close(other, own[:, :, ::-1], atol=1e-4, what='mirrored')
    assert float(jnp.abs(other - own).max()) > 0.01


@pytest.mark.slow
def test_empty_space_shows_the_background(fresh):
    """Invariant 12."""
    net = fresh['points']['net']
    empty = {'net': {**net, '2': {**net['2'], 'bias': net['2']['bias'].at[0].set(-40.0)}}}
    given = inputs()
    for name, value in configuration.BACKGROUNDS.items():
        config = CONFIG.replace(background=name)
        rays = field.rays_of(config.volume, given['driver'], 8)
        planes = tuple(jnp.zeros((2, 3, h, h, 4)) for h in (8, 16, 32))
        affine = jnp.broadcast_to(jnp.eye(3, 4), (2, 3, 4))
        found = field.render(empty, config, planes, affine, rays, jnp.zeros((*rays.depths.shape, 3)))
        close(found.features, np.full((2, 64, 3), value), atol=1e-5, what=name)
        assert float(found.opacity.max()) < 1e-5


@pytest.mark.slow
def test_chunks_of_rays_change_nothing(fresh):
    given = inputs()
    whole = run(CONFIG, moving(fresh), MESH, given)
    parts = run(CONFIG.replace(volume__ray_chunk=40), moving(fresh), MESH, given)
    for name in ('raw', 'depth', 'opacity', 'image'):
        close(getattr(parts, name), getattr(whole, name), atol=2e-5, what=name)


@pytest.mark.slow
@pytest.mark.parametrize('inject', parts.INJECTIONS)
def test_identity_features_by_injection(fresh, inject):
    """Where the source's features stand matters with 'all', and with 'to_raw' less; 'pooled' knows no places."""
    config = CONFIG.replace(refine__inject=inject)
    params = model.init(config, jax.random.key(1))['params']['refine']
    params = {**params, 'last': {**params['last'], 'weight': jnp.ones_like(params['last']['weight'])}}
    encoder = model.init(config, jax.random.key(1))['params']['identity']
    given = inputs(1)

    @jax.jit
    def show(image):
        maps = IdentityEncoder(config.refine).apply({'params': encoder}, image)
        return maps, Refine(config.refine, 16, 8).apply({'params': params}, jnp.ones((1, 8, 8, 3)), maps)

    maps, image = show(given['images'])
    sizes = (1,) * 4 if inject == 'pooled' else config.identity_sizes
    assert tuple(m.shape[1] for m in maps) == sizes and image.shape == (1, 16, 16, 3)
    names = set(params)
    plain = {f'spade{k}' for k in range(4) if 'scale' in params[f'spade{k}']['norm_0']}
    assert plain == ({'spade3'} if inject == 'to_raw' else set()) and 'spade3' in names
    assert np.isfinite(image).all()


@pytest.mark.slow
def test_counts_and_costs_of_the_paper_size():
    """Section 9, at full size, without computing anything."""
    config = ModelConfig.paper()
    params = model.abstract(config)['params']
    sizes = {name: num_params(part) for name, part in params.items()}
    assert sizes == {
        'appearance': 20_408_640 + 265_056,
        'identity': 983_808,
        'deformation': 4_007_664,
        'points': 8_772,
        'refine': 7_732_387,
    }
    deformation = params['deformation']

    def parameters(prefix):
        return sum(num_params(v) for k, v in deformation.items() if k.startswith(prefix))

    assert parameters('expression') == 57_504 and parameters('position') == 240_192

    def shape(*s):
        return jax.ShapeDtypeStruct(s, jnp.float32)

    def gflop(function, *arguments):
        return count(jax.make_jaxpr(function)(*arguments)).flops / 1e9

    def applied(module, part):
        return lambda p, *x: module.apply({'params': p}, *x), params[part]

    picture, code = shape(1, 256, 256, 3), shape(1, 256, 256, 3)
    maps = [shape(1, h, h, c) for h, c in ((64, 256), (128, 128), (256, 64))]
    identity = [shape(1, h, h, c) for h, c in zip(config.identity_sizes, config.refine.identity, strict=True)]
    a, r = config.appearance, config.refine

    def pyramid(p, *x):
        return Pyramid(a).apply({'params': p}, list(x[:3]), x[3], x[4], PIVOT)

    found = {
        'extractor': gflop(
            lambda p, x: Extractor(a).apply({'params': p}, x), params['appearance']['extractor'], picture
        ),
        'pyramid': gflop(pyramid, params['appearance']['pyramid'], *maps, shape(1, 3, 4), shape(1)),
        'identity': gflop(*applied(IdentityEncoder(r), 'identity'), picture),
        'deformation': gflop(
            *applied(Deformation(config.deformation, 48), 'deformation'), shape(1, 64, 64, 48, 3), code, code
        ),
        'points': gflop(decode, params['points'], shape(1, 4096 * 48, 132)),
        'refine': gflop(*applied(Refine(r, 256, 64), 'refine'), shape(1, 64, 64, 3), identity),
    }
    expected = {
        'extractor': 93.0,
        'pyramid': 15.5,
        'identity': 9.1,
        'deformation': 8.8,
        'points': 3.4,
        'refine': 57.8,
    }
    for name, value in expected.items():  # a count of multiplications; ours has norms and activations too
        assert 1.0 - 0.01 <= found[name] / value <= 1.045, (name, found[name])
    assert abs(sum(found.values()) - 188) < 2
    for name, size, parameters, cost in (('raw_discriminator', 64, 28.87, 33.1), ('discriminator', 256, 31.24, 94.1)):
        net = getattr(config, name).module(size)
        variables = jax.eval_shape(net.init, jax.random.key(0), shape(1, size, size, 3), shape(1, 25))
        assert round(num_params(variables) / 1e6, 2) == parameters
        own = gflop(net.apply, variables, shape(1, size, size, 3), shape(1, 25))
        assert abs(own / cost - 1) < 0.02, (name, own)


@pytest.mark.slow
def test_a_frame_costs_less_than_half_of_everything():
    """Planes and identity features of a source are computed once."""
    config = ModelConfig.paper()
    params = model.abstract(config)['params']

    def shape(*s):
        return jax.ShapeDtypeStruct(s, jnp.float32)

    code = shape(1, 256, 256, 3)
    encode = functools.partial(model.encode, config=config, mesh=None)
    source = jax.eval_shape(
        lambda p, x, where, s, c: encode(p, images=x, labels=where, shape=s, canonical=c),
        params,
        shape(1, 256, 256, 3),
        shape(1, 25),
        shape(1, 80),
        code,
    )
    costs = []
    for prepared in (False, True):
        told = jax.eval_shape(
            lambda p, i: model.refiner(config).apply({'params': p}, i, method='modulations'),
            params['refine'],
            source.identity,
        )
        run = lambda p, s, c, where, m: model.render(p, config, s, c, where, modulations=m)
        arguments = (params, source, code, shape(1, 25), told if prepared else None)
        costs.append(count(jax.make_jaxpr(run)(*arguments)).flops / 1e9)
    assert 70 < costs[0] < 80 and costs[1] < 0.45 * costs[0], costs


@pytest.mark.slow
def test_planes_of_a_smaller_picture():
    """``appearance.size``: the extractor sees the source made smaller, and planes have that size."""
    config = CONFIG.replace(appearance__size=8)
    params, given = model.init(config, jax.random.key(0))['params'], inputs(1)
    source = jax.eval_shape(
        lambda p, x: model.encode(p, config, MESH, x, given['source'], given['shape']), params, given['images']
    )
    assert [p.shape[2] for p in source.planes] == [2, 4, 8] and source.identity[0].shape[1] == 16
    # What is too fine for the smaller picture is gone, not folded into coarser patterns.
    checkers = (np.indices((16, 16)).sum(0) % 2 - 0.5).astype(np.float32)[None, :, :, None]
    small = model.seen(config, given['images'] + checkers) - model.seen(config, given['images'])
    close(small[:, 1:-1, 1:-1], np.zeros((1, 6, 6, 3)), atol=1e-5, what='smaller')
    np.testing.assert_array_equal(model.seen(CONFIG, given['images']), given['images'])
    assert jax.tree.map(jnp.shape, model.abstract(config)) == jax.tree.map(jnp.shape, model.abstract(CONFIG))


@pytest.mark.slow
def test_stages_of_the_benchmark():
    """A frame is codes, deformation, rendering and refinement, and nothing of what a source needs once."""
    bench = method('hidenerf').bench
    stages = bench.build(bench.config('tiny', None, None), 2)
    costs = {}
    for name in bench.stages:
        function, arguments, donated = stages.stage(name)
        jaxpr = jax.make_jaxpr(function)(*arguments)
        costs[name] = count(jaxpr).flops
        assert costs[name] > 0 and all(x.shape[0] == 2 for x in jaxpr.out_avals if name in ('planes', 'codes'))
        assert donated == ((0,) if name == 'training' else ())
    parts = sum(costs[k] for k in ('codes', 'deformation', 'rendering', 'refine'))
    assert 0.97 < costs['frame'] / parts < 1.03, costs
    with pytest.raises(UserError, match='--dtype bfloat16: HiDe-NeRF computes in float32'):
        bench.config('tiny', 'bfloat16', None)
    assert bench.config('heads', None, 64).volume.ray_chunk == 64
    assert bench.config('full', None, None).image_size == 256


def test_configurations():
    for name in configuration.PRESETS:
        config = configuration.preset(name)
        assert ModelConfig.from_dict(config.to_dict()) == config
    assert 'raw_size' in differences(CONFIG, ModelConfig.paper())
    for name in configuration.ABLATIONS:
        assert (ModelConfig.paper().ablation(name) == ModelConfig.paper()) == (name == 'full')
    with pytest.raises(UserError, match='secc.background: 0.5; must be 0, by which flipped codes know it'):
        CONFIG.replace(secc__background=0.5)
    with pytest.raises(UserError, match='secc.centre: .*the middle.*or set train.flip_both to 0'):
        CONFIG.replace(secc__centre=100.0, train__flip_both=0.5)
    bad = {
        'raw_size': 12,
        'secc__size': 24,
        'secc__signed': False,
        'secc__sampling': 'integer',
        'background': 'red',
        'basis': 'other',
        'discriminator__kind': 'dual',
        'appearance__transform': 'exactly',
        'appearance__widths': (8, 8),
        'appearance__size': 64,
        'refine__inject': 'some',
        'refine__decoder': (8, 8, 8),
        'refine__identity': (8, 8, 8),
        'volume__near': 4.0,
        'volume__channels': 2,
        'train__ema': 1.0,
        'loss__network': 'alexnet',
        'no_such_option': 1,
    }
    for path, value in bad.items():
        with pytest.raises(UserError, match=path.split('__')[0].replace('no_such', 'no_such')):
            CONFIG.replace(**{path: value})
