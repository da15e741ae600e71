"""What an avatar is tested on: one portrait, and views whose true picture is known.

Procedural heads have the truth for everything: the same person from other sides, with another's motion, and with the
mouth and eyes in states that calibrate a measurement. Recorded clips have only their own frames.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol

import numpy as np

from avatar_jax.errors import UserError
from avatar_jax.eval import faces
from avatar_jax.eval.options import ProtocolConfig
from avatar_jax.ops.windows import RADIUS, WINDOW
from avatar_jax.types import Camera, Motion, Portrait

if TYPE_CHECKING:
    from avatar_jax.configure import Dataclass


@dataclass(frozen=True)
class TrueViews:
    """T pictures that are to be made, and the truth.

    Attributes:
        windows: [T, 27, 70] motion windows.
        labels: [T, 25] camera labels.
        truth: [T, H, W, 3] in [-1, 1].
        mask: [T, H, W] head coverage 0..1, or None.
        landmarks: [T, 68, 2] pixels (first pixel centre at 0.5), y down, or None.
    """

    windows: np.ndarray
    labels: np.ndarray
    truth: np.ndarray
    mask: np.ndarray | None = None
    landmarks: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.windows)


@dataclass(frozen=True)
class Case:
    """One person to be rebuilt from one picture and then driven.

    Attributes:
        name: for reports.
        portrait: the picture that the method sees.
        more: further ones.
        source: the portrait's own view; its motion window repeats the one known frame.
        novel: unseen views of the source expression, or None.
        novel_names: of each unseen view, e.g. 'view_-30' for a camera 30 degrees to the left.
        driven: the driver's frames; the truth shows the source person.
        frozen_truth: [T, H, W, 3] perfect pictures of the driven poses with the source expression kept, or None.
        closed, opened: [T, H, W, 3] the driven views with mouth and eyes closed and wide open, or None.
        mouth, eyes: [T] openings of the driver, from its geometry, or None.
        eyes_shut: [T] where the driver's eyes are closed, or None.
        cross: the truth of ``driven`` shows the driver, another person.
        real: [R, H, W, 3] true pictures of the person, which a FID compares with the driven ones; None: those of
            ``driven``.
        steady: frames of the driver that follow one another, or None.
    """

    name: str
    portrait: Portrait
    source: TrueViews
    driven: TrueViews
    novel: TrueViews | None = None
    novel_names: tuple[str, ...] = ()
    frozen_truth: np.ndarray | None = None
    closed: np.ndarray | None = None
    opened: np.ndarray | None = None
    mouth: np.ndarray | None = None
    eyes: np.ndarray | None = None
    eyes_shut: np.ndarray | None = None
    more: tuple[Portrait, ...] = ()
    cross: bool = False
    real: np.ndarray | None = None
    steady: TrueViews | None = None

    @property
    def portraits(self) -> Portrait | list[Portrait]:
        """What ``build`` is called with: the portrait, or a list if there are more."""
        return [self.portrait, *self.more] if self.more else self.portrait


def other_frames(count: int, source: int, wanted: int) -> list[int]:
    """``wanted`` frames of a clip of ``count``, evenly spread, without the source.

    Raises:
        UserError: the clip is too short.
    """
    others = np.delete(np.arange(count), source)
    if wanted > len(others):
        raise UserError(f'{wanted + 1} portraits wanted of a clip of {count} frames; use fewer')
    return [int(others[(2 * i + 1) * len(others) // (2 * wanted)]) for i in range(wanted)]


def following_frames(count: int, wanted: int) -> np.ndarray:
    """``wanted`` frames one after the other from the middle of a clip of ``count``.

    Raises:
        UserError: the clip is too short.
    """
    if wanted > count:
        raise UserError(f'--steady {wanted}: a clip has {count} frames; use fewer')
    first = (count - wanted) // 2
    return np.arange(first, first + wanted)


def keep_expression(windows_: np.ndarray, source: np.ndarray) -> np.ndarray:
    """Motion windows [T, 27, 70] with the expression of the source window [27, 70] held still; poses stay."""
    frozen = windows_.copy()
    frozen[..., :64] = source[RADIUS, :64]
    return frozen


def still_windows(rows: np.ndarray) -> np.ndarray:
    """Motion windows [T, 27, 70] of single pictures: their numbers [T, 70] in every frame, as methods build from
    them.
    """
    return np.repeat(rows[:, None], WINDOW, axis=1)


def pick_frames(count: int, blink: np.ndarray) -> np.ndarray:
    """``count`` frames of a clip, evenly spread, the one nearest to the strongest blink moved onto it."""
    frames = np.linspace(0, len(blink) - 1, count).round().astype(int)
    best = int(np.argmax(blink))
    if best not in frames:
        frames[np.argmin(np.abs(frames - best))] = best
    return np.sort(frames)


def source_frame(yaw: np.ndarray, blink: np.ndarray, config: ProtocolConfig) -> int:
    """The first frame, if possible with a full window, that looks ahead with open eyes; else the most frontal one."""
    yaw = np.abs(np.rad2deg(yaw))
    good = np.flatnonzero((yaw <= config.source_max_yaw) & (blink < 0.2))
    good = good[good >= RADIUS] if (good >= RADIUS).any() else good
    return int(good[0]) if len(good) else int(np.argmin(yaw + 100 * blink))


def as_portrait(view: TrueViews, row: np.ndarray, basis: str, source: str) -> Portrait:
    """The first picture of ``view`` with its own numbers [70] in ``basis``."""

    def first(x):
        return None if x is None else x[0]

    return Portrait(
        image=view.truth[0],
        camera=Camera.from_label(view.labels[0]),
        expression=row[:64],
        angle=row[64:67],
        translation=row[67:70],
        landmarks=first(view.landmarks),
        mask=first(view.mask),
        basis=basis,
        source=source,
    )


def mouth_expressions() -> tuple[np.ndarray, np.ndarray]:
    """Expressions [64] of procedural heads with the mouth closed, and wide open."""
    from avatar_jax.procedural import EXPRESSION_NAMES

    channel = {name: k for k, name in enumerate(EXPRESSION_NAMES)}
    shut, wide = np.zeros((2, 64), np.float32)
    wide[channel['jaw_open']] = 0.8
    for name in ('lower_down_l', 'lower_down_r', 'upper_up_l', 'upper_up_r'):
        wide[channel[name]] = 0.25
    return shut, wide


class Clip(Protocol):
    """A procedural person who talks (``data_pipelines.clips.Clip``); a dataclass.

    Attributes:
        name: of the clip. identity: [192]. gamma: [27] light. expression: [T,64]. angle: [T,3] rad, seen from ahead.
        camera_yaws: [C] rad, 0 first. options: with ``supersample``.
    """

    name: str
    identity: np.ndarray
    gamma: np.ndarray
    expression: np.ndarray
    angle: np.ndarray
    camera_yaws: np.ndarray
    options: Dataclass

    @property
    def num_cameras(self) -> int:
        """C."""

    def labels(self, camera: int = 0) -> np.ndarray:
        """[T,25] camera labels."""

    def motion_rows(self, camera: int = 0) -> np.ndarray:
        """[T,70] expression, angle, translation."""

    def windows(self, camera: int = 0) -> np.ndarray:
        """[T,27,70]."""

    def motion(self, camera: int = 0) -> Motion:
        """The same as a motion."""


def procedural_case(person: Clip, driver: Clip, config: ProtocolConfig) -> Case:
    """One procedural person, seen once, driven by another's motion; the truth is rendered.

    Args:
        person: clip of the person to rebuild. Its other cameras are the unseen views.
        driver: clip of another person.
        config: see ``ProtocolConfig``.
    """
    from avatar_jax.procedural import EXPRESSION_NAMES, ProceduralHead, render_head

    channel = {name: k for k, name in enumerate(EXPRESSION_NAMES)}
    blinks = [channel['blink_l'], channel['blink_r']]

    def views(window_batch, labels, expressions=None):
        """Views with their truth; ``expressions`` [T, 64] replaces the ones that are drawn."""
        shown = window_batch[:, RADIUS, :64] if expressions is None else expressions
        options = {'resolution': config.resolution, 'supersample': person.options.supersample}
        heads = [
            render_head(person.identity, e, c, person.gamma, **options) for e, c in zip(shown, labels, strict=True)
        ]
        truth, mask, marks = (np.stack([getattr(h, k) for h in heads]) for k in ('rgb', 'mask', 'landmarks'))
        return TrueViews(window_batch, labels, (2 * truth - 1).astype(np.float32), mask, marks), heads

    frame = source_frame(person.angle[:, 1], person.expression[:, blinks].max(-1), config)
    if config.source_yaw:
        person = replace(person, camera_yaws=np.append(np.deg2rad(config.source_yaw), person.camera_yaws))
    cameras = sorted(range(person.num_cameras), key=lambda k: (k != 0, person.camera_yaws[k]))
    seen = still_windows(np.stack([person.motion_rows(k)[frame] for k in cameras]))
    labels = np.stack([person.labels(k)[frame] for k in cameras])
    source, _ = views(seen[:1], labels[:1])
    novel = views(seen[1:], labels[1:])[0] if len(cameras) > 1 else None
    names = tuple(f'view_{np.rad2deg(person.camera_yaws[k]):+.0f}' for k in cameras[1:])

    blink = driver.expression[:, blinks].min(-1)
    frames = pick_frames(min(config.frames, len(blink)), blink)
    driven, heads = views(driver.windows(0)[frames], driver.labels(0)[frames])
    geometry = np.stack([h.vertices for h in heads])[:, np.asarray(ProceduralHead().landmark_ids)]

    def held(expression):
        """True pictures of the driven poses with one expression."""
        return views(driven.windows, driven.labels, np.repeat(expression[None], len(frames), 0))[0].truth

    def talking(frames):
        return views(driver.windows(0)[frames], driver.labels(0)[frames])[0]

    shut, wide = mouth_expressions()
    shut[blinks] = 1

    def portrait(view, camera, k):
        source = f'procedural clip {person.name}, camera {camera}, frame {k}'
        row, basis = person.motion_rows(camera)[k], person.motion(camera).basis
        return replace(as_portrait(view, row, basis, source), shape=person.identity[:80])

    more = []
    for i, k in enumerate(other_frames(len(person.expression), frame, config.portraits - 1)):
        camera = cameras[(i + 1) % len(cameras)]
        view, _ = views(still_windows(person.motion_rows(camera)[[k]]), person.labels(camera)[[k]])
        more.append(portrait(view, camera, k))
    return Case(
        name=person.name,
        portrait=portrait(source, 0, frame),
        more=tuple(more),
        source=source,
        driven=driven,
        novel=novel,
        novel_names=names,
        frozen_truth=held(source.windows[0, RADIUS, :64]),
        closed=held(shut),
        opened=held(wide),
        steady=None if not config.steady else talking(following_frames(len(blink), config.steady)),
        mouth=faces.mouth_opening(geometry),
        eyes=faces.eye_openness(geometry).mean(-1),
        eyes_shut=blink[frames] >= config.eye_closed,
    )
