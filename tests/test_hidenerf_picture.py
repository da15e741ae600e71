"""HiDe-NeRF's points that look up their own colour in the source picture (``appearance.picture``)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from avatar_jax.errors import UserError
from avatar_jax.methods.hidenerf import cameras, field, model, secc
from avatar_jax.methods.hidenerf.appearance import Front, colours
from avatar_jax.methods.hidenerf.config import ModelConfig
from avatar_jax.methods.hidenerf.train import RunConfig
from avatar_jax.methods.hidenerf.training import with_parts
from avatar_jax.render.cameras import focal_to_intrinsics, look_at_pose, pack_label, unpack_label
from tests.comparison import close

BEFORE = ModelConfig.tiny()
CONFIG = BEFORE.replace(appearance__picture=16)
PIVOT = CONFIG.volume.pivot
MESH = secc.procedural_mesh()


def label(yaw, skew=0.0):
    pose = look_at_pose(jnp.float32(np.pi / 2 + yaw), jnp.float32(np.pi / 2 + 0.1), PIVOT, 2.7)
    intrinsics = np.array(focal_to_intrinsics())
    intrinsics[0, 1], intrinsics[:2, 2] = skew, (0.47, 0.55)
    return np.asarray(pack_label(pose, intrinsics))


LABELS = np.stack([label(0.0), label(0.5, 0.02)])


def test_points_of_a_ray_have_its_pixel():
    """Whatever their depth, and also with a principal point beside the middle: perspective, not the planes' axes."""
    rays = field.rays_of(CONFIG.volume, LABELS, 16)
    picture = np.random.default_rng(0).uniform(-1, 1, (2, 16, 16, 3)).astype(np.float32)
    pose, intrinsics = unpack_label(LABELS)
    front = Front(jnp.asarray(picture), cameras.picture_map(pose, intrinsics, 'exact', None))
    found = colours(front, rays.points.reshape(2, -1, 3)).reshape(2, 256, -1, 3)
    wanted = np.broadcast_to(picture.reshape(2, 256, 1, 3), found.shape)
    close(2 * found - 1, wanted, atol=1e-4, what='colours')  # a place is off by float32's steps, times the contrast


def test_a_ray_looks_once_from_the_mean_of_its_points():
    rng = np.random.default_rng(3)
    weights = np.float32(rng.dirichlet(np.ones(5), (2, 4))[..., :4])  # some light passes
    found = rng.uniform(size=(2, 4, 4, 6)).astype(np.float32)  # five channels and the share
    points = (np.float32(PIVOT) + rng.uniform(-0.2, 0.2, (2, 4, 4, 3))).astype(np.float32)
    pose, intrinsics = unpack_label(LABELS)
    picture = jnp.asarray(rng.uniform(-1, 1, (2, 16, 16, 3)).astype(np.float32))
    front = Front(picture, cameras.picture_map(pose, intrinsics, 'exact', None))
    mixed = field._with_picture(front, jnp.asarray(weights), jnp.asarray(found), jnp.asarray(points))
    w, share = weights[..., None], found[..., -1:]
    end = (w * points).sum(2) / w.sum(2)
    wanted = (w * found[..., :5]).sum(2)
    wanted[..., :3] = (w * (1 - share) * found[..., :3]).sum(2) + (w * share).sum(2) * np.asarray(colours(front, end))
    close(mixed, wanted, atol=2e-5, what='mixed colours')


def test_the_ablation_without_cameras_knows_none_here_either():
    pose, intrinsics = unpack_label(LABELS)
    affine = cameras.look_up_map(pose, intrinsics, 'none', PIVOT)
    views = cameras.picture_map(pose, intrinsics, 'none', affine)
    np.testing.assert_array_equal(views[0], views[1])
    points = np.random.default_rng(1).uniform(-0.2, 0.2, (2, 9, 3)).astype(np.float32)
    np.testing.assert_array_equal(cameras.project(views, points), cameras.apply_map(affine, points)[..., :2])


def drawn(params, config, images):
    """Raw pictures by way of what an avatar's file keeps."""
    shape = jnp.zeros((2, 80))
    source = model.encode(params, config, MESH, images, LABELS, shape)
    kept = [model.source_of(model.identity_of(jax.tree.map(lambda x, k=k: x[k], source))) for k in range(2)]
    source = jax.tree.map(lambda *x: jnp.stack(x), *kept)
    codes = model.driving_codes(config, MESH, shape, jnp.full((2, 64), 0.2), LABELS)
    return model.render(params, config, source, codes, LABELS, refine=False).raw


def test_weights_that_never_saw_the_picture_go_on_with_it():
    """At first half of a colour is the picture's; without any of it they draw what they drew; shares are learnt."""
    known, fresh = (model.init(c, jax.random.key(k)) for k, c in enumerate((BEFORE, CONFIG)))
    run = RunConfig(
        model=CONFIG, init='before', init_parts=('appearance', 'identity', 'deformation', 'points', 'refine')
    )
    params = with_parts(run, known, fresh)['params']
    last = params['points']['net']['2']
    assert last['bias'].shape == (5,) and not last['bias'][-1] and not last['weight'][:, -1].any()
    images = np.random.default_rng(2).uniform(-1, 1, (2, 16, 16, 3)).astype(np.float32)

    @jax.jit
    def at(bias):
        own = {**last, 'bias': last['bias'].at[-1].set(bias)}
        points = {'net': {**params['points']['net'], '2': own}}
        return drawn({**params, 'points': points}, CONFIG, images)

    before = jax.jit(lambda p: drawn(p, BEFORE, images))(known['params'])
    none, half, all_of_it = (at(x) for x in (-30.0, 0.0, 30.0))
    close(none, before, atol=1e-2, what='pictures without shares')  # shares end at -0.001, as colours do
    close(half, (none + all_of_it) / 2, atol=1e-5, what='half')
    assert np.abs(all_of_it - before).max() > 0.1
    gradient = jax.jit(jax.grad(lambda x: jnp.sum(at(x) ** 2)))(0.0)
    assert np.isfinite(gradient) and gradient != 0
    with pytest.raises(UserError, match="init_parts: 'points' of before has other sizes"):
        with_parts(RunConfig(model=BEFORE, init='before', init_parts=('points',)), fresh, known)


def test_sizes_that_cannot_be():
    for size in (0, 17):
        with pytest.raises(UserError, match=r'appearance.picture: .*from 1 to image_size \(16\)'):
            BEFORE.replace(appearance__picture=size)
