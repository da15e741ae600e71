"""NOFA's networks: sizes, what holds before training, the deformation field, avatars and frames (invariants 1 to 6)."""

import dataclasses
import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from avatar_jax.errors import UserError
from avatar_jax.methods.nofa import model as nofa
from avatar_jax.methods.nofa.compensation import Compensation
from avatar_jax.methods.nofa.config import ABLATIONS, CompensationConfig, DeformationConfig, ModelConfig
from avatar_jax.methods.nofa.deformation import DeformationField, backward, condition, offsets
from avatar_jax.models.triplane import GeneratorConfig
from tests.comparison import close
from tests.nofa_tiny import awake, portrait, variables_of

CONFIG = ModelConfig.tiny()
FRESH = variables_of(CONFIG)
AWAKE = awake(FRESH, CONFIG)
LABELS = jnp.stack([jnp.asarray(portrait(i).camera.label) for i in range(2)])
IMAGES = jnp.stack([jnp.asarray(portrait(i).image) for i in range(2)])
SHAPES = jnp.stack([jnp.asarray(portrait(i).shape) for i in range(2)])
EXPRESSIONS = jnp.stack([jnp.asarray(portrait(i).expression) for i in range(2)])


def count(tree):
    return sum(math.prod(x.shape) for x in jax.tree.leaves(tree))


@pytest.mark.slow
def test_sizes_of_the_full_networks():
    paper = ModelConfig.paper()
    shapes = nofa.abstract(paper)['params']
    assert count(shapes['encoder']) == 209_450_688
    assert count(shapes['compensation']) == 17_284_960
    assert count(nofa.abstract(ModelConfig.paper(compensation__hidden=64))['params']['compensation']) == 12_987_232
    assert count(shapes['deformation']['dnet']) == 111_491
    assert count(shapes['deformation']['wnet']) == 19_457
    assert count(shapes['compensation']['block_0']) == 7_088_128
    volume = jax.eval_shape(
        partial(nofa.forward_pass, config=paper), nofa.abstract(paper), jax.ShapeDtypeStruct((512, 512, 3), jnp.float32)
    )
    assert volume.ws.shape == (1, 14, 512)
    assert volume.added.shape == volume.canonical.shape == (1, 3, 256, 256, 32)


@pytest.mark.slow
def test_small_weights_stay_small():
    heads = nofa.abstract(ModelConfig.heads())
    assert 2 * count(heads) < 10e6, 'in half precision the shipped file is below 10 MB'


@pytest.mark.slow
def test_variables_are_drawn_as_they_should():
    variables = nofa.init(ModelConfig.tiny(compensation__gain='rms'), jax.random.key(0))
    jax.tree.map(lambda a, b: np.testing.assert_equal(a.shape, b.shape), variables, FRESH)
    params = variables['params']
    assert not np.asarray(params['compensation']['out']['weight']).any()
    last = params['deformation']['dnet'][str(CONFIG.settings.deformation.depth)]
    assert not np.asarray(last['weight']).any()
    assert not np.asarray(last['bias']).any()
    rows = jnp.broadcast_to(nofa.w_avg(variables), (1, CONFIG.generator.num_ws, CONFIG.generator.w_dim))
    features = nofa.canonical(nofa.network(variables, 'generator'), CONFIG, rows)[1]
    gain = variables['constants']['compensation']['gain']
    close(jnp.mean((gain * features) ** 2), 1.0, rtol=1e-4, what='features times gain')


@pytest.fixture(scope='module')
def views():
    """Pictures of fresh networks: driven, canonical, driven without compensation; and of awake ones."""

    @jax.jit
    def run(variables, images, expressions):
        ws = nofa.style_rows(variables, CONFIG, images)
        with_added, without = (nofa.volume_of(variables, CONFIG, ws, images, on) for on in (True, False))
        deform = nofa.deformation_of(variables, CONFIG, SHAPES, expressions)
        show = partial(nofa.render, variables, CONFIG)
        return {
            'driven': show(with_added.planes, ws, LABELS, deform),
            'canonical': show(with_added.planes, ws, LABELS, None),
            'without': show(without.planes, ws, LABELS, deform),
            'added': with_added.added,
        }

    return run(FRESH, IMAGES, EXPRESSIONS), run(AWAKE, IMAGES, EXPRESSIONS), run(AWAKE, IMAGES, EXPRESSIONS + 1)


@pytest.mark.slow
def test_nothing_moves_and_nothing_is_added_at_first(views):
    fresh, awake_views, other = views
    assert not np.asarray(fresh['added']).any()
    for name in ('canonical', 'without'):
        # two programs of one picture: the order of sums may differ
        jax.tree.map(partial(np.testing.assert_allclose, rtol=0, atol=2e-6), fresh['driven'], fresh[name])
        assert float(jnp.abs(awake_views['driven'].image - awake_views[name].image).max()) > 1e-4, name
    assert float(jnp.abs(awake_views['driven'].image - other['driven'].image).max()) > 1e-4, 'expression shows'
    np.testing.assert_array_equal(awake_views['canonical'].image, other['canonical'].image)


@pytest.mark.slow
def test_the_last_convolution_learns_from_zero():
    ws = nofa.style_rows(FRESH, CONFIG, IMAGES)

    def loss(params):
        variables = {**FRESH, 'params': {**FRESH['params'], 'compensation': params}}
        volume = nofa.volume_of(variables, CONFIG, ws, IMAGES)
        return jnp.mean((nofa.render(variables, CONFIG, volume.planes, ws, LABELS, None).image - IMAGES) ** 2)

    grads = jax.jit(jax.grad(loss))(FRESH['params']['compensation'])
    assert float(jnp.abs(grads['out']['weight']).max()) > 0


@pytest.mark.slow
def test_codes_are_offsets_from_the_mean():
    silent = jax.tree.map(jnp.zeros_like, FRESH['params']['encoder'])
    variables = {**FRESH, 'params': {**FRESH['params'], 'encoder': silent}}
    variables = {**variables, 'ema_stats': jax.tree.map(lambda x: x + 0.5, FRESH['ema_stats'])}
    rows = nofa.style_rows(variables, CONFIG, IMAGES)
    np.testing.assert_array_equal(rows, np.broadcast_to(nofa.w_avg(variables), rows.shape))


def test_the_mean_code_can_be_measured():
    found = nofa.with_mean_code(FRESH, CONFIG, jax.random.key(0), 64)
    assert float(jnp.abs(nofa.w_avg(found)).max()) > 0
    assert not np.asarray(nofa.w_avg(FRESH)).any(), 'the given variables stay as they are'


# ---------------------------------------------------------------------------------------------- compensation network


@pytest.mark.slow
def test_modulation_may_take_the_nearest_pixel():
    features, image = jnp.ones((1, 2, 2, 4)), jax.random.normal(jax.random.key(0), (1, 32, 32, 3))
    results = []
    for resize in ('antialiased', 'nearest'):
        module = Compensation(CompensationConfig(widths=(4, 4, 4, 4, 4), hidden=4, resize=resize), 4, 6)
        params = module.lazy_init(jax.random.key(1), features, image)['params']
        params['out']['weight'] = jnp.ones_like(params['out']['weight'])
        results.append(jax.jit(module.apply)({'params': params}, features, image))
    assert results[0].shape == (1, 8, 8, 6)
    assert float(jnp.abs(results[0] - results[1]).max()) > 1e-4
    with pytest.raises(UserError, match='compensation.resize'):
        CompensationConfig(resize='cubic')


# ------------------------------------------------------------------------------------------------- deformation field


def field(**changes):
    config = DeformationConfig(**{'width': 16, 'depth': 6, 'skip': 4, 'w_width': 8, **changes})
    params = jax.jit(DeformationField(config).init)(jax.random.key(3))['params']
    params['dnet'][str(config.depth)] = {'weight': 0.3 * jnp.ones((16, 3)), 'bias': jnp.full(3, 0.05)}
    return config, params


POINTS = jax.random.uniform(jax.random.key(5), (2, 7, 3), minval=-0.5, maxval=0.5)


@pytest.mark.slow
def test_the_field_equals_its_definition():
    """Concatenated inputs and plain loops, in place of the part that is computed once for each picture."""
    config, params = field()
    moved, weight = jax.jit(lambda p: offsets(params, config, condition(params, config, SHAPES, EXPRESSIONS), p, 2.0))(
        POINTS
    )

    def encoded(p, octaves):
        parts = [p]
        for octave in range(octaves):
            parts += [np.sin(2**octave * np.pi * p), np.cos(2**octave * np.pi * p)]
        return np.concatenate(parts, -1)

    p64 = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
    for n in range(2):
        for m in range(POINTS.shape[1]):
            p = np.asarray(POINTS[n, m], np.float64)
            e = encoded(p, config.octaves)
            x = np.concatenate([e, SHAPES[n], EXPRESSIONS[n]])
            for i in range(config.depth):
                x = np.concatenate([x, e]) if i == config.skip else x
                x = np.maximum(x @ p64['dnet'][str(i)]['weight'] + p64['dnet'][str(i)]['bias'], 0)
            last = p64['dnet'][str(config.depth)]
            close(moved[n, m], x @ last['weight'] + last['bias'], rtol=1e-4, atol=1e-5, what='offset')
            x = np.concatenate([encoded(p, config.w_octaves), SHAPES[n]])
            for i in range(config.w_depth):
                x = np.maximum(x @ p64['wnet'][str(i)]['weight'] + p64['wnet'][str(i)]['bias'], 0)
            last = p64['wnet'][str(config.w_depth)]
            close(weight[n, m], 1 / (1 + np.exp(-(x @ last['weight'] + last['bias']))), rtol=1e-4, what='weight')
    assert float(weight.min()) > 0
    assert float(weight.max()) < 1


@pytest.mark.slow
def test_without_weights_the_whole_offset_counts():
    config, params = field(use_wnet=False)
    assert sorted(params) == ['dnet']
    given = condition(params, config, SHAPES, EXPRESSIONS)
    moved, weight = offsets(params, config, given, POINTS, 1.0)
    np.testing.assert_array_equal(weight, np.ones((2, 7, 1)))
    close(backward(params, config, given, 1.0)(POINTS), POINTS + moved, atol=1e-6, what='deformation')


@pytest.mark.slow
def test_without_identity_only_the_expression_counts():
    config, params = field(use_identity=False)
    first, second = (condition(params, config, s, EXPRESSIONS) for s in (SHAPES, -2 * SHAPES))
    jax.tree.map(np.testing.assert_array_equal, first, second)
    other = condition(params, config, SHAPES, EXPRESSIONS + 1)
    assert float(jnp.abs(first.offset - other.offset).max()) > 0.01
    config, params = field()
    first, second = (condition(params, config, s, EXPRESSIONS) for s in (SHAPES, -2 * SHAPES))
    assert float(jnp.abs(first.offset - second.offset).max()) > 0.01
    assert float(jnp.abs(first.weight - second.weight).max()) > 0.01


@pytest.mark.slow
def test_offsets_can_be_limited_and_coefficients_standardised():
    config, params = field()
    given = condition(params, config, SHAPES, EXPRESSIONS)
    assert float(jnp.abs(backward(params, config, given, 1.0)(POINTS) - POINTS).max()) > 0.01
    clipped = backward(params, dataclasses.replace(config, clip=0.01), given, 1.0)(POINTS) - POINTS
    assert float(jnp.abs(clipped).max()) <= 0.01 + 1e-7
    mean, std = jnp.full(144, 0.5), jnp.full(144, 2.0)
    scaled = condition(params, config, SHAPES, EXPRESSIONS, {'mean': mean, 'std': std})
    by_hand = condition(params, config, (SHAPES - 0.5) / 2, (EXPRESSIONS - 0.5) / 2)
    close(scaled.offset, by_hand.offset, atol=1e-5, what='standardised')
    with pytest.raises(UserError, match='deformation.clip'):
        DeformationConfig(clip=0.0)
    with pytest.raises(ValueError, match='64 are expected'):
        condition(params, config, SHAPES, EXPRESSIONS[:, :10])


@pytest.mark.slow
def test_chunks_of_rays_change_nothing():
    """The field runs for coarse and fine samples inside the chunks; gradients reach its parameters through them."""
    config = ModelConfig.tiny()
    chunked = dataclasses.replace(config, generator=config.generator.replace(rendering={'ray_chunk': 200}))

    @jax.jit
    def volume(variables):
        ws = nofa.style_rows(variables, config, IMAGES)
        return ws, nofa.volume_of(variables, config, ws, IMAGES).planes

    ws, planes = volume(AWAKE)

    def loss(params, config):
        variables = {**AWAKE, 'params': {**AWAKE['params'], 'deformation': params}}
        deform = nofa.deformation_of(variables, config, SHAPES, EXPRESSIONS)
        views = nofa.render(variables, config, planes, ws, LABELS, deform, sr=False)
        return jnp.mean(views.raw**2), views.raw

    run = jax.jit(jax.value_and_grad(loss, has_aux=True), static_argnums=1)
    (_, raw), grads = run(AWAKE['params']['deformation'], config)
    (_, raw_chunked), grads_chunked = run(AWAKE['params']['deformation'], chunked)
    close(raw_chunked, raw, atol=1e-5, what='picture')
    jax.tree.map(lambda a, b: close(a, b, rtol=1e-3, scale=1e-4, atol=1e-9, what='gradient'), grads_chunked, grads)
    assert all(float(jnp.abs(g).max()) > 0 for g in (grads['dnet']['0']['weight'], grads['wnet']['0']['weight']))
    # Single pixels are those of the whole picture, in any order.
    pixels = jnp.asarray([[7, 250, 120], [0, 33, 8]])

    @jax.jit
    def some(variables, planes):
        deform = nofa.deformation_of(variables, config, SHAPES, EXPRESSIONS)
        return nofa.render_pixels(variables, config, planes, LABELS, pixels, raw.shape[1], deform).raw

    single = some(AWAKE, planes)
    close(single, jnp.take_along_axis(raw.reshape(2, -1, 3), pixels[..., None], 1), atol=1e-5, what='pixels')


# ------------------------------------------------------------------------------------------------- avatars and frames


@pytest.mark.slow
def test_an_avatar_shows_what_the_networks_show():
    avatar = nofa.build(AWAKE, CONFIG, portrait(0), weights='abc')
    assert avatar.method == 'nofa'
    assert avatar.identity['planes'].shape == (3, 16, 16, 8)
    run = jax.jit(lambda identity, e, labels: nofa.frame(AWAKE, CONFIG, identity, None, {'expression': e}, labels))
    frames = run(avatar.identity, EXPRESSIONS, LABELS)
    assert frames.rgb.shape == (2, 32, 32, 3)
    assert float(jnp.abs(frames.rgb).max()) <= 1

    volume = nofa.forward_pass(AWAKE, IMAGES[0], config=CONFIG)
    deform = nofa.deformation_of(AWAKE, CONFIG, SHAPES[:1], EXPRESSIONS[1:])
    views = jax.jit(lambda planes: nofa.render(AWAKE, CONFIG, planes, volume.ws, LABELS[1:], deform))(volume.planes)
    close(frames.rgb[1], jnp.clip(views.image[0], -1, 1), atol=2e-5, what='second frame')

    # Own weights of decoder and super-resolution take the place of the common ones.
    own = jax.tree.map(lambda x: 0.5 * x, {k: AWAKE['params']['generator'][k] for k in nofa.RENDERER})
    assert float(jnp.abs(run({**avatar.identity, 'renderer': own}, EXPRESSIONS, LABELS).rgb - frames.rgb).max()) > 1e-3


def test_pictures_that_do_not_fit_are_named():
    with pytest.raises(UserError, match='person 0.*16x16, not 32x32'):
        nofa.build(FRESH, CONFIG, portrait(0, 16))
    with pytest.raises(UserError, match="basis 'flame'"):
        nofa.build(FRESH, CONFIG, portrait(0).replace(basis='flame'))


def test_generators_that_do_not_fit_are_named():
    ours = GeneratorConfig.tiny()
    nofa.check_generator(ours, ours)
    with pytest.raises(UserError, match="eg3d.pkl.*planes are 'legacy'.*'orthogonal'"):
        nofa.check_generator(ours, ours.replace(rendering={'plane_axes': 'legacy'}), 'eg3d.pkl')
    with pytest.raises(UserError, match='8 style rows.*6'):
        nofa.check_generator(ours, ours.replace(plane_resolution=32))
    with pytest.raises(UserError, match='w_dim is 8'):
        nofa.check_generator(ours, ours.replace(w_dim=8))
    with pytest.raises(UserError, match='settings.encoder'):
        ModelConfig(GeneratorConfig.heads128(), CONFIG.settings)


@pytest.mark.slow
def test_configurations_survive_a_weight_file(tmp_path):
    config = CONFIG.replace(**ABLATIONS['without_wnet'], deformation__clip=0.15)
    assert ModelConfig.from_dict(config.to_dict()) == config
    with pytest.raises(UserError, match='use_wnett.*use_wnet'):
        ModelConfig.from_dict({'settings': {'deformation': {'use_wnett': False}}})
    digest = nofa.save_model(tmp_path / 'w.safetensors', FRESH, CONFIG, {'seed': 0})
    back, found, sha, provenance = nofa.load_model(tmp_path / 'w.safetensors')
    assert (found, sha, provenance['seed']) == (CONFIG, digest, 0)
    jax.tree.map(np.testing.assert_array_equal, back, FRESH)


@pytest.mark.slow
@pytest.mark.parametrize('name', sorted(ABLATIONS))
def test_ablations_build(name):
    config = ModelConfig.tiny(**ABLATIONS[name])
    variables = variables_of(config)
    assert ('compensation' in variables['params']) == config.settings.compensation.use
    volume = jax.eval_shape(partial(nofa.forward_pass, config=config), variables, IMAGES[0])
    assert (volume.added is None) == (name == 'without_compensation')
