"""What changes with the number of images shown: blur, pose swapping, raw resolution, averages, optimizer corrections.

Every function takes n, the real images shown before the current batch, as a Python number (double precision, on the
host) or as an array (inside a compiled step).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from avatar_jax.train.optimizers import OptimizerConfig

Number = float | jax.Array


def _namespace(n: Number):
    return jnp if isinstance(n, jax.Array) else np


def _share(n: Number, kimg: float) -> Number:
    """How much of a fade over ``kimg`` thousand images is done, in [0, 1]; 1 when there is no fade."""
    xp = _namespace(n)
    return xp.minimum(n / (kimg * 1000), 1) if kimg > 0 else 1.0


def blur_sigma(n: Number, init_sigma: float, fade_kimg: float) -> Number:
    """Standard deviation (in half-value widths, see ``losses.blur_taps``) of the blur before the discriminator."""
    if fade_kimg <= 0 or init_sigma <= 0:
        return 0.0
    return _namespace(n).maximum(1 - n / (fade_kimg * 1000), 0) * init_sigma


def swap_probability(n: Number, gpc_reg_prob: float | None, fade_kimg: float) -> Number | None:
    """How often the mapping network gets another sample's camera: 1 at the start, ``gpc_reg_prob`` after the fade.

    None (the mapping gets zeros) without a probability.
    """
    if gpc_reg_prob is None:
        return None
    share = _share(n, fade_kimg)
    return (1 - share) + share * gpc_reg_prob


def raw_resolution(n: int, initial: int, final: int | None, fade_kimg: float, multiple: int = 1) -> int:
    """Side of the volume-rendered image, on the host (it decides shapes).

    Args:
        initial, final: sides before and after the fade; ``final`` None means ``initial`` for ever.
        multiple: rounds to multiples of it, down, so that a run compiles fewer programs; 1 as in the original.
    """
    if final is None:
        return initial
    share = _share(n, fade_kimg)
    size = int(np.rint(initial * (1 - share) + final * share))
    return size if multiple == 1 or size in (initial, final) else max(size // multiple * multiple, min(initial, final))


def ema_decay(n: Number, batch: int, ema_kimg: float, rampup: float | None) -> Number:
    """Decay of the generator's average for one batch: half of it is forgotten in ``ema_kimg`` thousand images.

    ``rampup``: in at most that share of the images shown so far; None from the start in ``ema_kimg``.
    """
    xp, images = _namespace(n), ema_kimg * 1000
    if rampup is not None:
        images = xp.minimum(images, n * rampup)
    return 0.5 ** (batch / xp.maximum(images, 1e-8))


def lazy_optimizer(config: OptimizerConfig, interval: int) -> OptimizerConfig:
    """Corrects an optimizer that also takes one regularisation step in ``interval``: k/(k+1) of rate and exponents."""
    if interval < 1:
        return config
    ratio = interval / (interval + 1)
    return OptimizerConfig(
        type=config.type,
        lr=config.lr * ratio,
        beta1=config.beta1**ratio,
        beta2=config.beta2**ratio,
        eps=config.eps,
        weight_decay=config.weight_decay,
        momentum=config.momentum,
    )
