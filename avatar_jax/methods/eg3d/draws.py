"""The random numbers of an iteration, each a function of (seed, step, phase, place of the sample in the global batch).

So a batch is trained on with the same numbers however it is divided among devices and micro-batches. Everything that
the original draws once per batch (the swap in the regularisation, the cutoff of style mixing) is repeated per sample.
All numbers of one kind are drawn at once: XLA takes far longer to compile many small draws than one large one.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp

from avatar_jax.methods.eg3d import losses as L
from avatar_jax.methods.eg3d.config import WITHOUT_EFFECT, RunConfig
from avatar_jax.methods.eg3d.phases import GeneratedDraws, RegularDraws
from avatar_jax.parallel import mean_over_devices, num_shards, sample_keys
from avatar_jax.render.sampling import RenderDraws

_CAMERA, _UNIFORM, _NORMAL, _TOGETHER = range(4)  # streams
Shapes = dict[str, tuple[int, ...]]


class Dice:
    """Draws for ``count`` samples of this device's share.

    Args:
        key: of this step and phase. labels: [M, 25], all cameras of the data set. noise_size: see ``losses``.
    """

    def __init__(
        self,
        config: RunConfig,
        resolution: int,
        key: jax.Array,
        labels: jax.Array,
        count: int,
        noise_size: int,
        axis_name: str | None,
    ):
        self.config, self.resolution, self.labels, self.count, self.axis_name = (
            config,
            resolution,
            labels,
            count,
            axis_name,
        )
        self.total, self.noise_size = count * num_shards(axis_name), noise_size
        self.key, self.keys = key, sample_keys(key, count, axis_name)
        self.c, self.other = self._cameras()

    def _cameras(self) -> tuple[jax.Array, jax.Array]:
        """Cameras [N, 25], uniformly from the data set, and those of the samples before in the global batch."""
        first = 0 if self.axis_name is None else jax.lax.axis_index(self.axis_name) * self.count
        place = (first - 1 + jnp.arange(self.count + 1)) % self.total
        key = jax.random.fold_in(self.key, 2**31 - 1)
        rows = jax.vmap(lambda i: jax.random.randint(jax.random.fold_in(key, i), (), 0, self.labels.shape[0]))(place)
        found = self.labels[rows]
        return found[1:], found[:-1]

    def _blocks(self, draw, stream: int, shapes: Shapes) -> dict[str, jax.Array]:
        """Numbers of one kind: {name: [N, *shape]}."""
        sizes = {name: math.prod(shape) for name, shape in shapes.items()}
        numbers = jax.vmap(lambda k: draw(jax.random.fold_in(k, stream), (sum(sizes.values()),)))(self.keys)
        out, start = {}, 0
        for name, shape in shapes.items():
            out[name] = numbers[:, start : start + sizes[name]].reshape(self.count, *shape)
            start += sizes[name]
        return out

    def _together(self) -> jax.Array:
        """Four uniforms that the whole batch shares, repeated for every sample: [4, N]."""
        numbers = jax.random.uniform(jax.random.fold_in(self.key, 2**31 - 2), (4,))
        return jnp.broadcast_to(numbers[:, None], (4, self.count))

    def _mix(self, z: jax.Array | None) -> L.MixDraws | None:
        probability, rows = self.config.loss.style_mixing_prob, self.config.generator.num_ws
        if not probability:
            return None
        chance, place = self._together()[2:]
        cutoff = 1 + jnp.floor(place * (rows - 1)).astype(jnp.int32)
        return L.MixDraws(z, jnp.where(chance < probability, cutoff, rows))

    def _mix_shape(self) -> Shapes:
        return {'mix': (self.config.generator.z_dim,)} if self.config.loss.style_mixing_prob else {}

    def told(self, c: jax.Array, normals: jax.Array | None = None) -> jax.Array:
        """Labels with the discriminator's label noise, if it has any; ``normals`` [N, 25]: its draws."""
        strength = self.config.discriminator.c_noise
        if not strength:
            return c
        if normals is None:
            normals = self._blocks(jax.random.normal, _TOGETHER, {'label': (25,)})['label']
        mean = mean_over_devices(c.mean(0), self.axis_name)
        variance = mean_over_devices(jnp.square(c - mean).mean(0), self.axis_name)
        return c + normals * jnp.sqrt(variance * (self.total / max(self.total - 1, 1))) * strength

    def generated(self) -> GeneratedDraws:
        """A batch of generated images."""
        rendering, rays = self.config.generator.rendering, self.resolution**2
        coarse, fine = (rays, rendering.depth_resolution), (rays, rendering.depth_resolution_importance)
        uniform = self._blocks(jax.random.uniform, _UNIFORM, {'swap': (), 'jitter': coarse, 'importance': fine})
        noisy = {'density_coarse': coarse, 'density_fine': fine} if rendering.density_noise > 0 else {}
        label = {'label': (25,)} if self.config.discriminator.c_noise else {}
        shapes = {
            'z': (self.config.generator.z_dim,),
            'noise': (self.noise_size,),
            **self._mix_shape(),
            **noisy,
            **label,
        }
        normal = self._blocks(jax.random.normal, _NORMAL, shapes)
        render = RenderDraws(
            uniform['jitter'], uniform['importance'], *(normal.get(k) for k in ('density_coarse', 'density_fine'))
        )
        return GeneratedDraws(
            normal['z'],
            self.c,
            L.PoseDraws(uniform['swap'], self.other),
            L.SynthesisDraws(render, normal['noise']),
            self._mix(normal.get('mix')),
            self.told(self.c, normal.get('label')),
        )

    def regular(self) -> RegularDraws:
        """A regularisation step of the generator."""
        rendering, loss = self.config.generator.rendering, self.config.loss
        uniforms: Shapes = {}
        normals: Shapes = {'z': (self.config.generator.z_dim,), 'noise': (self.noise_size,), **self._mix_shape()}
        dense = rendering.density_reg > 0 and rendering.reg_type not in WITHOUT_EFFECT
        twofold = dense and rendering.reg_type != 'l1'
        if dense:
            uniforms |= {'points': (L.NUM_POINTS * (2 if twofold else 1), 3)}
            normals |= {'steps': (L.NUM_POINTS, 3)}
        if twofold:
            uniforms |= {'second': (L.NUM_POINTS, 3)}
        if loss.path_length_weight > 0:
            size = self.config.generator.img_resolution
            normals |= {'direction': (size, size, 3)}
        uniform = self._blocks(jax.random.uniform, _UNIFORM, uniforms) if uniforms else {}
        normal = self._blocks(jax.random.normal, _NORMAL, normals)
        density = path = None
        if twofold:
            second = L.DensityDraws(uniform['second'] * 2 - 1, normal['steps'])
            density = L.DensityDraws(uniform['points'] * 2 - 1, None, second)
        elif dense:
            density = L.DensityDraws(uniform['points'] * 2 - 1, normal['steps'])
        if loss.path_length_weight > 0:
            # Other codes than those of the density: of a key of their own.
            keys = self.keys
            self.keys = jax.vmap(lambda k: jax.random.fold_in(k, _TOGETHER))(keys)
            every = loss.path_length_shrink
            path = jax.tree.map(lambda x: x[::every], (self.generated(), normal['direction']))
            self.keys = keys
        swaps = self._together()[:2]
        return RegularDraws(
            normal['z'],
            self.c,
            L.PoseDraws(swaps[0], self.other),
            L.PoseDraws(swaps[1], self.other),
            density,
            normal['noise'],
            self._mix(normal.get('mix')),
            path,
        )
