"""Canonical pictures on the front of the mean head, and the points that follow the strain of expressions."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from avatar_jax.errors import UserError
from avatar_jax.faces.camera_labels import label_from_pose, yaw_label
from avatar_jax.methods.gpavatar import cameras, front, inputs, mesh, model
from avatar_jax.methods.gpavatar.config import ModelConfig
from tests.test_gpavatar import small_flame

SIZE = 48
WORLD = cameras.WorldConfig(2.6)
FRONT = np.asarray(label_from_pose(np.zeros(3, np.float32), np.zeros(3, np.float32), 'raw'))
SQUARE = np.array([[0, 1, 2], [0, 2, 3]])


def centres(size=SIZE):
    """x and y of the pixels' centres, [S,S] each."""
    axis = (np.arange(size) + 0.5) / (size / 2) - 1
    return np.meshgrid(axis, -axis)


def camera(yaw):
    return cameras.camera_of_label(np.asarray(yaw_label(FRONT, yaw), np.float32)[None], WORLD)


def picture_of(surface_z, yaw):
    """[1,S,S,3] what a camera sees of the plane z = surface_z, painted with its own coordinates (x, y, 0)."""
    transforms, focal = camera(yaw)
    places = jnp.stack(jnp.meshgrid((jnp.arange(SIZE) + 0.5) / SIZE, (jnp.arange(SIZE) + 0.5) / SIZE), -1).reshape(
        1, -1, 2
    )
    origins, directions = cameras.rays_through(jnp.asarray(transforms), focal, places, 10**6)
    length = (surface_z - origins[..., 2]) / directions[..., 2]
    met = origins + directions * length[..., None]
    return jnp.concatenate([met[..., :2], 0 * met[..., :1]], -1).reshape(1, SIZE, SIZE, 3)


def test_front_of_a_tilted_square():
    x, y = centres()
    corners = np.array([[-1, 1], [1, 1], [1, -1], [-1, -1]]) * 1.5
    depth = 0.1 + 0.3 * corners[:, :1] - 0.2 * corners[:, 1:]
    found = front.front_surface(np.concatenate([corners, depth], 1), SQUARE, SIZE)
    inner = np.s_[4:-4, 4:-4]
    np.testing.assert_allclose(found[inner], (0.1 + 0.3 * x - 0.2 * y)[inner], atol=0.02)
    fine = front.front_surface(np.concatenate([corners, depth], 1), SQUARE, 2 * front.FINEST)
    x, y = centres(2 * front.FINEST)
    np.testing.assert_allclose(fine[9:-9, 9:-9], (0.1 + 0.3 * x - 0.2 * y)[9:-9, 9:-9], atol=0.01)
    # Something smaller behind it is not seen; something before it is.
    small = np.concatenate([corners * 0.4, np.full((4, 1), -0.9)], 1)
    both = np.concatenate([SQUARE, SQUARE + 4])
    vertices = np.concatenate([corners, depth], 1)
    np.testing.assert_array_equal(front.front_surface(np.concatenate([vertices, small]), both, SIZE), found)
    small[:, 2] = 0.9
    assert front.front_surface(np.concatenate([vertices, small]), both, SIZE)[SIZE // 2, SIZE // 2] == pytest.approx(
        0.9
    )
    # Beside a mesh the surface goes on.
    alone = front.front_surface(small, SQUARE, SIZE)
    np.testing.assert_allclose(alone, 0.9, atol=1e-6)
    with pytest.raises(ValueError, match='no vertex'):
        front.front_surface(small + 5, SQUARE, SIZE)


@pytest.mark.slow
@pytest.mark.parametrize('yaw', [0.0, 0.6, -0.6])
def test_features_keep_their_places(yaw):
    """The canonical picture shows at (x, y) what stands there, from wherever the portrait was taken; the plane z = 0
    does not.
    """
    transforms, focal = camera(yaw)
    seen_cameras = jnp.asarray(front.cameras_of(transforms, focal))
    found = np.asarray(jax.jit(front.on_front)(picture_of(0.4, yaw), seen_cameras, jnp.full((SIZE, SIZE), 0.4)))[0]
    x, y = centres()
    good = (found[..., 3] > 0.99) & (np.abs(x) < 0.5) & (np.abs(y) < 0.5)
    assert good[12:36, 12:36].mean() > 0.9
    np.testing.assert_allclose(found[good, 0], x[good], atol=0.01)
    np.testing.assert_allclose(found[good, 1], y[good], atol=0.01)
    homography = inputs.warp_coefficients(transforms, focal, SIZE, 'exact')
    through = np.asarray(inputs.warp(picture_of(0.4, yaw), jnp.asarray(homography)))[0]
    shift = np.abs(through[good, 0] - x[good]).mean()
    assert shift > 0.2 if yaw else shift < 0.1


def test_what_turns_away_is_taken_from_the_other_side():
    ridge = jnp.asarray(
        0.5 - 1.2 * np.abs(centres()[0]), jnp.float32
    )  # a roof: from far to one side, the other is not seen
    transforms, focal = camera(0.75)
    images = jnp.asarray(np.random.default_rng(0).uniform(size=(1, SIZE, SIZE, 3)), jnp.float32)
    found = np.asarray(jax.jit(front.on_front)(images, jnp.asarray(front.cameras_of(transforms, focal)), ridge))[0]
    colours, seen = found[..., :3], found[..., 3]
    away, near = (np.s_[16:32, 28:36], np.s_[16:32, 12:20])
    if seen[away].mean() > seen[near].mean():
        away, near = near, away
    assert seen[away].max() == 0 and seen[near].min() > 0.99
    np.testing.assert_allclose(colours[away], colours[:, ::-1][away], atol=0.01)


def test_what_is_behind_something_is_hidden():
    wall = jnp.asarray(np.where(np.abs(centres(64)[0]) < 0.2, 0.6, 0.0), jnp.float32)
    nothing = jnp.zeros((1, 64, 64, 3))
    for yaw in (0.7, -0.7):
        found = np.asarray(jax.jit(front.on_front)(nothing, jnp.asarray(front.cameras_of(*camera(yaw))), wall))
        seen = found[0, 28:36, :: 1 if yaw > 0 else -1, 3]
        assert seen[:, 12:20].mean() < 0.2 and seen[:, 40:45].min() > 0.9 and seen[:, 29:35].min() > 0.9


def test_more_points_where_the_mesh_is_strained():
    rng = np.random.default_rng(0)
    rest = rng.uniform(-1, 1, (2000, 3))
    moves = np.zeros((3, 2000, 3))
    lips = np.linalg.norm(rest, axis=-1) < 0.4
    moves[0, lips] = rng.normal(size=(lips.sum(), 3))
    moves[1] = 5.0  # all together: no strain
    ids = mesh.strained_ids(rest, moves, 300)
    assert len(np.unique(ids)) == 300 and (np.diff(ids) > 0).all()
    np.testing.assert_array_equal(ids, mesh.strained_ids(rest, moves, 300))
    assert lips[ids].mean() > 3 * lips.mean() and not lips[ids].all()
    np.testing.assert_array_equal(mesh.strained_ids(rest, moves, 2000), np.arange(2000))
    own = mesh.load_mesh(ModelConfig.tiny(field__choice='strained'))
    assert not np.array_equal(own['mean'], mesh.load_mesh(ModelConfig.tiny())['mean'])


@pytest.mark.slow
@pytest.mark.parametrize('kind', ['points', 'expression', 'both'])
def test_networks_see_the_canonical_picture_of_the_mean_head(kind):
    config = ModelConfig.tiny(warp_surface='head', field__kind=kind, head__plane_channels=4)
    config = dataclasses.replace(config, plane_skip=True)
    own = mesh.load_mesh(config)
    assert own['front'].shape == (16, 16) and ('mean' in own) == (kind != 'expression')
    variables = {**model.init(config, jax.random.key(0)), 'mesh': own}
    image = np.random.default_rng(0).uniform(-1, 1, (16, 16, 3)).astype(np.float32)
    avatar = model.build(variables, config, model.Portrait(image=image, camera=model.Camera.from_label(FRONT)))
    views = jnp.asarray(model.views_of(config, FRONT[None]))
    shown = jax.jit(lambda x: model.canonical(config, x, views, own['front']))(jnp.asarray(image + 1)[None] / 2)
    assert shown.shape == (1, 16, 16, 4)
    encode = jax.jit(lambda images: model.encode(variables['params'], config, images))
    planes = encode(shown)
    np.testing.assert_allclose(avatar.identity['planes'], planes[0], atol=1e-5)
    without = encode(shown.at[..., 3].set(0.5))
    assert np.abs(planes - without)[:, 0, ..., 3].max() > 0.5  # the head is told what was seen
    np.testing.assert_array_equal(planes[..., :3], without[..., :3])


@pytest.mark.slow
def test_flame_has_a_front_and_strain_too():
    config = ModelConfig.tiny(warp_surface='head', field__choice='strained')
    found = mesh.load_mesh(dataclasses.replace(config, basis='flame-2020', plane_skip=False), small_flame())
    assert found['front'].shape == (16, 16) and np.isfinite(found['front']).all() and len(found['ids']) == 60


def test_bad_choices():
    with pytest.raises(UserError, match="warp_surface: 'mesh'; use one of plane, head"):
        ModelConfig.tiny(warp_surface='mesh')
    with pytest.raises(UserError, match="field.choice: 'all'; use one of even, strained"):
        ModelConfig.tiny(field__choice='all')
    with pytest.raises(UserError, match='plane_channels'):
        dataclasses.replace(ModelConfig.tiny(warp_surface='head', head__plane_channels=3), plane_skip=True)
