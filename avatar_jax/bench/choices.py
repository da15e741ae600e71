"""What ``avatar-jax bench`` measures for the options that were given; refuses those that do not go together.

Imported for ``--help``: needs no jax.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

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

# What stages are measured with, and the usual values of what training steps are measured with.
OF_STAGES = ('method', 'preset', 'stages', 'batch_sizes', 'dtype', 'ray_chunk')
TRAINING: Mapping[str, object] = {'config': None, 'devices': [1], 'rows': 0, 'parallel': 'pmap', 'count_only': False}


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
    _check_training(given)
    if given['video'] is not None:
        for name in (
            'train',
            'memory',
            'everything',
            'profile',
            'count_only',
            'preset',
            'stages',
            'dtype',
            'ray_chunk',
        ):
            if given[name]:
                raise UserError(f'{flag(name)}: does not go with --video')
    for name in ('motion', 'weights'):
        if given[name] is not None and given['video'] is None:
            raise UserError(f'{flag(name)}: goes with --video')
    if given['everything']:
        if given['out'] is None:
            raise UserError('--everything: give a folder for the tables with --out DIR')
        for name, value in USUAL.items():
            if given[name] != value:
                raise UserError(
                    f'{flag(name)}: --everything measures all stages of all methods as they are; leave it out'
                )


def _check_training(given: Mapping[str, object]) -> None:
    """``check_together`` for what --train measures and what stages are measured with."""
    if not given['train']:
        for name, value in TRAINING.items():
            if given[name] != value:
                raise UserError(f'{flag(name)}: goes with --train')
    elif not given['everything']:
        for name in OF_STAGES:
            if given[name] != USUAL[name]:
                raise UserError(
                    f'{flag(name)}: is of stages; --train measures the training of a configuration: choose it with '
                    '--config FILE'
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


def measure(
    bench: Bench,
    preset: str | None,
    dtype: str | None,
    ray_chunk: int | None,
    stages: Sequence[str] | None,
    batch_sizes: Sequence[int],
    repeats: int,
    out_json: str | None,
    memory: bool,
    profiled: bool,
) -> None:
    """Measures the stages of a method and prints each; with ``memory`` what they hold, at all presets if none is named.

    Args: see ``stages.run_benchmark`` and ``memory.run_memory``.
    """
    from avatar_jax.bench.memory import run_memory
    from avatar_jax.bench.stages import run_benchmark

    presets = bench.presets if memory and preset is None else (preset or bench.presets[0],)
    configs = {name: bench.config(name, dtype, ray_chunk) for name in presets}
    if memory:
        run_memory(bench, configs, stages, batch_sizes, out_json, print)
        return
    (config,) = configs.values()
    run_benchmark(bench, config, stages, batch_sizes, repeats, out_json, print, profiled)
    if bench.note:
        print(bench.note)
