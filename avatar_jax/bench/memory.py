"""Memory of a method's stages, without running them: what the compiler plans for them, at every size.

The peak of a program is what it is given, what it needs meanwhile, and what it gives back, where that overwrites
nothing.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax

from avatar_jax.bench.stages import check_stages, machine
from avatar_jax.train.costs import program_memory

if TYPE_CHECKING:
    from avatar_jax.methods.base import Bench
    from avatar_jax.types import Config


def run_memory(
    bench: Bench,
    configs: Mapping[str, Config],
    stages: Sequence[str] | None = None,
    batch_sizes: Sequence[int] = (1,),
    out_json: str | os.PathLike | None = None,
    report: Callable[[str], None] | None = None,
) -> dict[str, Any]:
    """Compiles the stages of a method and says what they hold on one device.

    Args:
        bench: ``methods.base.Bench`` of the method. configs: preset -> configuration.
        stages: names from ``bench.stages``; None: all. batch_sizes: images per call.
        out_json: where to write the result, or None. report: receives one line per stage.

    Returns:
        {'machine', 'results': [{'preset', 'stage', 'batch', 'argument_bytes', 'temp_bytes', 'peak_bytes'}]}.

    Raises:
        UserError: an unknown stage, a batch size below 1.
    """
    stages = check_stages(bench, stages, batch_sizes)
    result: dict[str, Any] = {'machine': machine(), 'results': []}
    for preset, config in configs.items():
        for batch in batch_sizes:
            build = bench.build(config, batch)
            for stage in stages:
                function, arguments, donate = build.stage(stage)
                memory = program_memory(jax.jit(function, donate_argnums=donate).lower(*arguments).compile())
                result['results'].append(
                    {
                        'preset': preset,
                        'stage': stage,
                        'batch': batch,
                        'argument_bytes': memory.arguments,
                        'temp_bytes': memory.temporaries,
                        'peak_bytes': memory.peak,
                    }
                )
                if report:
                    report(f'{preset:12s} {stage:16s} batch {batch:<3d} memory {memory.text()}')
            del build
            jax.clear_caches()
    if out_json is not None:
        path = Path(out_json)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(result, indent=1) + '\n')
    return result
