"""Everything that can be chosen about HiDe-NeRF, and its presets.

The paper gives the structure; widths, sizes and weights of losses are this project's (reference sections 3 to 6), as no
code or table of layers was published. ``ABLATIONS`` has the rows of the paper's Table 5.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from avatar_jax.checks import Check
from avatar_jax.configure import from_plain, to_plain, updated
from avatar_jax.driving.bases import BASES, BFM, PROCEDURAL
from avatar_jax.faces.conventions import Conventions
from avatar_jax.methods.eg3d.augment import AdaConfig
from avatar_jax.methods.eg3d.config import DiscriminatorConfig
from avatar_jax.methods.hidenerf.cameras import TRANSFORMS
from avatar_jax.render.rasterizer import SeccConfig
from avatar_jax.train.optimizers import OptimizerConfig

METHOD = 'hidenerf'
INJECTIONS = ('all', 'to_raw', 'pooled')
BACKGROUNDS = {'black': -1.0, 'white': 1.0}
PYRAMID = 3  # levels of tri-planes


@dataclass(frozen=True)
class AppearanceConfig:
    """The tri-planes of a source picture (paper 3.1).

    Attributes:
        widths: channels of the extractor at the size of its picture, half, a quarter, ... of it. Planes have a quarter,
            half and all of that size.
        size: side of the picture that the extractor sees, which is made smaller for it; None: ``image_size``.
        residual: blocks at the smallest size.
        channels: of every plane.
        single_scale: only the largest planes, with as many channels as all levels together (ablation).
        transform: how features of the picture's axes are looked up in the world: 'exact', 'plane_warp' (to the letter
            of eq. 1) or 'none' (ablation); see ``hidenerf.cameras``.
        extent: side of what the planes cover, world units; None: the picture's window at the head.
    """

    widths: tuple[int, ...] = (64, 128, 256, 512, 512)
    size: int | None = None
    residual: int = 2
    channels: int = 32
    single_scale: bool = False
    transform: str = 'exact'
    extent: float | None = None

    def __post_init__(self):
        check = Check(self, 'appearance')
        check.one_of('transform', *TRANSFORMS)
        check.need(len(self.widths) >= PYRAMID + 1, 'widths', f'give at least {PYRAMID + 1} numbers of channels')
        check.at_least(1, 'widths', 'channels')
        check.at_least(0, 'residual')
        check.above(0, 'extent')


@dataclass(frozen=True)
class DeformationConfig:
    """The expression-aware deformation (LED, paper 3.2).

    Attributes:
        expression: channels of the three convolutions that see both codes.
        position: channels of the two convolutions that see the sample points.
        decoder: channels at half and a quarter of the rendered size. residual: blocks at the smaller.
        scale: displacement for an output of 1, as a share of ``volume.box_warp``.
        perturbation: standard deviation of the noise on the points that the network sees in training, as a share of
            the distance between samples of a ray; 0: none.
        antisymmetric: subtract what the network answers to two canonical codes, so that a face without expression is
            never displaced.
        pose_coupled: draw the driving code in the driver's pose (ablation "w/o SECC").
    """

    expression: tuple[int, int, int] = (32, 64, 64)
    position: tuple[int, int] = (128, 64)
    decoder: tuple[int, int] = (128, 256)
    residual: int = 2
    scale: float = 0.1
    perturbation: float = 0.25
    antisymmetric: bool = False
    pose_coupled: bool = False

    def __post_init__(self):
        check = Check(self, 'deformation')
        check.at_least(1, 'expression', 'position', 'decoder')
        check.at_least(0, 'residual', 'perturbation')


@dataclass(frozen=True)
class VolumeConfig:
    """Rays, point network and rendering (paper 3.3).

    Attributes:
        samples: per ray. near, far: distances from the camera, world units.
        box_warp: side of the box that positions are measured in. pivot: the head's centre.
        octaves: of the positional encoding. hidden: width of the point network.
        channels: rendered per pixel; the first three are the raw picture.
        ray_chunk: rays (pixels of all pictures) in memory at once; None: all. It changes no result.
    """

    samples: int = 48
    near: float = 2.25
    far: float = 3.3
    box_warp: float = 1.0
    pivot: tuple[float, float, float] = (0.0, 0.0, 0.2)
    octaves: int = 6
    hidden: int = 64
    channels: int = 3
    ray_chunk: int | None = None

    def __post_init__(self):
        check = Check(self, 'volume')
        check.at_least(2, 'samples')
        check.above(0, 'near', 'box_warp')
        check.need(self.far > self.near, 'far', f'must be beyond near ({self.near})')
        check.at_least(1, 'octaves', 'hidden', 'ray_chunk')
        check.need(self.channels >= 3, 'channels', 'a picture has 3; give at least as many')

    @property
    def spacing(self) -> float:
        """Distance between samples of a ray."""
        return (self.far - self.near) / self.samples


@dataclass(frozen=True)
class RefineConfig:
    """The refine network and the identity encoder (paper 3.3).

    Attributes:
        identity: channels of the identity features at the picture's size, half, ..., a quarter of the raw size.
        encoder: channels at the raw size, half and a quarter of it. residual: blocks at the smallest.
        decoder: channels from a quarter of the raw size up to the picture's; the second and third are those of the
            encoder's skips.
        hidden: of the SPADE layers.
        inject: identity features reach all levels ('all'), those up to the raw size ('to_raw': details cannot stand
            where the source has them), or all as their mean over the picture ('pooled').
    """

    identity: tuple[int, ...] = (32, 64, 128, 256, 256)
    encoder: tuple[int, int, int] = (64, 128, 256)
    decoder: tuple[int, ...] = (256, 128, 64, 64, 32)
    residual: int = 2
    hidden: int = 64
    inject: str = 'all'

    def __post_init__(self):
        check = Check(self, 'refine')
        check.one_of('inject', *INJECTIONS)
        check.at_least(1, 'identity', 'encoder', 'decoder', 'hidden')
        check.at_least(0, 'residual')
        check.length(3, 'encoder')
        check.need(len(self.decoder) >= 3, 'decoder', 'give one number for each size from a quarter of the raw one up')
        check.need(
            self.decoder[1] == self.encoder[1] and self.decoder[2] == self.encoder[0],
            'decoder',
            f'its second and third number must be {self.encoder[1]} and {self.encoder[0]}, as in refine.encoder, whose '
            'features are added',
        )


@dataclass(frozen=True)
class LossConfig:
    """Terms and weights (supplement 6.2, eq. S1; reference section 6).

    Attributes:
        pixel: mean squared error of both pictures.
        perceptual: perceptual distance of both. network: what it looks through: 'vgg16' (LPIPS), 'pyramid' (no
            network), 'none', or 'auto': LPIPS where its weights are here, else pyramid.
        adversarial: non-saturating loss of both discriminators, after ``train.gan_from`` steps.
        deformation: l1 norm of the displacements. reduce: its 'mean' over points, or the paper's 'sum'.
        r1_gamma: weight of the gradient penalty as a multiple of size^2 / batch.
        opacity: squared difference of the rendered opacity to the head's mask (not in the paper).
        focus: adds the squared error weighted by ``faces.importance`` (mouth and eyes; not in the paper), which the
            batch then has to bring along.
        depth: difference of the rendered depth to the head's surface, world units (not in the paper); for
            ``data.source='heads'``, which has depths.
    """

    pixel: float = 1.0
    perceptual: float = 1.0
    network: str = 'auto'
    adversarial: float = 0.05
    deformation: float = 0.1
    reduce: str = 'mean'
    r1_gamma: float = 0.0002
    opacity: float = 0.0
    focus: float = 0.0
    depth: float = 0.0

    def __post_init__(self):
        check = Check(self, 'loss')
        check.one_of('network', 'auto', 'vgg16', 'pyramid', 'none')
        check.one_of('reduce', 'mean', 'sum')
        check.at_least(0, 'pixel', 'perceptual', 'adversarial', 'deformation', 'r1_gamma', 'opacity', 'focus', 'depth')


@dataclass(frozen=True)
class TrainConfig:
    """What surrounds a training step (reference sections 6 and 7).

    Attributes:
        iterations, batch_size: length of the run; pairs of frames per step over all devices.
        accumulate: each device works off its share in so many parts.
        gan_from: first step of the discriminators and of what they say; without ``loss.adversarial`` there are none.
        refine_from: first step of the refine network (not in the paper); before it the raw picture alone is compared,
            which costs less, and the parts that make it settle.
        r1_every: steps between two gradient penalties; they count as often as they are left out.
        flip_source: how often the source picture, and nothing else, is flipped.
        flip_both: how often source and driver are flipped together (not in the paper).
        generator, discriminator: optimizers; that of the discriminators is corrected for the lazy penalty.
        clip: largest norm of the generator's gradient.
        milestones, gamma: after each of these steps the learning rates are multiplied by gamma.
        ema: decay of the average of the generator's parameters; 0 keeps none.
        remat: recompute activations in the backward pass, to save memory.
        codes: drawn on the 'device' in every step, or on the 'host' by the data pipeline, which keeps them in memory
            (not for ``deformation.pose_coupled``).
    """

    iterations: int = 300_000
    batch_size: int = 32
    accumulate: int = 1
    gan_from: int = 10_000
    refine_from: int = 0
    r1_every: int = 16
    flip_source: float = 0.5
    flip_both: float = 0.0
    generator: OptimizerConfig = field(default_factory=lambda: OptimizerConfig('adam', 1e-4, 0.0, 0.99))
    discriminator: OptimizerConfig = field(default_factory=lambda: OptimizerConfig('adam', 2e-4, 0.0, 0.99))
    clip: float = 1.0
    milestones: tuple[int, ...] = ()
    gamma: float = 0.3
    ema: float = 0.999
    remat: bool = False
    codes: str = 'device'

    def __post_init__(self):
        check = Check(self, 'train')
        check.one_of('codes', 'device', 'host')
        check.at_least(1, 'iterations', 'batch_size', 'accumulate', 'r1_every')
        check.at_least(0, 'gan_from', 'refine_from')
        check.within(0, 1, 'flip_source', 'flip_both')
        check.decay('ema')
        check.above(0, 'clip')


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
            self.train.codes == 'device' or not self.deformation.pose_coupled,
            'train.codes',
            "'host' cannot draw pose-coupled codes, which depend on flipped cameras; use 'device'",
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
        values: dict[str, Any] = {}
        for path, value in overrides.items():
            *groups, last = path.split('__')
            node = values
            for group in groups:
                node = node.setdefault(group, {})
            node[last] = to_plain(value)
        return updated(self, values)

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
    'appearance__widths': (16, 24, 48, 64, 96),
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
    'loss__opacity': 0.5,
    'loss__focus': 1.0,
    'loss__depth': 0.5,
    'train__batch_size': 4,
    'train__iterations': 8_000,
    'train__refine_from': 2_500,
    'train__codes': 'host',
    'train__generator': OptimizerConfig('adam', 1.5e-3, 0.9, 0.99),
    'train__milestones': (5_000, 6_800, 7_600),
    'train__ema': 0.998,
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
    'train__batch_size': 8,
    'train__iterations': 1_500,
    'train__refine_from': 0,
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
    'train__batch_size': 2,
    'train__iterations': 4,
    'train__refine_from': 0,
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


def describe(config: ModelConfig) -> dict[str, Any]:
    """Options that differ from the paper preset, flat, for reports: dotted name -> value."""

    def walk(a: Any, b: Any, where: str) -> dict[str, Any]:
        if dataclasses.is_dataclass(a):
            out: dict[str, Any] = {}
            for f in dataclasses.fields(a):
                out |= walk(getattr(a, f.name), getattr(b, f.name), f'{where}.{f.name}' if where else f.name)
            return out
        return {} if a == b else {where: a}

    return walk(config, ModelConfig.paper(), '')
