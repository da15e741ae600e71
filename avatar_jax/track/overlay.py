"""What was tracked, drawn on the input: mesh of the fitted head, axes, landmarks, numbers."""

from __future__ import annotations

import numpy as np

from avatar_jax.faces.base import MorphableModel
from avatar_jax.faces.pose import rotation_matrix
from avatar_jax.render.rasterizer import area_weighted_normals
from avatar_jax.track.placing import project_clip
from avatar_jax.track.track import Track

MAX_SIDE = 1280
_CELL = 0.085  # decimetres: vertices closer than this are drawn as one
_CURVES = (
    (range(17), False),
    (range(17, 22), False),
    (range(22, 27), False),
    (range(27, 31), False),
    (range(31, 36), False),
    (range(36, 42), True),
    (range(42, 48), True),
    (range(48, 60), True),
    (range(60, 68), True),
)
_MESH, _MEASURED, _HELD, _TEXT = (80, 200, 255), (60, 255, 60), (255, 150, 30), (255, 255, 255)
_AXES = ((255, 60, 60), (60, 255, 60), (70, 110, 255))


class Wire:
    """A thinned wire frame of a head model's face: few enough lines for every mesh.

    Args:
        model: any head model.
    """

    def __init__(self, model: MorphableModel):
        self.model = model
        neutral = np.asarray(model.vertices(np.zeros(model.num_id, np.float32), np.zeros(model.num_exp, np.float32)))
        marks = np.asarray(model.landmarks(np.zeros(model.num_id, np.float32), np.zeros(model.num_exp, np.float32)))
        triangles = np.asarray(model.triangles)
        normals = area_weighted_normals(neutral, triangles)
        low, high = marks.min(0), marks.max(0)
        high[1] += 0.35 * (high[1] - low[1])  # the forehead
        keep = ((neutral > low - 0.08) & (neutral < high + [0.08, 0.0, 0.5])).all(1) & (normals[:, 2] > 0)
        keep &= _connected(len(neutral), triangles[keep[triangles].all(1)], np.asarray(model.landmark_ids))
        cells = np.floor(neutral / _CELL).astype(int)
        _, first, cluster = np.unique(cells, axis=0, return_index=True, return_inverse=True)
        cluster = cluster.reshape(-1)
        kept = triangles[keep[triangles].all(1)]
        edges = np.concatenate([kept[:, [0, 1]], kept[:, [1, 2]], kept[:, [2, 0]]])
        edges = np.unique(np.sort(cluster[edges], axis=1), axis=0)
        edges = edges[edges[:, 0] != edges[:, 1]]
        used, local = np.unique(edges, return_inverse=True)
        self.vertices, self.edges = first[used], local.reshape(-1, 2)
        self.normals = normals[self.vertices]

    def points(self, identity: np.ndarray, expression: np.ndarray) -> np.ndarray:
        """[N,3] of the drawn vertices for the fitted numbers (padded or cut to what the model has)."""
        numbers = []
        for values, width in ((identity, self.model.num_id), (expression, self.model.num_exp)):
            full = np.zeros(width, np.float32)
            full[: min(width, len(values))] = values[:width]
            numbers.append(full)
        return np.asarray(self.model.vertices(*numbers))[self.vertices]


def _connected(count: int, triangles: np.ndarray, start: np.ndarray) -> np.ndarray:
    """[V] bool: vertices joined by triangles to most of ``start``; leaves out hair and clothes that lie apart."""
    label = np.arange(count)
    edges = np.concatenate([triangles[:, [0, 1]], triangles[:, [1, 2]]])
    while True:
        low = np.minimum(label[edges[:, 0]], label[edges[:, 1]])
        new = label.copy()
        np.minimum.at(new, edges[:, 0], low)
        np.minimum.at(new, edges[:, 1], low)
        new = new[new]
        if (new == label).all():
            break
        label = new
    values, counts = np.unique(label[start], return_counts=True)
    return np.isin(label, values[counts >= max(3, 0.1 * len(start))])


def overlay_scale(size: tuple[int, int]) -> float:
    """By how much the input is scaled for drawing: large pictures shrink, small ones grow."""
    longer = max(size)
    return MAX_SIDE / longer if longer > MAX_SIDE else max(1.0, min(2.0, 480 / longer))


def draw(pixels: np.ndarray, track: Track, frame: int, wire: Wire) -> np.ndarray:
    """The picture of frame ``frame`` with the track on it.

    Args:
        pixels: [H,W,3] uint8, the input frame.

    Returns:
        uint8 [H',W',3].
    """
    import cv2

    scale = overlay_scale(track.size)
    size = (max(2, round(track.size[0] * scale)), max(2, round(track.size[1] * scale)))
    canvas = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
    canvas = np.ascontiguousarray(canvas)
    if not track.valid[frame]:
        _text(canvas, 'no face in this shot', 0)
        return canvas
    segment = track.segment[frame]
    pose, focal, centre = track.pose[frame], track.focal[segment], np.array(track.size) / 2
    points = wire.points(track.identity[segment], track.expression[frame])
    place = project_clip(points[None], pose[None], focal, centre)[0] * scale
    facing = (wire.normals @ rotation_matrix(pose[:3].astype(np.float64)))[:, 2] > 0.1
    lines = np.clip(place[wire.edges[facing[wire.edges].all(1)]] * 16, -1e6, 1e6).astype(np.int32)
    mesh = canvas.copy()
    cv2.polylines(mesh, list(lines), False, _MESH, 1, cv2.LINE_AA, shift=4)
    canvas = cv2.addWeighted(mesh, 0.45, canvas, 0.55, 0)
    colour = _MEASURED if track.found[frame] else _HELD
    marks = ((track.landmarks[frame] + 0.5) * scale * 16).clip(-1e6, 1e6).astype(np.int32)
    for curve, closed in _CURVES:
        cv2.polylines(canvas, [marks[list(curve)]], closed, colour, 1, cv2.LINE_AA, shift=4)
    radius = max(1, round(np.ptp(marks[:, 0]) / 16 / 110))
    for x, y in marks:
        cv2.circle(canvas, (int(x) // 16, int(y) // 16), radius, colour, -1, cv2.LINE_AA)
    _axes(canvas, pose, focal, centre, scale)
    pitch, yaw, roll = np.rad2deg(track.angle[frame])
    _text(
        canvas,
        f'{frame}: yaw {yaw:+.0f} pitch {pitch:+.0f} roll {roll:+.0f}' + ('' if track.found[frame] else ' (held)'),
        0,
    )
    return canvas


def _axes(canvas: np.ndarray, pose: np.ndarray, focal: float, centre: np.ndarray, scale: float) -> None:
    import cv2

    # From between the eyes: x to the picture's right, y up, z out of the face.
    origin = np.array([0.0, 0.3, 0.35])
    ends = np.concatenate([origin[None], origin + 0.8 * np.eye(3)])
    place = (project_clip(ends[None], pose[None], focal, centre)[0] * scale).clip(-1e5, 1e5).round().astype(int)
    thickness = max(1, round(np.abs(place[1:] - place[0]).max() / 40))
    for end, colour in zip(place[1:], _AXES):
        cv2.arrowedLine(
            canvas, tuple(place[0].tolist()), tuple(end.tolist()), colour, thickness, cv2.LINE_AA, tipLength=0.15
        )


def _text(canvas: np.ndarray, text: str, line: int) -> None:
    import cv2

    size = max(0.35, canvas.shape[1] / 1100)
    place = (int(10 * size) + 4, int(26 * size * (line + 1)) + 4)
    for colour, thickness in (((0, 0, 0), max(2, round(4 * size))), (_TEXT, max(1, round(1.5 * size)))):
        cv2.putText(canvas, text, place, cv2.FONT_HERSHEY_SIMPLEX, size, colour, thickness, cv2.LINE_AA)
