"""The project's own tracker (``avatar_jax.track``) behind the seam of ``driving.measure``."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import numpy as np

from avatar_jax.driving.bases import PROCEDURAL
from avatar_jax.driving.measure import Measured, OnPicture
from avatar_jax.errors import UserError
from avatar_jax.ops.coefficients import NUM_COEFFICIENTS

_MASK_BATCH = 16  # crops that the network parts from their background together


class FaceTracker:
    """Landmarks by network, then a fit of identity, expression and pose to the whole clip; white behind the head.

    Args:
        model: head model whose coefficients are fitted (``faces.base.MorphableModel``); the procedural one by default.
        face: which of several faces: 'size', a number from 1 on, or a picture of the person.
        weights: file of the landmark network; the shipped one by default.

    Raises:
        UserError: the weights cannot be read.
    """

    parts = ('pose', 'expression', 'identity', 'landmarks')

    def __init__(self, model: Any = None, face: str = 'size', weights: str | None = None):
        from avatar_jax.track.network import FaceReader

        self.face, self.model = face, model
        self.network = FaceReader(weights)
        self.basis = PROCEDURAL if model is None else model.basis
        self.name = f'face_net {self.network.sha256[:12]}, fit 1, {self.basis}, face {face}'

    @functools.cached_property
    def _landmark_basis(self) -> Any:
        from avatar_jax.procedural import ProceduralHead
        from avatar_jax.track.basis import landmark_basis

        return landmark_basis(ProceduralHead() if self.model is None else self.model)

    def __call__(self, frames: Any, size: int, on_picture: OnPicture | None = None) -> Measured:
        """See ``driving.measure.Tracker``."""
        from avatar_jax.progress import Progress
        from avatar_jax.track.choose import Chooser
        from avatar_jax.track.clip import TrackConfig, track_clip
        from avatar_jax.track.observe import observe
        from avatar_jax.track.output import crop_landmarks

        name = Path(frames.path).name
        choose = Chooser(self.face, self.network)
        try:
            with Progress(frames.num_frames, f'{name}: landmarks', unit='frame') as bar:
                observed = observe(frames, self.network, choose, careful=frames.num_frames == 1, on_frame=bar.update)
            track = track_clip(
                observed, self._landmark_basis, TrackConfig(label_mode='raw', size=size), self.network.calibration
            )
        except UserError as error:
            text = str(error)
            raise UserError(text if str(frames.path) in text else f'{frames.path}: {text}') from error
        if on_picture is not None:
            with Progress(track.num_frames, f'{name}: crops', unit='frame') as bar:
                self._pictures(frames, track, on_picture, bar)
        found = track.found & track.valid
        notes = list(track.notes)
        if not found.all():
            notes.append(f'no face in {int((~found).sum())} of {len(found)} frames: interpolated or held')
        return Measured(
            track.coefficients()[:, :NUM_COEFFICIENTS],
            track.labels,
            crop_landmarks(track),
            found,
            float(frames.fps),
            track.basis,
            self.parts,
            float(track.times[0]),
            tuple(notes),
            track.segment,
            track.matrices,
            track.times,
        )

    def _pictures(self, frames: Any, track: Any, on_picture: OnPicture, bar: Any) -> None:
        """Second pass: hands out crops and masks in order, a few at a time."""
        from avatar_jax.track.output import crop_of

        waiting: list[tuple[int, np.ndarray, np.ndarray]] = []

        def hand_out() -> None:
            if not waiting:
                return
            # Beyond the photograph crops fade to black, which is no background that anybody stands before.
            shown = np.stack([s for _, _, s in waiting])
            crops = np.stack([c for _, c, _ in waiting]).astype(np.float32) + 255 * (1 - shown)
            crops = np.rint(np.clip(crops, 0, 255)).astype(np.uint8)
            masks = shown * np.clip(self.network.masks(crops), 0, 1)[..., None]
            white = np.rint(255 + masks * (crops.astype(np.float32) - 255)).astype(np.uint8)
            for (number, _, _), picture, mask in zip(waiting, white, masks, strict=True):
                on_picture(number, picture, np.rint(255 * mask[..., 0]).astype(np.uint8))
                bar.update()
            waiting.clear()

        for frame in frames:
            if frame.index >= track.num_frames:
                break
            extent = np.full_like(frame.pixels, 255)
            crop, shown = (crop_of(x, track, frame.index, exact=False) for x in (frame.pixels, extent))
            waiting.append((frame.index, crop, shown[..., :1].astype(np.float32) / 255))
            if len(waiting) == _MASK_BATCH:
                hand_out()
        hand_out()
