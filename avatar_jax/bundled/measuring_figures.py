"""How exactly portraits are measured: crop, camera, landmarks, expression and mask, on heads whose truth is known."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Protocol

import numpy as np

from avatar_jax.errors import UserError

if TYPE_CHECKING:
    from avatar_jax.track.measured import Measured

SIZE = 512  # of the crops


class Clip(Protocol):
    """A clip of a procedural head (``data_pipelines.clips.Clip``)."""

    identity: np.ndarray
    gamma: np.ndarray
    expression: np.ndarray
    angle: np.ndarray

    def labels(self) -> np.ndarray:
        """[T,25] camera labels."""


def scene(clip: Clip, index: int) -> SimpleNamespace:
    """A head of a clip before a random background, drawn by ``index``: ``pixels`` [H,W,3] uint8, ``points`` [68,2],
    ``mask`` [H,W], ``points3d`` [68,3] of the head in decimetres, ``expression`` [64], ``angle`` [3] radians.
    """
    from avatar_jax.bundled.face_augment import background
    from avatar_jax.procedural import ProceduralHead, render_head

    rng = np.random.default_rng([99, index])
    frame = int(rng.integers(len(clip.expression)))
    label = clip.labels()[frame].copy()
    label[[16, 20]] *= 0.62  # of the usual focal length: more surroundings than the aligned crop has
    side = int(rng.integers(360, 640))
    width = int(side * rng.uniform(1, 1.4))
    left = int(rng.integers(0, width - side + 1))
    expression = clip.expression[frame]
    head = render_head(clip.identity, expression, label, clip.gamma, resolution=side, supersample=2)
    rgb, alpha = np.clip(head.rgb, 0, 1), head.mask[..., None]
    picture = np.array(background(rng, {'rgb': (255 * rgb[None]).astype(np.uint8)}, width), np.float32)[:side]
    bare = np.clip((rgb - (1 - alpha)) / np.maximum(alpha, 0.05), 0, 1)
    picture[:, left : left + side] = alpha * bare + (1 - alpha) * picture[:, left : left + side]
    picture += rng.normal(0, 0.01, picture.shape)
    mask = np.zeros((side, width), np.float32)
    mask[:, left : left + side] = head.mask
    points3d = ProceduralHead().landmarks(clip.identity[:80].astype(np.float32), expression.astype(np.float32))
    return SimpleNamespace(
        pixels=np.rint(255 * np.clip(picture, 0, 1)).astype(np.uint8),
        points=head.landmarks - 0.5 + [left, 0],
        mask=mask,
        points3d=np.asarray(points3d),
        expression=expression,
        angle=clip.angle[frame],
    )


def measure_heads(clips: Iterable[Clip]) -> dict[str, dict[str, float]]:
    """Mean errors of each way of measuring, over one frame of each clip.

    Distances are in eye distances; ``rotation in degrees``; ``expression`` is a mean absolute difference.
    """
    from PIL import Image

    from avatar_jax.faces.alignment import eg3d_crop, five_points
    from avatar_jax.track.measure import measure
    from avatar_jax.track.placing import crop_placement

    rows: dict[str, list[dict[str, float]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for index, clip in enumerate(clips):
            true = scene(clip, index)
            five = five_points(true.points)
            size = true.pixels.shape[1::-1]
            ideal, _ = crop_placement(five, size, SIZE)
            path, aligned, marks = (Path(folder) / f'{index}{e}' for e in ('.png', '-aligned.png', '-five.npy'))
            Image.fromarray(true.pixels).save(path)
            Image.fromarray(eg3d_crop(true.pixels, five)[0]).save(aligned)
            np.save(marks, five)
            for name, file, options in (
                ('picture alone', path, {}),
                ('five true points', path, {'landmarks': marks}),
                ('aligned', aligned, {'aligned': True}),
                ('aligned, network', aligned, {'aligned': True, 'landmarks': 'network'}),
            ):
                try:
                    found = measure(file, size=SIZE, label_mode='raw', face='size', **options)
                except UserError as error:
                    print(f'{name}: {error}', file=sys.stderr)
                    continue
                matrix = ideal if file is aligned else found.matrices[0]
                rows.setdefault(name, []).append(_errors(found.best(), matrix, ideal, true))
    means = {}
    for name, errors in rows.items():
        kinds = dict.fromkeys(kind for one in errors for kind in one)
        means[name] = {'heads': len(errors)} | {k: float(np.mean([e[k] for e in errors if k in e])) for k in kinds}
    return means


def _errors(found: Measured, matrix: np.ndarray, ideal: np.ndarray, true: SimpleNamespace) -> dict[str, float]:
    """Of one measured picture whose crop ``matrix`` cut out."""
    import cv2

    from avatar_jax.faces.camera_labels import CROP, FOCAL_1024, label_from_pose
    from avatar_jax.track.camera import from_translation, to_translation
    from avatar_jax.track.placing import crop_poses, project_clip

    seen = true.points @ matrix[:, :2].T + matrix[:, 2]  # the true landmarks in the crop that was made
    eyes = float(np.linalg.norm(seen[36:42].mean(0) - seen[42:48].mean(0)))
    start = np.concatenate([true.angle, [0, 0, np.log(10)]])[None]
    angle, translation = to_translation(crop_poses(true.points3d[None], seen[None] + 0.5, start, SIZE))
    truth = label_from_pose(angle, translation, 'raw')[0]
    a, b = (np.asarray(x, np.float64)[:16].reshape(4, 4)[:3, :3] for x in (found.label, truth))
    out = {
        'crop': float(np.linalg.norm(true.points @ ideal[:, :2].T + ideal[:, 2] - seen, axis=1).mean()) / eyes,
        'rotation in degrees': float(np.rad2deg(np.arccos(np.clip((np.trace(a.T @ b) - 1) / 2, -1, 1)))),
    }
    if found.angle is not None:
        pose = from_translation(*(np.asarray(v, np.float64)[None] for v in (found.angle, found.translation)))
        there = project_clip(true.points3d[None], pose, FOCAL_1024 * SIZE / CROP, np.full(2, SIZE / 2))[0] - 0.5
        out['camera'] = float(np.linalg.norm(there - seen, axis=1).mean()) / eyes
    if found.landmarks is not None:
        out['landmarks'] = float(np.linalg.norm(found.landmarks - seen, axis=1).mean()) / eyes
    if found.expression is not None:
        out['expression'] = float(np.abs(found.expression - true.expression).mean())
        out['expression, taken as neutral'] = float(np.abs(true.expression).mean())
    mask = cv2.warpAffine(true.mask, matrix, (SIZE, SIZE), flags=cv2.INTER_AREA) > 0.5
    mine = found.mask > 0.5
    out['mask, overlap'] = float((mask & mine).sum() / max((mask | mine).sum(), 1))
    return out
