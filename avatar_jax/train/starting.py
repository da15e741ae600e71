"""What a run starts from, part by part: each network from its own file, or fresh, with a report of both sides.

``init`` of a run's configuration is a file, of which every part that it has is taken, or ``PART=FILE`` (several joined
by commas): those parts are taken and all others are fresh. A file of any method will do that has the part.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from avatar_jax.errors import UserError
from avatar_jax.io.weights import load_weights, weight_file
from avatar_jax.types import PyTree


@dataclass(frozen=True)
class Part:
    """One network out of a weight file: its variables by collection, its configuration (plain values), the file's
    SHA-256.
    """

    variables: Mapping[str, PyTree]
    config: Mapping[str, Any]
    sha256: str


def part_of(path: str, name: str, alone: str) -> Part | None:
    """The part ``name`` of a weight file; None if the file has none.

    Args:
        alone: what files of this part alone say they hold (their ``method``).
    """
    weights = load_weights(weight_file(path))
    if weights.method == alone:
        return Part(weights.variables, weights.config, weights.sha256)
    inside = {c: tree[name] for c, tree in weights.variables.items() if isinstance(tree, Mapping) and name in tree}
    settings = weights.config.get('settings', weights.config.get('method'))  # files of before call them so
    config = weights.config.get(name, settings.get(name) if isinstance(settings, Mapping) else None)
    return Part(inside, config, weights.sha256) if 'params' in inside and isinstance(config, Mapping) else None


def files_of(init: str, parts: Sequence[str]) -> tuple[dict[str, str], bool]:
    """Part -> file, and whether one file was given for all parts.

    Raises:
        UserError: a part that the model does not have.
    """
    if '=' not in init or Path(init).exists():
        return (dict.fromkeys(parts, init), True) if init else ({}, False)
    found = {}
    for item in init.split(','):
        name, equals, path = item.strip().partition('=')
        if not equals or not path or name not in parts:
            raise UserError(
                f'init: {item!r}; give FILE, or PART=FILE joined by commas, with the parts {", ".join(parts)}'
            )
        found[name] = path
    return found, False


@dataclass(frozen=True)
class Starting:
    """The parts that were taken: name -> variables. ``report``: both sides, plain values; ``notes``: as sentences.
    ``digest`` identifies the numbers ('' for a fresh start).
    """

    parts: Mapping[str, Mapping[str, PyTree]]
    report: Mapping[str, Any]
    notes: tuple[str, ...]
    digest: str


def starting(init: str, readers: Mapping[str, Callable[[str], Part | None]]) -> Starting:
    """Reads the parts that ``init`` names.

    Args:
        readers: part -> function of a file that gives it, checked against the run's configuration, or None if the file
            does not have it.

    Raises:
        UserError: a part that is named is not in its file, or does not fit; a file has none of the parts.
    """
    files, all_of_one = files_of(init, tuple(readers))
    found: dict[str, Part] = {}
    for name, path in files.items():
        try:
            part = readers[name](path)
        except UserError as error:
            if not all_of_one or len(readers) < 2:
                raise
            others = ','.join(f'{n}={path}' for n in readers if n != name)
            raise UserError(f'{error}; or start with a fresh {name}: init={others}') from error
        if part is not None:
            found[name] = part
        elif not all_of_one:
            raise UserError(f'init: {path} has no {name}; leave {name}= out for a fresh one')
    if init and not found:
        raise UserError(f'init: {init} has none of {", ".join(readers)}; give a file that has one')
    fresh = [name for name in readers if name not in found]
    report: dict[str, Any] = {
        name: {'file': files[name], 'sha256': part.sha256, 'numbers': _count(part.variables)}
        for name, part in found.items()
    }
    report |= dict.fromkeys(fresh, 'fresh')
    unused = {path: left for path in dict.fromkeys(files.values()) if (left := _unused(path, files, found))}
    if unused:
        report['not_used'] = unused
    notes = []
    if init:
        sentence = [f'{n} from {files[n]} ({report[n]["numbers"]:,} numbers)' for n in found]
        sentence += [f'{n} fresh' for n in fresh]
        sentence += [f'{", ".join(left)} of {path} not used' for path, left in unused.items()]
        notes.append(f'init: {"; ".join(sentence)}')
    digests = [f'{name}:{part.sha256}' for name, part in found.items()]
    same = len({part.sha256 for part in found.values()}) == 1 and not fresh
    digest = next(iter(found.values())).sha256 if same else '+'.join(digests)
    return Starting({n: p.variables for n, p in found.items()}, report, tuple(notes), digest)


def _unused(path: str, files: Mapping[str, str], found: Mapping[str, Part]) -> list[str]:
    """What a file has besides the parts that were taken from it."""
    if Path(path).is_dir():
        return []
    weights = load_weights(weight_file(path))
    taken = [name for name in found if files[name] == path]
    params = weights.variables.get('params', {})
    inside = [name for name in params if name in taken]
    if not inside:  # a file of one part alone
        return []
    return [name for name in params if name not in taken]


def _count(tree: PyTree) -> int:
    """How many numbers a tree holds."""
    return sum(map(_count, tree.values())) if isinstance(tree, Mapping) else int(getattr(tree, 'size', 1))
