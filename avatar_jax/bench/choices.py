"""What ``avatar-jax bench`` measures for the options that were given; refuses those that do not go together.

Needs no jax.
"""

from __future__ import annotations

from collections.abc import Mapping

from avatar_jax.errors import UserError
from avatar_jax.methods.base import DEFAULT, Bench, method
from avatar_jax.options import flag

# What --everything chooses itself, with the values that say that nothing was chosen.
USUAL: Mapping[str, object] = {
    'method': DEFAULT,
    'batch_sizes': [1],
    **dict.fromkeys(('preset', 'stages', 'dtype', 'ray_chunk')),
    **dict.fromkeys(('train', 'profile', 'count_only'), False),
}


def check_together(given: Mapping[str, object]) -> None:
    """Refuses options that would do nothing beside others.

    Args:
        given: the values of all options of the command, by name.

    Raises:
        UserError: names the first of them.
    """
    for name in ('profile', 'count_only', 'everything'):
        if given['memory'] and given[name]:
            raise UserError(f'{flag(name)}: does not go with --memory')
    if given['budget'] is not None and not given['everything']:
        raise UserError('--budget: goes with --everything')
    if given['train'] and given['profile']:
        raise UserError('--profile: is of stages and does not go with --train')
    if given['overrides'] and not given['train']:
        raise UserError(f'{given["overrides"][0]}: goes with --train')
    if given['everything']:
        if given['out'] is None:
            raise UserError('--everything: give a folder for the tables with --out DIR')
        for name, value in USUAL.items():
            if given[name] != value:
                raise UserError(
                    f'{flag(name)}: --everything measures all stages of all methods as they are; leave it out'
                )


def bench_of(name: str, preset: str | None) -> Bench:
    """What a method measures.

    Args:
        name: of the method. preset: the one that will be measured; None: any.

    Raises:
        UserError: the method has no stages, or no such preset.
    """
    owner = method(name)
    if owner.bench is None:
        raise UserError(f'--method {name}: has no stages to measure; measure its training with --train')
    if preset not in (None, *owner.bench.presets):
        raise UserError(f'--preset {preset}: {owner.name} has {", ".join(owner.bench.presets)}')
    return owner.bench
