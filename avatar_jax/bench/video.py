"""Frames per second of a whole video, and its memory: a driver is read, frames are rendered while others are encoded.

The same parts in the same order as ``avatar-jax animate`` (``methods.video``), on an avatar that is there.
"""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from avatar_jax.bench.stages import machine, peak_rss, reset_peak
from avatar_jax.checks import OPTION, Check
from avatar_jax.driving.cameras import camera_labels
from avatar_jax.driving.reading import read_request
from avatar_jax.driving.request import Request
from avatar_jax.driving.signals import make_drive
from avatar_jax.errors import UserError
from avatar_jax.faces.conventions import background_of
from avatar_jax.io.provenance import Provenance
from avatar_jax.methods.model import check_weights, choose_model, load_avatar
from avatar_jax.methods.video import VideoOptions, write_frames
from avatar_jax.types import Frames


def run_video(
    folder: str | os.PathLike,
    motion: str | None = None,
    frames: int = 1000,
    weights: str | os.PathLike | None = None,
    out_json: str | os.PathLike | None = None,
    report: Callable[[str], None] | None = None,
) -> dict[str, Any]:
    """Makes a video of an avatar and measures it; the video is thrown away.

    Args:
        folder: of the avatar. weights: that it was made with; None: those in the package.
        motion: the driver, e.g. a video, of which the first ``frames`` are taken; None: made-up speech.
        out_json: where to write the result, or None. report: receives the lines for people.

    Returns:
        {'machine', 'frames', 'driver_s' (until the driver was read and its signals made), 'first_s' (until the first
        call of the renderer was done, compilation included), 'seconds' (of the frames after it, written), 'waiting_s'
        (of those, for frames that were not rendered yet: the rest was encoding), 'frames_per_s', 'early_rss_bytes' and
        'peak_rss_bytes' (after the first tenth and at the end; None where the system does not tell)}.

    Raises:
        UserError: the avatar or the driver cannot be used; too few frames to measure.
    """
    Check.values(OPTION, frames=frames).at_least(2, 'frames')
    began = time.perf_counter()
    avatar = load_avatar(folder)
    model = choose_model(avatar.method or None, weights)
    check_weights(avatar, model)
    model = model.of(avatar)
    request = Request(f'speech:0:{frames}' if motion is None else motion, frames=frames)
    crops = {'size': model.config.img_resolution, 'background': background_of(model.config, 'weights')}
    driving = read_request(request, model.config.basis, avatar, _no_clip, crops)
    drive = make_drive(model.method, model.config, driving.parts, driving.motion.fps, driving.motion.source)
    labels = camera_labels('track', model.config, avatar, driving.motion)
    count, read = len(labels), time.perf_counter()
    marks: dict[str, Any] = {'waiting': 0.0, 'first': None, 'early': None, 'shown': 0}

    def timed(stream: Iterator[Frames]) -> Iterator[Frames]:
        while True:
            asked = time.perf_counter()
            part = next(stream, None)
            now = time.perf_counter()
            if part is None:
                return
            if marks['first'] is None:
                marks['first'], marks['skipped'] = now, len(part.rgb)
            else:
                marks['waiting'] += now - asked
            marks['shown'] += len(part.rgb)
            if marks['early'] is None and marks['shown'] >= count / 10:
                marks['early'] = peak_rss()
            yield part

    reset_peak()
    with tempfile.TemporaryDirectory() as place:
        options = VideoOptions(Path(place) / 'video.mp4')
        provenance = Provenance(synthetic=True, weights=model.sha256, command='bench')
        stream = model.stream(avatar, drive, labels, per_call=min(options.per_call, count // 2))
        write_frames(timed(iter(stream)), options, driving.motion.fps, provenance, None)
    seconds, rest = time.perf_counter() - marks['first'], count - marks['skipped']
    result = {
        'machine': machine(),
        'frames': count,
        'driver_s': read - began,
        'first_s': marks['first'] - read,
        'seconds': seconds,
        'waiting_s': marks['waiting'],
        'frames_per_s': rest / seconds,
        'early_rss_bytes': marks['early'],
        'peak_rss_bytes': peak_rss(),
    }
    if out_json is not None:
        path = Path(out_json)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(result, indent=1) + '\n')
    if report:
        report(text_of(result))
    return result


def text_of(result: dict[str, Any]) -> str:
    """The result of ``run_video`` in a line."""
    early, peak = (result[name] for name in ('early_rss_bytes', 'peak_rss_bytes'))
    memory = (
        '' if peak is None else f'; memory {early / 2**20:.0f} MiB after a tenth of them, {peak / 2**20:.0f} at the end'
    )
    share = result['waiting_s'] / result['seconds']
    return (
        f'video of {result["frames"]} frames: {result["frames_per_s"]:.3g} per second, {share:.0%} of the time waiting '
        f'for the renderer; before it {result["driver_s"]:.1f} s for the driver and {result["first_s"]:.1f} s for the '
        f'first frames{memory}'
    )


def _no_clip(name: str) -> Any:
    raise UserError(f'--motion {name}: give a file, or speech:SEED')
