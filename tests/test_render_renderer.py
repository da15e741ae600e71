"""Properties of sampling, marching and the two-pass renderer that hold for any network."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from avatar_jax.errors import UserError
from avatar_jax.render import cameras, marching, rays, sampling, shape
from avatar_jax.render.config import RenderConfig
from avatar_jax.render.renderer import render_rays, sort_order

CONFIG = RenderConfig(
    depth_resolution=5, depth_resolution_importance=4, ray_start='auto', ray_end='auto', density_noise=0.3
)


def scene(resolution=4, batch=2):
    """Planes, a decoder with weights, and rays of which some miss the box."""
    rng = np.random.default_rng(0)
    planes = jnp.asarray(rng.normal(size=(batch, 3, 6, 6, 4)), jnp.float32)
    weight = jnp.asarray(rng.normal(size=(4, 6)), jnp.float32)

    def decode(weight, features):
        out = features @ weight
        return jax.nn.sigmoid(out[..., 1:]), 4 * out[..., :1]

    poses = cameras.look_at_pose(jnp.linspace(1.2, 1.8, batch), jnp.linspace(1.4, 1.6, batch))
    intrinsics = jnp.broadcast_to(cameras.focal_to_intrinsics(1.2), (batch, 3, 3))
    return planes, weight, decode, rays.sample_rays(poses, intrinsics, resolution)


@pytest.mark.slow
@pytest.mark.parametrize('chunk', [1, 6, 14])  # less than one ray per image, a ragged rest, one chunk and a rest
def test_chunks_change_nothing(chunk):
    planes, weight, decode, bundle = scene()
    near, far = rays.box_intersection(*bundle, CONFIG.box_warp)
    assert 0 < (far > near).sum() < far.size  # rays that meet nothing are in the picture
    draws = sampling.RenderDraws.from_key(jax.random.key(1), CONFIG, *bundle[0].shape[:2])

    def run(planes, weight, config):
        out = render_rays(lambda f: decode(weight, f), planes, *bundle, config, draws)
        loss = (out.features**2).mean() + out.depth.mean() + (out.opacity * out.depth).mean()
        return loss, out

    results = []
    for config in (CONFIG, dataclasses.replace(CONFIG, ray_chunk=chunk)):
        function = jax.jit(jax.value_and_grad(lambda p, w, c=config: run(p, w, c), (0, 1), has_aux=True))
        results.append(function(planes, weight))
    for a, b in zip(jax.tree.leaves(results[0]), jax.tree.leaves(results[1])):
        np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-6)


@pytest.mark.slow
def test_empty_rays_get_the_farthest_depth_of_all_images():
    """A ray without weight reports the largest sampled depth of the batch, in whichever chunk and image it was."""
    densities = jnp.full((2, 3, 4, 1), -300.0).at[1].set(5.0)
    depths = jnp.stack([jnp.linspace(1, 2, 4), jnp.linspace(1, 3, 4)])[:, None, :, None]
    depths = jnp.broadcast_to(depths, densities.shape)
    _, depth, weights = marching.march(jnp.ones((2, 3, 4, 5)), densities, depths)
    assert (weights[0] == 0).all() and (depth[0] == 3).all() and (depth[1] < 2).all()
    gradient = jax.grad(lambda d: marching.march(jnp.ones((2, 3, 4, 5)), d, depths)[1].sum())(densities)
    assert jnp.isfinite(gradient).all() and (gradient[0] == 0).all() and (gradient[1] != 0).any()


def test_a_dense_slab_is_seen_where_it_is():
    depths = jnp.linspace(2.0, 3.0, 101)[None, None, :, None]
    inside = (depths > 2.495).astype(jnp.float32)  # from the sample at 2.5 on, however that is rounded
    colors = jnp.broadcast_to(jnp.array([0.25, 0.5, 0.75]), (1, 1, 101, 3))
    rgb, depth, weights = marching.march(colors, 1000 * inside - 500, depths)
    np.testing.assert_allclose(rgb[0, 0], [-0.5, 0, 0.5], atol=1e-3)
    np.testing.assert_allclose(weights.sum(), 1, atol=1e-5)
    assert abs(float(depth[0, 0, 0]) - 2.505) < 0.01
    white, _, _ = marching.march(colors, jnp.full_like(depths, -300.0), depths, white_back=True)
    black, _, _ = marching.march(colors, jnp.full_like(depths, -300.0), depths)
    assert (white == 1).all() and (black == -1).all()


def test_depth_samples_are_stratified():
    config = RenderConfig(depth_resolution=8)
    width = (config.ray_end - config.ray_start) / 7
    edges = config.ray_start + width * np.arange(8)
    np.testing.assert_allclose(sampling.stratified_depths(config, (2, 3))[1, 2], edges + width / 2, rtol=1e-6)
    jitter = jax.random.uniform(jax.random.key(0), (2, 3, 8))
    np.testing.assert_allclose(
        sampling.stratified_depths(config, (2, 3), None, jitter), edges + width * jitter, rtol=1e-6
    )
    disparity = dataclasses.replace(config, disparity_space_sampling=True)
    inverse = 1 / sampling.stratified_depths(disparity, (), None, jnp.zeros(8))
    np.testing.assert_allclose(np.diff(inverse), np.diff(inverse)[0], rtol=1e-4)
    np.testing.assert_allclose(1 / inverse[jnp.array([0, -1])], [config.ray_start, config.ray_end], rtol=1e-6)


def test_importance_samples_go_where_the_weight_is():
    depths = jnp.linspace(0, 1, 21)[None]
    weights = jnp.zeros((1, 20)).at[0, 12].set(1.0)
    fine = sampling.importance_depths(depths, weights, 200)[0]
    assert (jnp.diff(fine) >= 0).all()  # evenly spaced quantiles come out sorted
    near = (jnp.abs(fine - 0.6) < 0.11).mean()
    assert near > 0.85
    counts, _ = np.histogram(
        sampling.inverse_cdf(jnp.arange(4.0), jnp.array([1.0, 2.0, 1.0]), jnp.linspace(0, 0.999, 4001)),
        bins=3,
        range=(0, 3),
    )
    np.testing.assert_allclose(counts / 4001, [0.25, 0.5, 0.25], atol=2e-3)
    with pytest.raises(ValueError, match='at least 4'):
        sampling.importance_depths(depths[:, :3], weights[:, :2], 2)


@pytest.mark.parametrize('length', [7, 200])
def test_sort_order_is_stable_and_a_permutation(length):
    values = jnp.asarray(np.random.default_rng(4).integers(0, 5, (3, length)), jnp.float32)
    order, rank = sort_order(values)
    np.testing.assert_array_equal(order, np.argsort(values, axis=-1, kind='stable'))
    np.testing.assert_array_equal(jnp.take_along_axis(order, rank, -1), np.broadcast_to(np.arange(length), (3, length)))


@pytest.mark.slow
def test_keys_jitter_and_no_key_repeats():
    planes, weight, decode, bundle = scene()
    config = dataclasses.replace(CONFIG, density_noise=0.0)

    def run(key):
        draws = sampling.RenderDraws.from_key(key, config, *bundle[0].shape[:2])
        return render_rays(lambda f: decode(weight, f), planes, *bundle, config, draws).features

    same, other = run(jax.random.key(3)), run(jax.random.key(4))
    assert (run(jax.random.key(3)) == same).all() and not jnp.allclose(same, other, atol=1e-4)
    assert (run(None) == run(None)).all()


@pytest.mark.slow
def test_every_ray_missing_the_box_is_no_error():
    planes, weight, decode, (origins, directions) = scene()
    out = render_rays(lambda f: decode(weight, f), planes, origins + 50, directions, CONFIG)
    assert all(jnp.isfinite(a).all() for a in jax.tree.leaves(out))


def test_mirrored_cameras_and_labels():
    label = cameras.pack_label(cameras.look_at_pose(jnp.array([1.2, 1.9]), 1.4), cameras.focal_to_intrinsics())
    pose, intrinsics = cameras.unpack_label(cameras.mirror_label(label))
    np.testing.assert_allclose(pose, cameras.look_at_pose(np.pi - jnp.array([1.2, 1.9]), 1.4), atol=1e-5)
    np.testing.assert_array_equal(cameras.mirror_label(cameras.mirror_label(label)), label)
    np.testing.assert_allclose(intrinsics[0], cameras.focal_to_intrinsics())
    frontal, _ = cameras.unpack_label(cameras.frontal_label())
    np.testing.assert_allclose(frontal[0, :3], [[1, 0, 0, 0], [0, -1, 0, 0], [0, 0, -1, 2.7]], atol=1e-6)


def test_random_cameras_need_explicit_randomness():
    poses = cameras.sample_gaussian(jax.random.key(0), np.pi / 2, np.pi / 2, h_std=0.3, v_std=0.1, count=64)
    np.testing.assert_allclose(jnp.linalg.norm(poses[:, :3, 3], axis=-1), 2.7, rtol=1e-5)
    assert jnp.std(poses[:, 0, 3]) > 0.3
    uniform = cameras.sample_uniform(jax.random.key(0), np.pi / 2, np.pi / 2, h_std=0.2, count=64)
    assert jnp.abs(uniform[:, 0, 3]).max() <= 2.7 * np.sin(0.2) + 1e-5
    with pytest.raises(ValueError, match='key'):
        cameras.sample_uniform(None, 1.5, 1.5)


def test_shape_of_a_sphere():
    pytest.importorskip('skimage')

    def density(points):
        return 20 - 40 * np.linalg.norm(points - np.array([0.1, 0, 0]), axis=-1, keepdims=True)

    volume = shape.density_volume(density, 32, 1.0, chunk=5000, border=None)
    assert volume.shape == (32, 32, 32) and volume[2, 16, 16] > volume[-3, 16, 16]  # x runs backwards
    vertices, triangles = shape.extract_mesh(volume, level=10.0, side=1.0)
    radius = np.linalg.norm(vertices - [0.1, 0, 0], axis=-1)
    np.testing.assert_allclose(radius, 0.25, atol=2e-3)
    assert triangles.max() < len(vertices)
    bordered = shape.density_volume(density, 32, 1.0, chunk=5000)
    assert (bordered[:3] == shape.OUTSIDE).all() and (bordered[:, :, -3:] == shape.OUTSIDE).all()
    with pytest.raises(UserError, match='no surface'):
        shape.extract_mesh(volume, level=1e6)


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        ({'ray_start': 'auto'}, 'both'),
        ({'ray_start': 'auto', 'ray_end': 'auto', 'disparity_space_sampling': True}, 'disparity'),
        ({'ray_end': 1.0}, 'ray_end'),
        ({'clamp_mode': 'relu'}, 'clamp_mode'),
        ({'plane_axes': 'xyz'}, 'plane_axes'),
        ({'depth_resolution': 3}, 'depth_resolution'),
        ({'ray_chunk': 0}, 'ray_chunk'),
    ],
)
def test_impossible_options_are_named(change, message):
    with pytest.raises(UserError, match=message):
        RenderConfig(**change)


def test_released_options_and_their_absence():
    config = RenderConfig.from_rendering_kwargs({'image_resolution': 512, 'white_back': True, 'box_warp': 1.6})
    assert (config.white_back, config.box_warp, config.c_scale, config.avg_camera_pivot) == (True, 1.6, 0.0, (0, 0, 0))
    with pytest.raises(UserError, match='depth_resolutoin'):
        RenderConfig.from_rendering_kwargs({'depth_resolutoin': 3})


@pytest.mark.parametrize('disparity', [False, True])
def test_samples_are_sorted_whatever_the_compiler_works_out_twice(disparity):
    """Without optimisations XLA rounds a depth differently in each place that uses it; ranks must stay a
    permutation.
    """
    limits = {'ray_start': 2.25, 'ray_end': 3.3} if disparity else {}
    config = dataclasses.replace(
        CONFIG, depth_resolution=12, depth_resolution_importance=12, **limits, disparity_space_sampling=disparity
    )
    planes, weight, decode, bundle = scene(16)
    draws = sampling.RenderDraws.from_key(jax.random.key(1), config, *bundle[0].shape[:2])

    def run(planes):
        return render_rays(lambda f: decode(weight, f), planes, *bundle, config, draws)

    plain, options = jax.jit(run)(planes), {'xla_backend_optimization_level': 0}
    try:
        quick = jax.jit(run, compiler_options=options | {'xla_cpu_use_fusion_emitters': False})(planes)
    except jax.errors.JaxRuntimeError as error:  # newer XLA has one way of making loops
        assert 'xla_cpu_use_fusion_emitters' in str(error)
        quick = jax.jit(run, compiler_options=options)(planes)
    for a, b in zip(jax.tree.leaves(plain), jax.tree.leaves(quick), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)


def test_frames_are_rendered_within_the_cache():
    """On a CPU some rays at a time; a smaller number that was configured stays."""
    assert RenderConfig().for_frames().ray_chunk == 256  # 48 samples
    assert RenderConfig(depth_resolution=24, depth_resolution_importance=24).for_frames().ray_chunk == 512
    assert RenderConfig(ray_chunk=64).for_frames().ray_chunk == 64
    assert RenderConfig(ray_chunk=4096).for_frames() == RenderConfig(ray_chunk=256)
