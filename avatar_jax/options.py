"""Fields of a dataclass as options of a command: one text for both, beside the code that reads the value.

    @dataclass(frozen=True)
    class Walk:
        speed: float = option(1.0, 'metres per second')

    add_options(parser, Walk)           # --speed F   metres per second (default: 1)
    walk = from_arguments(Walk, args)

Needs neither jax nor numpy: it is imported for ``--help``.
"""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import re
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from avatar_jax.errors import UserError

T = TypeVar('T')
_YES, _NO = ('1', 'true', 'yes', 'on'), ('0', 'false', 'no', 'off')
METAVARS = {int: 'N', float: 'F'}
_UNITS = {'s': 1, 'm': 60, 'h': 3600}


def option(default: T, text: str, **more: Any) -> T:
    """A field that is also an option of a command.

    Args:
        default: the value if none is given.
        text: the option's help, in plain English.
        more: ``choices`` and ``metavar`` of the option; where it is an option of one command only, also ``flag`` (its
            name, if it is not the field's), ``nargs`` and ``const``.
    """
    return dataclasses.field(default=default, metadata={'text': text, **more})


def flag(name: str) -> str:
    """``early_stop`` -> ``--early-stop``."""
    return '--' + name.replace('_', '-')


def kind_of(cls: type, name: str) -> type:
    """The type of a field where it is not None."""
    hint = typing.get_type_hints(cls)[name]
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        hint = next(a for a in typing.get_args(hint) if a is not type(None))
    return typing.get_origin(hint) or hint


def option_fields(cls: type) -> dict[str, dataclasses.Field]:
    """The fields that are options, by name."""
    return {f.name: f for f in dataclasses.fields(cls) if 'text' in f.metadata}


def help_of(field: dataclasses.Field) -> str:
    """The text of an option, with its default where that is a value and the text does not say it."""
    text, default = field.metadata['text'], field.default
    if default is None or default is False or default in ((), '') or '(default' in text or '; default' in text:
        return text
    return f'{text} (default: {default:g})' if isinstance(default, float) else f'{text} (default: {default})'


def add_options(parser: argparse.ArgumentParser, cls: type) -> None:
    """Adds an option for each field of ``cls`` that was made by ``option``; the help says the default."""
    for name, field in option_fields(cls).items():
        about, kind, default = field.metadata, kind_of(cls, name), field.default
        text = help_of(field)
        more: dict[str, Any] = {k: about[k] for k in ('choices', 'nargs', 'const', 'metavar') if k in about}
        if kind is bool:
            more['action'] = 'store_true'
        else:
            more['default'] = default
            if kind is tuple:
                more.setdefault('nargs', '+')
            elif 'choices' not in more:
                more['type'] = kind
                more.setdefault('metavar', METAVARS.get(kind, 'TEXT'))
        parser.add_argument(about.get('flag', flag(name)), dest=name, help=text.replace('%', '%%'), **more)


def from_arguments(cls: type[T], args: argparse.Namespace, **others: Any) -> T:
    """A ``cls`` with what was given on the command line, and the values of its ``others`` fields.

    Raises:
        UserError: of the checks of ``cls``.
    """
    given = {name: getattr(args, name) for name in option_fields(cls)}
    return cls(**{n: tuple(v) if isinstance(v, list) else v for n, v in given.items()}, **others)


def converted(value: str | Sequence[str], kind: type[T], where: str, metadata: Mapping[str, Any]) -> T:
    """A text of the command line as ``kind``.

    Args:
        where: the option, for messages. metadata: of the field.

    Raises:
        UserError: the text is none of that kind, or not among the choices.
    """
    if kind is tuple:
        return tuple(value)
    if kind is bool:
        if str(value).lower() not in (*_YES, *_NO):
            raise UserError(f'{where} {value}: give yes or no')
        return str(value).lower() in _YES
    choices = metadata.get('choices')
    if choices and value not in choices:
        close = difflib.get_close_matches(str(value), choices, 1)
        raise UserError(
            f'{where} {value}: choose {" or ".join(choices)}' + (f'; did you mean {close[0]}?' if close else '')
        )
    try:
        return kind(value)
    except ValueError:
        words = {int: 'a whole number', float: 'a number'}.get(kind, kind.__name__)
        raise UserError(f'{where} {value}: give {words}') from None


def seconds_of(text: str) -> float:
    """Seconds of '90s', '20m' or '2h'."""
    found = re.fullmatch(r'\s*(\d+(?:\.\d+)?)\s*([smh])\s*', text)
    seconds = float(found[1]) * _UNITS[found[2]] if found else 0.0
    if seconds <= 0:
        raise UserError(f'--budget {text}: give a time like 90s, 20m or 2h')
    return seconds
