"""Tracks inputs into folders, as ``avatar-jax track`` does: measures each, writes its folder, lists the whole."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from avatar_jax.checks import OPTION, Check
from avatar_jax.errors import UserError
from avatar_jax.io.landmarks import SideFile, side_file
from avatar_jax.progress import Progress
from avatar_jax.track import output
from avatar_jax.track.choose import Chooser
from avatar_jax.track.fit import FitConfig
from avatar_jax.track.inputs import Input
from avatar_jax.track.measure import Tracker, track_beside
from avatar_jax.track.tracker import NONE

LISTED = ('name', 'file', 'kind', 'frames', 'faces_found', 'quality')  # of each report, in the report of all


@dataclass(frozen=True)
class TrackOptions:
    """What is measured and written; fields are the options of the command.

    Attributes:
        size: side of the crops in pixels. model: head model that is fitted, 'procedural' or a file.
        mediapipe, weights: files, see ``Tracker``. face: which of several, see ``Chooser``.
        crop: see ``track.TrackConfig``. smooth: strength of smoothing. focal: in units of the longer side, or None.
        label_mode: normalisation of the camera labels. pixels, translation: see ``Tracker``.
        crops: 'auto', 'png', 'jpg' or 'none'. background: see ``crops.BACKGROUNDS``. fps: of folders of frames.
        no_overlay, no_masks: leave them out.
    """

    size: int = 512
    model: str = 'procedural'
    mediapipe: str | None = None
    weights: str | None = None
    face: str = 'size'
    crop: str = 'auto'
    smooth: float = 1.0
    focal: float | None = None
    label_mode: str = 'orig'
    pixels: bool = False
    translation: bool = False
    crops: str = 'auto'
    background: str = 'keep'
    fps: float = 25.0
    no_overlay: bool = False
    no_masks: bool = False

    def __post_init__(self):
        check = Check(self, OPTION)
        check.within(16, 4096, 'size')
        check.at_least(0, 'smooth')
        check.within(0.2, 100, 'focal')
        check.within(0.001, 1000, 'fps')

    def tracker(self) -> Tracker:
        """The tracker that all inputs share."""
        return Tracker(
            self.model,
            weights=self.weights,
            mediapipe=self.mediapipe,
            fit=FitConfig(smooth=self.smooth, focal=self.focal),
            steady=self.smooth,
            crop=self.crop,
            pixels=self.pixels,
            translation=self.translation,
        )


def landmark_files(items: Sequence[Input], files: Sequence[str] | None, options: TrackOptions) -> dict[str, str]:
    """Name of an input -> its file of landmarks.

    Raises:
        UserError: not one file for each, or MediaPipe's networks are to find them.
    """
    if files and options.mediapipe not in (None, NONE):
        raise UserError(f'--mediapipe {options.mediapipe}: finds the landmarks that --landmarks has; give one of them')
    if files and len(files) != len(items):
        raise UserError(f'--landmarks: {len(files)} files for {len(items)} inputs; give one for each')
    return dict(zip((item.name for item in items), files or ()))


def track_into(
    folder: Path,
    item: Input,
    tracker: Tracker,
    chooser: Chooser,
    options: TrackOptions,
    landmarks: str | None = None,
    settings: Mapping[str, Any] | None = None,
    note: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:
    """Tracks one input into a folder of its name in ``folder``; returns its report.

    Args:
        landmarks: file of landmarks; None: one beside the input, else they are detected.
        settings: for the report. note: called with each sentence for the person who asked.

    Raises:
        UserError: it cannot be read, or shows no face; the message names it.
    """
    try:
        frames = item.open()
        asked = options.mediapipe not in (None, NONE)
        beside = SideFile() if landmarks or asked else side_file(item.path)
        began = time.monotonic()
        clip = track_beside(
            tracker,
            frames,
            beside,
            landmarks,
            size=options.size,
            label_mode=options.label_mode,
            background=options.background,
            face=chooser,
            masked=not options.no_masks,
        )
        measured = time.monotonic() - began
        for text in (*clip.warnings, *frames.notes):
            note(f'{item.path}: {text}')
        crops = options.crops if options.crops != 'auto' else 'jpg' if item.moving else 'png'
        config = output.OutputConfig(crops, not options.no_overlay, not options.no_masks)
        seconds = {'landmarks': measured - clip.track.seconds, 'fit': clip.track.seconds}
        with Progress(clip.num_frames, f'{item.path.name}: writing', unit='frame') as bar:
            report = output.write(
                folder / item.name,
                item,
                frames,
                clip,
                tracker.model,
                config,
                {**(settings or {}), 'seconds': seconds},
                tracker.network.sha256,
                bar.update,
            )
    except UserError as error:
        text = str(error)
        raise UserError(text if str(item.path) in text else f'{item.path}: {text}') from error
    return {'name': item.name, **report}


def summary(report: Mapping[str, Any]) -> str:
    """What became of one input, in a line."""
    quality = report['quality']
    frames = f'{report["faces_found"]} of {report["frames"]} frames'
    text = f'{frames}, quality {quality["score"]:.2f} ({quality["grade"]})'
    if report['frames'] > 2:
        jitter = report['jitter_percent_of_eye_distance']
        text += f', jitter {jitter["measured"]:.2f} -> {jitter["after_filter"]:.2f} % of the eye distance'
    return text


def dataset_labels(folder: Path, names: Sequence[str]) -> list[list[Any]]:
    """[[crop, 25 numbers], ...] of all crops of tracked inputs, as EG3D's dataset.json has them."""
    rows = []
    for name in names:
        with np.load(folder / name / output.ARRAYS) as arrays:
            labels = arrays['labels']
        for path in sorted((folder / name / output.CROPS).glob('*')):
            rows.append([f'{name}/{output.CROPS}/{path.name}', [float(v) for v in labels[int(path.stem)]]])
    return rows
