"""Mapping network: latent code and camera label to style rows."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from avatar_jax.models.layers import FullyConnected
from avatar_jax.ops.activations import normalize_2nd_moment


class MappingNetwork(nn.Module):
    """``(z, c) -> w``, in float32 whatever the rest of the network uses.

    Attributes:
        z_dim: size of the latent code; 0: none.
        c_dim: size of the condition (25 for a camera label); 0: none.
        w_dim: size of a style row and of every hidden layer.
        num_ws: rows to repeat the result to; None returns one vector per sample and keeps no average.
        num_layers: fully connected layers.
        lr_multiplier: of these layers (the embedding of c has 1).
        w_avg_beta: decay of the running mean of w (collection ``ema_stats``, variable ``w_avg`` [w_dim]).
    """

    z_dim: int
    c_dim: int
    w_dim: int
    num_ws: int | None
    num_layers: int = 8
    lr_multiplier: float = 0.01
    w_avg_beta: float = 0.998

    @nn.compact
    def __call__(
        self,
        z: jax.Array | None,
        c: jax.Array | None = None,
        truncation_psi: float | jax.Array = 1.0,
        truncation_cutoff: int | None = None,
        update_emas: bool = False,
    ) -> jax.Array:
        """Maps codes and conditions to styles.

        Args:
            z: [N, z_dim]; None if ``z_dim`` is 0.
            c: [N, c_dim]; None if ``c_dim`` is 0.
            truncation_psi: pull towards the mean style: ``w_avg + psi * (w - w_avg)``; 1 leaves w alone.
            truncation_cutoff: only the first rows are truncated; None means all.
            update_emas: move ``w_avg`` towards the batch mean; needs ``mutable=['ema_stats']``. With data parallelism
                the caller averages the updated collection over the devices.

        Returns:
            [N, num_ws, w_dim], or [N, w_dim] if ``num_ws`` is None. float32.
        """
        parts = []
        if self.z_dim:
            if z is None or z.shape[-1] != self.z_dim:
                raise ValueError(f'z {None if z is None else z.shape}: expected [N, {self.z_dim}]')
            parts.append(normalize_2nd_moment(z.astype(jnp.float32)))
        if self.c_dim:
            if c is None or c.shape[-1] != self.c_dim:
                raise ValueError(f'c {None if c is None else c.shape}: expected [N, {self.c_dim}]')
            parts.append(normalize_2nd_moment(FullyConnected(self.w_dim, name='embed')(c)))
        if not parts:
            raise ValueError('a mapping network needs z_dim > 0 or c_dim > 0')
        w = jnp.concatenate(parts, axis=-1)
        for i in range(self.num_layers):
            w = FullyConnected(self.w_dim, 'lrelu', self.lr_multiplier, name=f'fc{i}')(w)
        if self.num_ws is None:
            if update_emas or not _is_one(truncation_psi):
                raise ValueError('a mapping network without num_ws keeps no average: no update_emas, no truncation')
            return w

        plain = _is_one(truncation_psi)
        if self.is_initializing() or update_emas or not plain:
            w_avg = self.variable('ema_stats', 'w_avg', jnp.zeros, (self.w_dim,))
        if update_emas and not self.is_initializing():
            if not self.is_mutable_collection('ema_stats'):
                raise ValueError("update_emas=True needs apply(..., mutable=['ema_stats'])")
            mean = jax.lax.stop_gradient(w.mean(axis=0))
            w_avg.value = mean + self.w_avg_beta * (w_avg.value - mean)
        ws = jnp.broadcast_to(w[:, None], (w.shape[0], self.num_ws, self.w_dim))
        if plain:
            return ws
        truncated = w_avg.value + truncation_psi * (ws - w_avg.value)
        if truncation_cutoff is None:
            return truncated
        return jnp.where(jnp.arange(self.num_ws)[:, None] < truncation_cutoff, truncated, ws)


def _is_one(psi: float | jax.Array) -> bool:
    return isinstance(psi, int | float) and psi == 1
