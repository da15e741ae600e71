"""Frozen config dataclasses from plain values and back: JSON files, weight files, ``ml_collections``.

Keys that a dataclass does not have are refused with the nearest one that it has; values of a wrong type are refused;
lists become tuples where a tuple is meant and integers floats. The checks in the dataclasses themselves then run.
"""

from __future__ import annotations

import dataclasses
import difflib
import types
import typing
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypeVar

from avatar_jax.checks import FieldError
from avatar_jax.errors import UserError

if TYPE_CHECKING:
    import ml_collections

T = TypeVar('T')


def to_plain(config: Any) -> Any:
    """Nested dicts, lists, numbers and texts of a config dataclass, as JSON has them."""
    if dataclasses.is_dataclass(config) and not isinstance(config, type):
        return {f.name: to_plain(getattr(config, f.name)) for f in dataclasses.fields(config)}
    if isinstance(config, Mapping):
        return {str(k): to_plain(v) for k, v in config.items()}
    if isinstance(config, list | tuple):
        return [to_plain(v) for v in config]
    return config


def from_plain(cls: type[T], values: Mapping[str, Any], where: str = '') -> T:
    """A ``cls`` with ``values``; fields that are not given keep the defaults of ``cls``.

    Raises:
        UserError: unknown keys, wrong types, or values that the dataclass refuses.
    """
    return _build(cls, None, values, where)


def updated(config: T, values: Mapping[str, Any], where: str = '') -> T:
    """A copy of ``config`` with the (nested) ``values`` replaced. Raises like ``from_plain``."""
    return _build(type(config), config, values, where)


def differences(config: Any, base: Any, where: str = '') -> dict[str, Any]:
    """What of a config is not as in ``base``, another of the same kind: dotted name -> plain value."""
    found: dict[str, Any] = {}
    for field in dataclasses.fields(config):
        value, other, name = getattr(config, field.name), getattr(base, field.name), f'{where}{field.name}'
        if dataclasses.is_dataclass(value) and type(value) is type(other):
            found |= differences(value, other, f'{name}.')
        elif value != other:
            found[name] = to_plain(value)
    return found


def current_names(cls: type, values: Mapping[str, Any]) -> dict[str, Any]:
    """Plain values of a ``cls`` under the names that its fields have today, nested configurations too.

    A dataclass says by ``FORMER_NAMES``, former name -> field, how files of before call its fields.
    """
    former, hints = getattr(cls, 'FORMER_NAMES', {}), typing.get_type_hints(cls)
    out = {}
    for key, value in values.items():
        name = former.get(key, key)
        inner = next(
            (h for h in (hints.get(name), *typing.get_args(hints.get(name))) if dataclasses.is_dataclass(h)), None
        )
        out[name] = current_names(inner, value) if inner is not None and isinstance(value, Mapping) else value
    return out


def _build(cls: type, base: Any, values: Mapping[str, Any], where: str) -> Any:
    fields = {f.name: f for f in dataclasses.fields(cls) if f.init}
    hints = typing.get_type_hints(cls)
    changes = {}
    for key, value in current_names(cls, values).items():
        if key not in fields:
            raise UserError(f'{where}{key}: {_suggestion(key, fields)}')
        field = fields[key]
        if base is not None:
            current = getattr(base, key)
        elif field.default is not dataclasses.MISSING:
            current = field.default
        elif field.default_factory is not dataclasses.MISSING:
            current = field.default_factory()
        else:
            current = None
        changes[key] = _convert(hints[key], current, value, f'{where}{key}')
    try:
        return cls(**changes) if base is None else dataclasses.replace(base, **changes)
    except FieldError as error:
        raise (error.at(where) if where and error.parts[0].partition('.')[0] in fields else error) from None
    except UserError:
        raise
    except (ValueError, TypeError) as error:
        raise UserError(f'{where.rstrip(".") or cls.__name__}: {error}') from error


def _convert(hint: Any, current: Any, value: Any, where: str) -> Any:
    """``value`` as the type ``hint``."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in args:
            return None
        choices = [a for a in args if a is not type(None)]
        exact = [a for a in choices if isinstance(a, type) and type(value) is a]
        for choice in exact or choices:
            try:
                return _convert(choice, current, value, where)
            except _Mismatch:
                continue
        raise _mismatch(where, value, hint)
    if dataclasses.is_dataclass(hint):
        if isinstance(value, hint):
            return value
        if not isinstance(value, Mapping):
            raise _mismatch(where, value, hint)
        return _build(hint, current if isinstance(current, hint) else None, value, f'{where}.')
    if origin is tuple:
        if isinstance(value, str) or not isinstance(value, list | tuple):
            raise _mismatch(where, value, hint)
        if len(args) == 2 and args[1] is Ellipsis:
            return tuple(_convert(args[0], None, v, f'{where}[{i}]') for i, v in enumerate(value))
        if args and len(args) != len(value):
            raise _mismatch(where, value, hint)
        return tuple(_convert(a, None, v, f'{where}[{i}]') for i, (a, v) in enumerate(zip(args, value, strict=True)))
    if origin is dict or hint is dict:
        if not isinstance(value, Mapping):
            raise _mismatch(where, value, hint)
        return {str(k): v for k, v in value.items()}
    if hint is tuple and isinstance(value, list | tuple):
        return tuple(value)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if hint is Any or (
        isinstance(hint, type) and isinstance(value, hint) and (hint is bool or type(value) is not bool)
    ):
        return value
    raise _mismatch(where, value, hint)


class _Mismatch(UserError):
    """A value of a wrong type; inside a union another type may still fit."""


def _mismatch(where: str, value: Any, hint: Any) -> _Mismatch:
    names = ' or '.join(
        'None' if a is type(None) else getattr(a, '__name__', str(a))
        for a in (typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,))
    )
    return _Mismatch(f'{where}: {value!r} is not {names}')


def _suggestion(key: str, known: Mapping[str, Any]) -> str:
    close = difflib.get_close_matches(key, known, 1)
    return f"unknown option; did you mean '{close[0]}'?" if close else f'unknown option; there are {", ".join(known)}'


# -------------------------------------------------------------------------------------------------- config files


def fields_of(config: Any) -> ml_collections.ConfigDict:
    """All fields of a (nested) dataclass, typed: overrides of another type or name are refused.

    A field that is None and may hold something else becomes a placeholder of that type.
    """
    from ml_collections import config_dict

    hints, out = typing.get_type_hints(type(config)), {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            out[field.name] = fields_of(value)
        elif value is None:
            out[field.name] = config_dict.placeholder(_concrete(hints[field.name]))
        else:
            out[field.name] = value
    return config_dict.ConfigDict(out)


def run_fields(method: str, config: Any, training: str = '') -> ml_collections.ConfigDict:
    """The fields of a run's configuration, and whose training it is (see ``launch.config_args.load_run``)."""
    found = fields_of(config)
    with found.unlocked():
        found.method = method
        if training:
            found.training = training
    return found


def _concrete(hint: Any) -> type:
    """The type that an optional field holds when it is not None."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        hint = next(a for a in typing.get_args(hint) if a is not type(None))
    return typing.get_origin(hint) or hint


def unknown_variant(variant: str, known: typing.Iterable[str]) -> UserError:
    """The error for a variant that a config file does not have."""
    known = [k for k in known if k]
    close = difflib.get_close_matches(variant, known, 1)
    hint = f"did you mean '{close[0]}'?" if close else f'there are: {", ".join(known)}'
    return UserError(f"variant '{variant}': not known; {hint}")
