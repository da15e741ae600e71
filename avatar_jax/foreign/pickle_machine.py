"""The machine that pickles are programs for: a place in the program, a stack, and stored values.

What its instructions do is in ``pickle_instructions``, and ``pickle_reader`` carries a program out.
"""

from __future__ import annotations

from typing import Any, Protocol

from avatar_jax.foreign.limits import MAX_TEXT, Budget, Damaged, Refused
from avatar_jax.foreign.pickle_values import MARK, MAX_LINE, Global, Value


class Constructors(Protocol):
    """What a pickle may refer to and what comes of it. Every method may raise ``Refused`` or ``Damaged``."""

    def refer(self, module: str, name: str) -> Global:
        """The program refers to a name."""

    def call(self, what: Global, arguments: tuple) -> Value:
        """The program wants ``what(*arguments)``."""

    def new(self, what: Global, arguments: tuple) -> Value:
        """The program wants a new object of the class ``what``."""

    def build(self, value: Value, state: Value) -> Value:
        """The program hands an object its state; gives the object."""

    def items(self, value: Value) -> dict | None:
        """The dictionary behind an object that takes items, or None."""

    def persistent(self, identifier: Value) -> Value:
        """The program refers to something stored outside of it."""


class Machine:
    """The state of reading one pickle, and what all instructions need.

    Args:
        data: the bytes, from the first instruction on; what follows the pickle is not looked at.
        constructors: decides what names may occur and what they mean.
        budget: pays for instructions and texts.
    """

    def __init__(self, data: memoryview, constructors: Constructors, budget: Budget):
        self.data = data
        self.end = len(data)
        self.position = 0
        self.constructors = constructors
        self.budget = budget
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}

    # Reading the program.

    def take(self, number: int) -> memoryview:
        """The next ``number`` bytes."""
        start = self.position
        if number > self.end - start:
            raise Damaged(f'a pickle announces {number} bytes where {self.end - start} are left')
        self.position = start + number
        return self.data[start : start + number]

    def number(self, size: int) -> int:
        """The next unsigned little-endian number."""
        return int.from_bytes(self.take(size), 'little')

    def line(self, limit: int = MAX_LINE) -> bytes:
        """The next line, without its end."""
        # Searching in pieces: a line ends soon, or is a byte string of a whole array.
        start, size = self.position, 512
        while True:
            stop = min(start + size, self.end, start + limit + 1)
            piece = bytes(self.data[start:stop])
            found = piece.find(b'\n')
            if found >= 0:
                self.position = start + found + 1
                return piece[:found]
            if stop >= start + limit + 1:
                raise Damaged(f'a line in a pickle is longer than {limit} characters')
            if stop == self.end:
                raise Damaged('ends in the middle of a pickle')
            size *= 8

    def text(self, raw: memoryview | bytes, encoding: str = 'utf-8') -> str:
        """Decodes and charges a text."""
        if len(raw) > MAX_TEXT:
            raise Refused(f'holds a text of {len(raw)} bytes')
        self.budget.allocate(4 * len(raw), 'the texts in it')
        try:
            return str(raw, encoding)
        except UnicodeDecodeError as error:
            raise Damaged('a text in a pickle is not valid') from error

    # The stack.

    def push(self, value: Value) -> None:
        self.stack.append(value)

    def pop(self) -> Value:
        if not self.stack:
            raise Damaged('a pickle takes a value where there is none')
        value = self.stack.pop()
        if value is MARK:
            raise Damaged('a pickle takes a value where there is none')
        return value

    def top(self) -> Value:
        if not self.stack or self.stack[-1] is MARK:
            raise Damaged('a pickle takes a value where there is none')
        return self.stack[-1]

    def pop_to_mark(self) -> list[Any]:
        """Values above the last mark; the mark goes too."""
        stack = self.stack
        for index in range(len(stack) - 1, -1, -1):
            if stack[index] is MARK:
                values = stack[index + 1 :]
                del stack[index:]
                return values
        raise Damaged('a pickle refers to a mark that it did not set')

    def pop_global(self) -> Global:
        value = self.pop()
        if type(value) is not Global:
            raise Damaged('a pickle calls something that is not a name')
        return value

    def pop_arguments(self) -> tuple:
        value = self.pop()
        if type(value) is not tuple:
            raise Damaged('a pickle calls something with arguments that are not a tuple')
        return value

    def memoize(self, index: int) -> None:
        self.memo[index] = self.top()

    def recall(self, index: int) -> None:
        if index not in self.memo:
            raise Damaged(f'a pickle recalls value {index}, which it did not store')
        self.stack.append(self.memo[index])
