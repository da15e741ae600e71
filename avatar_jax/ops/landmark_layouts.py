"""Landmark sets of other programs as the 68 iBUG points: 98 (WFLW) and 478 (MediaPipe face mesh)."""

from __future__ import annotations

import numpy as np

# Which of the 98 WFLW points each of the 68 is. WFLW's outline has 33 points, its brows are closed curves.
FROM_98 = np.array(
    [
        *range(0, 33, 2),
        33,
        34,
        35,
        36,
        37,
        42,
        43,
        44,
        45,
        46,
        51,
        52,
        53,
        54,
        55,
        56,
        57,
        58,
        59,
        60,
        61,
        63,
        64,
        65,
        67,
        68,
        69,
        71,
        72,
        73,
        75,
        *range(76, 96),
    ]
)

# Which vertices of MediaPipe's face mesh lie at the 68 points (outline, brows, nose, eyes, mouth; image left to right).
FROM_478 = np.array(
    [
        127,
        234,
        93,
        132,
        58,
        172,
        150,
        176,
        152,
        400,
        379,
        397,
        288,
        361,
        323,
        454,
        356,
        70,
        63,
        105,
        66,
        107,
        336,
        296,
        334,
        293,
        300,
        168,
        197,
        5,
        1,
        98,
        97,
        2,
        326,
        327,
        33,
        160,
        158,
        133,
        153,
        144,
        362,
        385,
        387,
        263,
        373,
        380,
        61,
        39,
        37,
        0,
        267,
        269,
        291,
        405,
        314,
        17,
        84,
        181,
        78,
        82,
        13,
        312,
        308,
        317,
        14,
        87,
    ]
)
# Landmark i of a mirrored picture is landmark MIRROR[i] of the original.
MIRROR = np.array(
    [
        *range(16, -1, -1),
        *range(26, 16, -1),
        *range(27, 31),
        *range(35, 30, -1),
        *range(45, 41, -1),
        *(47, 46),
        *range(39, 35, -1),
        *(41, 40),
        *range(54, 47, -1),
        *range(59, 54, -1),
        *range(64, 59, -1),
        *range(67, 64, -1),
    ]
)
SIZES = (5, 68, 98, 478)

# Landmark i of a mirrored picture is landmark MIRROR[i] of the original.
MIRROR = np.array(
    [*range(16, -1, -1), *range(26, 16, -1), *range(27, 31), *range(35, 30, -1)]
    + [45, 44, 43, 42, 47, 46, 39, 38, 37, 36, 41, 40]
    + [*range(54, 47, -1), *range(59, 54, -1), *range(64, 59, -1), *range(67, 64, -1)]
)

# Outlines of detectors for pictures follow the visible edge of a turned face, not one place of the skin.
OUTLINE_SIGMA = 3.0
# Expected error of other programs' points, as a share of the eye distance.
FILE_SIGMA = 0.02


def to_68(points: np.ndarray) -> np.ndarray:
    """[..., 68, 98 or 478, 2] -> [..., 68, 2].

    Raises:
        ValueError: another number of points (five points do not determine 68).
    """
    points = np.asarray(points)
    n = points.shape[-2]
    if n == 68:
        return points
    if n == 98:
        return points[..., FROM_98, :]
    if n in (468, 478):
        return points[..., FROM_478, :]
    raise ValueError(f'{n} points cannot be turned into 68')


def five_as_68(points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Five points [..., 5, 2] at their places among 68, and which of the 68 are known [..., 68].

    An eye's centre stands for both of its corners' neighbours: all six points of the eye are put there, which is right
    for their mean. Nose tip is 30, mouth corners 48 and 54.
    """
    points = np.asarray(points, np.float64)
    out = np.zeros((*points.shape[:-2], 68, 2))
    known = np.zeros((*points.shape[:-2], 68), bool)
    for target, source in ((30, 2), (48, 3), (54, 4)):
        out[..., target, :], known[..., target] = points[..., source, :], True
    across = (points[..., 1, :] - points[..., 0, :])[..., None, :]
    for first, source in ((36, 0), (42, 1)):
        # The corners of a usual eye lie 0.22 eye distances to either side of its centre.
        for k, share in ((0, -0.22), (3, 0.22)):
            out[..., first + k, :] = points[..., source, :] + share * across[..., 0, :]
            known[..., first + k] = True
    return out, known
