"""Weight files of this project: one ``.safetensors`` file with variables, configuration and provenance.

The file is ordinary safetensors (readable by any tool of that name): tensor names are the paths of the variable tree
joined by dots, ``params.backbone.synthesis.b8.conv0.affine.weight``; the metadata entry ``avatar_jax`` holds JSON with
``method``, ``config``, ``provenance`` and a SHA-256 over names, shapes and numbers, checked on reading. Tensors may be
stored as float16 to halve the file; they come back as float32. Parameter names and layouts:
``avatar_jax.convert.layout``.
"""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import json
import os
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from avatar_jax.errors import UserError
from avatar_jax.foreign.safetensors_files import is_safetensors
from avatar_jax.io import atomic, tensor_files
from avatar_jax.io.inputs import input_file, read_error

if TYPE_CHECKING:
    from avatar_jax.configure import Dataclass

FORMAT = 1
SUFFIX = '.safetensors'
_KEY = 'avatar_jax'
_SMALL = 1024  # tensors with fewer numbers stay float32: rounding them saves nothing


@dataclasses.dataclass(frozen=True)
class Weights:
    """The content of a weight file.

    Attributes:
        variables: nested dict of numpy arrays, collections first: ``{'params': {...}, 'noise': {...}, ...}``.
        method: what the weights belong to: the name of a method, or of a network that no method owns.
        config: the configuration that builds the modules, as plain values.
        provenance: how the weights were made: command, seed, data version, steps, ...
        sha256: identifies the numbers; the ``weights`` entry of every output's provenance.
        path: the file.
    """

    variables: dict[str, Any]
    method: str
    config: dict[str, Any]
    provenance: dict[str, Any]
    sha256: str
    path: Path


def flatten(tree: Mapping[str, Any], prefix: str = '') -> dict[str, np.ndarray]:
    """Nested dict -> ``{'a.b.c': array}``, in the tree's order.

    Raises:
        ValueError: a key that is not text or has a dot in it.
    """
    flat = {}
    for key, value in tree.items():
        if not isinstance(key, str) or '.' in key or not key:
            raise ValueError(f'{prefix}{key!r}: names in a variable tree are texts without dots')
        if isinstance(value, Mapping):
            flat.update(flatten(value, f'{prefix}{key}.'))
        else:
            flat[prefix + key] = np.asarray(value)
    return flat


def unflatten(flat: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of ``flatten``."""
    tree: dict[str, Any] = {}
    for name, value in flat.items():
        *parents, last = name.split('.')
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = value
    return tree


def _stored(name: str, value: np.ndarray, storage: str) -> np.ndarray:
    if value.dtype not in tensor_files.CODES:
        raise ValueError(f'{name}: {value.dtype} cannot be stored in a weight file')
    if np.issubdtype(value.dtype, np.floating) and not np.isfinite(value).all():
        raise ValueError(f'{name}: has NaN or infinite values; such weights are not saved')
    if storage == 'float16' and value.dtype == np.float32 and value.size >= _SMALL:
        with np.errstate(over='ignore'):
            half = value.astype(np.float16)
        if np.isfinite(half).all():  # numbers beyond 65504 keep their tensor in float32
            return half
    return value


def _digest(table: tensor_files.Table, tensors: Mapping[str, np.ndarray]) -> str:
    """SHA-256 over the header of a file and the numbers in the order of their places."""
    digest = hashlib.sha256(json.dumps(table, sort_keys=True).encode())
    for name in sorted(table, key=lambda name: table[name]['data_offsets']):
        digest.update(np.ascontiguousarray(tensors[name]).reshape(-1).view(np.uint8))
    return digest.hexdigest()


def save_weights(
    path: str | os.PathLike,
    variables: Mapping[str, Any],
    *,
    method: str,
    config: Dataclass | Mapping[str, object],
    provenance: Mapping[str, Any],
    storage: str = 'float32',
) -> str:
    """Writes a weight file, completely or not at all.

    Args:
        path: the file, ``.safetensors``.
        variables: nested dict of arrays.
        method: what the weights belong to.
        config: frozen dataclass or dict of plain values.
        provenance: how the weights were made, plain values.
        storage: 'float32' keeps every number; 'float16' stores float32 tensors of 1024 and more numbers in half the
            space (11 bits of precision).

    Returns:
        SHA-256 of the stored numbers.

    Raises:
        UserError: the place cannot be written to.
        ValueError: NaN or infinite weights, an unknown storage, names with dots.
    """
    if storage not in ('float32', 'float16'):
        raise ValueError(f"storage='{storage}': choose float32 or float16")
    if Path(path).suffix != SUFFIX:
        raise UserError(f'{os.fspath(path)}: weight files are named *{SUFFIX}')
    stored = {name: _stored(name, value, storage) for name, value in flatten(variables).items()}
    record = {
        'format': FORMAT,
        'method': method,
        'config': dataclasses.asdict(config) if dataclasses.is_dataclass(config) else dict(config),
        'provenance': dict(provenance),
        'widened': sorted(n for n in stored if stored[n].dtype == np.float16),  # float32 in use
    }

    def metadata(table: tensor_files.Table) -> dict[str, str]:
        record['sha256'] = _digest(table, stored)
        return {_KEY: atomic.json_text(record)}

    tensor_files.write(path, stored, metadata)
    return record['sha256']


def load_weights(
    path: str | os.PathLike,
    *,
    method: str | None = None,
    template: Mapping[str, Any] | None = None,
) -> Weights:
    """Reads and verifies a weight file.

    Args:
        path: the file.
        method: what the weights must belong to; None accepts anything.
        template: nested dict of arrays or ``jax.ShapeDtypeStruct``: names and shapes must agree with it.

    Raises:
        UserError: missing, damaged or foreign file; weights of another method; names or shapes that do not fit.
    """
    path = input_file(path)
    damaged = UserError(f'{path}: the weight file is damaged or incomplete; get it again')
    try:
        with open(path, 'rb') as file:
            if not is_safetensors(memoryview(file.read(16))):
                raise UserError(f'{path}: is not a weight file of avatar_jax ({SUFFIX})')
        content = tensor_files.read(path)
        record = json.loads(content.metadata.get(_KEY, 'null'))
    except (tensor_files.Damaged, ValueError, RecursionError) as error:
        raise damaged from error
    except OSError as error:
        raise read_error(path, error) from error
    if record is None:
        raise UserError(f'{path}: is a safetensors file of another program; convert it first')
    if not isinstance(record, dict) or 'format' not in record:
        raise damaged
    if record['format'] != FORMAT:
        raise UserError(f'{path}: has format {record["format"]}, this version reads {FORMAT}; update avatar_jax')
    if _digest(content.table, content.tensors) != record['sha256']:
        raise damaged
    if method is not None and record['method'] != method:
        raise UserError(f"{path}: holds weights of '{record['method']}', but '{method}' is needed; give another file")
    widened = set(record['widened'])
    flat = {name: value.astype(np.float32) if name in widened else value for name, value in content.tensors.items()}
    variables = unflatten(flat)
    if template is not None:
        check_tree(path, variables, template)
    return Weights(variables, record['method'], record['config'], record['provenance'], record['sha256'], path)


def check_tree(source: str | os.PathLike, variables: Mapping[str, Any], template: Mapping[str, Any]) -> None:
    """Checks that ``variables`` has exactly the names and shapes of ``template``.

    Raises:
        UserError: names the first few tensors that are missing, left over, or of another shape.
    """
    found = {name: np.shape(value) for name, value in _leaves(variables).items()}
    wanted = {name: tuple(value.shape) for name, value in _leaves(template).items()}
    problems = [f'{name} is missing' for name in wanted if name not in found]
    problems += [f'{name} is not part of this configuration' for name in found if name not in wanted]
    problems += [
        f'{name} has shape {found[name]}, expected {wanted[name]}'
        for name in wanted
        if name in found and found[name] != wanted[name]
    ]
    if problems:
        more = f' and {len(problems) - 3} more' if len(problems) > 3 else ''
        raise UserError(
            f'{os.fspath(source)}: does not fit this configuration: {"; ".join(problems[:3])}{more}; '
            'use the configuration that the weights were made with'
        )


def _leaves(tree: Mapping[str, Any], prefix: str = '') -> dict[str, Any]:
    flat = {}
    for key, value in tree.items():
        flat.update(_leaves(value, f'{prefix}{key}.') if isinstance(value, Mapping) else {prefix + key: value})
    return flat


def check_config(source: str | os.PathLike, found: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    """Checks that two configurations agree.

    Raises:
        UserError: names the first few entries that differ.
    """
    a, b = _leaves(_plain(found)), _leaves(_plain(expected))
    missing = object()
    different = [k for k in sorted({*a, *b}) if a.get(k, missing) != b.get(k, missing)]
    if different:
        shown = '; '.join(f'{k} is {a.get(k, "absent")}, here {b.get(k, "absent")}' for k in different[:3])
        more = f' and {len(different) - 3} more' if len(different) > 3 else ''
        raise UserError(f'{os.fspath(source)}: was made with another configuration: {shown}{more}')


def _plain(config: Any) -> dict[str, Any]:
    """Tuples and numpy numbers as JSON has them, so that a stored configuration equals the one in use."""
    return json.loads(atomic.json_text(dataclasses.asdict(config) if dataclasses.is_dataclass(config) else config))


def shipped_names() -> list[str]:
    """Names of the weight files inside the installed package."""
    folder = resources.files('avatar_jax') / 'assets'
    return (
        sorted(e.name.removesuffix(SUFFIX) for e in folder.iterdir() if e.name.endswith(SUFFIX))
        if folder.is_dir()
        else []
    )


def shipped(name: str) -> Path:
    """Path of a weight file inside the installed package.

    Raises:
        UserError: there is none of that name.
    """
    names = shipped_names()
    if name not in names:
        close = difflib.get_close_matches(name, names, 1)
        hint = f"did you mean '{close[0]}'?" if close else f'there are: {", ".join(names) or "none"}'
        raise UserError(f"weights '{name}': not shipped with avatar_jax; {hint}")
    return Path(str(resources.files('avatar_jax') / 'assets' / (name + SUFFIX)))


def weight_file(name: str | os.PathLike) -> Path:
    """The weight file behind a path or the name of a shipped one. Raises ``UserError`` for an unknown name."""
    text = os.fspath(name)
    if Path(name).exists() or os.sep in text or text.endswith(SUFFIX):
        return Path(name)
    return shipped(text)
