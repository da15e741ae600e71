"""Motion files and landmark files: round trips, every accepted layout, and what is refused."""

import numpy as np
import pytest

from avatar_jax.errors import UserError
from avatar_jax.io.landmarks import find_landmarks, read_landmarks
from avatar_jax.io.motion import load_motion, save_motion
from avatar_jax.io.provenance import Provenance
from avatar_jax.types import Camera, Motion


def make_motion(frames=7, **changes):
    rng = np.random.default_rng(0)
    values = {
        'expression': rng.uniform(0, 1, (frames, 64)).astype(np.float32),
        'angle': rng.normal(0, 0.2, (frames, 3)).astype(np.float32),
        'translation': rng.normal(0, 0.2, (frames, 3)).astype(np.float32),
        'fps': 25.0,
        'basis': 'procedural',
        'source': 'a' * 64,
    }
    return Motion(**{**values, **changes})


def test_round_trip(tmp_path):
    motion = make_motion(fps=30000 / 1001)
    save_motion(tmp_path / 'new' / 'm.npz', motion, Provenance(synthetic=True, seed=4))
    back = load_motion(tmp_path / 'new' / 'm.npz', basis='procedural')
    np.testing.assert_array_equal(back.coefficients, motion.coefficients)
    assert (back.fps, back.basis, back.source) == (motion.fps, 'procedural', 'a' * 64)
    with np.load(tmp_path / 'new' / 'm.npz') as file:
        assert '"seed": 4' in str(file['provenance']) and str(file['format']) == 'avatar_jax motion 1'


@pytest.mark.parametrize('width', [70, 73, 257, 260])
def test_layouts_by_width(tmp_path, width):
    motion = make_motion()
    rows = np.full((7, width), 9.0, np.float64)
    start = {70: 0, 73: 0, 257: 80, 260: 80}[width]
    rows[:, start : start + 64] = motion.expression
    angle, trans = (64, 67) if width < 100 else (224, 254)
    rows[:, angle : angle + 3], rows[:, trans : trans + 3] = motion.angle, motion.translation
    np.savez(tmp_path / 'm.npz', coefficients=rows, basis='procedural', fps=(30000, 1001))
    back = load_motion(tmp_path / 'm.npz')
    np.testing.assert_array_equal(back.coefficients, motion.coefficients)
    assert back.fps == pytest.approx(30000 / 1001) and back.source == ''


def good():
    return {'coefficients': np.zeros((3, 70), np.float32), 'basis': 'procedural', 'fps': 25}


def bad_value(column, value):
    rows = np.zeros((3, 70), np.float32)
    rows[1, column] = value
    return {'coefficients': rows}


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        ({'basis': 'bfm2009-deep3d'}, "belong to the basis 'bfm2009-deep3d', but 'procedural' is needed"),
        (bad_value(5, np.nan), r'expression is nan in frame 1, column 5 \(1 of 3 frames'),
        (bad_value(65, np.inf), 'angle is inf in frame 1, column 1'),
        (bad_value(65, 45.0), 'angles are radians'),
        (bad_value(69, 1000.0), 'translations decimetres'),
        ({'coefficients': np.zeros((3, 71))}, r'shape \(3, 71\)'),
        ({'coefficients': np.zeros(70)}, r'shape \(70,\)'),
        ({'coefficients': np.zeros((0, 70))}, 'no frames'),
        ({'coefficients': np.full((3, 70), 'a')}, 'not numbers'),
        ({'fps': 0}, 'fps|frame rate'),
        ({'fps': np.nan}, 'fps'),
        ({'fps': 'fast'}, 'fps'),
        ({'fps': (25, 0)}, 'fps'),
        ({'basis': 3}, 'not a text'),
        ({'basis': None}, 'damaged|not a motion file'),
        ({'fps': ...}, "no entry 'fps'"),
        ({'coefficients': ...}, "no entry 'coefficients'"),
    ],
)
def test_refusals_name_the_file_and_the_reason(tmp_path, change, message):
    entries = {k: v for k, v in {**good(), **change}.items() if v is not ...}
    np.savez(tmp_path / 'm.npz', **entries)
    with pytest.raises(UserError, match=message) as caught:
        load_motion(tmp_path / 'm.npz', basis='procedural')
    assert 'm.npz' in str(caught.value) and '\n' not in str(caught.value)


def test_files_that_are_no_motion_files(tmp_path):
    (tmp_path / 'text.npz').write_text('hello')
    np.save(tmp_path / 'bare.npy', np.zeros((3, 70)))
    np.savez(tmp_path / 'ok.npz', **good())
    whole = (tmp_path / 'ok.npz').read_bytes()
    (tmp_path / 'cut.npz').write_bytes(whole[: len(whole) // 2])
    flipped = bytearray(whole)
    flipped[len(whole) // 3] ^= 0xFF  # inside the coefficients
    (tmp_path / 'flipped.npz').write_bytes(flipped)
    for name in ('text.npz', 'bare.npy', 'cut.npz', 'flipped.npz'):
        with pytest.raises(UserError, match='motion file|bare array'):
            load_motion(tmp_path / name)


def test_bad_motions_are_not_saved(tmp_path):
    broken = make_motion()
    broken.expression[2, 3] = np.nan
    for motion, message in [
        (broken, 'frame 2, column 3'),
        (make_motion(basis=''), 'names no coefficient basis'),
        (make_motion(angle=np.zeros((5, 3), np.float32)), 'angle has shape'),
    ]:
        with pytest.raises(UserError, match=message):
            save_motion(tmp_path / 'm.npz', motion)
    assert list(tmp_path.iterdir()) == []


def test_motion_windows_and_parts():
    motion = make_motion(40)
    windows = motion.windows()
    assert windows.shape == (40, 27, 70)
    rows = motion.coefficients
    for t in (0, 5, 20, 39):
        for k in range(27):
            np.testing.assert_array_equal(windows[t, k], rows[min(max(t + k - 13, 0), 39)])
    part = motion.frames(3, 9)
    assert part.num_frames == 6 and part.fps == 25
    np.testing.assert_array_equal(part.coefficients, rows[3:9])


def test_camera_label_round_trip():
    label = np.arange(50, dtype=np.float32).reshape(2, 25)
    camera = Camera.from_label(label)
    assert camera.cam2world.shape == (2, 4, 4) and camera.intrinsics[1, 0, 0] == 41
    np.testing.assert_array_equal(camera.label, label)
    with pytest.raises(ValueError, match='25 numbers'):
        Camera.from_label(label[:, :24])


def test_landmarks_beside_a_picture(tmp_path):
    points = np.arange(10, dtype=np.float64).reshape(5, 2) + 0.5
    picture = tmp_path / 'my portrait.jpg'
    assert find_landmarks(picture) is None
    np.save(tmp_path / 'my portrait.npy', points)
    assert find_landmarks(picture).name == 'my portrait.npy'
    np.savetxt(tmp_path / 'my portrait.landmarks5.txt', points)
    found = find_landmarks(picture)
    assert found.name == 'my portrait.landmarks5.txt'  # the most specific name wins
    np.testing.assert_allclose(read_landmarks(found), points)
    np.testing.assert_allclose(read_landmarks(tmp_path / 'my portrait.npy'), points)
    (tmp_path / 'c.txt').write_text('\n'.join(f'{x},{y}' for x, y in points))
    np.testing.assert_allclose(read_landmarks(tmp_path / 'c.txt'), points)
    np.save(tmp_path / 'l68.npy', np.zeros((68, 2)))
    assert read_landmarks(tmp_path / 'l68.npy').shape == (68, 2)


@pytest.mark.parametrize(
    ('content', 'message'),
    [('1 2\n3 4\n', '5 or 68'), ('a b c', 'not a landmark file'), ('1 2\n' * 4 + 'nan 3', 'NaN'), ('', 'empty')],
)
def test_bad_landmark_files(tmp_path, content, message):
    (tmp_path / 'l.txt').write_text(content)
    with pytest.raises(UserError, match=message):
        read_landmarks(tmp_path / 'l.txt')
