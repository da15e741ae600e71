"""What became of every entry of a converted file: mapped, unused, unexpected, missing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

from avatar_jax.errors import UserError

SHOWN = 4


def some(names: Sequence[str], count: int = SHOWN) -> str:
    """The first few of many names."""
    return ', '.join(names[:count]) + (f', ... ({len(names)} in all)' if len(names) > count else '')


@dataclass
class Report:
    """Both sides of a conversion.

    Attributes:
        kind: what the file was taken for.
        mapped: entry of the file -> where its numbers went.
        unused: entry of the file -> why it is not needed.
        unexpected: entry of the file -> why nothing is known about it; each is an error unless it was allowed.
        missing: what the network needs and the file lacks.
        wrong: entries of another shape than the network has.
        notes: what else is worth knowing.
    """

    kind: str
    mapped: dict[str, str] = field(default_factory=dict)
    unused: dict[str, str] = field(default_factory=dict)
    unexpected: dict[str, str] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def allow(self, patterns: Sequence[str]) -> None:
        """Moves unexpected entries that match one of the shell patterns to the unused ones.

        Raises:
            UserError: a pattern matches nothing.
        """
        for pattern in patterns:
            found = [name for name in self.unexpected if fnmatchcase(name, pattern)]
            if not found and not any(fnmatchcase(name, pattern) for name in self.unused):
                raise UserError(f'--allow {pattern}: matches no unexpected entry; leave it out')
            for name in found:
                self.unused[name] = f'allowed by --allow {pattern} ({self.unexpected.pop(name)})'

    def check(self, source: str) -> None:
        """Raises ``UserError`` if anything is unexpected, missing or of a wrong shape."""
        problems = []
        if self.wrong:
            problems.append(f'{len(self.wrong)} of wrong shape: {some(self.wrong)}')
        if self.missing:
            problems.append(f'{len(self.missing)} missing: {some(self.missing)}')
        if self.unexpected:
            listed = [f'{name} ({why})' if why else name for name, why in self.unexpected.items()]
            problems.append(f'{len(self.unexpected)} unexpected: {some(listed)}')
        if problems:
            hint = "; '--allow PATTERN' leaves unexpected entries out" if self.unexpected else ''
            raise UserError(f'{source}: does not fit {self.kind}: {"; ".join(problems)}{hint}')

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {
            'kind': self.kind,
            'mapped': self.mapped,
            'unused': self.unused,
            'unexpected': self.unexpected,
            'missing': self.missing,
            'wrong_shape': self.wrong,
            'notes': self.notes,
        }

    def lines(self, all_entries: bool = False) -> list[str]:
        """A summary for people; ``all_entries`` lists each entry."""
        summary = (
            f'{self.kind}: {len(self.mapped)} entries mapped, {len(self.unused)} unused, '
            f'{len(self.unexpected)} unexpected, {len(self.missing)} missing, {len(self.wrong)} of wrong shape'
        )
        out = [summary]
        reasons: dict[str, list[str]] = {}
        for name, why in self.unused.items():
            reasons.setdefault(why, []).append(name)
        for why, names in reasons.items():
            out.append(f'  unused, {why}: {some(names, len(names) if all_entries else SHOWN)}')
        if all_entries:
            out += [f'  {name} -> {to}' for name, to in self.mapped.items()]
        for what, names in (('unexpected', [*self.unexpected]), ('missing', self.missing), ('wrong shape', self.wrong)):
            out += [f'  {what}: {name}' for name in names]
        return out + [f'  note: {note}' for note in self.notes]
