"""Procedural talking clips: who, how they move, under which light, seen by which cameras; pictures on demand.

A clip is a function of (seed, split, person, clip number) and of a few options, so the TFDS builder, the on-the-fly
source and the evaluation all see the same world, and held-out people are one argument away. Identities of different
splits come from different random streams and never coincide.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field

import numpy as np

from avatar_jax.checks import Check
from avatar_jax.errors import UserError
from avatar_jax.ops.coefficients import Coefficients, pack
from avatar_jax.ops.windows import windows
from avatar_jax.procedural import motion
from avatar_jax.procedural.looks import VERSIONS
from avatar_jax.procedural.streams import Stream
from data_pipelines.cameras import pose_labels, rig_yaws, seen_from
from data_pipelines.lights import random_gamma

SPLITS = ('train', 'val', 'test')
BASIS = 'procedural'


@dataclass(frozen=True)
class ClipOptions:
    """What the clips of a data set have in common."""

    num_frames: int = 50
    fps: float = 25.0
    num_cameras: int = 5  # of the multi-view part
    multi_view_share: float = 0.25  # share of clips seen by all cameras; the others by the front one only
    rig_degrees: float = 30.0  # yaw of the outermost cameras
    light: float = 1.0  # strength of the random light, 0 for the default light
    supersample: int = 2
    looks: int = 1  # version of the looks

    def __post_init__(self):
        check = Check(self, 'clips')
        check.at_least(1, 'num_frames', 'num_cameras')
        check.above(0, 'fps')
        check.within(0, 1, 'multi_view_share')
        check.one_of('looks', *VERSIONS)

    def recipe(self) -> dict:
        """The options as plain data; version 1 of the looks is not named, as before there was another."""
        return {k: v for k, v in asdict(self).items() if k != 'looks' or v != 1}


@dataclass(frozen=True)
class Clip:
    """One talking clip of one person, seen by one or several synchronous cameras.

    Attributes:
        name: unique within a data set, ``<split>-<person>-<clip>``.
        split, person, number: where it stands; ``person`` identifies the identity within the split.
        identity: [192] shape 80, texture 80, style 32.
        expression: [T,64]; angle [T,3] rad and translation [T,3] dm as the front camera sees them.
        gamma: [27] light.
        camera_yaws: [C] rad, 0 first.
        speech_seed, style: of the motion, which decide the sound as well; style None: drawn from the seed.
        voice_seed: whose voice it is.
    """

    name: str
    split: str
    person: int
    number: int
    identity: np.ndarray
    expression: np.ndarray
    angle: np.ndarray
    translation: np.ndarray
    gamma: np.ndarray
    camera_yaws: np.ndarray
    options: ClipOptions = field(default_factory=ClipOptions)
    speech_seed: int = 0
    voice_seed: int = 0
    style: motion.SpeechStyle | None = None

    @property
    def num_frames(self) -> int:
        """T."""
        return len(self.expression)

    @property
    def num_cameras(self) -> int:
        """C."""
        return len(self.camera_yaws)

    def pose(self, camera: int = 0) -> tuple[np.ndarray, np.ndarray]:
        """Angles and translations [T,3] as that camera sees them, float32."""
        if self.camera_yaws[camera] == 0:
            return self.angle, self.translation
        angle, translation = seen_from(self.angle, self.translation, self.camera_yaws[camera])
        return motion.settle(angle), motion.settle(translation)

    def labels(self, camera: int = 0) -> np.ndarray:
        """Camera labels [T,25] float32."""
        return pose_labels(*self.pose(camera))

    def motion_rows(self, camera: int = 0) -> np.ndarray:
        """[T,70] float32: expression, angle, translation."""
        return np.concatenate([self.expression, *self.pose(camera)], axis=1)

    def windows(self, camera: int = 0) -> np.ndarray:
        """Motion windows [T,27,70] float32."""
        return windows(self.motion_rows(camera))

    def motion(self, camera: int = 0):
        """The clip's movement as an ``avatar_jax.types.Motion``."""
        from avatar_jax.types import Motion

        angle, translation = self.pose(camera)
        return Motion(
            expression=self.expression,
            angle=angle,
            translation=translation,
            fps=float(self.options.fps),
            basis=BASIS,
            source=f'procedural clip {self.name}',
        )

    def coefficients(self, camera: int = 0) -> np.ndarray:
        """Coefficients [T,257] float32 in the layout of ``avatar_jax.ops.coefficients``."""
        angle, translation = self.pose(camera)

        def every(x):
            return np.broadcast_to(x, (self.num_frames, len(x)))

        return pack(
            Coefficients(
                id=every(self.identity[:80]),
                exp=self.expression,
                tex=every(self.identity[80:160]),
                angle=angle,
                gamma=every(self.gamma),
                trans=translation,
            )
        ).astype(np.float32)

    @property
    def times(self) -> np.ndarray:
        """[T] moments of the frames, seconds."""
        return np.arange(self.num_frames) / self.options.fps

    def sound(self) -> np.ndarray:
        """What is said, in time with the frames: [T / fps * 16000] float32 samples in [-1, 1], 16,000 a second."""
        from avatar_jax.procedural.voice import speech_sound, voice_of

        return speech_sound(
            self.speech_seed,
            self.num_frames / self.options.fps,
            voice_of(self.voice_seed),
            self.style,
            self.times[-1],
        )

    def render(self, frame: int, camera: int = 0, resolution: int = 128):
        """The true picture of one frame: a ``HeadImage`` (rgb in 0..1, mask, depth, landmarks in pixels)."""
        return self.render_as(self, frame, camera, resolution)

    def render_as(self, driver: Clip, frame: int, camera: int = 0, resolution: int = 128):
        """The true picture of **this** person and light making the expression and pose of the driver's frame."""
        from avatar_jax.procedural import render_head

        return render_head(
            self.identity,
            driver.expression[frame],
            driver.labels(camera)[frame],
            self.gamma,
            resolution=resolution,
            supersample=self.options.supersample,
            looks=self.options.looks,
        )


def make_clip(seed: int, split: str, person: int, number: int = 0, options: ClipOptions | None = None) -> Clip:
    """The clip of one place in the world of ``seed``.

    Args:
        seed: world; other seeds have other people.
        split: 'train', 'val' or 'test'.
        person, number: which person, and which of the person's clips.
        options: length, cameras, light; defaults when absent.
    Raises:
        UserError: unknown split.
    """
    from avatar_jax.procedural import sample_identity

    if split not in SPLITS:
        raise UserError(f'split {split!r}: unknown; use one of {", ".join(SPLITS)}')
    options = ClipOptions() if options is None else options
    identity_seed = int(Stream(seed, 'clips', split, person).integers(0, 2**62))
    rng = Stream(seed, 'clips', split, person, number)
    speech_seed = int(rng.integers(0, 2**62))
    arrays = motion.speech_arrays(speech_seed, options.num_frames, options.fps)
    gamma = motion.settle(random_gamma(rng, options.light))
    multi_view = options.num_cameras > 1 and rng.random() < options.multi_view_share
    yaws = rig_yaws(options.num_cameras if multi_view else 1, np.deg2rad(options.rig_degrees))
    return Clip(
        name=f'{split}-{person:06d}-{number:03d}',
        split=split,
        person=person,
        number=number,
        identity=sample_identity(identity_seed, split),
        gamma=gamma,
        camera_yaws=yaws,
        options=options,
        speech_seed=speech_seed,
        voice_seed=identity_seed,
        **arrays,
    )


def evaluation_clips(
    count: int,
    seed: int = 0,
    split: str = 'test',
    num_frames: int = 50,
    light: float = 1.0,
    num_cameras: int = 1,
    looks: int = 1,
) -> list[Clip]:
    """Clips of ``count`` different held-out people, all with the same number of cameras.

    People of the splits 'val' and 'test' are never in training data, whatever the seed; another seed gives other
    people. ``clip.render(frame, camera, resolution)`` is the true picture, ``a.render_as(b, frame)`` the true
    picture of person a doing what b does; ``looks`` is the version in which they are drawn.
    """
    if split == 'train':
        raise UserError("evaluation clips: the split 'train' was seen in training; use 'val' or 'test'")
    options = ClipOptions(
        num_frames=num_frames,
        num_cameras=num_cameras,
        multi_view_share=float(num_cameras > 1),
        light=light,
        looks=looks,
    )
    world = int(Stream(seed, 'evaluation').integers(0, 2**62))
    return [make_clip(world, split, k, 0, options) for k in range(count)]
