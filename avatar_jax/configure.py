"""Frozen config dataclasses from plain values and back: JSON files, weight files, ``ml_collections``.

Keys that a dataclass does not have are refused with the nearest one that it has; values of a wrong type are refused;
lists become tuples where a tuple is meant and integers floats. The checks in the dataclasses themselves then run.

A config file is Python with ``get_config(variant: str = '')`` that returns a ``ConfigDict``; ``read_config_file`` reads
it, with what a command line changes of it (``--config.FIELD=VALUE``).
"""

from __future__ import annotations

import dataclasses
import difflib
import importlib.util
import os
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, TypeVar

from avatar_jax.checks import FieldError
from avatar_jax.errors import UserError

if TYPE_CHECKING:
    import ml_collections

T = TypeVar('T')
Plain = dict | list | str | int | float | bool | None  # what JSON has


class Dataclass(Protocol):
    """Any dataclass."""

    __dataclass_fields__: ClassVar[dict[str, dataclasses.Field]]


def to_plain(config: object) -> Plain:
    """Nested dicts, lists, numbers and texts of a config (dataclasses, mappings, ``ConfigDict``), as JSON has them."""
    if dataclasses.is_dataclass(config) and not isinstance(config, type):
        return {f.name: to_plain(getattr(config, f.name)) for f in dataclasses.fields(config)}
    if isinstance(config, Mapping):
        return {str(k): to_plain(v) for k, v in config.items()}
    if isinstance(config, list | tuple):
        return [to_plain(v) for v in config]
    if hasattr(config, 'to_dict'):  # ml_collections
        return to_plain(config.to_dict())
    if getattr(config, 'ndim', None) == 0:  # a number of numpy
        return config.item()
    return os.fspath(config) if isinstance(config, os.PathLike) else config


class UnknownField(UserError):
    """Plain values have names that the dataclass has not."""


def from_plain(cls: type[T], values: Mapping[str, Any], where: str = '') -> T:
    """A ``cls`` with ``values``; fields that are not given keep the defaults of ``cls``.

    Raises:
        UserError: unknown keys, wrong types, or values that the dataclass refuses.
    """
    return _build(cls, None, values, where)


def updated(config: T, values: Mapping[str, Any], where: str = '') -> T:
    """A copy of ``config`` with the (nested) ``values`` replaced. Raises like ``from_plain``."""
    return _build(type(config), config, values, where)


def replaced(config: T, overrides: Mapping[str, Any]) -> T:
    """A copy with the fields of dotted paths replaced; ``__`` stands for the dot: ``field__octaves=6``.

    Raises like ``from_plain``.
    """
    values: dict[str, Any] = {}
    for path, value in overrides.items():
        *groups, last = path.replace('__', '.').split('.')
        node = values
        for group in groups:
            node = node.setdefault(group, {})
        node[last] = to_plain(value)
    return updated(config, values)


def of_length(config: T, iterations: int, *steps: str) -> T:
    """The same course of a training in another number of steps: what begins, ends or falls at a step does so after the
    same share of them.

    Args:
        config: a dataclass with ``iterations``. steps: names of its fields that hold a step, or several.
    """

    def share(step: int | tuple[int, ...]) -> int | tuple[int, ...]:
        return tuple(map(share, step)) if isinstance(step, tuple) else round(step * iterations / config.iterations)

    return dataclasses.replace(config, iterations=iterations, **{name: share(getattr(config, name)) for name in steps})


def differences(config: Dataclass, base: Dataclass, where: str = '') -> dict[str, Any]:
    """What of a config is not as in ``base``, another of the same kind: dotted name -> plain value."""
    found: dict[str, Any] = {}
    for field in dataclasses.fields(config):
        value, other, name = getattr(config, field.name), getattr(base, field.name), f'{where}{field.name}'
        if dataclasses.is_dataclass(value) and type(value) is type(other):
            found |= differences(value, other, f'{name}.')
        elif value != other:
            found[name] = to_plain(value)
    return found


def current_names(cls: type, values: Mapping[str, Any], complete: bool = False) -> dict[str, Any]:
    """Plain values of a ``cls`` under the names that its fields have today, nested configurations too.

    A dataclass says by ``FORMER_NAMES``, former name -> field, how files of before call its fields, and by
    ``ADDED_FIELDS`` which fields they have not: with ``complete`` those get their defaults, which change nothing.
    """
    former, hints = getattr(cls, 'FORMER_NAMES', {}), typing.get_type_hints(cls)
    out = {}
    for key, value in values.items():
        name = former.get(key, key)
        inner = next(
            (h for h in (hints.get(name), *typing.get_args(hints.get(name))) if dataclasses.is_dataclass(h)), None
        )
        nested = inner is not None and isinstance(value, Mapping)
        out[name] = current_names(inner, value, complete) if nested else value
    if complete:
        for name in getattr(cls, 'ADDED_FIELDS', ()):
            out.setdefault(name, to_plain(cls.__dataclass_fields__[name].default))
    return out


def _build(cls: type, base: Any, values: Mapping[str, Any], where: str) -> Any:
    fields = {f.name: f for f in dataclasses.fields(cls) if f.init}
    hints = typing.get_type_hints(cls)
    changes, values = {}, current_names(cls, values)
    unknown = [key for key in values if key not in fields]
    if unknown:
        raise UnknownField('; '.join(f'{where}{key}: {_suggestion(key, fields)}' for key in unknown))
    for key, value in values.items():
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


def fields_of(config: Dataclass) -> ml_collections.ConfigDict:
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


def run_fields(method: str, config: Dataclass, training: str = '') -> ml_collections.ConfigDict:
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


def config_file(name: str, shipped: Mapping[str, Path]) -> Path:
    """The file behind a config name: a path, or a name among the ``shipped`` ones.

    Raises:
        UserError: there is none; suggests the closest shipped one.
    """
    path = Path(name)
    if path.is_file():
        return path
    if path.stem in shipped and str(path.parent) in ('.', 'configs'):
        return shipped[path.stem]
    close = difflib.get_close_matches(path.stem, shipped, 1)
    hint = f'did you mean configs/{close[0]}.py?' if close else f'there are: {", ".join(shipped) or "none"}'
    raise UserError(f'--config {name}: no such file; {hint}')


def read_config_file(
    spec: str, overrides: Sequence[str] = (), shipped: Mapping[str, Path] = types.MappingProxyType({})
) -> ml_collections.ConfigDict:
    """Reads ``FILE[:VARIANT]`` and applies ``--config.FIELD=VALUE`` overrides.

    Args:
        spec: the value of ``--config``.
        overrides: e.g. ``['--config.train.steps=10', '--config.seed', '3']``.
        shipped: name -> file of those that need no path.

    Returns:
        A locked ``ConfigDict``.

    Raises:
        UserError: no such file, unknown variant, unknown field, value of a wrong type.
    """
    from absl import flags
    from ml_collections import config_dict, config_flags

    name, _, variant = spec.partition('.py:') if '.py:' in spec else spec.partition(':')
    path = config_file(name + '.py' if '.py:' in spec else name, shipped)
    module_spec = importlib.util.spec_from_file_location(f'avatar_config_{path.stem}', path)
    if module_spec is None or module_spec.loader is None:
        raise UserError(f'--config {spec}: is not a Python file')
    module = importlib.util.module_from_spec(module_spec)
    try:
        module_spec.loader.exec_module(module)
        config = module.get_config(variant) if variant else module.get_config()
    except UserError:
        raise
    except Exception as error:
        raise UserError(f'--config {spec}: {type(error).__name__}: {_one_line(error)}') from error
    if not isinstance(config, config_dict.ConfigDict):
        raise UserError(f'--config {spec}: get_config returned {type(config).__name__}, not a ConfigDict')
    check_names(config, overrides)
    values = flags.FlagValues()
    argv = ['avatar-jax', *overrides]
    try:
        config_flags.DEFINE_config_dict('config', config, flag_values=values, sys_argv=argv)
        values(argv)
    except (flags.Error, AttributeError, KeyError, TypeError, ValueError) as error:
        raise UserError(f'{_at_fault(overrides, error)}: {_one_line(error)}') from error
    return values['config'].value


def check_names(config: ml_collections.ConfigDict, overrides: Sequence[str]) -> None:
    """Raises ``UserError`` for an override of a field that there is not; suggests the nearest."""
    from ml_collections import config_dict

    for option in overrides:
        if not option.startswith('--config.'):
            continue  # the value of the option before
        node, path = config, option.removeprefix('--config.').partition('=')[0].split('.')
        for depth, part in enumerate(path):
            where = '.'.join(path[:depth])
            if not isinstance(node, config_dict.ConfigDict):
                if isinstance(node, tuple | list):
                    break  # --config.perception[0]
                raise UserError(f'{option}: {where} is a single value; set it with --config.{where}=VALUE')
            name = part.partition('[')[0]
            if name not in node:
                close = difflib.get_close_matches(name, list(node), 1) or _elsewhere(
                    '.'.join(path[depth:]), _leaves(node, where and f'{where}.')
                )
                hint = f"did you mean '{close[0]}'?" if close else f'there are: {", ".join(node)}'
                raise UserError(f"{option}: {f'{where} has ' if where else ''}no option '{name}'; {hint}")
            node = node[name]


def _elsewhere(name: str, leaves: Sequence[str]) -> list[str]:
    """The leaf, if any, whose end is nearest to ``name``: 'train.bach' means 'model.settings.train.batch'."""
    parts = name.count('.') + 1
    ends = {'.'.join(leaf.split('.')[-parts:]): leaf for leaf in reversed(leaves)}
    return [ends[end] for end in difflib.get_close_matches(name, list(ends), 1)]


def _leaves(node: ml_collections.ConfigDict, where: str = '') -> list[str]:
    """Dotted names of all single values in a config."""
    found = []
    for name, value in node.items():
        inner = hasattr(value, 'items') and not isinstance(value, dict)
        found += _leaves(value, f'{where}{name}.') if inner else [f'{where}{name}']
    return found


def _one_line(error: BaseException) -> str:
    text = str(error.args[0] if isinstance(error, KeyError) and error.args else error)
    text = ' '.join(text.replace('\\n', ' ').replace("\\'", "'").strip('"\'').split())
    return text.replace("' Did you mean", ': did you mean')[:300] or type(error).__name__


def _at_fault(overrides: Sequence[str], error: BaseException) -> str:
    """The override that an error message is about, if it can be told."""
    text = str(error)
    for option in overrides:
        field = option.removeprefix('--config.').split('=')[0]
        if option.startswith('--config.') and any(part and part in text for part in (field, field.split('.')[-1])):
            return option
    return 'configuration'
