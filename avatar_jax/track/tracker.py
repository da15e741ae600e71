"""The tracker: networks, head model and options, which measure one face in the frames of a clip or in a photograph."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from avatar_jax.errors import UserError
from avatar_jax.io.assets import located
from avatar_jax.io.inputs import file_sha256
from avatar_jax.io.landmarks import read_landmark_frames
from avatar_jax.progress import Progress
from avatar_jax.track.choose import Chooser
from avatar_jax.track.clip import track_clip
from avatar_jax.track.crops import check_background, moving_pictures, still_pictures
from avatar_jax.track.fit import FitConfig
from avatar_jax.track.inputs import FrameSource, Selected, is_photograph
from avatar_jax.track.landmark_model import LandmarkModel, at_landmarks, load_head
from avatar_jax.track.landmarker import LandmarkReader
from avatar_jax.track.measured import MeasuredClip, Pictures
from avatar_jax.track.network import FaceReader
from avatar_jax.track.observe import FileLandmarks, Observed, observe
from avatar_jax.track.person_mask import ASSET, PersonMask
from avatar_jax.track.placing import with_head_translation
from avatar_jax.track.quality import frame_quality, sentences
from avatar_jax.track.track import Track, TrackConfig

if TYPE_CHECKING:
    from avatar_jax.faces.base import MorphableModel

Path_ = str | os.PathLike
LANDMARKER = 'face-landmarker'  # of the optional files
NONE = 'none'  # as ``mediapipe``: not even where the file is here
_FIRST = 'frame 0: '  # how notes about which face was taken begin


class Measures(Protocol):
    """What measures one face in the frames of a clip: ``Tracker``, or something else with its outside.

    Attributes:
        name: of the method and its version, stored with what it measured.
        basis: of its coefficients.
        parts: what it measures, see ``MeasuredClip``.
    """

    name: str
    basis: str
    parts: tuple[str, ...]

    def __call__(self, frames: FrameSource, **options: Any) -> MeasuredClip:
        """Measures a clip; arguments and errors as ``Tracker.__call__``."""


class Tracker:
    """Landmarks by a network or from a file, then a fit of identity, expression and pose to the whole clip.

    Args:
        model: head model whose coefficients are fitted: 'procedural', a file of BFM, FLAME or ICT-FaceKit, or a
            ``faces.base.MorphableModel``.
        weights: file of the landmark network; the shipped one by default.
        mediapipe: MediaPipe's ``face_landmarker.task``, which knows real faces (``track.landmarker``). None takes the
            one that ``avatar-jax assets --get face-landmarker`` fetched, if it is here; 'none' the landmark network in
            any case, and nothing of MediaPipe's for the masks (``track.person_mask``).
        fit, steady, crop: see ``track.TrackConfig``.
        pixels: refine pose and expression on the pixels, and find light and albedo.
        translation: let labels also follow the head through the uncropped video.

    Raises:
        UserError: the weights, the head model or the landmarker's file cannot be read.
    """

    def __init__(
        self,
        model: Path_ | MorphableModel = 'procedural',
        *,
        weights: Path_ | None = None,
        mediapipe: Path_ | None = None,
        fit: FitConfig | None = None,
        steady: float = 1.0,
        crop: str = 'auto',
        pixels: bool = False,
        translation: bool = False,
    ):
        self.network = FaceReader(None if weights is None else str(weights))
        task = located(LANDMARKER) if mediapipe is None else None if str(mediapipe) == NONE else mediapipe
        self.reader = self.network if task is None else LandmarkReader(task)
        cutter = None if str(mediapipe) == NONE else located(ASSET)
        self.masker = None if cutter is None else PersonMask(cutter)
        self.model = load_head(model) if isinstance(model, (str, os.PathLike)) else model
        self.basis = self.model.basis
        self.config = TrackConfig(FitConfig() if fit is None else fit, steady, crop)
        self.pixels, self.translation = pixels, translation
        self.parts = ('pose', 'expression', 'identity', 'landmarks', *(('texture',) if pixels else ()))

    @property
    def name(self) -> str:
        """Of the method, its version and its options."""
        reader = f'face_net {self.network.sha256[:12]}' if self.reader is self.network else self.reader.name
        return f'{reader}, fit 1, {self.basis}, face size'

    @functools.cached_property
    def landmark_model(self) -> LandmarkModel:
        """Landmarks of the head model."""
        return at_landmarks(self.model)

    def __call__(
        self,
        frames: FrameSource,
        *,
        size: int,
        label_mode: str,
        background: str = 'white',
        face: str | int | Chooser | None = 'size',
        landmarks: Path_ | None = None,
        masked: bool = True,
    ) -> MeasuredClip:
        """Measures a clip or a photograph.

        Args:
            frames: see ``track.inputs``.
            size: side of the crops in pixels.
            label_mode: normalisation of the camera labels (``faces.camera_labels.MODES``).
            background: one of ``crops.BACKGROUNDS``.
            face: which of several faces, see ``choose.Chooser``.
            landmarks: file of landmarks of all frames; None reads them from the pictures.
            masked: give the mask of the person also where the background is kept.

        Raises:
            UserError: the frames cannot be read, no face in any of them, or another one than ``face``.
        """
        check_background(background)
        config = dataclasses.replace(self.config, size=size, label_mode=label_mode)
        path, still = Path(frames.path), is_photograph(frames)
        observed = self._observe(frames, face, landmarks)
        try:
            track = track_clip(observed, self.landmark_model, config, self.reader.calibration)
        except UserError as error:
            raise named(path, error) from error
        if self.pixels:
            from avatar_jax.track.pixels import refine

            with _bar(frames, 'pixels') as on_frame:
                track = refine(track, frames, self.model, self.landmark_model, config, on_frame)
        if self.translation:
            track = with_head_translation(track)
        if still:
            pictures = still_pictures(frames, track, background, masked, self.masker)
        else:
            network = (self.masker or self.network) if masked or background != 'keep' else None
            pictures = moving_pictures(frames, track, network, background)
        return measured_clip(track, frames, pictures, self.parts, label_mode)

    def _observe(self, frames: FrameSource, face: str | int | Chooser | None, landmarks: Path_ | None) -> Observed:
        """Landmarks of all frames."""
        path, still = Path(frames.path), is_photograph(frames)
        with _bar(frames, 'landmarks') as on_frame:
            try:
                if landmarks is None:
                    rule = face if still or face is not None else 'size'
                    choose = rule if isinstance(rule, Chooser) else Chooser(rule, self.network)
                    careful = frames.num_frames == 1
                    observed = observe(frames, self.reader, choose, careful=careful, on_frame=on_frame)
                else:
                    points = read_landmark_frames(landmarks)
                    if isinstance(frames, Selected):
                        points = points[frames.indices[frames.indices < len(points)]]
                    source = FileLandmarks(points, self.reader, f'file {Path(landmarks).name}')
                    observed = source.observe(frames, path, on_frame)
            except UserError as error:
                raise named(path, error) from error
        if landmarks is not None and any('reduced' in note for note in getattr(frames, 'notes', ())):
            raise UserError(
                f'{landmarks}: belongs to a picture that is too large to use whole; reduce both or leave it out'
            )
        if still and not observed.found.any():
            raise UserError(_no_face(path, observed, landmarks))
        return observed


@contextlib.contextmanager
def _bar(frames: FrameSource, what: str) -> Iterator[Callable[[], None]]:
    """Progress over the frames of a clip; a photograph is done at once."""
    if is_photograph(frames):
        yield lambda: None
        return
    with Progress(frames.num_frames, f'{Path(frames.path).name}: {what}', unit='frame') as bar:
        yield bar.update


def _no_face(path: Path, observed: Observed, landmarks: Path_ | None) -> str:
    if landmarks is not None:
        return f'{landmarks}: the points do not lie on the picture {path.name}; check the pairing'
    said = [note.split(': ', 1)[-1] for note in observed.notes if 'there is no face' in note]
    if said:
        return f'{path}: {said[-1]}'
    return (
        f'{path}: no face found; use a sharper, more frontal picture, or put five landmarks into '
        f'{path.stem}.landmarks5.txt beside it'
    )


def named(path: Path, error: UserError) -> UserError:
    """The error with the file's name in front, unless it says it already."""
    text = str(error)
    return error if str(path) in text else UserError(f'{path}: {text}')


def measured_clip(
    track: Track, frames: FrameSource, pictures: Pictures, parts: tuple[str, ...], label_mode: str
) -> MeasuredClip:
    """What a ``Track`` says about a clip."""
    found = track.found & track.valid
    said = [note for note in track.notes if note.startswith(_FIRST) and is_photograph(frames)]
    notes = [*getattr(frames, 'notes', ()), *(note for note in track.notes if note not in said)]
    if not found.all():
        notes.append(f'no face in {int((~found).sum())} of {len(found)} frames: interpolated or held')
    path = Path(frames.path)
    return MeasuredClip(
        path=path,
        coefficients=track.coefficients(),
        labels=track.labels,
        landmarks=track.crop_landmarks(),
        found=found,
        fps=float(frames.fps),
        basis=track.basis,
        parts=parts,
        pictures=pictures,
        label_mode=label_mode,
        valid=track.valid,
        segment=track.segment,
        matrices=track.matrices,
        times=track.times,
        quality=frame_quality(track),
        sentences=functools.partial(sentences, track),
        fitted=track.fitted,
        notes=tuple(notes),
        warnings=tuple(note.removeprefix(_FIRST) for note in said),
        sha256=file_sha256(path) if path.is_file() else '',
        landmarks_from=track.source,
        track=track,
    )
