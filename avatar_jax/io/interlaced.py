"""Interlaced frames: two moments in alternating lines. They are told by their flags or their combs, and deinterlaced.

FFmpeg's filter ``bwdif`` makes one whole frame of each interlaced one; frames that are whole already pass as they are.
"""

from __future__ import annotations

import collections
import itertools
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

_FIRST = 12  # frames that are looked at
_TOOTH, _BETWEEN, _MOVED = 18, 10, 18  # gray levels: a comb's height, agreement of lines of one field, movement
_COMBED = 0.004  # share of pixels from which on a frame counts as combed
NOTE = 'interlaced: deinterlaced (bwdif)'


def interlaced(frames: Iterable[Any]) -> str:
    """How the first frames are interlaced: 'flagged', 'combed' (without being flagged), or '' (not at all)."""
    before, combed, seen = None, 0, 0
    for frame, _ in zip(frames, range(_FIRST), strict=False):
        if frame.interlaced_frame:
            return 'flagged'
        gray = frame.reformat(format='gray').to_ndarray().astype(np.int16)
        if before is not None and before.shape == gray.shape:
            combed += comb_share(gray, before) > _COMBED
            seen += 1
        before = gray
    return 'combed' if combed >= max(3, 0.5 * seen) else ''


def comb_share(gray: np.ndarray, before: np.ndarray) -> float:
    """Share of pixels [H, W] that stand out of both lines beside them, which agree, where the picture has moved."""
    if gray.shape[0] < 5:
        return 0.0
    up, line, down = gray[:-2], gray[1:-1], gray[2:]
    tooth = np.minimum(np.abs(line - up), np.abs(line - down)) > _TOOTH
    tooth &= (line > up) == (line > down)
    # Lines of one field agree; and a striped shirt that keeps still is no comb.
    tooth &= (np.abs(up - down) < _BETWEEN) & (np.abs(line - before[1:-1]) > _MOVED)
    return float(tooth.mean())


class Deinterlacer:
    """Makes whole frames of interlaced ones, as many as there were, in their order.

    Args:
        everything: deinterlace all frames, not only flagged ones.
    """

    def __init__(self, everything: bool):
        self._mode = 'all' if everything else 'interlaced'

    def __call__(self, frames: Iterable[Any]) -> Iterator[tuple[Any, Any]]:
        """Yields (frame as decoded, whole frame) for each frame."""
        graph, kind, waiting = None, None, collections.deque()
        for frame in frames:
            found = (frame.width, frame.height, frame.format.name)
            if found != kind:
                if graph is not None:
                    yield from self._pulled(graph, waiting, last=True)
                graph, kind = self._graph(frame), found
            waiting.append((frame, frame.pts))
            # The filter wants rising stamps, which damaged files lack: it gets a count.
            self._count += 1
            frame.pts = self._count
            graph.push(frame)
            frame.pts = waiting[-1][1]
            yield from self._pulled(graph, waiting, last=False)
        if graph is not None:
            yield from self._pulled(graph, waiting, last=True)

    def _graph(self, frame: Any) -> Any:
        import av

        self._count = 0
        graph = av.filter.Graph()
        source = graph.add_buffer(
            width=frame.width, height=frame.height, format=frame.format, time_base=frame.time_base
        )
        filters = [
            source,
            graph.add('bwdif', f'mode=send_frame:parity=auto:deint={self._mode}'),
            graph.add('buffersink'),
        ]
        for a, b in itertools.pairwise(filters):
            a.link_to(b)
        graph.configure()
        return graph

    @staticmethod
    def _pulled(graph: Any, waiting: collections.deque, last: bool) -> Iterator[tuple[Any, Any]]:
        import av

        if last:
            graph.push(None)
        while waiting:
            try:
                whole = graph.pull()
            except (av.error.BlockingIOError, av.error.EOFError):
                break
            yield waiting.popleft()[0], whole
        while last and waiting:  # whatever the filter did not give back is shown as it was
            frame = waiting.popleft()[0]
            yield frame, frame
