"""Mirrored scenes and moved heads (NOFA's invariants 7 and 11), and the renderer's deformation of samples."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from avatar_jax.driving.cameras import behind_note, camera_labels
from avatar_jax.errors import UserError
from avatar_jax.faces.camera_labels import label_from_pose, make_label
from avatar_jax.faces.translation import pivot_place, translate_label
from avatar_jax.ops.grid_sample import PLANE_AXES
from avatar_jax.render.cameras import look_at_pose, mirror_label, unpack_label
from avatar_jax.render.config import RenderConfig
from avatar_jax.render.rays import sample_rays
from avatar_jax.render.renderer import render_rays
from avatar_jax.types import Avatar, Motion
from tests.comparison import close

PIVOT = (0.0, 0.0, 0.2)
LABELS = jnp.asarray(
    make_label(np.asarray(look_at_pose(jnp.asarray([1.3, 1.8]), jnp.asarray([1.4, 1.7]), PIVOT), np.float64))
)
FLIP = jnp.asarray([-1.0, 1.0, 1.0])


def sway(points):
    """Some deformation that is not symmetric."""
    return points + 0.05 * jnp.stack([jnp.sin(7 * points[..., 1]), points[..., 0], jnp.cos(5 * points[..., 0])], -1)


@pytest.mark.slow
@pytest.mark.parametrize('axes', sorted(PLANE_AXES))
def test_the_mirrored_volume_is_the_mirrored_picture(axes):
    config = RenderConfig(depth_resolution=6, depth_resolution_importance=6, plane_axes=axes, white_back=True)
    planes = jax.random.normal(jax.random.key(0), (2, 3, 8, 8, 4))
    weight = jax.random.normal(jax.random.key(1), (4, 5))

    def decode(features):
        out = features @ weight
        return jax.nn.sigmoid(out[..., 1:]), 4 * out[..., :1]

    mirrored = []
    for plane, (column, row) in zip(jnp.moveaxis(planes, 1, 0), PLANE_AXES[axes], strict=True):
        plane = plane[:, :, ::-1] if column == 0 else plane
        mirrored.append(plane[:, ::-1] if row == 0 else plane)

    @jax.jit
    def picture(planes, labels, sign):
        def deform(points):
            flip = jnp.where(sign > 0, 1.0, FLIP)
            return sway(points * flip) * flip

        out = render_rays(decode, planes, *sample_rays(*unpack_label(labels), 9), config, deform=deform)
        return out.features.reshape(2, 9, 9, 4)

    plain = picture(planes, LABELS, 1.0)
    other = picture(jnp.stack(mirrored, 1), jnp.stack([mirror_label(x) for x in LABELS]), -1.0)
    # Importance samples follow rounded weights; they and their colours move by as much.
    close(other, plain[:, :, ::-1], atol=2e-3, what=axes)
    assert float(jnp.abs(plain - plain[:, :, ::-1]).max()) > 0.1


def test_a_deformation_that_moves_nothing_changes_nothing():
    config = RenderConfig(depth_resolution=4, depth_resolution_importance=4)
    planes, bundle = jax.random.normal(jax.random.key(0), (2, 3, 4, 4, 3)), sample_rays(*unpack_label(LABELS), 4)
    decode = lambda f: (jax.nn.sigmoid(f), 3 * f[..., :1])

    def features(deform):
        return jax.jit(lambda planes: render_rays(decode, planes, *bundle, config, deform=deform).features)(planes)

    np.testing.assert_allclose(features(None), features(lambda points: points), atol=1e-5)
    assert float(jnp.abs(features(None) - features(sway)).max()) > 1e-3


def test_a_moved_head_moves_in_the_picture():
    first, second = np.asarray([[0.1, -0.05], [0.02, 0.2]]), np.asarray([[-0.03, 0.07], [0.1, 0.1]])
    labels = np.asarray(LABELS, np.float64)
    before, depth = pivot_place(labels)
    moved = translate_label(labels, first)
    after, depth_after = pivot_place(moved)
    close(after - before, first, atol=1e-6, what='offset in the picture')
    close(depth_after, depth, rtol=1e-6, what='depth')
    close(translate_label(labels, 0 * first), labels, atol=1e-7, what='no offset')
    both = translate_label(np.asarray(moved, np.float64), second)
    close(both, translate_label(labels, first + second), atol=1e-6, what='offsets add')
    zoomed = translate_label(labels, first, np.asarray([1.25, 0.8]))
    after, depth_after = pivot_place(zoomed)
    close(depth_after, depth / np.asarray([1.25, 0.8]), rtol=1e-6, what='zoom')
    close(after - before, first, atol=1e-6, what='offset with zoom')


def test_a_driver_that_moves_through_the_picture_takes_the_avatar_along():
    """Cameras of one distance lose the driver's way; ``move`` gives it back, from the first frame on."""
    rng = np.random.default_rng(0)
    angle = rng.normal(0, 0.2, (4, 3)).astype(np.float32)
    translation = rng.normal(0, 0.3, (4, 3)).astype(np.float32)
    motion = Motion(np.zeros((4, 64), np.float32), angle, translation, 25.0, 'procedural')
    config = SimpleNamespace(label_mode='orig')

    def place(move):
        return pivot_place(camera_labels('track', config, Avatar({}), motion, move).astype(np.float64))

    (still, depth), (shifted, same), (zoomed, changed) = (place(m) for m in ('none', 'shift', 'zoom'))
    truth, true_depth = pivot_place(np.asarray(label_from_pose(angle, translation, 'raw'), np.float64))
    close(shifted - still, truth - truth[:1], atol=1e-5, what='shift')
    close(zoomed - still, truth - truth[:1], atol=1e-5, what='shift with zoom')
    close(same, depth, rtol=1e-5, what='depth')
    close(changed / depth, true_depth / true_depth[0], rtol=1e-5, what='zoom')
    assert np.abs(truth - truth[:1]).max() > 0.02 and np.abs(true_depth / true_depth[0] - 1).max() > 0.01
    for kind, mode, move, said in (
        ('track', 'raw', 'shift', 'follow the head already'),
        ('orbit', 'orig', 'zoom', 'goes with --camera track'),
        ('track', 'orig', 'jump', 'use one of none, shift, zoom'),
    ):
        with pytest.raises(UserError, match=f'--move {move}: .*{said}'):
            camera_labels(kind, SimpleNamespace(label_mode=mode), Avatar({}), motion, move)


def test_cameras_behind_the_head_are_said():
    angle = np.zeros((4, 3))
    angle[:, 1] = np.radians([0, 80, -110, 172])
    labels = np.asarray(label_from_pose(angle, np.zeros((4, 3)), 'orig'))
    assert behind_note(labels[:2]) == ''
    assert behind_note(labels).startswith('2 of 4 frames look at the head from behind (up to 172 degrees')
