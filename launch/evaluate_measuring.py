"""Measures how portraits are measured: which faces are found, and how far crop, camera, landmarks and mask are off.

    python -m launch.evaluate_measuring [--heads N] [--pictures DIR] [--report FILE]

``--heads``: procedural heads nobody was trained on, before random backgrounds, where everything is known. Each is
measured from the picture alone, with a file of its five true points, and, cut out truly, as an aligned frame with and
without the network. ``--pictures``: a folder of portraits with one clear face each; they are turned, cut, darkened,
covered, and so on, and looked for by the cascade, by the network, and by both as ``track.search`` does. Distances are
in eye distances.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from avatar_jax.errors import UserError

SIZE = 512


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    parser.add_argument('--heads', type=int, default=0, metavar='N', help='procedural heads to measure')
    parser.add_argument('--pictures', type=Path, metavar='DIR', help='portraits to find faces in')
    parser.add_argument('--report', type=Path, metavar='FILE', help='write the figures here (.json)')


# --- finding faces ----------------------------------------------------------------------------------------------------


def conditions(pixels: np.ndarray, points: np.ndarray, seed: int = 0) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """(name, picture, landmarks) of a portrait under what makes faces hard to find.

    Args:
      pixels: [H,W,3] uint8. points: [68,2] its landmarks.
    """
    import cv2

    rng, face = np.random.default_rng(seed), float(np.ptp(points, axis=0).max())
    yield 'as it is', pixels, points
    for degrees in (-60, -30, -15, 15, 30, 60, 90, 180):
        yield f'turned by {abs(degrees)} degrees', *_turned(pixels, points, degrees)
    for share in (1.6, 1.25, 1.05, 0.9):
        low, high = points.min(0), points.max(0)
        middle, reach = (low + high) / 2, (high - low).max() * share / 2
        low = np.maximum(middle - reach, 0).astype(int)
        high = np.minimum(middle + reach, pixels.shape[1::-1]).astype(int)
        yield f'cut to {share} faces', np.ascontiguousarray(pixels[low[1] : high[1], low[0] : high[0]]), points - low
    for side in (48, 32, 20):
        scale = side / face
        small = cv2.resize(pixels, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
        yield f'face of {side} pixels', small, points * scale
    yield 'dark', np.clip(pixels * 0.15 + rng.normal(0, 4, pixels.shape), 0, 255).astype(np.uint8), points
    yield 'noisy', np.clip(pixels + rng.normal(0, 35, pixels.shape), 0, 255).astype(np.uint8), points
    yield 'blurred', cv2.GaussianBlur(pixels, (0, 0), face / 25), points
    low, high = points.min(0), points.max(0)
    yield 'mouth covered', _covered(pixels, [low[0] - 10, points[30, 1]], [high[0] + 10, points[8, 1] + 10]), points
    eye = points[[*range(17, 22), *range(36, 42)]]
    yield 'one eye covered', _covered(pixels, eye.min(0) - 0.1 * face, eye.max(0) + 0.1 * face), points
    eyes, margin = points[36:48], np.ptp(points[36:48], axis=0) * [0.15, 0.8]
    yield 'sunglasses', _covered(pixels, eyes.min(0) - margin, eyes.max(0) + margin), points


def _turned(pixels: np.ndarray, points: np.ndarray, degrees: float) -> tuple[np.ndarray, np.ndarray]:
    import cv2

    height, width = pixels.shape[:2]
    matrix = cv2.getRotationMatrix2D((width / 2, height / 2), degrees, 1.0)
    cosine, sine = abs(matrix[0, 0]), abs(matrix[0, 1])
    size = np.array([height * sine + width * cosine, height * cosine + width * sine]).astype(int)
    matrix[:, 2] += (size - [width, height]) / 2
    turned = cv2.warpAffine(pixels, matrix, tuple(size.tolist()), borderMode=cv2.BORDER_REPLICATE)
    return turned, points @ matrix[:, :2].T + matrix[:, 2]


def _covered(pixels: np.ndarray, low: Any, high: Any) -> np.ndarray:
    out = pixels.copy()
    (x0, y0), (x1, y1) = (np.maximum(v, 0).astype(int) for v in (np.asarray(low), np.asarray(high)))
    out[y0:y1, x0:x1] = (60, 60, 70)
    return out


def search_pictures(folder: Path) -> dict[str, dict[str, int]]:
    """How many faces each way finds under each condition, and how many places it takes for faces that are none."""
    from avatar_jax.io.images import read_image
    from avatar_jax.track.choose import plausible
    from avatar_jax.track.detect import detect_faces
    from avatar_jax.track.inputs import frame_files
    from avatar_jax.track.measure import default_tracker
    from avatar_jax.track.search import COARSE, FINE, TURNED, as_face, find_faces, search_faces

    reader, rows = default_tracker().network, {}

    def by_network(pixels: np.ndarray) -> list:
        found: list = []
        for way in (COARSE, FINE, TURNED):
            found = found or [as_face(r) for r in search_faces(pixels, reader, *way)]
        return found

    ways = {
        'cascade': lambda pixels: plausible(detect_faces(pixels)),
        'network': by_network,
        'both': lambda pixels: [face for face, _ in find_faces(pixels, reader)],
    }
    for path in frame_files(folder):
        whole = read_image(path).pixels
        faces = find_faces(whole, reader)
        if not faces:
            raise UserError(f'{path}: no face found; give portraits with one clear face')
        for name, pixels, points in conditions(whole, faces[0][1].points):
            if min(pixels.shape[:2]) < 32:
                continue
            row = rows.setdefault(name, {'pictures': 0})
            row['pictures'] += 1
            size = np.sqrt(((points - points.mean(0)) ** 2).sum(-1).mean())
            for way, find in ways.items():
                near = [np.linalg.norm(f.center - points.mean(0)) < 1.5 * size for f in find(pixels)]
                row[way] = row.get(way, 0) + any(near)
                row[f'{way}, false'] = row.get(f'{way}, false', 0) + sum(not n for n in near)
    return rows


# --- measuring heads --------------------------------------------------------------------------------------------------


def scene(index: int) -> SimpleNamespace:
    """A procedural head before a background: ``pixels`` [H,W,3] uint8, ``points`` [68,2], ``mask`` [H,W], ``points3d``
    [68,3] of the head, ``expression`` [64]; and ``crop``: its true aligned picture with the same."""
    from avatar_jax.bundled.face_augment import background
    from avatar_jax.procedural import ProceduralHead, render_head
    from data_pipelines.clips import evaluation_clips

    rng = np.random.default_rng([99, index])
    clip = evaluation_clips(1, seed=1000 + index, num_frames=30)[0]
    frame = int(rng.integers(30))
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


def measure_heads(count: int) -> dict[str, dict[str, float]]:
    """Mean errors of each way of measuring."""
    from PIL import Image

    from avatar_jax.faces.alignment import eg3d_crop, five_points
    from avatar_jax.track.clip import crop_placement
    from avatar_jax.track.measure import measure

    rows: dict[str, list[dict[str, float]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for index in range(count):
            true = scene(index)
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
                    clip = measure(file, size=SIZE, label_mode='raw', face='size', **options)
                except UserError as error:
                    print(f'{name}: {error}', file=sys.stderr)
                    continue
                matrix = ideal if file is aligned else clip.matrices[0]
                rows.setdefault(name, []).append(_errors(clip.best(), matrix, ideal, true))
    means = {}
    for name, errors in rows.items():
        kinds = dict.fromkeys(kind for one in errors for kind in one)
        means[name] = {'heads': len(errors)} | {k: float(np.mean([e[k] for e in errors if k in e])) for k in kinds}
    return means


def _errors(found: Any, matrix: np.ndarray, ideal: np.ndarray, true: SimpleNamespace) -> dict[str, float]:
    """Of one measured picture whose crop ``matrix`` cut out."""
    import cv2

    from avatar_jax.faces.camera_labels import CROP, FOCAL_1024, label_from_pose
    from avatar_jax.track.camera import from_translation, to_translation
    from avatar_jax.track.clip import crop_poses, project_clip

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


def run(args: argparse.Namespace) -> int:
    """Command: returns the exit status."""
    from avatar_jax.io.atomic import write_json

    if not args.heads and args.pictures is None:
        raise UserError('give --heads N, --pictures DIR, or both')
    report: dict[str, Any] = {}
    if args.heads:
        report['heads'] = measure_heads(args.heads)
    if args.pictures:
        report['pictures'] = search_pictures(args.pictures)
    for part in report.values():
        for name, values in part.items():
            print(name, {k: round(v, 4) for k, v in values.items()})
    if args.report:
        write_json(args.report, report)
    return 0


def main(argv: list[str] | None = None) -> int:
    """Command line of ``python -m launch.evaluate_measuring``."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser)
    try:
        return run(parser.parse_args(argv))
    except UserError as error:
        print(f'error: {error}', file=sys.stderr)
        return 2


if __name__ == '__main__':
    sys.exit(main())
