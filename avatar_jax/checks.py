"""Checks of a configuration's fields: a message names the one field that is wrong, its value, and what is allowed.

    check = Check(self, 'train')
    check.at_least(1, 'batch', 'accumulate')       # train.batch: 0; must be at least 1
    check.one_of('sampling', 'uniform', 'expression')

A field that is None, where None is allowed, passes all checks of numbers. Of a tuple, every number is checked.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

from avatar_jax.errors import UserError

OPTION = '--'  # as ``where``: fields are options of a command, --frames-per-clip


class FieldError(UserError):
    """One field of a configuration has a value that is not allowed.

    Args:
        where: what stands before the field's name: 'train.', ``OPTION``, or nothing.
        name: of the field. value: that it has. allowed: what it may be, or what to do.
    """

    def __init__(self, where: str, name: str, value: object, allowed: str):
        self.parts = name, value, allowed
        if where == OPTION:
            super().__init__(f'--{name.replace("_", "-")} {value}: {allowed}')
        else:
            super().__init__(f'{where}{name}: {value!r}; {allowed}')

    def at(self, where: str) -> FieldError:
        """The same about a configuration that stands in another: ``where`` is 'model.settings.train.'."""
        return FieldError(where, *self.parts)


class Check:
    """Checks fields of ``config``, which is usually found under the name ``where`` ('' for none, or ``OPTION``)."""

    def __init__(self, config: object, where: str = ''):
        self._config = config
        self._where = where if where in ('', OPTION) else f'{where}.'

    @classmethod
    def values(cls, where: str = '', **values: Any) -> Check:
        """Checks of arguments of a function: ``Check.values(OPTION, count=count).at_least(1, 'count')``."""
        return cls(SimpleNamespace(**values), where)

    def need(self, condition: bool, name: str, allowed: str) -> None:
        """Raises ``FieldError`` about the field ``name`` unless the condition holds."""
        if not condition:
            raise FieldError(self._where, name, self._value(name), allowed)

    def one_of(self, name: str, *allowed: Any) -> None:
        """The field's value is among those that are allowed."""
        value = self._value(name)
        close = difflib.get_close_matches(str(value), [a for a in allowed if isinstance(a, str)], 1)
        hint = f' (did you mean {close[0]}?)' if close else ''
        self.need(value in allowed, name, f'use one of {", ".join(map(_word, allowed))}{hint}')

    def at_least(self, least: float, *names: str) -> None:
        """No number is below ``least``, and none is NaN."""
        for name, value in self._numbers(names):
            if not value >= least:
                text = 'must not be negative' if least == 0 else f'must be at least {least}'
                raise FieldError(self._where, name, value, text)

    def above(self, bound: float, *names: str) -> None:
        """All numbers are greater than ``bound``."""
        for name, value in self._numbers(names):
            if not value > bound:
                text = 'must be positive' if bound == 0 else f'must be more than {bound}'
                raise FieldError(self._where, name, value, text)

    def within(self, low: float, high: float, *names: str) -> None:
        """All numbers lie from ``low`` to ``high``, both allowed."""
        for name, value in self._numbers(names):
            if not low <= value <= high:
                raise FieldError(self._where, name, value, f'must be between {low} and {high}')

    def power_of_two(self, least: int, *names: str) -> None:
        """Powers of two, from ``least`` on."""
        for name, value in self._numbers(names):
            if value < least or value & (value - 1):
                raise FieldError(self._where, name, value, f'use a power of two of at least {least}')

    def length(self, count: int, *names: str) -> None:
        """Tuples of ``count`` values."""
        for name in names:
            self.need(len(self._value(name)) == count, name, f'give {count} values')

    def decay(self, *names: str) -> None:
        """Of moving averages: at least 0 and below 1."""
        for name, value in self._numbers(names):
            if not 0 <= value < 1:
                raise FieldError(self._where, name, value, 'give a decay of at least 0 and below 1')

    def _value(self, name: str) -> Any:
        value = self._config
        for part in name.split('.'):
            value = getattr(value, part)
        return value

    def _numbers(self, names: tuple[str, ...]) -> Iterator[tuple[str, Any]]:
        for name in names:
            value = self._value(name)
            if isinstance(value, tuple | list):
                yield from ((f'{name}[{i}]', v) for i, v in enumerate(value))
            elif value is not None:
                yield name, value


def _word(value: Any) -> str:
    return value if isinstance(value, str) else repr(value)
