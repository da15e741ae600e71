"""Sliders, neutral frames, relative motion, regions, amplification, files of coefficients."""

from pathlib import Path

import numpy as np
import pytest

from avatar_jax.driving import bases
from avatar_jax.driving.coefficient_files import load_coefficients
from avatar_jax.driving.edit import (
    amplified,
    angles_of,
    column_rotation,
    neutral_frame,
    only,
    relative_to,
    rotation_power,
)
from avatar_jax.driving.plan import Plan, apply_plan
from avatar_jax.driving.sliders import parse_sliders
from avatar_jax.errors import UserError
from avatar_jax.faces.camera_labels import label_from_pose
from avatar_jax.io.motion import save_motion
from avatar_jax.procedural import EXPRESSION_NAMES
from avatar_jax.procedural.motion import speech_motion
from avatar_jax.types import Avatar, Camera, Motion

CASES = Path(__file__).parents[1] / '../shared/cases'
NAME = {n: i for i, n in enumerate(EXPRESSION_NAMES)}


def talking(frames=40, quiet=11):
    """A clip that talks loudly but for some frames around ``quiet``, with a constant offset in one component."""
    rng = np.random.default_rng(0)
    expression = np.zeros((frames, 64), np.float32)
    expression[:, :40] = rng.uniform(0.2, 0.9, (frames, 40))
    expression[quiet - 1 : quiet + 2, :40] *= 0.05
    expression[:, NAME['smile_l']] = 0.4
    angle = np.tile(np.float32([0.02, 0.1, 0.0]), (frames, 1)) + rng.normal(0, 0.05, (frames, 3)).astype(np.float32)
    return Motion(expression, angle, rng.normal(0, 0.1, (frames, 3)).astype(np.float32), 25.0, 'procedural', '')


# --- sliders -------------------------------------------------------------------------------------------------------


def test_sliders_by_name_index_and_pose():
    motion = parse_sliders(['jaw_open=0.6', '37=1', 'gaze_x=-0.5', 'yaw=20', 'move_z=1.5'], 'procedural').motion(3, 30)
    expected = np.zeros(64, np.float32)
    expected[[NAME['jaw_open'], 37, NAME['gaze_x']]] = 0.6, 1, -0.5
    np.testing.assert_allclose(motion.expression, np.tile(expected, (3, 1)))
    np.testing.assert_allclose(motion.angle, np.tile([0, np.deg2rad(20), 0], (3, 1)), rtol=1e-6)
    np.testing.assert_allclose(motion.translation[:, 2], 1.5)
    assert motion.fps == 30 and motion.basis == 'procedural'
    driver = speech_motion(1, 5)
    changed = parse_sliders(['blink_l=1'], 'procedural').applied(driver)
    assert (changed.expression[:, NAME['blink_l']] == 1).all()
    other = np.arange(64) != NAME['blink_l']
    np.testing.assert_array_equal(changed.expression[:, other], driver.expression[:, other])
    assert parse_sliders(['jawOpen=1'], bases.ICT).basis == bases.ICT
    assert parse_sliders(['jaw_open=1'], bases.BFM).basis == 'procedural', 'names are those of the procedural basis'
    assert parse_sliders(['12=-2.5', 'roll=3'], bases.BFM).expression == {12: -2.5}


@pytest.mark.parametrize(
    ('option', 'message'),
    [
        ('jawopen=1', 'did you mean jaw_open'),
        ('blink=1', 'say blink_l and blink_r'),
        ('jaw_open=1.2', 'runs from 0 to 1'),
        ('blink_l=-0.1', 'runs from 0 to 1'),
        ('yaw=100', 'runs from -90 to 90 degrees'),
        ('64=0.1', 'components 0 to 63'),
        ('jaw_open', 'NAME=VALUE'),
        ('jaw_open=wide', 'NAME=VALUE'),
        ('jaw_open=nan', 'NAME=VALUE'),
        ('=1', 'NAME=VALUE'),
        ('xyzzy=1', 'there are jaw_open'),
    ],
)
def test_sliders_that_are_refused(option, message):
    with pytest.raises(UserError, match=message) as caught:
        parse_sliders([option], 'procedural')
    assert str(caught.value).startswith(f'--slider {option}') and '\n' not in str(caught.value)


def test_a_slider_twice():
    with pytest.raises(UserError, match='twice'):
        parse_sliders(['jaw_open=0.1', '0=0.2'], 'procedural')


# --- neutral, relative, amplified, regions --------------------------------------------------------------------------


def test_neutral_frame_is_found_in_spite_of_offsets_and_turns():
    assert neutral_frame(talking(quiet=11)) == 11
    turned = talking(quiet=11)
    turned.angle[10:13] += 1.5  # quiet, but looking away
    assert neutral_frame(turned) not in (10, 11, 12)
    assert neutral_frame(talking().frames(0, 1)) == 0
    speech = speech_motion(3, 100)
    frame = neutral_frame(speech)
    mouth = np.asarray(speech.expression)[:, NAME['jaw_open']] + np.asarray(speech.expression)[:, NAME['viseme_aa']]
    assert mouth[frame] <= np.quantile(mouth, 0.3) and speech.expression[frame, NAME['blink_l']] < 0.2


def test_relative_motion_starts_at_the_source():
    motion, source = talking(), np.array([0.1, -0.3, 0.05])
    moved = relative_to(motion, 11, source_angle=source, source_translation=np.array([0.2, 0.1, -0.5]))
    np.testing.assert_allclose(moved.expression[11], 0, atol=1e-7)
    np.testing.assert_allclose(moved.angle[11], source, atol=1e-6)
    np.testing.assert_allclose(moved.translation[11], [0.2, 0.1, -0.5], atol=1e-6)
    # The turn that leads from the neutral frame to any other one is the driver's.
    for t in (0, 20):
        turn = column_rotation(moved.angle[t]) @ column_rotation(moved.angle[11]).T
        same = column_rotation(motion.angle[t]) @ column_rotation(motion.angle[11]).T
        np.testing.assert_allclose(turn, same, atol=1e-6)
    assert moved.expression.min() >= 0, 'one-sided components do not go below rest'
    half = relative_to(motion, 11, pose=False)
    np.testing.assert_array_equal(half.angle, motion.angle)
    np.testing.assert_array_equal(relative_to(motion, 11, expression=False).expression, motion.expression)


def test_rotation_powers():
    rng = np.random.default_rng(2)
    turn = column_rotation(rng.normal(0, 0.5, (6, 3)))
    np.testing.assert_allclose(rotation_power(turn, 1.0), turn, atol=1e-12)
    np.testing.assert_allclose(rotation_power(turn, 2.0), turn @ turn, atol=1e-12)
    half = rotation_power(turn, 0.5)
    np.testing.assert_allclose(half @ half, turn, atol=1e-12)
    np.testing.assert_allclose(rotation_power(turn, 0.0), np.broadcast_to(np.eye(3), turn.shape), atol=1e-12)
    np.testing.assert_allclose(
        angles_of(rotation_power(column_rotation(np.array([0, 0.3, 0])), 1.5)), [0, 0.45, 0], atol=1e-9
    )


def test_amplification():
    motion = talking()
    twice = amplified(motion, 2.0, 0.5)
    assert twice.expression.max() <= 1 and (twice.expression >= motion.expression - 1e-6).all()
    small = np.asarray(motion.expression) < 0.5
    np.testing.assert_allclose(twice.expression[small], 2 * np.asarray(motion.expression)[small], atol=1e-6)
    np.testing.assert_allclose(twice.translation, 0.5 * motion.translation, atol=1e-7)
    about = amplified(motion, 3.0, 3.0, neutral=11)
    np.testing.assert_allclose(about.expression[11], motion.expression[11], atol=1e-6)
    np.testing.assert_allclose(about.angle[11], motion.angle[11], atol=1e-6)
    np.testing.assert_array_equal(amplified(motion).expression, motion.expression)
    beyond = motion.replace(expression=np.full_like(motion.expression, 1.3))
    assert amplified(beyond, 2.0).expression.max() == np.float32(1.3), 'what is beyond already is not pulled back'
    for factor in (-1, 11, np.nan):
        with pytest.raises(UserError, match='must lie between'):
            amplified(motion, factor)


def test_regions_part_the_face():
    motion = talking()
    parts = [only(motion, [r]).expression for r in ('mouth', 'eyes', 'brows')]
    np.testing.assert_allclose(sum(parts), motion.expression, atol=1e-6)
    eyes = only(motion, ['eyes'], source_angle=np.array([0, 0.2, 0]))
    assert (eyes.expression[:, NAME['jaw_open']] == 0).all() and (eyes.expression[:, NAME['blink_l']] > 0).any()
    np.testing.assert_allclose(eyes.angle, np.tile([0, 0.2, 0], (40, 1)), atol=1e-7)
    pose = only(motion, ['pose'])
    assert not pose.expression.any()
    np.testing.assert_array_equal(pose.angle, motion.angle)
    whole = only(motion, ['expression', 'pose'])
    np.testing.assert_array_equal(whole.expression, motion.expression)
    kept = only(motion, ['mouth'], source_expression=np.full(64, 0.25, np.float32))
    assert (kept.expression[:, NAME['blink_l']] == 0.25).all()
    np.testing.assert_array_equal(kept.expression[:, 0], motion.expression[:, 0])
    with pytest.raises(UserError, match='choose from'):
        only(motion, ['nose'])
    with pytest.raises(UserError, match='--only mouth.*head model'):
        only(motion.replace(basis=bases.BFM), ['mouth'])
    assert {bases.region_of(n) for n in (*EXPRESSION_NAMES, *bases.ICT_NAMES)} == {'mouth', 'eyes', 'brows'}


def test_plans():
    angle = np.array([0.05, -0.4, 0.1])
    label = label_from_pose(angle, np.array([0.1, 0.0, 0.3]), 'raw')
    avatar = Avatar({}, camera=Camera.from_label(label))
    motion, notes = apply_plan(talking(), Plan('all', only=('mouth', 'pose'), amplify=1.5), 'procedural', avatar)
    assert notes == ('frame 11 taken as the neutral one',)
    np.testing.assert_allclose(motion.angle[11], angle, atol=1e-5)
    np.testing.assert_allclose(motion.translation[11], [0.1, 0, 0.3], atol=1e-5)
    assert not motion.expression[11].any() and not motion.expression[:, NAME['blink_l']].any()
    about, _ = apply_plan(talking(), Plan(neutral=11, amplify=2.0, amplify_pose=2.0), 'procedural', avatar)
    np.testing.assert_allclose(about.expression[11], talking().expression[11], atol=1e-6)
    np.testing.assert_allclose(about.angle[11], talking().angle[11], atol=1e-6)
    same, notes = apply_plan(talking(), Plan(), 'procedural', avatar)
    np.testing.assert_array_equal(same.expression, talking().expression)
    assert notes == ()
    straight, _ = apply_plan(talking(), Plan('pose', neutral=3), 'procedural', Avatar({}))
    np.testing.assert_allclose(straight.angle[3], 0, atol=1e-7)
    with pytest.raises(UserError, match='--neutral 40: the driver has the frames 0 to 39'):
        apply_plan(talking(), Plan('all', neutral=40), 'procedural', avatar)
    with pytest.raises(UserError, match='--relative some'):
        Plan('some')
    with pytest.raises(UserError, match='--only ears'):
        Plan(only=('ears',))


# --- coefficients of other programs
# ------------------------------------------------------------------------------------


def test_coefficient_files(tmp_path):
    from scipy.io import savemat

    rng = np.random.default_rng(4)
    rows = rng.normal(0, 0.3, (6, 260)).astype(np.float32)
    savemat(tmp_path / 'clip.mat', {'coeff': rows[:, :257], 'transform_params': np.zeros((6, 5))})
    parts = {
        'id': rows[:, :80],
        'exp': rows[:, 80:144],
        'tex': rows[:, 144:224],
        'angle': rows[:, 224:227],
        'gamma': rows[:, 227:254],
        'trans': rows[:, 254:257],
    }
    savemat(tmp_path / 'einzelne Teile.mat', {**parts, 'lm68': np.zeros((6, 68, 2))})
    np.savez(tmp_path / 'clip.npz', coeff_3dmm=rows, fps=30)
    np.save(tmp_path / 'clip.npy', rows)
    for name in ('clip.mat', 'einzelne Teile.mat', 'clip.npz', 'clip.npy'):
        motion = load_coefficients(tmp_path / name)
        np.testing.assert_array_equal(motion.expression, rows[:, 80:144])
        np.testing.assert_array_equal(motion.angle, rows[:, 224:227])
        np.testing.assert_array_equal(motion.translation, rows[:, 254:257])
        assert motion.basis == 'bfm2009-deep3d' and motion.fps == (30 if name == 'clip.npz' else 25)
        assert len(motion.source) == 64
    assert load_coefficients(tmp_path / 'clip.mat', fps=29.97).fps == 29.97
    still = {k: v[0] for k, v in parts.items()}
    np.savez(tmp_path / 'still.npz', **still)
    assert load_coefficients(tmp_path / 'still.npz').num_frames == 1
    save_motion(tmp_path / 'ours.npz', talking())
    assert load_coefficients(tmp_path / 'ours.npz').basis == 'procedural'


@pytest.mark.parametrize('width', [70, 73])
@pytest.mark.parametrize('frames', [1, 6])
def test_coefficients_of_sadtalker_and_dreamtalk(tmp_path, width, frames):
    from scipy.io import savemat

    rows = np.random.default_rng(5).normal(0, 0.3, (frames, width)).astype(np.float32)
    savemat(tmp_path / 'a.mat', {'coeff_3dmm': rows})
    savemat(tmp_path / 'both.mat', {'coeff_3dmm': rows, 'full_3dmm': np.zeros((frames, 257))})
    np.savez(tmp_path / 'b.npz', coeff=rows)
    np.savez(tmp_path / 'd.npz', coefficients=rows[None])
    np.save(tmp_path / 'c.npy', rows)
    for name in ('a.mat', 'both.mat', 'b.npz', 'd.npz', 'c.npy'):
        motion = load_coefficients(tmp_path / name)
        np.testing.assert_array_equal(motion.expression, rows[:, :64])
        np.testing.assert_array_equal(motion.angle, rows[:, 64:67])
        np.testing.assert_array_equal(motion.translation, rows[:, 67:70])
        assert motion.basis == 'bfm2009-deep3d' and motion.fps == 25


@pytest.mark.skipif(not CASES.is_dir(), reason='the shared cases are not here')
def test_shared_file_of_sadtalker():
    motion = load_coefficients(CASES / 'sadtalker_gen.mat')
    assert motion.num_frames > 1 and motion.expression.shape[1] == 64 and motion.basis == 'bfm2009-deep3d'


@pytest.mark.parametrize(
    ('entries', 'message'),
    [
        ({'coeff': np.zeros((3, 256))}, r'coeff has shape \(3, 256\)'),
        ({'exp': np.zeros((3, 64)), 'angle': np.zeros((3, 3))}, 'nor trans'),
        ({'exp': np.zeros((3, 64)), 'angle': np.zeros((2, 3)), 'trans': np.zeros((3, 3))}, 'angle has shape'),
        ({'coeff': np.full((3, 257), np.nan)}, 'expression is nan in frame 0'),
        ({'coeff': np.full((3, 257), 20.0)}, 'angles are radians'),
        ({'coeff': np.array(['a'])}, 'not an array of numbers'),
        ({'other': np.zeros(3)}, 'found: other'),
    ],
)
def test_coefficient_files_that_are_refused(tmp_path, entries, message):
    np.savez(tmp_path / 'c.npz', **entries)
    with pytest.raises(UserError, match=message) as caught:
        load_coefficients(tmp_path / 'c.npz')
    assert 'c.npz' in str(caught.value) and '\n' not in str(caught.value)


def test_damaged_coefficient_files(tmp_path):
    (tmp_path / 'text.mat').write_text('hello')
    (tmp_path / 'text.npz').write_text('hello')
    for name in ('text.mat', 'text.npz', 'none.mat'):
        with pytest.raises(UserError, match=name):
            load_coefficients(tmp_path / name)
