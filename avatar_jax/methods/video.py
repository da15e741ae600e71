"""From an avatar on disk and what drives it to a video on disk: what ``avatar-jax animate`` does."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from avatar_jax.checks import OPTION, Check
from avatar_jax.driving.audio import FeatureFile
from avatar_jax.driving.cameras import behind_note, camera_labels
from avatar_jax.driving.reading import read_request
from avatar_jax.driving.request import Request
from avatar_jax.driving.signals import make_drive, needed_parts
from avatar_jax.errors import UserError
from avatar_jax.faces.conventions import background_of
from avatar_jax.io.atomic import atomic_folder, output_file, output_place
from avatar_jax.io.images import write_png
from avatar_jax.io.inputs import file_sha256
from avatar_jax.io.provenance import Provenance
from avatar_jax.io.sound import SoundTrack
from avatar_jax.io.video import VideoWriter
from avatar_jax.methods.model import AVATAR_FILE, Model, check_weights, choose_model, load_avatar
from avatar_jax.methods.render import check_mixable
from avatar_jax.progress import Progress
from avatar_jax.types import Avatar, Frames, Motion


@dataclass(frozen=True)
class VideoOptions:
    """What is shown, and where it is written.

    Attributes:
        out: the video, .mp4. png: folder for every frame as a PNG, or None.
        camera, move: of ``driving.cameras.camera_labels``. raw: show the volume rendering beside the final picture.
        towards: folder of another avatar of the same weights, which the person turns into. amount: its share in every
            frame; None: from 0 to 1 in the course of the video.
        driver: what drives an avatar that was trained with several (``Method.ways``); None: the first.
        per_call, side_by_side: frames of a call, and of those that a device computes as one batch (``render.stream``).
    """

    out: str | os.PathLike
    png: str | os.PathLike | None = None
    camera: str = 'track'
    move: str = 'none'
    raw: bool = False
    towards: str | os.PathLike | None = None
    amount: float | None = None
    driver: str | None = None
    per_call: int = 8
    side_by_side: int = 1

    def __post_init__(self):
        check = Check(self, OPTION)
        check.at_least(1, 'per_call', 'side_by_side')
        check.within(0, 1, 'amount')
        check.need(self.amount is None or self.towards is not None, 'amount', 'goes with --towards')
        ends = Path(self.out).suffix.lower() in ('.mp4', '.m4v')
        check.need(ends, 'out', 'videos are written as MP4; choose a name that ends in .mp4')


@dataclass(frozen=True)
class Video:
    """A video that was written: number of frames, their rate, its sound track or None."""

    count: int
    fps: float
    sound: SoundTrack | None


def make_video(
    folder: str | os.PathLike,
    request: Request,
    options: VideoOptions,
    *,
    method: str | None = None,
    weights: str | os.PathLike | None = None,
    open_clip: Callable[[str], Motion],
    note: Callable[[str], None] = lambda text: None,
) -> Video:
    """Drives an avatar and writes the video, completely or not at all.

    Args:
        folder: of the avatar. request: who drives it.
        method, weights: see ``choose_model``; by default the method is that of the avatar.
        open_clip: reads ``FOLDER:SPLIT:CLIP``. note: called with each sentence for the person who asked.

    Raises:
        UserError: nothing can be written there, the avatar or the driver cannot be used, or they do not fit.
    """
    output_file(options.out)  # before minutes of rendering
    if options.png:
        output_place(options.png)
    avatar = load_avatar(folder)
    model = choose_model(method or avatar.method or None, weights)
    check_weights(avatar, model)
    avatar = driven_by(options.driver, model, avatar)
    model = model.of(avatar)
    check_driven(request, model)
    crops = {'size': model.config.img_resolution, 'background': background_of(model.config, 'weights')}
    driving = read_request(request, model.config.basis, avatar, open_clip, crops)
    motion, sound = driving.motion, driving.track
    for text in driving.notes:
        note(f'{request.motion or "sliders"}: {text}')
    drive = make_drive(model.method, model.config, driving.parts, motion.fps, motion.source)
    labels = camera_labels(options.camera, model.config, avatar, motion, options.move)
    if text := behind_note(labels):
        note(f'{request.motion or "sliders"}: {text}')
    other = mixture(options, avatar, model, motion.num_frames)
    sources = sources_of(folder, request, options, motion)
    provenance = Provenance(synthetic=True, weights=model.sha256, command='animate', sources=sources)
    with Progress(motion.num_frames, 'animating', unit='frame') as bar:
        frames = model.stream(
            avatar,
            drive,
            labels,
            per_call=options.per_call,
            chunk=options.side_by_side,
            towards=other,
            on_frames=bar.update,
        )
        count = write_frames(frames, options, motion.fps, provenance, sound)
    for text in () if sound is None else sound.notes:
        note(f'{sound.path}: {text}')
    return Video(count, motion.fps, sound)


def driven_by(driver: str | None, model: Model, avatar: Avatar) -> Avatar:
    """The avatar as --driver wants it driven."""
    if driver is None:
        return avatar
    ways = {} if model.method.ways is None else model.method.ways(model.of(avatar).config)
    if driver not in ways:
        known = f'there are {", ".join(ways)}' if ways else f'avatars of {model.method.title} are driven in one way'
        raise UserError(f'--driver {driver}: this avatar was not trained with it; {known}')
    return avatar.replace(config=ways[driver])


def check_driven(request: Request, model: Model) -> None:
    """``UserError`` for a sound alone, or sound features, where the avatar does not listen."""
    if 'sound' in needed_parts(model.method, model.config):
        return
    if request.motion is None and not request.sliders:
        raise UserError('--motion: who drives the avatar? give --motion FILE, or numbers with --slider')
    if request.sound is not None and FeatureFile.is_one(request.sound):
        raise UserError(f'--sound {request.sound}: is no sound, and this avatar is not driven by sound features')


def mixture(options: VideoOptions, avatar: Avatar, model: Model, frames: int) -> tuple[Avatar, np.ndarray] | None:
    """The avatar that the person turns into, and how much of it each of the frames shows [T]."""
    if options.towards is None:
        return None
    other = load_avatar(options.towards)
    check_weights(other, model)
    check_mixable(model.method, avatar, other, options.side_by_side)
    amount = options.amount
    return other, np.linspace(0, 1, frames) if amount is None else np.full(frames, amount)


def sources_of(folder: str | os.PathLike, request: Request, options: VideoOptions, motion: Motion) -> dict[str, str]:
    """What the video was made of: name -> SHA-256, or words where there is no file."""
    folder = Path(folder)
    sources = {AVATAR_FILE: file_sha256(folder / AVATAR_FILE if folder.is_dir() else folder)}
    if options.towards is not None:
        sources['towards'] = str(options.towards)
    if request.motion is None and request.sliders:
        sources['sliders'] = ' '.join(request.sliders)
    elif request.motion is None:
        sources[Path(request.sound).name] = file_sha256(request.sound)
    elif Path(request.motion).is_file():
        sources[Path(request.motion).name] = file_sha256(request.motion)
    elif motion.source:
        sources['motion'] = motion.source
    return sources


def write_frames(
    stream: Iterable[Frames], options: VideoOptions, fps: float, provenance: Provenance, sound: SoundTrack | None
) -> int:
    """Writes the video, and PNG files if they are asked for; returns the number of frames."""
    count = 0
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(atomic_folder(options.png)) if options.png else None
        video = stack.enter_context(VideoWriter(options.out, fps, provenance=provenance, sound=sound))
        for frames in stream:
            for rgb, raw in zip(frames.rgb, frames.raw, strict=True):
                picture = np.concatenate([rgb, enlarged(raw, rgb.shape[0])], 1) if options.raw else rgb
                video.write(picture)
                if folder is not None:
                    write_png(folder / f'{count:06d}.png', picture, provenance)
                count += 1
    return count


def enlarged(image: np.ndarray, size: int) -> np.ndarray:
    """[R,R,3] -> [size,size,3] by repeating pixels (rounded positions)."""
    index = np.arange(size) * image.shape[0] // size
    return image[index][:, index]
