"""Everything that can be chosen about GPAvatar, and the two presets.

`GPAvatarConfig.paper()` follows the text of the paper, `GPAvatarConfig.release()` what the released weights were
trained with and need. `PRESET_DIFFERENCES` lists, topic by topic, which options carry the difference; `ABLATIONS` has
the rows of the paper's Table 3 as overrides of a preset.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from avatar_jax.checks import Check
from avatar_jax.configure import differences, from_plain, replaced, to_plain
from avatar_jax.errors import UserError
from avatar_jax.faces.conventions import Conventions
from avatar_jax.faces.importance import Importance
from avatar_jax.methods.gpavatar.cameras import WorldConfig
from avatar_jax.methods.gpavatar.field import FieldConfig
from avatar_jax.methods.gpavatar.fusion import KINDS as FUSIONS
from avatar_jax.methods.gpavatar.head import HeadConfig
from avatar_jax.methods.gpavatar.train_config import LossConfig, TrainConfig
from avatar_jax.models.styleunet import StyleUNetConfig
from avatar_jax.procedural.model import ProceduralHead
from avatar_jax.train.optimizers import OptimizerConfig

METHOD = 'gpavatar'
NOISES = ('random', 'stored', 'zero')
FLAME_BASIS = 'flame-2020'
FLAME_SHAPE = 100  # shape coefficients that the release uses
NEAR = 4  # samples of a ray around a known surface, in training
BASES = (ProceduralHead.basis, FLAME_BASIS)


@dataclass(frozen=True)
class GPAvatarConfig:
    """All options of the method.

    Attributes:
        preset: 'paper' or 'release': what reports compare this configuration with (``changes``); it sets nothing
            itself.
        field: the point-based expression field. head: the NeRF head.
        fusion: of several portraits: 'attention' (release), 'linear' (paper: products of linear layers, divided by
            their sum; made positive, see ``fusion``) or 'mean' (ablation).
        density: samples have densities, whose opacity depends on their distance (paper), instead of opacities
        (release). samples, fine_samples: per ray in the two passes.
        background: what all channels have behind the head, and what fills the canonical picture; 0 is black.
        noise: of the StyleUNets when avatars are made and animated: drawn afresh for every call when a key is given
            ('random', release; without a key it is zero), 'stored' with the weights, or 'zero'.
        training_noise: the same in training; 'random' is drawn for every step.
        warp: pictures are brought to the canonical frontal frame before they are encoded.
        warp_surface: what the canonical frame shows: the 'plane' z = 0 (release), or the front of the mean 'head'
            (``front``), where features keep their places from whatever side a portrait is taken.
        warp_corners: 'integer' truncates the frame's corners to whole pixels (release), 'exact' does not.
        warp_border: pixels on the border of the warped picture fade to the fill once ('single') or twice ('double',
            release).
        ray_chunk: rays evaluated at once; None: all of an image. It changes no result.
        loss, train: of training.
    """

    preset: str = 'release'
    field: FieldConfig = dataclasses.field(default_factory=FieldConfig)
    head: HeadConfig = dataclasses.field(default_factory=HeadConfig)
    fusion: str = 'attention'
    density: bool = False
    samples: int = 32
    fine_samples: int = 32
    background: float = 0.0
    noise: str = 'random'
    training_noise: str = 'random'
    warp: bool = True
    warp_surface: str = 'plane'
    warp_corners: str = 'integer'
    warp_border: str = 'double'
    ray_chunk: int | None = None
    loss: LossConfig = dataclasses.field(default_factory=LossConfig)
    train: TrainConfig = dataclasses.field(default_factory=TrainConfig)

    def __post_init__(self):
        check = Check(self)
        check.one_of('preset', 'paper', 'release')
        check.one_of('fusion', *FUSIONS)
        check.one_of('noise', *NOISES)
        check.one_of('training_noise', *NOISES)
        check.one_of('warp_surface', 'plane', 'head')
        check.one_of('warp_corners', 'integer', 'exact')
        check.one_of('warp_border', 'single', 'double')
        check.at_least(2, 'samples', 'fine_samples')
        if self.loss.depth and self.train.ray_iterations:
            check.need(
                self.fine_samples >= NEAR + 2,
                'fine_samples',
                f'loss.depth places {NEAR} of them around the surface; use at least {NEAR + 2}',
            )
        check.at_least(1, 'ray_chunk')

    @classmethod
    def release(cls, **overrides: Any) -> GPAvatarConfig:
        """What the released weights need. Overrides are dotted paths with ``__`` for the dot."""
        base = cls(train=TrainConfig(milestones=(130_000, 160_000), batch_size=4, divisor=256))
        return base.replace(**overrides)

    @classmethod
    def paper(cls, **overrides: Any) -> GPAvatarConfig:
        """What the paper describes; where it gives nothing, as released."""
        return cls.release().replace(**_PAPER).replace(**overrides)

    @property
    def changes(self) -> dict[str, Any]:
        """Options that are not as in the preset that this configuration names: dotted name -> plain value."""
        return differences(self, _preset(self.preset))

    def replace(self, **overrides: Any) -> GPAvatarConfig:
        """A copy with some options changed; ``field__octaves=6`` sets ``field.octaves``. Raises ``UserError``."""
        return replaced(self, overrides)

    def ablation(self, name: str) -> GPAvatarConfig:
        """A copy with one row of Table 3; ``name`` of ``ABLATIONS``. ``points`` are 2,000 of FLAME's 5,023, or that
        share.
        """
        if name not in ABLATIONS:
            raise UserError(f'ablation: {name!r}; use one of {", ".join(ABLATIONS)}')
        changes = dict(ABLATIONS[name])
        if name == 'few_points':
            changes['field__points'] = max(self.field.neighbours, round(self.field.points * 2000 / 5023))
        return self.replace(**changes)


_PAPER: dict[str, Any] = {
    'preset': 'paper',
    'field__octaves': 6,
    'field__direction': 'offset',
    'field__normalise': 'neighbours',
    'field__power': 1,
    'field__layers': 1,
    'fusion': 'linear',
    'density': True,
    'head__view': False,
    'noise': 'stored',
    'loss__box': 0.0,
    'loss__coarse': False,
    'train__divisor': 255,
    'train__iterations': 150_000,
    'train__milestones': (),
    'train__batch_size': 8,
}

# Topic -> the options that carry it, which differ between the presets.
PRESET_DIFFERENCES: dict[str, tuple[str, ...]] = {
    'relative encoding: 39 numbers of the offset, or 27 of the unit vector': ('field.octaves', 'field.direction'),
    'weights of the neighbours: 1/d over the neighbours, or 1/d^2 over all samples': ('field.normalise', 'field.power'),
    'layers of the expression field': ('field.layers',),
    'attention of several portraits': ('fusion',),
    'densities or opacities': ('density',),
    'view direction of the colour': ('head.view',),
    'noise stored or drawn for every call': ('noise',),
    'terms of the loss': ('loss.box', 'loss.coarse'),
    'training pictures divided by 255 or 256': ('train.divisor',),
    'length, batch and schedule': ('train.iterations', 'train.batch_size', 'train.milestones'),
}
# What the paper does not mention, so that both presets do as released.
SHARED_CHOICES: dict[str, tuple[str, ...]] = {
    'corners and border of the canonical picture': ('warp_corners', 'warp_border'),
    'first moment of Adam switched off': ('train.optimizer',),
    'slow style mappings': ('train.slow',),
}

# Rows of the paper's Table 3; 'mean' is evaluated with two to four portraits.
ABLATIONS: dict[str, dict[str, Any]] = {
    'full': {},
    'no_field': {'field__kind': 'expression'},
    'local': {'field__max_distance': 1 / 128},
    'few_points': {},
    'four_neighbours': {'field__neighbours': 4},
    'mean': {'fusion': 'mean'},
}


_HEADS: dict[str, Any] = {
    'field__points': 900,
    'field__choice': 'strained',
    'field__feature_dim': 16,
    'field__hidden': 32,
    'field__normalise': 'neighbours',
    'density': True,
    'head__plane_channels': 16,
    'head__width': 64,
    'head__color_width': 32,
    'head__out_channels': 16,
    'samples': 8,
    'fine_samples': 10,
    'background': 1.0,
    'noise': 'zero',
    'training_noise': 'zero',
    'warp_surface': 'head',
    'loss__box': 0.0,
    'loss__perceptual': 0.5,
    'loss__norm': 0.0,
    'loss__squared': 16.0,
    'loss__opacity': 1.0,
    'loss__depth': 0.5,
    'loss__network': 'pyramid',
    'train__divisor': 255,
    'train__batch_size': 4,
    'train__first': 'he',
    'train__drivers': 2,
    'train__rays': 256,
    'train__importance': Importance(mouth=4.0, eye=8.0, edge=2.5),
    'train__iterations': 6_000,
    'train__ray_iterations': 5_920,
    'train__whole_every': 25,
    'train__whole_trains': 'sr',
    'train__milestones': (3_600, 4_900, 5_600),
    'train__gamma': 0.4,
    'train__ema': 0.998,
    'train__slow': 1.0,
    'train__optimizer': OptimizerConfig('adam', 1e-3, 0.9, 0.99),
}
_HEADS_SCALE = (
    2.6  # cube units per unit of the labels' world: all that pictures show of procedural heads is in the cube
)

# A second, shorter training of the same networks, most of whose rays meet eyes. These are as small as the distance
# between a person's own and the mean head's, so that the points next to them hardly tell what the lids do: coefficients
# come in too.
EYES: dict[str, Any] = {
    'field__kind': 'both',
    'train__importance': Importance(mouth=6.0, eye=30.0, edge=2.5),
    'train__iterations': 3_040,
    'train__ray_iterations': 3_000,
    'train__milestones': (1_500, 2_200, 2_700),
    'train__ema': 0.996,
}


_SMALL: dict[str, Any] = {
    'field__points': 300,
    'field__feature_dim': 8,
    'field__hidden': 16,
    'head__plane_channels': 8,
    'head__width': 32,
    'head__color_width': 16,
    'head__out_channels': 8,
    'samples': 6,
    'fine_samples': 6,
    'train__rays': 64,
    'train__iterations': 1_000,
    'train__ray_iterations': 800,
    'train__whole_every': 10,
    'train__milestones': (600, 850),
    'train__ema': 0.99,
}


def _preset(name: str) -> GPAvatarConfig:
    Check.values(preset=name).one_of('preset', 'paper', 'release')
    return GPAvatarConfig.release() if name == 'release' else GPAvatarConfig.paper()


@dataclass(frozen=True)
class ModelConfig:
    """What builds the networks and says how they are used.

    Attributes:
        settings: everything of GPAvatar itself.
        image_size: of the portraits that are encoded. plane_size: of the tri-planes (half of it, or at least it).
        raw_size: of the volume-rendered picture. img_resolution: of the final picture.
        channel_base, channel_max, style_dim, mapping_layers: of both StyleUNets.
        sr_channel_base, sr_channel_max: of super-resolution, if they are not the encoder's; 0: they are.
        sr_skip: super-resolution adds to the enlarged raw picture instead of making the whole picture (release), and
            starts by adding nothing.
        plane_skip: the encoder adds to a front plane that already has the canonical picture in its first three channels
            (and in the fourth, with ``warp_surface='head'``, how well each place is seen), and starts by adding
            nothing, instead of making all of the planes (release).
        basis: of the coefficients that drive an avatar; it also names the head model: 'procedural' or 'flame-2020'.
        shape: head shape of the points: 'own', that fitted to the person (release), or 'mean', the same for everybody,
            so that a portrait needs no fit.
        label_mode: how camera labels of photographs are normalised (``faces.camera_labels.MODES``).
        world: where the head stands in the cube.
    """

    FORMER_NAMES: ClassVar[Mapping[str, str]] = {'method': 'settings'}  # in files of before

    settings: GPAvatarConfig = dataclasses.field(default_factory=GPAvatarConfig.release)
    image_size: int = 512
    plane_size: int = 256
    raw_size: int = 128
    img_resolution: int = 512
    channel_base: int = 8192
    channel_max: int = 256
    style_dim: int = 512
    mapping_layers: int = 8
    sr_channel_base: int = 0
    sr_channel_max: int = 0
    sr_skip: bool = False
    plane_skip: bool = False
    basis: str = FLAME_BASIS
    shape: str = 'own'
    label_mode: str = 'raw'
    world: WorldConfig = dataclasses.field(default_factory=WorldConfig)

    def __post_init__(self):
        check = Check(self)
        check.one_of('basis', *BASES)
        check.one_of('shape', 'own', 'mean')
        check.power_of_two(8, 'image_size', 'plane_size', 'img_resolution')
        self.encoder, self.superresolution  # noqa: B018 - their checks
        shown = 4 if self.settings.warp_surface == 'head' and self.settings.warp else 3
        check.need(
            not self.plane_skip or self.settings.head.plane_channels >= shown,
            'settings.head.plane_channels',
            f'plane_skip needs at least {shown}',
        )

    @property
    def conventions(self) -> Conventions:
        """Of the pictures that the weights know: before the background that rays end on, with shapes if 'own'."""
        full = self.basis == FLAME_BASIS
        return Conventions(
            self.basis,
            self.label_mode,
            'white' if self.settings.background > 0.5 else 'black',
            'frame' if full else 'five_points',
            (FLAME_SHAPE if full else ProceduralHead.num_id) if self.shape == 'own' else 0,
        )

    @property
    def encoder(self) -> StyleUNetConfig:
        """Picture to planes."""
        return StyleUNetConfig(
            self.image_size,
            self.plane_size,
            3,
            3 * self.settings.head.plane_channels,
            False,
            self.channel_base,
            self.channel_max,
            self.style_dim,
            self.mapping_layers,
        )

    @property
    def superresolution(self) -> StyleUNetConfig:
        """Rendered features to the final picture."""
        return StyleUNetConfig(
            self.img_resolution,
            self.img_resolution,
            self.settings.head.out_channels,
            3,
            True,
            self.sr_channel_base or self.channel_base,
            self.sr_channel_max or self.channel_max,
            self.style_dim,
            self.mapping_layers,
        )

    @property
    def plane_shape(self) -> tuple[int, int, int, int]:
        """(3, H, W, C)."""
        return 3, self.plane_size, self.plane_size, self.settings.head.plane_channels

    @classmethod
    def full(cls, preset: str = 'release', **changes: Any) -> ModelConfig:
        """The published size."""
        return cls(_preset(preset), **changes)

    @classmethod
    def heads(cls, preset: str = 'release', **overrides: Any) -> ModelConfig:
        """Small, for procedural heads of 128 pixels on a CPU; ``overrides`` of the method's options.

        The weights of the field are taken over the neighbours (the result is then the same from every side and at
        every resolution), the background is that of the procedural pictures, white, and no noise is added.
        """
        settings = _preset(preset).replace(**_HEADS)
        return cls(
            settings.replace(**overrides),
            128,
            64,
            64,
            128,
            1280,
            40,
            64,
            4,
            1024,
            24,
            True,
            True,
            ProceduralHead.basis,
            'mean',
            world=WorldConfig(_HEADS_SCALE),
        )

    @classmethod
    def small(cls, preset: str = 'release', **overrides: Any) -> ModelConfig:
        """``heads`` at 32 pixels: large enough to compare variants with, trained in minutes."""
        settings = _preset(preset).replace(**_HEADS).replace(**_SMALL).replace(**overrides)
        return cls(
            settings,
            32,
            16,
            16,
            32,
            256,
            16,
            32,
            2,
            0,
            0,
            True,
            True,
            ProceduralHead.basis,
            'mean',
            world=WorldConfig(_HEADS_SCALE),
        )

    @classmethod
    def tiny(cls, preset: str = 'release', **overrides: Any) -> ModelConfig:
        """For tests: a few thousand parameters, every part present."""
        tiny = {
            'field__points': 60,
            'field__feature_dim': 4,
            'field__hidden': 8,
            'head__plane_channels': 4,
            'head__width': 8,
            'head__color_width': 8,
            'head__out_channels': 4,
            'samples': 4,
            'fine_samples': 4,
            'train__batch_size': 2,
            'train__iterations': 4,
            'loss__network': 'pyramid',
            'loss__box_size': 16,
            'background': 1.0,
        }
        settings = _preset(preset).replace(**tiny).replace(**overrides)
        return cls(settings, 16, 8, 8, 16, 32, 4, 8, 2, 0, 0, False, False, ProceduralHead.basis, 'mean')

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ModelConfig:
        """The inverse of ``to_dict``. Raises ``UserError`` for unknown keys and wrong values."""
        return from_plain(cls, values)

    def to_dict(self) -> dict[str, Any]:
        """Plain nested values, as weight files and checkpoints store them."""
        return to_plain(self)

    def with_method(self, **overrides: Any) -> ModelConfig:
        """A copy with options of the method changed (``field__octaves=6``)."""
        return dataclasses.replace(self, settings=self.settings.replace(**overrides))
