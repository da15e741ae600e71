"""Mirrored scenes and moved heads (NOFA's invariants 7 and 11), and the renderer's deformation of samples."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from avatar_jax.faces.camera_labels import make_label
from avatar_jax.faces.translation import translate_label
from avatar_jax.ops.grid_sample import PLANE_AXES
from avatar_jax.render.cameras import look_at_pose, mirror_label, unpack_label
from avatar_jax.render.config import RenderConfig
from avatar_jax.render.rays import sample_rays
from avatar_jax.render.renderer import render_rays
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

    np.testing.assert_array_equal(features(None), features(lambda points: points))
    assert float(jnp.abs(features(None) - features(sway)).max()) > 1e-3


def pivot_in_picture(label):
    """(x, y) of the head's pivot in picture sides."""
    pose, camera = (np.asarray(x, np.float64) for x in unpack_label(jnp.asarray(label)))
    seen = np.einsum('nij,ni->nj', pose[:, :3, :3], np.asarray(PIVOT) - pose[:, :3, 3])
    projected = np.einsum('nij,nj->ni', camera, seen)
    return projected[:, :2] / projected[:, 2:], seen[:, 2]


def test_a_moved_head_moves_in_the_picture():
    first, second = np.asarray([[0.1, -0.05], [0.02, 0.2]]), np.asarray([[-0.03, 0.07], [0.1, 0.1]])
    labels = np.asarray(LABELS, np.float64)
    before, depth = pivot_in_picture(labels)
    moved = translate_label(labels, first)
    after, depth_after = pivot_in_picture(moved)
    close(after - before, first, atol=1e-6, what='offset in the picture')
    close(depth_after, depth, rtol=1e-6, what='depth')
    close(translate_label(labels, 0 * first), labels, atol=1e-7, what='no offset')
    both = translate_label(np.asarray(moved, np.float64), second)
    close(both, translate_label(labels, first + second), atol=1e-6, what='offsets add')
    zoomed = translate_label(labels, first, np.asarray([1.25, 0.8]))
    after, depth_after = pivot_in_picture(zoomed)
    close(depth_after, depth / np.asarray([1.25, 0.8]), rtol=1e-6, what='zoom')
    close(after - before, first, atol=1e-6, what='offset with zoom')
