"""Cameras, rays, look-ups, decoder, sampling, marching and the whole renderer against EG3D's numbers."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from avatar_jax.models import decoder
from avatar_jax.ops.grid_sample import (
    grid_sample,
    grid_sample_3d,
    plane_axes_of,
    project_to_planes,
    sample_planes,
    sample_planes_mean,
)
from avatar_jax.render import cameras, marching, rays, sampling, shape
from avatar_jax.render.config import RenderConfig
from avatar_jax.render.renderer import render_rays
from tests.comparison import close
from tests.parity.golden import handles

VALUE, IMAGE, GRAD = 2e-4, 5e-4, 3e-3  # max abs error / max abs value


def decoder_params(golden):
    """The decoder's weights of a file, in our layout."""
    layers = {i: {k: jnp.asarray(golden.param[f'decoder.net.{i}.{k}'].T) for k in ('weight', 'bias')} for i in '02'}
    return {'net': layers}


def decoder_grads(grads):
    """Gradients in our layout -> {official name: array in the official layout}."""
    return {f'decoder.net.{i}.{k}': np.asarray(v).T for i, layer in grads['net'].items() for k, v in layer.items()}


def to_nhwc(planes):
    """[N, 3, C, H, W] -> [N, 3, H, W, C]."""
    return jnp.asarray(np.moveaxis(planes, 2, -1))


def ramp(count):
    return jnp.arange(1, count + 1, dtype=jnp.float32) / count


@pytest.mark.slow
@handles('eg3d', 'camera')
def test_camera(golden):
    for i, case in enumerate(golden.config['cases']):
        name = f'case{i:02d}'
        draws = [golden.inp.get(f'{name}/draw_{a}') for a in 'hv']
        count = case.get('batch_size', 1)
        draws = [np.zeros(count) if d is None else d for d in draws]
        options = {k: case[k] for k in ('h_std', 'v_std', 'radius') if k in case} | {'count': count, 'draws': draws}
        if case['kind'] == 'lookat':
            pose = cameras.sample_look_at(None, case['h'], case['v'], case['lookat'], **options)
        else:
            sample = {'gaussian': cameras.sample_gaussian, 'uniform': cameras.sample_uniform}[case['kind']]
            pose = sample(None, case['h'], case['v'], **options)
        close(pose, golden.out[name], scale=VALUE, what=name)
    simple = {
        'fov_intrinsics': lambda g: cameras.fov_to_intrinsics(g['fov_degrees']),
        'create_cam2world': lambda g: cameras.create_cam2world(g['forward'], g['origin']),
        'mirrored_pose': lambda g: cameras.mirror_pose(g['pose_to_mirror']),
    }
    for name, function in simple.items():
        if name in golden.out:
            close(function(golden.inp), golden.out[name], scale=VALUE, what=name)
    views, conditioning = cameras.sample_sheet_labels()
    if 'gen_samples_labels' in golden.out:
        close(views, golden.out['gen_samples_labels'], scale=VALUE, what='views')
        close(conditioning, golden.out['gen_samples_conditioning'], scale=VALUE, what='conditioning')
    if 'gen_videos_poses' in golden.out:
        what = golden.config['what']
        frames = [int(x) for x in re.search(r'frames \[([\d,]+)\]', what).group(1).split(',')]
        total = int(re.search(r'of a (\d+) frame loop', what).group(1))
        close(cameras.orbit_poses(total)[np.array(frames)], golden.out['gen_videos_poses'], scale=VALUE, what='orbit')
    for name in list(golden.out):
        if match := re.fullmatch(r'shape_grid_N(\d+)_(rows|cube(.+))', name):
            n, side = int(match[1]), float(match[3] or 1)
            rows = golden.inp[f'shape_grid_idx{n}'] if match[2] == 'rows' else None
            close(shape.shape_grid(n, side, rows, 'release'), golden.out[name], scale=VALUE, what=name)
    check_regressor_poses(golden)
    golden.check_all_used()


def check_regressor_poses(golden):
    """Poses that a coefficient regressor's fit stands for, before and after the two normalisations."""
    if 'recon_angle' not in golden.inp:
        return
    from avatar_jax.faces import camera_labels

    raw = camera_labels.raw_pose(golden.inp['recon_angle'], golden.inp['recon_trans'])
    close(raw, golden.out['recon_pose_before_fix'], scale=VALUE, what='raw')
    for mode in ('orig', 'cor'):
        close(camera_labels.normalise_pose(raw, mode), golden.out[f'recon_pose_{mode}_mode'], scale=VALUE, what=mode)
    pixels = camera_labels.intrinsics(np.float64(camera_labels.FOCAL_1024), 512)
    close(pixels, golden.out['recon_intrinsics_px'], scale=VALUE, what='pixel intrinsics')
    close(cameras.focal_to_intrinsics(), golden.out['label_intrinsics'], scale=VALUE, what='label intrinsics')


@handles('eg3d', 'ray_sampler')
@pytest.mark.slow
def test_ray_sampler(golden):
    for name in list(golden.out):
        if match := re.fullmatch(r'(origins|dirs)_res(\d+)', name):
            origins, directions = rays.sample_rays(
                jnp.asarray(golden.inp['cam2world']), jnp.asarray(golden.inp['intrinsics']), int(match[2])
            )
            close(origins if match[1] == 'origins' else directions, golden.out[name], scale=VALUE, what=name)
        elif match := re.fullmatch(r'box_(near|far)_side(.+)', name):
            count = golden.out[name].shape[1]
            origins, directions = rays.sample_rays(
                jnp.asarray(golden.inp['cam2world']), jnp.asarray(golden.inp['intrinsics']), round(count**0.5)
            )
            near, far = rays.box_intersection(origins, directions, float(match[2]))
            close(near if match[1] == 'near' else far, golden.out[name], scale=VALUE, what=name)
    golden.check_all_used()


@pytest.mark.slow
@handles('eg3d', 'decoder_planes')
def test_decoder_planes(golden):
    planes, points = to_nhwc(golden.inp['planes']), jnp.asarray(golden.inp['points'])
    params, lr_mul = decoder_params(golden), golden.config['decoder_lr_mul']
    axes_name = plane_axes_of(golden.out['plane_axes'])
    close(project_to_planes(points, axes_name), golden.out['projected_uv'], scale=VALUE, what='uv')
    for name in list(golden.out):
        if match := re.fullmatch(r'features_boxwarp(.+)', name):
            features = sample_planes(planes, points, float(match[1]), axes_name)
            close(features, golden.out[name], scale=VALUE, what=name)
            mean = sample_planes_mean(planes, points, float(match[1]), axes_name)
            close(mean, golden.out[name].mean(1), scale=VALUE, what=f'mean {name}')

    def run(planes, points, params):
        rgb, sigma = decoder.decode(params, sample_planes_mean(planes, points, 1.0, axes_name), lr_mul)
        return (rgb * ramp(rgb.shape[-1])).mean() + 0.01 * (sigma**2).mean(), (rgb, sigma)

    ((loss, (rgb, sigma)), grads) = jax.value_and_grad(run, (0, 1, 2), has_aux=True)(planes, points, params)
    close(rgb, golden.out['rgb'], scale=VALUE, what='rgb')
    close(sigma, golden.out['sigma'], scale=VALUE, what='sigma')
    close(loss, golden.out['loss'], scale=VALUE, what='loss')
    named = {'planes': np.moveaxis(grads[0], -1, 2), 'points': grads[1]} | decoder_grads(grads[2])
    for name in list(golden.grad):
        close(named[name], golden.grad[name], scale=GRAD, what=f'grad {name}')
    grid = jnp.asarray(np.moveaxis(golden.inp['grid3d'], 1, -1))
    coordinates = jnp.asarray(golden.inp['grid3d_coords'])
    grid = jnp.broadcast_to(grid, (coordinates.shape[0], *grid.shape[1:]))
    close(grid_sample_3d(grid, coordinates), golden.out['grid3d'], scale=VALUE, what='3-D grid')
    golden.check_all_used()


@pytest.mark.slow
@handles('eg3d', 'importance_marcher')
def test_importance_marcher(golden):
    depths, weights = jnp.asarray(golden.inp['depths'][..., 0]), jnp.asarray(golden.inp['weights'][..., 0])
    count = golden.config['I']
    u = jnp.asarray(golden.inp['u']).reshape(*depths.shape[:2], count)
    fine = sampling.importance_depths(depths, weights, count, u)
    close(fine[..., None], golden.out['depths_fine'], scale=VALUE, what='fine depths')
    even = jnp.broadcast_to(jnp.linspace(0, 1, count), u.shape)
    even = sampling.importance_depths(depths, weights, count, even).reshape(golden.out['det_samples'].shape)
    close(even, golden.out['det_samples'], scale=VALUE, what='even quantiles')
    smooth = sampling.smooth_weights(weights)
    smooth_expected = golden.out['smoothed_plus_0.01']
    close(smooth.reshape(smooth_expected.shape), smooth_expected, scale=VALUE, what='smoothed')
    pooled = golden.out['after_maxpool']  # an intermediate: its pairwise means must be what smooth_weights returns
    close(
        0.5 * (pooled[:, 1:] + pooled[:, :-1]) + 0.01, smooth.reshape(smooth_expected.shape), scale=VALUE, what='pool'
    )

    inputs = [jnp.asarray(golden.inp[k]) for k in ('colors', 'densities', 'depths')]
    for white in (False, True):
        tag = f'wb{int(white)}'

        def run(colors, densities, depths, white=white):
            out = marching.march(colors, densities, depths, white)
            return (out[0] * jnp.arange(1.0, colors.shape[-1] + 1)).mean(), out

        (_, out), grads = jax.value_and_grad(run, (0, 1, 2), has_aux=True)(*inputs)
        for value, name in zip(out, ('rgb', 'depth', 'weights')):
            close(value, golden.out[f'march_{name}_{tag}'], scale=VALUE, what=f'{name} {tag}')
        for value, name in zip(grads, ('colors', 'densities', 'depths')):
            close(value, golden.grad[f'march_{tag}/{name}'], scale=GRAD, what=f'grad {name} {tag}')
    golden.check_all_used()


def case_draws(golden, case, config, shape):
    """The recorded random numbers of one renderer case."""
    batch, count = shape
    sizes = {
        'jitter': config.depth_resolution,
        'u_importance': config.depth_resolution_importance,
        'density_noise_coarse': config.depth_resolution,
        'density_noise_fine': config.depth_resolution_importance,
    }
    names = {
        'jitter': 'jitter',
        'u_importance': 'importance',
        'density_noise_coarse': 'density_coarse',
        'density_noise_fine': 'density_fine',
    }
    found = {k: golden.inp.get(f'{case}/{k}') for k in sizes}
    return sampling.RenderDraws(
        **{names[k]: jnp.asarray(v).reshape(batch, count, sizes[k]) for k, v in found.items() if v is not None}
    )


@pytest.mark.slow
@handles('eg3d', 'renderer')
def test_renderer(golden):
    planes, params = to_nhwc(golden.inp['planes']), decoder_params(golden)
    for case, options in golden.config['cases'].items():
        letter = case.split('_')[0]
        intrinsics = golden.inp.get(f'intrinsics_case{letter}')
        intrinsics = golden.inp['intrinsics'] if intrinsics is None else intrinsics
        origins, directions = rays.sample_rays(
            jnp.asarray(golden.inp['cam2world']), jnp.asarray(intrinsics), golden.config['resolution']
        )
        config = RenderConfig.from_rendering_kwargs(options)
        draws = case_draws(golden, case, config, origins.shape[:2])
        check_first_pass(golden, case, config, draws, planes, params, origins, directions)

        def run(planes, params, config=config, draws=draws, origins=origins, directions=directions):
            out = render_rays(lambda f: decoder.decode(params, f), planes, origins, directions, config, draws)
            loss = (out.features * ramp(out.features.shape[-1])).mean()
            return loss + 0.3 * out.depth.mean() + 0.1 * out.opacity.mean(), out

        (loss, out), grads = jax.jit(jax.value_and_grad(run, (0, 1), has_aux=True))(planes, params)
        close(out.features, golden.out[f'{case}/features'], scale=IMAGE, what=f'{case} features')
        close(out.depth, golden.out[f'{case}/depth'], scale=IMAGE, what=f'{case} depth')
        close(out.opacity, golden.out[f'{case}/weight_sum'], scale=VALUE, what=f'{case} opacity')
        close(loss, golden.out[f'{case}/loss'], scale=VALUE, what=f'{case} loss')
        named = {'planes': np.moveaxis(grads[0], -1, 2)} | decoder_grads(grads[1])
        for name in [k for k in golden.grad if k.startswith(f'{case}/')]:
            close(named[name.removeprefix(f'{case}/')], golden.grad[name], scale=GRAD, what=f'grad {name}')
    golden.check_all_used()


def check_first_pass(golden, case, config, draws, planes, params, origins, directions):
    """The intermediate results of a case, where the file has them."""
    from avatar_jax.render.renderer import decode_points

    if f'{case}/depths_coarse' not in golden.out:
        return
    limits = rays.ray_limits(origins, directions, config.box_warp) if config.ray_start == 'auto' else None

    def densities(depths, noise):
        points = origins[:, :, None] + depths[..., None] * directions[:, :, None]
        flat = points.reshape(points.shape[0], -1, 3)
        raw = decode_points(lambda f: decoder.decode(params, f), planes, flat, config)[1].reshape(depths.shape)
        return raw if noise is None else raw + config.density_noise * noise

    depths = sampling.stratified_depths(config, origins.shape[:2], limits, draws.jitter)
    close(depths[..., None], golden.out[f'{case}/depths_coarse'], scale=VALUE, what=f'{case} depths')
    density = densities(depths, draws.density_coarse)
    weights = marching.interval_weights(density, depths)
    close(weights[..., None], golden.out[f'{case}/weights_coarse'], scale=IMAGE, what=f'{case} weights')
    fine = sampling.importance_depths(depths, weights, config.depth_resolution_importance, draws.importance)
    close(fine[..., None], golden.out[f'{case}/depths_fine'], scale=IMAGE, what=f'{case} fine depths')
    both = jnp.concatenate([depths, fine], -1)
    order = jnp.argsort(both, -1)
    everything = jnp.concatenate([density, densities(fine, draws.density_fine)], -1)
    close(jnp.take_along_axis(both, order, -1)[..., None], golden.out[f'{case}/all_depths'], scale=IMAGE, what='sorted')
    everything = jnp.take_along_axis(everything, order, -1)[..., None]
    close(everything, golden.out[f'{case}/all_densities'], scale=2 * IMAGE, what=f'{case} densities')


@pytest.mark.slow
@handles('blocks', 'grid_sample')
def test_grid_sample(golden):
    image, probe = (
        jnp.asarray(np.moveaxis(golden.inp['x'], 1, -1)),
        jnp.asarray(np.moveaxis(golden.inp['probe'], 1, -1)),
    )
    for name in list(golden.out):
        mode, padding, corners = name.split('_')
        align = corners == 'ac1'
        if mode == 'tri':
            volume = jnp.asarray(np.moveaxis(golden.inp['x3'], 1, -1))
            out = grid_sample_3d(volume, jnp.asarray(golden.inp['grid3']), 'bilinear', padding, align)
            close(np.moveaxis(out, -1, 1), golden.out[name], rtol=1e-4, atol=1e-5, what=name)
            continue
        grid = jnp.asarray(golden.inp['grid_nearest' if mode == 'nearest' else 'grid'])
        out = grid_sample(image, grid, mode, padding, align)
        close(np.moveaxis(out, -1, 1), golden.out[name], rtol=1e-4, atol=1e-5, what=name)
        if f'{name}.x' in golden.grad:

            def loss(image, grid, mode=mode, padding=padding, align=align):
                return (grid_sample(image, grid, mode, padding, align) * probe).sum()

            d_image, d_grid = jax.grad(loss, (0, 1))(image, grid)
            expected = golden.grad[f'{name}.x']
            close(np.moveaxis(d_image, -1, 1), expected, rtol=1e-3, scale=1e-4, what=f'grad image {name}')
            # Rows 0 and 1 hold coordinates exactly on cell edges, where the derivative jumps.
            close(d_grid[:, 2:], golden.grad[f'{name}.grid'][:, 2:], rtol=1e-3, scale=1e-4, what=f'grad grid {name}')
    golden.check_all_used()


@pytest.mark.slow
@handles('blocks', 'flips')
def test_flips(golden):
    pose = jnp.asarray(golden.inp['c2w'])[None]
    close(cameras.mirror_pose(pose)[0], golden.out['c2w_flipped'], rtol=1e-4, atol=1e-5, what='pose')
    resolution = golden.config['resolution']
    intrinsics = cameras.focal_to_intrinsics(golden.config['f_norm'])[None]
    for matrix, tag in ((pose, ''), (cameras.mirror_pose(pose), '_flipped')):
        found = rays.sample_rays(matrix, intrinsics, resolution)
        for value, name in zip(found, 'od'):
            square = np.asarray(value).reshape(resolution, resolution, 3)
            close(square, golden.out[f'ray_{name}{tag}'], rtol=1e-4, atol=1e-5, what=f'{name}{tag}')
    golden.check_all_used()
