"""The end of a training of a network in the package: its weight file and its report."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from avatar_jax.io.atomic import write_json
from avatar_jax.io.weights import save_weights

if TYPE_CHECKING:
    from avatar_jax.configure import Dataclass


class Schedule(Protocol):
    """How long a network was trained: the configuration of its trainer."""

    steps: int
    batch: int
    seed: int


def write_network(
    file: Path,
    variables: Mapping[str, Any],
    *,
    method: str,
    net: Dataclass,
    config: Schedule,
    held_out: Mapping[str, Any],
    trained_on: Mapping[str, Any],
    began: float,
) -> dict[str, Any]:
    """Writes the weight file (float16), and ``report.json`` beside it.

    Args:
        file: ``NAME.safetensors``, made by ``python -m launch.train_NAME``.
        variables: what it holds. method, net: whose weights they are, and the configuration of the network.
        config: of the training, with ``steps``, ``batch`` and ``seed``.
        held_out: figures on what was not trained on. trained_on: what was, in plain values.
        began: ``time.monotonic()`` at the start.

    Returns:
        The report: the above and the SHA-256 of the numbers.
    """
    report = {
        'held_out': held_out,
        'trained_on': trained_on,
        'steps': config.steps,
        'batch': config.batch,
        'seed': config.seed,
        'seconds_of_this_run': round(time.monotonic() - began, 1),
    }
    report['sha256'] = save_weights(
        file,
        variables,
        method=method,
        config=net,
        provenance={'command': f'launch.train_{file.stem}', **report},
        storage='float16',
    )
    write_json(file.parent / 'report.json', report)
    return report
