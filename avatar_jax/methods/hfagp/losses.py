"""The loss (paper section 3.3): mean squared error and a perceptual distance, at the size of the training pictures.

There is no adversarial term, no identity term, and no penalty on codes, densities or the basis.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from avatar_jax.errors import UserError
from avatar_jax.losses.perception import PerceptionBank
from avatar_jax.losses.pixel import pyramid_loss
from avatar_jax.methods.hfagp.config import LossConfig, ModelConfig
from avatar_jax.ops.resize import resize

Distance = Callable[[jax.Array, jax.Array], jax.Array]
"""(target, prediction), both [N, S, S, 3] in [-1, 1] -> a scalar, the mean over N."""


def supervised(image: jax.Array, size: int) -> jax.Array:
    """A generated picture [N, H, W, 3] averaged over areas to ``size`` (512 to 256: means of 2x2 pixels)."""
    return resize(image, size, 'area')


def network_of(config: LossConfig, bank: PerceptionBank | None) -> str:
    """What the perceptual term looks through: 'lpips', 'pyramid' or 'none'.

    Raises:
        UserError: LPIPS is asked for by name and its weights are not there.
    """
    there, name = bank is not None and bank.has('lpips_alex'), config.network
    if name == 'auto':
        name = 'lpips' if there else 'pyramid'
    if weight_of(config, name) == 0:
        return 'none'
    if name == 'lpips' and not there:
        raise UserError(
            "loss.network: 'lpips' needs the weights of alexnet and of lpips_alex; give their files, or use 'pyramid'"
        )
    return name


def weight_of(config: LossConfig, name: str) -> float:
    """Weight of the perceptual term that looks through ``name``."""
    return {'lpips': config.perceptual, 'pyramid': config.pyramid, 'none': 0.0}[name]


def report(config: LossConfig, bank: PerceptionBank | None) -> str:
    """What the perceptual term looks through, in words."""
    name = network_of(config, bank)
    if name == 'lpips':
        return bank.report()['lpips_alex']
    return {
        'pyramid': 'no network: multi-scale pixel and edge distance (pyramid), in the place of LPIPS',
        'none': 'off',
    }[name]


def networks(config: ModelConfig, bank: PerceptionBank) -> dict[str, str]:
    """What the loss of a model looks through, in words."""
    return {'perceptual': report(config.settings.loss, bank)}


def looks_through(config: ModelConfig, bank: PerceptionBank) -> tuple[str, ...]:
    """The networks of the bank that the loss uses."""
    return ('alexnet', 'lpips_alex') if network_of(config.settings.loss, bank) == 'lpips' else ()


def distance_of(config: LossConfig, bank: PerceptionBank | None) -> tuple[str, Distance | None]:
    """(name, function) of the perceptual term; the name is that of what is really computed. None for 'none'."""
    name = network_of(config, bank)
    if name == 'lpips':
        return name, lambda target, image: bank.lpips('alex', target, image).mean()
    if name == 'pyramid':
        return name, lambda target, image: pyramid_loss(image, target, config.pyramid_scales)
    return name, None


def terms(
    config: LossConfig, distance: tuple[str, Distance | None], target: jax.Array, image: jax.Array
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """The loss and its parts.

    Args:
        distance: from ``distance_of``.
        target: training pictures [N, S, S, 3] in [-1, 1], S = ``config.size``.
        image: generated pictures [N, H, W, 3], not clamped, H a multiple of S or not.

    Returns:
        ``mse + weight * distance``, and the unweighted parts by name (``mse``, and ``lpips`` or ``pyramid``).
    """
    name, function = distance
    shown = supervised(image, config.size)
    parts = {'mse': jnp.mean(jnp.square(target - shown))}
    total = parts['mse']
    if function is not None:
        parts[name] = function(target, shown)
        total = total + weight_of(config, name) * parts[name]
    return total, parts
