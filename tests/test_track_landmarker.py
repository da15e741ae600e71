"""The landmarker of real faces: what its networks are given and how their answers are read. The networks are stood in
for by ones that see everything exactly."""

import dataclasses
import zipfile

import numpy as np
import pytest

from avatar_jax.errors import UserError
from avatar_jax.ops.landmark_layouts import FROM_478, MIRROR
from avatar_jax.procedural.expressions import EXPRESSION_NAMES
from avatar_jax.track import face_task, landmarker
from avatar_jax.track.background import separate
from avatar_jax.track.choose import Chooser
from avatar_jax.track.clip import _with_gaze
from avatar_jax.track.face_numbers import GAZE, NUM_FEATURES, FaceNumbers, features, fit_map, mean_offset
from avatar_jax.track.face_task import BLENDSHAPES, READ, Box, FaceTask, Mesh, anchors, decode
from avatar_jax.track.landmarker import LandmarkReader, crop_of
from avatar_jax.track.network import VARIATIONS
from avatar_jax.track.observe import observe
from avatar_jax.track.person_mask import NAME, PersonMask
from avatar_jax.track.tracker import Tracker

SIDE = 256


def ramp():
    """A picture whose colours are its coordinates."""
    y, x = np.mgrid[:SIDE, :SIDE]
    return np.stack([x, y, np.full_like(x, 255)], -1).astype(np.uint8)


def to_crop(crop):
    """[3,2]: from (x, y, 1) of the ramp to pixels of a crop of it."""
    seen = (crop[..., 2] > 250) & (crop[..., :2] > 5).all(-1) & (crop[..., :2] < 250).all(-1)
    y, x = np.nonzero(seen)
    source = np.concatenate([crop[y, x, :2] + 0.5, np.ones((len(x), 1))], 1)
    return np.linalg.lstsq(source, np.stack([x, y], 1) + 0.5, rcond=None)[0]


def face(centre, size, turn=0.0):
    """[68,2] of the mean head."""
    from avatar_jax.procedural import ProceduralHead

    points = np.asarray(ProceduralHead().landmarks(np.zeros(80), np.zeros(64)))[:, :2] * [1, -1]
    points = (points - points.mean(0)) * size
    c, s = np.cos(turn), np.sin(turn)
    return points @ np.array([[c, s], [-s, c]]) + centre


class Seer:
    """Sees faces at known landmarks of the ramp, exactly."""

    sha256 = 'f' * 64

    def __init__(self, *faces):
        self.truth = list(faces)
        self.meshes = 0

    def faces(self, square):
        matrix, out = to_crop(square), []
        for points in self.truth:
            here = np.c_[points, np.ones(68)] @ matrix / face_task.DETECTOR_SIDE
            if (here > 0).all() and (here < 1).all():
                eyes = np.stack([here[36:42].mean(0), here[42:48].mean(0)])
                out.append(Box((here.min(0) + here.max(0)) / 2, np.ptp(here, axis=0), eyes, 0.9))
        return out

    def mesh(self, crop):
        self.meshes += 1
        matrix = to_crop(crop)
        middle = np.linalg.lstsq(matrix[:2].T, np.array([128, 128]) - matrix[2], rcond=None)[0]
        points = min(self.truth, key=lambda p: np.linalg.norm(p.mean(0) - middle))
        here = np.c_[points, np.ones(68)] @ matrix
        if np.linalg.det(matrix[:2]) < 0:  # a mirrored face has its left eye at its right
            here = here[MIRROR]
        dense = np.zeros((478, 3))
        dense[FROM_478, :2] = here
        return Mesh(dense, float(np.linalg.norm(points.mean(0) - middle) < 60))

    @staticmethod
    def blendshapes(points):
        return np.full(52, 0.5)


@pytest.fixture
def seer(monkeypatch):
    def make(*faces):
        eyes = Seer(*faces)
        monkeypatch.setattr(landmarker, 'FaceTask', lambda path: eyes)
        numbers = FaceNumbers(np.zeros((NUM_FEATURES, 64)), np.linspace(-2, 2, 64), np.full(64, 0.1))
        return LandmarkReader('any.task', numbers=numbers), eyes

    return make


@pytest.mark.parametrize('turn', [0.0, 0.6, 2.8])
def test_a_face_is_found_followed_and_mapped_back(seer, turn):
    truth = face((120, 130), 45, turn)
    reader, _ = seer(truth)
    [found] = reader.find(ramp())
    np.testing.assert_allclose(found.points, truth, atol=0.2)
    offset = np.zeros((68, 2))
    offset[:17, 1] = -0.2  # the mesh's outline lies higher: in an upright crop, however the face is turned
    lower = dataclasses.replace(reader.numbers, offset=offset)
    reader.numbers, before = lower, reader.numbers
    down = reader.around(ramp(), truth).points - truth
    eyes = np.linalg.norm(truth[36:42].mean(0) - truth[42:48].mean(0))
    np.testing.assert_allclose(down[:17].mean(0), 0.2 * eyes * np.array([-np.sin(turn), np.cos(turn)]), atol=0.3)
    reader.numbers = before
    careful = reader.around(ramp(), truth + 4, VARIATIONS)
    np.testing.assert_allclose(careful.points, truth, atol=0.2)
    assert found.present == 1 and found.expression.shape == (64,) and found.angle is None
    assert (found.sigma[:17] > 2 * found.sigma[20]).all()
    np.testing.assert_allclose(found.gaze, np.clip(np.linspace(-2, 2, 64)[list(GAZE)], -1, 1))
    crop = np.c_[truth + 0, np.ones(68)] @ np.vstack([crop_of(truth).T])
    assert abs(crop[36:42, 1].mean() - crop[42:48, 1].mean()) < 0.1 and (crop > 20).all() and (crop < 236).all()


def test_the_chosen_face_is_followed_and_lost(seer):
    small, large = face((60, 70), 20), face((170, 150), 35)
    reader, eyes = seer(small, large)
    assert [round(r.points.mean()) for r in reader.find(ramp())] == [160, 65]
    reading, _ = reader.detect(ramp(), Chooser(2))
    np.testing.assert_allclose(reading.points, small, atol=0.2)

    class Frame:
        def __init__(self, time):
            self.time, self.pixels = time, ramp()

    eyes.truth, before = [large], eyes.meshes
    found = observe([Frame(k / 25) for k in range(4)], reader, Chooser('size'))
    assert found.found.all() and found.source == f'face landmarker {"f" * 12}' and np.isfinite(found.gaze).all()
    assert eyes.meshes - before < 12  # one look for each frame that follows
    assert np.isnan(found.angle).all() and np.isfinite(found.expression).all()
    far = reader.around(ramp(), small)
    assert far.present < 0.5 and far.gaze is None


def test_gaze_goes_into_the_motion():
    gaze = np.array([[0.5, 0], [np.nan, np.nan], [0.7, -0.2]])
    out = _with_gaze(np.zeros((3, 64)), gaze, np.array([0.0, 0.04, 0.08]), 0.0)
    np.testing.assert_allclose(out[:, list(GAZE)], [[0.5, 0], [0.6, -0.1], [0.7, -0.2]])
    assert not out[:, :40].any() and not _with_gaze(np.zeros((3, 64)), gaze * np.nan, np.arange(3.0), 1.0).any()


def test_features_and_map():
    points = np.zeros((478, 3))
    points[[33, 133, 468]] = [[0, 0, 0], [10, 0, 0], [7, -1, 0]]
    points[[362, 263, 473]] = [[20, 0, 0], [30, 0, 0], [25, 0, 0]]
    points[[234, 454]] = [[-10, 0, -3], [10, 0, 17]]
    points[[10, 152]] = [[0, 0, 0], [0, 30, 0]]
    found = features(np.arange(52) / 52, points)
    np.testing.assert_allclose(found[52:], [0.4, 0.2, 0, 0, np.pi / 4, 0], atol=1e-9)
    rng = np.random.default_rng(0)
    values, weight = rng.normal(size=(400, NUM_FEATURES)), rng.normal(size=(NUM_FEATURES, 64))
    got = fit_map(values, values @ weight + 3 + rng.normal(0, 0.1, (400, 64)), 100, ridge=1e-6)
    np.testing.assert_allclose(got.weight, weight, atol=0.05)
    np.testing.assert_allclose(got.error, 0.11, atol=0.03)
    known = rng.normal(size=(5, 68, 2)) + np.arange(68)[:, None]
    eyes = np.array([np.linalg.norm(p[36:42].mean(0) - p[42:48].mean(0)) for p in known])[:, None, None]
    offset = rng.normal(0, 0.1, (68, 2))
    offset = (offset + offset[MIRROR] * [-1, 1]) / 2
    np.testing.assert_allclose(mean_offset(known + eyes * offset, known), offset, atol=1e-9)
    shipped = FaceNumbers.shipped()
    assert shipped.offset.shape == (68, 2) and np.abs(shipped.offset[36:48]).max() < 0.1
    assert shipped.weight.shape == (NUM_FEATURES, 64)
    # What the names promise: blinks close the eye of their side, and so on.
    for ours, theirs in (('blink_l', 'eyeBlinkRight'), ('blink_r', 'eyeBlinkLeft'), ('jaw_open', 'jawOpen')):
        change = shipped.weight[BLENDSHAPES.index(theirs), EXPRESSION_NAMES.index(ours)]
        assert change > 0.1, (ours, change)
    assert shipped.weight[[52, 54], GAZE[0]].sum() > 0.1  # irises to the right


def test_boxes_of_anchors():
    assert anchors().shape == (896, 2) and anchors()[:3].tolist() == [[1 / 32] * 2, [1 / 32] * 2, [3 / 32, 1 / 32]]
    assert anchors()[512].tolist() == [1 / 16, 1 / 16] and anchors()[-1].tolist() == [15 / 16, 15 / 16]
    boxes, scores = np.zeros((896, 16)), np.full(896, -9.0)
    row = np.array([4, 0, 32, 16, -8, -4, 8, -4, *[0] * 8], float)
    for place, score in ((300, 2.0), (301, 2.0), (700, 1.0)):
        boxes[place], scores[place] = row, score
    boxes[300, 0], boxes[301, 0] = 2, 6
    first, other = decode(boxes, scores)
    np.testing.assert_allclose(first.centre, anchors()[300] + [4 / 128, 0])
    np.testing.assert_allclose(first.size, [0.25, 0.125])
    np.testing.assert_allclose(first.eyes - anchors()[300], [[-8 / 128, -4 / 128], [8 / 128, -4 / 128]])
    assert first.sure == pytest.approx(0.8808, abs=1e-4) and other.sure < first.sure
    assert decode(boxes, np.full(896, -1.0)) == []


def test_what_the_networks_are_given(monkeypatch, tmp_path):
    given = []

    class Network:
        def __init__(self, *answers):
            self.answers = answers

        def setInput(self, value):
            given.append(value)

        def forward(self, names=None):
            return self.answers if names else self.answers[0]

    mesh = np.arange(1434.0).reshape(1, 1434, 1, 1)
    networks = (
        Network(np.zeros((1, 896, 16)), np.full((1, 896, 1), -9.0)),
        Network(mesh, np.zeros((1, 1, 1, 1))),
        Network(np.arange(52.0)[:, None]),
    )
    monkeypatch.setattr(face_task, '_networks', lambda path, sha256: networks)
    (tmp_path / 'a.task').write_bytes(b'any')
    task = FaceTask(tmp_path / 'a.task')
    white = np.full((128, 128, 3), 255, np.uint8)
    assert task.faces(white) == [] and given[-1].shape == (1, 3, 128, 128) and given[-1].min() == 1
    found = task.mesh(np.zeros((256, 256, 3), np.uint8))
    assert found.points[1].tolist() == [3, 4, 5] and found.present == 0.5 and given[-1].max() == 0
    assert task.blendshapes(np.arange(1434.0).reshape(478, 3))[51] == 51
    assert given[-1].shape == (1, 146, 2) and given[-1][0, 1].tolist() == [3 * READ[1], 3 * READ[1] + 1]
    assert len(BLENDSHAPES) == 52 and len(set(READ.tolist())) == 146


def test_files_that_are_none(tmp_path):
    path = tmp_path / 'a.task'
    with pytest.raises(UserError, match='no such file'):
        FaceTask(path)
    path.write_bytes(b'something else')
    with pytest.raises(UserError, match='is not a MediaPipe task file'):
        FaceTask(path)
    with zipfile.ZipFile(path, 'w') as archive:
        for name in ('face_detector.tflite', 'face_landmarks_detector.tflite', 'face_blendshapes.tflite'):
            archive.writestr(name, b'no network')
    with pytest.raises(UserError, match=r'OpenCV .* cannot run its networks; .* --mediapipe none'):
        Tracker(mediapipe=path)


def test_the_file_is_used_where_it_is(seer, monkeypatch, tmp_path):
    _, eyes = seer(face((120, 130), 45))
    assert Tracker().name.startswith('face_net')
    monkeypatch.setattr(
        'avatar_jax.track.tracker.located', lambda name: tmp_path / 'a.task' if name == 'face-landmarker' else None
    )
    assert Tracker().reader.task is eyes and Tracker().name.startswith('face landmarker ffff')
    assert Tracker(mediapipe='none').name.startswith('face_net')


# --------------------------------------------------------------------------------------------------------------- masks


def test_the_mask_is_the_person_at_the_landmarks(monkeypatch, tmp_path):
    import cv2

    answer = np.zeros((1, 1, 256, 256))
    given = []

    class Network:
        def setInput(self, value):
            given.append(value)

        def forward(self):
            return answer

    monkeypatch.setattr(cv2.dnn, 'readNetFromTFLite', lambda data: Network())
    (tmp_path / 'a.tflite').write_bytes(b'any')
    masker = PersonMask(tmp_path / 'a.tflite')
    picture = np.random.default_rng(0).integers(0, 255, (128, 128, 3)).astype(np.uint8)
    five = np.array([[52.0, 56], [76, 56], [64, 68], [56, 80], [72, 80]])
    answer[..., 60:256, 60:196] = 0.9
    answer[..., 100:200, 220:250] = 0.9  # somebody else
    answer[..., 10:20, 10:20] = 0.5
    mask = masker.masks(picture[None])[0]
    assert given[-1].shape == (1, 3, 256, 256) and 0 < given[-1].max() <= 1
    assert mask[64, 64] == 1 and mask[75, 118] == 1 and abs(mask[7, 7] - 0.5) < 0.05 and mask[2, 60] == 0
    matte = separate(picture, np.ones((128, 128)), five, masker)
    assert matte.trusted and matte.made_by == NAME and matte.alpha[64, 64] == 1
    assert matte.alpha[75, 118] == 0 and matte.alpha[7, 7] == 0
    answer[:] = 0
    assert separate(picture, np.ones((128, 128)), five, masker).made_by != NAME


def test_a_file_that_is_no_network(tmp_path):
    (tmp_path / 'a.tflite').write_bytes(b'no network')
    with pytest.raises(UserError, match='cannot run this network'):
        PersonMask(tmp_path / 'a.tflite')
