"""The e4e encoder: a picture to the style rows of a generator (Tov et al. 2021; its layout is pSp's).

An IR-SE-50 gives features at three sizes, a feature pyramid joins them, and one small convolutional head per style row
shrinks its map to a vector. In e4e the rows are offsets from a common first row: ``w_i = w_0 + delta_i``, and while
training begins, only the first deltas count (``stage``). pSp's heads are independent.

Names are the published keys: ``input_layer``, ``body``, ``latlayer1``, ``latlayer2``, ``styles``.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from avatar_jax.checks import Check
from avatar_jax.errors import UserError
from avatar_jax.models import host_draws
from avatar_jax.models.layers import FullyConnected
from avatar_jax.models.perception.arcface import IRBody, IRStem
from avatar_jax.models.perception.layers import Conv, Linear
from avatar_jax.ops.resize import match_size, resize
from avatar_jax.parallel import as_arrays

SLOPE = 0.01  # of the heads' leaky ReLU


@dataclass(frozen=True)
class EncoderConfig:
    """Sizes of an encoder.

    Attributes:
        image_size: side of the pictures, a power of two of at least 16.
        num_ws, w_dim: style rows and their length.
        stem: channels before the units. widths, units: of the four stages of the backbone.
        reduction: of the squeeze-excitation.
        coarse, middle: rows before ``coarse`` are read from the smallest map, those before ``middle`` from the next,
            the others from the largest.
        shared: rows are offsets from the first one (e4e), or independent (pSp).
        head_width: channels inside the heads; None: ``w_dim``, as published.
        first: weights that the heads' convolutions start from: 'torch' (uniform by fan-in, as published) or 'he', which
            keeps the size of what passes through them, so that an encoder learns sooner from nothing.
    """

    image_size: int = 256
    num_ws: int = 14
    w_dim: int = 512
    stem: int = 64
    widths: tuple[int, int, int, int] = (64, 128, 256, 512)
    units: tuple[int, int, int, int] = (3, 4, 14, 3)
    reduction: int = 16
    coarse: int = 3
    middle: int = 7
    shared: bool = True
    head_width: int | None = None
    first: str = 'torch'

    def __post_init__(self):
        for name in ('widths', 'units'):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        check = Check(self, 'encoder')
        check.length(4, 'widths', 'units')
        check.at_least(1, 'widths', 'units', 'num_ws', 'head_width')
        check.power_of_two(16, 'image_size')
        check.at_least(0, 'coarse')
        check.one_of('first', 'torch', 'he')
        check.need(self.middle >= self.coarse, 'middle', f'must not be less than coarse ({self.coarse})')
        check.within(1, min(self.widths), 'reduction')

    def level(self, row: int) -> int:
        """Which map a head reads: 0 the smallest, 1, or 2 the largest."""
        return 0 if row < self.coarse else 1 if row < self.middle else 2

    def depth(self, row: int) -> int:
        """Convolutions of a head: they shrink its map to one pixel."""
        return (self.image_size // (16, 8, 4)[self.level(row)]).bit_length() - 1


class _Convs(nn.Module):
    """Convolutions of stride 2 with leaky ReLUs, under even numbers."""

    inputs: int
    features: int
    count: int

    @nn.compact
    def __call__(self, x):
        for i in range(self.count):
            inputs = self.inputs if i == 0 else self.features
            x = Conv(inputs, self.features, 3, 2, 1, use_bias=True, name=str(2 * i))(x)
            x = jnp.where(x >= 0, x, SLOPE * x)
        return x


class _Head(nn.Module):
    inputs: int
    width: int
    features: int
    count: int

    @nn.compact
    def __call__(self, x):
        x = _Convs(self.inputs, self.width, self.count, name='convs')(x)
        return FullyConnected(self.features, name='linear')(x[:, 0, 0])


class _Heads(nn.Module):
    config: EncoderConfig

    @nn.compact
    def __call__(self, maps, wanted: int):
        """The rows 0 .. wanted - 1, each [N,w_dim]."""
        c = self.config
        return [
            _Head(c.widths[3], c.head_width or c.w_dim, c.w_dim, c.depth(j), name=str(j))(maps[c.level(j)])
            for j in range(c.num_ws if self.is_initializing() else wanted)
        ]


class E4eEncoder(nn.Module):
    """The whole network: 209,450,688 parameters with 14 rows at full size."""

    config: EncoderConfig

    def setup(self):
        c = self.config
        self.input_layer = IRStem(c.stem)
        self.body = IRBody(True, tuple(zip(c.widths, c.units, strict=True)), c.stem, c.reduction)
        self.latlayer1 = Conv(c.widths[2], c.widths[3], 1, padding=0, use_bias=True)
        self.latlayer2 = Conv(c.widths[1], c.widths[3], 1, padding=0, use_bias=True)
        self.styles = _Heads(c)

    def pyramid(self, x: jax.Array, train: bool = False, axis_name: str | None = None) -> dict[str, jax.Array]:
        """Features ``c1``, ``c2``, ``c3`` of the backbone (a quarter, an eighth, a sixteenth of the size) and the
        joined maps ``p2`` and ``p1``.
        """
        size = self.config.image_size
        if x.shape[1:] != (size, size, 3):
            raise UserError(
                f'encoder: the picture is {x.shape[1]}x{x.shape[2]} with {x.shape[3]} channels, but {size}x{size} '
                f'with 3 is needed; resize it first (encoder_input)'
            )
        _, c1, c2, c3 = self.body(self.input_layer(x, train, axis_name), train, axis_name)
        p2 = _enlarged(c3, c2) + self.latlayer1(c2)
        p1 = _enlarged(p2, c1) + self.latlayer2(c1)
        return {'c1': c1, 'c2': c2, 'c3': c3, 'p2': p2, 'p1': p1}

    def __call__(
        self,
        x: jax.Array,
        stage: int | jax.Array | None = None,
        train: bool = False,
        axis_name: str | None = None,
    ) -> jax.Array:
        """Pictures [N,S,S,3] in [-1,1] -> style rows [N,num_ws,w_dim] **relative to the mean code**.

        Args:
            stage: number of the last delta that counts; the rows behind it equal the first. None: all count. A traced
                number computes all heads. Only for e4e (``shared``).
            train: batch norm by the batch, over all devices along ``axis_name``; the statistics move if
                ``batch_stats`` is mutable.
        """
        c = self.config
        if stage is not None and not c.shared:
            raise ValueError('encoder stages are for shared rows (e4e); pSp has none')
        maps = self.pyramid(x, train, axis_name)
        static = c.num_ws - 1 if stage is None else stage if isinstance(stage, int) else None
        wanted = c.num_ws if static is None else min(static + 1, c.num_ws)
        rows = self.styles((maps['c3'], maps['p2'], maps['p1']), wanted)[:wanted]
        if not c.shared:
            return jnp.stack(rows, 1)
        first, deltas = rows[0], rows[1:]
        if static is None:
            deltas = [jnp.where(i <= stage, d, 0) for i, d in enumerate(deltas, 1)]
        ws = [first, *(first + d for d in deltas)]
        return jnp.stack(ws + [first] * (c.num_ws - len(ws)), 1)


def _enlarged(x: jax.Array, like: jax.Array) -> jax.Array:
    """Bilinear with the corners' centres on each other: the only place of the model with that convention."""
    return resize(x, like.shape[1:3], align_corners=True)


def encoder_input(image: jax.Array, size: int = 256) -> jax.Array:
    """Square pictures [N,S,S,3] averaged over areas to the encoder's size (512 to 256: means of 2x2 pixels)."""
    if image.shape[1] != image.shape[2] or image.shape[1] < size:
        raise UserError(
            f'encoder: the picture is {image.shape[1]}x{image.shape[2]}; give a square one of at least {size} pixels'
        )
    return match_size(image, size)


class _Mlp(nn.Module):
    width: int

    @nn.compact
    def __call__(self, x):
        for i in (0, 2, 4):
            x = Linear(self.width, self.width, name=str(i))(x)
            x = jnp.where(x >= 0, x, 0.2 * x)
        return Linear(self.width, 1, name='6')(x)


class LatentDiscriminator(nn.Module):
    """Tells codes of the mapping network from those of an encoder: [..., w_dim] -> logits [..., 1]."""

    w_dim: int = 512

    @nn.compact
    def __call__(self, code: jax.Array) -> jax.Array:
        return _Mlp(self.w_dim, name='mlp')(code)


@functools.lru_cache(maxsize=8)
def abstract_encoder(config: EncoderConfig) -> dict[str, Any]:
    """Names and shapes of the variables; do not change what it returns."""
    image = jax.ShapeDtypeStruct((1, config.image_size, config.image_size, 3), jnp.float32)
    return jax.eval_shape(lambda x: E4eEncoder(config).init(jax.random.key(0), x), image)


def init_encoder(config: EncoderConfig, key: jax.Array) -> dict[str, Any]:
    """Fresh variables {'params', 'batch_stats'}, without running the network.

    The backbone has He's first weights, the heads PyTorch's (uniform by fan-in) and unit normal linear weights, as
    where a pre-trained backbone is to be put in (``e4e_files.with_backbone``).
    """
    paths, structure = jax.tree_util.tree_flatten_with_path(abstract_encoder(config))
    keys, leaves = host_draws.split(key, len(paths)), []
    norms = {tuple(k.key for k in path[1:-1]) for path, _ in paths if path[0].key == 'batch_stats'}
    for (path, leaf), own in zip(paths, keys, strict=True):
        names = [k.key for k in path]
        if names[-1] != 'weight':
            leaves.append(np.full(leaf.shape, float(names[-1] == 'running_var'), np.float32))
        elif len(leaf.shape) == 1:
            leaves.append(np.full(leaf.shape, 1.0 if tuple(names[1:-1]) in norms else 0.25, np.float32))
        elif names[-2] == 'linear':
            leaves.append(host_draws.normal(own, leaf.shape))
        else:
            fan_in = leaf.shape[0] * leaf.shape[1] * leaf.shape[2]
            backbone = names[1] in ('input_layer', 'body')
            draw = host_draws.normal if backbone else host_draws.uniform
            wide = 6 if config.first == 'he' and names[1] == 'styles' else 1
            leaves.append(draw(own, leaf.shape, (2 / fan_in) ** 0.5 if backbone else (wide / fan_in) ** 0.5))
    return jax.tree.unflatten(structure, as_arrays(leaves))


def progressive_stage(step: int | jax.Array, start: int = 20_000, every: int = 2_000, num_ws: int = 14):
    """Last delta that counts at a training step: 0 before ``start``, then one more every ``every`` steps.

    Stage i begins at ``start + (i - 1) * every``. Returns an int for an int, else a traced one.
    """
    if isinstance(step, int):
        return 0 if step < start else min((step - start) // every + 1, num_ws - 1)
    return jnp.where(step < start, 0, jnp.minimum((step - start) // every + 1, num_ws - 1))
