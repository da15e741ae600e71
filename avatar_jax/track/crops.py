"""Aligned crops and what is behind the person in them: photographs with care, frames of videos in quantity.

A photograph is resampled exactly as the EG3D data were made, its background is that of the file's own transparency, or
found by GrabCut (``track.background``). Frames of a video get one antialiased warp, which puts every pixel at the same
place, and the landmark network's head mask.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from avatar_jax.errors import UserError
from avatar_jax.faces.alignment import EG3D_RESCALE, EG3D_SIZE, align, eg3d_crop_box
from avatar_jax.track.background import separate
from avatar_jax.track.inputs import FrameSource
from avatar_jax.track.measured import Shown
from avatar_jax.track.network import FaceReader, cut
from avatar_jax.track.person_mask import PersonMask
from avatar_jax.track.track import Track

COLOURS = {'white': 255.0, 'black': 0.0}
BACKGROUNDS = (*COLOURS, 'keep')
_MASK_BATCH = 16  # crops that the network parts from their background together


def check_background(background: str) -> None:
    """Raises ``UserError`` for a word that is not one of ``BACKGROUNDS``."""
    if background not in BACKGROUNDS:
        raise UserError(f"background '{background}': choose one of {', '.join(BACKGROUNDS)}")


@dataclasses.dataclass(frozen=True)
class Still:
    """A square picture with the head in the middle, and the part of it that is the crop.

    Attributes:
        rgb: [T, T, 3] uint8, black where there is no photograph.
        shown: [T, T] in [0, 1]: where there is photograph.
        opacity: [T, T] in [0, 1]: the file's own transparency, or None.
        points: [5, 2] pixels, y down, or None.
        box: left, top, right, bottom of the crop.
        size: side of the result.
    """

    rgb: np.ndarray
    shown: np.ndarray
    opacity: np.ndarray | None
    points: np.ndarray | None
    box: tuple[int, int, int, int]
    size: int

    def cut(self, image: np.ndarray) -> np.ndarray:
        """The crop of [T, T] in [0, 1] or [T, T, 3] uint8, at the side of the result."""
        from PIL import Image

        part = image[self.box[1] : self.box[3], self.box[0] : self.box[2]]
        floating = part.dtype != np.uint8
        part = Image.fromarray(np.rint(part * 255).astype(np.uint8) if floating else np.ascontiguousarray(part))
        result = np.asarray(part.resize((self.size, self.size), Image.Resampling.LANCZOS))
        return result.astype(np.float32) / 255 if floating else result

    @property
    def crop_points(self) -> np.ndarray | None:
        """[5, 2] landmarks in the result."""
        if self.points is None:
            return None
        return (self.points - self.box[0] + 0.5) * (self.size / (self.box[2] - self.box[0])) - 0.5


def aligned_still(pixels: np.ndarray, alpha: np.ndarray | None, five: np.ndarray, size: int) -> Still:
    """EG3D's crop of a photograph at any size: five-point alignment to 1024, centre 700, Lanczos.

    Args:
        pixels: [H, W, 3] uint8. alpha: [H, W] uint8 opacity, or None.
        five: [5, 2] pixels, y down.

    Raises:
        UserError: the eyes lie on one point.
    """
    if np.hypot(*(five[1] - five[0])) < 2:
        raise UserError('the eyes lie on one point; check the landmarks')
    # Alignment treats channels alike: opacity and extent of the photograph travel as further channels.
    extent = np.full(pixels.shape[:2], 255, np.uint8)
    opacity = extent if alpha is None else alpha
    result = align(pixels, five, EG3D_SIZE, EG3D_RESCALE)
    extra = align(np.dstack([opacity, extent, extent]), five, EG3D_SIZE, EG3D_RESCALE).image / np.float32(255)
    points = np.array(result.landmarks, np.float64)
    points[:, 1] = EG3D_SIZE - 1 - points[:, 1]
    return Still(
        rgb=result.image,
        shown=extra[..., 1],
        opacity=None if alpha is None else extra[..., 0],
        points=points,
        box=eg3d_crop_box(),
        size=size,
    )


def still_picture(still: Still, background: str, *, masked: bool = True, masker: PersonMask | None = None) -> Shown:
    """The crop before its new background, with the mask of the person.

    Args:
        background: one of ``BACKGROUNDS``.
        masked: look for the person where the background is kept and the file has no transparency, too; else the mask
            covers all of the photograph.
        masker: the network that finds the person; None leaves it to GrabCut.
    """
    rgb, shown = still.cut(still.rgb), still.cut(still.shown)
    own = shown if still.opacity is None else still.cut(still.opacity)
    keep = background == 'keep'
    if still.opacity is not None:  # read_image laid the picture over white: only what lies beyond it is left to fill
        if background == 'black':
            bare = np.clip(np.rint(rgb - 255.0 * (shown - own)[..., None]), 0, 255).astype(np.uint8)
            return Shown(0, bare, own, '', (_TRANSPARENCY,))
        return Shown(
            0, rgb if keep else _over(rgb, shown, shown, background), own, '', () if keep else (_TRANSPARENCY,)
        )
    if still.points is None or (keep and not masked):
        return Shown(0, rgb if keep else _over(rgb, shown, shown, background), own)
    matte = separate(still.rgb, still.shown, still.points, masker)
    if not matte.trusted:
        warning = f'the background could not be separated ({matte.made_by}) and was kept'
        return Shown(0, rgb if keep else _over(rgb, shown, shown, background), own, '', (), () if keep else (warning,))
    alpha = still.cut(matte.alpha)
    if keep:
        return Shown(0, rgb, alpha, '', (f'head mask: {matte.made_by}',))
    return Shown(
        0, _over(rgb, shown, alpha, background), alpha, '', (f'background made {background}: {matte.made_by}',)
    )


_TRANSPARENCY = "background from the file's transparency"


def _over(rgb: np.ndarray, shown: np.ndarray, alpha: np.ndarray, background: str) -> np.ndarray:
    """Lays the crop over one colour. ``rgb`` fades to black where ``shown`` does, so its colour is ``rgb / shown``."""
    colour = np.minimum(rgb / np.maximum(shown, 1e-3)[..., None], 255.0)
    weight = np.clip(np.minimum(alpha, shown), 0, 1)[..., None]
    return np.rint(colour * weight + COLOURS[background] * (1 - weight)).astype(np.uint8)


def still_pictures(
    frames: FrameSource, track: Track, background: str, masked: bool, masker: PersonMask | None = None
) -> Callable[..., Iterator[Shown]]:
    """``measured.Pictures`` of a photograph."""

    def pictures(wanted: Sequence[int] | None, on_frame: Callable[[Any], None] | None) -> Iterator[Shown]:
        frame = next(iter(frames))
        if on_frame is not None:
            on_frame(frame)
        if track.valid[0]:
            still = aligned_still(frame.pixels, frame.alpha, track.five[0].astype(np.float64), track.crop_size)
            yield still_picture(still, background, masked=masked, masker=masker)

    return pictures


def moving_pictures(
    frames: FrameSource, track: Track, network: FaceReader | PersonMask | None, background: str
) -> Callable[..., Iterator[Shown]]:
    """``measured.Pictures`` of a clip.

    Args:
        network: reads head masks; None takes all of the frame for the head, which only goes with ``background='keep'``.
    """

    def pictures(wanted: Sequence[int] | None, on_frame: Callable[[Any], None] | None) -> Iterator[Shown]:
        chosen = None if wanted is None else set(wanted)
        waiting: list[tuple[int, np.ndarray, np.ndarray]] = []
        for frame in frames:
            i = frame.index
            if i >= track.num_frames or (chosen is not None and i > max(chosen, default=-1)):
                break
            if on_frame is not None:
                on_frame(frame)
            if not track.valid[i] or (chosen is not None and i not in chosen):
                continue
            waiting.append((i, warped_crop(frame.pixels, track, i), _extent(frame.pixels, track, i)))
            if len(waiting) == _MASK_BATCH:
                yield from _with_masks(waiting, network, background)
                waiting.clear()
        if waiting:
            yield from _with_masks(waiting, network, background)

    return pictures


def _with_masks(waiting: list, network: FaceReader | PersonMask | None, background: str) -> Iterator[Shown]:
    shown = np.stack([s for _, _, s in waiting])
    black = np.stack([c for _, c, _ in waiting])
    # Beyond the photograph crops fade to black, which is no background that anybody stands before.
    crops = np.rint(np.clip(black.astype(np.float32) + 255 * (1 - shown), 0, 255)).astype(np.uint8)
    masks = shown if network is None else shown * np.clip(network.masks(crops), 0, 1)[..., None]
    if background == 'keep':
        images = black
    else:
        colour = COLOURS[background]
        images = np.rint(colour + masks * (crops.astype(np.float32) - colour)).astype(np.uint8)
    for (number, _, _), image, mask in zip(waiting, images, masks, strict=True):
        yield Shown(number, image, mask[..., 0].astype(np.float32))


def _extent(pixels: np.ndarray, track: Track, frame: int) -> np.ndarray:
    """[S, S, 1] in [0, 1]: where the crop shows the frame, and not what lies beyond its edges."""
    matrix, side = track.matrices[frame], track.crop_size
    low = (np.array([-2.0, -2.0]) - matrix[:, 2]) / matrix[[0, 1], [0, 1]]  # crops are not turned
    high = (side + 2 - matrix[:, 2]) / matrix[[0, 1], [0, 1]]
    if (low > 0).all() and (high < np.array(pixels.shape[1::-1])).all():
        return np.ones((side, side, 1), np.float32)
    return warped_crop(np.full_like(pixels, 255), track, frame)[..., :1].astype(np.float32) / 255


def warped_crop(pixels: np.ndarray, track: Track, frame: int) -> np.ndarray:
    """The aligned crop [S, S, 3] of one frame by one antialiased warp."""
    matrix = track.matrices[frame].copy()
    matrix[:, 2] += 0.5 - matrix[:, :2] @ [0.5, 0.5]  # from integers at pixel centres to first pixel at 0.5
    return cut(pixels, matrix, track.crop_size)
