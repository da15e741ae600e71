"""What a user asks to drive an avatar with: a file, made-up speech, a clip, or numbers, and what is taken of it.

The fields are the options of ``avatar-jax animate``; neither jax nor numpy is needed for its ``--help``.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from avatar_jax.checks import OPTION, Check
from avatar_jax.errors import UserError
from avatar_jax.options import option

RELATIVE = ('none', 'expression', 'pose', 'all')
REGIONS = ('mouth', 'eyes', 'brows', 'expression', 'pose')


@dataclass(frozen=True)
class Plan:
    """How a driver is used.

    Attributes:
        relative: 'none' takes the driver's numbers as they are; 'expression', 'pose' or 'all' takes their change from
            the neutral frame and adds it to the avatar (a face at rest; the head as in the portrait).
        neutral: number of the neutral frame; None finds it.
        only: regions that are taken over (of ``REGIONS``); empty takes everything.
        amplify, amplify_pose: factors on expression and pose, about the neutral frame where there is one (relative, or
            given), else about rest.
    """

    relative: str = option(
        'none',
        "add the driver's change from its neutral frame to the avatar, instead of taking the driver's numbers as they "
        'are (default: none; without a value: all)',
        choices=RELATIVE,
        nargs='?',
        const='all',
    )
    neutral: int | None = option(None, 'number of the neutral frame (default: it is estimated)')
    only: tuple[str, ...] = option(
        (),
        'take only these from the driver; the rest of the face stays at rest, the head as in the portrait',
        choices=REGIONS,
    )
    amplify: float = option(1.0, 'factor on the expression')
    amplify_pose: float = option(1.0, "factor on the head's movement")

    def __post_init__(self):
        check = Check(self, OPTION)
        check.one_of('relative', *RELATIVE)
        for region in self.only:
            Check.values(OPTION, only=region).one_of('only', *REGIONS)


@dataclass(frozen=True)
class Request:
    """Who drives, and how; ``driving.reading.read_request`` makes a motion of it.

    Attributes:
        motion: a file, ``speech:SEED[:FRAMES]``, ``FOLDER:SPLIT:CLIP`` of a data set; None: the sliders alone.
        sliders: ``NAME=VALUE`` texts. plan: what is taken from the driver, and how.
        face: which face of a driving video or picture. fps: of coefficient files that do not say it.
        frames: length: the first frames of a driver; for sliders alone or a picture, how long it is held.
        sound: file of the sound track, or of sound features (``.npy``), 'none', or None for that of a driving video.
            Without a motion its length is the video's; the face rests, and only an avatar that listens moves.
    """

    motion: str | None = option(
        None,
        'the driver: a motion file, coefficients, a video, a picture, a tracked folder, FOLDER:SPLIT:CLIP of a data '
        'set, or speech:SEED[:FRAMES]',
        metavar='FILE|CLIP',
    )
    sliders: tuple[str, ...] = option(
        (),
        'set components of the expression by name or index, yaw, pitch, roll (degrees), move_x, move_y, move_z '
        "(decimetres); alone, or in place of the driver's values",
        flag='--slider',
        metavar='NAME=VALUE',
    )
    plan: Plan = field(default_factory=Plan)
    face: str = option(
        'size',
        'which face of a driving video or picture: the largest (default), the N-th largest, or the one most similar '
        'to the face in a picture',
        metavar='size|N|FILE',
    )
    fps: float | None = option(None, 'frame rate of a coefficient file that has none in it (default: 25)')
    frames: int | None = option(
        None, 'only the first N frames; for a picture or --slider alone, the length (default: 25)'
    )
    sound: str | None = option(
        None,
        "sound of the video: a file, or 'none' (default: that of a driving video); an avatar that listens is driven by "
        'it, or by sound features (.npy)',
        metavar='FILE',
    )

    def __post_init__(self):
        check = Check(self, OPTION)
        check.at_least(1, 'frames')
        check.within(0.001, 1000, 'fps')
        if self.motion is None and not self.sliders and self.sound in (None, 'none'):
            raise UserError('--motion: who drives the avatar? give --motion FILE, or numbers with --slider')
