"""How people are tested; what of it can be chosen are options of ``avatar-jax evaluate``. Needs no jax."""

from __future__ import annotations

from dataclasses import dataclass

from avatar_jax.checks import OPTION, Check
from avatar_jax.errors import UserError
from avatar_jax.methods.base import Method
from avatar_jax.methods.options import check_portraits
from avatar_jax.options import option

VIDEO_FRAMES = 3000  # of a talking video that is drawn, if nothing else is asked for
KINDS, RULES = ('own', 'cross', 'views'), ('spread', 'paper')


@dataclass(frozen=True)
class ProtocolConfig:
    """How talking clips are used for testing.

    Attributes:
        resolution: side of the true pictures of procedural heads; that of the avatar's output.
        frames: driven frames per identity, spread over the driver's clip (the strongest blink is always among them).
        clip_frames: length of the clips that are made of procedural heads.
        source_max_yaw: degrees; the source is a frame with open eyes whose yaw is at most this.
        eye_closed: blink weight from which the driver's eye counts as closed.
        portraits: pictures of the person that the method sees: the source, and others of the same clip, from its
            cameras in turn.
        kind: of recorded clips: 'own', 'cross' or 'views' (``eval.recorded``). driver: of 'cross': the name of the clip
            that drives everybody; '': the next person's. rule: which frames are the portraits: 'spread' or 'paper'
            (``eval.recorded.paper_frames``).
        source_yaw: degrees by which the camera of a procedural person's portrait is turned to the side; the view from
            the front is then one of the unseen ones.
        against_mean: every inversion that starts from an encoder is also started at the mean code, and compared.
        steady: further driven frames, one after the other from the middle of the driver's clip, that tell how steady
            the avatar is; 0: none.
    """

    resolution: int = 128
    frames: int = option(24, 'driven frames per person')
    clip_frames: int = 120
    source_max_yaw: float = 15.0
    eye_closed: float = 0.8
    portraits: int = option(
        1, 'pictures of each person that the avatar is made of, for methods that take several (default: 1)'
    )
    kind: str = option(
        'own',
        "with --dataset: own: a frame of a clip is driven by the rest of it; cross: by another person's clip; views: "
        'the first frontal frame is driven by what follows and seen by all cameras (default: own)',
        flag='--protocol',
        choices=KINDS,
    )
    driver: str = option(
        '',
        'with --protocol cross: the clip that drives everybody (default: each person is driven by the next)',
        metavar='CLIP',
    )
    rule: str = option(
        'spread',
        'with --dataset, which frames --portraits takes: spread over the clip, or those of the paper on several '
        'portraits: first; first and last; first, middle, last; first, at 30 and 60 percent, last (default: spread)',
        flag='--portrait-frames',
        choices=RULES,
    )
    source_yaw: float = option(
        0.0, 'turn the camera of the portraits to the side (procedural people; default: 0)', metavar='DEGREES'
    )
    against_mean: bool = option(
        False,
        'with --start encoder: also start each inversion at the mean code, and report the steps and seconds that the '
        'encoder saves until the same loss',
    )
    steady: int = option(
        0,
        'further consecutive driven frames, to measure how much pictures change from frame to frame (default: 0, none)',
    )

    def __post_init__(self):
        check, hidden = Check(self, OPTION), Check(self, 'evaluation')
        hidden.one_of('kind', *KINDS)
        hidden.one_of('rule', *RULES)
        if self.driver and self.kind != 'cross':
            raise UserError(f'--driver {self.driver}: drives people with --protocol cross only')
        if self.kind == 'views' and self.portraits > 1:
            raise UserError(f'--portraits {self.portraits}: --protocol views has one, the first frontal frame')
        hidden.at_least(16, 'resolution')
        hidden.at_least(2, 'clip_frames')
        check.within(1, self.clip_frames, 'portraits')
        check.within(2, self.clip_frames, 'frames')
        check.within(-90, 90, 'source_yaw')
        if self.steady and self.kind != 'own':
            raise UserError(f'--steady {self.steady}: is of --protocol own, where the truth shows the same person')
        check.need(
            self.steady == 0 or 3 <= self.steady <= self.clip_frames,
            'steady',
            f'needs 3 to {self.clip_frames} frames one after the other, or 0',
        )

    def check_method(self, owner: Method) -> None:
        """Raises ``UserError`` for more portraits than the method can make an avatar of."""
        check_portraits(owner, self.portraits, f'--portraits {self.portraits}')
