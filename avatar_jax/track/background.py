"""Separating a head from its background in the aligned crop: with a network that knows people, else with GrabCut.

The shipped prior has only seen heads before white. GrabCut (colour models and a graph cut, seeded with where the
alignment puts head and shoulders) is a simple method without a network: hair that resembles the background, hands and
busy backgrounds come out wrong in places. Reports call it what it is; a picture with its own transparency is better.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from avatar_jax.track.person_mask import NAME, PersonMask

_WORK = 320  # side of the picture on which the cut is made
_ITERATIONS = 4
_WHITE = 244  # a border this bright is a white background already
_FEATHER = 1.2  # pixels of the working picture over which the edge is soft
_PLAIN, _SAME = 6.0, 8.0  # Lab units: spread of a plain background's corners, distance that still is the same colour


@dataclasses.dataclass(frozen=True)
class Matte:
    """Foreground of an aligned crop.

    Attributes:
        alpha: [S, S] float32 in [0, 1], 1 is the person.
        made_by: how it was made, for reports.
        trusted: False when the result is implausible; the background should then be kept.
    """

    alpha: np.ndarray
    made_by: str
    trusted: bool


def _ellipse(size: int, center: tuple[float, float], radii: tuple[float, float]) -> np.ndarray:
    ys, xs = (np.mgrid[:size, :size] + 0.5) / size
    return ((xs - center[0]) / radii[0]) ** 2 + ((ys - center[1]) / radii[1]) ** 2 <= 1


def separate(picture: np.ndarray, inside: np.ndarray, points: np.ndarray, masker: PersonMask | None = None) -> Matte:
    """Finds the person in a square picture with the head in the middle; the more surroundings, the better.

    Args:
        picture: [S, S, 3] uint8.
        inside: [S, S] in [0, 1], where there is photograph (0 beyond its edges).
        points: [5, 2] landmarks, pixels.
        masker: the network; None, or a result of it that is implausible, leaves it to GrabCut.

    Returns:
        The matte of the picture [S, S].
    """
    import cv2

    size = picture.shape[0]
    small = cv2.resize(picture, (_WORK, _WORK), interpolation=cv2.INTER_AREA)
    shown = cv2.resize(inside.astype(np.float32), (_WORK, _WORK), interpolation=cv2.INTER_AREA) > 0.5
    whole = np.clip(inside, 0, 1).astype(np.float32)
    if _white_already(small, shown):
        return Matte(whole, 'the background is white already', True)
    if masker is not None:
        matte = _by_network(picture, whole, points, masker)
        if matte.trusted:
            return matte
    marks = _seeds(small, shown, points / size)
    background, foreground = np.zeros((1, 65)), np.zeros((1, 65))
    cv2.setRNGSeed(0)  # the colour models start from a random clustering
    try:
        cv2.grabCut(small, marks, None, background, foreground, _ITERATIONS, cv2.GC_INIT_WITH_MASK)
    except cv2.error:  # no background, or one colour throughout
        return Matte(whole, 'GrabCut found no boundary', False)
    person = _largest((marks == cv2.GC_FGD) | (marks == cv2.GC_PR_FGD))
    covered, share = person[_ellipse(_WORK, *_head(points / size))].mean(), person[shown].mean()
    trusted = bool(covered > 0.8 and 0.1 < share < 0.97)
    soft = cv2.GaussianBlur(person.astype(np.float32), (0, 0), _FEATHER)
    alpha = cv2.resize(soft, (size, size), interpolation=cv2.INTER_LINEAR) * whole
    return Matte(alpha.astype(np.float32), 'GrabCut seeded with the aligned head, approximate', trusted)


def _by_network(picture: np.ndarray, whole: np.ndarray, points: np.ndarray, masker: PersonMask) -> Matte:
    """The network's mask, but for other people who stand apart."""
    import cv2

    alpha = masker.masks(picture[None])[0]
    count, labels = cv2.connectedComponents((alpha > 0.1).astype(np.uint8))
    head = _ellipse(len(picture), *_head(points / len(picture)))
    if count > 1 and head.any():
        alpha = np.where(labels == np.bincount(labels[head], minlength=count).argmax(), alpha, 0)
    alpha = (alpha * whole).astype(np.float32)
    return Matte(alpha, NAME, bool(alpha[head].mean() > 0.8 and 0.1 < alpha[whole > 0.5].mean() < 0.97))


def _white_already(small: np.ndarray, shown: np.ndarray) -> bool:
    rim, quarter, upper = _WORK // 24, _WORK // 4, _WORK // 3
    band = np.zeros((_WORK, _WORK), bool)  # along the upper corners: the hair may reach the middle of the top
    band[:rim, :quarter] = band[:rim, -quarter:] = True
    band[:upper, :rim] = band[:upper, -rim:] = True
    band &= shown
    return bool(band.any() and (small[band].min(-1) >= _WHITE).mean() > 0.95)


def _head(points: np.ndarray) -> tuple[tuple[float, float], tuple[float, float]]:
    """Centre and radii of the face ellipse, in units of the crop."""
    eyes, mouth = points[:2].mean(0), points[3:].mean(0)
    center = eyes + 0.35 * (mouth - eyes)
    unit = max(np.hypot(*(points[1] - points[0])), 0.9 * np.hypot(*(mouth - eyes)))
    return (float(center[0]), float(center[1])), (float(0.85 * unit), float(1.25 * unit))


def _seeds(small: np.ndarray, shown: np.ndarray, points: np.ndarray) -> np.ndarray:
    """GrabCut's four marks: the face is sure, head and shoulders are probable, the upper corners are background."""
    import cv2

    size = small.shape[0]
    marks = np.full((size, size), cv2.GC_PR_BGD, np.uint8)
    center, (rx, ry) = _head(points)
    ys, xs = (np.mgrid[:size, :size] + 0.5) / size
    chin, sideways = center[1] + 1.1 * ry, np.abs(xs - center[0])
    shoulders = (ys > chin + 0.25 * ry) & (sideways < rx + 2.0 * (ys - chin - 0.25 * ry))
    hair = _ellipse(size, (center[0], center[1] - 0.1 * ry), (1.8 * rx, 1.6 * ry))
    marks[hair | shoulders] = cv2.GC_PR_FGD
    neck = (ys > center[1]) & (sideways < 0.5 * rx)
    marks[_ellipse(size, center, (0.85 * rx, 0.95 * ry)) | neck] = cv2.GC_FGD
    columns, rows = np.nonzero(shown.any(axis=0))[0], np.nonzero(shown.any(axis=1))[0]
    from_side = np.minimum(xs - columns[0] / size, columns[-1] / size - xs)
    corner = (from_side + 0.6 * (ys - rows[0] / size) < 0.15) & (sideways > 1.5 * rx) & shown
    marks[corner] = cv2.GC_BGD
    if corner.sum() > 50:
        lab = cv2.cvtColor(small, cv2.COLOR_RGB2LAB) * np.float32([0.4, 1, 1])  # walls are lit unevenly
        sample = lab[corner]
        middle = np.median(sample, axis=0)
        if np.median(np.linalg.norm(sample - middle, axis=1)) < _PLAIN:  # a plain wall: its colour is background
            away = ~_ellipse(size, (center[0], center[1] - 0.1 * ry), (1.5 * rx, 1.5 * ry)) & (ys < chin)
            alike = np.linalg.norm(lab - middle, axis=-1) < _SAME
            marks[away & alike & (marks != cv2.GC_FGD)] = cv2.GC_BGD
    marks[~shown] = cv2.GC_BGD
    return marks


def _largest(mask: np.ndarray) -> np.ndarray:
    """The largest connected part, without holes."""
    import cv2

    mask = cv2.morphologyEx(mask.astype(np.uint8), cv2.MORPH_OPEN, np.ones((3, 3), np.uint8))
    count, labels, stats, _ = cv2.connectedComponentsWithStats(mask)
    if count < 2:
        return mask.astype(bool)
    part = (labels == 1 + int(stats[1:, cv2.CC_STAT_AREA].argmax())).astype(np.uint8)
    outlines, _ = cv2.findContours(part, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    return cv2.drawContours(np.zeros_like(part), outlines, -1, 1, cv2.FILLED).astype(bool)
