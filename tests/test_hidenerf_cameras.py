"""The six properties of HiDe-NeRF's camera-to-world transform (reference section 3.3)."""

import jax
import jax.numpy as jnp
import numpy as np
from scipy.ndimage import zoom

from avatar_jax.methods.hidenerf import cameras
from avatar_jax.methods.hidenerf.appearance import look_up
from avatar_jax.ops.grid_sample import grid_sample
from avatar_jax.render.cameras import focal_to_intrinsics, look_at_pose
from tests.comparison import close

PIVOT, DISTANCE = (0.0, 0.0, 0.2), 2.7
FRONTAL = np.float32([[1, 0, 0, 0], [0, -1, 0, 0], [0, 0, -1, DISTANCE + PIVOT[2]], [0, 0, 0, 1]])
INTRINSICS = np.asarray(focal_to_intrinsics())[None]
EXTENT = float(cameras.REFERENCE_EXTENT)
rng = np.random.default_rng(0)
PLANES = (rng.normal(size=(1, 3, 8, 8, 4)).astype(np.float32), rng.normal(size=(1, 3, 16, 16, 4)).astype(np.float32))
POINTS = (np.float32(PIVOT) + rng.uniform(-0.25, 0.25, (1, 50, 3))).astype(np.float32)


def about(axis, angle):
    i, j = (axis + 1) % 3, (axis + 2) % 3
    r = np.eye(3, dtype=np.float32)
    r[i, i] = r[j, j] = np.cos(angle)
    r[i, j], r[j, i] = -np.sin(angle), np.sin(angle)
    return r


def turned(pose, turn):
    """A camera after a rotation of the world about the pivot."""
    out = pose.copy()
    out[:3, :3] = turn @ pose[:3, :3]
    out[:3, 3] = turn @ (pose[:3, 3] - PIVOT) + PIVOT
    return out


@jax.jit
def modes(pose, points, planes):
    """s, and the features of the three modes."""
    pose = pose[None]
    size = cameras.plane_extent(pose, INTRINSICS, PIVOT)
    own = cameras.source_map(pose, size, PIVOT)
    maps = {m: cameras.look_up_map(pose, INTRINSICS, m, PIVOT) for m in cameras.TRANSFORMS}
    warped = tuple(cameras.warp_planes(p, own, size, PIVOT) for p in planes)
    return cameras.apply_map(own, points), {
        m: look_up(warped if m == 'plane_warp' else planes, maps[m], points) for m in maps
    }


def test_many_points_go_through_a_map():
    """As many as a frame has, compiled: they are what NumPy says."""
    own = np.random.default_rng(5)
    affine, points = (own.normal(size=s).astype(np.float32) for s in ((2, 3, 4), (2, 16_384, 3)))
    expected = np.einsum('nij,nmj->nmi', affine[..., :3], points) + affine[:, None, :, 3]
    close(jax.jit(cameras.apply_map)(affine, points), expected, atol=1e-5, what='map')


def test_frontal_sources_are_alike_in_all_modes():
    """Property 1."""
    s, found = modes(FRONTAL, POINTS, PLANES)
    expected = (2 / EXTENT) * (POINTS - np.float32(PIVOT)) * [1, -1, -1]
    close(s, expected, atol=1e-5, what='s')
    for mode in ('plane_warp', 'none'):
        close(found[mode], found['exact'], atol=5e-5, what=mode)


def test_a_common_rotation_changes_nothing():
    """Property 2; what takes the world for the camera's frame does change."""
    pose = turned(FRONTAL, about(1, 0.4))
    turn = about(1, 0.7) @ about(0, 0.3) @ about(2, -0.5)
    moved = ((POINTS - np.float32(PIVOT)) @ turn.T + np.float32(PIVOT)).astype(np.float32)
    s, found = modes(pose, POINTS, PLANES)
    s_moved, found_moved = modes(turned(pose, turn), moved, PLANES)
    close(s_moved, s, atol=1e-5, what='s')
    close(found_moved['exact'], found['exact'], atol=1e-4, what='features')
    assert np.abs(found_moved['none'] - found['none']).max() > 0.1
    # The inverse camera would mirror the yaw.
    inverse = cameras.source_map(jnp.asarray(np.linalg.inv(pose))[None], jnp.full(1, EXTENT), PIVOT)
    assert np.abs(cameras.apply_map(inverse, POINTS) - s).max() > 0.5


def test_planes_are_aligned_with_the_picture():
    """Property 3: a point at the head's depth lies in the planes where it lies in the picture."""
    pose = turned(FRONTAL, about(1, -0.6) @ about(0, 0.2))
    pixels = rng.uniform(0, 1, (40, 2))
    focal = INTRINSICS[0, 0, 0]
    depth = float(cameras.head_depth(jnp.asarray(pose), PIVOT))
    seen = np.concatenate([(pixels - 0.5) / focal, np.ones((40, 1))], 1) * depth
    points = (seen @ pose[:3, :3].T + pose[:3, 3]).astype(np.float32)
    s, _ = modes(pose, points[None], PLANES)
    close(s[0, :, :2], 2 * pixels - 1, atol=2e-5, what='place in the picture')
    close(s[0, :, 2], np.zeros(40), atol=2e-5, what='depth')


def test_linear_in_the_planes_and_not_to_be_applied_twice():
    """Property 4, with the gradient to the planes."""
    pose = turned(FRONTAL, about(1, 0.5))[None]
    size = cameras.plane_extent(pose, INTRINSICS, PIVOT)
    own = cameras.source_map(pose, size, PIVOT)
    a, b = (rng.normal(size=(1, 3, 8, 8, 2)).astype(np.float32) for _ in range(2))

    @jax.jit
    def run(a, b):
        def warp(p):
            return cameras.warp_planes(p, own, size, PIVOT)

        def total(p):
            return (warp(p) * b).sum()

        return warp(2 * a + 3 * b), 2 * warp(a) + 3 * warp(b), warp(warp(a)), warp(a), jax.grad(total)(a), total(a)

    mixed, apart, twice, once, grad, value = run(a, b)
    close(mixed, apart, atol=1e-4, what='linear')
    assert np.abs(twice - a).max() > 0.1 and np.abs(twice - once).max() > 0.1
    close((grad * a).sum(), value, rtol=1e-4, what='gradient of a linear function')


def test_moves_of_the_camera():
    """Property 5: across, and along the optical axis."""
    pose = turned(FRONTAL, about(1, 0.3) @ about(2, 0.2))
    step = np.float32([0.05, -0.03, 0])
    moved = pose.copy()
    moved[:3, 3] += pose[:3, :3] @ step
    s, s_moved = modes(pose, POINTS, PLANES)[0], modes(moved, POINTS, PLANES)[0]
    shift = np.broadcast_to(-(2 / EXTENT) * step, s.shape)
    close(s_moved - s, shift, atol=2e-5, what='across')
    near = pose.copy()
    near[:3, 3] += 0.8 * pose[:3, 2]
    center = modes(near, np.full((1, 50, 3), PIVOT, np.float32), PLANES)[0]
    close(center, np.zeros((1, 50, 3)), atol=1e-5, what='centre after a dolly')
    nearer = np.asarray(modes(near, POINTS, PLANES)[0])
    close(nearer, np.asarray(s) * DISTANCE / (DISTANCE - 0.8), rtol=1e-4, atol=1e-5, what='smaller window')


def test_roll_turns_the_first_plane():
    """Property 6."""
    angle = 0.5
    pose = turned(FRONTAL, about(2, angle))[None]
    size = cameras.plane_extent(pose, INTRINSICS, PIVOT)
    planes = rng.normal(size=(1, 3, 12, 12, 2)).astype(np.float32)
    warped = cameras.warp_planes(jnp.asarray(planes), cameras.source_map(pose, size, PIVOT), size, PIVOT)
    axis = (np.arange(12) + 0.5) / 6 - 1
    b, a = np.meshgrid(axis, axis, indexing='ij')
    cos, sin = np.cos(angle), np.sin(angle)
    grid = np.stack([cos * a + sin * b, sin * a - cos * b], -1).astype(np.float32)[None]  # rows of the planes go down
    close(warped[:, 0], grid_sample(jnp.asarray(planes[:, 0]), grid), atol=2e-5, what='plane xy')


def test_plane_warp_loses_what_exact_keeps():
    """Away from the planes and with larger turns, ever more: the figures of docs/hidenerf.md."""
    own = np.random.default_rng(0)
    coarse = own.normal(size=(1, 3, 4, 4, 24))
    smooth = zoom(coarse, (1, 1, 8, 8, 1), order=3, mode='nearest', grid_mode=True).astype(np.float32)
    points = (np.float32(PIVOT) + own.uniform(-0.25, 0.25, (1, 400, 3))).astype(np.float32)
    for degrees, figure in ((5, 0.11), (30, 0.57), (45, 0.73), (60, 0.81)):
        _, found = modes(turned(FRONTAL, about(1, np.radians(degrees))), points, (smooth,))
        error = np.asarray(found['plane_warp'] - found['exact'])
        loss = np.sqrt(np.mean(error**2) / np.mean(np.asarray(found['exact']) ** 2))
        assert abs(loss - figure) < 0.04, (degrees, loss)


def test_angles_of_view():
    assert abs(cameras.view_angle(FRONTAL, PIVOT)) < 1e-3
    assert abs(cameras.view_angle(turned(FRONTAL, about(1, np.radians(50))), PIVOT) - 50) < 1e-3
    behind = np.asarray(look_at_pose(-np.pi / 2, np.pi / 2, PIVOT, 2.7))
    assert cameras.view_angle(behind, PIVOT) > 170
    assert float(cameras.head_depth(jnp.asarray(turned(FRONTAL, np.eye(3))), PIVOT)) > 2.6
