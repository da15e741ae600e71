"""The shapes in the signatures of public functions (jaxtyping) are those that the functions take and give."""

import dataclasses
import importlib
import inspect
import types
import typing

import jax
import jax.numpy as jnp
import numpy as np
import pytest

jaxtyping = pytest.importorskip('jaxtyping')

MODULES = (
    'faces.camera_labels',
    'faces.pose',
    'faces.translation',
    'methods.model',
    'methods.render',
    'ops.activations',
    'ops.conv',
    'ops.grid_sample',
    'ops.image_metrics',
    'ops.knn',
    'ops.modulated',
    'ops.resample',
    'ops.resize',
    'ops.warp',
    'render.cameras',
    'render.marching',
    'render.rays',
    'render.renderer',
    'render.sampling',
    'types',
)


def annotated(place):
    """(name, function or class) of a module of ``avatar_jax`` whose annotations speak of shapes."""
    module = importlib.import_module(f'avatar_jax.{place}')
    for name, value in vars(module).items():
        value = inspect.unwrap(value) if callable(value) else value
        if getattr(value, '__module__', '') == module.__name__ and '[' in str(getattr(value, '__annotations__', '')):
            yield name, value


def hints(value):
    """The annotations of a function or class; names that are imported for type checkers only are known, too."""
    known = vars(importlib.import_module(value.__module__)) | vars(typing) | vars(jaxtyping)
    texts = {k: v for k, v in value.__annotations__.items() if isinstance(v, str)}
    return {k: eval(v, known) for k, v in texts.items() if 'Float[' in v or 'Int[' in v}


def fits(value, hint):
    if typing.get_origin(hint) is tuple:
        return all(fits(v, h) for v, h in zip(value, typing.get_args(hint), strict=True))
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return any(fits(value, h) for h in typing.get_args(hint))
    return isinstance(value, hint)


def call(function, *args, **options):
    """The function's result; arguments and result have the shapes that the signature says, with one size for a name."""
    inner = inspect.unwrap(function)
    given = inspect.signature(inner).bind(*args, **options)
    with jaxtyping.jaxtyped('context'):
        result = None
        for name, hint in hints(inner).items():
            if name == 'return':
                result = jax.tree.map(jnp.asarray, function(*args, **options))
                assert fits(result, hint), f'{inner.__name__} gives {jax.tree.map(jnp.shape, result)}, not {hint}'
            elif name in given.arguments:
                value = given.arguments[name]
                assert fits(value, hint), f'{inner.__name__}, {name}: {np.shape(value)} is not {hint}'
    return result


@pytest.mark.parametrize('place', MODULES)
def test_annotations_can_be_read(place):
    found = [name for name, value in annotated(place) if hints(value)]
    module = importlib.import_module(f'avatar_jax.{place}')
    methods = [
        hints(f)
        for c in vars(module).values()
        if inspect.isclass(c)
        for f in vars(c).values()
        if inspect.isfunction(f)
        if f.__module__ == module.__name__ and '[' in str(f.__annotations__)
    ]
    assert found or any(methods)


def arrays(*shapes):
    rng = np.random.default_rng(0)
    return [jnp.asarray(rng.uniform(0.1, 1, shape), jnp.float32) for shape in shapes]


@pytest.mark.slow
def test_array_maths():
    from avatar_jax.ops import activations, conv, grid_sample, image_metrics, knn, modulated, resample, resize, warp

    x, w, b, styles = arrays((2, 8, 8, 3), (3, 3, 3, 5), (3,), (2, 3))
    call(activations.bias_act, x, b, 'lrelu')
    call(activations.normalize_2nd_moment, styles)
    call(conv.conv2d, x, w, 2)
    call(conv.conv2d_transpose, x, w, 2, 1)
    call(modulated.modulated_conv2d, x, w, styles, padding=1)
    call(resample.upsample2d, x, resample.setup_filter([1, 3, 3, 1]))
    call(resample.downsample2d, x, resample.setup_filter([1, 3, 3, 1]))
    call(resize.resize, x, (4, 6))
    call(resize.double, x)
    call(resize.filtered_resizing, x, 4)
    call(image_metrics.psnr, x, x + 0.1)
    call(image_metrics.ssim, *arrays((2, 16, 16, 3), (2, 16, 16, 3)))
    grid, volume, planes, points = arrays((2, 4, 5, 2), (2, 3, 4, 5, 6), (2, 3, 4, 5, 6), (2, 7, 3))
    call(grid_sample.grid_sample, x, grid)
    call(grid_sample.grid_sample_3d, volume, points)
    call(grid_sample.sample_planes, planes, points)
    call(grid_sample.sample_planes_mean, planes, points)
    index = call(knn.nearest, points[0], *arrays((9, 3)), 2)
    call(knn.squared_distances, points[0], *arrays((9, 3)), index)
    matrix = call(warp.similarity_transform, *arrays((2, 5, 2), (2, 5, 2)))
    call(warp.warp_affine, x, call(warp.invert_affine, matrix), 6)


@pytest.mark.slow
def test_rays_and_cameras():
    from avatar_jax.faces import pose
    from avatar_jax.render import cameras, marching, rays, sampling
    from avatar_jax.types import Camera

    labels = call(cameras.orbit_labels, 3)
    cam2world, intrinsics = call(cameras.unpack_label, labels)
    call(cameras.mirror_label, labels)
    call(cameras.frontal_label)
    origins, directions = call(rays.sample_rays, cam2world, intrinsics, 4)
    call(rays.ray_limits, origins, directions, 1.0)
    depths, densities = (jnp.sort(a, -1) for a in arrays((2, 4, 6), (2, 4, 6)))
    weights = call(marching.interval_weights, densities, depths)
    call(marching.composite, call(marching.sample_weights, weights), *arrays((2, 4, 6, 3)))
    call(marching.mean_depth, weights, depths)
    call(marching.march, *arrays((2, 4, 6, 3)), densities[..., None], depths[..., None])
    call(sampling.importance_depths, depths, weights, 5)
    rotation = call(pose.rotation_matrix, *arrays((2, 3)))
    call(pose.euler_angles, rotation)
    moved = call(pose.transform, *arrays((2, 7, 3)), rotation, *arrays((2, 3)))
    call(pose.project, call(pose.to_camera, moved))
    assert isinstance(call(pose.rotation_matrix, np.zeros((5, 3))), jax.Array)
    assert all(fits(getattr(Camera(cam2world, intrinsics), name), hint) for name, hint in hints(Camera).items())


def test_cameras_of_heads():
    from avatar_jax.faces import camera_labels, translation

    def run(function, *args):  # in numpy, which compiles nothing
        return jax.tree.map(np.asarray, call(function, *args))

    rng = np.random.default_rng(0)
    angle, trans, points = (rng.uniform(0.1, 0.3, shape) for shape in ((2, 4, 3), (2, 4, 3), (2, 4, 68, 2)))
    label = run(camera_labels.label_from_pose, angle, trans, 'orig')
    pose, camera = run(camera_labels.split_label, label)
    run(camera_labels.make_label, run(camera_labels.mirror_pose, pose), camera[0, 0])
    run(camera_labels.normalise_pose, run(camera_labels.raw_pose, angle, trans), 'simplify')
    run(camera_labels.pose_from_label, run(camera_labels.mirror_label, label))
    run(camera_labels.look_at, angle[..., 0], angle[..., 1])
    run(camera_labels.labels_from_conditions, rng.uniform(0.1, 0.3, (5, 8)))
    run(camera_labels.correct_intrinsics, label[0, 0], rng.uniform(size=(6, 18)))
    run(camera_labels.correct_rotation, label, np.zeros(18))
    run(camera_labels.yaw_label, label, 0.1)
    run(camera_labels.intrinsics, angle[..., 0])
    offset = run(translation.pixel_offset, points, points[0, 0], 256.0)
    run(translation.translate_label, label, offset, np.ones((2, 4)))
    run(translation.pivot_place, label)
    run(translation.head_sizes, points)


def test_things_that_pass_between_rooms():
    from avatar_jax.types import Frames, Motion
    from tests.tiny_model import portrait

    motion = Motion(np.zeros((5, 64)), np.zeros((5, 3)), np.zeros((5, 3)))
    frames = Frames(np.zeros((5, 8, 8, 3)), np.zeros((5, 4, 4, 3)), np.zeros((5, 4, 4, 1)), None)
    for thing in (portrait(0), motion, frames):
        with jaxtyping.jaxtyped('context'):
            for name, hint in hints(type(thing)).items():
                assert fits(getattr(thing, name), hint), name
    wrong = dataclasses.replace(frames, depth=np.zeros((5, 3, 4, 1)))
    with jaxtyping.jaxtyped('context'):
        assert not all(fits(getattr(wrong, name), hint) for name, hint in hints(Frames).items())


def test_a_wrong_shape_is_seen():
    from avatar_jax.ops.grid_sample import sample_planes
    from avatar_jax.render.marching import interval_weights

    planes, points, densities, depths = arrays((2, 3, 4, 5, 6), (1, 7, 3), (4, 6), (4, 7))
    with pytest.raises(AssertionError, match='points'):
        call(sample_planes, planes, points)
    with pytest.raises(AssertionError, match='depths'):
        call(interval_weights, densities, depths)
