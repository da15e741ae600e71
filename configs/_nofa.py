"""What the config files of NOFA have in common: its stages."""

from __future__ import annotations

from typing import Any

STAGES = ('general', 'teeth', 'compensation')


def stage_of(names: list[str]) -> dict[str, Any]:
    """Fields of the run for the stage among the variants; later stages go on from the file of the one before."""
    chosen = [name for name in STAGES if name in names]
    stage = chosen[-1] if chosen else 'general'
    return {'stage': stage} | ({} if stage == 'general' else {'init': 'weights.safetensors'})
