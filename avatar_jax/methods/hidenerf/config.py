"""Everything that can be chosen about HiDe-NeRF, and its presets.

The paper gives the structure; widths, sizes and weights of losses are this project's (reference sections 3 to 6), as no
code or table of layers was published. ``ABLATIONS`` has the rows of the paper's Table 5.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from avatar_jax.checks import Check
from avatar_jax.configure import from_plain, replaced, to_plain
from avatar_jax.driving.bases import BASES, BFM, PROCEDURAL
from avatar_jax.faces.conventions import Conventions
from avatar_jax.methods.eg3d.augment import AdaConfig
from avatar_jax.methods.eg3d.config import DiscriminatorConfig
from avatar_jax.methods.hidenerf.parts import (
    PYRAMID,
    AppearanceConfig,
    DeformationConfig,
    LossConfig,
    RefineConfig,
    TrainConfig,
    VolumeConfig,
)
from avatar_jax.render.rasterizer import SeccConfig
from avatar_jax.train.optimizers import OptimizerConfig

METHOD = 'hidenerf'
BACKGROUNDS = {'black': -1.0, 'white': 1.0}


@dataclass(frozen=True)
class ModelConfig:
    """All options of the method.

    Attributes:
        image_size: of source and result. raw_size: of the volume-rendered picture.
        background: what is behind the head in all pictures, 'black' (paper) or 'white'.
        basis: of the coefficients that drive it, which also names the head model that draws the codes.
        shape: whose head the codes show: the person's 'own' fitted shape, or the 'mean' one for everybody, so that a
            portrait needs no fit.
        label_mode: how camera labels of photographs are normalised (``faces.camera_labels.MODES``).
        secc: how codes are drawn; their size is ``raw_size`` times 1, 2 or 4.
        raw_discriminator, discriminator: of raw and final pictures, both told the driver's camera.
        augment: of what the discriminators see (ADA); off in the paper's sizes of data.
    """

    image_size: int = 256
    raw_size: int = 64
    background: str = 'black'
    basis: str = BFM
    shape: str = 'own'
    label_mode: str = 'raw'
    appearance: AppearanceConfig = field(default_factory=AppearanceConfig)
    deformation: DeformationConfig = field(default_factory=DeformationConfig)
    volume: VolumeConfig = field(default_factory=VolumeConfig)
    refine: RefineConfig = field(default_factory=RefineConfig)
    secc: SeccConfig = field(default_factory=lambda: SeccConfig(signed=True))
    raw_discriminator: DiscriminatorConfig = field(default_factory=lambda: _judge())
    discriminator: DiscriminatorConfig = field(default_factory=lambda: _judge())
    augment: AdaConfig = field(default_factory=AdaConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    train: TrainConfig = field(default_factory=TrainConfig)

    def __post_init__(self):
        check = Check(self)
        check.one_of('background', *BACKGROUNDS)
        check.one_of('basis', *BASES)
        check.one_of('shape', 'own', 'mean')
        check.at_least(1, 'image_size', 'secc.size')
        size, raw, smallest = self.image_size, self.raw_size, self.raw_size // 4
        steps = size // max(raw, 1)
        check.need(
            raw >= 8 and raw % 4 == 0 and raw * steps == size and steps & (steps - 1) == 0,
            'raw_size',
            f'must be a multiple of 4 from 8 on, and image_size ({size}) 1, 2, 4, ... times it',
        )
        picture = self.appearance.picture
        check.need(
            picture is None or 0 < picture <= size, 'appearance.picture', f'must be from 1 to image_size ({size})'
        )
        extractor, seen = len(self.appearance.widths) - 1, self.appearance_size
        check.need(0 < seen <= size, 'appearance.size', f'must be from 1 to image_size ({size})')
        check.need(
            seen % 2**extractor == 0,
            'appearance.widths' if seen == size else 'appearance.size',
            f'a picture of {seen} cannot be halved {extractor} times',
        )
        levels = (size // smallest).bit_length()
        for name in ('identity', 'decoder'):
            check.need(
                len(getattr(self.refine, name)) == levels,
                f'refine.{name}',
                f'give {levels} numbers, for the sizes from {smallest} to {size}',
            )
        factor = self.secc.size // raw
        check.need(
            self.secc.size == factor * raw and factor in (1, 2, 4),
            'secc.size',
            f'must be 1, 2 or 4 times raw_size ({raw})',
        )
        check.need(self.secc.sampling == 'centre', 'secc.sampling', "only 'centre' can be compiled")
        check.need(self.secc.signed, 'secc.signed', 'the networks take codes in [-1, 1]; set it to True')
        check.need(
            self.secc.background == 0, 'secc.background', 'must be 0, by which flipped codes know it; leave it out'
        )
        check.need(
            self.train.flip_both == 0 or self.secc.centre == 112,
            'secc.centre',
            'must be 112, the middle of the picture, where drivers are flipped; or set train.flip_both to 0',
        )
        check.need(
            self.train.codes == 'device' or not self.deformation.pose_coupled,
            'train.codes',
            "must be 'device' for pose-coupled codes, which depend on flipped cameras",
        )
        check.need(
            not self.adversarial or self.train.gan_from >= self.train.refine_from,
            'train.gan_from',
            f'must not be before train.refine_from ({self.train.refine_from}), as final pictures are judged',
        )
        for name in ('raw_discriminator', 'discriminator'):
            check.need(getattr(self, name).kind == 'single', f'{name}.kind', "it judges one picture; use 'single'")

    @property
    def img_resolution(self) -> int:
        """Side of the final picture."""
        return self.image_size

    @property
    def conventions(self) -> Conventions:
        """What the pictures and cameras that the weights know are like."""
        shape = 80 if self.shape == 'own' and self.basis in (BFM, PROCEDURAL) else 0
        return Conventions(self.basis, self.label_mode, self.background, shape=shape)

    @property
    def fill(self) -> float:
        """The background's value in [-1, 1]."""
        return BACKGROUNDS[self.background]

    @property
    def appearance_size(self) -> int:
        """Side of the picture that planes are computed from, and of the finest of them."""
        return self.image_size if self.appearance.size is None else self.appearance.size

    @property
    def features(self) -> int:
        """Channels of a point's features, over all levels."""
        return PYRAMID * self.appearance.channels

    @property
    def encoding(self) -> int:
        """Numbers of the positional encoding."""
        return 6 * self.volume.octaves

    @property
    def point_inputs(self) -> int:
        """What the point network is told of a point: features, position and, last, the source picture's colour."""
        return self.features + self.encoding + (3 if self.appearance.picture else 0)

    @property
    def identity_sizes(self) -> tuple[int, ...]:
        """Sides of the identity features, largest first."""
        return tuple(self.image_size // 2**k for k in range(len(self.refine.identity)))

    @property
    def adversarial(self) -> bool:
        """Whether there are discriminators."""
        return self.loss.adversarial > 0

    @classmethod
    def paper(cls, **overrides: Any) -> ModelConfig:
        """The reference's full size; dotted paths of overrides have ``__`` for the dot."""
        return cls().replace(**overrides)

    @classmethod
    def heads(cls, **overrides: Any) -> ModelConfig:
        """Small, for procedural heads of 128 pixels on a CPU, before white as their pictures are."""
        return cls().replace(**_HEADS).replace(**overrides)

    @classmethod
    def tiny(cls, **overrides: Any) -> ModelConfig:
        """For tests: some tens of thousands of parameters, every part present."""
        return cls().replace(**_HEADS).replace(**_TINY).replace(**overrides)

    def replace(self, **overrides: Any) -> ModelConfig:
        """A copy with some options changed; ``volume__samples=24`` sets ``volume.samples``. Raises ``UserError``."""
        return replaced(self, overrides)

    def ablation(self, name: str) -> ModelConfig:
        """A copy with one row of Table 5; ``name`` of ``ABLATIONS``."""
        Check.values(ablation=name).one_of('ablation', *ABLATIONS)
        return self.replace(**ABLATIONS[name])

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ModelConfig:
        """The inverse of ``to_dict``. Raises ``UserError`` for unknown keys and wrong values."""
        return from_plain(cls, values)

    def to_dict(self) -> dict[str, Any]:
        """Plain nested values, as weight files and checkpoints store them."""
        return to_plain(self)


def _judge() -> DiscriminatorConfig:
    return DiscriminatorConfig(kind='single', conv_clamp=None)


# Rows of the paper's Table 5, and planes as equation 1 has them to the letter.
ABLATIONS: dict[str, dict[str, Any]] = {
    'full': {},
    'no_multi_scale': {'appearance__single_scale': True},
    'no_camera_to_world': {'appearance__transform': 'none'},
    'no_secc': {'deformation__pose_coupled': True, 'train__codes': 'device'},
    'plane_warp': {'appearance__transform': 'plane_warp'},
}

_HEADS: dict[str, Any] = {
    'image_size': 128,
    'raw_size': 32,
    'background': 'white',
    'basis': PROCEDURAL,
    'shape': 'mean',
    'appearance__widths': (16, 32, 64, 96, 128),
    'appearance__size': 64,  # rays are 32 x 32: finer planes would cost most of a step and show nothing more
    'appearance__residual': 1,
    'appearance__channels': 12,
    'appearance__extent': 0.8,
    'deformation__expression': (16, 32, 32),
    'deformation__position': (32, 32),
    'deformation__decoder': (40, 64),
    'deformation__residual': 1,
    'volume__samples': 16,
    'volume__near': 2.4,
    'volume__far': 3.12,
    'volume__hidden': 48,
    'volume__channels': 12,
    'refine__identity': (8, 16, 24, 32, 32),
    'refine__encoder': (32, 40, 48),
    'refine__decoder': (48, 40, 32, 16, 8),
    'refine__residual': 1,
    'refine__hidden': 8,
    'refine__inject': 'to_raw',
    'secc__size': 128,
    'loss__network': 'pyramid',
    'loss__adversarial': 0.0,
    'loss__deformation': 0.02,
    'loss__opacity': 0.5,
    'loss__focus': 1.0,
    'loss__depth': 0.5,
    'train__batch_size': 4,
    'train__iterations': 8_000,
    'train__refine_from': 2_500,
    'train__flip_source': 0.0,  # light and hair have sides, and a flipped source alone is told of it by nothing
    'train__codes': 'host',
    'train__generator': OptimizerConfig('adam', 1.5e-3, 0.9, 0.99),
    'train__milestones': (5_000, 6_800, 7_600),
    'train__ema': 0.998,
}

# Changes to ``ModelConfig.heads`` for a last training with four times the rays: what is small, eyes above all, is seen.
FINE: dict[str, Any] = {
    'raw_size': 64,
    'refine__identity': (8, 16, 24, 32),
    'refine__decoder': (48, 40, 32, 16),
    'train__iterations': 1_700,
    'train__refine_from': 0,
    'train__milestones': (1_000, 1_350, 1_550),
}

# Changes to ``ModelConfig.heads`` for comparing variants within minutes: pictures of 32 pixels.
SMALL: dict[str, Any] = {
    'image_size': 32,
    'raw_size': 16,
    'appearance__widths': (12, 16, 24, 32),
    'appearance__size': None,
    'appearance__residual': 0,
    'deformation__expression': (8, 16, 16),
    'deformation__position': (24, 16),
    'deformation__decoder': (24, 32),
    'deformation__residual': 0,
    'volume__samples': 16,
    'volume__octaves': 4,
    'volume__hidden': 32,
    'volume__channels': 3,
    'refine__identity': (8, 12, 16, 16),
    'refine__encoder': (16, 16, 16),
    'refine__decoder': (16, 16, 16, 12),
    'refine__residual': 0,
    'refine__hidden': 8,
    'refine__inject': 'all',
    'secc__size': 64,
    'loss__deformation': 0.1,
    'train__batch_size': 8,
    'train__iterations': 1_500,
    'train__refine_from': 0,
    'train__flip_source': 0.5,
    'train__codes': 'device',
    'train__generator': OptimizerConfig('adam', 2e-3, 0.9, 0.99),
    'train__milestones': (1_000, 1_300),
    'train__ema': 0.99,
}

_TINY: dict[str, Any] = {
    'image_size': 16,
    'raw_size': 8,
    'appearance__widths': (8, 8, 8, 8),
    'appearance__size': None,
    'appearance__channels': 4,
    'deformation__expression': (4, 8, 8),
    'deformation__position': (8, 8),
    'deformation__decoder': (8, 8),
    'volume__samples': 4,
    'volume__near': 2.25,
    'volume__far': 3.3,
    'volume__octaves': 2,
    'volume__hidden': 8,
    'volume__channels': 3,
    'refine__identity': (4, 8, 8, 8),
    'refine__encoder': (8, 8, 8),
    'refine__decoder': (8, 8, 8, 4),
    'refine__hidden': 4,
    'refine__inject': 'all',
    'secc__size': 32,
    'loss__depth': 0.0,
    'loss__deformation': 0.1,
    'train__batch_size': 2,
    'train__iterations': 4,
    'train__refine_from': 0,
    'train__flip_source': 0.5,
    'train__codes': 'device',
    'train__gan_from': 1,
    'train__r1_every': 2,
    'train__milestones': (3,),
    'train__ema': 0.9,
}
_TINY |= {
    f'{name}__{key}': value
    for name in ('raw_discriminator', 'discriminator')
    for key, value in {'channel_base': 64, 'channel_max': 8, 'mapping_layers': 2, 'mbstd_group_size': 2}.items()
}

PRESETS = ('paper', 'heads', 'tiny')


def preset(name: str, **overrides: Any) -> ModelConfig:
    """The preset of that name: 'paper', 'heads' or 'tiny'."""
    Check.values(preset=name).one_of('preset', *PRESETS)
    return getattr(ModelConfig, name)(**overrides)
