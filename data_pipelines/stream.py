"""Endless batches that are a function of (seed, step): sharded by process, resumed by step number, read by Grain.

Position ``p`` of the stream holds the same element for every number of processes; step ``s`` consists of the
positions ``s * batch_size .. (s + 1) * batch_size - 1``, of which each process reads one contiguous block, in the order
of the processes: laid end to end, the blocks are the batch of a single process. So a run resumes by starting at a step,
with no iterator state to store, and may continue with another process count.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Self

import numpy as np

from avatar_jax.checks import Check
from avatar_jax.errors import UserError
from avatar_jax.procedural.streams import Stream


class Order:
    """Endless order of ``count`` items in which every epoch is another permutation.

    Args:
        count: number of items.
        keys: what the order depends on (see ``Stream``).
    """

    def __init__(self, count: int, *keys: int | str):
        self.count, self.keys = count, keys
        self._known: dict[int, np.ndarray] = {}

    def __getitem__(self, position: int) -> int:
        epoch, place = divmod(int(position), self.count)
        order = self._known.get(epoch)
        if order is None:
            order = np.argsort(Stream(*self.keys, 'order', epoch).random(self.count), kind='stable')
            self._known = {**{k: v for k, v in self._known.items() if abs(k - epoch) <= 1}, epoch: order}
        return int(order[place])

    def __getstate__(self):
        return {**self.__dict__, '_known': {}}


class _Share:
    """The elements of one process by their number in its own stream; a class, so that worker processes can have it."""

    def __init__(self, load: Callable[[int], dict], batch_size: int, local: int, first: int):
        self.load, self.batch_size, self.local, self.first = load, batch_size, local, first

    def __call__(self, number: int) -> dict:
        step, place = divmod(int(number), self.local)
        return self.load(step * self.batch_size + self.first + place)


class Batches:
    """Iterator of batches; use as a context manager or call ``close``.

    Args:
        load: position -> dict of numpy arrays; must pickle when ``num_workers`` > 0.
        batch_size: elements per step over all processes.
        start_step: number of the first batch; 0 for a new run.
        process_index, process_count: this process gets the ``process_index``-th of ``process_count`` equal blocks of a
                step.
        num_workers: worker processes; 0 reads in threads. Does not change the batches.
        num_threads, prefetch: reading threads, and elements read ahead (at least a batch a thread). Do not change the
            batches.
    Raises:
        UserError: the batch does not divide among the processes.
    """

    def __init__(
        self,
        load: Callable[[int], dict],
        batch_size: int,
        start_step: int = 0,
        process_index: int = 0,
        process_count: int = 1,
        num_workers: int = 0,
        num_threads: int = 2,
        prefetch: int = 8,
    ):
        check = Check.values(batch_size=batch_size, num_workers=num_workers, num_threads=num_threads, prefetch=prefetch)
        check.at_least(1, 'batch_size')
        check.at_least(0, 'num_workers', 'num_threads', 'prefetch')
        if batch_size % process_count:
            raise UserError(
                f'batch_size={batch_size} does not divide among {process_count} processes; '
                f'choose a multiple of {process_count}'
            )
        if not 0 <= process_index < process_count or start_step < 0:
            raise ValueError(f'process {process_index} of {process_count}, step {start_step}')
        import grain

        local = batch_size // process_count
        share = _Share(load, batch_size, local, process_index * local)
        batches = grain.MapDataset.range(0, 2**62).map(share).batch(local)[start_step:]
        # Threads make whole batches; with fewer places than threads some would have nothing to do, and Grain warns.
        ahead = max(1, num_threads, prefetch // local)
        stream = batches.to_iter_dataset(grain.ReadOptions(num_threads=num_threads, prefetch_buffer_size=ahead))
        self._shared = num_workers > 0
        if self._shared:
            _parse_flags()
            stream = stream.mp_prefetch(grain.MultiprocessingOptions(num_workers=num_workers))
        self._iterator = iter(stream)

    def __iter__(self) -> Iterator[dict[str, np.ndarray]]:
        return self

    def __next__(self) -> dict[str, np.ndarray]:
        batch = next(self._iterator)
        # Batches from workers live in shared memory that goes away with the iterator.
        return {k: np.array(v) for k, v in batch.items()} if self._shared else batch

    def close(self) -> None:
        """Stops reading ahead and ends the worker processes."""
        close = getattr(self._iterator, 'close', None)
        if close is not None:
            close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_) -> None:
        self.close()


def _parse_flags() -> None:
    """Grain's worker processes read absl flags, which outside ``absl.app.run`` nobody has parsed."""
    from absl import flags

    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()
