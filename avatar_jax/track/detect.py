"""Faces and eyes in a photograph, with the cascades that ship inside ``opencv-python-headless``.

Viola-Jones cascades are old, small and offline; they find upright, roughly frontal faces. Tilted heads are found by
turning the picture, those that fill it by a second look with a border around it; faces turned far to the side are not
found. ``detect_faces`` says what it found and how sure it is, and leaves the choice to the caller: ``track.search`` has
the landmark network judge, and look by itself.
"""

from __future__ import annotations

import dataclasses
import functools

import numpy as np

from avatar_jax.errors import UserError

WORK_SIDE = 1280  # detection runs on a copy of at most this size
MIN_FACE = 0.06  # of the shorter side of the picture
TILTS = (0.0, -25.0, 25.0, -50.0, 50.0)  # degrees; the picture is turned only until faces with eyes are found
# A second look for faces that fill the picture: on a copy of this side with borders (share of the longer side, tilt);
# how large they must be (share of the shorter side), and up to how many votes for eyes of a smaller one it is worth it.
FILLING_SIDE, FILLING, DOUBTFUL_VOTES = 480, 0.5, 3
LOOKS = ((0.25, 0.0), (0.4, 0.0), *((0.25, tilt) for tilt in TILTS[1:]))
_SCALE_STEP, _NEIGHBOURS = 1.1, 4
_EYE_PATCH = 320  # side of the upright face patch on which eyes are looked for


@dataclasses.dataclass(frozen=True)
class Face:
    """A face in a photograph.

    Attributes:
        box: (x, y, width, height) in pixels of the photograph. For a tilted face the upright square around it.
        tilt: degrees by which the picture had to be turned counter-clockwise to bring the face upright.
        score: weight of the cascade's last stage; below about 3 is doubtful.
        eyes: [2, 2] pixels (x, y) of the image-left and image-right eye, or None where no pair was found.
        eye_votes: how many cascade hits support the eye pair.
    """

    box: tuple[float, float, float, float]
    tilt: float
    score: float
    eyes: np.ndarray | None
    eye_votes: int = 0

    @property
    def center(self) -> np.ndarray:
        """[2] centre of the box."""
        x, y, width, height = self.box
        return np.array([x + width / 2, y + height / 2])

    @property
    def size(self) -> float:
        """Side of the box in pixels."""
        return max(self.box[2:])


@functools.cache
def _cascade(name: str):
    import cv2

    path = cv2.data.haarcascades + f'haarcascade_{name}.xml'
    cascade = cv2.CascadeClassifier(path)
    if cascade.empty():
        raise UserError(f'{path}: the face detector is missing; install opencv-python-headless>=4.8,<5')
    return cascade


def rotation(degrees: float, center: np.ndarray) -> np.ndarray:
    """[2, 3] matrix that turns pixels counter-clockwise (as seen) about ``center``."""
    angle = np.deg2rad(degrees)
    turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])  # y points down
    return np.concatenate([turn, (center - turn @ center)[:, None]], axis=1)


def apply(matrix: np.ndarray, points: np.ndarray) -> np.ndarray:
    """[2, 3] affine map of points [..., 2]."""
    return points @ matrix[:, :2].T + matrix[:, 2]


def inverse(matrix: np.ndarray) -> np.ndarray:
    """[2, 3] inverse of an affine map."""
    linear = np.linalg.inv(matrix[:, :2])
    return np.concatenate([linear, -(linear @ matrix[:, 2])[:, None]], axis=1)


def detect_faces(pixels: np.ndarray) -> list[Face]:
    """All faces of a photograph, largest first.

    Args:
        pixels: [H, W, 3] uint8.
    """
    import cv2

    scale = min(1.0, WORK_SIDE / max(pixels.shape[:2]))
    size = (max(1, round(pixels.shape[1] * scale)), max(1, round(pixels.shape[0] * scale)))
    gray = cv2.cvtColor(cv2.resize(pixels, size, interpolation=cv2.INTER_AREA), cv2.COLOR_RGB2GRAY)
    found: list[Face] = []
    for tilt in TILTS:
        found = _merge(found + [_unscale(face, scale) for face in _detect_turned(gray, tilt)])
        if any(face.eyes is not None for face in found):
            break
    votes = max((face.eye_votes for face in found), default=0)
    if votes <= DOUBTFUL_VOTES and max((f.size for f in found if f.eyes is not None), default=0) < _least(pixels):
        filling = [face for face in _filling(pixels) if face.eye_votes > votes]
        found = filling or found  # what was seen within one is a part of it
    return sorted(found, key=lambda face: -face.size)


def _least(pixels: np.ndarray) -> float:
    return FILLING * min(pixels.shape[:2])


def _filling(pixels: np.ndarray) -> list[Face]:
    """Faces with eyes that fill a picture, which the cascade finds only with something around them."""
    import cv2

    height, width = pixels.shape[:2]
    scale = min(1.0, FILLING_SIDE / max(height, width))
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    gray = cv2.cvtColor(cv2.resize(pixels, size, interpolation=cv2.INTER_AREA), cv2.COLOR_RGB2GRAY)
    for share, tilt in LOOKS:
        border = round(share * max(size))
        framed = cv2.copyMakeBorder(gray, *[border] * 4, cv2.BORDER_REPLICATE)
        faces = [_moved(_unscale(face, scale), -border / scale) for face in _detect_turned(framed, tilt, _least(gray))]
        faces = [f for f in faces if f.eyes is not None and _within(np.vstack([f.center, f.eyes]), (width, height))]
        if faces:
            return faces
    return []


def _within(points: np.ndarray, size: tuple[int, int]) -> bool:
    return bool(((points >= 0) & (points < size)).all())


def _moved(face: Face, by: float) -> Face:
    x, y, width, height = face.box
    return dataclasses.replace(
        face, box=(x + by, y + by, width, height), eyes=None if face.eyes is None else face.eyes + by
    )


def _detect_turned(gray: np.ndarray, tilt: float, least: float = 0.0) -> list[Face]:
    import cv2

    height, width = gray.shape
    center = np.array([width / 2, height / 2])
    matrix = rotation(tilt, center)
    if tilt:
        corners = apply(matrix, np.array([[0, 0], [width, 0], [0, height], [width, height]], float))
        low, high = corners.min(0), corners.max(0)
        matrix[:, 2] -= low
        turned = cv2.warpAffine(gray, matrix, tuple(np.ceil(high - low).astype(int)), borderMode=cv2.BORDER_REPLICATE)
    else:
        turned = gray
    smallest = max(24, int(max(least, MIN_FACE * min(height, width))))
    boxes, _, weights = _cascade('frontalface_alt2').detectMultiScale3(
        turned, _SCALE_STEP, _NEIGHBOURS, minSize=(smallest, smallest), outputRejectLevels=True
    )
    back, faces = inverse(matrix), []
    for box, weight in zip(np.reshape(boxes, (-1, 4)), np.ravel(weights), strict=True):
        x, y, side = float(box[0]), float(box[1]), float(box[2])
        middle = apply(back, np.array([x + side / 2, y + side / 2]))
        if not ((middle >= 0) & (middle <= [width, height])).all():
            continue  # in the replicated border
        eyes, votes = find_eyes(turned, (x, y, side))
        faces.append(
            Face(
                box=(middle[0] - side / 2, middle[1] - side / 2, side, side),
                tilt=tilt,
                score=float(weight),
                eyes=None if eyes is None else apply(back, eyes),
                eye_votes=votes,
            )
        )
    return faces


def _unscale(face: Face, scale: float) -> Face:
    eyes = None if face.eyes is None else face.eyes / scale
    return dataclasses.replace(face, box=tuple(v / scale for v in face.box), eyes=eyes)


def overlap(a: tuple[float, ...], b: tuple[float, ...]) -> float:
    """Intersection over union of two boxes (x, y, width, height)."""
    width = max(0.0, min(a[0] + a[2], b[0] + b[2]) - max(a[0], b[0]))
    height = max(0.0, min(a[1] + a[3], b[1] + b[3]) - max(a[1], b[1]))
    common = width * height
    return common / (a[2] * a[3] + b[2] * b[3] - common)


def _merge(faces: list[Face]) -> list[Face]:
    """One entry per face: of overlapping ones, that with eyes, then the surer one."""
    kept: list[Face] = []
    for face in sorted(faces, key=lambda f: (-f.eye_votes, -f.score)):
        if all(overlap(face.box, other.box) < 0.3 for other in kept):
            kept.append(face)
    return kept


def find_eyes(gray: np.ndarray, box: tuple[float, float, float]) -> tuple[np.ndarray | None, int]:
    """The pair of eyes inside an upright face box.

    Three cascades vote; a pair must lie at plausible places of the box. Positions are refined on the dark iris.

    Args:
        gray: [H, W] uint8.
        box: x, y, side of the face.

    Returns:
        ([2, 2] pixels of the image-left and image-right eye or None, number of votes for them).
    """
    import cv2

    x, y, side = box
    scale = _EYE_PATCH / side
    matrix = np.array([[scale, 0, -x * scale], [0, scale, -y * scale]])
    patch = cv2.warpAffine(
        gray, matrix, (_EYE_PATCH, _EYE_PATCH), flags=cv2.INTER_AREA, borderMode=cv2.BORDER_REPLICATE
    )
    upper = patch[: int(0.66 * _EYE_PATCH)]
    hits = []  # (x, y, width, left or right) in units of the box
    for name, sides in (
        ('eye_tree_eyeglasses', 'lr'),
        ('eye', 'lr'),
        ('lefteye_2splits', 'r'),  # the person's left eye is on the image's right
        ('righteye_2splits', 'l'),
    ):
        low, high = int(0.12 * _EYE_PATCH), int(0.42 * _EYE_PATCH)
        for ex, ey, ew, eh in _cascade(name).detectMultiScale(upper, 1.05, 3, minSize=(low, low), maxSize=(high, high)):
            cx, cy = (ex + ew / 2) / _EYE_PATCH, (ey + eh / 2) / _EYE_PATCH
            which = 'l' if cx < 0.5 else 'r'
            if which in sides and 0.2 < cy < 0.58 and 0.08 < cx < 0.92:
                hits.append((cx, cy, which))
    left = [np.array(h[:2]) for h in hits if h[2] == 'l']
    right = [np.array(h[:2]) for h in hits if h[2] == 'r']
    best, votes = None, 0
    for a in left:
        for b in right:
            across = b - a
            if not 0.24 < across[0] < 0.62 or abs(across[1]) > 0.5 * across[0]:
                continue
            near_a = [p for p in left if np.hypot(*(p - a)) < 0.07]
            near_b = [p for p in right if np.hypot(*(p - b)) < 0.07]
            if len(near_a) + len(near_b) > votes:
                best, votes = np.stack([np.mean(near_a, 0), np.mean(near_b, 0)]), len(near_a) + len(near_b)
    if best is None:
        return None, 0
    refined = np.stack([_iris(patch, eye * _EYE_PATCH) for eye in best])
    return apply(inverse(matrix), refined), votes


def _iris(patch: np.ndarray, guess: np.ndarray, radius: int = 18, reach: float = 9.0) -> np.ndarray:
    """Moves an eye position to the point that most dark-to-bright edges around it radiate from.

    Args:
        patch: [H, W] face patch.
        guess: (x, y) in the patch.
        radius: half side of the window whose edges vote.
        reach: standard deviation in pixels of the distance from the guess.
    """
    import cv2

    x, y = np.rint(guess).astype(int)
    window = patch[max(0, y - radius) : y + radius + 1, max(0, x - radius) : x + radius + 1]
    origin = np.array([max(0, x - radius), max(0, y - radius)])
    if min(window.shape) < radius:
        return guess
    smooth = cv2.GaussianBlur(window.astype(np.float32), (0, 0), 1.5)
    gx, gy = cv2.Sobel(smooth, cv2.CV_32F, 1, 0), cv2.Sobel(smooth, cv2.CV_32F, 0, 1)
    length = np.hypot(gx, gy)
    strong = length > np.percentile(length, 70)
    ys, xs = np.nonzero(strong)
    directions = np.stack([gx[strong], gy[strong]], 1) / length[strong][:, None]
    grid_y, grid_x = np.mgrid[: window.shape[0], : window.shape[1]]
    to_edge = np.stack([xs, ys], 1)[None, None] - np.stack([grid_x, grid_y], -1)[:, :, None]
    distance = np.linalg.norm(to_edge, axis=-1) + 1e-6
    agreement = np.maximum((to_edge * directions).sum(-1) / distance, 0.0) ** 2
    darkness = (255.0 - smooth) / 255.0
    prior = np.exp(-((grid_x + origin[0] - guess[0]) ** 2 + (grid_y + origin[1] - guess[1]) ** 2) / (2 * reach**2))
    votes = cv2.GaussianBlur((agreement.mean(-1) * darkness * prior).astype(np.float32), (0, 0), 2.0)
    row, column = np.unravel_index(votes.argmax(), votes.shape)
    return origin + np.array([column, row], float)
