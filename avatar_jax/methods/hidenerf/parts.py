"""What can be chosen about the parts of HiDe-NeRF: its modules, the terms of the loss, the training."""

from __future__ import annotations

from dataclasses import dataclass, field

from avatar_jax.checks import Check
from avatar_jax.configure import of_length
from avatar_jax.methods.hidenerf.cameras import TRANSFORMS
from avatar_jax.train.optimizers import OptimizerConfig

INJECTIONS = ('all', 'to_raw', 'pooled')
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
        picture: side of the source picture in which the end of every ray also looks up its colour, where the source's
            camera sees its displaced points on average; the point network says to which share it counts. None: colours
            come from the planes alone (paper).
    """

    widths: tuple[int, ...] = (64, 128, 256, 512, 512)
    size: int | None = None
    residual: int = 2
    channels: int = 32
    single_scale: bool = False
    transform: str = 'exact'
    extent: float | None = None
    picture: int | None = None

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
        check.at_least(1, 'iterations', 'batch_size', 'accumulate', 'r1_every')
        check.at_least(0, 'gan_from', 'refine_from')
        check.one_of('codes', 'device', 'host')
        check.within(0, 1, 'flip_source', 'flip_both')
        check.decay('ema')
        check.above(0, 'clip')

    def of_length(self, iterations: int) -> TrainConfig:
        """The same course in another number of steps (``configure.of_length``)."""
        return of_length(self, iterations, 'gan_from', 'refine_from', 'milestones')
