"""Checkpoints of a training run: atomic, kept by a rule, checked on load, bound to their configuration.

One folder per run, written by Orbax (``<folder>/<step>/{state,config,manifest}``). A checkpoint becomes visible only
when it is complete, so a killed process leaves the previous one. The manifest holds the shape, type and CRC-32 of every
array; loading compares them. The configuration is stored with the numbers, and a run with another one is refused with
the name of the field that differs. Only numpy copies of whole arrays are handed to Orbax, so states that live on one
device, on many, of one process or of several, replicated or cut, are stored alike and resume on any others. With
several processes all of them call ``save`` and ``restore``; the first one writes.
"""

from __future__ import annotations

import fnmatch
import json
import os
import warnings
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import jax
import numpy as np

from avatar_jax.configure import to_plain
from avatar_jax.errors import UserError
from avatar_jax.io.names import check_utf8
from avatar_jax.parallel import to_host
from avatar_jax.types import PyTree

FORMAT = 1


def flatten_config(config: object, prefix: str = '') -> dict[str, Any]:
    """``{'train.seed': 0, ...}``: dotted names of all leaves; a list is one leaf."""
    config = to_plain(config) if not prefix else config
    flat = {}
    for key, value in config.items():
        name = f'{prefix}{key}'
        if isinstance(value, dict):
            flat.update(flatten_config(value, name + '.'))
        else:
            flat[name] = value
    return flat


def config_difference(stored: object, wanted: object, may_differ: Sequence[str] = ()) -> str | None:
    """The first field in which two configs differ, as 'name = stored, this run has wanted'; None when they agree.

    ``may_differ``: names or patterns (``train.log_every``, ``output.*``) that are allowed to.
    """
    a, b = flatten_config(stored), flatten_config(wanted)
    for name in sorted(set(a) | set(b)):
        if any(fnmatch.fnmatch(name, pattern) for pattern in may_differ):
            continue
        if name not in a or name not in b or a[name] != b[name]:
            said = [json.dumps(x[name]) if name in x else 'no such field' for x in (a, b)]
            return f'{name} = {said[0]}, this run has {said[1]}'
    return None


def leaf_names(tree: PyTree) -> list[str]:
    """Readable path of every leaf, in flattening order: ``groups/controller/params/...``."""
    return ['/'.join(_part(k) for k in path) for path, _ in jax.tree_util.tree_flatten_with_path(tree)[0]]


def _part(key: Any) -> str:
    for attribute in ('key', 'name', 'idx'):
        if hasattr(key, attribute):
            return str(getattr(key, attribute))
    return str(key)


def _crc(array: np.ndarray) -> int:
    return zlib.crc32(np.ascontiguousarray(array).reshape(-1).view(np.uint8))


def manifest(tree: PyTree) -> dict[str, Any]:
    """Shape, dtype and CRC-32 of every leaf by name; what verification on load compares."""
    leaves = {}
    for name, leaf in zip(leaf_names(tree), jax.tree.leaves(tree), strict=True):
        leaf = np.asarray(leaf)
        leaves[name] = {'shape': list(leaf.shape), 'dtype': str(leaf.dtype), 'crc32': _crc(leaf)}
    return {'format': FORMAT, 'leaves': leaves}


class Checkpoints:
    """The checkpoints of one run.

    Args:
        folder: where they live (made if missing).
        config: the run's configuration (dataclass, mapping or ConfigDict); stored, and compared on restore.
        keep: how many of the latest are kept. keep_every: steps that are kept for ever (0: none).
        may_differ: config fields that a resumed run may change (patterns of dotted names).
        read_only: refuses to save and to make the folder.
        current_names: a stored configuration -> the same with the names that its fields have today.
    """

    def __init__(
        self,
        folder: str | os.PathLike,
        *,
        config: object = None,
        keep: int = 2,
        keep_every: int = 0,
        may_differ: Sequence[str] = (),
        read_only: bool = False,
        current_names: Callable[[dict[str, Any]], dict[str, Any]] | None = None,
    ):
        import orbax.checkpoint as ocp

        self.folder = Path(folder).expanduser().resolve()  # Orbax does not take relative paths
        check_utf8(self.folder, 'checkpoints')
        if read_only and not self.folder.is_dir():
            raise UserError(f'{self.folder}: no such checkpoint folder; check the path')
        self.config = to_plain(config if config is not None else {})
        self.may_differ = tuple(may_differ)
        self._current_names = current_names or dict
        policies = [ocp.checkpoint_managers.LatestN(keep)]
        if keep_every:
            policies.append(ocp.checkpoint_managers.EveryNSteps(keep_every))
        options = ocp.CheckpointManagerOptions(
            preservation_policy=ocp.checkpoint_managers.AnyPreservationPolicy(policies),
            create=not read_only,
            read_only=read_only,
            cleanup_tmp_directories=not read_only,
            enable_async_checkpointing=False,
        )
        try:
            self._manager = ocp.CheckpointManager(self.folder, options=options)
        except OSError as error:
            raise UserError(
                f'{self.folder}: cannot hold checkpoints ({error.strerror}); choose another folder'
            ) from error

    def latest_step(self) -> int | None:
        """The last complete step; None when there is none."""
        return self._manager.latest_step()

    def steps(self) -> list[int]:
        """All complete steps, ascending."""
        return sorted(self._manager.all_steps())

    def save(self, step: int, state: PyTree) -> None:
        """Stores ``state`` as step ``step`` and waits until it is complete; a step that exists already is left alone.

        Raises:
            UserError: it cannot be written (no space, no permission).
            ValueError: a leaf has no plain numeric form (typed PRNG keys: store seed and step instead).
        """
        import orbax.checkpoint as ocp

        if step in self._manager.all_steps():
            return
        if any(
            jax.dtypes.issubdtype(getattr(x, 'dtype', np.float32), jax.dtypes.prng_key) for x in jax.tree.leaves(state)
        ):
            raise ValueError('a PRNG key in a train state: derive keys from (seed, step) instead')
        state = to_host(state)
        args = ocp.args.Composite(
            state=ocp.args.StandardSave(state),
            config=ocp.args.JsonSave(self.config),
            manifest=ocp.args.JsonSave(manifest(state)),
        )
        try:
            self._manager.save(step, args=args, force=True)
            self._manager.wait_until_finished()
        except (OSError, ValueError) as error:
            reason = _disk_reason(error)
            if reason is None:
                raise
            raise UserError(
                f'{self.folder}: step {step} could not be written: {reason}; earlier checkpoints are untouched'
            ) from error

    def stored_config(self, step: int | None = None) -> dict[str, Any]:
        """The configuration that a checkpoint was made with."""
        import orbax.checkpoint as ocp

        step = self._resolve(step)
        try:
            return self._manager.restore(step, args=ocp.args.Composite(config=ocp.args.JsonRestore()))['config']
        except Exception as error:  # Orbax reports damage by many types
            where, remedy = self._where_and_remedy(step)
            raise UserError(f'{where} is damaged (no configuration); {remedy}') from error

    def check_config(self, step: int | None = None) -> None:
        """Raises ``UserError`` naming the first field in which this run's config differs from the checkpoint's."""
        difference = config_difference(self._current_names(self.stored_config(step)), self.config, self.may_differ)
        if difference:
            raise UserError(
                f'{self.folder}: made with another configuration: {difference}; '
                'use the same value or another output folder'
            )

    def restore(self, template: PyTree, step: int | None = None) -> tuple[PyTree, int]:
        """The state of ``step`` (default: the latest) in the structure of ``template`` (arrays or ShapeDtypeStructs).

        Raises:
            UserError: nothing there, another configuration, other shapes, or damaged numbers.
        """
        step = self._resolve(step)
        self.check_config(step)
        return self._restore_verified(template, step), step

    def restore_part(self, template: Mapping[str, Any], step: int | None = None) -> tuple[Any, int]:
        """A subtree, given as nested dicts named like ``leaf_names`` (``{'groups': {'generator': {'ema': ...}}}``).

        The configuration is not compared: this is how another program reads the weights of a run.
        """
        step = self._resolve(step)
        return self._restore_verified(template, step, partial=True), step

    def close(self) -> None:
        """Waits for pending work and releases the folder."""
        self._manager.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc) -> None:
        self.close()

    def _resolve(self, step: int | None) -> int:
        if step is None:
            step = self.latest_step()
            if step is None:
                raise UserError(f'{self.folder}: holds no complete checkpoint; check the path or start a new run')
        elif step not in self._manager.all_steps():
            have = ', '.join(map(str, self.steps())) or 'none'
            raise UserError(f'{self.folder}: no checkpoint of step {step}; there are: {have}')
        return step

    def _where_and_remedy(self, step: int) -> tuple[str, str]:
        others = [s for s in self.steps() if s != step]
        return f'{self.folder}: checkpoint {step}', f'resume from step {others[-1]}' if others else 'start again'

    def _restore_verified(self, template: PyTree, step: int, partial: bool = False) -> PyTree:
        import orbax.checkpoint as ocp

        where, remedy = self._where_and_remedy(step)
        try:
            stored = self._manager.restore(step, args=ocp.args.Composite(manifest=ocp.args.JsonRestore()))['manifest']
        except Exception as error:  # Orbax reports damage by many types
            raise UserError(f'{where} is damaged (no manifest); {remedy}') from error
        expected = stored['leaves']
        names = leaf_names(template)
        for name, leaf in zip(names, jax.tree.leaves(template), strict=True):
            if name not in expected:
                raise UserError(f'{where} has no {name}; it belongs to another program or version')
            if list(leaf.shape) != expected[name]['shape']:
                raise UserError(
                    f'{where}: {name} has shape {expected[name]["shape"]}, this run needs {list(leaf.shape)}'
                )
        if not partial and set(expected) - set(names):
            raise UserError(f'{where} also has {min(set(expected) - set(names))}; it belongs to another program')
        target = jax.tree.map(lambda x: np.empty(x.shape, x.dtype), template)
        try:
            _read_one_by_one(self.folder / str(step) / 'state', names)
            with warnings.catch_warnings():
                warnings.simplefilter('ignore')  # about shardings, which numpy targets do not have
                if partial:
                    with ocp.PyTreeCheckpointer() as reader:
                        args = ocp.args.PyTreeRestore(
                            item=target,
                            restore_args=ocp.checkpoint_utils.construct_restore_args(target),
                            partial_restore=True,
                        )
                        state = reader.restore(self.folder / str(step) / 'state', args=args)
                else:
                    args = ocp.args.Composite(state=ocp.args.StandardRestore(target))
                    state = self._manager.restore(step, args=args)['state']
        except Exception as error:
            raise UserError(f'{where} is damaged ({str(error).splitlines()[0][:120]}); {remedy}') from error
        for name, leaf in zip(names, jax.tree.leaves(state), strict=True):
            if _crc(np.asarray(leaf)) != expected[name]['crc32']:
                raise UserError(f'{where} is damaged ({name} does not match its checksum); {remedy}')
        return jax.tree.map(np.asarray, state)


def _read_one_by_one(folder: Path, names: Sequence[str]) -> None:
    """Reads the arrays of a state one after the other and drops them; raises at damage.

    Orbax starts all reads at once and closes its event loop at the first that fails. Those still under way then report
    to a closed loop, an exception that nobody can catch. So Orbax is only given files that can be read.
    """
    import tensorstore

    store = {'driver': 'ocdbt', 'base': {'driver': 'file', 'path': f'{folder}/'}}
    keys = set(tensorstore.KvStore.open(store).result().list().result())
    for name in (name.replace('/', '.') for name in names):
        if f'{name}/.zarray'.encode() in keys:  # otherwise stored in another way: Orbax knows
            spec = {'driver': 'zarr', 'kvstore': {**store, 'path': f'{name}/'}, 'fill_missing_data_reads': False}
            tensorstore.open(spec).result().read().result()


def _disk_reason(error: Exception) -> str | None:
    text = str(error)
    for sign in ('No space left', 'RESOURCE_EXHAUSTED', 'Disk quota', 'Permission denied', 'Read-only file system'):
        if sign in text:
            return text.splitlines()[0][:160] if sign == 'RESOURCE_EXHAUSTED' else sign
    return None
