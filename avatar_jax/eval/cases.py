"""What an avatar is tested on: one portrait, and views whose true picture is known.

Procedural heads have the truth for everything: the same person from other sides, with another's motion, and with the
mouth and eyes in states that calibrate a measurement. Recorded clips have only their own frames.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np

from avatar_jax.errors import UserError
from avatar_jax.eval import faces
from avatar_jax.faces.camera_labels import label_from_pose, pose_from_label, yaw_label
from avatar_jax.faces.pose import EG3D_OFFSET
from avatar_jax.faces.windows import RADIUS, windows
from avatar_jax.types import Camera, Motion, Portrait


@dataclass(frozen=True)
class ProtocolConfig:
    """How procedural heads are used for testing.

    Attributes:
      resolution: side of all pictures; that of the avatar's output.
      frames: driven frames per identity, spread over the driver's clip (the strongest blink is always among them).
      clip_frames, fps: length of the driver's clip.
      view_yaw: degrees by which the unseen views turn the camera to both sides of the source camera.
      source_max_yaw: degrees; the source is a frame with open eyes whose yaw is at most this.
      supersample: samples per pixel and axis of the true pictures.
      split: identities are drawn from here ('test' and 'val' are never used in training).
      eye_closed: blink weight from which the driver's eye counts as closed.
    """

    resolution: int = 128
    frames: int = 24
    clip_frames: int = 120
    fps: float = 25.0
    view_yaw: float = 30.0
    source_max_yaw: float = 15.0
    supersample: int = 2
    split: str = 'test'
    eye_closed: float = 0.8

    def __post_init__(self):
        if self.split not in ('test', 'val', 'train'):
            raise UserError(f'split {self.split!r}: use test, val or train')
        if not (1 <= self.frames <= self.clip_frames and self.resolution >= 16 and self.supersample >= 1):
            raise UserError('frames must be between 1 and clip_frames, resolution at least 16, supersample at least 1')


@dataclass(frozen=True)
class Views:
    """T pictures that are to be made, and the truth.

    Attributes:
      windows: [T, 27, 70] motion windows.
      labels: [T, 25] camera labels.
      truth: [T, H, W, 3] in [-1, 1].
      mask: [T, H, W] head coverage 0..1, or None.
      landmarks: [T, 68, 2] pixels (first pixel centre at 0), y down, or None.
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
      portrait: the only picture that the method sees.
      source: the portrait's own view.
      novel: unseen views of the source expression, or None.
      driven: the driver's frames; the truth shows the source person.
      frozen_truth: [T, H, W, 3] perfect pictures of the driven poses with the source expression kept, or None.
      closed, opened: [T, H, W, 3] the driven views with mouth and eyes closed and wide open, or None.
      mouth, eyes: [T] openings of the driver, from its geometry, or None.
      eyes_shut: [T] where the driver's eyes are closed, or None.
    """

    name: str
    portrait: Portrait
    source: Views
    driven: Views
    novel: Views | None = None
    frozen_truth: np.ndarray | None = None
    closed: np.ndarray | None = None
    opened: np.ndarray | None = None
    mouth: np.ndarray | None = None
    eyes: np.ndarray | None = None
    eyes_shut: np.ndarray | None = None


def keep_expression(windows_: np.ndarray, source: np.ndarray) -> np.ndarray:
    """Motion windows [T, 27, 70] with the expression of the source window [27, 70] held still; poses stay."""
    frozen = windows_.copy()
    frozen[..., :64] = source[RADIUS, :64]
    return frozen


def motion_seed(seed: int, index: int, role: str) -> int:
    """Seed of a test clip, far from those of training."""
    digest = hashlib.sha256(f'evaluation/{seed}/{index}/{role}'.encode()).digest()
    return int.from_bytes(digest[:7], 'little')


def identity_seed(seed: int, index: int) -> int:
    """Seed of the ``index``-th test identity of evaluation ``seed``."""
    return 100_000 * seed + index


def pick_frames(config: ProtocolConfig, blink: np.ndarray) -> np.ndarray:
    """Driven frames: evenly spread, the one nearest to the strongest blink moved onto it."""
    frames = np.linspace(0, len(blink) - 1, config.frames).round().astype(int)
    best = int(np.argmax(blink))
    if best not in frames:
        frames[np.argmin(np.abs(frames - best))] = best
    return np.sort(frames)


def _source_frame(motion: Motion, blink: np.ndarray, config: ProtocolConfig) -> int:
    """The first frame after the clip's start-up that looks ahead with open eyes; else the most frontal one."""
    yaw = np.abs(np.rad2deg(motion.angle[:, 1]))
    good = np.flatnonzero((yaw <= config.source_max_yaw) & (blink < 0.2))
    good = good[good >= RADIUS] if (good >= RADIUS).any() else good
    return int(good[0]) if len(good) else int(np.argmin(yaw + 100 * blink))


def _turned(window: np.ndarray, radians: float) -> np.ndarray:
    """A motion window [27, 70] as a camera sees it that stands ``radians`` further round the head."""
    labels = label_from_pose(window[:, 64:67].astype(np.float64), window[:, 67:70].astype(np.float64), 'raw')
    angle, translation = pose_from_label(yaw_label(labels, radians, EG3D_OFFSET).astype(np.float64))
    return np.concatenate([window[:, :64], angle, translation], -1).astype(np.float32)


def procedural_case(seed: int, index: int, config: ProtocolConfig, gamma: np.ndarray | None = None) -> Case:
    """A test person, a source picture, unseen views and another's motion, with the truth for all of it.

    Args:
      seed, index: which person and motions; every pair gives others.
      config: see ``ProtocolConfig``.
      gamma: [27] light on the head; None is the default light.
    """
    from avatar_jax.faces.procedural import EXPRESSION_NAMES, render_head, sample_identity
    from avatar_jax.faces.procedural.motion import speech_motion

    channel = {name: k for k, name in enumerate(EXPRESSION_NAMES)}
    blinks = [channel['blink_l'], channel['blink_r']]
    identity = sample_identity(identity_seed(seed, index), config.split)

    def draw(window_batch, expressions=None):
        """Views of motion windows; ``expressions`` [T, 64] replaces the drawn expressions."""
        center = window_batch[:, RADIUS]
        labels = label_from_pose(center[:, 64:67], center[:, 67:70], 'raw')
        shown = center[:, :64] if expressions is None else expressions
        heads = [
            render_head(identity, e, c, gamma, resolution=config.resolution, supersample=config.supersample)
            for e, c in zip(shown, labels, strict=True)
        ]
        truth, mask, marks = (np.stack([getattr(h, k) for h in heads]) for k in ('rgb', 'mask', 'landmarks'))
        views = Views(window_batch, labels, (2 * truth - 1).astype(np.float32), mask, marks - 0.5)
        return views, heads

    own = speech_motion(motion_seed(seed, index, 'source'), 60, config.fps)
    frame = _source_frame(own, own.expression[:, blinks].max(-1), config)
    source_window = np.asarray(own.windows()[frame], np.float32)
    source, _ = draw(source_window[None])
    turned = np.stack([_turned(source_window, np.deg2rad(s * config.view_yaw)) for s in (-1, 1)])
    novel, _ = draw(turned)

    driver = speech_motion(motion_seed(seed, index, 'driver'), config.clip_frames, config.fps)
    frames = pick_frames(config, driver.expression[:, blinks].min(-1))
    driven_windows = np.asarray(windows(driver.coefficients, frames), np.float32)
    driven, heads = draw(driven_windows)

    def held(expression):
        """True pictures of the driven poses with one expression."""
        return draw(driven_windows, np.repeat(expression[None], len(frames), 0))[0].truth

    shut, wide = np.zeros((2, 64), np.float32)
    shut[blinks] = 1
    wide[channel['jaw_open']] = 0.8
    for name in ('lower_down_l', 'lower_down_r', 'upper_up_l', 'upper_up_r'):
        wide[channel[name]] = 0.25
    marks = np.stack([h.vertices for h in heads])[:, _landmark_ids()]
    blink = driver.expression[frames][:, blinks].min(-1)
    return Case(
        name=f'{config.split} identity {identity_seed(seed, index)}',
        portrait=Portrait(
            image=source.truth[0],
            camera=Camera.from_label(source.labels[0]),
            expression=source_window[RADIUS, :64],
            angle=source_window[RADIUS, 64:67],
            translation=source_window[RADIUS, 67:70],
            shape=identity[:80],
            landmarks=source.landmarks[0],
            mask=source.mask[0],
            basis=own.basis,
            source=f'procedural head, {config.split} identity {identity_seed(seed, index)}',
        ),
        source=source,
        driven=driven,
        novel=novel,
        frozen_truth=held(source_window[RADIUS, :64]),
        closed=held(shut),
        opened=held(wide),
        mouth=faces.mouth_opening(marks),
        eyes=faces.eye_openness(marks).mean(-1),
        eyes_shut=blink >= config.eye_closed,
    )


def _landmark_ids() -> np.ndarray:
    from avatar_jax.faces.procedural import ProceduralHead

    return np.asarray(ProceduralHead().landmark_ids)


def clip_case(
    name: str,
    motion: Motion,
    labels: np.ndarray,
    images: np.ndarray,
    masks: np.ndarray | None = None,
    landmarks: np.ndarray | None = None,
    source_frame: int = 0,
    frames: int | None = 24,
) -> Case:
    """Same-identity reenactment of a recorded clip: one frame is the source, others of the clip are driven.

    Args:
      name: of the clip.
      motion: its T frames.
      labels: [T, 25].
      images: [T, H, W, 3] in [-1, 1].
      masks: [T, H, W] or None.
      landmarks: [T, 68, 2] pixels (first pixel centre at 0), y down, or None.
      source_frame: which frame is the portrait.
      frames: driven frames, spread over the clip without the source; None for all.

    Raises:
      UserError: the clip has fewer than two frames, or its parts differ in length.
    """
    count = motion.num_frames
    if count < 2:
        raise UserError(f'{name}: a clip of one frame has nothing to drive; give at least two frames')
    lengths = {len(x) for x in (labels, images, masks, landmarks) if x is not None} | {count}
    if len(lengths) > 1:
        raise UserError(f'{name}: motion, labels and pictures have different numbers of frames {sorted(lengths)}')
    others = np.delete(np.arange(count), source_frame)
    if frames is not None and frames < len(others):
        others = others[np.linspace(0, len(others) - 1, frames).round().astype(int)]
    all_windows = np.asarray(motion.windows(), np.float32)

    def views(index):
        def part(x):
            return None if x is None else np.asarray(x)[index]

        return Views(all_windows[index], *(part(x) for x in (labels, images, masks, landmarks)))

    source = views(np.array([source_frame]))
    portrait = Portrait(
        image=source.truth[0],
        camera=Camera.from_label(source.labels[0]),
        expression=np.asarray(motion.expression)[source_frame],
        angle=np.asarray(motion.angle)[source_frame],
        translation=np.asarray(motion.translation)[source_frame],
        landmarks=None if landmarks is None else source.landmarks[0],
        mask=None if masks is None else source.mask[0],
        basis=motion.basis,
        source=name,
    )
    return Case(name=name, portrait=portrait, source=source, driven=views(others))
