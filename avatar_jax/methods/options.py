"""``Method.build_options`` as flags of a command; needs no jax."""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import types
import typing
from collections.abc import Mapping
from typing import Any

from avatar_jax.errors import UserError
from avatar_jax.methods.base import Method, methods

_YES, _NO = ('1', 'true', 'yes', 'on'), ('0', 'false', 'no', 'off')


def flag(name: str) -> str:
    """``early_stop`` -> ``--early-stop``."""
    return '--' + name.replace('_', '-')


def _fields(owner: Method) -> dict[str, dataclasses.Field]:
    return {f.name: f for f in dataclasses.fields(owner.build_options)}


def _kind(owner: Method, name: str) -> type:
    """The type of an option: that which is not None."""
    hint = typing.get_type_hints(owner.build_options)[name]
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        hint = next(a for a in typing.get_args(hint) if a is not type(None))
    return typing.get_origin(hint) or hint


def add_build_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options of all methods, each once; which method has it is said in its help."""
    owners: dict[str, list[Method]] = {}
    for owner in methods():
        for name in _fields(owner) if owner.has_avatars else ():
            owners.setdefault(name, []).append(owner)
    group = parser.add_argument_group('options of the methods')
    for name, having in owners.items():
        texts: dict[str, list[str]] = {}
        for owner in having:
            texts.setdefault(_fields(owner)[name].metadata.get('text', ''), []).append(owner.name)
        help_text = '; '.join(f'{", ".join(names)}: {text}' for text, names in texts.items())
        first = having[0]
        more: dict[str, Any] = {'metavar': _fields(first)[name].metadata.get('metavar', _metavar(first, name))}
        if _kind(first, name) is bool:
            more = {'nargs': '?', 'const': 'true', 'metavar': 'yes|no'}
        elif _kind(first, name) is tuple:
            more['nargs'] = '+'
        group.add_argument(flag(name), dest=f'build_{name}', help=help_text.replace('%', '%%'), **more)


def _metavar(owner: Method, name: str) -> str:
    choices = _fields(owner)[name].metadata.get('choices')
    if choices:
        return '|'.join(choices)
    return {int: 'N', float: 'F'}.get(_kind(owner, name), 'TEXT')


def given_options(args: argparse.Namespace, owner: Method) -> dict[str, Any]:
    """The options that were given, as values for ``Model.build``.

    Raises:
        UserError: an option that the method does not have, or a value of a wrong kind.
    """
    prefix, fields = 'build_', _fields(owner)
    given = {k.removeprefix(prefix): v for k, v in vars(args).items() if k.startswith(prefix) and v is not None}
    values = {}
    for name, text in given.items():
        if name not in fields:
            has = ', '.join(map(flag, fields))
            raise UserError(
                f'{flag(name)}: {owner.title} has no such option; leave it out'
                + (f' (it has {has})' if has else ' (it has none)')
            )
        values[name] = converted(text, _kind(owner, name), flag(name), fields[name].metadata)
    owner.options(values)  # the checks of the dataclass
    return values


def converted(value: Any, kind: type, where: str, metadata: Mapping[str, Any]) -> Any:
    """A text of the command line as ``kind``."""
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
