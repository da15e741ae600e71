"""Prints the tables of docs/scaling.md: the predicted time of a training step on many accelerators.

    python -m launch.scaling --config configs/otavatar_hdtf.py --devices 1 8 64 512 --kinds H100 "TPU v5p"

Arithmetic, memory traffic and collectives are counted from the step of the configuration (nothing is compiled); peaks
and links are those of ``avatar_jax.train.costs.DEVICES``. Two ways to use more devices: ``--rows`` samples for each
(weak), or the configuration's batch divided among them (strong), as far as it can be divided.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from avatar_jax.errors import UserError


def tables(program: Any, counts: Sequence[int], kinds: Sequence[str], rows: int) -> str:
    """Markdown: what was counted for one device, then one row for each number of devices."""
    from avatar_jax.train.costs import find_device, predict

    devices = []
    for kind in kinds:
        device = find_device(kind)
        if device is None:
            raise UserError(f'--kinds {kind}: unknown; see avatar_jax.train.costs.DEVICES')
        devices.append(device)
    # All costs are linear in the rows of a device; two counts give them for any.
    fewer, more = (_costs(program, k * program.unit) for k in (1, 2))
    known: dict[int, Any] = {}

    def costs_of(share: int, several: bool) -> Any:
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


def _costs(program: Any, rows: int) -> Any:
    import jax

    from avatar_jax.train.costs import Costs, count_step

    state, constants = program.abstract_state(), program.abstract_constants()
    batch = jax.tree.map(lambda x: jax.ShapeDtypeStruct((rows, *x.shape[1:]), x.dtype), program.make_batch(1))
    total = Costs()
    for share, _, step in program.variants:
        total += count_step(step, state, batch, constants, 2) * share
    return total


def _state_bytes(program: Any) -> int:
    from avatar_jax.train.costs import tree_bytes

    return tree_bytes(program.abstract_state())


def _time(seconds: float) -> str:
    return f'{seconds:.3g} s' if seconds >= 1 else f'{1000 * seconds:.3g} ms'


def main(argv: Sequence[str] | None = None) -> int:
    """The program; returns the exit status."""
    from launch.config_args import load_run

    parser = argparse.ArgumentParser(
        prog='python -m launch.scaling', description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--config', required=True)
    parser.add_argument('--devices', nargs='+', type=int, default=[1, 8, 64, 512])
    parser.add_argument('--kinds', nargs='+', default=['H100', 'TPU v5p'])
    parser.add_argument('--rows', type=int, default=4, help='samples of each device in weak scaling')
    args = parser.parse_args(argv)
    try:
        if min([*args.devices, args.rows]) < 1:
            raise UserError('--devices and --rows: must be at least 1')
        training, config = load_run(args.config)
        print(tables(training.program(config), args.devices, args.kinds, args.rows))
    except UserError as error:
        print(f'error: {error}', file=sys.stderr)
        return 2
    return 0


if __name__ == '__main__':
    sys.exit(main())
