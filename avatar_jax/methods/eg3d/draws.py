"""The random numbers of an iteration, each a function of (seed, step, phase, place of the sample in the global batch).

So a batch is trained on with the same numbers however it is divided among devices and micro-batches. Everything that
the original draws once per batch (the swap in the regularisation, the cutoff of style mixing) is repeated per sample.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from avatar_jax.methods.eg3d import losses as L
from avatar_jax.methods.eg3d.config import WITHOUT_EFFECT, RunConfig
from avatar_jax.methods.eg3d.phases import GeneratedDraws, RegularDraws
from avatar_jax.parallel import mean_over_devices, num_shards, sample_keys
from avatar_jax.render.sampling import RenderDraws

# Streams of one sample.
_Z, _CAMERA, _SWAP, _RENDER, _NOISE, _MIX, _DENSITY, _PATH, _LABEL = range(9)


class Dice:
    """Draws for ``count`` samples of this device's share.

    Args:
        key: of this step and phase. labels: [M, 25], all cameras of the data set.
    """

    def __init__(self, config: RunConfig, resolution: int, key: jax.Array, labels: jax.Array, count: int,
                 axis_name: str | None):  # fmt: skip
        self.config, self.resolution, self.labels, self.count, self.axis_name = config, resolution, labels, count, axis_name
        self.total = count * num_shards(axis_name)
        self.key, self.keys = key, sample_keys(key, count, axis_name)
        first = 0 if axis_name is None else jax.lax.axis_index(axis_name) * count
        before = (first + jnp.arange(count) - 1) % self.total
        self._before = jax.vmap(lambda i: jax.random.fold_in(key, i))(before)

    def _each(self, draw, stream: int, keys: jax.Array | None = None):
        return jax.vmap(lambda k: draw(jax.random.fold_in(k, stream)))(self.keys if keys is None else keys)

    def _once(self, draw, number: int) -> jax.Array:
        """One draw for the whole batch, repeated for every sample."""
        return jnp.broadcast_to(draw(jax.random.fold_in(self.key, 2**31 - 1 - number)), (self.count,))

    def codes(self) -> jax.Array:
        """[N, z_dim]."""
        return self._each(lambda k: jax.random.normal(k, (self.config.generator.z_dim,)), _Z)

    def _cameras(self, keys: jax.Array) -> jax.Array:
        rows = self._each(lambda k: jax.random.randint(k, (), 0, self.labels.shape[0]), _CAMERA, keys)
        return self.labels[rows]

    def cameras(self) -> jax.Array:
        """[N, 25], uniformly from the data set."""
        return self._cameras(self.keys)

    def pose(self, together: int | None = None) -> L.PoseDraws:
        """Conditioning; ``together``: number of the draw that the whole batch shares, or None for one per sample."""
        if together is None:
            swap = self._each(jax.random.uniform, _SWAP)
        else:
            swap = self._once(jax.random.uniform, together)
        return L.PoseDraws(swap, self._cameras(self._before))

    def noise(self) -> jax.Array:
        """Keys [N] of the backbone's noise."""
        return self._each(lambda k: k, _NOISE)

    def synthesis(self) -> L.SynthesisDraws:
        """Jitter and noise of a rendering."""
        rendering, rays = self.config.generator.rendering, self.resolution**2
        render = self._each(lambda k: RenderDraws.from_key(k, rendering, 1, rays), _RENDER)
        return L.SynthesisDraws(jax.tree.map(lambda x: x[:, 0], render), self.noise())

    def mix(self) -> L.MixDraws | None:
        """Style mixing, if it is on."""
        probability, rows = self.config.loss.style_mixing_prob, self.config.generator.num_ws
        if not probability:
            return None
        cutoff = self._once(lambda k: jax.random.randint(k, (), 1, rows), 2)
        cutoff = jnp.where(self._once(jax.random.uniform, 3) < probability, cutoff, rows)
        return L.MixDraws(self._each(lambda k: jax.random.normal(k, (self.config.generator.z_dim,)), _MIX), cutoff)

    def told(self, c: jax.Array) -> jax.Array:
        """Labels with the discriminator's label noise, if it has any."""
        strength = self.config.discriminator.c_noise
        if not strength:
            return c
        mean = mean_over_devices(c.mean(0), self.axis_name)
        variance = mean_over_devices(jnp.square(c - mean).mean(0), self.axis_name)
        deviation = jnp.sqrt(variance * (self.total / max(self.total - 1, 1)))
        return c + self._each(lambda k: jax.random.normal(k, c.shape[1:]), _LABEL) * deviation * strength

    def generated(self) -> GeneratedDraws:
        """A batch of generated images."""
        c = self.cameras()
        return GeneratedDraws(self.codes(), c, self.pose(), self.synthesis(), self.mix(), self.told(c))

    def regular(self) -> RegularDraws:
        """A regularisation step of the generator."""
        rendering = self.config.generator.rendering
        density = path = None
        if rendering.density_reg > 0 and rendering.reg_type not in WITHOUT_EFFECT:
            density = self._density(rendering.reg_type != 'l1')
        every = self.config.loss.path_length_shrink
        if self.config.loss.path_length_weight > 0:
            size = self.config.generator.img_resolution
            direction = self._each(lambda k: jax.random.normal(k, (size, size, 3)), _PATH)
            path = jax.tree.map(lambda x: x[::every], (self.generated(), direction))
        return RegularDraws(self.codes(), self.cameras(), self.pose(0), self.pose(1), density, self.noise(), self.mix(), path)

    def _density(self, is_monotonic: bool) -> L.DensityDraws:
        def points(number, count):
            return self._each(lambda k: jax.random.uniform(jax.random.fold_in(k, number), (count, 3), minval=-1), _DENSITY)

        def steps(number):
            return self._each(lambda k: jax.random.normal(jax.random.fold_in(k, number), (L.NUM_POINTS, 3)), _DENSITY)

        if not is_monotonic:
            return L.DensityDraws(points(0, L.NUM_POINTS), steps(1))
        return L.DensityDraws(points(0, 2 * L.NUM_POINTS), None, L.DensityDraws(points(1, L.NUM_POINTS), steps(2)))
