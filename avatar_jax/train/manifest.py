"""What a run was made of, beside its configuration: versions, machine, state of the source code, data, command."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any


def environment() -> dict[str, Any]:
    """Versions, devices, machine and source state of this process, as plain values."""
    import flax
    import jax
    import jaxlib
    import numpy as np
    import optax

    import avatar_jax

    versions = {
        'avatar_jax': avatar_jax.__version__,
        'python': platform.python_version(),
        'jax': jax.__version__,
        'jaxlib': jaxlib.__version__,
        'flax': flax.__version__,
        'optax': optax.__version__,
        'numpy': np.__version__,
    }
    return {
        'versions': versions,
        'devices': [f'{d.platform}: {d.device_kind}' for d in jax.devices()],
        'processes': jax.process_count(),
        'machine': {'system': platform.platform(), 'cpus': os.cpu_count()},
        'source': source_state(Path(avatar_jax.__file__).parent),
    }


def source_state(folder: Path) -> dict[str, Any]:
    """Commit of the source folder and whether it has changes that are not committed; empty outside of a repository."""

    def git(*arguments: str) -> str:
        command = ['git', '-C', str(folder), *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()

    try:
        return {'commit': git('rev-parse', 'HEAD'), 'changed': bool(git('status', '--porcelain', '--', str(folder)))}
    except (OSError, subprocess.SubprocessError):
        return {}


def write_manifest(folder: str | os.PathLike, config: object, **facts: Any) -> None:
    """Writes ``manifest.json``: ``config``, ``command``, ``facts`` (such as the data's fingerprint), the environment.

    A resumed run keeps the records of its earlier starts under ``earlier``.
    """
    import json

    from avatar_jax.configure import to_plain
    from avatar_jax.io.atomic import write_json

    path, earlier = Path(folder) / 'manifest.json', []
    try:
        before = json.loads(path.read_text())
        earlier = [*before.pop('earlier', []), {k: v for k, v in before.items() if k != 'config'}]
    except (OSError, ValueError):
        pass  # the first start
    record = {'config': to_plain(config), 'command': sys.argv, **facts, **environment()}
    write_json(path, record | ({'earlier': earlier} if earlier else {}))
