"""The whole augmentation pipe (Karras et al. 2020, "Training generative adversarial networks with limited data")."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import jax
import jax.numpy as jnp

from avatar_jax.checks import Check
from avatar_jax.errors import UserError
from avatar_jax.methods.eg3d.augment.color import color_matrix, recolor
from avatar_jax.methods.eg3d.augment.corrupt import NUM_BANDS, add_noise, band_gains, cut_out, filter_bands
from avatar_jax.methods.eg3d.augment.draws import Draws
from avatar_jax.methods.eg3d.augment.geometry import inverse_map, warp


@dataclass(frozen=True)
class AugmentConfig:
    """Strength of each transform (its probability is strength * p; 0 switches it off) and its range.

    Attributes:
        xflip, rotate90, xint: mirror; quarter turns; shifts by whole pixels, up to ``xint_max`` of the size.
        scale, rotate, aniso, xfrac: isotropic scale 2^(scale_std n); turns up to ``rotate_max`` of a half turn; stretch
            2^(aniso_std n); shifts by ``xfrac_std`` n of the size.
        brightness, contrast, lumaflip, hue, saturation: of colours in [-1, 1].
        imgfilter: gains 2^(imgfilter_std n) of four frequency bands (``imgfilter_bands``: strength of each, lowest
            first).
        noise, cutout: additive noise of standard deviation ``noise_std`` |n|; a black square of ``cutout_size``.
    """

    xflip: float = 0.0
    rotate90: float = 0.0
    xint: float = 0.0
    xint_max: float = 0.125
    scale: float = 0.0
    rotate: float = 0.0
    aniso: float = 0.0
    xfrac: float = 0.0
    scale_std: float = 0.2
    rotate_max: float = 1.0
    aniso_std: float = 0.2
    xfrac_std: float = 0.125
    brightness: float = 0.0
    contrast: float = 0.0
    lumaflip: float = 0.0
    hue: float = 0.0
    saturation: float = 0.0
    brightness_std: float = 0.2
    contrast_std: float = 0.5
    hue_max: float = 1.0
    saturation_std: float = 1.0
    imgfilter: float = 0.0
    imgfilter_bands: tuple[float, ...] = (1.0, 1.0, 1.0, 1.0)
    imgfilter_std: float = 1.0
    noise: float = 0.0
    cutout: float = 0.0
    noise_std: float = 0.1
    cutout_size: float = 0.5

    def __post_init__(self):
        object.__setattr__(self, 'imgfilter_bands', tuple(float(x) for x in self.imgfilter_bands))
        check = Check(self, 'augment')
        check.need(len(self.imgfilter_bands) == NUM_BANDS, 'imgfilter_bands', f'give {NUM_BANDS}, one for each band')
        check.at_least(0, *(f.name for f in dataclasses.fields(self) if f.name != 'imgfilter_bands'))

    @classmethod
    def preset(cls, name: str) -> AugmentConfig:
        """'blit', 'geom', 'color', 'filter', 'noise', 'cutout' or a set of them: 'bg', 'bgc' (EG3D's), 'bgcf', ..."""
        if name not in PRESETS:
            raise UserError(f'augment: {name!r} is no set of transforms; use one of {", ".join(PRESETS)}')
        return cls(**{transform: 1.0 for part in PRESETS[name] for transform in _PARTS[part]})


_PARTS = {
    'blit': ('xflip', 'rotate90', 'xint'),
    'geom': ('scale', 'rotate', 'aniso', 'xfrac'),
    'color': ('brightness', 'contrast', 'lumaflip', 'hue', 'saturation'),
    'filter': ('imgfilter',),
    'noise': ('noise',),
    'cutout': ('cutout',),
}
PRESETS = {name: (name,) for name in _PARTS} | {
    'bg': ('blit', 'geom'),
    'bgc': ('blit', 'geom', 'color'),
    'bgcf': ('blit', 'geom', 'color', 'filter'),
    'bgcfn': ('blit', 'geom', 'color', 'filter', 'noise'),
    'bgcfnc': ('blit', 'geom', 'color', 'filter', 'noise', 'cutout'),
}


def augment(
    config: AugmentConfig, images: jax.Array, p: jax.Array | float, draws: Draws, shared_margins: bool = False
) -> jax.Array:
    """Transforms each image at random, differentiably.

    Args:
        config: which transforms, how strong.
        images: [N, H, W, 3k] in [-1, 1]; all channels of a sample move together, every RGB triple is recoloured alike.
        p: overall probability.
        draws: the random numbers.
        shared_margins: see ``geometry.margins``.

    Returns:
        [N, H, W, 3k]. Cameras are not changed.
    """
    count, height, width, _ = images.shape
    p = jnp.asarray(p, jnp.float32)
    inverse = inverse_map(config, p, draws, count, (height, width))
    if inverse is not None:
        images = warp(images, inverse, shared_margins)
    matrix = color_matrix(config, p, draws, count)
    if matrix is not None:
        images = recolor(images, matrix)
    if config.imgfilter > 0:
        images = filter_bands(images, band_gains(config, p, draws, count))
    if config.noise > 0:
        images = add_noise(images, config, p, draws)
    if config.cutout > 0:
        images = cut_out(images, config, p, draws)
    return images
