"""A kind of foreign file as one object, and what the kinds share: finding a network's entries, matching them with it.

Nothing here knows a method or a network. Those have a module ``foreign`` beside them with ``FOREIGN``, a tuple of
``ForeignFile``; the functions of this package (``convert``, ``recognise``, ``export``, ``verify``) take such objects.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from avatar_jax.convert.comparison import Verification
from avatar_jax.convert.layout import COLLECTIONS, from_torch, to_torch, torch_shapes
from avatar_jax.convert.report import Report
from avatar_jax.errors import UserError
from avatar_jax.io.foreign import RawFile
from avatar_jax.io.weights import Weights

FIR = np.outer([1, 3, 3, 1], [1, 3, 3, 1]).astype(np.float32) / 64
_NARROW = (np.dtype(np.float16), np.dtype(ml_dtypes.bfloat16), np.dtype(np.float64))


@dataclass
class ForeignNetwork:
    """A file, and the places in it that belong to what is converted.

    Attributes:
        raw: the file.
        places: role ('' for the only one, or 'G_ema', 'net_Warp', ...) -> start of the names of its tensors.
        variant: for kinds with variants, the one that was asked for.
        hint: configuration that an exported file carries.
    """

    raw: RawFile
    places: dict[str, str]
    variant: str | None = None
    hint: dict[str, Any] = field(default_factory=dict)

    def flat(self, role: str = '') -> dict[str, np.ndarray]:
        """The state dict at a place."""
        return under(self.raw.tensors, self.places[role])


@dataclass
class NewWeights:
    """One weight file to be written.

    Attributes:
        file: its name.
        method: of the weight file.
        config: plain values.
        flat: original key -> array, views of the source.
        build: variables from ``flat``.
        label: for messages.
    """

    file: str
    method: str
    config: dict[str, Any]
    flat: dict[str, np.ndarray]
    build: Callable[[dict[str, np.ndarray]], dict[str, Any]] = from_torch

    def variables(self, source: str) -> dict[str, Any]:
        """The numbers in this project's layout, float32.

        Raises:
            UserError: there are NaN or infinite ones.
        """
        for key, value in self.flat.items():
            if value.dtype.kind in 'fV' and not np.isfinite(value.astype(np.float32, copy=False)).all():
                raise UserError(
                    f'{source}: {key} has NaN or infinite numbers; the file is damaged or its training failed'
                )
        return self.build({k: v.astype(np.float32) if v.dtype in _NARROW else v for k, v in self.flat.items()})


@dataclass(frozen=True)
class Checkpoint:
    """Several networks of one file that are imported together.

    Attributes:
        roles: names of the containers that they are in.
        of: names of the kinds that these networks are, each for itself.
        complete: whether the roles that a file has are enough.
        otherwise: what a file has instead if they are not, and what to do; ends a message.
    """

    roles: tuple[str, ...]
    of: tuple[str, ...]
    complete: Callable[[Collection[str]], bool]
    otherwise: str = ''


@dataclass(frozen=True)
class Folder:
    """A kind that is distributed as a folder.

    Attributes:
        title: of the distribution, for messages.
        mark: name of the file by which the folder is recognised.
        read: the folder -> its arrays.
    """

    title: str
    mark: str
    read: Callable[[Path], RawFile]


def _state_dict(weights: Weights) -> dict[str, np.ndarray]:
    return to_torch(weights.variables)


@dataclass(frozen=True)
class ForeignFile:
    """One kind of file of another program: how it is recognised, imported, exported and verified.

    Attributes:
        name: for ``--as``.
        title: in words.
        method: of the weight file that it becomes (of the first one, if there are several).
        find: tensors by name -> starts of the names under which it occurs.
        plan: (source, report) -> weight files to be written, each with the function that builds its variables; says in
            the report what becomes of every entry at its places.
        export: a weight file -> arrays under the original names, in the original layouts; None: never written again.
        verify: kind of record -> repeats the recorded computation with the imported weights and compares.
        variants: further names for ``--as`` that also choose a configuration.
        checkpoint: for files that hold several networks at once.
        containers: names of containers, beside the roles of the checkpoint, that the network is in.
        preferred: the container that is taken if the kind is asked for by name and is in several.
        folder: for what is distributed as a folder.
        left_out: shell patterns of entries that lie beside the networks of such files -> why they are not imported.
    """

    name: str
    title: str
    method: str
    find: Callable[[Mapping[str, np.ndarray]], list[str]]
    plan: Callable[[ForeignNetwork, Report], list[NewWeights]]
    export: Callable[[Weights], dict[str, np.ndarray]] | None = _state_dict
    verify: Mapping[str, Callable[[Verification], None]] = field(default_factory=dict)
    variants: tuple[str, ...] = ()
    checkpoint: Checkpoint | None = None
    containers: tuple[str, ...] = ()
    preferred: str = ''
    folder: Folder | None = None
    left_out: Mapping[str, str] = field(default_factory=dict)


def under(tensors: Mapping[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    """Entries whose names start with ``prefix``, without it; nothing from containers further inside."""
    found = {k[len(prefix) :]: v for k, v in tensors.items() if k.startswith(prefix)}
    return {k: v for k, v in found.items() if '/' not in k}


def places(tensors: Mapping[str, np.ndarray], anchor: str, fits: Callable[[dict[str, np.ndarray]], bool]) -> list[str]:
    """Starts of names under which the key ``anchor`` occurs and the entries there satisfy ``fits``."""
    found = []
    for name in tensors:
        prefix = name.removesuffix(anchor)
        if name.endswith(anchor) and (not prefix or prefix[-1] in './') and fits(under(tensors, prefix)):
            found.append(prefix)
    return found


def has(flat: Mapping[str, np.ndarray], **shapes: tuple[int | None, ...]) -> bool:
    """Whether entries exist and have the shapes; ``__`` in a name stands for a dot, None for any size."""
    for name, shape in shapes.items():
        value = flat.get(name.replace('__', '.'))
        if value is None or value.ndim != len(shape):
            return False
        if any(want is not None and want != size for want, size in zip(shape, value.shape, strict=True)):
            return False
    return True


def match(
    flat: Mapping[str, np.ndarray],
    template: Mapping[str, Any],
    report: Report,
    place: str,
    file: str,
    *,
    unused: Mapping[str, str] | None = None,
    optional: Iterable[str] = (),
    tree_prefix: str = '',
) -> dict[str, np.ndarray]:
    """Compares a state dict with a network and records every entry in the report.

    Args:
        flat: original key -> array.
        template: variables of the network or their ``jax.eval_shape``.
        report: what is filled.
        place: start of the names in the file.
        file: where the numbers go.
        unused: start of a key -> why such entries are not needed.
        optional: keys that are taken along although the network does not have them.
        tree_prefix: of the names in the weight file, behind the collection.

    Returns:
        the entries that are mapped.
    """
    wanted, taken = torch_shapes(template), {}
    for key, value in flat.items():
        name, leaf = place + key, key.rpartition('.')[2]
        reason = next((why for start, why in (unused or {}).items() if key.startswith(start)), None)
        if key in wanted or key in optional:
            if key in wanted and value.shape != wanted[key]:
                report.wrong.append(f'{name} {value.shape} instead of {wanted[key]}')
                continue
            if value.dtype in _NARROW:
                report.notes.append(f'{name} is {value.dtype}; it is kept as float32')
            elif value.dtype != np.float32:
                report.wrong.append(f'{name} has numbers of the type {value.dtype} instead of float32')
                continue
            taken[key] = value
            report.mapped[name] = f'{file}: {COLLECTIONS.get(leaf, "params")}.{tree_prefix}{key}'
        elif reason:
            report.unused[name] = reason
        elif leaf == 'num_batches_tracked':
            report.unused[name] = 'a counter of training'
        elif leaf == 'resample_filter':
            if value.shape == FIR.shape and np.allclose(value, FIR, atol=1e-6):
                report.unused[name] = 'derived: the resampling filter [1, 3, 3, 1], checked'
            else:
                report.unexpected[name] = 'another resampling filter than [1, 3, 3, 1], which is the only one supported'
        else:
            report.unexpected[name] = ''
    report.missing += [place + key for key in wanted if key not in flat]
    return taken
