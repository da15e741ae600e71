"""Many inputs in one command: a failing one is reported and skipped, the others are done."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any, TypeVar

from avatar_jax.errors import UserError
from avatar_jax.io.names import shown

if TYPE_CHECKING:
    from avatar_jax.methods.avatars import Person

T = TypeVar('T')
R = TypeVar('R')


def share_of(count: int, share: str | None) -> list[int]:
    """The numbers below ``count`` that a share such as '2/4' (the second of four) has; all without one.

    Raises:
        UserError: not such a text.
    """
    if share is None:
        return list(range(count))
    part, _, parts = share.partition('/')
    if not (part.isdigit() and parts.isdigit() and 1 <= int(part) <= int(parts)):
        raise UserError(f'--share {share}: give K/N, e.g. 2/4 for the second of four shares')
    return list(range(int(part) - 1, count, int(parts)))


def part_of(share: str | None) -> str:
    """What the names of a share's reports have in addition: '_2_of_4' for '2/4', nothing without one."""
    return '' if share is None else f'_{share.replace("/", "_of_")}'


class Batch:
    """Runs work on inputs one by one and remembers what was skipped.

    batch = Batch()
    batch.run(paths, convert)
    return batch.finish()       # exit status

    Attributes:
        results: what ``work`` returned, for the inputs of ``run`` that went well. skipped: (name, reason) of those that
            did not. done: how many went well.
    """

    def __init__(self):
        self.results: list[Any] = []
        self.skipped: list[tuple[str, str]] = []
        self.done = 0

    def run(self, items: Iterable[T], work: Callable[[T], Any], name: Callable[[T], str] = str) -> None:
        """Calls ``work(item)`` for every item; a ``UserError`` skips the item, other exceptions pass through."""
        self.results += self.each(items, work, name)

    def each(self, items: Iterable[T], work: Callable[[T], R], name: Callable[[T], str] = str) -> Iterator[R]:
        """As ``run``, but hands every result on when it is asked for, and keeps none."""
        for item in items:
            result: list[R] = []
            try:
                result.append(work(item))
            except UserError as error:
                self.skip(name(item), str(error))
                continue
            self.done += 1
            yield result.pop()  # with no name here that would hold it until the next one

    def skip(self, name: str, reason: str) -> None:
        """Records an input as skipped and says so at once."""
        self.skipped.append((name, reason))
        print(f'avatar-jax: skipped: {shown(reason)}', file=sys.stderr)

    def take_back(self, person: Person, error: UserError) -> None:
        """Records the pictures of a person as skipped, who had gone well so far: the method refuses them."""
        for picture in person.read:
            self.done -= 1
            self.skip(str(picture.path), str(error))

    def finish(self) -> int:
        """Lists what was skipped on stderr; returns the exit status: 0, or 2 if anything was."""
        if not self.skipped:
            return 0
        total = self.done + len(self.skipped)
        print(f'avatar-jax: {len(self.skipped)} of {total} inputs were skipped:', file=sys.stderr)
        for name, reason in self.skipped:
            print(shown(f'  {name}: {reason.removeprefix(name + ": ")}'), file=sys.stderr)
        return 2
