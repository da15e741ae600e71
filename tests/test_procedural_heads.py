"""The procedural head: fixed topology, landmarks in place, readable expressions, reproducible people, true geometry."""

import hashlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from avatar_jax.errors import UserError
from avatar_jax.procedural import (
    EXPRESSION_NAMES,
    IDENTITY_DIM,
    STYLE_DIM,
    ProceduralHead,
    default_gamma,
    render_head,
    sample_identity,
    split_identity,
)
from avatar_jax.procedural import surface as face
from avatar_jax.procedural.expressions import VISEMES, expression_basis
from avatar_jax.procedural.gallery import camera_label, expression, identities, main, sweep
from avatar_jax.procedural.identity import shape_basis
from avatar_jax.procedural.mesh import EYE, MOUTH, SKIN, TEETH, head_mesh
from avatar_jax.procedural.model import head_vertices
from avatar_jax.procedural.regions import region_masks
from avatar_jax.procedural.samples import project, sh_light, split_label, vertex_normals
from avatar_jax.procedural.style import CUTS, decode_style

NEUTRAL = np.zeros(64, np.float32)
MEAN = np.zeros(IDENTITY_DIM, np.float32)


def _render(identity=MEAN, values=None, label=None, **options):
    return render_head(identity, expression(**(values or {})), camera_label() if label is None else label, **options)


def test_mesh_is_sound():
    m = head_mesh()
    assert 4500 <= len(m.positions) <= 6000
    assert m.triangles.min() == 0 and m.triangles.max() == len(m.positions) - 1
    assert set(np.unique(m.triangles)) == set(range(len(m.positions)))
    assert len(m.face_part) == len(m.two_sided) == len(m.triangles)
    assert len(set(m.landmark_ids[:60])) == 60 and m.landmark_ids.shape == (68,)
    assert np.isfinite(m.positions).all()
    edges = np.sort(m.triangles[m.face_part == SKIN][:, [0, 1, 1, 2, 2, 0]].reshape(-1, 2), 1)
    _, count = np.unique(edges, axis=0, return_counts=True)
    assert count.max() == 2  # a surface: no edge with three triangles


def test_skin_faces_outwards():
    m = head_mesh()
    on_skull = (m.part == SKIN) & (m.height > 0.55) & (m.follow < 0)
    normal = vertex_normals(m.positions)[on_skull]
    outward = m.positions[on_skull] - [0, 0.3, -0.55]
    assert ((normal * outward).sum(1) > 0).all()


def test_standard_landmarks():
    """The five points of the alignment (face model frame)."""
    p = ProceduralHead().landmarks(np.zeros(80), np.zeros(64))
    five = np.stack([p[[36, 39]].mean(0), p[[42, 45]].mean(0), p[30], p[48], p[54]])
    standard = [
        [-0.311, 0.290, 0.134],
        [0.310, 0.290, 0.132],
        [0.003, -0.046, 0.552],
        [-0.252, -0.381, 0.224],
        [0.248, -0.381, 0.222],
    ]
    assert np.abs(five - standard).max() < 0.035
    assert (np.diff(p[:17, 0]) > 0).all() and (np.diff(p[17:27, 0]) > 0).all()
    np.testing.assert_allclose(p[36:42, 1], p[[45, 44, 43, 42, 47, 46], 1], atol=2e-3)  # symmetric
    assert p[37, 1] > p[41, 1] and p[51, 1] > p[62, 1] >= p[66, 1] > p[57, 1] > p[8, 1]


def test_names_and_bases():
    assert len(EXPRESSION_NAMES) == len(set(EXPRESSION_NAMES)) == 64
    assert EXPRESSION_NAMES[0] == 'jaw_open' and EXPRESSION_NAMES[45] == 'tongue_out'
    assert EXPRESSION_NAMES[46] == 'viseme_aa' and EXPRESSION_NAMES[63] == 'neck_tense'
    basis, shape = expression_basis(), shape_basis()
    assert basis.shape[0] == 64 and shape.shape[0] == 80
    assert (np.abs(basis).max((1, 2)) > 0.01).all() and (np.abs(shape).max((1, 2)) > 0.002).all()
    aa = sum(w * basis[EXPRESSION_NAMES.index(n)] for n, w in VISEMES['viseme_aa'].items())
    np.testing.assert_allclose(basis[EXPRESSION_NAMES.index('viseme_aa')], aa, atol=1e-6)


def test_left_and_right_mirror():
    """Each left component is the mirror image of the right one."""
    m = head_mesh()
    key = {tuple(np.round(p * 1e4).astype(int)): [] for p in m.positions}
    for i, p in enumerate(m.positions):
        key[tuple(np.round(p * 1e4).astype(int))].append(i)
    basis, names = expression_basis(), EXPRESSION_NAMES
    skin = np.flatnonzero((m.part == SKIN) & (m.positions[:, 0] > 0.02) & (m.positions[:, 2] > -0.3))
    pairs = []
    for i in skin:
        x, y, z = np.round(m.positions[i] * 1e4).astype(int)
        pairs += [(i, j) for j in key.get((-x, y, z), []) if m.side[j] == m.side[i]]
    assert len(pairs) > 0.8 * len(skin)
    i, j = np.array(pairs).T
    for n, name in enumerate(names):
        if name.endswith('_l') and name not in VISEMES:  # viseme_l is the sound
            other = basis[names.index(name[:-2] + '_r')]
            np.testing.assert_allclose(basis[n][j] * [-1, 1, 1], other[i], atol=2e-4, err_msg=name)


def test_sampling_is_reproducible_and_splits_are_disjoint():
    z = sample_identity(0)
    assert z.dtype == np.float32 and z.shape == (192,)
    np.testing.assert_array_equal(z, sample_identity(0, 'train'))
    # Pinned: the same person on any machine.
    np.testing.assert_allclose(z[:4], [0.33784986, -0.23676899, 0.85147315, 0.10817163], rtol=1e-6)
    everyone = np.stack([sample_identity(s, split) for split in ('train', 'val', 'test') for s in range(200)])
    assert len(np.unique(everyone, axis=0)) == 600
    assert abs(everyone.mean()) < 0.01 and abs(everyone.std() - 1) < 0.01
    a, b, c = split_identity(z)
    assert (len(a), len(b), len(c)) == (80, 80, STYLE_DIM)
    with pytest.raises(UserError, match='dev'):
        sample_identity(0, 'dev')
    with pytest.raises(UserError, match='-1'):
        sample_identity(-1)


def test_linear_model_in_numpy_and_jax():
    rng = np.random.default_rng(0)
    identity = sample_identity(5)
    model = ProceduralHead(split_identity(identity).style)
    shape, texture, _ = split_identity(identity)
    e = rng.uniform(0, 0.5, 64).astype(np.float32)
    plain = model.vertices(shape, e)
    np.testing.assert_allclose(head_vertices(shape, e, model.style), plain, atol=2e-5)
    np.testing.assert_allclose(jax.jit(model.vertices)(jnp.asarray(shape), jnp.asarray(e)), plain, atol=2e-5)
    np.testing.assert_allclose(model.landmarks(shape, e), plain[model.landmark_ids], atol=1e-5)
    np.testing.assert_allclose(jax.jit(model.albedo)(jnp.asarray(texture)), model.albedo(texture), atol=1e-5)
    batch = model.vertices(np.stack([shape, 0 * shape]), np.stack([e, 0 * e]))
    np.testing.assert_allclose(batch[0], plain, atol=2e-5)
    np.testing.assert_allclose(batch[1], model.mean, atol=1e-6)
    grad = jax.grad(lambda s: jnp.sum(jnp.square(model.landmarks(s, jnp.asarray(e)))))(jnp.asarray(shape))
    assert np.isfinite(grad).all() and np.abs(grad).max() > 0
    with pytest.raises(ValueError, match='style'):
        ProceduralHead(np.zeros(3))


def test_importable_without_jax():
    code = "import sys; sys.modules['jax'] = None; from avatar_jax.procedural import render_head, sample_identity"
    subprocess.run([sys.executable, '-c', code], check=True)


def test_lids_close_and_open():
    """A blink brings the two lid edges together in front of the eyeball; neither shows through half-way."""
    m = head_mesh()
    centre = np.array([[-face.EYE_X, face.EYE_Y, face.EYE_Z], [face.EYE_X, face.EYE_Y, face.EYE_Z]])
    for values, gap in (({'blink': 1}, 0.0), ({}, 0.10), ({'wide': 1}, 0.15), ({'squint': 1}, 0.05)):
        v = head_vertices(np.zeros(80), expression(**values), np.zeros(32))
        for side in 'lr':
            upper, lower = (v[k] for k in m.eye_slits[side])
            opening = (upper[:, 1] - lower[:, 1]).max()
            assert abs(opening - gap) < 0.016, (values, opening)
            if values == {'blink': 1}:
                np.testing.assert_allclose(upper, lower, atol=1e-4)
    for values in (
        {'blink': 0.5},
        {'blink': 1, 'squint': 1},
        {'gaze_y': -1, 'squint': 0.6},
        {'blink': 0.7, 'gaze_y': 1},
    ):
        v = head_vertices(np.zeros(80), expression(**values), np.zeros(32))
        lid = (m.part == SKIN) & (m.eye == 0) & (np.cos(m.azimuth) > 0.5)
        for c in centre:
            assert np.linalg.norm(v[lid] - c, axis=1).min() > face.EYE_RADIUS + 0.002, values


def test_eyes_stay_in_their_lids_for_any_person():
    m = head_mesh()
    for seed in range(40):
        v = head_vertices(sample_identity(seed)[:80], NEUTRAL, np.zeros(32))
        for sign, side in ((-1, 'l'), (1, 'r')):
            eye = v[(m.part == EYE) & (m.eye == sign)]
            edge = np.concatenate([v[k][1:-1] for k in m.eye_slits[side]])
            front = eye[0]
            assert np.abs(edge[:, :2].mean(0) - front[:2]).max() < 0.05
            assert (edge[:, 2] > eye[:, 2].min()).all()
            middle = np.array([edge[:, 0].mean(), edge[:, 1].mean()])
            assert np.abs(middle - front[:2]).max() < 0.05


def _mouth_dark(image, values):
    h = _render(image, values)
    return (h.part == MOUTH).sum(), (h.part == TEETH).sum(), h


def test_mouth_opens():
    closed, teeth_closed, neutral = _mouth_dark(MEAN, {})
    opened, teeth_open, image = _mouth_dark(MEAN, {'jaw_open': 1})
    assert closed <= 2 and teeth_closed == 0 and opened > 80 and teeth_open > 5
    assert image.rgb[image.part == MOUTH].mean() < 0.3
    assert np.ptp(image.landmarks[[62, 66], 1]) > 10 > np.ptp(neutral.landmarks[[62, 66], 1])
    smile = _render(MEAN, {'smile': 1}).landmarks
    assert smile[54, 0] - smile[48, 0] > neutral.landmarks[54, 0] - neutral.landmarks[48, 0] + 4
    assert smile[48, 1] < neutral.landmarks[48, 1] - 2
    pucker = _render(MEAN, {'mouth_pucker': 1}).landmarks
    assert pucker[54, 0] - pucker[48, 0] < 0.85 * (neutral.landmarks[54, 0] - neutral.landmarks[48, 0])


def test_blink_hides_the_eyes_and_gaze_moves_the_irises():
    assert (_render(MEAN, {}).part == EYE).sum() > 60
    assert (_render(MEAN, {'blink': 1}).part == EYE).sum() == 0
    dark = {}
    for gaze in (-1, 0, 1):
        h = _render(MEAN, {'gaze_x': gaze}, resolution=256)
        eye = (h.part == EYE) & (np.arange(256)[None] > 128)
        pupil = eye & (h.rgb.mean(-1) < 0.25)
        dark[gaze] = np.nonzero(pupil)[1].mean()
    assert dark[-1] + 4 < dark[0] < dark[1] - 4


@pytest.mark.slow
@pytest.mark.parametrize('name', [n for n in EXPRESSION_NAMES if n != 'neck_tense'])
def test_every_component_is_visible(name):
    base, moved = _render(MEAN), _render(MEAN, {name: 1})
    assert (np.abs(moved.rgb - base.rgb).max(-1) > 0.04).sum() >= 8


def test_people_differ():
    pictures = np.stack([_render(sample_identity(s), resolution=64).rgb for s in range(12)])
    for i in range(12):
        for j in range(i):
            assert np.sqrt(np.square(pictures[i] - pictures[j]).mean()) > 0.06, (i, j)
    cuts = {decode_style(sample_identity(s)[160:]).cut for s in range(120)}
    assert cuts == {name for name, _ in CUTS}


def test_picture_is_deterministic_and_in_range():
    a, b = (_render(sample_identity(3), {'smile': 0.5}) for _ in range(2))
    np.testing.assert_array_equal(a.rgb, b.rgb)
    assert a.rgb.dtype == np.float32 and a.rgb.shape == (128, 128, 3)
    assert a.rgb.min() >= 0 and a.rgb.max() <= 1 and a.mask.min() == 0 and a.mask.max() == 1
    assert ((a.mask > 0) == (a.depth > 0)).all()
    assert 0.3 < a.mask.mean() < 0.9
    blue = _render(sample_identity(3), {'smile': 0.5}, background=(0, 0, 1)).rgb
    np.testing.assert_array_equal(blue[a.mask == 1], a.rgb[a.mask == 1])
    assert (blue[a.mask == 0] == [0, 0, 1]).all()
    assert hashlib.sha256(a.landmarks.tobytes()).hexdigest() == hashlib.sha256(b.landmarks.tobytes()).hexdigest()


def test_depth_is_the_distance_along_the_ray():
    """Every pixel, unprojected with its depth, lies on the mesh seen from another camera too."""
    label = camera_label(25, 8)
    h = _render(MEAN, label=label, supersample=1)
    pose, k = split_label(label)
    y, x = np.nonzero(h.mask == 1)
    ray = np.stack([((x + 0.5) / 128 - k[0, 2]) / k[0, 0], ((y + 0.5) / 128 - k[1, 2]) / k[1, 1], np.ones(len(x))], 1)
    point = pose[:3, 3] + h.depth[y, x, None] * (ray / np.linalg.norm(ray, axis=1, keepdims=True)) @ pose[:3, :3].T
    uv = project(point, label, 128, 128)
    np.testing.assert_allclose(uv[:, :2], np.stack([x + 0.5, y + 0.5], 1), atol=1e-3)
    vertex = (h.vertices * 0.27 + [0, 0.006, 0.161]).astype(np.float64)
    gap = np.linalg.norm(point[::97, None] - vertex[None], axis=-1).min(1)
    assert gap.max() < 0.05 and np.median(gap) < 0.012


def test_cameras_agree_on_landmarks():
    """The nose tip is drawn where its landmark is, from any side, and moves with the intrinsics."""
    for yaw, pitch in ((0, 0), (40, 0), (-30, 20)):
        h = _render(MEAN, label=camera_label(yaw, pitch))
        u, v = h.landmarks[30]
        depth = h.depth[int(v), int(u)]
        pose, _ = split_label(camera_label(yaw, pitch))
        tip = h.vertices[head_mesh().landmark_ids[30]] * 0.27 + [0, 0.006, 0.161]
        assert abs(depth - np.linalg.norm(tip - pose[:3, 3])) < 0.02
    label = camera_label()
    zoomed = label.copy()
    zoomed[[16, 20]] *= 2
    wide, close = _render(MEAN, label=label).landmarks, _render(MEAN, label=zoomed).landmarks
    np.testing.assert_allclose(close - 64, 2 * (wide - 64), atol=1e-3)
    with pytest.raises(ValueError, match='25'):
        _render(MEAN, label=np.zeros(24))
    with pytest.raises(ValueError, match='identity'):
        render_head(MEAN[:-1], NEUTRAL, label)


def test_light_follows_gamma():
    gamma = default_gamma().reshape(3, 9)
    dim = gamma.copy()
    dim[:, 0] -= 0.4
    assert _render(gamma=dim.ravel()).rgb[64, 64].mean() < _render().rgb[64, 64].mean() - 0.1
    normals = np.array([[0, 0, 1.0], [0, 1, 0], [1, 0, 0], [0.6, 0.48, 0.64]], np.float32)
    only = np.zeros((3, 9), np.float32)
    np.testing.assert_allclose(sh_light(normals, only.ravel()), np.full((4, 3), 0.8 * 0.88622693), rtol=1e-6)
    only[1, 7] = 1
    expected = 0.8 * 0.88622693 - 2.42703239 * normals[:, 0] * normals[:, 2]
    np.testing.assert_allclose(sh_light(normals, only.ravel())[:, 1], expected, rtol=1e-5)


def test_regions():
    h = _render(MEAN, {'jaw_open': 0.5})
    masks = region_masks(h.landmarks, 128, 128)
    u, v = h.landmarks[48:68].T.astype(int)
    assert masks['mouth'][v, u].all() and not masks['mouth'][64 - 35, 64]
    u, v = h.landmarks[36:48].T.astype(int)
    assert masks['eyes'][v, u].all() and not (masks['eyes'] & masks['mouth']).any()
    assert (masks['both'] == (masks['eyes'] | masks['mouth'])).all()
    closed = region_masks(_render(MEAN, {'blink': 1}).landmarks, 128, 128)['eyes']
    assert closed.sum() > 0.4 * masks['eyes'].sum()
    with pytest.raises(ValueError, match='68'):
        region_masks(np.zeros((5, 2)), 8, 8)


def test_gallery(tmp_path):
    assert identities(count=5, resolution=16).shape == (32, 64, 3)
    assert sweep(resolution=16).shape == (64, 64, 3)
    main(['--out', str(tmp_path / 'g'), '--resolution', '16'])
    assert sorted(p.name for p in (tmp_path / 'g').iterdir()) == ['expressions.png', 'identities.png']
    with pytest.raises(KeyError):
        expression(smirk=1)
