"""GPAvatar's rays, compositing and two-pass renderer against reference numbers (tolerances: section 16 of the spec)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from avatar_jax.methods.gpavatar import cameras, render
from tests.comparison import close
from tests.parity.golden import handles

DEPTH = {'atol': 1e-5}


def arrays(golden):
    return {k: jnp.asarray(v) for k, v in golden.inp.items()}


def per_camera(x, count):
    return x.reshape(count, -1, *x.shape[1:])


@pytest.mark.slow
@handles('gpavatar', 'camera_rays')
def test_camera_rays(golden):
    cfg, inp, out = golden.config, arrays(golden), golden.out
    height, width = cfg['size']
    cams, samples = inp['transforms'], cfg['points_per_ray']
    count = cams.shape[0]
    origins, dirs = cameras.rays(cams, cfg['focal'], height, width)
    close(cameras.pixel_directions(height, width, cfg['focal']), out['camera_dirs'], atol=1e-6, what='pixels')
    close(origins.reshape(-1, 3), out['origins'], **DEPTH, what='origins')
    close(dirs.reshape(-1, 3), out['dirs'], atol=1e-6, what='directions')
    near, far, hit = cameras.cube_hits(jnp.asarray(out['origins']), jnp.asarray(out['dirs']))
    close(near[:, None], out['t_near'], **DEPTH, what='near')
    close(far[:, None], out['t_far'], **DEPTH, what='far')
    assert (np.asarray(hit)[:, None] == out['hit']).all()
    near, far, _ = cameras.cube_hits(origins, dirs)
    for name, jitter in (('', None), ('_jitter', per_camera(inp['jitter_u'], count))):
        depths = render.bin_depths(near, far, samples, jitter)
        close(depths.reshape(-1, samples), out[f'depths{name}'], **DEPTH, what=f'depths{name}')
        places = render.along(origins, dirs, depths).reshape(-1, samples, 3)
        expected = out[f'coords{name}']
        step = -(-len(places) // len(expected))
        close(places[::step], expected, **DEPTH, what=f'places{name}')
    rows, columns = (int(n) for n in out['camera_shape_rect'])
    focal = jnp.stack([inp['K_rect'][0, 0], inp['K_rect'][1, 1]])
    close(cameras.pixel_directions(rows, columns, focal), out['camera_dirs_rect'], atol=1e-6, what='rectangular')
    samples = out['near_far_depths'].shape[1]
    side = round((len(out['near_far_depths']) / 2) ** 0.5)
    origins, dirs = cameras.rays(cams[:2], cfg['focal'], side, side)
    near, far = (float(x) for x in _numbers(cfg['note'], 'near ', 'far '))
    depths = render.bin_depths(jnp.full(dirs.shape[:-1], near), jnp.full(dirs.shape[:-1], far), samples)
    close(depths.reshape(-1, samples), out['near_far_depths'], **DEPTH, what='near and far')
    close(render.along(origins, dirs, depths).reshape(-1, samples, 3), out['near_far_coords'], **DEPTH)
    golden.check_all_used()


def _numbers(text, *names):
    """The numbers that follow words of a file's note."""
    import re

    return [re.search(rf'{name}(-?[\d.]*\d)', text).group(1) for name in names]


@pytest.mark.slow
@handles('gpavatar', 'volume_rendering')
def test_volume_rendering(golden):
    inp, out, cfg = arrays(golden), golden.out, golden.config
    opacities, values = inp['opacities'], inp['values']
    found, opacity, weights = render.composite(opacities, values)
    close(found, out['accum_values'], atol=2e-6, what='values')
    close(opacity[:, None], out['accum_opacity'], atol=2e-6, what='opacity')
    close(weights, out['weights'], atol=2e-6, what='weights')
    for name in [k for k in out if k.startswith('accum_values_bg')]:
        other = render.composite(opacities, values, float(name.removeprefix('accum_values_bg')))[0]
        close(other, out[name], atol=2e-6, what=name)
    count = cfg['fine_samples']
    deeper = render.fine_depths(weights, inp['depths'], count)
    close(deeper, out['fine_depths'], **DEPTH, what='fine depths')
    close(render.along(inp['origins'], inp['dirs'], deeper), out['fine_coords'], **DEPTH)
    stratified = render.fine_depths(weights, inp['depths'], count, inp['stratified_bias'])
    close(stratified, out['fine_depths_stratified'], **DEPTH, what='stratified')
    merged = render.merge(
        (inp['depths'], opacities, values), (jnp.asarray(out['fine_depths']), inp['fine_opacities'], inp['fine_values'])
    )
    for name, array in zip(('depths', 'opacities', 'values'), merged, strict=True):
        # Rays without extent have all samples at one depth: in which order is left open.
        open_order = np.ptp(out['merged_depths'], axis=1) == 0
        close(np.asarray(array)[~open_order], out[f'merged_{name}'][~open_order], atol=2e-6, what=f'merged {name}')

    def scalar(opacities, values):
        found, opacity, _ = render.composite(opacities, values)
        return jnp.sum(found * inp['w_values']) + jnp.sum(opacity[:, None] * inp['w_opacity'])

    for name, grad in zip(('opacities', 'values'), jax.grad(scalar, (0, 1))(opacities, values), strict=True):
        close(grad, golden.grad[name], scale=1e-5, what=f'gradient {name}')
    golden.check_all_used()


@pytest.mark.slow
@handles('gpavatar', 'two_pass_render')
def test_two_pass_render(golden):
    cfg, inp, out = golden.config, arrays(golden), golden.out
    height, width = cfg['size']
    cams = inp['transforms']
    count = cams.shape[0]
    origins, dirs = cameras.rays(cams, cfg['focal'], height, width)

    def field(places, directions):
        radius = jnp.linalg.norm(places, axis=-1, keepdims=True)
        seen = jnp.broadcast_to(directions[:, :, None], places.shape)
        return 0.6 * jax.nn.sigmoid(12 * (0.7 - radius)), jnp.concatenate(
            [jnp.sin(places @ inp['A'] + inp['C']), seen], -1
        )

    draws = render.Draws(per_camera(inp['jitter_u'], count), per_camera(inp['stratified_bias'], count))
    for name, random in (('', None), ('_noise', draws)):
        found = render.render(field, origins, dirs, cfg['points'], cfg['fine_points'], random)
        for part, array in (
            ('coarse', found.coarse),
            ('fine', found.fine),
            ('depth', render.depth_picture(found.distance)[..., None]),
        ):
            picture = jnp.moveaxis(render.to_image(array, height, width), -1, 1)
            error = np.abs(np.asarray(picture) - out[f'{part}{name}'])
            assert error.mean() < 2e-6 and error.max() < 5e-4, f'{part}{name}: {error.mean():.1e}, {error.max():.1e}'
        if not name:
            close(found.coarse_opacities.reshape(count, -1, 1), out['coarse_density'], atol=1e-5)
    golden.check_all_used()


@pytest.mark.slow
def test_rays_that_miss_the_cube_are_black_and_finite():
    origins, dirs = jnp.zeros((1, 1, 3)) + jnp.array([0.0, 5, 12]), jnp.array([[[0.0, 0, -1]]])

    def field(places, directions):
        inside = jnp.all(jnp.abs(places) < 1, -1, keepdims=True)
        return 0.5 * inside, jnp.ones((*places.shape[:-1], 3))

    found = render.render(field, origins, dirs, 4, 4)
    assert np.asarray(found.fine).max() == 0 and np.isfinite(np.asarray(found.distance)).all()
    assert float(render.composite(jnp.zeros((1, 3)), jnp.ones((1, 3, 2)), 1.0)[0][0, 0]) == pytest.approx(1.0)
