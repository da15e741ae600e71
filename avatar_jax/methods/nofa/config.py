"""Everything that can be chosen about NOFA: networks, losses, the three training stages and the fit to one picture.

What the paper states are the defaults of ``NOFAConfig``; where it is silent, the docstrings say what was chosen.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from avatar_jax.checks import Check
from avatar_jax.configure import from_plain, replaced, to_plain
from avatar_jax.faces.importance import Importance
from avatar_jax.inversion.tuning import PivotConfig, TuningConfig
from avatar_jax.losses.distance import CHOICES
from avatar_jax.models.e4e import EncoderConfig
from avatar_jax.models.spade import RESIZES
from avatar_jax.models.triplane import GeneratorConfig
from avatar_jax.train.optimizers import OptimizerConfig

METHOD = 'nofa'
STAGES = ('general', 'teeth', 'compensation')
GAINS = ('unit', 'rms')
IDENTITY = ('auto', 'irse50', 'head_identity', 'none')
TEACHERS = ('none', 'gfpgan', 'truth')
PIVOTS = ('encoder', 'search')


@dataclass(frozen=True)
class CompensationConfig:
    """The compensation network (section 3.2 of the paper gives its parts, not its sizes).

    Attributes:
        use: without it the volume is the generator's alone (Table 3, first row).
        widths: channels after each of the five blocks; the map is doubled before the third and the fifth.
        hidden: width of the modulation's hidden layers; 64 costs less.
        resize: of the source picture to each block's size: 'antialiased' or 'nearest'.
        gain: fixed factor of the generator's features: 1 ('unit'), or one over their root mean square at the mean code
            ('rms'), measured when the networks are made.
    """

    use: bool = True
    widths: tuple[int, int, int, int, int] = (512, 256, 256, 128, 128)
    hidden: int = 128
    resize: str = 'antialiased'
    gain: str = 'unit'

    def __post_init__(self):
        object.__setattr__(self, 'widths', tuple(self.widths))
        check = Check(self, 'compensation')
        check.one_of('resize', *RESIZES)
        check.one_of('gain', *GAINS)
        check.length(5, 'widths')
        check.at_least(1, 'widths', 'hidden')


@dataclass(frozen=True)
class DeformationConfig:
    """The deformation field (section 3.3 of the paper gives inputs and outputs, not sizes).

    Attributes:
        num_shape, num_expression: identity and expression coefficients.
        width, depth, skip, octaves: of D-Net: hidden layers, the one that reads the encoded point again (counted from
            0), and frequencies of the encoding.
        w_width, w_depth, w_octaves: of W-Net.
        use_wnet: False moves every point by D-Net's whole offset (Table 5).
        use_identity: False gives both networks zeros in place of identity coefficients (Table 5).
        clip: largest offset along an axis in world units; None does not limit.
        standardize: coefficients are standardised by means and deviations, which a training of fresh networks measures
            on its data and weight files keep.
    """

    num_shape: int = 80
    num_expression: int = 64
    width: int = 128
    depth: int = 6
    skip: int = 4
    octaves: int = 6
    w_width: int = 64
    w_depth: int = 4
    w_octaves: int = 4
    use_wnet: bool = True
    use_identity: bool = True
    clip: float | None = None
    standardize: bool = False

    def __post_init__(self):
        check = Check(self, 'deformation')
        check.at_least(2, 'depth')
        check.need(1 <= self.skip < self.depth, 'skip', f'must name one of the hidden layers, 1 to {self.depth - 1}')
        check.at_least(1, 'width', 'w_width', 'w_depth')
        check.at_least(0, 'octaves', 'w_octaves', 'num_shape', 'num_expression')
        check.above(0, 'clip')


@dataclass(frozen=True)
class Weights:
    """One objective: weights of reconstruction, mouth, teeth, identity, code norm and volume (equations 7, 9, 11,
    12).
    """

    reconstruction: float = 1.0
    mouth: float = 0.0
    teeth: float = 0.0
    identity: float = 0.1
    latent: float = 0.0
    depth: float = 0.0

    def __post_init__(self):
        Check(self, 'loss').at_least(0, *(f.name for f in dataclasses.fields(self)))


@dataclass(frozen=True)
class LossConfig:
    """The terms.

    Attributes:
        general, teeth, compensation, one_shot: weights of the four objectives (the paper's).
        perceptual: weight of the perceptual distance beside the squared error, within reconstruction, mouth and teeth.
        perceptual_network: 'lpips_alex', 'lpips_vgg', 'lpips_squeeze', 'pyramid' (no network), 'none', or 'auto':
            AlexNet's LPIPS where its weights are here, else pyramid. pyramid_scales: of the latter.
        identity_network: 'irse50', 'head_identity' (the stand-in for procedural heads), 'none', or 'auto': the first
            whose weights are here.
        raw: weight of the same reconstruction term on the volume rendering before super-resolution, against the
            picture averaged to its size (not in the paper).
        absolute: weight of the mean absolute error beside the squared one where single rays are compared, which have
            no perceptual distance. opacity: weight of the squared difference to the head's mask there.
        latent: 'norm' (mean norm of the offset from the mean code) or 'mse' (its mean square).
        mu: the volume that is added should be this share of the canonical one (equation 10).
        mouth_size: side of the aligned mouth crops. mouth_enlarge: their box is so much larger than the landmarks'.
    """

    general: Weights = field(default_factory=lambda: Weights(1.0, 0.5, 0.0, 0.1, 0.01, 0.0))
    teeth: Weights = field(default_factory=lambda: Weights(0.5, 0.0, 1.0, 0.1, 0.01, 0.0))
    compensation: Weights = field(default_factory=lambda: Weights(1.0, 0.0, 0.0, 0.1, 0.0, 0.01))
    one_shot: Weights = field(default_factory=lambda: Weights(1.0, 0.5, 0.0, 0.1, 0.0, 0.01))
    perceptual: float = 1.0
    perceptual_network: str = 'auto'
    pyramid_scales: int = 3
    identity_network: str = 'auto'
    raw: float = 0.0
    absolute: float = 0.2
    opacity: float = 0.5
    latent: str = 'norm'
    mu: float = 0.1
    mouth_size: int = 128
    mouth_enlarge: float = 1.4

    def __post_init__(self):
        check = Check(self, 'loss')
        check.one_of('perceptual_network', *CHOICES)
        check.one_of('identity_network', *IDENTITY)
        check.one_of('latent', 'norm', 'mse')
        check.at_least(1, 'pyramid_scales')
        check.at_least(8, 'mouth_size')
        check.above(0, 'mouth_enlarge')

    def weights(self, objective: str) -> Weights:
        """Of 'general', 'teeth', 'compensation' or 'one_shot'."""
        return getattr(self, objective)


@dataclass(frozen=True)
class StageConfig:
    """One training stage.

    Attributes:
        iterations, batch_size, optimizer: its length, people over all devices, and its optimizer.
        warm_up: steps in which the learning rate rises linearly. final_lr: share of it that is left at the end, to
            which it falls along a cosine; 1 keeps it.
    """

    iterations: int = 250_000
    batch_size: int = 16
    optimizer: OptimizerConfig = field(default_factory=lambda: OptimizerConfig('adam', 1e-4))
    warm_up: int = 0
    final_lr: float = 1.0

    def __post_init__(self):
        check = Check(self, 'train')
        check.at_least(1, 'iterations', 'batch_size')
        check.at_least(0, 'warm_up')
        check.within(0, 1, 'final_lr')


@dataclass(frozen=True)
class EncoderTerms:
    """Extra terms of e4e, which the paper does not mention; only the progressive rows are on.

    Attributes:
        progressive_start, progressive_every: the first delta counts from that step on, one more after every so many;
            ``progressive_every=0`` lets all count from the beginning.
        delta: weight of the delta regulariser, while not all deltas count.
        discriminator: weight of the latent discriminator. r1, r1_every: its penalty and how often.
        discriminator_optimizer: its own. pool: codes it remembers.
    """

    progressive_start: int = 20_000
    progressive_every: int = 2_000
    delta: float = 0.0
    discriminator: float = 0.0
    r1: float = 10.0
    r1_every: int = 16
    discriminator_optimizer: OptimizerConfig = field(default_factory=lambda: OptimizerConfig('adam', 2e-5))
    pool: int = 50

    def __post_init__(self):
        check = Check(self, 'train.encoder')
        check.at_least(0, 'progressive_start', 'progressive_every', 'pool', 'delta', 'discriminator', 'r1')
        check.at_least(1, 'r1_every')


@dataclass(frozen=True)
class TrainConfig:
    """The three stages.

    Attributes:
        general, teeth, compensation: their lengths, batches and optimizers.
        same_frame: how often the source picture is its own target in the first two stages.
        own_view: the same in the stage of compensation; the paper's single pictures leave no choice (1).
        code_steps: in so many first steps of the stage 'general' the encoder alone learns, from codes that the mapping
            network gives for the known latent numbers of procedural people, compared by what is seen of them
            (``code_metric``; not in the paper).
        rays: where not 0, most steps of the stages 'general' and 'compensation' render so many pixels of every target
            and compare colours and opacities alone; whole_every: every so many-th step renders whole pictures, with
            all terms. importance: how these pixels are drawn (not in the paper: it saves most of the time).
        train_generator: move backbone, decoder and super-resolution in the first two stages. Its mapping network never
            moves. generator_lr: factor of their learning rate.
        encoder: extra terms.
        teacher: of the teeth stage: 'none' (the picture itself: the term is then 0), 'gfpgan', or 'truth' (the target
            picture: for made data, where that is the better mouth).
        align_teacher: the teacher sees the face aligned to its template, and only the mouth is taken from it.
    """

    general: StageConfig = field(default_factory=StageConfig)
    teeth: StageConfig = field(default_factory=lambda: StageConfig(25_000))
    compensation: StageConfig = field(default_factory=lambda: StageConfig(100_000, 32))
    same_frame: float = 0.1
    own_view: float = 1.0
    code_steps: int = 0
    rays: int = 0
    whole_every: int = 0
    importance: Importance = field(default_factory=Importance)
    train_generator: bool = True
    generator_lr: float = 1.0
    encoder: EncoderTerms = field(default_factory=EncoderTerms)
    teacher: str = 'none'
    align_teacher: bool = True

    def __post_init__(self):
        check = Check(self, 'train')
        check.one_of('teacher', *TEACHERS)
        check.within(0, 1, 'same_frame', 'own_view')
        check.at_least(0, 'generator_lr', 'code_steps', 'rays', 'whole_every')
        check.need(
            not self.whole_every or self.rays > 0, 'whole_every', 'every step is of whole pictures; set rays too'
        )

    def stage(self, name: str) -> StageConfig:
        """One of ``STAGES``."""
        Check.values(stage=name).one_of('stage', *STAGES)
        return getattr(self, name)

    def kind(self, name: str, step: int) -> str:
        """What a step of a stage looks at: 'codes', 'rays' or 'whole' pictures."""
        if name == 'general' and step < self.code_steps:
            return 'codes'
        whole = not self.rays or name == 'teeth' or (self.whole_every and (step + 1) % self.whole_every == 0)
        return 'whole' if whole else 'rays'


def _one_shot() -> TuningConfig:
    return TuningConfig('compensation', 400, OptimizerConfig('adam', 1e-4))


@dataclass(frozen=True)
class NOFAConfig:
    """All options of the method.

    Attributes:
        encoder: e4e; its rows and their length must be the generator's.
        compensation, deformation, loss, train: the parts.
        pivot: the code of a picture: that of the 'encoder', or of a 'search' in W (PTI). search: of the latter.
        tuning: the fit to one picture; the paper's is a fit of the compensation network, here of 400 steps. Its
            ``stop_term`` may be any weighted term, 'perceptual' (distance of the whole picture) or 'negative_psnr'.
    """

    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    compensation: CompensationConfig = field(default_factory=CompensationConfig)
    deformation: DeformationConfig = field(default_factory=DeformationConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    pivot: str = 'encoder'
    search: PivotConfig = field(default_factory=PivotConfig)
    tuning: TuningConfig = field(default_factory=_one_shot)

    def __post_init__(self):
        check = Check(self)
        check.one_of('pivot', *PIVOTS)
        check.need(
            self.tuning.tune != 'compensation' or self.compensation.use,
            'tuning.tune',
            'compensation.use is off; tune the generator, or none',
        )

    def replace(self, **overrides: Any) -> NOFAConfig:
        """A copy with some options changed; ``loss__mu=0.2`` sets ``loss.mu``. Raises ``UserError``."""
        return replaced(self, overrides)


@dataclass(frozen=True)
class ModelConfig:
    """What builds the networks and says how they are used.

    Attributes:
        generator: the tri-plane generator. settings: everything of NOFA itself.
        basis: name of the coefficient basis that drives the deformation.
        label_mode: how camera labels are normalised (one of ``faces.camera_labels.MODES``).
    """

    FORMER_NAMES: ClassVar[Mapping[str, str]] = {'method': 'settings'}  # in files of before

    generator: GeneratorConfig = field(default_factory=GeneratorConfig)
    settings: NOFAConfig = field(default_factory=NOFAConfig)
    basis: str = 'procedural'
    label_mode: str = 'raw'

    def __post_init__(self):
        e, g, check = self.settings.encoder, self.generator, Check(self)
        for name in ('num_ws', 'w_dim'):
            wanted = getattr(g, name)
            check.need(
                getattr(e, name) == wanted, f'settings.encoder.{name}', f'the generator takes {wanted}; set both alike'
            )
        check.need(e.shared, 'settings.encoder.shared', "NOFA's encoder is e4e, whose rows are shared; set it to true")
        side = g.img_resolution
        check.need(e.image_size <= side, 'settings.encoder.image_size', f'pictures have only {side} pixels')
        check.need(g.plane_resolution >= 16, 'generator.plane_resolution', 'compensation needs at least 16')

    @property
    def img_resolution(self) -> int:
        """Side of the final picture."""
        return self.generator.img_resolution

    @property
    def feature_resolution(self) -> int:
        """Side of the backbone's features that compensation starts from: 64 for planes of 256."""
        return self.generator.plane_resolution // 4

    @property
    def feature_channels(self) -> int:
        """Their channels."""
        g = self.generator
        return min(g.channel_base // self.feature_resolution, g.channel_max)

    @classmethod
    def paper(cls, **overrides: Any) -> ModelConfig:
        """EG3D's FFHQ generator at 512 pixels, BFM coefficients, sizes of the reference.

        2048 rays are evaluated at once: in training, the deformation field keeps 0.8 GB for so many.
        """
        generator = GeneratorConfig.ffhq512().replace(rendering={'ray_chunk': 2048})
        return cls(generator, NOFAConfig().replace(**overrides), 'bfm', 'orig')

    @classmethod
    def heads(cls, **overrides: Any) -> ModelConfig:
        """For procedural heads at 128 pixels, with the small generator; 10 MB in half precision all together."""
        generator = GeneratorConfig.heads128().replace(rendering={'ray_chunk': 4096})
        encoder = EncoderConfig(
            64,
            generator.num_ws,
            generator.w_dim,
            stem=24,
            widths=(24, 32, 48, 80),
            units=(2, 2, 3, 2),
            reduction=8,
            head_width=36,
            first='he',
        )
        settings = NOFAConfig(
            encoder,
            CompensationConfig(widths=(64, 48, 48, 32, 32), hidden=24, gain='rms'),
            DeformationConfig(width=48, depth=4, skip=2, octaves=5, w_width=32, w_depth=2),
            # The codes of this generator are some 40 long, and the paper's weight would shorten them.
            LossConfig(general=Weights(1.0, 0.5, 0.0, 0.1, 1e-4, 0.0), raw=1.0, mouth_size=32),
            TrainConfig(
                general=StageConfig(4_000, 4, OptimizerConfig('adam', 1e-3), warm_up=50, final_lr=0.05),
                teeth=StageConfig(400, 4, OptimizerConfig('adam', 1e-4)),
                compensation=StageConfig(2_000, 4, OptimizerConfig('adam', 5e-4), warm_up=50, final_lr=0.05),
                rays=256,
                whole_every=25,
                own_view=0.5,
                importance=Importance(edge=2.5),
                generator_lr=2.0,
                encoder=EncoderTerms(progressive_every=0),
            ),
            search=PivotConfig(steps=150),
            tuning=TuningConfig('compensation', 80, OptimizerConfig('adam', 2e-3)),
        )
        return cls(generator, settings.replace(**overrides))

    @classmethod
    def small(cls, **overrides: Any) -> ModelConfig:
        """For comparing variants on procedural heads at 32 pixels, in minutes and from nothing."""
        rendering = {'depth_resolution': 12, 'depth_resolution_importance': 12, 'ray_start': 2.35, 'ray_end': 3.25}
        generator = GeneratorConfig.tiny().replace(
            z_dim=32,
            w_dim=64,
            plane_resolution=32,
            plane_channels=16,
            channel_base=1024,
            channel_max=48,
            decoder_hidden=32,
            decoder_out=16,
            sr_channels=(16, 16),
            neural_rendering_resolution=16,
            rendering={**rendering, 'box_warp': 0.72},
        )
        encoder = EncoderConfig(
            32, generator.num_ws, generator.w_dim, 12, (12, 16, 24, 40), (1, 1, 2, 1), 4, 2, 4, first='he'
        )
        train = TrainConfig(
            general=StageConfig(1_500, 4, OptimizerConfig('adam', 2e-3), warm_up=50, final_lr=0.05),
            teeth=StageConfig(200, 4, OptimizerConfig('adam', 2e-4)),
            compensation=StageConfig(500, 4, OptimizerConfig('adam', 1e-3), warm_up=50, final_lr=0.05),
            rays=128,
            whole_every=10,
            own_view=0.5,
            encoder=EncoderTerms(progressive_every=0),
        )
        settings = NOFAConfig(
            encoder,
            CompensationConfig(widths=(32, 24, 24, 16, 16), hidden=12, gain='rms'),
            DeformationConfig(width=32, depth=3, skip=1, octaves=4, w_width=16, w_depth=2),
            LossConfig(general=Weights(1.0, 0.5, 0.0, 0.1, 1e-4, 0.0), raw=1.0, mouth_size=16, pyramid_scales=2),
            train,
            search=PivotConfig(steps=100, samples=100),
            tuning=TuningConfig('compensation', 80, OptimizerConfig('adam', 2e-3)),
        )
        return cls(generator, settings.replace(**overrides))

    @classmethod
    def tiny(cls, **overrides: Any) -> ModelConfig:
        """For tests: a few thousand parameters, every part present."""
        generator = GeneratorConfig.tiny()
        encoder = EncoderConfig(
            16, generator.num_ws, generator.w_dim, 4, (2, 4, 6, 8), (1, 1, 1, 1), 2, 1, 3, head_width=6
        )
        stage = StageConfig(4, 2, OptimizerConfig('adam', 1e-3))
        settings = NOFAConfig(
            encoder,
            CompensationConfig(widths=(8, 6, 6, 4, 4), hidden=4),
            DeformationConfig(width=8, depth=3, skip=1, octaves=2, w_width=6, w_depth=2, w_octaves=1),
            LossConfig(pyramid_scales=2, mouth_size=8),
            TrainConfig(stage, stage, stage, encoder=EncoderTerms(2, 1)),
            search=PivotConfig(steps=4, samples=8),
            tuning=TuningConfig('compensation', 4, OptimizerConfig('adam', 1e-3)),
        )
        return cls(generator, settings.replace(**overrides))

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ModelConfig:
        """The inverse of ``to_dict``. Raises ``UserError`` for unknown keys (with a suggestion) and wrong values."""
        return from_plain(cls, values)

    def to_dict(self) -> dict[str, Any]:
        """Plain nested values, as weight files and checkpoints store them."""
        return to_plain(self)

    def replace(self, **overrides: Any) -> ModelConfig:
        """A copy with options of the method changed, see ``NOFAConfig.replace``."""
        return dataclasses.replace(self, settings=self.settings.replace(**overrides))


ABLATIONS: dict[str, dict[str, Any]] = {
    'without_compensation': {'compensation__use': False, 'tuning__tune': 'none'},
    'without_wnet': {'deformation__use_wnet': False},
    'without_identity': {'deformation__use_identity': False},
}
"""Rows of the paper's Tables 3 and 5 as overrides of a preset."""
