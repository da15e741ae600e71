"""Finds out from the content what a file of weights holds; what several things could be is not guessed.

A file may hold several networks (a checkpoint of a training run often does), each under some start of its names. A
kind knows a few keys and shapes that no other kind has; whether all of its entries fit is checked afterwards.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping

import numpy as np

from avatar_jax.convert.kinds import KINDS
from avatar_jax.convert.kinds.base import Kind, Source, export_hint
from avatar_jax.convert.kinds.eg3d import DISCRIMINATOR_METHOD
from avatar_jax.convert.kinds.otavatar import CONTROLLER_METHOD, ROLES
from avatar_jax.convert.kinds.otavatar import METHOD as OTAVATAR
from avatar_jax.convert.report import some
from avatar_jax.errors import UserError
from avatar_jax.io.foreign import RawFile

_EG3D_ROLES = ('G_ema', 'G', 'D')
_PARTS = (*ROLES, *_EG3D_ROLES, 'net_recon')


def names() -> list[str]:
    """Everything that ``--as`` takes."""
    return [name for kind in KINDS.values() for name in (kind.name, *kind.variants)]


def kind_named(name: str) -> tuple[Kind, str | None]:
    """The kind, and its variant, of a name for ``--as``. Raises ``UserError`` if there is none."""
    for kind in KINDS.values():
        if name == kind.name:
            return kind, None
        if name in kind.variants:
            return kind, name
    close = difflib.get_close_matches(name, names(), 1)
    raise UserError(
        f'--as {name}: unknown; ' + (f'did you mean {close[0]}?' if close else f'use one of {", ".join(names())}')
    )


def part_containers(raw: RawFile) -> None:
    """Gives flat files (.safetensors, .npz) the containers that the dotted names of whole checkpoints stand for."""
    if raw.kind in ('safetensors', 'npz'):
        starts = tuple(f'{part}.' for part in _PARTS)
        raw.tensors = {k.replace('.', '/', 1) if k.startswith(starts) else k: v for k, v in raw.tensors.items()}


def _top(place: str) -> str:
    """'G_ema' of 'G_ema/' or 'G_ema/module.'."""
    return place.removesuffix('module.').rstrip('/').rpartition('/')[2]


def _found(tensors: Mapping[str, np.ndarray]) -> dict[str, list[str]]:
    found = {name: sorted(set(kind.find(tensors))) for name, kind in KINDS.items()}
    return {name: places for name, places in found.items() if places}


def _roles(places: list[str], allowed: tuple[str, ...]) -> dict[str, str] | None:
    """Role -> place if every place is a different one of the roles."""
    roles = {_top(p): p for p in places}
    return (
        {r: roles[r] for r in allowed if r in roles}
        if len(roles) == len(places) and set(roles) <= set(allowed)
        else None
    )


def recognise(raw: RawFile, name: str | None = None, prefix: str | None = None) -> tuple[Kind, Source]:
    """What a file holds.

    Args:
        raw: the file.
        name: of a kind or variant, if the user says so.
        prefix: start of the names of the tensors, if the user says so.

    Raises:
        UserError: nothing known, or several things and neither ``name`` nor ``prefix`` decides.
    """
    part_containers(raw)
    hint = export_hint(raw)
    kind, variant = kind_named(name) if name else (None, None)
    if kind is None and hint and hint['kind'] in KINDS:
        kind = KINDS[hint['kind']]
    config = hint.get('config', {}) if hint and kind is not None and hint['kind'] == kind.name else {}
    found = _found(raw.tensors)
    if prefix is not None:
        ends = ('', '.', '/', '.module.', '/module.', 'module.')
        found = {k: [p for p in places if p in {prefix + e for e in ends}] for k, places in found.items()}
        found = {k: places for k, places in found.items() if places}
    if kind is not None:
        found = {kind.name: found[kind.name]} if kind.name in found else {}
    if not found:
        what = f'holds nothing that looks like {kind.name}' if kind else 'holds nothing that is known'
        where = f' under {prefix!r}' if prefix is not None else ''
        listed = some(sorted(raw.tensors)) or 'no tensors at all'
        raise UserError(f'{raw.path}: {what}{where}; it has {listed}')
    return _decide(raw, found, kind, variant, config)


def _decide(raw: RawFile, found: dict[str, list[str]], kind: Kind | None, variant: str | None, config: dict):
    if OTAVATAR in found and (kind is None or kind.name == OTAVATAR):
        roles = _roles(found[OTAVATAR], ROLES)
        whole = roles and any({f'net_G{e}', f'net_Warp{e}'} <= set(roles) for e in ('', '_ema'))
        rest = set(found) - {OTAVATAR, CONTROLLER_METHOD, 'eg3d'}
        if whole and not rest:
            return KINDS[OTAVATAR], Source(raw, roles, variant, config)
        if kind is not None:
            raise UserError(
                f'{raw.path}: holds generators and controllers, but not as net_G and net_Warp; '
                f'--as eg3d or --as {CONTROLLER_METHOD} with --prefix takes one of them'
            )
    found = {k: v for k, v in found.items() if k != OTAVATAR}
    generators, judges = found.get('eg3d', []), found.get(DISCRIMINATOR_METHOD, [])
    if generators and set(found) <= {'eg3d', DISCRIMINATOR_METHOD}:
        roles = _roles([*generators, *judges], _EG3D_ROLES)
        if roles and 'G_ema' in roles:
            return KINDS['eg3d'], Source(raw, roles, variant, config)
    if CONTROLLER_METHOD in found and len(found) == 1 and len(found[CONTROLLER_METHOD]) > 1:
        averages = [p for p in found[CONTROLLER_METHOD] if _top(p) == 'net_Warp_ema']
        if kind is not None and len(averages) == 1:
            return kind, Source(raw, {'': averages[0]}, variant, config)
    everything = [(k, p) for k, places in found.items() for p in places]
    if len(everything) > 1:
        listed = ', '.join(f'{k} at {p!r}' for k, p in everything[:8])
        which = '--prefix' if len(found) == 1 else '--as or --prefix'
        raise UserError(f'{raw.path}: holds {len(everything)} networks ({listed}); choose with {which}')
    ((name, place),) = everything
    return KINDS[name], Source(raw, {'': place}, variant, config)
