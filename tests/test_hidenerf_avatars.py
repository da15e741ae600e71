"""HiDe-NeRF's avatars: what is computed once, frames, files, and portraits that do not fit."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from avatar_jax.errors import UserError
from avatar_jax.methods.hidenerf import model, secc
from avatar_jax.methods.hidenerf.build import build, check_camera, notes_of, picture_of, shape_of
from avatar_jax.methods.hidenerf.config import ModelConfig
from avatar_jax.render.cameras import focal_to_intrinsics, look_at_pose
from avatar_jax.types import Camera, Portrait
from tests.comparison import close
from tests.toy_head import ToyHead

CONFIG = ModelConfig.tiny()
MESH = secc.procedural_mesh()


def portrait(yaw=0.0, size=16, **changes):
    rng = np.random.default_rng(0)
    pose = np.asarray(look_at_pose(jnp.float32(np.pi / 2 + np.radians(yaw)), np.pi / 2, CONFIG.volume.pivot, 2.7))
    mask = np.ones((size, size), np.float32)
    mask[:, :2] = 0
    values = {
        'image': rng.uniform(-1, 1, (size, size, 3)).astype(np.float32),
        'camera': Camera(pose, np.asarray(focal_to_intrinsics())),
        'mask': mask,
        'shape': rng.normal(size=80).astype(np.float32),
        'basis': 'procedural',
        'source': 'anna.png',
    }
    return Portrait(**(values | changes))


@pytest.fixture(scope='module')
def variables():
    return {**model.init(CONFIG, jax.random.key(0)), 'mesh': MESH}


frame = jax.jit(model.frame, static_argnames=('config', 'sr'))


@pytest.mark.slow
def test_an_avatar_and_its_frames(variables, tmp_path):
    avatar = build(variables, CONFIG, portrait(), weights='abc')
    assert avatar.method == 'hidenerf' and avatar.basis == 'procedural' and avatar.weights == 'abc'
    signals = {'expression': np.random.default_rng(1).uniform(0, 0.7, (2, 64)).astype(np.float32)}
    labels = np.stack([portrait(yaw).camera.label for yaw in (0.0, 25.0)])
    frames = frame(variables, CONFIG, avatar.identity, None, signals, labels)
    assert frames.rgb.shape == (2, 16, 16, 3) and frames.raw.shape == (2, 8, 8, 3)
    assert float(jnp.abs(frames.rgb).max()) <= 1 and np.isfinite(frames.depth).all()
    raw = frame(variables, CONFIG, avatar.identity, None, signals, labels, sr=False)
    close(raw.rgb, frames.raw, atol=1e-6, what='without refinement')
    prepared = jax.jit(model.prepare, static_argnames='config')(variables, CONFIG, avatar.identity)
    sooner = frame(variables, CONFIG, avatar.identity, prepared, signals, labels)
    close(sooner.rgb, frames.rgb, atol=1e-5, what='prepared')
    # All of the source is in the avatar: its arrays alone are as good.
    again = model.identity_of(model.source_of(avatar.identity))
    assert jax.tree.structure(again) == jax.tree.structure(avatar.identity)
    digest = model.save_model(tmp_path / 'w.safetensors', variables, CONFIG, {'seed': 0})
    known, config, found, provenance = model.load_model(tmp_path / 'w.safetensors')
    assert config == CONFIG and found == digest and provenance['seed'] == 0 and known['mesh'] is MESH
    for a, b in zip(jax.tree.leaves(known['params']), jax.tree.leaves(variables['params']), strict=True):
        np.testing.assert_array_equal(a, b)
    with pytest.raises(UserError, match="needs a head of the basis 'procedural', but the toy head has 'toy'"):
        model.load_model(tmp_path / 'w.safetensors', ToyHead())
    other = MESH.replace(triangles=MESH.triangles[:, ::-1])
    model.save_model(tmp_path / 'w.safetensors', {**variables, 'mesh': other}, CONFIG, {})
    with pytest.raises(UserError, match='trained with codes of another mesh'):
        model.load_model(tmp_path / 'w.safetensors')


@pytest.mark.slow
def test_portraits_from_the_side(variables):
    """Profiles work with 'exact'."""
    avatar = build(variables, CONFIG, portrait(88.0))
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(avatar.identity))
    signals, labels = {'expression': np.zeros((1, 64), np.float32)}, portrait(45.0).camera.label[None]
    assert np.isfinite(frame(variables, CONFIG, avatar.identity, None, signals, labels, sr=False).rgb).all()


def test_portraits_that_do_not_fit_are_one_line():
    name = 'anna.png'
    with pytest.raises(UserError, match='anna.png: has no mask of the head.*--background white'):
        picture_of(CONFIG, portrait(mask=None), name)
    with pytest.raises(UserError, match='anna.png: has no mask of the head'):
        picture_of(CONFIG, portrait(mask=np.ones((16, 16))), name)  # nothing was separated
    with pytest.raises(UserError, match='its mask is'):
        picture_of(CONFIG, portrait(mask=np.eye(8)), name)
    with pytest.raises(UserError, match=r'camera is behind the head \(17. degrees'):
        check_camera(CONFIG, portrait(170.0), name)
    away = portrait()
    turned = np.array(away.camera.cam2world) * np.float32([-1, 1, -1, 1])
    with pytest.raises(UserError, match='the head is behind its camera'):
        check_camera(CONFIG, portrait(camera=Camera(turned, away.camera.intrinsics)), name)
    with pytest.raises(UserError, match='NaN'):
        check_camera(CONFIG, portrait(camera=Camera(turned * np.nan, away.camera.intrinsics)), name)
    for mode in ('plane_warp', 'none'):
        with pytest.raises(UserError, match='seen at 7. degrees'):
            check_camera(CONFIG.replace(appearance__transform=mode), portrait(75.0), name)
    for yaw in (0.0, 45.0, 90.0):
        check_camera(CONFIG, portrait(yaw), name)
    own = CONFIG.replace(shape='own')
    with pytest.raises(UserError, match="belong to the basis 'flame-2020'"):
        shape_of(own, MESH, portrait(basis='flame-2020'), name)
    with pytest.raises(UserError, match='5 shape coefficients'):
        shape_of(own, MESH, portrait(shape=np.zeros(5)), name)
    given = portrait()
    np.testing.assert_array_equal(shape_of(own, MESH, given, name), given.shape)
    assert not shape_of(own, MESH, portrait(shape=None), name).any() and not shape_of(CONFIG, MESH, given, name).any()


def test_background_and_size():
    mask = np.zeros((64, 64), np.float32)
    mask[16:48, 16:48] = 1
    for background, value in (('white', 1.0), ('black', -1.0)):
        image = picture_of(CONFIG.replace(background=background), portrait(size=64, mask=mask), 'a')
        assert image.shape == (16, 16, 3) and bool((jnp.abs(image[:3] - value) < 1e-5).all())


def test_a_frame_does_not_touch_the_source_networks(variables):
    """Only deformation, point network and refine network are read."""
    abstract = jax.eval_shape(
        functools.partial(model.encode, config=CONFIG),
        variables['params'],
        mesh=MESH,
        images=jnp.zeros((1, 16, 16, 3)),
        labels=jnp.zeros((1, 25)),
        shape=jnp.zeros((1, 80)),
    )
    identity = model.identity_of(jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), abstract))
    params = {k: variables['params'][k] for k in model.FRAME_PARTS}
    assert set(variables['params']) == {*model.FRAME_PARTS, *model.SOURCE_PARTS}
    found = jax.eval_shape(
        lambda p, i, s, where: model.frame({'params': p, 'mesh': MESH}, CONFIG, i, None, s, where),
        params,
        identity,
        {'expression': jnp.zeros((3, 64))},
        jnp.zeros((3, 25)),
    )
    assert found.rgb.shape == (3, 16, 16, 3)


def test_what_limits_an_avatar_is_said():
    plain = portrait()
    plain = plain.replace(image=np.asarray(model.masked(plain.image, plain.mask, CONFIG.fill)))
    assert notes_of(CONFIG, plain) == []
    (line,) = notes_of(CONFIG, portrait(62.0).replace(image=plain.image))
    assert line.startswith('is seen at 66 degrees from the front, ')
    (line,) = notes_of(CONFIG, portrait())
    assert line == 'its background was made white, as these weights know heads'
    (line,) = notes_of(CONFIG.replace(shape='own'), plain.replace(shape=None))
    assert line == "its shape was not measured in the basis 'procedural': the mean head's is taken"
