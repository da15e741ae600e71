"""Five landmarks of a detected face: measured eyes, and mouth and nose where their colours and shadows allow.

The cameras of frames that come aligned rest on them (``track.aligned``); photographs are measured by the landmark
network, which is several times as accurate. Here no network is involved. The eyes come from the cascades; the mouth is
the patch of lip colour below them, the nose is placed by the dark nostrils; what cannot be measured is taken from the
mean face in the most probable pose. Expect errors of several percent of the eye distance; ``FivePoints.sigma`` says how
much each point is trusted.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np

from avatar_jax.faces.alignment import STANDARD_POINTS
from avatar_jax.faces.pose import CAMERA_DISTANCE, project, rotation_matrix, to_camera, transform
from avatar_jax.track.detect import Face, apply, inverse, rotation
from avatar_jax.track.mean_face import fit_pose

# The point between the nostrils on the mean face, decimetres. Its depth is less than the anatomical 0.4, because in a
# turned face the nearer nostril is the darker one and draws the measured point back.
NOSTRILS = np.array([0.0, -0.16, 0.3])
_EYE_DISTANCE = float(STANDARD_POINTS[1, 0] - STANDARD_POINTS[0, 0])  # decimetres
_UNIT = 80  # eye distance in pixels of the patch on which mouth and nose are looked for
_PATCH = (280, 280)  # width, height
_EYES_AT = (140.0, 60.0)
_BOX_EYE_LINE, _BOX_PER_EYES = 0.39, 2.7  # where the cascade's box has the eyes, and its side in eye distances
# Measuring errors in decimetres on the face (x, y); eyes are the reference.
_SIGMA_EYE, _SIGMA_NOSTRILS = (0.02, 0.02), (0.04, 0.08)
_SIGMA_MOUTH = (0.05, 0.2)  # an open mouth is lower than the mean face's
_SIGMA_GUESS = (0.15, 0.15)


@dataclasses.dataclass(frozen=True)
class FivePoints:
    """Landmarks of a face in a photograph.

    Attributes:
        points: [5, 2] pixels, y down: image-left eye, image-right eye, nose tip, image-left and -right mouth corner.
        sigma: [5, 2] estimated error in decimetres on the face (the eye distance is about 0.62).
        source: 'file' or 'detector'.
        measured: names of what was seen; the rest follows from the mean face.
    """

    points: np.ndarray
    sigma: np.ndarray
    source: str
    measured: tuple[str, ...]


def estimate(pixels: np.ndarray, face: Face) -> FivePoints:
    """Five landmarks of ``face`` in the photograph ``pixels`` [H, W, 3] uint8."""
    eyes = face.eyes if face.eyes is not None else _eyes_of_box(face)
    matrix = _upright(eyes)
    patch = _cut(pixels, matrix)
    observed = [apply(matrix, eyes[0]), apply(matrix, eyes[1])]
    model = [STANDARD_POINTS[0], STANDARD_POINTS[1]]
    sigma = [_SIGMA_EYE if face.eyes is not None else _SIGMA_GUESS] * 2
    measured = ['eyes'] if face.eyes is not None else []
    corners = find_mouth(patch)
    if corners is not None:
        observed += list(corners)
        model += [STANDARD_POINTS[3], STANDARD_POINTS[4]]
        sigma += [_SIGMA_MOUTH] * 2
        measured.append('mouth')
    nostrils = find_nostrils(patch, None if corners is None else corners.mean(0))
    if nostrils is not None:
        observed.append(nostrils)
        model.append(NOSTRILS)
        sigma.append(_SIGMA_NOSTRILS)
        measured.append('nostrils')
    if len(observed) == 2:  # eyes alone leave the pose open: the mean mouth, with a large error, keeps it frontal
        observed += [_frontal(STANDARD_POINTS[3]), _frontal(STANDARD_POINTS[4])]
        model += [STANDARD_POINTS[3], STANDARD_POINTS[4]]
        sigma += [_SIGMA_GUESS] * 2
    to_patch = _pose(np.array(observed), np.array(model), np.array(sigma))
    points = to_patch(STANDARD_POINTS)
    points[:2] = observed[:2]
    errors = np.array(
        [sigma[0], sigma[1], _SIGMA_NOSTRILS if nostrils is not None else _SIGMA_GUESS] + 2 * [_SIGMA_GUESS]
    )
    if corners is not None:
        points[3:], errors[3:] = corners, _SIGMA_MOUTH
    return FivePoints(apply(inverse(matrix), points), errors, 'detector', tuple(measured))


def _eyes_of_box(face: Face) -> np.ndarray:
    half = np.array([face.size / _BOX_PER_EYES / 2, 0.0])
    middle = face.center + np.array([0.0, (_BOX_EYE_LINE - 0.5) * face.size])
    return apply(inverse(rotation(face.tilt, face.center)), np.stack([middle - half, middle + half]))


def _upright(eyes: np.ndarray) -> np.ndarray:
    """[2, 3] similarity from the photograph to the patch: eyes level, ``_UNIT`` apart."""
    across = eyes[1] - eyes[0]
    distance, angle = np.hypot(*across), np.arctan2(across[1], across[0])
    linear = rotation(np.rad2deg(angle), np.zeros(2))[:, :2] * (_UNIT / distance)
    return np.concatenate([linear, (np.array(_EYES_AT) - linear @ eyes.mean(0))[:, None]], axis=1)


def _cut(pixels: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """The patch, antialiased: large photographs are reduced before the warp."""
    import cv2

    scale = np.hypot(*matrix[:, 0])
    if scale < 0.5:
        factor = 2 * scale
        size = (max(1, round(pixels.shape[1] * factor)), max(1, round(pixels.shape[0] * factor)))
        ratio = np.array([size[0] / pixels.shape[1], size[1] / pixels.shape[0]])
        pixels = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA)
        matrix = np.concatenate([matrix[:, :2] / ratio, matrix[:, 2:]], axis=1)
    return cv2.warpAffine(pixels, matrix, _PATCH, flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)


def _frontal(point: np.ndarray) -> np.ndarray:
    """Patch pixel of a point of the mean face that looks straight ahead."""
    offset = (point[:2] - STANDARD_POINTS[:2, :2].mean(0)) * (_UNIT / _EYE_DISTANCE)
    return np.array(_EYES_AT) + offset * [1, -1]


def _pose(observed: np.ndarray, model: np.ndarray, sigma: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """Fits the mean face to patch pixels; returns a function from points [N, 3] to patch pixels [N, 2]."""
    focal = CAMERA_DISTANCE * _UNIT / _EYE_DISTANCE
    height = _PATCH[1]
    up = np.stack([observed[:, 0], height - observed[:, 1]], -1)
    center = (_EYES_AT[0], height - _EYES_AT[1])
    # The patch is scaled by the eye distance, which a sideways turn shortens: the size of the face is unknown.
    pose = fit_pose(up, model, focal=focal, center=center, sigma=sigma, depth_spread=2.0)

    def seen(points: np.ndarray) -> np.ndarray:
        camera = to_camera(transform(np.asarray(points, np.float64), rotation_matrix(pose.angle), pose.trans))
        pixels = project(camera, focal, 0.0) + center
        return np.stack([pixels[:, 0], height - pixels[:, 1]], -1)

    return seen


def _against_skin(channel: np.ndarray) -> np.ndarray:
    """How far each pixel lies from the skin between eyes and mouth, in robust standard deviations."""
    left, top = np.array(_EYES_AT, int) + [-40, 20]
    skin = channel[top : top + 40, left : left + 80]
    middle = np.median(skin)
    spread = 1.4826 * np.median(np.abs(skin - middle)) + 1e-3 * (np.abs(middle) + 1e-3)
    return np.clip((channel - middle) / spread, -8, 8)


def find_mouth(patch: np.ndarray) -> np.ndarray | None:
    """Mouth corners in the upright patch: [2, 2] pixels, or None.

    The mouth is the connected patch whose colour is redder than the skin, near where a mouth is expected.
    """
    import cv2

    smooth = cv2.GaussianBlur(patch, (0, 0), 1.5).astype(np.float32)
    red, green = smooth[..., 0], smooth[..., 1]
    hue = red / (red + green + 1.0)
    lab = cv2.cvtColor((smooth / 255.0).clip(0, 1), cv2.COLOR_RGB2LAB)
    redness = 0.5 * (_against_skin(hue) + _against_skin(lab[..., 1]))
    expected = (_frontal(STANDARD_POINTS[3]) + _frontal(STANDARD_POINTS[4])) / 2 + [0, 0.06 * _UNIT]
    ys, xs = np.mgrid[: patch.shape[0], : patch.shape[1]]
    near = np.exp(-0.5 * (((xs - expected[0]) / (0.32 * _UNIT)) ** 2 + ((ys - expected[1]) / (0.30 * _UNIT)) ** 2))
    near[: int(_EYES_AT[1] + 0.68 * _UNIT)] = 0  # nostrils are red as well
    score = np.maximum(redness, 0) * near
    if score.max() < 1.5:
        return None
    level, _ = cv2.threshold((score / score.max() * 255).astype(np.uint8), 0, 255, cv2.THRESH_OTSU)
    mask = (score / score.max() * 255 > max(level * 0.8, 40)).astype(np.uint8)
    mask = cv2.morphologyEx(mask, cv2.MORPH_CLOSE, np.ones((9, 9), np.uint8))  # lips with teeth between them
    count, labels, _, _ = cv2.connectedComponentsWithStats(mask)
    if count < 2:
        return None
    mass = np.array([score[labels == i].sum() for i in range(1, count)])
    mouth = labels == 1 + int(mass.argmax())
    columns = np.nonzero(mouth.any(axis=0))[0]
    width = columns[-1] - columns[0]
    if not 0.38 * _UNIT < width < 1.25 * _UNIT or mass.max() < 0.5 * mass.sum():
        return None
    corners = []
    for inward, column in ((1, columns[0]), (-1, columns[-1])):
        strip = mouth[:, column : column + 4] if inward > 0 else mouth[:, column - 3 : column + 1]
        corners.append([column, np.nonzero(strip)[0].mean()])
    return np.array(corners, float)


def find_nostrils(patch: np.ndarray, mouth: np.ndarray | None) -> np.ndarray | None:
    """The point between the nostrils in the upright patch: [2] pixels, or None.

    Nostrils are small and darker than everything around them, between eyes and mouth.
    """
    import cv2

    gray = cv2.GaussianBlur(cv2.cvtColor(patch, cv2.COLOR_RGB2GRAY), (0, 0), 1.5)
    holes = cv2.morphologyEx(gray, cv2.MORPH_BLACKHAT, cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (21, 13)))
    holes = holes.astype(np.float32)
    middle = np.array(_EYES_AT) if mouth is None else np.array(_EYES_AT) + (mouth - _EYES_AT) * 0.62
    expected = np.array([middle[0], _EYES_AT[1] + 0.70 * _UNIT if mouth is None else middle[1]])
    ys, xs = np.mgrid[: patch.shape[0], : patch.shape[1]]
    near = np.exp(-0.5 * (((xs - expected[0]) / (0.26 * _UNIT)) ** 2 + ((ys - expected[1]) / (0.12 * _UNIT)) ** 2))
    score = holes * near
    if score.max() < 8:  # grey levels
        return None
    score = np.maximum(score - 0.35 * score.max(), 0)
    total = score.sum()
    center = np.array([(xs * score).sum(), (ys * score).sum()]) / total
    spread = np.sqrt(((xs - center[0]) ** 2 * score).sum() / total)
    return center if spread < 0.28 * _UNIT else None
