"""Time stamps of media: what the packets say instead of the header, and stamps that go back or jump, mended.

Browser recordings claim 1000 frames per second in their headers, joined transport streams begin again in the middle,
interrupted recordings jump by minutes. The stamps of the packets are read once, without decoding anything.
"""

from __future__ import annotations

import dataclasses
import itertools
import os
from collections.abc import Callable
from fractions import Fraction

import numpy as np

COMMON_RATES = tuple(
    Fraction(r)
    for r in ('5', '6', '8', '10', '12', '12.5', '15', '16', '20', '24000/1001', '24', '25', '30000/1001', '30', '48')
    + ('50', '60000/1001', '60', '90', '100', '120000/1001', '120', '200', '240', '300', '480')
)
HEADER_OFF = 0.05  # share by which a header's rate may differ from the stamps before it is not believed
_SNAP = 0.01  # share by which a measured rate may differ from a common one that it is taken for
_JUMP, _JUMP_STEPS = 1.0, 10  # seconds, and usual steps, beyond which a gap between frames is a jump
_BACK_STEPS = 5  # usual steps by which stamps may go back before the rest of the file is moved
_FEW, _ABSURD = 4, 200  # so few stamps prove nothing, unless the header claims a rate that hardly any camera has
_LEAST = 0.25  # of the usual step: frames nearer to each other are taken for repeated stamps


@dataclasses.dataclass(frozen=True)
class Stamps:
    """Stamps of one track.

    Attributes:
        times: [N] seconds in the order of decoding (decoding stamps where there are any, else showing stamps).
        step: usual time between them, seconds; NaN where it cannot be told.
        jumps: (from, to) seconds of gaps that are no pauses.
    """

    times: np.ndarray
    step: float
    jumps: tuple[tuple[float, float], ...] = ()

    @property
    def rate(self) -> float:
        """Stamps per second on average, jumps left out; NaN where it cannot be told."""
        steps = _steps(self.times, self.jumps)
        return len(steps) / steps.sum() if len(steps) and steps.sum() > 0 else float('nan')


def _steps(times: np.ndarray, jumps: tuple[tuple[float, float], ...]) -> np.ndarray:
    steps, skipped = np.diff(times), {j[0] for j in jumps}
    if not len(steps):
        return steps
    # A stamp that repeats is a frame all the same: its step of nothing counts. One that goes back is left out.
    keep = (steps >= 0) & np.array([t not in skipped for t in times[:-1].tolist()])
    return steps[keep]


def scan(path: str | os.PathLike) -> tuple[Stamps, Stamps]:
    """Stamps of the pictures and of the sound of a file (of the tracks that are read), as far as it can be read."""
    import av

    from avatar_jax.io.inputs import open_media, picture_tracks, sound_track

    found: dict[str, list[tuple[float | None, float | None]]] = {'video': [], 'audio': []}
    try:
        with open_media(path) as container:
            streams = [*picture_tracks(container)[:1], *([s] if (s := sound_track(container)) is not None else [])]
            for packet in container.demux(streams) if streams else ():
                if packet.size == 0 or packet.is_discard:
                    continue
                both = (None if v is None else float(v * packet.time_base) for v in (packet.dts, packet.pts))
                found[packet.stream.type].append(tuple(both))
    except (av.error.FFmpegError, ValueError, OSError):
        pass  # decoding says what is wrong, and where
    sound = _stamps(_in_order(found['audio']), None)
    return _stamps(_in_order(found['video']), sound), sound


def _in_order(pairs: list[tuple[float | None, float | None]]) -> np.ndarray:
    """Decoding stamps of (decoding, showing) pairs; showing stamps in order where the file has no others."""
    decoding = [d for d, _ in pairs if d is not None]
    if 2 * len(decoding) > len(pairs):
        return np.array(decoding)
    return np.sort([p for _, p in pairs if p is not None])


def _stamps(times: np.ndarray, sound: Stamps | None) -> Stamps:
    rising = np.diff(times)
    rising = rising[rising > 0]
    if not len(rising):
        return Stamps(times, float('nan'))
    step = float(np.median(rising))
    limit = jump_limit(step)
    jumps = [(float(a), float(b)) for a, b in itertools.pairwise(times) if b - a > limit]
    if sound is not None and len(jumps) and len(sound.times):
        jumps = [j for j in jumps if not _covered(j, sound.times)]
    return Stamps(times, step, tuple(jumps))


def _covered(gap: tuple[float, float], times: np.ndarray) -> bool:
    """Whether sound goes on in most of a gap: then the picture only stood still."""
    inside = np.unique(np.floor(times[(times > gap[0]) & (times < gap[1])] * 2))
    return len(inside) >= 0.5 * 2 * (gap[1] - gap[0])


def jump_limit(step: float) -> float:
    """Seconds between frames beyond which stamps have jumped, for a usual ``step``."""
    return max(_JUMP, _JUMP_STEPS * step)


def snapped(rate: float) -> Fraction | None:
    """The common frame rate that a measured one stands for, or None."""
    nearest = min(COMMON_RATES, key=lambda r: abs(float(r) - rate))
    return nearest if abs(float(nearest) / rate - 1) < _SNAP else None


def true_rate(header: Fraction | None, stamps: Stamps, decoded: Callable[[], float]) -> tuple[Fraction | None, str]:
    """The frame rate by the stamps, where the header is missing or wrong.

    Args:
        header: what the file claims.
        stamps: of the pictures' packets.
        decoded: called without arguments where the two differ; gives the average rate of the first decoded frames or
            NaN. A packet is not a frame in every file (fields, hidden frames).

    Returns:
        (rate, a note or '').
    """
    rate = stamps.rate
    if not np.isfinite(rate) or (len(stamps.times) < _FEW and header is not None and header < _ABSURD):
        return header, ''
    if header is not None and abs(rate / float(header) - 1) <= HEADER_OFF:
        common = snapped(rate)
        near = common is not None and header not in COMMON_RATES and abs(float(common) / rate - 1) < 0.002
        return (common, '') if near else (header, '')
    seen = decoded()
    if np.isfinite(seen) and abs(seen / rate - 1) > HEADER_OFF:
        if header is not None and abs(seen / float(header) - 1) <= HEADER_OFF:
            return header, ''
        rate = seen
    found = snapped(rate) or Fraction(rate).limit_denominator(1001)
    if header is None:
        return found, ''
    return found, f'the header says {float(header):g} frames per second, the frames come at {float(found):.4g}'


class Mender:
    """Brings the stamps of one track into rising order without jumps, one after the other.

    Args:
        step: usual time between stamps, seconds.
        jumps: gaps that are mended (``Stamps.jumps``); all too long ones if None.
        least: share of the step by which stamps must rise.

    Attributes:
        back, missing, jumped: how many stamps did not rise, were missing, came after a jump.
    """

    def __init__(self, step: float, jumps: tuple[tuple[float, float], ...] | None = None, least: float = _LEAST):
        self.step, self._jumps, self._least = step, jumps, least
        self._last_raw: float | None = None
        self._last: float | None = None
        self._offset = 0.0
        self.back = self.missing = self.jumped = 0

    def __call__(self, raw: float | None) -> float:
        """The mended time of a stamp, seconds."""
        if self._last is None:
            self._last_raw, self._last = raw, raw or 0.0
            return self._last
        wanted = self._last + self.step
        if raw is None:
            self.missing += 1
            self._last = wanted
            self._last_raw = None if self._last_raw is None else self._last_raw + self.step
            return wanted
        if self._last_raw is None:  # the first stamp of all
            self._offset = wanted - raw
        time = raw + self._offset
        if time <= self._last + self._least * self.step:
            self.back += 1
            if time < self._last - _BACK_STEPS * self.step:  # another recording begins: what follows moves along
                self._offset = wanted - raw
            time = wanted
        elif self._last_raw is not None and raw - self._last_raw > jump_limit(self.step) and self._is_jump(raw):
            self.jumped += 1
            self._offset = wanted - raw
            time = wanted
        self._last_raw, self._last = raw, time
        return time

    def _is_jump(self, raw: float) -> bool:
        if self._jumps is None:
            return True
        slack = 2 * jump_limit(self.step)
        return any(a - slack < self._last_raw < b + slack and a - slack < raw < b + slack for a, b in self._jumps)

    def notes(self) -> tuple[str, ...]:
        """What was mended, one phrase each."""
        said = []
        if self.back:
            said.append(f'{self.back} time stamps that do not rise')
        if self.missing:
            said.append(f'{self.missing} missing time stamps')
        if self.jumped:
            said.append(f'{self.jumped} jumps of the time stamps')
        return (f'{" and ".join(said)} mended at the usual step',) if said else ()
