"""Photographs: on pictures made here, where faces, landmarks, cameras and masks are known."""

import functools
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from avatar_jax.errors import UserError
from avatar_jax.faces.alignment import STANDARD_POINTS, eg3d_crop, five_points
from avatar_jax.faces.camera_labels import canonical_label, label_from_pose
from avatar_jax.faces.pose import project, rotation_matrix, to_camera, transform
from avatar_jax.photo import prepare
from avatar_jax.photo.background import separate
from avatar_jax.photo.detect import apply, detect_faces, inverse, overlap, rotation
from avatar_jax.photo.points import FivePoints, estimate
from avatar_jax.photo.pose import crop_label, crop_pose, fit_pose
from avatar_jax.photo.quality import assess
from avatar_jax.procedural import render_head, sample_identity

CASES = Path(__file__).parents[1] / '../shared/cases'
SIZE = 256


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
    return np.rint(255 * np.clip(image.rgb, 0, 1)).astype(np.uint8), image.landmarks, image.mask, angle


def save(path, pixels, landmarks=None):
    Image.fromarray(pixels).save(path)
    if landmarks is not None:
        np.savetxt(path.with_name(path.stem + f'.landmarks{len(landmarks)}.txt'), landmarks)
    return path


def eye_distance(points):
    return np.hypot(*(points[1] - points[0]))


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


def test_crop_is_the_eg3d_crop(tmp_path):
    pixels, landmarks, _, _ = head(yaw=20.0)
    path = save(tmp_path / 'a.png', pixels, five_points(landmarks))
    prepared = prepare(path, size=512, background='keep')
    expected, aligned = eg3d_crop(pixels, five_points(landmarks))
    assert np.abs(prepared.image.astype(int) - expected).max() <= 1
    assert prepared.image.dtype == np.uint8 and prepared.mask.shape == (512, 512)
    # The landmarks sit in the crop where the picture's are: the same point seen in both has the same colour around it.
    small = prepare(path, size=128, background='keep')
    np.testing.assert_allclose((small.points + 0.5) * 4 - 0.5, prepared.points, atol=1e-6)
    np.testing.assert_allclose(
        prepared.points,
        (five_points(landmarks) - five_points(landmarks)[0]) * prepared_scale(aligned) + prepared.points[0],
        atol=1e-3,
    )


def prepared_scale(aligned):
    return aligned.trans_params[2] * 512 / 700


@pytest.mark.parametrize(('yaw', 'pitch'), [(-25.0, 0.0), (0.0, 10.0), (25.0, 0.0)])
def test_camera_label_from_known_landmarks(tmp_path, yaw, pitch):
    pixels, landmarks, _, angle = head(yaw=yaw, pitch=pitch)
    prepared = prepare(save(tmp_path / 'a.png', pixels, landmarks), size=SIZE, label_mode='raw')
    found = prepared.label[:16].reshape(4, 4)[:3, :3]
    truth = label_from_pose(angle, np.zeros(3), 'raw')[:16].reshape(4, 4)[:3, :3]
    error = np.rad2deg(np.arccos(np.clip((np.trace(found.T @ truth) - 1) / 2, -1, 1)))
    assert error < 9  # the shape of this one face differs from the mean face
    assert abs(np.rad2deg(prepared.pose.angle[1]) - yaw) < 6
    # The label describes the crop: the mean face seen by this camera lies on the landmarks.
    world = transform(STANDARD_POINTS, rotation_matrix(prepared.pose.angle), prepared.pose.trans)
    focal = 2985.29 * SIZE / 700
    seen = project(to_camera(world), focal, SIZE / 2)
    seen = np.stack([seen[:, 0], SIZE - seen[:, 1]], -1) - 0.5
    assert np.hypot(*(seen - prepared.points).T).mean() < 0.12 * eye_distance(prepared.points)
    portrait = prepared.portrait()
    assert portrait.image.min() >= -1 and portrait.image.max() <= 1 and portrait.image.shape == (SIZE, SIZE, 3)
    np.testing.assert_array_equal(portrait.camera.label, prepared.label)


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


def test_background_is_separated_and_white_is_left_alone(tmp_path):
    pixels, landmarks, mask, _ = head()
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:SIZE, :SIZE]
    wall = np.stack([60 + 0.2 * x, 110 + 0.1 * y, 150 - 0.1 * x], -1) + rng.normal(0, 3, (SIZE, SIZE, 1))
    scene = np.rint(pixels * mask[..., None] + wall * (1 - mask[..., None])).clip(0, 255).astype(np.uint8)
    points = five_points(landmarks).astype(float)
    matte = separate(scene, np.ones((SIZE, SIZE)), points)
    person, truth = matte.alpha > 0.5, mask > 0.5
    assert matte.trusted and (person & truth).sum() / (person | truth).sum() > 0.9
    white = separate(pixels, np.ones((SIZE, SIZE)), points)
    assert white.trusted and (white.alpha == 1).all() and 'already' in white.method
    prepared = prepare(save(tmp_path / 'a.png', scene, points), size=128)
    assert prepared.image[2, 2].min() > 250 and prepared.mask[2, 2] < 0.02
    assert prepared.mask[64, 64] > 0.98 and any('GrabCut' in note for note in prepared.notes)


def test_transparency_of_the_file_is_used(tmp_path):
    pixels, landmarks, mask, _ = head()
    alpha = np.rint(255 * mask).astype(np.uint8)
    red = np.where(mask[..., None] > 0.5, pixels, np.uint8([200, 0, 0]))
    Image.fromarray(np.dstack([red, alpha])).save(tmp_path / 'a.png')
    np.savetxt(tmp_path / 'a.landmarks5.txt', five_points(landmarks))
    prepared = prepare(tmp_path / 'a.png', size=128)
    assert prepared.image[2, 2].min() == 255 and prepared.mask[2, 2] == 0 and prepared.mask[64, 64] == 1
    assert "background from the file's transparency" in prepared.notes


def test_beyond_the_photograph(tmp_path):
    pixels, landmarks, _, _ = head()
    cut = pixels[:, 60:]  # the crop reaches beyond the left edge
    path = save(tmp_path / 'a.png', cut, five_points(landmarks) - [60, 0])
    kept, white = prepare(path, size=128, background='keep'), prepare(path, size=128)
    assert (kept.image[:, 1] == 0).all() and (white.image[:, 1] > 250).all()
    assert (kept.mask[:, 1] == 0).all() and kept.mask[64, 64] == 1
    assert kept.quality.parts['coverage'] < 0.9 and any('beyond the edge' in s for s in kept.quality.sentences)


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
    found = prepare(save(tmp_path / 'tight.png', pixels), size=64)
    assert found.points is not None and any('beyond the edge' in s for s in found.quality.sentences)


@pytest.mark.slow
def test_the_second_look_invents_nothing():
    rng = np.random.default_rng(0)
    for side in (64, 200):
        noise = rng.integers(0, 256, (side, side, 3)).astype(np.uint8)
        smooth = np.asarray(Image.fromarray(noise[:8, :8]).resize((side, side), Image.Resampling.BICUBIC))
        stripes = np.repeat(np.where(np.arange(side) % 16 < 8, 40, 200).astype(np.uint8)[None, :, None], side, 0)
        for pixels in (noise, smooth, np.repeat(stripes, 3, 2), np.full((side, side, 3), 128, np.uint8)):
            assert not [f for f in detect_faces(np.ascontiguousarray(pixels)) if f.eyes is not None]


def scene_of(*placed):
    """White picture with heads at (left, top, side)."""
    canvas = Image.new('RGB', (640, 320), (255, 255, 255))
    for seed, left, top, side in placed:
        canvas.paste(Image.fromarray(head(seed)[0]).resize((side, side), Image.Resampling.LANCZOS), (left, top))
    return np.asarray(canvas)


@pytest.mark.slow
def test_several_faces(tmp_path):
    alike = save(tmp_path / 'alike.png', scene_of((3, 20, 30, 256), (1, 350, 30, 256)))
    with pytest.raises(UserError, match='2 faces of similar size .* choose one with --face'):
        prepare(alike, size=64)
    first, second = (prepare(alike, size=64, face=i) for i in (1, 2))
    assert np.abs(first.image.astype(int) - second.image).mean() > 5
    with pytest.raises(UserError, match='there is no face 3'):
        prepare(alike, size=64, face=3)
    taken = prepare(save(tmp_path / 'unequal.png', scene_of((3, 20, 30, 256), (1, 420, 100, 160))), size=64)
    assert '2 faces, the largest was taken' in taken.warnings[0]
    assert np.abs(first.image.astype(int) - taken.image).mean() < 5


def test_no_face_and_aligned_frames(tmp_path):
    noise = np.random.default_rng(0).integers(100, 140, (128, 128, 3), np.uint8)
    path = save(tmp_path / 'none.png', noise)
    with pytest.raises(UserError, match='no face found; .*none.landmarks5.txt'):
        prepare(path)
    frame = prepare(path, size=64, aligned=True)
    np.testing.assert_allclose(frame.label, canonical_label(), atol=1e-6)
    assert 'camera is taken as frontal' in frame.warnings[0] and frame.quality is None and frame.points is None
    pixels, landmarks, _, _ = head(yaw=20.0)
    aligned = prepare(save(tmp_path / 'head.png', pixels, landmarks), size=128, aligned=True)
    np.testing.assert_allclose((aligned.points + 0.5) * 2 - 0.5, five_points(landmarks), atol=1e-3)
    assert abs(np.rad2deg(aligned.pose.angle[1]) - 20) < 7
    with pytest.raises(UserError, match='aligned frame is square'):
        prepare(save(tmp_path / 'wide.png', pixels[:200]), aligned=True)


def test_mistakes_are_one_line(tmp_path):
    pixels, landmarks, _, _ = head()
    path = save(tmp_path / 'a.png', pixels)
    np.savetxt(tmp_path / 'far.txt', five_points(landmarks) + 1000)
    np.savetxt(tmp_path / 'one.txt', np.full((5, 2), 50.0))
    for options, message in [
        ({'background': 'blue'}, 'choose one of white, keep'),
        ({'size': 4}, 'at least 16'),
        ({'landmarks': tmp_path / 'far.txt'}, 'do not lie on the picture'),
        ({'landmarks': tmp_path / 'one.txt'}, 'do not lie on the picture'),
        ({'landmarks': tmp_path / 'missing.txt'}, 'no such file'),
    ]:
        with pytest.raises(UserError, match=message) as caught:
            prepare(path, **options)
        assert '\n' not in str(caught.value)


def test_quality_falls_with_each_defect():
    points = FivePoints(np.zeros((5, 2)), np.full((5, 2), 0.02), 'file', ())
    scale = 300 * SIZE / 700
    good = np.stack([STANDARD_POINTS[:, 0] * scale + SIZE / 2, SIZE / 2 - STANDARD_POINTS[:, 1] * scale], -1)
    pose = crop_pose(good, SIZE)
    best = assess(points, pose, enlarged=0.8, outside=0.0)
    assert best.score > 0.95 and best.grade == 'good'
    odd = crop_pose(good + [[0, 0], [0, 0], [25, 0], [-20, 20], [20, -20]], SIZE)
    turned = crop_pose(good + np.array([[9, 0], [2, 0], [40, 0], [16, 0], [4, 0]]), SIZE)
    assert assess(points, odd, 0.8, 0.0).parts['fit'] < 0.6
    assert assess(points, pose, 4.0, 0.0).parts['resolution'] < 0.5
    assert assess(points, pose, 0.8, 0.3).parts['coverage'] < 0.5
    assert assess(points, turned, 0.8, 0.0).parts['pose'] < 1.0
    guessed = FivePoints(np.zeros((5, 2)), np.full((5, 2), 0.15), 'detector', ('eyes',))
    worse = assess(guessed, pose, 0.8, 0.0)
    assert worse.parts['landmarks'] < 0.8 and any('seen: eyes' in s for s in worse.sentences)
    assert assess(points, odd, 6.0, 0.4).grade == 'poor'


def test_report_is_plain_and_honest(tmp_path):
    from avatar_jax.io.atomic import json_text

    pixels, _, _, _ = head()
    prepared = prepare(save(tmp_path / 'a.png', pixels), size=64)
    report = prepared.report()
    text = json_text(report)
    assert '"grade"' in text and 'rough estimate' in text and 'prior' in report['limit']
    assert len(report['sha256']) == 64 and len(report['camera_label']) == 25


@pytest.mark.skipif(not CASES.is_dir(), reason='the shared cases are not here')
def test_shared_tight_crop():
    found = prepare(CASES / 'face_fills_picture.png', size=64)
    assert found.points is not None and found.quality.parts['fit'] > 0.5
