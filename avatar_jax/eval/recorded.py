"""Cases of recorded clips, as the papers test: own motion, another person's motion, and many cameras.

* own: one frame of a clip is the portrait, others are driven and have their true picture (GPAvatar, HiDe-NeRF, NOFA);
* cross: the portrait's person is driven by another clip, whose pictures show somebody else: what can be compared is the
  identity with the portrait, and expression, pose and key points with the driver (OTAvatar Table 1, GPAvatar);
* views: the first frontal frame is the portrait, all cameras of the frames after it are targets (OTAvatar Table 1).

Pictures are read through ``Recording``, a few frames at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np

from avatar_jax.errors import UserError
from avatar_jax.eval.cases import Case, TrueViews, as_portrait, following_frames, other_frames, still_windows
from avatar_jax.ops.windows import RADIUS
from avatar_jax.types import Motion, Portrait

FRONTAL = np.deg2rad(15.0)  # largest yaw of a frontal frame


@dataclass(frozen=True)
class Recording:
    """A clip of T frames seen by C cameras.

    Attributes:
        name: of the clip. motion: its T frames, as camera 0 sees them.
        row: (camera, frame) -> dict with ``image`` uint8 [H,W,3], ``label`` [25], and where they are known ``mask``
            uint8 [H,W], ``landmarks`` [68,2], ``shape`` [S].
        window: (camera, frame) -> motion window [27,70]. cameras: their number.
    """

    name: str
    motion: Motion
    row: Callable[[int, int], Mapping[str, np.ndarray]]
    window: Callable[[int, int], np.ndarray]
    cameras: int = 1

    def views(self, places: Sequence[tuple[int, int]]) -> TrueViews:
        """The true pictures at (camera, frame)."""
        rows = [self.row(*place) for place in places]

        def stacked(field: str, scale: float, shift: float) -> np.ndarray | None:
            if field not in rows[0]:
                return None
            return np.stack([r[field] for r in rows]).astype(np.float32) * np.float32(scale) + np.float32(shift)

        return TrueViews(
            np.stack([self.window(*place) for place in places]).astype(np.float32),
            stacked('label', 1, 0),
            stacked('image', 1 / 127.5, -1),
            stacked('mask', 1 / 255, 0),
            stacked('landmarks', 1, 0),
        )

    def portrait(self, camera: int, frame: int, source: str = '') -> tuple[Portrait, TrueViews]:
        """A frame as a portrait, and its own view, whose window repeats the one known frame."""
        view = self.views([(camera, frame)])
        own = replace(view, windows=still_windows(view.windows[:, RADIUS]))
        found = as_portrait(own, view.windows[0, RADIUS], self.motion.basis, source or f'{self.name}, frame {frame}')
        shape = self.row(camera, frame).get('shape')
        return (found if shape is None else found.replace(shape=np.asarray(shape, np.float32))), own


def remembering(row: Callable[[int, int], Mapping[str, np.ndarray]]) -> Callable[[int, int], Mapping[str, np.ndarray]]:
    """``row`` that keeps what was read last."""
    return lru_cache(maxsize=64)(row)


def paper_frames(count: int, portraits: int) -> list[int]:
    """The frames that GPAvatar gives to its encoder: first; and last; middle; at 30 and 60 % of the clip."""
    last = count - 1
    places = {
        1: [0],
        2: [0, last],
        3: [0, count // 2, last],
        4: [0, int(0.3 * count), int(0.6 * count), last],
    }
    if portraits not in places:
        raise UserError(f'--portraits {portraits}: the rule of the paper takes 1 to 4; use --portrait-frames spread')
    found = [min(k, last) for k in places[portraits]]
    if len(set(found)) < portraits:
        raise UserError(f'--portraits {portraits}: a clip of {count} frames has not that many different ones')
    return found


def _spread(frames: np.ndarray, wanted: int | None) -> np.ndarray:
    if wanted is None or wanted >= len(frames):
        return frames
    return frames[np.linspace(0, len(frames) - 1, wanted).round().astype(int)]


def portraits_of(clip: Recording, number: int, rule: str) -> tuple[list[Portrait], TrueViews, list[int]]:
    """Portraits of a clip (the first is the source), the source's view, and their frames."""
    count = clip.motion.num_frames
    if count < 2:
        raise UserError(f'{clip.name}: a clip of one frame has nothing to drive; give at least two frames')
    frames = paper_frames(count, number) if rule == 'paper' else [0, *other_frames(count, 0, number - 1)]
    first, own = clip.portrait(0, frames[0], clip.name)
    return [first, *(clip.portrait(0, k)[0] for k in frames[1:])], own, frames


def own_case(clip: Recording, frames: int | None, portraits: int = 1, rule: str = 'spread', steady: int = 0) -> Case:
    """Same-identity reenactment; see the module text.

    Args:
        frames: driven frames, spread over the clip without the source; None: all.
        portraits: pictures that the method sees. rule: which: 'spread' over the clip, or those of the 'paper'
            (``paper_frames``).
        steady: further frames one after the other, from the middle of the clip.
    """
    (first, *more), own, chosen = portraits_of(clip, portraits, rule)
    targets = _spread(np.delete(np.arange(clip.motion.num_frames), chosen[0]), frames)
    driven = clip.views([(0, int(k)) for k in targets])
    talking = None
    if steady:
        talking = clip.views([(0, int(k)) for k in following_frames(clip.motion.num_frames, steady)])
    return Case(clip.name, first, own, driven, more=tuple(more), real=driven.truth, steady=talking)


def cross_case(
    clip: Recording, driver: Recording, frames: int | None, portraits: int = 1, rule: str = 'spread'
) -> Case:
    """Cross-identity reenactment; arguments as for ``own_case``. ``real`` are the person's own frames, for the FID."""
    (first, *more), own, _ = portraits_of(clip, portraits, rule)
    targets = _spread(np.arange(driver.motion.num_frames), frames)
    driven = driver.views([(0, int(k)) for k in targets])
    known = clip.views([(0, int(k)) for k in _spread(np.arange(clip.motion.num_frames), frames)])
    return Case(f'{clip.name}-by-{driver.name}', first, own, driven, more=tuple(more), cross=True, real=known.truth)


def views_case(clip: Recording, frames: int | None) -> Case:
    """Multi-view reenactment: the first frontal frame, then all cameras of ``frames`` frames after it."""
    count = clip.motion.num_frames
    if clip.cameras < 2:
        raise UserError(f'{clip.name}: was seen by one camera; multi-view reenactment needs several')
    yaw = np.array([[clip.window(c, f)[RADIUS, 65] for c in range(clip.cameras)] for f in range(count - 1)])
    frontal = np.argwhere(np.abs(yaw) <= FRONTAL)
    if len(frontal):
        frame = int(frontal[0, 0])
        camera = int(np.abs(yaw[frame]).argmin())
    else:
        frame, camera = (int(k) for k in np.unravel_index(np.abs(yaw).argmin(), yaw.shape))
    first, own = clip.portrait(camera, frame, clip.name)
    targets = _spread(np.arange(frame + 1, count), frames)
    driven = clip.views([(c, int(k)) for k in targets for c in range(clip.cameras)])
    return Case(clip.name, first, own, driven, real=driven.truth)
