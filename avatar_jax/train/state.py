"""Train state: named groups of parameters, each with its own optimizer state and, if wanted, a moving average.

Everything a run needs besides ``(seed, step)`` is in here; random keys and the data position are derived from those
two numbers, so a checkpoint of this tree resumes exactly.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import optax
from flax import struct

from avatar_jax.parallel import as_arrays
from avatar_jax.train.optimizers import clip_by_global_norm, ema_update, global_norm
from avatar_jax.types import PyTree


@struct.dataclass
class Group:
    """Parameters that one optimizer trains. ``ema`` is None when no average is kept."""

    params: PyTree
    opt_state: PyTree
    ema: PyTree = None

    @classmethod
    def create(cls, params: PyTree, tx: optax.GradientTransformation, *, ema: bool = False) -> Group:
        """A fresh group; the average starts equal to (and as a copy of) the parameters."""
        params = jax.tree.map(_strong, as_arrays(params))
        return cls(params, *_rest(params, tx=tx, ema=ema))

    def apply_gradients(
        self, grads: PyTree, tx: optax.GradientTransformation, *, lr_scale=1.0, max_norm: float | None = None
    ) -> tuple[Group, dict[str, jax.Array]]:
        """One update. Returns the new group and ``grad_norm`` (before clipping), ``update_norm``, ``param_norm``."""
        grads, norm = clip_by_global_norm(grads, max_norm)
        # A number of its own: XLA would compute a schedule again in the update of every parameter.
        lr_scale = jax.lax.optimization_barrier(lr_scale)
        updates, opt_state = tx.update(grads, self.opt_state, self.params, lr_scale=lr_scale)
        params = optax.apply_updates(self.params, updates)
        stats = {'grad_norm': norm, 'update_norm': global_norm(updates), 'param_norm': global_norm(params)}
        return self.replace(params=params, opt_state=opt_state), stats

    def update_ema(self, decay) -> Group:
        """Moves the average: ``ema <- decay * ema + (1 - decay) * params``; nothing to do without one."""
        return self if self.ema is None else self.replace(ema=ema_update(self.ema, self.params, decay))

    @property
    def inference_params(self) -> PyTree:
        """The average if there is one, else the parameters."""
        return self.params if self.ema is None else self.ema


@struct.dataclass
class TrainState:
    """``step``: number of finished iterations (int32 scalar). ``groups``: name -> Group. ``extra``: untrained
    arrays.
    """

    step: jax.Array
    groups: dict[str, Group]
    extra: PyTree = struct.field(default_factory=dict)

    @classmethod
    def create(cls, groups: dict[str, Group], extra: PyTree | None = None) -> TrainState:
        """A state before the first step."""
        return cls(jnp.zeros((), jnp.int32), dict(groups), {} if extra is None else extra)

    def with_groups(self, **groups: Group) -> TrainState:
        """The same state with some groups replaced."""
        unknown = set(groups) - set(self.groups)
        if unknown:
            raise KeyError(f'no such group: {sorted(unknown)}; there are {sorted(self.groups)}')
        return self.replace(groups={**self.groups, **groups})


@partial(jax.jit, static_argnames=('tx', 'ema'))  # one small program instead of some for each shape of a parameter
def _rest(params, *, tx, ema):
    return tx.init(params), jax.tree.map(jnp.copy, params) if ema else None


def _strong(x: jax.Array) -> jax.Array:
    """The same numbers without JAX's mark for "made of a Python number": an update loses it, and with it the second
    step would be another program than the first.
    """
    return jax.lax.convert_element_type(x, x.dtype)


def step_key(seed: int, step: jax.Array | int, stream: int = 0) -> jax.Array:
    """The typed PRNG key of one step: a function of (seed, step, stream) alone, which is what makes resume exact."""
    return jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), stream), step)


def num_params(tree: PyTree) -> int:
    """How many numbers a tree of arrays holds."""
    return sum(int(x.size) for x in jax.tree.leaves(tree))
