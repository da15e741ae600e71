"""GPAvatar's layers and fields against reference numbers."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from avatar_jax.methods.gpavatar import field as fields
from avatar_jax.methods.gpavatar import fusion, head
from avatar_jax.methods.gpavatar.release import to_flat, to_tree, variables_of
from avatar_jax.models import styleunet
from avatar_jax.ops.activations import normalize_2nd_moment
from avatar_jax.ops.grid_sample import sample_planes, sample_planes_mean
from avatar_jax.ops.knn import nearest, squared_distances
from avatar_jax.ops.resize import double, resize
from tests.comparison import close
from tests.parity.golden import handles

NET = {'scale': 3e-6}
GRADIENT = {'scale': 1e-5}


def nhwc(x):
    return jnp.moveaxis(jnp.asarray(x), 1, -1)


def nchw(x):
    return np.moveaxis(np.asarray(x), -1, 1)


def planes_in(x):
    """[...,C,H,W] -> [...,H,W,C]."""
    return jnp.moveaxis(jnp.asarray(x), -3, -1)


def planes_out(x):
    return np.moveaxis(np.asarray(x), -1, -3)


def compare_params(grads, golden, prefix='', skip=()):
    """Gradients of a parameter tree against those of a file (under ``prefix``), in the file's own layout."""
    flat = to_flat(grads)
    for name in golden.grad:
        key = name.removeprefix(prefix)
        if name.startswith(prefix) and key in flat and name not in skip:
            close(flat[key], golden.grad[name], **GRADIENT, what=f'gradient {name}')


@handles('gpavatar', 'harmonic_embedding')
def test_harmonic_encoding(golden):
    for name in golden.out:
        octaves = int(name.removeprefix('h'))
        close(fields.harmonic_encoding(jnp.asarray(golden.inp['x']), octaves), golden.out[name], atol=5e-6, what=name)
    golden.check_all_used()


@handles('gpavatar', 'triplane_sample')
def test_triplane_sample(golden):
    planes, places = planes_in(golden.inp['planes']), jnp.asarray(golden.inp['coords'])
    mean, apart = jax.jit(lambda p, c: [f(p, c, 2.0, 'orthogonal') for f in (sample_planes_mean, sample_planes)])(
        planes, places
    )
    close(mean, golden.out['mean'], **NET)
    close(jnp.concatenate(list(jnp.moveaxis(apart, 1, 0)), -1), golden.out['concat'], **NET)
    grads = jax.jit(
        jax.grad(lambda p, c: jnp.sum(sample_planes_mean(p, c, 2.0, 'orthogonal') * golden.inp['w']), (0, 1))
    )
    d_planes, d_places = grads(planes, places)
    close(planes_out(d_planes), golden.grad['planes'], **GRADIENT)
    close(d_places, golden.grad['coords'], **GRADIENT)
    golden.check_all_used()


def field_config(golden, params, **changes):
    cfg = golden.config
    first = params['point_layers_0']['weight']
    features = params['points_feature']['weight'].shape[1]
    octaves = ((first.shape[0] - features) // 3 - 1) // 2
    return fields.FieldConfig(
        points=cfg['P'], feature_dim=features, hidden=first.shape[1], neighbours=cfg['K'], octaves=octaves, **changes
    )


@pytest.mark.slow
@handles('gpavatar', 'pef_querier')
def test_expression_field(golden):
    params = jax.tree.map(jnp.asarray, to_tree(golden.param))
    places, points = jnp.asarray(golden.inp['coords']), jnp.asarray(golden.inp['points'])
    released = field_config(golden, params)

    @partial(jax.jit, static_argnames='config')
    def run(params, places, points, config=released):
        neighbours = fields.neighbours_of(places, points, config)
        prepared = fields.prepare_points(params, config)
        return fields.point_features(params, prepared, config, places, points, neighbours), neighbours

    found, neighbours = run(params, places, points)
    close(found, golden.out['features'], **NET, what='released form')
    assert (np.asarray(neighbours.index) == golden.out['idx']).all()
    for method in ('brute', 'tree'):
        again = nearest(places[0], points[0], released.neighbours, method, tile=32)
        assert (np.asarray(again) == golden.out['idx'][0]).all(), method
    close(jax.vmap(squared_distances)(places, points, neighbours.index), golden.out['sqdist'], **NET)
    for name, power in (('', 2), ('_invdist', 1)):
        config = field_config(golden, params, normalise='neighbours', power=power)
        close(
            run(params, places, points, config)[0], golden.out[f'features_norm_over_neighbours{name}'], **NET, what=name
        )

    # One neighbour with weight one shows the answer of each.
    stride = -(-places.shape[1] // golden.out['point_mlp'].shape[1])
    few = places[:, ::stride]
    single = field_config(golden, params, normalise='neighbours')
    answer = jax.jit(
        lambda i: fields.point_features(
            params, fields.prepare_points(params, single), single, few, points, fields.Neighbours(i, None)
        )
    )
    answers = [answer(neighbours.index[:, ::stride, k : k + 1]) for k in range(released.neighbours)]
    close(jnp.stack(answers, 2), golden.out['point_mlp'], **NET, what='answers of neighbours')

    def scalar(params, places, points):
        return jnp.sum(run(params, places, points)[0] * golden.inp['w'])

    grads = jax.jit(jax.grad(scalar, (0, 1, 2)))(params, places, points)
    compare_params(grads[0], golden)
    close(grads[1], golden.grad['coords'], **GRADIENT)
    close(grads[2], golden.grad['points'], **GRADIENT)
    golden.check_all_used()


@pytest.mark.slow
@handles('gpavatar', 'points_decoder')
def test_head(golden):
    params = jax.tree.map(jnp.asarray, to_tree(golden.param))
    inp = {k: jnp.asarray(v) for k, v in golden.inp.items()}
    config = field_config(golden, params['points_querier'])
    widths = head.HeadConfig(
        inp['planes'].shape[2],
        params['feature_layers_0']['weight'].shape[1],
        params['rgb_layers_0']['weight'].shape[1],
        params['rgb_layers_2']['weight'].shape[1],
    )

    @partial(jax.jit, static_argnames='chunk')
    def run(params, planes, points, chunk=None):
        scene = head.Scene(planes, points)
        # Every place is a ray of one sample: directions are given for each.
        opacity, color = head.query(params, widths, config, scene, inp['coords'][:, :, None], inp['directions'], chunk)
        return opacity[:, :, 0], color[:, :, 0]

    planes = planes_in(inp['planes'])
    for chunk in (None, 7):
        opacity, color = run(params, planes, inp['points'], chunk)
        close(opacity, golden.out['density'], atol=2e-6, what='opacity')
        close(color, golden.out['rgb'], **NET, what='colour')
    assert (np.asarray(opacity)[(np.abs(golden.inp['coords']) >= 1).any(-1)] == 0).all()

    def scalar(*args):
        opacity, color = run(*args)
        return jnp.sum(opacity * inp['w_density']) + jnp.sum(color * inp['w_rgb'])

    grads = jax.jit(jax.grad(scalar, (0, 1, 2)))(params, planes, inp['points'])
    compare_params(grads[0], golden)
    close(planes_out(grads[1]), golden.grad['planes'], **GRADIENT)
    close(grads[2], golden.grad['points'], **GRADIENT)
    golden.check_all_used()


@pytest.mark.slow
@handles('gpavatar', 'mta')
def test_fusion(golden):
    tree = jax.tree.map(jnp.asarray, to_tree(golden.param))
    scale, params = tree.pop('scale'), tree
    query = planes_in(golden.inp['query'])[0, 0]
    fused = jax.jit(lambda *a: (fusion.fuse(*a, scale), fusion.attention_weights(*a, scale)))
    add = jax.jit(lambda state, view: state.add(params, query, view, scale))
    for name in [k for k in golden.inp if k.startswith('planes_')]:
        planes, count = planes_in(golden.inp[name]), name.removeprefix('planes_')
        merged, weights = fused(params, query, planes)
        close(planes_out(merged), golden.out[f'merged_{count}'], **NET, what=name)
        close(jnp.moveaxis(weights, 1, 2), golden.out[f'attn_{count}'], atol=2e-6, what=f'weights {name}')
        state = fusion.FusionState.start(query.shape)
        for view in planes[0]:
            state = add(state, view)
        close(planes_out(state.result()), golden.out[f'merged_{count}'][0], **NET, what=f'one by one, {name}')
    (count,) = [k.removeprefix('w_') for k in golden.inp if k.startswith('w_')]

    def scalar(params, query, planes):
        return jnp.sum(fusion.fuse(params, query, planes, scale) * planes_in(golden.inp[f'w_{count}']))

    grads = jax.jit(jax.grad(scalar, (0, 1, 2)))(params, query, planes_in(golden.inp[f'planes_{count}']))
    # The bias of the last key layer moves all scores of a pixel alike: its gradient is zero but for rounding.
    last = 'to_k_.5.bias'
    compare_params(grads[0], golden, skip=(last,))
    assert (
        np.abs(np.asarray(golden.grad[last])).max() < 1e-3
        and np.abs(np.asarray(grads[0]['to_k__5']['bias'])).max() < 1e-3
    )
    close(planes_out(grads[1])[None, None], golden.grad['query'], **GRADIENT)
    close(planes_out(grads[2]), golden.grad[f'planes_{count}'], **GRADIENT)
    golden.check_all_used()


def block_of(name, params, inp):
    """The module behind a block of ``styleunet_blocks`` and how it is called: (module, inputs as the file names
    them).
    """
    weights = {k: v.shape for k, v in params.items()}
    if name.startswith('resblock'):
        inputs, features = weights['conv1.weight'][1], weights['conv2.weight'][0]
        return styleunet.ResBlock(inputs, features, up=name.endswith('up')), ('x',)
    conv = 'weight' if name.startswith('modconv') else 'modulated_conv.weight'
    _, features, inputs, kernel, _ = weights[conv]
    style = weights[conv.replace('weight', 'modulation.weight')][1]
    if name.startswith('modconv'):
        kind = {'kernel': kernel, 'demodulate': not name.endswith('rgb'), 'upsample': name.endswith('up')}
        return styleunet.ModulatedConv(inputs, features, style, **kind), ('x', 'style')
    if name.startswith('styleconv'):
        return styleunet.StyleConv(inputs, features, style, upsample=name.endswith('up')), ('x', 'style', 'noise0')
    return styleunet.ToRGB(inputs, features, style), ('x', 'style', 'skip')


def image_or_code(x):
    return nhwc(x) if np.ndim(x) == 4 else jnp.asarray(x)


@pytest.mark.slow
@handles('gpavatar', 'styleunet_blocks')
def test_styleunet_blocks(golden):
    for name in golden.config['blocks']:
        params = {k.removeprefix(f'{name}.'): v for k, v in golden.param.items() if k.startswith(f'{name}.')}
        inp = {k.removeprefix(f'{name}.'): image_or_code(v) for k, v in golden.inp.items() if k.startswith(f'{name}.')}
        weight = inp.pop('w')
        if name == 'normstyle':
            close(normalize_2nd_moment(inp['x']), golden.out[name], **NET)
            grad = jax.grad(lambda x, w=weight: jnp.sum(normalize_2nd_moment(x) * w))(inp['x'])
            close(grad, golden.grad[f'{name}.x'], **GRADIENT)
            continue
        module, names = block_of(name, params, golden.inp)
        tree = jax.tree.map(jnp.asarray, to_tree(params))

        def scalar(tree, *inputs, module=module, weight=weight):
            out = module.apply({'params': tree}, *inputs)
            return jnp.sum(out * weight), out

        every = tuple(range(len(names) + 1))
        grads, out = jax.jit(jax.grad(scalar, every, has_aux=True))(tree, *(inp[k] for k in names))
        close(nchw(out), golden.out[name], **NET, what=name)
        for k, grad in zip(names, grads[1:], strict=True):
            if f'{name}.{k}' in golden.grad:
                close(
                    nchw(grad) if grad.ndim == 4 else grad, golden.grad[f'{name}.{k}'], **GRADIENT, what=f'{name} {k}'
                )
        compare_params(grads[0], golden, f'{name}.')
    x, other = nhwc(golden.inp['interp.x']), nhwc(golden.inp['interp.x2'])
    side = x.shape[1]
    close(nchw(double(x)), golden.out['interp.up2'], **NET)
    for key in [k for k in golden.out if k.startswith('interp.')]:
        name = key.removeprefix('interp.')
        source, _, rest = name.partition('_') if name.startswith('x2') else ('', '', name)
        size = {'up2': 2 * side, 'down2': side // 2}.get(rest) or int(''.join(c for c in rest if c.isdigit()))
        found = nchw(resize(other if source else x, size, antialias='aa' in rest))
        step = -(-found.shape[2] // golden.out[key].shape[2])
        close(found[:, :, ::step, ::step], golden.out[key], **NET, what=key)
    golden.check_all_used()


def unet_config(cfg):
    divisor = cfg['channel_divisor']
    return styleunet.StyleUNetConfig(
        cfg['in_size'],
        cfg['out_size'],
        cfg['in_dim'],
        cfg['out_dim'],
        cfg['activation'],
        8192 // divisor,
        256 // divisor,
        cfg['num_style_feat'],
        cfg['num_mlp'],
    )


@pytest.mark.slow
@handles('gpavatar', 'styleunet_encoder', 'styleunet_sr')
def test_styleunet(golden):
    config = unet_config(golden.config)
    found = jax.tree.map(jnp.asarray, variables_of(golden.param))
    tree, maps = found['params'], found['noise']['stylegan_decoder']['noises']
    x, weight = nhwc(golden.inp['x']), nhwc(golden.inp['w'])
    noise = [nhwc(golden.inp[f'noise{i}']) for i in range(len(config.noise_sizes))]
    net = styleunet.StyleUNet(config)

    def scalar(params, x, noise):
        y = net.apply({'params': params}, x, noise)
        return jnp.sum(y * weight), y

    (params_grad, x_grad), y = jax.jit(jax.grad(scalar, (0, 1), has_aux=True))(tree, x, noise)
    close(nchw(y), golden.out['y'], **NET, what='drawn noise')
    stored = jax.jit(lambda p, x, n: scalar(p, x, n)[1])(tree, x, styleunet.stored_noise(maps, config))
    close(nchw(stored), golden.out['y_stored_noise'], **NET, what='stored noise')
    close(nchw(x_grad), golden.grad['x'], **GRADIENT)
    compare_params(params_grad, golden)
    norms = golden.out['grad_norms']
    flat = to_flat(params_grad)
    order = golden.config.get('grad_norms_order')
    order = [k for k in golden.param if k in flat] if order is None else order
    mine = np.array([np.linalg.norm(np.asarray(flat[k]).ravel()) for k in order])
    assert len(order) == len(norms)
    close(mine, norms, rtol=1e-4, scale=1e-6, what='gradient norms')
    golden.check_all_used()


def test_nearest_by_tiles_and_tree_agree():
    rng = np.random.default_rng(0)
    points, queries = (jnp.asarray(rng.normal(size=(n, 3)), jnp.float32) for n in (200, 333))
    plain = np.argsort(((queries[:, None] - points) ** 2).sum(-1), axis=1, kind='stable')[:, :5]
    for method in ('brute', 'tree'):
        assert (np.asarray(nearest(queries, points, 5, method, tile=50)) == plain).all(), method
