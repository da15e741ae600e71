"""The way from pixels to numbers: on pictures made here, where faces, landmarks, cameras and masks are known."""

import functools
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from avatar_jax.errors import UserError
from avatar_jax.faces.alignment import STANDARD_POINTS, eg3d_crop, five_points
from avatar_jax.faces.camera_labels import canonical_label, label_from_pose
from avatar_jax.faces.pose import project, rotation_matrix, to_camera, transform
from avatar_jax.io.video import VideoReader, write_video
from avatar_jax.procedural import render_head, sample_identity
from avatar_jax.track.background import separate
from avatar_jax.track.crops import Still, still_picture
from avatar_jax.track.detect import apply, detect_faces, inverse, overlap, rotation
from avatar_jax.track.five_points import FivePoints, estimate
from avatar_jax.track.mean_face import crop_label, crop_pose, fit_pose
from avatar_jax.track.measure import default_tracker, measure
from avatar_jax.track.search import COARSE, find_faces, search_faces

SIZE = 256

CASES = Path(__file__).parents[1] / '../shared/cases'


@functools.cache
def head(seed=3, yaw=0.0, pitch=0.0):
    """A procedural head turned by ``yaw`` degrees: (uint8 picture on white, landmarks, mask, angle in radians)."""
    angle = np.deg2rad([pitch, yaw, 0.0])
    image = render_head(
        sample_identity(seed, 'train'),
        np.zeros(64, np.float32),
        label_from_pose(angle, np.zeros(3), 'raw').astype(np.float32),
        resolution=SIZE,
        supersample=1,
    )
    return np.rint(255 * np.clip(image.rgb, 0, 1)).astype(np.uint8), image.landmarks - 0.5, image.mask, angle


def save(path, pixels, landmarks=None):
    Image.fromarray(pixels).save(path)
    if landmarks is not None:
        np.savetxt(path.with_name(path.stem + f'.landmarks{len(landmarks)}.txt'), landmarks)
    return path


def portrait(path, size=128, label_mode='raw', **options):
    return measure(path, size=size, label_mode=label_mode, **options).best()


def eye_distance(points):
    return np.hypot(*(points[1] - points[0]))


def degrees_between(label, other):
    a, b = (x[:16].reshape(4, 4)[:3, :3] for x in (label, other))
    return np.rad2deg(np.arccos(np.clip((np.trace(a.T @ b) - 1) / 2, -1, 1)))


# --- the cascade and the colours, which aligned frames rest on ------------------------------------------------------


@pytest.mark.parametrize('yaw', [0.0, 20.0])
def test_finds_the_face_and_its_points(yaw):
    pixels, landmarks, _, _ = head(yaw=yaw)
    truth = five_points(landmarks)
    faces = detect_faces(pixels)
    assert len(faces) == 1 and faces[0].tilt == 0 and faces[0].score > 3
    found = estimate(pixels, faces[0])
    error = np.hypot(*(found.points - truth).T) / eye_distance(truth)
    assert error[:2].max() < 0.08 and error[3:].max() < 0.15 and error[2] < 0.35
    assert set(found.measured) == {'eyes', 'mouth', 'nostrils'} and found.source == 'detector'


@pytest.mark.parametrize('degrees', [-45, 30])
def test_tilted_faces_are_found(degrees):
    """The head turned within the picture: points follow the turn."""
    pixels, landmarks, _, _ = head()
    matrix = rotation(degrees, np.array([SIZE / 2, SIZE / 2]))
    tilted = Image.fromarray(pixels).rotate(degrees, Image.Resampling.BICUBIC, fillcolor=(255, 255, 255))
    truth = apply(matrix, five_points(landmarks))
    pixels = np.asarray(tilted)
    found = estimate(pixels, detect_faces(pixels)[0]).points
    assert np.hypot(*(found - truth)[[0, 1, 3, 4]].T).max() < 0.16 * eye_distance(truth)


def test_affine_helpers():
    matrix = rotation(90, np.array([5.0, 5.0]))
    np.testing.assert_allclose(apply(matrix, np.array([6.0, 5.0])), [5, 4], atol=1e-12)  # counter-clockwise, y down
    points = np.random.default_rng(0).normal(size=(4, 2))
    np.testing.assert_allclose(apply(inverse(matrix), apply(matrix, points)), points, atol=1e-12)
    assert overlap((0, 0, 2, 2), (1, 0, 2, 2)) == pytest.approx(1 / 3) and overlap((0, 0, 1, 1), (5, 5, 1, 1)) == 0


def test_pose_fit_recovers_a_known_pose():
    angle, trans, focal = np.deg2rad([5.0, -20.0, 10.0]), np.array([0.2, -0.1, 0.05]), 1000.0
    points = project(to_camera(transform(STANDARD_POINTS, rotation_matrix(angle), trans)), focal, 0.0) + [64, 60]
    pose = fit_pose(points, focal=focal, center=(64, 60))
    assert np.abs(np.rad2deg(pose.angle - angle)).max() < 2.5  # drawn a little towards the frontal pose
    assert np.abs(pose.trans - trans).max() < 0.06 and pose.residual < 0.02
    doubted = fit_pose(points, focal=focal, center=(64, 60), sigma=1.0)
    assert abs(doubted.angle[1]) < 0.3 * abs(angle[1])  # points that are not trusted hardly move the prior
    with pytest.raises(ValueError, match='three or more'):
        fit_pose(points[:2], STANDARD_POINTS[:2], focal=focal, center=(0, 0))
    with pytest.raises(ValueError, match='finite'):
        fit_pose(points * np.nan, focal=focal, center=(0, 0))


def test_crop_pose_of_the_mean_face_is_frontal():
    """The five standard points, aligned, are a head that looks straight ahead."""
    scale = 300 * SIZE / 700
    points = np.stack([STANDARD_POINTS[:, 0] * scale + SIZE / 2, SIZE / 2 - STANDARD_POINTS[:, 1] * scale], -1) - 0.5
    pose = crop_pose(points, SIZE)
    assert np.abs(np.rad2deg(pose.angle)).max() < 1.5 and np.abs(pose.trans).max() < 0.15
    label = crop_label(pose)
    assert np.linalg.norm(label[[3, 7, 11]]) == pytest.approx(2.7, abs=1e-3) and label[16] == pytest.approx(4.2647)
    # Points of which one is a guess hold the pose near the usual one; those that fit no face say so.
    odd = crop_pose(points + [[0, 0], [0, 0], [25, 0], [-20, 20], [20, -20]], SIZE)
    assert odd.residual > 2 * pose.residual
    doubted = crop_pose(points + np.array([[9, 0], [2, 0], [40, 0], [16, 0], [4, 0]]), SIZE, np.full((5, 2), 0.15))
    sure = crop_pose(points + np.array([[9, 0], [2, 0], [40, 0], [16, 0], [4, 0]]), SIZE, 0.02)
    assert abs(doubted.angle[1]) < abs(sure.angle[1])


def test_aligned_frames(tmp_path):
    noise = np.random.default_rng(0).integers(100, 140, (128, 128, 3), np.uint8)
    frame = portrait(save(tmp_path / 'none.png', noise), 64, 'orig', aligned=True)
    np.testing.assert_allclose(frame.label, canonical_label(), atol=1e-6)
    assert 'camera is taken as frontal' in frame.warnings[0] and frame.quality is None and frame.points is None
    assert frame.landmarks is None and frame.angle is None and frame.portrait().basis == ''
    pixels, landmarks, _, _ = head(yaw=20.0)
    path = save(tmp_path / 'head.png', pixels, five_points(landmarks))
    aligned = portrait(path, aligned=True, landmarks=None)
    np.testing.assert_allclose((aligned.points + 0.5) * 2 - 0.5, five_points(landmarks), atol=1e-3)
    assert abs(np.rad2deg(aligned.angle[1]) - 20) < 7 and aligned.landmarks is None and aligned.expression is None
    np.save(tmp_path / 'all.npy', landmarks)
    whole = portrait(path, aligned=True, landmarks=tmp_path / 'all.npy')
    np.testing.assert_allclose((whole.portrait().landmarks + 0.5) * 2 - 0.5, landmarks, atol=1e-3)
    np.testing.assert_allclose(whole.label, aligned.label, atol=1e-4)
    with pytest.raises(UserError, match='aligned frame is square'):
        portrait(save(tmp_path / 'wide.png', pixels[:200]), aligned=True)
    FivePoints(aligned.points, np.zeros((5, 2)), 'file', ())


# --- backgrounds ----------------------------------------------------------------------------------------------------


def test_background_is_separated_and_white_is_left_alone():
    pixels, landmarks, mask, _ = head()
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:SIZE, :SIZE]
    wall = np.stack([60 + 0.2 * x, 110 + 0.1 * y, 150 - 0.1 * x], -1) + rng.normal(0, 3, (SIZE, SIZE, 1))
    scene = np.rint(pixels * mask[..., None] + wall * (1 - mask[..., None])).clip(0, 255).astype(np.uint8)
    points = five_points(landmarks).astype(float)
    whole = np.ones((SIZE, SIZE), np.float32)
    matte = separate(scene, whole, points)
    person, truth = matte.alpha > 0.5, mask > 0.5
    assert matte.trusted and (person & truth).sum() / (person | truth).sum() > 0.9
    white = separate(pixels, whole, points)
    assert white.trusted and (white.alpha == 1).all() and 'already' in white.made_by
    still = Still(scene, whole, None, points, (0, 0, SIZE, SIZE), 128)
    for background, value in (('white', 255), ('black', 0)):
        shown = still_picture(still, background)
        assert np.abs(shown.image[2, 2].astype(int) - value).max() < 6 and shown.mask[2, 2] < 0.02
        assert shown.mask[64, 64] > 0.98 and any('GrabCut' in note for note in shown.notes)
    kept = still_picture(still, 'keep')
    assert (kept.image == still.cut(scene)).all() and kept.mask[2, 2] < 0.02 and 'head mask' in kept.notes[0]
    assert (still_picture(still, 'keep', masked=False).mask == 1).all()


@pytest.mark.slow
def test_transparency_of_the_file_is_used(tmp_path):
    pixels, landmarks, mask, _ = head()
    alpha = np.rint(255 * mask).astype(np.uint8)
    red = np.where(mask[..., None] > 0.5, pixels, np.uint8([200, 0, 0]))
    Image.fromarray(np.dstack([red, alpha])).save(tmp_path / 'a.png')
    np.savetxt(tmp_path / 'a.landmarks68.txt', landmarks)
    for background, value in (('white', 255), ('black', 0)):
        found = portrait(tmp_path / 'a.png', background=background)
        assert (found.image[2, 2] == value).all() and found.mask[2, 2] == 0 and found.mask[64, 64] == 1
        assert "background from the file's transparency" in found.notes


@pytest.mark.slow
def test_beyond_the_photograph(tmp_path):
    pixels, landmarks, _, _ = head()
    cut = pixels[:, 60:]  # the crop reaches beyond the left edge
    path = save(tmp_path / 'a.png', cut, landmarks - [60, 0])
    kept, white = portrait(path, background='keep'), portrait(path)
    assert (kept.image[:, 1] == 0).all() and (white.image[:, 1] > 250).all()
    assert (kept.mask[:, 1] == 0).all() and kept.mask[64, 64] == 1
    assert kept.quality.parts['inside'] < 0.9 and any('beyond the edge' in s for s in kept.quality.sentences)


# --- photographs ----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_crop_is_the_eg3d_crop(tmp_path):
    pixels, landmarks, _, _ = head(yaw=20.0)
    path = save(tmp_path / 'a.png', pixels, landmarks)
    found = portrait(path, 512, background='keep')
    expected, aligned = eg3d_crop(pixels, five_points(landmarks))
    assert np.abs(found.image.astype(int) - expected).max() <= 1
    assert found.image.dtype == np.uint8 and found.mask.shape == (512, 512)
    # The landmarks sit in the crop where the picture's are.
    small = portrait(path, 128, background='keep')
    np.testing.assert_allclose((small.landmarks + 0.5) * 4 - 0.5, found.landmarks, atol=1e-3)
    scale = aligned.trans_params[2] * 512 / 700
    np.testing.assert_allclose(found.landmarks, (landmarks - landmarks[0]) * scale + found.landmarks[0], atol=1e-2)
    np.testing.assert_allclose(found.points, five_points(found.landmarks), atol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize(('yaw', 'pitch'), [(-25.0, 0.0), (0.0, 10.0), (25.0, 0.0)])
def test_camera_label_from_known_landmarks(tmp_path, yaw, pitch):
    pixels, landmarks, _, angle = head(yaw=yaw, pitch=pitch)
    found = portrait(save(tmp_path / 'a.png', pixels, landmarks), SIZE)
    assert degrees_between(found.label, label_from_pose(angle, np.zeros(3), 'raw')) < 3
    assert abs(np.rad2deg(found.angle[1]) - yaw) < 2
    # The label describes the crop: the mean face seen by this camera lies about where the landmarks are.
    world = transform(STANDARD_POINTS, rotation_matrix(found.angle), found.translation)
    focal = 2985.29 * SIZE / 700
    seen = project(to_camera(world), focal, SIZE / 2)
    seen = np.stack([seen[:, 0], SIZE - seen[:, 1]], -1) - 0.5
    assert np.hypot(*(seen - found.points).T).mean() < 0.12 * eye_distance(found.points)
    made = found.portrait()
    assert made.image.min() >= -1 and made.image.max() <= 1 and made.image.shape == (SIZE, SIZE, 3)
    np.testing.assert_array_equal(made.camera.label, found.label)


@pytest.mark.slow
@pytest.mark.parametrize('points', [None, 5])
def test_everything_travels_with_the_portrait(tmp_path, points):
    """From the picture alone, and from five points that the network completes."""
    pixels, landmarks, _, angle = head(yaw=20.0)
    path = save(tmp_path / 'a.png', pixels, None if points is None else five_points(landmarks))
    found = portrait(path, SIZE)
    made = found.portrait()
    assert made.basis == 'procedural' and made.source == 'a.png'
    assert made.expression.shape == (64,) and made.shape.shape == (80,) and made.mask.shape == (SIZE, SIZE)
    scale = eye_distance(found.points) / eye_distance(five_points(landmarks))
    truth = (landmarks - five_points(landmarks).mean(0)) * scale + found.points.mean(0)
    error = np.linalg.norm(made.landmarks - truth, axis=1).mean() / eye_distance(found.points)
    assert error < 0.06 and degrees_between(found.label, label_from_pose(angle, np.zeros(3), 'raw')) < 5
    np.testing.assert_allclose(made.camera.label, label_from_pose(made.angle, made.translation, 'raw'), atol=1e-5)
    own = found.motion()
    assert own.num_frames == 1 and own.basis == 'procedural' and (own.expression[0] == made.expression).all()
    report = found.report()
    text = json.dumps(report, default=lambda x: x.tolist())
    assert '"grade"' in text and 'prior' in report['limit'] and len(report['sha256']) == 64
    assert report['measured'] == ['landmarks', 'points', 'expression', 'shape', 'angle', 'translation']
    assert len(report['camera_label']) == 25 and report['label_mode'] == 'raw'
    if points == 5:
        np.testing.assert_allclose(
            found.points - found.points[0], (five_points(landmarks) - five_points(landmarks)[0]) * scale, atol=0.1
        )
        assert any('the network read the others in 1 of 1' in note for note in found.notes)


@pytest.mark.slow
def test_aligned_frames_by_the_network(tmp_path):
    """On request an aligned picture is measured like any other, and not moved."""
    pixels, landmarks, _, angle = head(yaw=20.0)
    path = save(tmp_path / 'a.png', pixels)
    plain, found = portrait(path, aligned=True), portrait(path, aligned=True, landmarks='network')
    assert (plain.image == found.image).all() and plain.expression is None and found.expression is not None
    error = np.linalg.norm((found.landmarks + 0.5) * 2 - 0.5 - landmarks, axis=1).mean()
    truth = label_from_pose(angle, np.zeros(3), 'raw')
    assert error < 0.06 * eye_distance(five_points(landmarks))
    assert degrees_between(found.label, truth) < min(4, degrees_between(plain.label, truth))


def scene_of(*placed):
    """White picture with heads at (seed, left, top, side)."""
    canvas = Image.new('RGB', (640, 320), (255, 255, 255))
    for seed, left, top, side in placed:
        canvas.paste(Image.fromarray(head(seed)[0]).resize((side, side), Image.Resampling.LANCZOS), (left, top))
    return np.asarray(canvas)


@pytest.mark.slow
def test_several_faces(tmp_path):
    alike = save(tmp_path / 'alike.png', scene_of((3, 20, 30, 256), (1, 350, 30, 256)))
    with pytest.raises(UserError, match='alike.png: 2 faces of similar size .* choose one with --face'):
        portrait(alike, 64)
    first, second = (portrait(alike, 64, face=i) for i in (1, 2))
    assert np.abs(first.image.astype(int) - second.image).mean() > 5
    assert 'taken: the one at' in second.warnings[0] and 'as asked' in second.warnings[0]
    with pytest.raises(UserError, match='alike.png: there is no face 3, only 1: '):
        portrait(alike, 64, face='3')
    taken = portrait(save(tmp_path / 'unequal.png', scene_of((3, 20, 30, 256), (1, 420, 100, 160))), 64)
    assert '2 faces' in taken.warnings[0] and 'the largest' in taken.warnings[0]


@pytest.mark.slow
def test_no_face(tmp_path):
    noise = np.random.default_rng(0).integers(100, 140, (64, 64, 3), np.uint8)
    with pytest.raises(UserError, match=r'none.png: no face found; .*none.landmarks5.txt'):
        portrait(save(tmp_path / 'none.png', noise))


@pytest.mark.slow
def test_the_network_looks_where_the_cascade_finds_nothing():
    """A face that fills its picture, and one that lies on its side; the reading says what is a face."""
    pixels, landmarks, _, _ = head()
    reader = default_tracker().network
    low, high = landmarks.min(0).astype(int), landmarks.max(0).astype(int)
    tight = np.ascontiguousarray(pixels[low[1] : high[1], low[0] : high[0]])
    lying = np.ascontiguousarray(np.rot90(pixels))  # counter-clockwise: (x, y) -> (y, side - 1 - x)
    turned = np.stack([landmarks[:, 1], SIZE - 1 - landmarks[:, 0]], 1)
    # What lies on its side no build of OpenCV's cascade finds; it may find what fills its picture.
    assert not detect_faces(lying) and find_faces(lying, reader, search=False) == []
    for picture, truth in ((tight, landmarks - low), (lying, turned)):
        ((face, reading),) = find_faces(picture, reader)
        size = eye_distance(five_points(landmarks))
        assert np.linalg.norm(reading.points - 0.5 - truth, axis=1).mean() < 0.12 * size and reading.is_face
        assert np.linalg.norm(face.center - truth.mean(0)) < 0.3 * size
    assert search_faces(np.ascontiguousarray(pixels[:90, :90]), reader, *COARSE) == []
    patterns = reader.around(pixels, landmarks * 0.3 + [0, 160])  # shoulder and background
    assert not patterns.is_face


# --- clips ----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_video_frame_by_frame(tmp_path):
    """Numbers of all frames at once, pictures a few at a time, and the portrait of the best."""
    frames = np.stack([head(yaw=y)[0] for y in (30.0, 20.0, 0.0)])
    path = tmp_path / 'talk.mp4'
    write_video(path, frames, 10)
    np.save(tmp_path / 'talk.landmarks68.npy', np.stack([head(yaw=y)[1] for y in (30.0, 20.0, 0.0)]))
    clip = measure(path, size=64, label_mode='raw')
    assert len(clip) == 3 and clip.fps == 10 and clip.found.all() and clip.start == 0 and len(clip.sha256) == 64
    seen = []
    found = list(clip.frames(on_frame=lambda frame: seen.append(frame.index)))
    assert [m.index for m in found] == seen == [0, 1, 2] and [round(m.time, 3) for m in found] == [0, 0.1, 0.2]
    yaws = [np.rad2deg(m.angle[1]) for m in found]
    np.testing.assert_allclose(yaws, [30, 20, 0], atol=3)
    assert found[0].image.shape == (64, 64, 3) and found[0].landmarks.shape == (68, 2) and found[0].quality is not None
    assert clip.best_frame() == 2 and clip.best().index == 2 and clip.portrait().landmarks is not None
    assert (clip.frame(1).image == found[1].image).all()
    with pytest.raises(UserError, match='has no face in frame 7'):
        clip.frame(7)
    motion = clip.motion('x')
    assert motion.num_frames == 3 and motion.source == 'x' and motion.basis == 'procedural'
    first = measure(path, size=64, label_mode='orig', frames=2)
    assert len(first) == 2 and np.linalg.norm(first.labels[0, [3, 7, 11]]) == pytest.approx(2.7, abs=1e-3)
    given = measure(VideoReader(path), size=64, label_mode='raw', landmarks=tmp_path / 'talk.landmarks68.npy')
    np.testing.assert_allclose(given.labels, clip.labels, atol=1e-6)


# --- mistakes -------------------------------------------------------------------------------------------------------


def test_mistakes_are_one_line(tmp_path):
    pixels, landmarks, _, _ = head()
    path = save(tmp_path / 'a.png', pixels)
    np.savetxt(tmp_path / 'far.txt', five_points(landmarks) + 1000)
    np.savetxt(tmp_path / 'one.txt', np.full((5, 2), 50.0))
    for options, message in [
        ({'background': 'blue'}, 'choose one of white, black, keep'),
        ({'size': 4}, 'at least 16'),
        ({'label_mode': 'own'}, 'choose one of raw, orig'),
        ({'frames': 0}, 'must be at least 1'),
        ({'landmarks': tmp_path / 'far.txt'}, 'do not lie on the picture'),
        ({'landmarks': tmp_path / 'one.txt'}, 'do not lie on the picture'),
        ({'landmarks': tmp_path / 'missing.txt'}, 'no such file'),
        ({'landmarks': tmp_path / 'far.txt', 'aligned': True}, 'do not lie on the picture'),
        ({'face': 'nobody.jpg'}, 'a picture of the person'),
    ]:
        with pytest.raises(UserError, match=message) as caught:
            portrait(path, **options)
        assert '\n' not in str(caught.value)
    with pytest.raises(UserError, match='not one that avatar-jax track wrote'):
        portrait(tmp_path)


def tight(seed, margin, side):
    """A head cut around its landmarks, ``margin`` of their extent around them: (picture, five points)."""
    pixels, landmarks, _, _ = head(seed)
    low, high = landmarks.min(0), landmarks.max(0)
    reach = margin * (high - low)
    left, top, right, bottom = np.rint([*(low - reach), *(high + reach)]).astype(int)
    scale = side / (right - left)
    size = (side, round((bottom - top) * scale))
    cut = Image.fromarray(pixels[top:bottom, left:right]).resize(size, Image.Resampling.BICUBIC)
    return np.asarray(cut), (five_points(landmarks) - [left, top] + 0.5) * scale - 0.5


@pytest.mark.slow
@pytest.mark.parametrize(('seed', 'margin', 'side'), [(3, 0.0, 300), (4, 0.0, 300), (5, 0.05, 200), (6, 0.1, 700)])
def test_faces_that_fill_the_picture_are_found(tmp_path, seed, margin, side):
    pixels, truth = tight(seed, margin, side)
    (face,) = detect_faces(pixels)
    assert np.abs(face.eyes - truth[:2]).max() < 0.15 * eye_distance(truth)
    found = portrait(save(tmp_path / 'tight.png', pixels), size=64)
    assert found.points is not None and found.quality is not None


@pytest.mark.slow
def test_the_second_look_invents_nothing():
    rng = np.random.default_rng(0)
    for side in (64, 200):
        noise = rng.integers(0, 256, (side, side, 3)).astype(np.uint8)
        smooth = np.asarray(Image.fromarray(noise[:8, :8]).resize((side, side), Image.Resampling.BICUBIC))
        stripes = np.repeat(np.where(np.arange(side) % 16 < 8, 40, 200).astype(np.uint8)[None, :, None], side, 0)
        for pixels in (noise, smooth, np.repeat(stripes, 3, 2), np.full((side, side, 3), 128, np.uint8)):
            assert not [f for f in detect_faces(np.ascontiguousarray(pixels)) if f.eyes is not None]


@pytest.mark.skipif(not CASES.is_dir(), reason='the shared cases are not here')
@pytest.mark.slow
def test_shared_tight_crop():
    found = portrait(CASES / 'face_fills_picture.png', size=64)
    assert found.points is not None and found.landmarks is not None
