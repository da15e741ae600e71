"""The frozen networks that commands give to losses and scores: the shipped stand-ins, and what the user names."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path

from avatar_jax.errors import UserError
from avatar_jax.losses.perception import PerceptionBank

STAND_INS = 'head_nets'


def default_bank(resolution: int) -> PerceptionBank:
    """The shipped stand-ins for pictures of procedural heads, if the package has them.

    Args:
        resolution: side of the model's pictures. Above 256 pixels a model is not one of procedural heads of this
            project's sizes, and a stand-in would judge pictures of a kind that it never saw: the bank is empty then.
    """
    from avatar_jax.io.weights import shipped, shipped_names

    if resolution > 256 or STAND_INS not in shipped_names():
        return PerceptionBank()
    return PerceptionBank.load({STAND_INS: shipped(STAND_INS)})


def named_files(arguments: Sequence[str], option: str = '--perception') -> dict[str, Path]:
    """``['vgg19=a.npz']`` -> ``{'vgg19': Path('a.npz')}``. Raises ``UserError`` for anything else."""
    files = {}
    for argument in arguments:
        name, equals, path = argument.partition('=')
        if not (name and equals and path):
            raise UserError(f'{option} {argument}: give NAME=FILE, for example vgg19=vgg19.npz')
        files[name] = Path(path)
    return files


def refuse_unused(arguments: Sequence[str], used: Collection[str], what: str, option: str = '--perception') -> None:
    """Raises ``UserError`` for a network that was given and that nothing looks through.

    Args:
        arguments: ``NAME=FILE``. used: names that ``what`` looks through, with these networks at hand.
    """
    for name in named_files(arguments, option):
        needed = ('head_identity', 'head_coefficients') if name == STAND_INS else (name,)
        if not any(n in used for n in needed):
            through = f'looks through {", ".join(sorted(used))}' if used else 'looks through no network'
            raise UserError(f'{option} {name}: {what} {through}; leave {name} out')


def bank_of(arguments: Sequence[str], resolution: int, stand_ins: bool = True) -> PerceptionBank:
    """The stand-ins (unless switched off), and what ``NAME=FILE`` arguments add."""
    base = default_bank(resolution) if stand_ins else PerceptionBank()
    return PerceptionBank.load(named_files(arguments), base)
