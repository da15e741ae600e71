"""StyleGAN2 modules: parameter trees, noise, averages, precision, freezing, and the layout of published weights."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from avatar_jax.convert.layout import from_torch, to_torch
from avatar_jax.errors import UserError
from avatar_jax.models.discriminator import (
    DualDiscriminator,
    DummyDualDiscriminator,
    SingleDiscriminator,
    freeze_labels,
    frozen_layers,
    minibatch_std,
)
from avatar_jax.models.layers import FullyConnected, SynthesisBlock, SynthesisLayer
from avatar_jax.models.mapping import MappingNetwork
from avatar_jax.models.superresolution import VARIANTS, SuperResolution, input_resolution
from avatar_jax.models.synthesis import SynthesisNetwork, num_style_rows
from tests.comparison import close
from tests.parity.golden import golden_files

RNG = np.random.RandomState(5)
KEYS = {'params': jax.random.key(0), 'noise': jax.random.key(1)}
G = SynthesisNetwork(8, 6, channel_base=64, channel_max=8)


def normal(*shape):
    return jnp.asarray(RNG.randn(*shape), jnp.float32)


def apply(module, variables, *args, **options):
    """``module.apply`` as one program; arrays are arguments, everything else is an option."""
    return jax.jit(lambda v, *a: module.apply(v, *a, **options))(variables, *args)


def size(tree):
    return sum(np.prod(v.shape, dtype=int) for v in jax.tree.leaves(tree))


def abstract(module, *args):
    return jax.eval_shape(module.init, KEYS, *args)


def filled(module, *args):
    """Variables of the module with random entries everywhere: faster than compiling its initialisers."""

    def fill(path, leaf):
        path = '/'.join(str(p.key) for p in path)
        scale = 100 if 'mapping/fc' in path else 1  # the scale of their initial values
        if path.endswith('affine/bias'):
            return 1 + 0.3 * normal(*leaf.shape)
        return scale * (1 if path.endswith('weight') else 0.3) * normal(*leaf.shape)

    return jax.tree_util.tree_map_with_path(fill, abstract(module, *args))


@pytest.fixture(scope='module')
def generator():
    ws = normal(2, G.num_ws, 5)
    return filled(G, ws), ws


@pytest.mark.slow
def test_initial_values():
    layer = jax.jit(FullyConnected(400, lr_multiplier=0.01, bias_init=1.0).init)(KEYS, normal(1, 100))['params']
    assert abs(float(layer['weight'].std()) - 100) < 2 and bool((layer['bias'] == 1).all())
    v = jax.jit(SynthesisLayer(20, 8).init)(KEYS, normal(1, 8, 8, 30), normal(1, 4))
    assert abs(float(v['params']['weight'].std()) - 1) < 0.05
    assert bool((v['params']['affine']['bias'] == 1).all()) and float(v['params']['noise_strength']) == 0
    assert bool((v['params']['bias'] == 0).all()) and abs(float(v['noise']['noise_const'].std()) - 1) < 0.3
    constant = jax.jit(SynthesisBlock(0, 30, 4, 3).init)(KEYS, None, None, normal(1, 2, 4))['params']['const']
    assert constant.shape == (4, 4, 30) and abs(float(constant.std()) - 1) < 0.2


def test_published_names_and_shapes():
    """Every entry of the FFHQ-512 checkpoints has its place, and there are no others."""
    files = golden_files('eg3d', '.json')
    if not files:
        pytest.skip('no list of checkpoint entries here')
    lists = json.loads(files[0].read_text())
    ws = jnp.zeros((1, 14, 512))
    parts = {
        'backbone.synthesis.': abstract(SynthesisNetwork(256, 96), ws),
        'backbone.mapping.': abstract(MappingNetwork(512, 25, 512, 14, 2), jnp.zeros((1, 512)), jnp.zeros((1, 25))),
        'superresolution.': abstract(
            SuperResolution('8XDC'), jnp.zeros((1, 64, 64, 3)), jnp.zeros((1, 64, 64, 32)), ws
        ),
        '': abstract(DualDiscriminator(), jnp.zeros((1, 512, 512, 3)), jnp.zeros((1, 64, 64, 3)), jnp.zeros((1, 25))),
    }
    for prefix, template in parts.items():
        rows = [r for r in lists['G' if prefix else 'D'] if r[0].startswith(prefix)]
        flat = {r[0].removeprefix(prefix): np.broadcast_to(np.float32(i), r[1]) for i, r in enumerate(rows)}
        tree = from_torch(flat, template)  # raises if a name or shape differs
        kept = {k: v for k, v in flat.items() if not k.endswith('resample_filter')}
        back = to_torch(tree)
        assert {k: v.shape for k, v in back.items()} == {k: v.shape for k, v in kept.items()}
        assert all(back[k].flat[0] == kept[k].flat[0] for k in kept)
        assert size(template['params']) == sum(int(np.prod(r[1], dtype=int)) for r in rows if r[3] == 'param')
    assert size(parts['']['params']) == 31_359_744


def test_layout_round_trip_is_exact():
    flat = {
        'a.conv.weight': RNG.randn(3, 2, 5, 4),
        'a.line.weight': RNG.randn(3, 2, 5),
        'a.fc.weight': RNG.randn(3, 2),
        'a.norm.weight': RNG.randn(3),
        'a.norm.running_mean': RNG.randn(3),
        'a.const': RNG.randn(2, 4, 5),
        'net.0.bias': RNG.randn(2),
        'codes.direction.weight': RNG.randn(3, 2),
        'w_avg': RNG.randn(3),
        'b.noise_const': RNG.randn(4, 4),
        'b.strength': np.float32(2.0),
    }
    tree = from_torch({**flat, 'a.resample_filter': np.ones(1), 'a.norm.num_batches_tracked': np.int64(3)})
    assert tree['params']['a']['conv']['weight'].shape == (5, 4, 2, 3)
    assert tree['params']['a']['line']['weight'].shape == (5, 2, 3)
    assert tree['params']['a']['fc']['weight'].shape == (2, 3)
    assert tree['params']['a']['const'].shape == (4, 5, 2)
    assert tree['params']['codes']['direction']['weight'].shape == (3, 2)
    assert tree['params']['net']['0']['bias'].shape == (2,)
    assert set(tree) == {'params', 'batch_stats', 'ema_stats', 'noise'}
    back = to_torch(tree)
    assert set(back) == set(flat)
    for key, value in flat.items():
        np.testing.assert_array_equal(back[key], value)
        assert back[key].shape == np.shape(value) and back[key].dtype == np.asarray(value).dtype


def test_layout_errors_name_the_entries():
    template = {'params': {'a': {'weight': np.zeros((2, 3)), 'bias': np.zeros(3)}}}
    good = {'a.weight': np.zeros((3, 2)), 'a.bias': np.zeros(3)}
    from_torch({**good, 'dataset_label_std': np.zeros(25)}, template)
    with pytest.raises(UserError, match='1 missing .a.bias'):
        from_torch({'a.weight': good['a.weight']}, template)
    with pytest.raises(UserError, match='1 unknown .b.bias'):
        from_torch({**good, 'b.bias': np.zeros(1)}, template)
    with pytest.raises(UserError, match='wrong shape .a.weight'):
        from_torch({**good, 'a.weight': np.zeros((2, 3))}, template)


@pytest.mark.slow
def test_noise_modes(generator):
    variables, ws = generator

    def run(mode, key=None, values=variables):
        return apply(G, values, ws, noise_mode=mode, rngs={} if key is None else {'noise': jax.random.key(key)})

    const, none, random = run('const'), run('none'), run('random', 1)
    np.testing.assert_array_equal(random, run('random', 1))
    for a, b in ((const, none), (const, random), (none, random), (random, run('random', 2))):
        assert float(jnp.abs(a - b).max()) > 1e-3
    without = run('none', values={'params': variables['params']})  # needs no buffers
    np.testing.assert_allclose(without, none, rtol=1e-5, atol=1e-6)  # another program: other rounding
    with pytest.raises(ValueError, match='noise_mode'):
        run('fixed')


def test_style_rows_are_shared_between_torgb_and_the_next_block(generator):
    variables, ws = generator
    assert (G.num_ws, num_style_rows(256)) == (4, 14)
    run = jax.jit(lambda ws: G.apply(variables, ws, 'none'))
    for row in range(G.num_ws):
        assert float(jnp.abs(run(ws.at[:, row].add(1.0)) - run(ws)).max()) > 1e-4
    with pytest.raises(ValueError, match='takes'):
        G.apply(variables, ws[:, :-1], 'none')
    with pytest.raises(ValueError, match='power of two'):
        num_style_rows(24)


def test_clamp_is_active_in_float32(generator):
    variables, ws = generator
    clamped = SynthesisNetwork(8, 6, channel_base=64, channel_max=8, conv_clamp=0.05)
    y = apply(clamped, variables, ws, noise_mode='none')
    # Two ToRGB results of at most 0.05 each; up-sampling does not amplify.
    assert 0 < float(jnp.abs(y).max()) <= 0.1 + 1e-6


@pytest.mark.slow
@pytest.mark.parametrize('dtype', ['bfloat16', 'float16'])
def test_half_precision_is_close_and_keeps_float32_parameters(generator, dtype, request):
    if dtype == 'float16':
        request.getfixturevalue('float16')
    variables, ws = generator
    half = SynthesisNetwork(8, 6, channel_base=64, channel_max=8, dtype=jnp.dtype(dtype))
    assert all(v.dtype == jnp.float32 for v in jax.tree.leaves(abstract(half, ws)))
    y, z = apply(half, variables, ws, noise_mode='const'), apply(G, variables, ws, noise_mode='const')
    assert y.dtype == jnp.float32
    error = float(jnp.abs(y - z).max() / jnp.abs(z).max())
    assert 1e-5 < error < 0.05

    def loss(params):
        return jnp.mean(half.apply({**variables, 'params': params}, ws, 'const') ** 2)

    grads = jax.jit(jax.grad(loss))(variables['params'])
    assert all(g.dtype == jnp.float32 and bool(jnp.isfinite(g).all()) for g in jax.tree.leaves(grads))


def test_number_of_half_precision_blocks(generator):
    variables, ws = generator
    z = apply(G, variables, ws, noise_mode='none')
    errors = []
    for count in (0, 1, 2):  # the 4x4 block never counts
        net = SynthesisNetwork(8, 6, channel_base=64, channel_max=8, dtype=jnp.bfloat16, num_half_res=count)
        errors.append(float(jnp.abs(apply(net, variables, ws, noise_mode='none') - z).max()))
    assert errors[0] == 0 < errors[1] == errors[2]


def test_mean_style_moves_only_when_asked():
    net = MappingNetwork(4, 0, 4, 6, 2, w_avg_beta=0.5)
    z = normal(8, 4)
    variables = jax.jit(net.init)(KEYS, z)
    np.testing.assert_array_equal(variables['ema_stats']['w_avg'], 0)
    ws, state = apply(net, variables, z, update_emas=True, mutable=['ema_stats'])
    np.testing.assert_allclose(state['ema_stats']['w_avg'], 0.5 * ws[:, 0].mean(0), rtol=1e-5)
    _, same = apply(net, variables, z, mutable=['ema_stats'])
    np.testing.assert_array_equal(same.get('ema_stats', {}).get('w_avg', 0), 0)
    with pytest.raises(ValueError, match='mutable'):
        net.apply(variables, z, update_emas=True)
    moved = {**variables, **state}
    np.testing.assert_allclose(
        apply(net, moved, z, truncation_psi=0.0)[3], jnp.tile(state['ema_stats']['w_avg'], (6, 1))
    )
    cut = apply(net, moved, z, truncation_psi=0.3, truncation_cutoff=2)
    np.testing.assert_allclose(cut[:, 2:], ws[:, 2:], rtol=1e-5)
    np.testing.assert_allclose(cut[:, :2], apply(net, moved, z, None, jnp.float32(0.3))[:, :2], rtol=1e-5)


def test_mapping_misuse():
    with pytest.raises(ValueError, match=r'z .*expected \[N, 4\]'):
        MappingNetwork(4, 0, 4, 6).init(KEYS, normal(2, 5))
    with pytest.raises(ValueError, match=r'c None'):
        MappingNetwork(0, 3, 4, None).init(KEYS, None)
    with pytest.raises(ValueError, match='z_dim > 0 or c_dim'):
        MappingNetwork(0, 0, 4, None).init(KEYS, None)
    with pytest.raises(ValueError, match='keeps no average'):
        MappingNetwork(4, 0, 4, None).init(KEYS, normal(2, 4), None, 0.5)


def test_superresolution_sizes():
    published = {'8XDC': 128, '8X': 128, '4X': 128, '2X': 64, 'deepfp32': 128}
    assert {v: input_resolution(v) for v in VARIANTS} == published
    for variant, spec in VARIANTS.items():
        net = SuperResolution(variant)
        rgb = jnp.zeros((1, 32, 32, 3))
        y, variables = jax.eval_shape(
            net.init_with_output, KEYS, rgb, jnp.zeros((1, 32, 32, 32)), jnp.zeros((1, 9, 512))
        )
        assert y.shape == (1, spec.img_resolution, spec.img_resolution, 3)
        assert variables['params']['block1']['conv1']['weight'].shape == (3, 3, spec.channels[1], spec.channels[1])
    with pytest.raises(ValueError, match='unknown'):
        input_resolution('16X')
    with pytest.raises(ValueError, match='multiple'):
        input_resolution('8X', 30)


def small_superresolution(variant, side, **options):
    net = SuperResolution(variant, 16, (4, 3), **options)
    rgb, x, ws = normal(1, side, side, 3), normal(1, side, side, 5), normal(1, 4, 6)
    return net, filled(net, rgb, x, ws), rgb, x, ws


@pytest.mark.slow
def test_superresolution_uses_the_last_style_row_and_resizes():
    net, variables, rgb, x, ws = small_superresolution('2X', 4)
    y = apply(net, variables, rgb, x, ws)
    close(apply(net, variables, rgb, x, ws[:, -1:]), y, scale=1e-6)
    assert float(jnp.abs(apply(net, variables, rgb, x, ws.at[:, -1].add(1.0)) - y).max()) > 1e-4
    # Reducing depends on the antialiasing option.
    rgb, x = normal(1, 24, 24, 3), normal(1, 24, 24, 5)
    plain = SuperResolution('2X', 16, (4, 3), sr_antialias=False)
    assert float(jnp.abs(apply(plain, variables, rgb, x, ws) - apply(net, variables, rgb, x, ws)).max()) > 1e-3
    with pytest.raises(ValueError, match='up to 8 pixels'):
        abstract(SuperResolution('4X', 16, (4, 3)), rgb, x, ws)
    with pytest.raises(ValueError, match='differ in size'):
        net.apply(variables, rgb[:, :2], x, ws)


@pytest.mark.slow
@pytest.mark.parametrize(('variant', 'side', 'changes'), [('2X', 8, True), ('2X', 4, False), ('8X', 4, False)])
def test_raw_image_as_the_release_reports_it(variant, side, changes):
    net, variables, rgb, x, ws = small_superresolution(variant, side)
    image, raw = apply(net, variables, rgb, x, ws, method='with_raw')
    close(image, apply(net, variables, rgb, x, ws), scale=1e-6)
    assert raw.shape == rgb.shape
    assert bool((raw != rgb).any()) == changes


D_OPTIONS = {'img_resolution': 8, 'channel_base': 64, 'channel_max': 8, 'mapping_layers': 2, 'c_dim': 3}


def test_minibatch_std_by_definition():
    x = RNG.randn(6, 2, 2, 4).astype(np.float32)
    y = minibatch_std(jnp.asarray(x), 3, 2)
    assert y.shape == (6, 2, 2, 6)
    for n in range(6):
        group = x[n % 2 :: 2]  # samples n mod (N / G)
        std = np.sqrt(group.var(axis=0) + 1e-8)
        for f in range(2):
            np.testing.assert_allclose(y[n, ..., 4 + f], std[..., 2 * f : 2 * f + 2].mean(), rtol=1e-5)
    assert minibatch_std(jnp.asarray(x[:3]), 4).shape == (3, 2, 2, 5)  # no more than the batch
    assert minibatch_std(jnp.asarray(x[:5]), None).shape == (5, 2, 2, 5)
    with pytest.raises(ValueError, match='cannot be split'):
        minibatch_std(jnp.asarray(x), 4)


def test_discriminators_read_what_they_should():
    image, raw, c = normal(4, 8, 8, 3), normal(4, 6, 6, 3), normal(4, 3)
    dual, single = DualDiscriminator(**D_OPTIONS), SingleDiscriminator(**D_OPTIONS)
    v = filled(dual, image, raw, c)
    assert v['params']['b8']['fromrgb']['weight'].shape == (1, 1, 6, 8)
    run = jax.jit(dual.apply)
    y = run(v, image, raw, c)
    assert y.shape == (4, 1) and y.dtype == jnp.float32
    for other in ((image + 1, raw, c), (image, raw + 1, c), (image, raw, c[::-1])):
        assert float(jnp.abs(run(v, *other) - y).max()) > 1e-4
    w = filled(single, image, c)
    assert w['params']['b8']['fromrgb']['weight'].shape == (1, 1, 3, 8)
    assert jax.jit(single.apply)(w, image, c).shape == (4, 1)
    unconditional = DualDiscriminator(**{**D_OPTIONS, 'c_dim': 0})
    u = abstract(unconditional, image, raw)
    assert 'mapping' not in u['params'] and u['params']['b4']['out']['weight'].shape == (8, 1)
    with pytest.raises(ValueError, match='expected'):
        dual.apply(v, raw, raw, c)


def test_raw_image_fades():
    image, raw, c = normal(2, 8, 8, 3), normal(2, 6, 6, 3), normal(2, 3)
    net = DummyDualDiscriminator(**D_OPTIONS)
    v = {**filled(net, image, raw, c), 'ema_stats': {'raw_fade': jnp.ones(())}}
    y, state = apply(net, v, image, raw, c, mutable=['ema_stats'])
    np.testing.assert_allclose(state['ema_stats']['raw_fade'], 1 - 32 / 500_000)
    dual = DualDiscriminator(**D_OPTIONS)
    np.testing.assert_allclose(y, apply(dual, {'params': v['params']}, image, raw, c), rtol=1e-5, atol=1e-6)
    gone = {**v, 'ema_stats': {'raw_fade': jnp.zeros(())}}
    y, state = apply(net, gone, image, raw, c, mutable=['ema_stats'])
    np.testing.assert_allclose(y, apply(dual, {'params': v['params']}, image, 0 * raw, c), rtol=1e-5, atol=1e-6)
    assert float(state['ema_stats']['raw_fade']) == 0


@pytest.mark.slow
def test_label_noise_and_half_precision():
    image, raw, c = normal(4, 8, 8, 3), normal(4, 6, 6, 3), normal(4, 3)
    clean = DualDiscriminator(**D_OPTIONS)
    v = filled(clean, image, raw, c)
    y = apply(clean, v, image, raw, c)
    noisy = DualDiscriminator(**D_OPTIONS, disc_c_noise=0.5)
    a = apply(noisy, v, image, raw, c, rngs={'noise': jax.random.key(1)})
    np.testing.assert_array_equal(a, apply(noisy, v, image, raw, c, rngs={'noise': jax.random.key(1)}))
    assert float(jnp.abs(a - y).max()) > 1e-4
    half = apply(DualDiscriminator(**D_OPTIONS, dtype=jnp.bfloat16), v, image, raw, c)
    assert half.dtype == jnp.float32
    assert 1e-6 < float(jnp.abs(half - y).max() / jnp.abs(y).max()) < 0.1


def test_frozen_layers():
    assert frozen_layers(16, 5) == [
        ('b16', 'fromrgb'),
        ('b16', 'conv0'),
        ('b16', 'conv1'),
        ('b16', 'skip'),
        ('b8', 'conv0'),
    ]
    net = DualDiscriminator(**{**D_OPTIONS, 'img_resolution': 16})
    params = abstract(net, normal(2, 16, 16, 3), normal(2, 8, 8, 3), normal(2, 3))['params']
    labels = freeze_labels(params, 3)
    assert jax.tree.structure(labels) == jax.tree.structure(params)
    assert labels['b16']['conv1'] == {'weight': 'frozen', 'bias': 'frozen'}
    assert labels['b16']['skip'] == {'weight': 'trainable'}
    assert set(jax.tree.leaves(freeze_labels(params, 0))) == {'trainable'}
    with pytest.raises(ValueError, match='7 such layers'):
        frozen_layers(16, 8)
