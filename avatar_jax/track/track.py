"""What a tracked clip is: numbers of every frame, and how they are to be made."""

from __future__ import annotations

import dataclasses

import numpy as np

from avatar_jax.checks import Check
from avatar_jax.ops.coefficients import NUM_ID, SLICES
from avatar_jax.track import fit
from avatar_jax.track.smooth import runs

MODES = ('auto', 'frame', 'clip')


@dataclasses.dataclass(frozen=True)
class TrackConfig:
    """Options of the second half of tracking.

    Attributes:
        fit: of the fit.
        steady: strength of the filter against jitter, 0 off.
        crop: 'clip' cuts the same square out of every frame of a shot, 'frame' follows the face, 'auto' decides.
        label_mode: how camera labels are normalised (``camera_labels.normalise_pose``).
        size: side of the crops in pixels.
        read_numbers: in the procedural basis, let ``track.numbers`` tell which numbers moved the landmarks.
    """

    fit: fit.FitConfig = dataclasses.field(default_factory=fit.FitConfig)
    steady: float = 1.0
    crop: str = 'auto'
    label_mode: str = 'orig'
    size: int = 512
    read_numbers: bool = True

    def __post_init__(self):
        check = Check(self)
        check.one_of('crop', *MODES)
        check.need(self.size >= 16, 'size', 'the crop needs at least 16 pixels')
        check.at_least(0, 'steady', 'fit.smooth')


@dataclasses.dataclass
class Track:
    """One tracked clip (or photograph: one frame) of T frames.

    Attributes:
        times: [T] seconds. found: [T] a face was measured; else the numbers are interpolated or held.
        valid: [T] the numbers mean something (False in shots without any face).
        segment: [T] shot or person.
        landmarks: [T,68,2] measured and filtered, pixels of the input, y down, integers at pixel centres.
        sigma: [T,68] their expected error in pixels.
        fitted: [T,68,2] the landmarks of the fitted head.
        identity: [S,K] of each segment. expression: [T,64] in ``basis`` (zeros beyond what the basis has).
        pose: [T,6] before the camera of the whole picture (``track.camera``). focal: [S] pixels.
        angle, translation: [T,3] in the aligned crop, radians and decimetres.
        labels: [T,25] camera labels. matrices: [T,2,3] from input pixels to crop pixels (integers at pixel centres).
        placement: [T,3] scale and place (x, y up) of the alignment.
        five: [T,5,2] the five points that the crop was made from.
        residual: [T] distance of fitted from measured landmarks, in eye distances.
        present: [T] probability of a face. size: (width, height) of the input.
        basis: of the coefficients. crop_mode: 'clip' or 'frame'. jitter: (before, after) in eye distances.
        notes: what happened. source: landmark backend. seconds: of the fit.
        gamma: [S,27] light and texture: [S,80] albedo of each segment, where pixels were used.
    """

    times: np.ndarray
    found: np.ndarray
    valid: np.ndarray
    segment: np.ndarray
    landmarks: np.ndarray
    sigma: np.ndarray
    fitted: np.ndarray
    identity: np.ndarray
    expression: np.ndarray
    pose: np.ndarray
    focal: np.ndarray
    angle: np.ndarray
    translation: np.ndarray
    labels: np.ndarray
    matrices: np.ndarray
    placement: np.ndarray
    five: np.ndarray
    residual: np.ndarray
    present: np.ndarray
    size: tuple[int, int]
    basis: str
    crop_mode: str
    crop_size: int
    jitter: tuple[float, float]
    notes: list[str]
    source: str
    likeness: list[float]
    seconds: float = 0.0
    gamma: np.ndarray | None = None
    texture: np.ndarray | None = None

    @property
    def num_frames(self) -> int:
        """T."""
        return len(self.times)

    def coefficients(self) -> np.ndarray:
        """[T,260] records: identity, expression, albedo (0), angle, light (0), translation, and the crop numbers."""
        out = np.zeros((self.num_frames, 260), np.float32)
        rows = self.identity[self.segment]
        width = min(rows.shape[1], NUM_ID)
        out[:, :width] = rows[:, :width]
        out[:, SLICES['exp']] = self.expression
        out[:, SLICES['angle']], out[:, SLICES['trans']] = self.angle, self.translation
        out[:, SLICES['crop']] = self.placement
        if self.gamma is not None:
            out[:, SLICES['gamma']], out[:, SLICES['tex']] = self.gamma[self.segment], self.texture[self.segment]
        return out

    def crop_landmarks(self) -> np.ndarray:
        """[T,68,2] landmarks in the crops, pixels, y down, integers at pixel centres."""
        m = self.matrices
        return (np.einsum('tij,tnj->tni', m[..., :2], self.landmarks) + m[:, None, :, 2]).astype(np.float32)

    def missing(self) -> list[tuple[int, int]]:
        """Half-open ranges of frames in which no face was measured."""
        return runs(~self.found)
