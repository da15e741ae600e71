"""Where the crops of a clip lie, and the camera of a head as it is seen in them."""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
import numpy as np

from avatar_jax.faces.alignment import EG3D_CROP, EG3D_RESCALE, EG3D_SIZE, five_points, solve_pose
from avatar_jax.faces.camera_labels import CROP, FOCAL_1024
from avatar_jax.faces.pose import rotation_matrix
from avatar_jax.faces.translation import head_sizes, pixel_offset, translate_label
from avatar_jax.track import fit
from avatar_jax.track.camera import from_translation
from avatar_jax.track.smooth import steady
from avatar_jax.track.track import Track, TrackConfig

RUN = 64  # frames that are solved together; a shorter rest is filled up with frames without landmarks
_CROP_DISTANCE_SPREAD = 0.03  # of the logarithm of the distance of a head in the aligned crop
STAYS = 0.12  # a head that moves less than this share of the crop's side stays in one crop


def padded(values: np.ndarray, length: int) -> np.ndarray:
    missing = length - len(values)
    return np.concatenate([values, np.repeat(values[-1:], missing, 0)]) if missing > 0 else values


def project_clip(points: np.ndarray, pose: np.ndarray, focal: float, centre: np.ndarray) -> np.ndarray:
    """Head points [T,N,3] under poses [T,6] in pixels [T,N,2], y down, first pixel centred at 0.5 (NumPy)."""
    turned = points @ rotation_matrix(np.asarray(pose[:, :3], np.float64))
    distance = np.exp(pose[:, 5])[:, None]
    depth = np.maximum(distance - turned[..., 2], 0.05 * distance)
    x = (turned[..., 0] + pose[:, 3, None] * distance) / depth
    y = (turned[..., 1] + pose[:, 4, None] * distance) / depth
    return np.stack([centre[0] + focal * x, centre[1] - focal * y], -1)


def crop_points(landmarks, fitted, known, times, config: TrackConfig, size) -> tuple[np.ndarray, str]:
    """The five points [T,5,2] that each frame's crop is made from, and the mode."""
    complete = known[[30, 48, 54]].all() and known[36:48].any()
    # Landmark files of five points have no eye outlines of their own: the fitted ones stand for them.
    five = five_points(np.where(known[:, None], landmarks, fitted) if complete and known.all() else fitted)
    if complete and not known.all():
        five[:, 2:] = landmarks[:, [30, 48, 54]]
        five[:, 0] = (landmarks[:, 36] + landmarks[:, 39]) / 2
        five[:, 1] = (landmarks[:, 42] + landmarks[:, 45]) / 2
    if len(five) == 1:
        return five, 'frame'
    up = five * [1, -1]
    fits = [solve_pose(p) for p in up]
    place = np.stack([np.concatenate([[np.log(max(f.scale, 1e-6))], f.translation]) for f in fits])
    typical = np.median(place, 0)
    side = EG3D_CROP / EG3D_RESCALE * np.exp(typical[0])
    stays = (np.abs(place[:, 1:] - typical[1:]).max() < STAYS * side) and np.abs(place[:, 0] - typical[0]).max() < 0.2
    mode = config.crop if config.crop != 'auto' else 'clip' if stays else 'frame'
    if mode == 'clip':
        nearest = int(np.argmin(np.abs((place - typical) / [1, side, side]).sum(1)))
        return np.broadcast_to(five[nearest], five.shape).copy(), mode
    # A crop that follows the face must not tremble or breathe with it: only slow changes are followed.
    units = np.array([1.0, side, side])
    calm = place if len(five) < 3 else units * steady(place / units, times, 8 * max(config.steady, 0.25), spread=0.3)
    scale = np.exp(calm[:, :1] - place[:, :1])[..., None]
    middle = np.stack([p.translation for p in fits])[:, None]
    return ((up - middle) * scale + calm[:, None, 1:]) * [1, -1], mode


def crop_placement(five: np.ndarray, size: tuple[int, int], side: int) -> tuple[np.ndarray, np.ndarray]:
    """Where EG3D's crop lies.

    Args:
        five: [5,2] pixels, y down, integers at pixel centres. size: (width, height) of the picture. side: of the crop.

    Returns:
        ([2,3] matrix from picture pixels to crop pixels, integers at pixel centres in both; [3] scale and place (x, y
        up)).
    """
    width, height = size
    up = np.asarray(five, np.float64).copy()
    up[:, 1] = height - 1 - up[:, 1]
    found = solve_pose(up)
    scale = EG3D_RESCALE / max(found.scale, 1e-9)
    tx, ty = found.translation
    # As ``alignment.align`` moves landmarks: sizes are cut to integers first.
    x0 = (-tx + width / 2) * scale - (int(width * scale) / 2 - EG3D_SIZE / 2)
    y0 = (-ty + height / 2) * scale - (int(height * scale) / 2 - EG3D_SIZE / 2)
    matrix = np.array([[scale, 0, x0], [0, scale, EG3D_SIZE - 1 - y0 - scale * (height - 1)]])
    start, ratio = int(EG3D_SIZE / 2 - EG3D_CROP / 2), side / EG3D_CROP
    matrix[:, 2] = (matrix[:, 2] - start + 0.5) * ratio - 0.5
    matrix[:, :2] *= ratio
    return matrix, np.array([scale, tx, ty])


def crop_poses(points3d: np.ndarray, targets: np.ndarray, start: np.ndarray, side: int) -> np.ndarray:
    """Poses [T,6] before the crop's camera, of the fitted heads seen in the crops (first pixel centred at 0.5)."""
    begin = from_translation(start[:, :3], np.zeros((len(start), 3))).astype(np.float32)
    solved = [
        np.asarray(
            fit.fit_poses(
                jnp.asarray(padded(points3d[i : i + RUN], RUN), jnp.float32),
                jnp.asarray(padded(targets[i : i + RUN], RUN), jnp.float32),
                jnp.float32(FOCAL_1024 * side / CROP),
                jnp.full(2, side / 2),
                jnp.asarray(padded(begin[i : i + RUN], RUN)),
                _CROP_DISTANCE_SPREAD,
                0.003 * side,
            )
        )
        for i in range(0, len(start), RUN)
    ]
    return np.concatenate(solved)[: len(start)]


def with_head_translation(track: Track) -> Track:
    """The track with labels that also follow the head through the uncropped picture (NOFA).

    Each shot's first measured frame counts as zero. Only crops that follow the face need it: in one square for the
    whole shot the head moves, and its labels tell so already.
    """
    labels = np.array(track.labels)
    for s in range(len(track.identity)):
        rows = np.flatnonzero((track.segment == s) & track.valid)
        if not len(rows) or (len(rows) > 1 and (track.matrices[rows] == track.matrices[rows[0]]).all()):
            continue
        first = rows[np.argmax(track.found[rows])]
        side = track.crop_size / track.matrices[first, 0, 0]
        offset = pixel_offset(track.landmarks[rows].astype(np.float64), track.landmarks[first].astype(np.float64), side)
        zoom = head_sizes(track.fitted[rows]) / head_sizes(track.fitted[first])
        labels[rows] = translate_label(labels[rows], offset.astype(np.float32), zoom.astype(np.float32))
    return dataclasses.replace(track, labels=labels)
