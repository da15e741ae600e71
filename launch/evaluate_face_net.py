"""Measures the landmark network where it was not trained: held-out procedural heads, ICT-FaceKit heads, known pictures.

    python -m launch.evaluate_face_net [--weights FILE] [--heads N] [--ict ict_facekit.npz] [--pictures DIR] [--clips N]

ICT-FaceKit heads are another head model with its own landmarks; skin, lips and brows are painted in plain colours,
there is no hair. ``--pictures`` is a folder of photographs with landmark files beside them. ``--clips`` renders
speaking procedural heads and tracks them from the pictures alone: pose, expression and speed against the truth.
Distances are in eye distances.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from avatar_jax.errors import UserError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    parser.add_argument('--weights', help='weight file (default: the shipped one)')
    parser.add_argument('--heads', type=int, default=100, help='held-out procedural heads')
    parser.add_argument('--ict', type=Path, help='ICT-FaceKit asset (.npz)')
    parser.add_argument('--ict-heads', type=int, default=40)
    parser.add_argument('--pictures', type=Path, help='folder of photographs with landmark files')
    parser.add_argument('--clips', type=int, default=0, help='rendered clips of 100 frames to track')
    parser.add_argument('--report', type=Path, help='write the figures here (.json)')


class IctHeads:
    """Pictures of random ICT-FaceKit heads with their 68 landmarks."""

    def __init__(self, path: Path):
        from avatar_jax.faces.bfm import read_arrays
        from avatar_jax.faces.ict import ICT

        self.model, data = ICT.load(path), read_arrays(path)
        vertices = np.asarray(self.model.neutral)
        marks = vertices[np.asarray(self.model.landmark_ids)]
        self.triangles = np.asarray(self.model.triangles)
        self.kind = np.zeros(
            len(vertices), int
        )  # 0 skin, 1 lips, 2 brows, 3 mouth, 4 teeth, 5 white of the eye, 6 iris
        names = [str(n) for n in data['region_names']]
        for name, (a, b) in zip(names, data['region_vertex_range']):
            kind = 4 if 'teeth' in name else 3 if 'mouth' in name or 'gum' in name else 5 if 'eyeball' in name else 0
            self.kind[a:b] = kind
        for side in ('left', 'right'):
            a, b = data[f'iris_{side}_vertex_range']
            self.kind[a:b] = 6
        face = slice(*self.model.face_vertices)
        self.kind[face] = np.where(
            _inside(vertices[face], marks[48:60]) & (vertices[face, 2] > marks[48:60, 2].min() - 0.1), 1, 0
        )
        for brow in (marks[17:22], marks[22:27]):
            near = np.min([_to_segment(vertices[face], a, b) for a, b in itertools.pairwise(brow)], 0)
            self.kind[face] = np.where(near < 0.035, 2, self.kind[face])

    def sample(self, index: int, side: int = 224) -> tuple[np.ndarray, np.ndarray]:
        """(picture [side,side,3] uint8, landmarks [68,2], first pixel centred at 0.5)."""
        import cv2

        from avatar_jax.faces.pose import rotation_matrix
        from avatar_jax.render.rasterizer import area_weighted_normals, rasterize

        rng = np.random.default_rng([7, index])
        m = self.model
        expression = np.where(rng.random(m.num_exp) < 0.12, rng.random(m.num_exp), 0).astype(np.float32)
        vertices = np.asarray(m.vertices(rng.normal(0, 0.8, m.num_id).astype(np.float32), expression))
        turned = vertices @ rotation_matrix(rng.normal(0, [0.15, 0.35, 0.12]))
        focal, distance = 3.0 * side, 10.0
        depth = distance - turned[:, 2]
        place = side / 2 + focal * turned[:, :2] * [1, -1] / depth[:, None]
        palette = np.array(
            [
                [0.85, 0.66, 0.55],
                [0.7, 0.35, 0.33],
                [0.25, 0.16, 0.1],
                [0.5, 0.2, 0.2],
                [0.92, 0.9, 0.86],
                [0.93, 0.92, 0.9],
                [0.25, 0.3, 0.35],
            ]
        ) * np.exp(rng.normal(0, 0.15, (7, 1)))
        palette[0] *= rng.uniform(0.4, 1.1)
        light = np.array([rng.normal(0, 0.5), rng.normal(0.3, 0.3), 1.0])
        shading = 0.45 + 0.65 * np.maximum(
            area_weighted_normals(turned, self.triangles) @ (light / np.linalg.norm(light)), 0
        )
        screen = np.concatenate([2 * place, depth[:, None]], 1)
        drawn = rasterize(screen, self.triangles, 2 * side, 2 * side, cull=True)
        colours = drawn.interpolate((palette[self.kind] * shading[:, None]).astype(np.float32), self.triangles)
        noise = cv2.resize(rng.random((5, 5, 3), np.float32), (2 * side, 2 * side), interpolation=cv2.INTER_CUBIC)
        picture = np.where(drawn.covered[..., None], colours, noise)
        picture = cv2.resize(picture, (side, side), interpolation=cv2.INTER_AREA)
        return np.clip(255 * picture, 0, 255).astype(np.uint8), place[np.asarray(m.landmark_ids)]


def _inside(points: np.ndarray, outline: np.ndarray) -> np.ndarray:
    """Whether the x, y of points [N,3] lie inside a closed outline [K,3]."""
    x, y = points[:, 0], points[:, 1]
    inside = np.zeros(len(points), bool)
    for a, b in zip(outline, np.roll(outline, -1, 0)):
        crosses = (a[1] > y) != (b[1] > y)
        with np.errstate(divide='ignore', invalid='ignore'):
            inside ^= crosses & (x < (b[0] - a[0]) * (y - a[1]) / (b[1] - a[1]) + a[0])
    return inside


def _to_segment(points: np.ndarray, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    share = np.clip(((points - a) @ (b - a)) / ((b - a) @ (b - a)), 0, 1)
    return np.linalg.norm(points - a - share[:, None] * (b - a), axis=1)


def read_pictures(reader: Any, pictures: list[tuple[np.ndarray, np.ndarray]], seed: int) -> dict[str, float]:
    """Landmark errors from crops as a detector gives them: two readings from a crop that is off by some tenths."""
    from avatar_jax.models.perception.face_net import crop_matrix
    from avatar_jax.track.detect import detect_faces
    from avatar_jax.track.network import VARIATIONS

    rng, errors, detected = np.random.default_rng(seed), [], 0
    for picture, truth in pictures:
        eyes = np.linalg.norm(truth[36:42].mean(0) - truth[42:48].mean(0))
        size = max(eyes, 0.9 * np.linalg.norm(truth[36:48].mean(0) - truth[48:].mean(0)))
        faces = detect_faces(picture)
        detected += any(np.linalg.norm(f.center - truth.mean(0)) < size for f in faces)
        start = truth + rng.normal(0, 0.15, 2) * size
        start = start.mean(0) + (start - start.mean(0)) * rng.uniform(0.85, 1.15)
        first = reader.read(picture, crop_matrix(start))
        found = reader.around(picture, reader.around(picture, first.points).points, VARIATIONS).points
        errors.append(np.linalg.norm(found - truth, axis=1) / size)
    errors = np.array(errors)
    return {
        'pictures': len(errors),
        'error': float(errors.mean()),
        'error_median': float(np.median(errors.mean(1))),
        'error_without_outline': float(errors[:, 17:].mean()),
        'error_eyes': float(errors[:, 36:48].mean()),
        'error_mouth': float(errors[:, 48:].mean()),
        'detector_finds': detected / len(errors),
    }


def known_pictures(reader: Any, folder: Path) -> dict[str, Any]:
    """Mean distance of the five points (or 68) from landmark files, in eye distances, picture by picture."""
    from avatar_jax.faces.alignment import five_points
    from avatar_jax.io.images import read_image
    from avatar_jax.io.landmarks import find_landmarks, read_landmarks
    from avatar_jax.track.choose import plausible
    from avatar_jax.track.detect import detect_faces
    from avatar_jax.track.source import frame_files

    rows = {}
    for path in frame_files(folder):
        file = find_landmarks(path)
        if file is None:
            continue
        truth, pixels = read_landmarks(file).astype(np.float64), read_image(path).pixels
        faces = plausible(detect_faces(pixels))
        if not faces:
            rows[path.name] = {'error': None}
            continue
        face = min(faces, key=lambda f: np.linalg.norm(f.center - truth.mean(0)))
        points = reader.from_box(pixels, face).points - 0.5
        found = points if len(truth) == 68 else five_points(points)
        five = five_points(truth)
        error = np.linalg.norm(found - truth, axis=1) / np.linalg.norm(five[0] - five[1])
        rows[path.name] = {'error': float(error.mean()), 'each': np.round(error, 4).tolist()}
    return rows


def render_clip(seed: int, split: str, frames: int, side: int, start: int = 0) -> SimpleNamespace:
    """A speaking procedural head: ``frames`` (objects with ``time`` and ``pixels``), and the truth of each:
    ``landmarks`` [T,68,2] (first pixel centred at 0.5), ``expression``, ``angle``."""
    from avatar_jax.procedural import motion, render_head, sample_identity
    from data_pipelines.cameras import pose_labels

    arrays, identity = motion.speech_arrays(seed, start + frames), sample_identity(seed, split)
    grey = 0.3 + 0.4 * np.random.default_rng(seed).random(3)
    clip, landmarks = [], []
    for t in range(frames):
        label = pose_labels(arrays['angle'][start + t], arrays['translation'][start + t])
        head = render_head(
            identity, arrays['expression'][start + t], label, resolution=side, supersample=2, background=grey
        )
        clip.append(
            SimpleNamespace(index=t, time=t / 25, pixels=np.rint(255 * np.clip(head.rgb, 0, 1)).astype(np.uint8))
        )
        landmarks.append(head.landmarks)
    return SimpleNamespace(
        frames=clip,
        landmarks=np.array(landmarks),
        expression=arrays['expression'][start:],
        angle=arrays['angle'][start:],
    )


def expression_figures(found: np.ndarray, truth: np.ndarray, basis: Any) -> dict[str, float]:
    """Correlations of expressions [T,64] with the truth, each number's mean over the clip removed.

    'numbers': all numbers of all frames, so that each counts by how much it moves; 'channels': of each number that
    moves (standard deviation over 0.03), averaged; 'landmarks': of where they move the 68 points.
    """
    from avatar_jax.eval.statistics import pearson

    def moved(e):
        points = np.tensordot(e, np.asarray(basis.expression), 1)
        return (points - points.mean(0)).ravel()

    active = np.flatnonzero(truth.std(0) > 0.03)
    return {
        'expression_correlation_numbers': pearson((found - found.mean(0)).ravel(), (truth - truth.mean(0)).ravel()),
        'expression_correlation_channels': float(np.mean([pearson(found[:, i], truth[:, i]) for i in active])),
        'expression_correlation_landmarks': pearson(moved(found), moved(truth)),
    }


def track_clips(reader: Any, count: int, frames: int = 100, side: int = 256) -> dict[str, float]:
    """Rotation, expression and speed on rendered speech: from the pictures alone, and ('exact_...') from true
    landmarks.
    """
    from avatar_jax.procedural import ProceduralHead
    from avatar_jax.track.basis import landmark_basis
    from avatar_jax.track.choose import Chooser
    from avatar_jax.track.clip import TrackConfig, track_clip
    from avatar_jax.track.observe import FileLandmarks, observe

    basis = landmark_basis(ProceduralHead())
    rows = []
    for k in range(count):
        clip = render_clip(500 + k, 'test', frames, side)
        config = TrackConfig(label_mode='raw')
        began, cpu = time.monotonic(), time.process_time()
        observed = observe(clip.frames, reader, Chooser())
        seen, seen_cpu = time.monotonic(), time.process_time()
        track = track_clip(observed, basis, config, reader.calibration)
        ended, ended_cpu = time.monotonic(), time.process_time()
        exact = track_clip(FileLandmarks(clip.landmarks - 0.5).observe(clip.frames, 'clip'), basis, config)
        true = clip.landmarks - 0.5
        eyes = np.linalg.norm(true[:, 36:42].mean(1) - true[:, 42:48].mean(1), axis=-1).mean()
        off = track.angle - clip.angle
        rows.append(
            {
                'rotation_degrees': float(np.rad2deg(np.abs(off)).mean()),
                'rotation_degrees_without_offset': float(np.rad2deg(np.abs(off - off.mean(0)).mean())),
                **expression_figures(track.expression, clip.expression, basis),
                'exact_rotation_degrees': float(np.rad2deg(np.abs(exact.angle - clip.angle).mean())),
                **{f'exact_{k}': v for k, v in expression_figures(exact.expression, clip.expression, basis).items()},
                'landmarks_of_eye_distance': float(np.linalg.norm(track.landmarks - true, axis=-1).mean() / eyes),
                'seconds_landmarks': seen - began,
                'seconds_fit': ended - seen,
                'cpu_seconds_landmarks': seen_cpu - cpu,
                'cpu_seconds_fit': ended_cpu - seen_cpu,
                'clip_seconds': frames / 25,
            }
        )
        print(rows[-1], flush=True)
    # The first clip compiles.
    timed = rows[1:] or rows
    mean = {name: float(np.mean([r[name] for r in rows])) for name in rows[0]}
    for name in ('seconds_landmarks', 'seconds_fit', 'cpu_seconds_landmarks', 'cpu_seconds_fit'):
        mean[name] = float(np.mean([r[name] for r in timed]))
    return mean


def run(args: argparse.Namespace) -> int:
    """Command: returns the exit status."""
    from avatar_jax.io.atomic import write_json
    from avatar_jax.track.network import FaceReader
    from data_pipelines.face_crops import FaceCropsConfig, sample

    reader = FaceReader(args.weights)
    report: dict[str, Any] = {'weights': reader.sha256}
    if args.heads:
        config = FaceCropsConfig(split='test', yaw_degrees=45.0, pitch_degrees=20.0, light=1.0)
        heads = [sample(config, i) for i in range(args.heads)]
        report['procedural heads'] = read_pictures(reader, [(h['rgb'], h['landmarks']) for h in heads], 0)
    if args.ict:
        ict = IctHeads(args.ict)
        report['ICT-FaceKit heads'] = read_pictures(reader, [ict.sample(i) for i in range(args.ict_heads)], 0)
    if args.pictures:
        report['pictures'] = known_pictures(reader, args.pictures)
    if args.clips:
        report['clips'] = track_clips(reader, args.clips)
    for name, values in report.items():
        print(f'{name}: {values}')
    if args.report:
        write_json(args.report, report)
    return 0


def main(argv: list[str] | None = None) -> int:
    """Command line of ``python -m launch.evaluate_face_net``."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser)
    try:
        return run(parser.parse_args(argv))
    except UserError as error:
        print(f'error: {error}', file=sys.stderr)
        return 2


if __name__ == '__main__':
    sys.exit(main())
