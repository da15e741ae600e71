"""Talking videos of procedural people, minutes long, with the sound of their mouths and the truth about each frame.

    python -m data_pipelines.one_person --out DIR --people 3 --frames 3000 --size 128

writes a folder per person:

    video.mp4     the pictures with the sound (what a user would have)
    sound.wav     16,000 samples a second
    crops/*.png   the aligned pictures, without loss; masks/*.png how much of each pixel the head covers
    truth.npz     labels, expression, angle, translation, landmarks, mouth opening, times, identity

A person is a function of (seed, number); a longer video begins like a shorter one.
"""

from __future__ import annotations

import functools
import io
import zipfile
import zlib
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np

from avatar_jax.checks import Check
from avatar_jax.errors import UserError
from avatar_jax.procedural import motion
from data_pipelines.clips import BASIS, Clip, ClipOptions
from data_pipelines.lights import random_gamma
from data_pipelines.one_person.frames import TEST_SHARE, FilePictures, PersonVideo, check_length, last_part

TRUTH, VIDEO, SOUND, CROPS, MASKS = 'truth.npz', 'video.mp4', 'sound.wav', 'crops', 'masks'
SPLIT = 'test'  # people that no shipped network was trained on
_INNER_LIPS = (62, 66)  # landmarks of the upper and lower lip, middle


@dataclass(frozen=True)
class TalkOptions:
    """What the videos of a set have in common.

    Attributes:
        frames, fps: length and rate of the pictures. size: their side in pixels.
        mood: strength of smiles, frowns and the like, which sound says nothing about (1: as in the other clips).
        yaw: largest mean direction of the head, radians; people mostly look into the camera.
        light: strength of the random light. supersample: samples per pixel along each axis.
    """

    frames: int = 3000
    fps: float = 25.0
    size: int = 128
    mood: float = 0.5
    yaw: float = 0.1
    light: float = 1.0
    supersample: int = 2

    def __post_init__(self):
        check = Check(self)
        check.at_least(1, 'frames', 'supersample')
        check.above(0, 'fps')
        check.at_least(16, 'size')
        check.at_least(0, 'mood')


def talking_clip(seed: int, person: int, options: TalkOptions | None = None) -> Clip:
    """One person talking, as a ``Clip`` of one camera; other seeds have other people."""
    from avatar_jax.procedural import sample_identity
    from avatar_jax.procedural.streams import Stream

    options = TalkOptions() if options is None else options
    Check.values(person=person, seed=seed).at_least(0, 'person', 'seed')
    rng = Stream(seed, 'talking', person)
    identity_seed, speech_seed = (int(rng.integers(0, 2**62)) for _ in range(2))
    style = motion.speech_style(speech_seed)
    style = style._replace(
        mood=style.mood * options.mood,
        yaw_offset=float(np.clip(style.yaw_offset, -options.yaw, options.yaw)),
        yaw=min(style.yaw, 0.15),
    )
    return Clip(
        name=f'talking-{person:03d}',
        split=SPLIT,
        person=person,
        number=0,
        identity=sample_identity(identity_seed, SPLIT),
        gamma=motion.settle(random_gamma(rng, options.light)),
        camera_yaws=np.zeros(1),
        options=ClipOptions(options.frames, options.fps, 1, 0.0, supersample=options.supersample),
        speech_seed=speech_seed,
        voice_seed=identity_seed,
        style=style,
        **motion.speech_arrays(speech_seed, options.frames, options.fps, style),
    )


def mouth_opening(landmarks: np.ndarray) -> np.ndarray:
    """[...] distance of the inner lips from landmarks [..., 68, 2 or 3], in their unit."""
    upper, lower = (np.asarray(landmarks)[..., i, :] for i in _INNER_LIPS)
    return np.linalg.norm(upper - lower, axis=-1)


@functools.lru_cache(maxsize=1)
def _clip_of_process(seed: int, person: int, options: TalkOptions) -> Clip:
    return talking_clip(seed, person, options)


def _render(task: tuple[int, int, TalkOptions, int, int]) -> list[tuple[bytes, bytes, np.ndarray]]:
    """Encoded picture, encoded mask and landmarks of a range of frames."""
    from PIL import Image

    seed, person, options, first, last = task
    clip, out = _clip_of_process(seed, person, options), []
    for frame in range(first, last):
        head = clip.render(frame, 0, options.size)
        files = []
        for values in (head.rgb, head.mask):
            file = io.BytesIO()
            Image.fromarray(np.round(np.clip(values, 0, 1) * 255).astype(np.uint8)).save(file, 'PNG')
            files.append(file.getvalue())
        out.append((*files, np.asarray(head.landmarks, np.float32)))
    return out


def write_talking_video(
    folder: str | Path,
    seed: int,
    person: int,
    options: TalkOptions | None = None,
    *,
    pool: Executor | None = None,
    on_frame: Callable[[], None] = lambda: None,
) -> Path:
    """Writes the folder of one person, completely or not at all; returns it.

    Args:
        pool: renders in several processes; does not change the files.
        on_frame: called after each frame.

    Raises:
        UserError: the folder exists already or cannot be written.
    """
    from PIL import Image

    from avatar_jax.io import atomic
    from avatar_jax.io.provenance import Provenance
    from avatar_jax.io.sound import SoundTrack, write_wav
    from avatar_jax.io.video import VideoWriter

    options, folder = TalkOptions() if options is None else options, Path(folder)
    if folder.exists():
        raise UserError(f'{folder}: exists already; delete it or choose another --out')
    clip = talking_clip(seed, person, options)
    step = 50
    tasks = [(seed, person, options, i, min(i + step, options.frames)) for i in range(0, options.frames, step)]
    provenance = Provenance(synthetic=True, command='one_person', seed=seed)
    landmarks, frame = [], 0
    with atomic.atomic_folder(folder) as temporary:
        (temporary / CROPS).mkdir()
        (temporary / MASKS).mkdir()
        write_wav(temporary / SOUND, clip.sound())
        rate = Fraction(options.fps).limit_denominator(1001)
        sound = SoundTrack(temporary / SOUND)
        with VideoWriter(temporary / VIDEO, rate, crf=12, provenance=provenance, sound=sound) as video:
            for pieces in (pool.map if pool else map)(_render, tasks):
                for picture, mask, points in pieces:
                    (temporary / CROPS / f'{frame:06d}.png').write_bytes(picture)
                    (temporary / MASKS / f'{frame:06d}.png').write_bytes(mask)
                    with Image.open(io.BytesIO(picture)) as opened:
                        video.write(np.asarray(opened))
                    landmarks.append(points)
                    frame += 1
                    on_frame()
        points = np.stack(landmarks)
        np.savez_compressed(
            temporary / TRUTH,
            labels=clip.labels(),
            expression=clip.expression,
            angle=clip.angle,
            translation=clip.translation,
            landmarks=points,
            mouth=(mouth_opening(points) / options.size).astype(np.float32),
            times=clip.times,
            fps=float(options.fps),
            identity=np.asarray(clip.identity, np.float32),
            gamma=clip.gamma,
            basis=np.array(BASIS),
            seed=seed,
            person=person,
            provenance=np.array(provenance.json()),
        )
    return folder


def is_talking(folder: str | Path) -> bool:
    """Whether a folder was written by ``write_talking_video``."""
    return (Path(folder) / TRUTH).is_file()


def read_talking(folder: str | Path, test_share: float = TEST_SHARE) -> PersonVideo:
    """A written video with its true cameras and coefficients, and its sound as ``mel`` windows.

    Raises:
        UserError: not such a folder, damaged, or shorter than five seconds.
    """
    from avatar_jax.driving.audio import sound_signal

    folder = Path(folder)
    truth = read_truth(folder)
    total = len(truth['labels'])
    check_length(str(folder), truth['times'])
    heard = sound_signal(folder / SOUND, truth['times'])
    train, test = last_part(total, test_share)
    names = tuple(f'{i:06d}.png' for i in range(total))
    if not all((folder / d / names[-1]).is_file() for d in (CROPS, MASKS)):
        raise UserError(f'{folder}: pictures are missing; make the video again')
    return PersonVideo(
        name=str(folder),
        pictures=FilePictures(tuple(folder / CROPS / n for n in names)),
        labels=truth['labels'],
        times=truth['times'],
        signals={'coefficients': truth['expression'], 'sound': heard.windows},
        train=train,
        test=test,
        basis=str(truth['basis']),
        features=heard.features,
        masks=FilePictures(tuple(folder / MASKS / n for n in names)),
        notes=heard.notes,
        sound=str(folder / SOUND),
    )


def read_truth(folder: str | Path) -> dict[str, np.ndarray]:
    """The arrays of ``truth.npz``.

    Raises:
        UserError: missing or damaged.
    """
    from avatar_jax.io.inputs import input_file

    path = input_file(Path(folder) / TRUTH)
    try:
        with np.load(path, allow_pickle=False) as file:
            return {k: file[k] for k in file.files}
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile, zlib.error) as error:
        raise UserError(f'{path}: is damaged ({error}); make the video again') from error
