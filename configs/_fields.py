"""Config dataclasses as ``ml_collections.ConfigDict``, for config files and command-line overrides."""

from __future__ import annotations

import dataclasses
import types
import typing
from typing import Any

from ml_collections import config_dict

from avatar_jax.errors import UserError


def fields_of(config: Any) -> config_dict.ConfigDict:
    """All fields of a (nested) dataclass, typed: overrides of another type or name are refused.

    A field that is None and may hold something else becomes a placeholder of that type.
    """
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


def run_fields(method: str, config: Any, training: str = '') -> config_dict.ConfigDict:
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
    import difflib

    known = [k for k in known if k]
    close = difflib.get_close_matches(variant, known, 1)
    hint = f"did you mean '{close[0]}'?" if close else f'there are: {", ".join(known)}'
    return UserError(f"variant '{variant}': not known; {hint}")
