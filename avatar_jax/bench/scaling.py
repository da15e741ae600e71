"""The predicted time of a training step on many accelerators, as tables.

Arithmetic, memory traffic and collectives are counted from the step (nothing is compiled); peaks and links are those of
``train.costs.DEVICES``. Two ways to use more devices: so many samples for each (weak), or the configuration's batch
divided among them (strong), as far as it can be divided.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import jax

from avatar_jax.errors import UserError
from avatar_jax.train.costs import Costs, count_step, find_device, predict, tree_bytes
from avatar_jax.train.program import Program


def tables(program: Program, counts: Sequence[int], kinds: Sequence[str], rows: int) -> str:
    """Markdown: what was counted for one device, then one row for each number of devices.

    Args:
        program: the training's step. counts: numbers of devices. kinds: of ``train.costs.DEVICES``.
        rows: samples of each device where the batch grows with the devices (weak scaling).
    Raises:
        UserError: an unknown kind of device.
    """
    devices = []
    for kind in kinds:
        device = find_device(kind)
        if device is None:
            raise UserError(f'--kinds {kind}: unknown; see avatar_jax.train.costs.DEVICES')
        devices.append(device)
    # All costs are linear in the rows of a device; two counts give them for any.
    fewer, more = (_costs(program, k * program.unit) for k in (1, 2))
    known: dict[int, Costs] = {}

    def costs_of(share: int, several: bool) -> Costs:
        known[share] = fewer + (more + fewer * -1.0) * (share / program.unit - 1)
        return known[share] if several else replace(known[share], collective_bytes=0.0, collectives=0.0)

    lines = [
        f'**{program.name}**, {program.batch} rows of {program.images_per_row} image(s) a step in the recipe',
        '',
        '| rows of one device | TFLOP | traffic, GB | summed, MB | calls | state, MB |',
        '|---|---|---|---|---|---|',
    ]
    splits = [('weak', n, rows) for n in counts] + [
        ('strong', n, program.batch // n) for n in counts if program.batch % n == 0
    ]
    body = []
    for way, n, share in splits:
        costs = costs_of(share, n > 1)
        cells = [way, str(n), str(share), str(share * n)]
        for device in devices:
            p = predict(costs, device, n, program.bf16)
            images = share * n * program.images_per_row / p.step
            cells.append(f'{_time(p.step)} ({_time(p.collectives)}), {images:.3g}/s, {p.bottleneck}')
        body.append('| ' + ' | '.join(cells) + ' |')
    state = _state_bytes(program) / 1e6
    for share, c in sorted(known.items()):
        lines.append(
            f'| {share} | {c.flops / 1e12:.4g} | {c.bytes / 1e9:.4g} | {c.collective_bytes / 1e6:.3g} | '
            f'{c.collectives:.0f} | {state:.4g} |'
        )
    if missing := [n for n in counts if program.batch % n]:
        lines += [
            '',
            f"The recipe's batch of {program.batch} does not divide among {', '.join(map(str, missing))} devices: "
            'there the batch is the first bottleneck.',
        ]
    head = [f'{d.name}: step (collectives), images, bottleneck' for d in devices]
    lines += [
        '',
        '| scaling | devices | rows each | batch | ' + ' | '.join(head) + ' |',
        '|---' * (4 + len(devices)) + '|',
        *body,
    ]
    return '\n'.join(lines)


def _costs(program: Program, rows: int) -> Costs:
    state, constants = program.abstract_state(), program.abstract_constants()
    batch = jax.tree.map(lambda x: jax.ShapeDtypeStruct((rows, *x.shape[1:]), x.dtype), program.make_batch(1))
    total = Costs()
    for share, _, step in program.variants:
        total += count_step(step, state, batch, constants, 2) * share
    return total


def _state_bytes(program: Program) -> int:
    return tree_bytes(program.abstract_state())


def _time(seconds: float) -> str:
    return f'{seconds:.3g} s' if seconds >= 1 else f'{1000 * seconds:.3g} ms'
