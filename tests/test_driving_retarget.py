"""Expressions between bases: the table of names, least squares with known answers, regions of mixed bases, messages."""

import dataclasses
import functools

import jax.numpy as jnp
import numpy as np
import pytest

from avatar_jax.driving import bases, tables
from avatar_jax.driving.edit import only
from avatar_jax.driving.fields import fields_of, load_head_model, shared_points, similarity, smooth_warp
from avatar_jax.driving.retarget import own_fields, region_map, region_weights, retarget
from avatar_jax.errors import UserError
from avatar_jax.procedural import EXPRESSION_NAMES, ProceduralHead
from avatar_jax.procedural.motion import speech_motion
from avatar_jax.types import Motion

NAME = {n: i for i, n in enumerate(EXPRESSION_NAMES)}
ICT = {n: i for i, n in enumerate(bases.ICT_NAMES)}


@dataclasses.dataclass(frozen=True)
class Mixed:
    """A head like BFM: the procedural mesh seen in another frame, its expressions mixed by an invertible matrix."""

    mix: np.ndarray
    basis: str = bases.BFM
    name: str = 'mixed'
    num_id: int = 80
    num_exp: int = 64
    num_tex: int = 80
    scale: float = 1.3

    def _place(self, points):
        turn = np.array([[0.96, 0.28, 0], [-0.28, 0.96, 0], [0, 0, 1.0]])
        return self.scale * np.asarray(points, np.float64) @ turn + np.array([0.3, -2.0, 1.0])

    def vertices(self, identity, expression):
        return self._place(ProceduralHead().vertices(identity, expression @ self.mix))

    def landmarks(self, identity, expression):
        return self._place(ProceduralHead().landmarks(identity, expression @ self.mix))


@functools.cache
def mixed():
    return Mixed(np.random.default_rng(0).normal(0, 0.15, (64, 64)).astype(np.float32))


def models(basis):
    return {bases.PROCEDURAL: ProceduralHead(), bases.BFM: mixed()}[basis]


def rows(**values):
    out = np.zeros((1, 64), np.float32)
    for name, value in values.items():
        out[0, NAME[name]] = value
    return out


def shown(expression, basis=bases.PROCEDURAL):
    """Displacements [T, P*3] of the shared points."""
    return np.asarray(expression, np.float64) @ own_fields(basis, models).moves.reshape(64, -1)


# --- the table --------------------------------------------------------------------------------------------------------


def test_table_crosses_sides_and_names_every_blendshape():
    there = tables.translate(rows(blink_l=1, jaw_left=0.5, smile_r=0.3, mouth_right=0.2), bases.PROCEDURAL, bases.ICT)[
        0
    ]
    found = {n: round(float(there[i]), 5) for n, i in ICT.items() if there[i]}
    assert found == {'eyeBlink_R': 1, 'jawRight': 0.5, 'mouthSmile_L': 0.3, 'mouthLeft': 0.2}
    gaze = tables.translate(rows(gaze_x=0.5, gaze_y=-0.25), bases.PROCEDURAL, bases.ICT)[0]
    assert {n: float(gaze[i]) for n, i in ICT.items() if gaze[i]} == {
        'eyeLookOut_L': 0.5,
        'eyeLookIn_R': 0.5,
        'eyeLookDown_L': 0.25,
        'eyeLookDown_R': 0.25,
    }
    named = {b for _, b in tables.pairs()}
    others = {n for n in ICT if n.startswith(('eyeLook', 'browInnerUp', 'cheekPuff'))}
    assert named | others == set(ICT) and not named & others
    assert len({a for a, _ in tables.pairs()}) == len(tables.pairs())


def test_table_there_and_back():
    motion = speech_motion(3, 60)
    back = retarget(retarget(motion, bases.ICT), bases.PROCEDURAL)
    # Speech shapes come back as the components that they are made of: what counts is what the face does.
    error = (
        np.square(shown(back.expression) - shown(motion.expression)).sum() / np.square(shown(motion.expression)).sum()
    )
    assert np.sqrt(error) < 0.03
    plain = [NAME[a] for a, _ in tables.pairs() if not a.startswith(('brow_down', 'smile'))]
    random = np.zeros((5, 64), np.float32)
    random[:, plain] = np.random.default_rng(1).uniform(0, 1, (5, len(plain)))
    there = tables.translate(random, bases.PROCEDURAL, bases.ICT)
    np.testing.assert_allclose(tables.translate(there, bases.ICT, bases.PROCEDURAL), random, atol=1e-6)
    assert not there[:, len(ICT) :].any() and there.min() >= 0 and there.max() <= 1
    with pytest.raises(ValueError, match='no table'):
        tables.translate(random, bases.BFM, bases.ICT)


# --- least squares ----------------------------------------------------------------------------------------------------


def test_similarity_and_warp_are_exact_where_they_should_be():
    rng = np.random.default_rng(3)
    points = rng.normal(size=(30, 3))
    turn = np.linalg.qr(rng.normal(size=(3, 3)))[0]
    turn *= np.sign(np.linalg.det(turn))
    scale, rotation, shift = similarity(points, 0.7 * points @ turn + [1, 2, 3])
    assert scale == pytest.approx(0.7)
    np.testing.assert_allclose(rotation, turn, atol=1e-9)
    np.testing.assert_allclose(shift, [1, 2, 3], atol=1e-9)
    bend = np.sin(points)
    field = smooth_warp(points, bend, stiffness=1e-9)
    np.testing.assert_allclose(field(points), bend, atol=1e-5)
    matrix = rng.normal(size=(3, 3))
    beyond = 3 * rng.normal(size=(5, 3))  # an affine map is continued as such
    np.testing.assert_allclose(smooth_warp(points, points @ matrix + 1)(beyond), beyond @ matrix + 1, atol=1e-6)


def test_another_mesh_frame_and_mixture_is_undone():
    """A basis that is an invertible mixture of the procedural one: the same face comes out, and goes back."""
    motion = speech_motion(3, 90)
    there = retarget(motion, bases.BFM, models=models)
    assert there.basis == bases.BFM
    moves = own_fields(bases.BFM, models)
    assert moves.valid.mean() > 0.98
    error = shown(there.expression, bases.BFM) - shown(motion.expression)
    size = np.square(shown(motion.expression)).sum()
    assert np.sqrt(np.square(error).sum() / size) < 0.03
    back = retarget(there, bases.PROCEDURAL, models=models)
    assert back.expression.min() >= -1e-6 and back.expression.max() <= 1
    error = shown(back.expression) - shown(motion.expression)
    assert np.sqrt(np.square(error).sum() / size) < 0.03
    for name in ('blink_l', 'blink_r', 'brow_inner_up'):
        a, b = np.asarray(motion.expression)[:, NAME[name]], back.expression[:, NAME[name]]
        assert np.corrcoef(a, b)[0, 1] > 0.9, name
    np.testing.assert_array_equal(back.angle, motion.angle)
    assert not back.expression[:, NAME['gaze_x']].any(), 'BFM has no gaze: eyes look straight ahead'


def test_regions_of_a_mixed_basis():
    """What a region map leaves of an expression moves the region alike and hardly anything else."""
    motion = retarget(
        Motion(
            rows(jaw_open=0.8, blink_l=1.0, blink_r=1.0),
            np.zeros((1, 3), np.float32),
            np.zeros((1, 3), np.float32),
            25.0,
            bases.PROCEDURAL,
        ),
        bases.BFM,
        models=models,
    )
    weights = region_weights()
    np.testing.assert_allclose(sum(weights.values()), 1)
    maps = {r: region_map(bases.BFM, r, models) for r in ('mouth', 'eyes')}
    whole = shown(motion.expression, bases.BFM).reshape(-1, 3)
    for region, other in (('mouth', 'eyes'), ('eyes', 'mouth')):
        part = shown(only(motion, [region], region_maps=maps).expression, bases.BFM).reshape(-1, 3)
        inside, outside = weights[region] > 0.99, weights[other] > 0.99
        assert np.linalg.norm(part[inside] - whole[inside]) < 0.25 * np.linalg.norm(whole[inside])
        assert np.linalg.norm(part[outside]) < 0.25 * np.linalg.norm(whole[outside])


# --- FLAME's jaw and eyes ---------------------------------------------------------------------------------------------


class JawHead:
    """A head like FLAME: the procedural mesh in metres, 50 expression components, a jaw angle and eyes."""

    basis, name, num_id, num_exp, num_tex = bases.FLAME, 'jaw head', 80, 50, 0

    def vertices(self, identity, expression):
        mixed_in = np.asarray(expression) @ np.eye(50, 64, 1, dtype=np.float32)  # everything but jaw_open
        return np.asarray(ProceduralHead().vertices(identity, mixed_in)) + 0.5

    def landmarks(self, identity, expression):
        return self.vertices(identity, expression)[..., ProceduralHead().landmark_ids, :]

    def landmarks3d(self, vertices):
        return jnp.asarray(vertices)[..., ProceduralHead().landmark_ids, :]

    def __call__(self, identity, expression, pose):
        opened = np.zeros((len(pose), 64), np.float32)
        opened[:, 0] = np.asarray(pose)[:, 3] / 0.33
        moved = np.asarray(ProceduralHead().vertices(np.zeros((len(pose), 80), np.float32), opened)) + 0.5

        class Output:
            vertices = moved / 10.0

        return Output()


def test_jaw_and_gaze_of_flame():
    head = {bases.PROCEDURAL: ProceduralHead(), bases.FLAME: JawHead()}
    motion = Motion(
        np.concatenate([rows(jaw_open=0.6, gaze_x=0.5), rows(jaw_open=0.0, gaze_y=1.0), rows(smile_l=0.7)]),
        np.zeros((3, 3), np.float32),
        np.zeros((3, 3), np.float32),
        25.0,
        bases.PROCEDURAL,
    )
    there = retarget(motion, bases.FLAME, models=head.__getitem__)
    assert there.expression[0, bases.FLAME_JAW][0] == pytest.approx(0.6 * 0.33, abs=0.04)
    assert there.expression[1, bases.FLAME_JAW][0] == pytest.approx(0, abs=0.04)
    turn = np.deg2rad(24)
    np.testing.assert_allclose(there.expression[0, bases.FLAME_EYES], [0, turn / 2, 0] * 2, atol=1e-6)
    np.testing.assert_allclose(there.expression[1, bases.FLAME_EYES], [-turn, 0, 0] * 2, atol=1e-6)
    assert not there.expression[:, bases.FLAME_WIDTH :].any()
    back = retarget(there, bases.PROCEDURAL, models=head.__getitem__)
    # A part of the jaw may come back as one of the speech shapes that open it: what counts is what the face does.
    error = shown(back.expression)[::2] - shown(motion.expression)[::2]
    assert np.linalg.norm(error) < 0.1 * np.linalg.norm(shown(motion.expression)[::2])
    np.testing.assert_allclose(back.expression[:, NAME['gaze_x']], [0.5, 0, 0], atol=1e-5)
    mouth, eyes = (region_map(bases.FLAME, r, head.__getitem__) for r in ('mouth', 'eyes'))
    np.testing.assert_array_equal(mouth[bases.FLAME_JAW, bases.FLAME_JAW], np.eye(3))
    np.testing.assert_array_equal(eyes[bases.FLAME_EYES, bases.FLAME_EYES], np.eye(6))
    assert not eyes[bases.FLAME_JAW].any() and not mouth[bases.FLAME_EYES].any()


# --- files ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ('basis', 'file'),
    [(bases.BFM, 'BFM_model_front.mat'), (bases.FLAME, 'generic_model.pkl'), (bases.ICT, 'generic_neutral_mesh.obj')],
)
def test_missing_head_models_are_named(tmp_path, monkeypatch, basis, file):
    monkeypatch.setenv('AVATAR_ASSETS', str(tmp_path))
    with pytest.raises(UserError, match=f'{basis}.*{file}.*AVATAR_ASSETS') as caught:
        load_head_model(basis)
    assert '\n' not in str(caught.value)


def test_unknown_bases_and_methods():
    motion = speech_motion(0, 2)
    with pytest.raises(UserError, match="'emoca': not known; there are procedural"):
        retarget(motion, 'emoca')
    with pytest.raises(UserError, match='no table'):
        retarget(motion, bases.BFM, by='table', models=models)
    assert retarget(motion, bases.PROCEDURAL) is motion
    ids, weights = shared_points()
    assert (
        weights[-68:].sum() == pytest.approx(1) and weights[:-68].sum() == pytest.approx(1) and len(ids) == len(weights)
    )
    assert fields_of(ProceduralHead()).moves.shape == (64, len(ids), 3)
