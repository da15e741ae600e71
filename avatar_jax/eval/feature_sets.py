"""Features of many pictures, computed in parts that are kept: an interrupted measurement goes on where it was.

A set lives in a folder: ``features-<first>.npy`` per part, and ``set.json`` that says what the numbers are of. A folder
of something else is refused. Parts appear under their names only when they are complete.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from avatar_jax.errors import UserError
from avatar_jax.io.atomic import atomic_path, write_json
from avatar_jax.progress import Progress
from avatar_jax.types import PyTree


def spread(function: Callable, devices: list | None = None) -> Callable[..., np.ndarray]:
    """Compiles ``function(constants, *batch)`` so that the rows of the batch are divided among the devices.

    Returns:
        ``run(constants, *batch)`` with numpy batches of any length (rows are repeated to fill the devices up, and their
        results dropped); gives a numpy tree.
    """
    devices = list(jax.local_devices() if devices is None else devices)
    mesh = Mesh(np.asarray(devices), ('data',), axis_types=(AxisType.Auto,))
    rows, everywhere = NamedSharding(mesh, P('data')), NamedSharding(mesh, P())
    compiled = jax.jit(function, in_shardings=None, out_shardings=None)
    placed: dict[int, PyTree] = {}

    def run(constants, *batch):
        key = id(constants)
        if key not in placed:
            placed.clear()
            placed[key] = (constants, jax.device_put(constants, everywhere))  # keeps the original alive: ids are reused
        count = len(batch[0])
        missing = -count % len(devices)
        full = [np.concatenate([b, np.repeat(b[:1], missing, 0)]) if missing else b for b in map(np.asarray, batch)]
        out = compiled(placed[key][1], *(jax.device_put(b, rows) for b in full))
        return jax.tree.map(lambda x: np.asarray(x)[:count], out)

    return run


def collect(
    folder: str | os.PathLike,
    identity: Mapping[str, Any],
    total: int,
    compute: Callable[[int, int], np.ndarray],
    part: int = 256,
    label: str = 'features',
) -> np.ndarray:
    """All features [total, D], computing only the parts that are not there.

    Args:
        folder: where the parts are kept.
        identity: plain values that say what the features are of (weights, data, network, seed); a folder with other
            values is refused. ``total`` is not part of it: a longer measurement uses what a shorter one left.
        compute: (first, count) -> features [count, D].
        part: pictures per file.

    Raises:
        UserError: the folder belongs to another measurement, or cannot be written.
    """
    folder = Path(folder)
    identity = json.loads(json.dumps({**identity, 'part': part}))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        record = folder / 'set.json'
        if record.exists():
            stored = json.loads(record.read_text())
            different = [k for k in {**stored, **identity} if stored.get(k) != identity.get(k)]
            if different:
                raise UserError(
                    f'{folder}: holds features of another measurement (different: {", ".join(sorted(different))}); '
                    'choose another --out'
                )
        else:
            write_json(record, identity)
    except (OSError, ValueError) as error:
        raise UserError(f'{folder}: cannot hold features ({error}); choose another --out') from error
    found = []
    with Progress(total, label, unit='picture') as progress:
        for first in range(0, total, part):
            path = folder / f'features-{first:08d}.npy'
            count = min(part, total - first)
            rows = _stored(path)
            if rows is None or len(rows) < count:
                rows = np.asarray(compute(first, count), np.float32)
                with atomic_path(path) as temporary, open(temporary, 'wb') as file:
                    np.save(file, rows)
            found.append(rows[:count])
            progress.update(count)
    return np.concatenate(found)


def _stored(path: Path) -> np.ndarray | None:
    """A complete part, or None."""
    try:
        return np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None


def bytes_of(images: jax.Array) -> jax.Array:
    """Images in [-1, 1] as EG3D's metrics see them: 8 bits, cut off rather than rounded; still float, 0 to 255."""
    return jnp.floor(jnp.clip(images * 127.5 + 128, 0, 255))
