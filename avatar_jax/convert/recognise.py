"""Finds out from the content what a file of weights holds; what several things could be is not guessed.

A file may hold several networks (a checkpoint of a training run often does), each under some start of its names. A
kind knows a few keys and shapes that no other kind has; whether all of its entries fit is checked afterwards.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from avatar_jax.convert.base import Checkpoint, ForeignFile, ForeignNetwork
from avatar_jax.convert.report import some
from avatar_jax.errors import UserError
from avatar_jax.io.foreign import RawFile

EXPORT_KEY = 'avatar_jax_export'
"""Entry of an exported file's metadata that says what it holds."""

_Places = Mapping[str, list[str]]  # name of a kind -> starts of names


def names(kinds: Sequence[ForeignFile]) -> list[str]:
    """Everything that ``--as`` takes."""
    return [name for kind in kinds for name in (kind.name, *kind.variants)]


def kind_named(name: str, kinds: Sequence[ForeignFile]) -> tuple[ForeignFile, str | None]:
    """The kind, and its variant, of a name for ``--as``. Raises ``UserError`` if there is none."""
    for kind in kinds:
        if name == kind.name:
            return kind, None
        if name in kind.variants:
            return kind, name
    close = difflib.get_close_matches(name, names(kinds), 1)
    raise UserError(
        f'--as {name}: unknown; ' + (f'did you mean {close[0]}?' if close else f'use one of {", ".join(names(kinds))}')
    )


def recognise(
    raw: RawFile, kinds: Sequence[ForeignFile], name: str | None = None, prefix: str | None = None
) -> tuple[ForeignFile, ForeignNetwork]:
    """What a file holds.

    Args:
        raw: the file.
        kinds: everything that it may be.
        name: of a kind or variant, if the user says so.
        prefix: start of the names of the tensors, if the user says so.

    Raises:
        UserError: nothing known, or several things and neither ``name`` nor ``prefix`` decides.
    """
    _part_containers(raw, kinds)
    hint = export_hint(raw)
    asked, variant = kind_named(name, kinds) if name else (None, None)
    if asked is None and hint:
        asked = next((kind for kind in kinds if kind.name == hint['kind']), None)
    config = hint.get('config', {}) if hint and asked is not None and hint['kind'] == asked.name else {}
    found = {kind.name: sorted(set(kind.find(raw.tensors))) for kind in kinds}
    if prefix is not None:
        ends = ('', '.', '/', '.module.', '/module.', 'module.')
        found = {k: [p for p in places if p in {prefix + e for e in ends}] for k, places in found.items()}
    found = {k: places for k, places in found.items() if places}
    if asked is not None and asked.name not in found:
        found = {}
    if not found:
        what = f'holds nothing that looks like {asked.name}' if asked else 'holds nothing that is known'
        where = f' under {prefix!r}' if prefix is not None else ''
        listed = some(sorted(raw.tensors)) or 'no tensors at all'
        raise UserError(f'{raw.path}: {what}{where}; it has {listed}')
    kind, places = _decide(raw, {k.name: k for k in kinds}, found, asked)
    return kind, ForeignNetwork(raw, places, variant, config)


def export_hint(raw: RawFile) -> dict[str, Any]:
    """What an exported file says about itself: {'kind': ..., 'config': ...}, or nothing.

    Raises:
        UserError: it is not what an export writes.
    """
    text = raw.facts.get(EXPORT_KEY) if raw.kind == 'safetensors' else None
    if text is None:
        return {}
    try:
        hint = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f'{raw.path}: its metadata are damaged; export it again') from error
    if not isinstance(hint, dict) or not isinstance(hint.get('kind'), str) or not isinstance(hint.get('config'), dict):
        raise UserError(f'{raw.path}: its metadata are damaged; export it again')
    return hint


def _part_containers(raw: RawFile, kinds: Sequence[ForeignFile]) -> None:
    """Gives flat files (.safetensors, .npz) the containers that the dotted names of whole checkpoints stand for."""
    if raw.kind not in ('safetensors', 'npz'):
        return
    parts = [part for k in kinds for part in (*k.containers, *(k.checkpoint.roles if k.checkpoint else ()))]
    starts = tuple(f'{part}.' for part in parts)
    raw.tensors = {k.replace('.', '/', 1) if k.startswith(starts) else k: v for k, v in raw.tensors.items()}


def _container(place: str) -> str:
    """'G_ema' of 'G_ema/' or 'G_ema/module.'."""
    return place.removesuffix('module.').rstrip('/').rpartition('/')[2]


def _decide(
    raw: RawFile, kinds: Mapping[str, ForeignFile], found: _Places, asked: ForeignFile | None
) -> tuple[ForeignFile, dict[str, str]]:
    """The kind that is imported, and role -> place of its networks."""
    # What is only another name for networks that are kinds of their own does not make a file ambiguous.
    wholes = {k for k in found if (whole := kinds[k].checkpoint) and k not in whole.of}
    for name in found:
        kind = kinds[name]
        if kind.checkpoint is None or (asked is not None and asked is not kind):
            continue
        others = set() if asked else set(found) - wholes - {name, *kind.checkpoint.of}
        parts = list(dict.fromkeys(p for k in (name, *kind.checkpoint.of) for p in found.get(k, [])))
        roles = _roles(parts, kind.checkpoint)
        if roles is None and asked:
            roles = _roles(found[name], kind.checkpoint)  # without networks of other kinds that lie beside
        if roles and not others:
            return kind, roles
        if asked and name in wholes:
            raise UserError(f'{raw.path}: {kind.checkpoint.otherwise}')
    single = {k: v for k, v in found.items() if k not in wholes and asked in (None, kinds[k])}
    if not single:
        raise UserError(f'{raw.path}: {kinds[next(iter(found))].checkpoint.otherwise}')
    if asked is not None and asked.preferred and len(single[asked.name]) > 1:
        preferred = [p for p in single[asked.name] if _container(p) == asked.preferred]
        if len(preferred) == 1:
            return asked, {'': preferred[0]}
    everything = [(k, p) for k, places in single.items() for p in places]
    if len(everything) > 1:
        listed = ', '.join(f'{k} at {p!r}' for k, p in everything[:8])
        which = '--prefix' if len(single) == 1 else '--as or --prefix'
        raise UserError(f'{raw.path}: holds {len(everything)} networks ({listed}); choose with {which}')
    ((name, place),) = everything
    return kinds[name], {'': place}


def _roles(places: Sequence[str], checkpoint: Checkpoint) -> dict[str, str] | None:
    """Role -> place, if every place is a different one of the roles and they are enough."""
    roles = {_container(p): p for p in places}
    if len(roles) != len(places) or not set(roles) <= set(checkpoint.roles) or not checkpoint.complete(roles):
        return None
    return {role: roles[role] for role in checkpoint.roles if role in roles}
