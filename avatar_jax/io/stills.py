"""Pictures that Pillow does not know, by FFmpeg: OpenEXR and Radiance HDR (linear light), PFM, DPX and the like."""

from __future__ import annotations

import io
from fractions import Fraction
from typing import Any, BinaryIO

import numpy as np

from avatar_jax.io import colour
from avatar_jax.io.kinds import is_still_format

MAX_PIXELS = 178_956_970  # as Pillow's guard against pictures that fill the memory


class NoPicture(Exception):
    """The file is no single picture for FFmpeg, or is damaged."""


class TooLarge(Exception):
    """More pixels than can be decoded safely."""


def decode(file: BinaryIO) -> tuple[np.ndarray, np.ndarray | None, list[str]]:
    """A picture by FFmpeg.

    Args:
        file: open for reading, from its beginning.

    Returns:
        ([H, W, 3] uint8 sRGB, [H, W] uint8 opacity or None, notes).

    Raises:
        NoPicture: FFmpeg sees no single picture. TooLarge: too many pixels.
    """
    import av

    try:
        with av.open(io.BytesIO(file.read())) as container:  # a name would be searched for patterns such as %03d
            if (
                not container.streams.video
                or not is_still_format(container.format.name)
                or container.format.name == 'tty'
            ):
                raise NoPicture
            stream = container.streams.video[0]
            if stream.width * stream.height > MAX_PIXELS:
                raise TooLarge
            for frame in container.decode(stream):
                return _pixels(frame)
    except (av.error.FFmpegError, ValueError, OSError) as error:
        raise NoPicture(str(error)) from error
    raise NoPicture


def _pixels(frame: Any) -> tuple[np.ndarray, np.ndarray | None, list[str]]:
    name = frame.format.name
    kind = {'f16le': '<f2', 'f16be': '>f2', 'f32le': '<f4', 'f32be': '>f4'}.get(name[-5:])
    if kind is None:
        values = frame.reformat(format='rgba64le').to_ndarray()
        values = np.rint(values / 257.0).astype(np.uint8)
        alpha = values[..., 3] if values[..., 3].min() < 255 else None
        return np.ascontiguousarray(values[..., :3]), alpha, []
    upside_down = any(p.line_size < 0 for p in frame.planes)  # stored from the bottom up, which NumPy cannot see
    if upside_down:
        frame = _turned(frame)
    planes = [_plane(frame, p, kind)[:: -1 if upside_down else 1] for p in frame.planes]
    if name.startswith('gbr'):
        light = np.stack([planes[2], planes[0], planes[1]], -1)
    else:
        light = np.repeat(planes[0][..., None], 3, -1)
    opacity = planes[-1] if len(planes) in (2, 4) else None
    light = np.nan_to_num(light, nan=0.0, posinf=1e9, neginf=0.0)
    alpha = None
    if opacity is not None:
        opacity = np.clip(np.nan_to_num(opacity), 0, 1)
        light = light / np.maximum(opacity, 1e-6)[..., None]  # colours are stored multiplied by it
        alpha = np.rint(255 * opacity).astype(np.uint8)
        alpha = alpha if alpha.min() < 255 else None
    notes = ['linear light converted to sRGB']
    if (light > 1).mean() > 0.001:
        notes.append('what is brighter than white (1.0) is clipped')
    return np.rint(255 * colour.linear_to_srgb(light)).astype(np.uint8), alpha, notes


def _turned(frame: Any) -> Any:
    import av

    graph = av.filter.Graph()
    size = {'width': frame.width, 'height': frame.height}
    source = graph.add_buffer(**size, format=frame.format, time_base=frame.time_base or Fraction(1, 25))
    flip, sink = graph.add('vflip'), graph.add('buffersink')
    source.link_to(flip)
    flip.link_to(sink)
    graph.configure()
    graph.push(frame)
    return graph.pull()


def _plane(frame: Any, plane: Any, kind: str) -> np.ndarray:
    """[H, W] float32 of one plane of numbers."""
    dtype = np.dtype(kind)
    channels = 3 if frame.format.name.startswith('rgb') else 1
    rows = np.frombuffer(plane, dtype).reshape(-1, plane.line_size // dtype.itemsize)
    return rows[: frame.height, : frame.width * channels].astype(np.float32)
