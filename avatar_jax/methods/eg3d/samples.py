"""Sample sheets of a training run: fixed codes and cameras, seen by the averaged generator."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from avatar_jax.methods.eg3d.config import RunConfig
from avatar_jax.models.triplane import GeneratorConfig, TriPlaneGenerator
from avatar_jax.types import PyTree


@partial(jax.jit, static_argnames=('config', 'resolution'))
def render_fixed(
    variables: Mapping[str, PyTree], z: jax.Array, c: jax.Array, *, config: GeneratorConfig, resolution: int
) -> dict:
    """Images of codes z [N, z_dim] from cameras c [N, 25], without any randomness."""
    model = TriPlaneGenerator(config)
    condition = c if config.rendering.gpc_reg_prob is not None else jnp.zeros_like(c)
    ws = model.apply(variables, z, condition, method='mapping')
    return model.apply(variables, ws, c, resolution, 'const', method='synthesis')


def fixed_codes(config: RunConfig, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Codes [N, z_dim] and cameras [N, 25] of the sheet's N places; a function of the seed."""
    count = config.output.sample_columns * config.output.sample_rows
    rng = np.random.RandomState(config.seed % 2**32)
    z = rng.standard_normal((count, config.generator.z_dim)).astype(np.float32)
    return z, labels[rng.randint(0, len(labels), count)]


def sample_sheet(
    config: RunConfig, variables: Mapping[str, PyTree], labels: np.ndarray, real: np.ndarray, resolution: int
) -> np.ndarray:
    """uint8 [H, W, 3]: a row of real images, then for every row of codes: images, raw images, depth (near is bright).

    Args:
        variables: of the generator. labels: [M, 25], cameras to choose from. real: uint8 [N, R, R, 3].
        resolution: side of the raw image.
    """
    columns = config.output.sample_columns
    z, c = fixed_codes(config, labels)
    size = config.generator.img_resolution
    rows = [_row(np.resize(real, (columns, *real.shape[1:])).astype(np.float32) / 127.5 - 1, size)]
    for start in range(0, len(z), columns):
        part = slice(start, start + columns)
        out = render_fixed(variables, z[part], c[part], config=config.generator, resolution=resolution)
        out = {k: np.asarray(v) for k, v in out.items()}
        depth = -out['image_depth']
        low, high = depth.min((1, 2, 3), keepdims=True), depth.max((1, 2, 3), keepdims=True)
        depth = 2 * (depth - low) / np.maximum(high - low, 1e-6) - 1
        rows += [_row(out['image'], size), _row(out['image_raw'], size), _row(np.repeat(depth, 3, -1), size)]
    return np.concatenate(rows, 0)


def _row(images: np.ndarray, size: int) -> np.ndarray:
    """Images [N, h, h, 3] in [-1, 1] side by side, enlarged to ``size`` by repetition."""
    index = np.arange(size) * images.shape[1] // size
    images = np.nan_to_num(images)[:, index][:, :, index]
    return np.round((np.clip(np.concatenate(list(images), 1), -1, 1) + 1) * 127.5).astype(np.uint8)
