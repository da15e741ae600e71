"""The whole path on one person whose truth is known: build, drive, compare, and show it beside the truth."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np

from avatar_jax.driving.signals import still_rows
from avatar_jax.eval import faces
from avatar_jax.io import atomic
from avatar_jax.io.provenance import Provenance
from avatar_jax.losses.networks import default_bank
from avatar_jax.methods.model import Model
from avatar_jax.ops.image_metrics import psnr, to_unit
from avatar_jax.ops.windows import WINDOW
from avatar_jax.progress import Progress, activity

PANEL = 256  # pixels of one panel in the video
BATCH = 5  # frames rendered per call


def demonstrate(model: Model, scene: dict[str, Any], out: Path, *, seed: int = 0, **options: Any) -> dict[str, Any]:
    """Builds an avatar of the scene's portrait, drives it, and writes demo.mp4 (driver | avatar | truth), sheet.png and
    report.json into ``out``.

    Args:
        scene: of ``data_pipelines.scenes.make_scene``.
        options: of the method's ``build``.

    Returns:
        the report.
    """
    frames, portrait = len(scene['labels']), scene['portrait']
    options = {**model.method.evaluation_options, **options}
    bank, began, done_before = default_bank(model.config.img_resolution), time.monotonic(), 0
    with Progress(model.steps(**options), 'making an avatar of one picture') as bar:

        def on_step(done: int, **numbers: float) -> None:
            nonlocal done_before
            bar.update(done - done_before, **numbers)
            done_before = done

        built = model.build(portrait, bank=bank, on_step=on_step, **options)
    seconds = {'avatar': time.monotonic() - began}

    began = time.monotonic()
    own = np.repeat(still_rows(portrait)[:, None], WINDOW, 1)
    windows = np.concatenate([scene['windows'], scene['still_windows'], own])
    labels = np.concatenate([scene['labels'], scene['labels'], np.asarray(portrait.camera.label)[None]])
    with Progress(len(labels), 'animating', unit='frame') as bar:
        rgb = model.frames(built.avatar, windows, labels, per_call=BATCH, on_frames=bar.update).rgb
    pictures, still, rebuilt = np.split(rgb, [frames, 2 * frames])
    seconds['animation'] = time.monotonic() - began

    truth, box = scene['truth'], np.asarray(faces.region_boxes(scene['landmarks'], rgb.shape[1])['mouth_eyes'])

    def score(rgb: np.ndarray, truth: np.ndarray = truth, **options: Any) -> float:
        return float(np.mean(psnr(to_unit(rgb), to_unit(truth), **options)))

    provenance = Provenance(synthetic=True, weights=model.sha256, seed=seed, command='demo')
    report = {
        'method': model.method.name,
        'source': {
            'psnr': score(rebuilt, np.asarray(portrait.image)[None]),
            'psnr_head': score(rebuilt, np.asarray(portrait.image)[None], mask=np.asarray(portrait.mask)[None]),
        },
        'build': built.report,
        'driven': {
            'psnr_head': score(pictures, mask=scene['mask']),
            'psnr_mouth_eyes': score(pictures, mask=box),
            'psnr_mouth_eyes_still': score(still, mask=box),
        },
        'frames': frames,
        'people': scene['people'],
        'networks': bank.report(),
        'seconds': {k: round(v, 1) for k, v in seconds.items()},
        'provenance': provenance.as_dict(),
    }
    with activity('writing'):
        write_video(out / 'demo.mp4', scene, pictures, provenance)
        write_sheet(out / 'sheet.png', scene, rebuilt[0], pictures, provenance)
        atomic.write_json(out / 'report.json', report)
    return report


def _enlarge(pictures: np.ndarray) -> np.ndarray:
    """[..., H, W, 3] in [-1, 1] -> uint8 panels of `PANEL` pixels."""
    from PIL import Image

    from avatar_jax.io.images import to_uint8

    return np.stack(
        [np.asarray(Image.fromarray(p).resize((PANEL, PANEL), Image.Resampling.BICUBIC)) for p in to_uint8(pictures)]
    )


def write_video(path: Path, scene: dict, pictures: np.ndarray, provenance: Provenance) -> None:
    """driver | avatar | truth."""
    from avatar_jax.io.video import write_video as write

    rows = zip(scene['driver'], pictures, scene['truth'], strict=True)
    write(path, (np.concatenate(list(_enlarge(np.stack(row))), 1) for row in rows), scene['fps'], provenance=provenance)


def write_sheet(path: Path, scene: dict, rebuilt: np.ndarray, pictures: np.ndarray, provenance: Provenance) -> None:
    """First row: the only picture and its reconstruction; then driver, avatar and truth at six moments."""
    from avatar_jax.io.images import grid, write_png

    columns = min(6, len(pictures))
    chosen = np.linspace(0, len(pictures) - 1, columns).round().astype(int)
    first = [np.asarray(scene['portrait'].image), rebuilt]
    first = first[:columns] + [np.ones_like(first[0])] * (columns - len(first))
    cells = np.concatenate([np.stack(first), scene['driver'][chosen], pictures[chosen], scene['truth'][chosen]])
    write_png(path, grid(_enlarge(cells), columns), provenance)
