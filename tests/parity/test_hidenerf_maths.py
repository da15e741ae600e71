"""HiDe-NeRF's camera-to-world transform, positional encoding, regulariser and mirrored cameras against the reference
numbers."""

import jax
import jax.numpy as jnp
import numpy as np

from avatar_jax.methods.hidenerf import appearance, cameras, field
from avatar_jax.methods.hidenerf.losses import deformation_norm
from avatar_jax.render.cameras import focal_to_intrinsics, mirror_pose
from avatar_jax.render.rays import sample_rays
from tests.comparison import close
from tests.parity.golden import handles


@handles('blocks', 'hidenerf_maths')
def test_transform(golden):
    config, given = golden.config, golden.inp
    pivot, extent = tuple(config['pivot']), config['plane_extent']
    sizes = config['resolutions']
    planes = [np.moveaxis(given[f'V{h}'], 1, -1) for h in sizes]
    points, poses = given['points'], given['c2w']
    count = len(poses)
    intrinsics = jnp.broadcast_to(focal_to_intrinsics(config['f_norm']), (count, 3, 3))
    # A source a row: the same planes and points seen from every camera.
    many = tuple(jnp.broadcast_to(p, (count, *p.shape)) for p in planes)
    everywhere = jnp.broadcast_to(points, (count, *points.shape))

    @jax.jit
    def run(poses, intrinsics, many, everywhere):
        wide = jnp.full(count, extent)
        own = cameras.source_map(poses, wide, pivot)
        warped = tuple(cameras.warp_planes(p, own, wide, pivot) for p in many)
        exact, literal = (
            cameras.look_up_map(poses, intrinsics, mode, pivot, extent) for mode in ('exact', 'plane_warp')
        )
        features = [appearance.look_up(p, affine, everywhere) for p, affine in ((many, exact), (warped, literal))]
        return cameras.apply_map(own, everywhere), warped, *features

    places, warped, exact, literal = run(poses, intrinsics, many, everywhere)
    for i in range(count):
        close(places[i], golden.out[f's_{i}'], atol=2e-6, rtol=2e-6, what=f's of camera {i}')
        close(exact[i], golden.out[f'feat_exact_{i}'], atol=3e-5, what=f'exact, camera {i}')
        for h, found in zip(sizes, warped, strict=True):
            # Eps of a place of up to 64 pixels, times the steepest cell of the planes.
            close(jnp.moveaxis(found[i], -1, 1), golden.out[f'warp{h}_{i}'], atol=1e-4, what=f'planes {h}, camera {i}')
        close(literal[i], golden.out[f'feat_warp_{i}'], atol=3e-5, what=f'plane_warp, camera {i}')
    close(mirror_pose(poses), golden.out['c2w_flipped'], atol=0, what='mirrored cameras')
    octaves = golden.out['gamma_L6_of_2p'].shape[1] // 6
    encoded = field.positional_encoding(2 * points, octaves)
    close(encoded, golden.out['gamma_L6_of_2p'], atol=2e-5, what='positional encoding')
    for reduce in ('mean', 'sum'):
        close(deformation_norm(given['dP'], reduce), golden.out[f'R_D_{reduce}'], rtol=1e-6, what=f'R_D, {reduce}')
    # The extent that the file gives is the window of its first, frontal camera.
    close(cameras.plane_extent(poses[:1], intrinsics[:1], pivot), [extent], rtol=1e-6, what='extent')
    golden.check_all_used()


@handles('blocks', 'flips')
def test_mirrored_rays(golden):
    size = golden.config['resolution']
    pose = golden.inp['c2w']
    flipped = mirror_pose(pose)
    close(flipped, golden.out['c2w_flipped'], atol=0, what='camera')
    intrinsics = focal_to_intrinsics(golden.config['f_norm'])[None]
    for suffix, camera in (('', pose), ('_flipped', flipped)):
        origins, directions = sample_rays(jnp.asarray(camera)[None], intrinsics, size)
        for name, found in (('o', origins), ('d', directions)):
            expected = golden.out[f'ray_{name}{suffix}']
            close(found.reshape(size, size, 3), expected, atol=2e-6, what=f'ray_{name}{suffix}')
    golden.check_all_used()
