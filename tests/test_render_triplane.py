"""The tri-plane generator as a whole: presets, stages, randomness, precision, transformations."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from avatar_jax.errors import UserError
from avatar_jax.models.triplane import GeneratorConfig, TriPlaneGenerator, init_generator
from avatar_jax.render import cameras

TINY = GeneratorConfig.tiny()


@functools.cache
def variables():
    tree = init_generator(TINY, jax.random.key(0))
    # Noise strengths start at 0, which would hide whether noise arrives.
    params = jax.tree_util.tree_map_with_path(
        lambda path, a: a + 0.3 if path[-1].key == 'noise_strength' else a, tree['params']
    )
    return {**tree, 'params': params}


@functools.cache
def program(method, config, choices):
    model = TriPlaneGenerator(config)
    return jax.jit(lambda v, a, options: model.apply(v, *a, method=method, **options, **dict(choices)))


def apply(method, *arguments, config=TINY, **options):
    """One program for each method, configuration and choice of words and sizes; arrays are its arguments."""
    choices = {k: v for k, v in options.items() if isinstance(v, str | int)}
    options = {k: v for k, v in options.items() if k not in choices}
    return program(method, config, tuple(sorted(choices.items())))(variables(), arguments, options)


def codes(count=2):
    z = jax.random.normal(jax.random.key(5), (count, TINY.z_dim))
    labels = cameras.orbit_labels(count + 1)[:count]
    return apply('mapping', z, labels), labels


@pytest.mark.slow
@pytest.mark.parametrize(
    ('name', 'most', 'rows'),
    [
        ('ffhq512', 30_662_136, 14),
        ('afhq512', 30_662_136, 14),
        ('shapenet128', 29_587_512, 14),
        ('heads128', 3e6, 12),
        ('tiny', 20_000, 6),
    ],
)
def test_presets_build(name, most, rows):
    config = getattr(GeneratorConfig, name)()
    abstract = jax.eval_shape(lambda: init_generator(config, jax.random.key(0)))
    assert most / 2 < sum(a.size for a in jax.tree.leaves(abstract['params'])) <= most and config.num_ws == rows
    model, c = TriPlaneGenerator(config), jax.ShapeDtypeStruct((2, 25), jnp.float32)
    ws = jax.ShapeDtypeStruct((2, rows, config.w_dim), jnp.float32)
    out = jax.eval_shape(functools.partial(model.apply, method='synthesis'), abstract, ws, c)
    size, raw = config.img_resolution, config.neural_rendering_resolution
    shapes = {
        'image': (2, size, size, 3),
        'image_raw': (2, raw, raw, 3),
        'image_depth': (2, raw, raw, 1),
        'opacity': (2, raw, raw, 1),
    }
    assert {k: v.shape for k, v in out.items()} == shapes


@pytest.mark.slow
def test_fast_initialisation_has_the_modules_distributions():
    label = cameras.frontal_label()
    slow = jax.eval_shape(TriPlaneGenerator(TINY).init, jax.random.key(0), jnp.zeros((1, TINY.z_dim)), label)
    fast = init_generator(TINY, jax.random.key(1))
    assert jax.tree.map(jnp.shape, fast) == jax.tree.map(jnp.shape, slow)
    # One layer of each kind, run through the modules' own initialisers.
    from avatar_jax.models.decoder import OSGDecoder
    from avatar_jax.models.layers import SynthesisBlock
    from avatar_jax.models.mapping import MappingNetwork

    mapping = MappingNetwork(64, 25, 64, 6, 2).init(jax.random.key(2), jnp.zeros((1, 64)), label)
    decoder = OSGDecoder(32, 64, 32, 0.5).init(jax.random.key(2))
    block = SynthesisBlock(0, 32, 8, 12).init(jax.random.key(2), None, None, jnp.zeros((1, 2, 64)), 'const')
    config = TINY.replace(z_dim=64, w_dim=64, rendering={'decoder_lr_mul': 0.5}, decoder_hidden=64, plane_channels=32)
    ours = init_generator(config, jax.random.key(3))
    reference = init_generator(config, jax.random.key(4))
    assert not jnp.allclose(
        ours['params']['backbone']['synthesis']['b4']['const'],
        reference['params']['backbone']['synthesis']['b4']['const'],
    )
    pairs = [
        (mapping['params'], ours['params']['backbone']['mapping']),
        (decoder['params'], ours['params']['decoder']),
        (block['params'], ours['params']['backbone']['synthesis']['b4']),
        (mapping['ema_stats'], ours['ema_stats']['backbone']['mapping']),
        (block['noise'], ours['noise']['backbone']['synthesis']['b4']),
    ]
    for theirs, mine in pairs:
        a, b = (dict(jax.tree_util.tree_flatten_with_path(t)[0]) for t in (theirs, mine))
        assert a.keys() == b.keys()
        for path in a:
            np.testing.assert_allclose(a[path].std(), b[path].std(), rtol=0.35, err_msg=str(path))
            if a[path].std() == 0:
                np.testing.assert_array_equal(a[path].mean(), b[path].mean(), err_msg=str(path))


@pytest.mark.slow
def test_stages_compose_and_views_share_planes():
    ws, labels = codes()
    whole = apply('synthesis', ws, labels)
    planes = apply('planes', ws)
    rendered = apply('render', planes, labels)
    np.testing.assert_allclose(whole['image_raw'], rendered.rgb, atol=1e-5)
    np.testing.assert_allclose(rendered.rgb, rendered.features[..., :3], atol=1e-6)
    np.testing.assert_allclose(whole['image'], apply('superresolve', rendered.rgb, rendered.features, ws), atol=1e-4)
    again = apply('synthesis', ws, labels, planes=planes)
    np.testing.assert_allclose(whole['image'], again['image'], atol=1e-4)
    assert (rendered.opacity >= 0).all() and (rendered.opacity <= 1 + 1e-5).all() and rendered.opacity.std() > 0
    z = jax.random.normal(jax.random.key(5), (2, TINY.z_dim))
    np.testing.assert_allclose(whole['image'], apply('__call__', z, labels)['image'], atol=1e-4)
    smaller = apply('synthesis', ws, labels, resolution=8)
    assert smaller['image_raw'].shape == (2, 8, 8, 3) and smaller['image'].shape == whole['image'].shape


@pytest.mark.slow
def test_randomness_is_explicit():
    ws, labels = codes()
    key = jax.random.key(8)
    plain, jittered = apply('synthesis', ws, labels), apply('synthesis', ws, labels, key=key)
    np.testing.assert_array_equal(jittered['image_raw'], apply('synthesis', ws, labels, key=key)['image_raw'])
    assert jnp.abs(plain['image_raw'] - jittered['image_raw']).max() > 1e-4
    const, none = apply('planes', ws), apply('planes', ws, noise_mode='none')
    random = apply('planes', ws, noise_mode='random', rngs={'noise': key})
    for a, b in ((const, none), (const, random), (none, random)):
        assert jnp.abs(a - b).max() > 1e-3
    with pytest.raises(ValueError, match='key or draws'):
        from avatar_jax.render.sampling import RenderDraws

        apply('render', const, labels, key=key, draws=RenderDraws())


@pytest.mark.slow
def test_conditioning_switches():
    z, labels = jax.random.normal(jax.random.key(5), (2, TINY.z_dim)), cameras.orbit_labels(5)[1:3]
    seen = apply('mapping', z, labels)
    blind = TINY.replace(rendering={'c_gen_conditioning_zero': True})
    np.testing.assert_allclose(
        apply('mapping', z, labels, config=blind), apply('mapping', z, 0 * labels), rtol=1e-5, atol=1e-5
    )
    assert jnp.abs(seen - apply('mapping', z, 0 * labels)).max() > 1e-3
    halved = TINY.replace(rendering={'c_scale': 0.5})
    np.testing.assert_allclose(apply('mapping', z, labels, config=halved), apply('mapping', z, labels / 2), atol=1e-5)


@pytest.mark.slow
def test_bfloat16_is_close_and_keeps_float32_outputs():
    ws, labels = codes()
    full, half = apply('synthesis', ws, labels), apply('synthesis', ws, labels, config=TINY.replace(dtype='bfloat16'))
    for name in full:
        assert half[name].dtype == jnp.float32
        error = jnp.abs(full[name] - half[name]).mean() / jnp.abs(full[name]).mean()
        assert 0 < error < 0.05, name


@pytest.mark.slow
def test_people_can_be_mapped_over():
    ws, labels = codes(3)
    model = TriPlaneGenerator(TINY)

    def loss(ws, label, weights):
        return (model.apply(weights, ws[None], label[None], method='synthesis')['image'] ** 2).mean()

    values, grads = jax.jit(jax.vmap(jax.value_and_grad(loss), (0, 0, None)))(ws, labels, variables())
    alone = jax.jit(jax.value_and_grad(loss))
    for i in range(2):
        value, grad = alone(ws[i], labels[i], variables())
        np.testing.assert_allclose(values[i], value, rtol=1e-4)
        np.testing.assert_allclose(grads[i], grad, rtol=2e-3, atol=1e-4 * jnp.abs(grad).max())


@pytest.mark.slow
def test_density_is_that_of_the_renderer():
    ws, _ = codes(1)
    planes = apply('planes', ws)
    points = jax.random.uniform(jax.random.key(2), (1, 9, 3), minval=-0.5, maxval=0.5)
    rgb, sigma = apply('sample_density', planes, points)
    assert rgb.shape == (1, 9, TINY.decoder_out) and sigma.shape == (1, 9, 1)
    assert (rgb > -0.0011).all() and (rgb < 1.0011).all() and sigma.std() > 0


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        ({'dtype': 'float16'}, 'dtype'),
        ({'superresolution': '16X'}, 'superresolution'),
        ({'c_dim': 24}, 'c_dim'),
        ({'resolution': 64}, 'resolution'),
        ({'rendering': {'white': True}}, 'white'),
        ({'decoder_out': 2}, 'decoder_out'),
    ],
)
def test_impossible_options_are_named(change, message):
    with pytest.raises(UserError, match=message):
        TINY.replace(**change)


def test_released_options():
    rendering = {'superresolution_module': 'training.superresolution.SuperresolutionHybrid2X', 'white_back': True}
    kwargs = {
        'z_dim': 512,
        'img_resolution': 128,
        'sr_num_fp16_res': 4,
        'num_fp16_res': 0,
        'img_channels': 3,
        'mapping_kwargs': {'num_layers': 2},
        'rendering_kwargs': rendering,
    }
    config = GeneratorConfig.from_release(kwargs)
    assert (config.superresolution, config.sr_conv_clamp, config.rendering.white_back) == ('2X', 256.0, True)
    assert GeneratorConfig.from_release({**kwargs, 'sr_num_fp16_res': 0}).sr_conv_clamp is None
    for bad in ({'img_channels': 1}, {'epilogue': 3}, {'mapping_kwargs': {'num_layres': 2}}):
        with pytest.raises(UserError, match=next(iter(bad)) if 'mapping' not in str(bad) else 'num_layres'):
            GeneratorConfig.from_release({**kwargs, **bad})
    assert dataclasses.asdict(config)['rendering']['plane_axes'] == 'legacy'
