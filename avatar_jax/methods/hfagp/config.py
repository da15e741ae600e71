"""Everything that can be chosen about HFA-GP, and the two presets.

``HFAGPConfig.paper()`` follows the paper, ``HFAGPConfig.release()`` the released program. ``PRESET_DIFFERENCES`` lists
where the two differ and which options carry it; ``SHARED_CHOICES`` where the paper's text cannot be followed or says
nothing, so that both presets have the released form. ``ABLATIONS`` has the rows of the paper's Table 4.

Defects of the released program are not reproduced:

* its coefficient and sound scripts import modules that are not there and one of them uses an undefined variable; here
  all three drivers animate alike;
* its forward pass flips the caller's camera labels in place, so that a second call sees another camera, as do every
  second of its basis previews; here labels are not changed (``cameras.flip_axes`` shows the two conventions);
* it looks for the test pictures in ``test2`` in one place and in ``test`` in another; the readers of ``data_pipelines``
  take either;
* smoothing of landmarks needs whole numbers as file names, which NerFACE's frames do not have; here any name is sorted
  by the numbers in it;
* starting from a given basis expects codes of 18 rows; here a basis of any generator's shape is taken;
* on several devices its gradients of the sub-networks are not averaged; here they are, and a batch gives the same
  update on any number of devices.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

from avatar_jax.checks import Check
from avatar_jax.configure import differences, from_plain, to_plain, updated
from avatar_jax.errors import UserError
from avatar_jax.methods.hfagp.encoders import PICTURE_CHANNELS, SOUND_CHANNELS
from avatar_jax.models.triplane import GeneratorConfig
from avatar_jax.sound.features import FEATURES
from avatar_jax.train.optimizers import OptimizerConfig

METHOD = 'hfagp'
DRIVERS = ('picture', 'coefficients', 'sound')
PRESETS = ('paper', 'release')
PERCEPTUAL = ('auto', 'lpips', 'pyramid', 'none')


@dataclass(frozen=True)
class BasisConfig:
    """The personal basis.

    Attributes:
        size: k, number of vectors (50 in the paper).
        orthogonal: make the vectors orthonormal by QR in every forward pass; False uses them as they are trained.
        offset: add the trained offset ``delta`` to every code.
        start: where the offset starts: 'bases' (mean of the random vectors, as released) or 'average' (the generator's
            average code, so that training starts from its average face).
        shared: several drivers share one basis (paper section 4.5, "transferability"); False gives each its own.
    """

    size: int = 50
    orthogonal: bool = True
    offset: bool = True
    start: str = 'bases'
    shared: bool = True

    def __post_init__(self):
        check = Check(self, 'basis')
        check.at_least(1, 'size')
        check.one_of('start', 'bases', 'average')
        check.need(
            self.start != 'average' or self.offset, 'start', 'that is where the offset starts; set basis.offset to true'
        )


@dataclass(frozen=True)
class EncoderConfig:
    """The networks that give the weights of the basis.

    Attributes:
        width: of the linear layers.
        picture_size: side of the pictures that the picture encoder sees.
        picture_channels: channels of its trunk at 4, 8, 16, ... ``picture_size`` pixels; empty takes the released ones.
        coefficients: how many numbers drive the coefficient encoder (76 in NerFACE's data, 64 of most face models).
        sound_code: length of the code of a window of speech features.
        sound_channels: numbers per row of such a window (29 of both kinds of features).
        sound_features: which features (``sound.features.FEATURES``): 'deepspeech' (from files that the user has) or
            'mel' (made here from the sound itself).
        sound_first: initial values of the sound network: 'pytorch' (released; weights of the basis hardly depend on
            the sound at first: by 1 in 100 of their size) or 'he' (they do).
        softmax: weights are positive and sum to one (off in the release).
    """

    width: int = 512
    picture_size: int = 256
    picture_channels: tuple[int, ...] = ()
    coefficients: int = 76
    sound_code: int = 64
    sound_channels: int = SOUND_CHANNELS
    sound_features: str = 'deepspeech'
    sound_first: str = 'pytorch'
    softmax: bool = False

    def __post_init__(self):
        check = Check(self, 'encoder')
        check.power_of_two(8, 'picture_size')
        check.within(8, max(PICTURE_CHANNELS), 'picture_size')
        count = self.picture_size.bit_length() - 2
        check.need(
            not self.picture_channels or len(self.picture_channels) == count,
            'picture_channels',
            f'pictures of {self.picture_size} pixels need {count} numbers (for 4, 8, ... {self.picture_size} pixels)',
        )
        check.need(self.sound_code >= 32, 'sound_code', 'attention reads 32 numbers of it; give at least 32')
        check.one_of('sound_features', *FEATURES)
        check.one_of('sound_first', 'pytorch', 'he')
        check.at_least(1, 'width', 'coefficients', 'sound_channels')

    def trunk(self) -> tuple[tuple[int, int], ...]:
        """(resolution, channels) of the picture encoder."""
        return tuple((4 << i, c) for i, c in enumerate(self.picture_channels))


@dataclass(frozen=True)
class LossConfig:
    """What a training picture is compared by (paper section 3.3).

    Attributes:
        perceptual: weight (lambda) of LPIPS beside the mean squared error: 5 in the paper, 1 in the release.
        network: what the perceptual term looks through: 'lpips' (AlexNet, needs its weights), 'pyramid' (a comparison
            of pixels and edges that needs no network), 'none', or 'auto': 'lpips' where its weights are given, else
            'pyramid'.
        size: side at which pictures are compared; the generator's picture is averaged over areas to it.
        pyramid: weight of 'pyramid', which has another scale than LPIPS. pyramid_scales: its halvings.
    """

    perceptual: float = 5.0
    network: str = 'auto'
    size: int = 256
    pyramid: float = 0.2
    pyramid_scales: int = 4

    def __post_init__(self):
        check = Check(self, 'loss')
        check.one_of('network', *PERCEPTUAL)
        check.at_least(0, 'perceptual', 'pyramid')
        check.at_least(1, 'pyramid_scales')
        check.need(
            self.size >= 2**self.pyramid_scales, 'size', f'cannot be halved for {self.pyramid_scales} pyramid_scales'
        )


@dataclass(frozen=True)
class TrainConfig:
    """The two stages (paper section 3.3).

    Attributes:
        iterations: updates in all.
        tune_iter: in so many updates the generator is frozen; from the next one on it is tuned, with an optimizer that
            starts then. As many as ``iterations`` leave the second stage out.
        batch_size: frames per update, over all devices.
        optimizer: of basis and encoder. generator_optimizer: of the generator in the second stage.
        smooth_from: number of updates after which sound codes are smoothed in time by attention; None: never.
        reshuffle: a new order of the frames in every epoch; False repeats the first one, as the release does.
    """

    iterations: int = 200_000
    tune_iter: int = 50_000
    batch_size: int = 2
    optimizer: OptimizerConfig = field(default_factory=lambda: OptimizerConfig('adam', 3e-4))
    generator_optimizer: OptimizerConfig = field(default_factory=lambda: OptimizerConfig('adam', 3e-4))
    smooth_from: int | None = None
    reshuffle: bool = True

    def __post_init__(self):
        check = Check(self, 'train')
        check.at_least(0, 'iterations', 'tune_iter', 'smooth_from')
        check.at_least(1, 'batch_size')


@dataclass(frozen=True)
class HFAGPConfig:
    """All options of the method.

    Attributes:
        preset: 'paper' or 'release': what reports compare this configuration with (``changes``); it sets nothing
            itself.
        drivers: which signals the avatar can be driven by, of 'picture', 'coefficients', 'sound'.
    """

    preset: str = 'paper'
    drivers: tuple[str, ...] = ('picture',)
    basis: BasisConfig = field(default_factory=BasisConfig)
    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    train: TrainConfig = field(default_factory=TrainConfig)

    def __post_init__(self):
        check = Check(self)
        check.one_of('preset', *PRESETS)
        check.need(
            len(self.drivers) > 0
            and len(set(self.drivers)) == len(self.drivers)
            and not set(self.drivers) - set(DRIVERS),
            'drivers',
            f'use some of {", ".join(DRIVERS)}, each once',
        )

    @classmethod
    def paper(cls, *drivers: str) -> HFAGPConfig:
        """What the paper describes; where it gives no number or form, the released one."""
        return cls(drivers=drivers or ('picture',))

    @classmethod
    def release(cls, *drivers: str) -> HFAGPConfig:
        """What the released program does for a driver (it knows one at a time)."""
        base = cls('release', drivers or ('picture',))
        batch = 2 if base.drivers == ('picture',) else 1
        return replace(
            base,
            loss=replace(base.loss, perceptual=1.0),
            train=replace(base.train, iterations=800_000, batch_size=batch, smooth_from=300_000, reshuffle=False),
        )

    @property
    def changes(self) -> dict[str, Any]:
        """Options that are not as in the preset that this configuration names: dotted name -> plain value."""
        return differences(self, _preset(self.preset, *self.drivers))

    def with_options(self, options: Mapping[str, Any]) -> HFAGPConfig:
        """A copy with the (nested) options replaced; unknown ones are a ``UserError``."""
        return updated(self, options)

    def ablation(self, name: str) -> HFAGPConfig:
        """A copy with one of ``ABLATIONS`` applied."""
        if name not in ABLATIONS:
            raise UserError(f'ablation {name!r}: not known; there are {", ".join(ABLATIONS)}')
        change = ABLATIONS[name]
        if change == 'no_tuning':
            return replace(self, train=replace(self.train, tune_iter=self.train.iterations))
        return self.with_options(change)


# Topic -> the options that carry it, which differ between the presets.
PRESET_DIFFERENCES: dict[str, tuple[str, ...]] = {
    'weight of the perceptual term: 5 in the paper, 1 in the release': ('loss.perceptual',),
    'length: 200,000 updates in the paper, 800,000 in the release': ('train.iterations',),
    'batch: 2 in the paper; 2, 1 and 1 in the release (picture, coefficients, sound)': ('train.batch_size',),
    'smoothing of sound codes: not in the paper, from update 300,000 on in the release': ('train.smooth_from',),
    'order of the frames: not in the paper, the same in every epoch in the release': ('train.reshuffle',),
}
# Topics on which the paper's text cannot be followed or says nothing: both presets have the released form.
SHARED_CHOICES: dict[str, tuple[str, ...]] = {
    'code: w = f(x) B in the paper; with an offset in the release, without which its weights are useless': (
        'basis.offset',
        'basis.start',
    ),
    'orthogonality: "constrain the basis vectors to be orthogonal"; the release factorises in the forward pass': (
        'basis.orthogonal',
    ),
    'supervision: crops of 512 pixels in the paper; encoder and loss at 256 in the release': (
        'loss.size',
        'encoder.picture_size',
    ),
    'networks of coefficients and sound: in a supplement that is not public': (
        'encoder.width',
        'encoder.coefficients',
        'encoder.sound_code',
        'encoder.sound_channels',
        'encoder.sound_features',
        'encoder.sound_first',
    ),
    'camera: Deep3DFaceRecon with the conversion of EG3D, without its normalisation of the radius': ('label_mode',),
}

ABLATIONS: dict[str, Any] = {
    'k5': {'basis': {'size': 5}},
    'k10': {'basis': {'size': 10}},
    'k20': {'basis': {'size': 20}},
    'k50': {'basis': {'size': 50}},
    'not_orthogonal': {'basis': {'orthogonal': False}},
    'no_second_stage': 'no_tuning',
}
"""Rows of the paper's Table 4, and the second stage left out."""


@dataclass(frozen=True)
class ModelConfig:
    """What builds the networks and says how they are used.

    Attributes:
        generator: the tri-plane generator.
        settings: everything of HFA-GP itself.
        basis: name of the face-model coefficients that the driver 'coefficients' reads.
        label_mode: how camera labels are made from tracked poses (``faces.camera_labels.MODES``); 'raw' keeps the
            camera's distance.
    """

    FORMER_NAMES: ClassVar[Mapping[str, str]] = {'method': 'settings'}  # in files of before

    generator: GeneratorConfig = field(default_factory=lambda: GeneratorConfig.ffhq512(128))
    settings: HFAGPConfig = field(default_factory=HFAGPConfig)
    basis: str = 'procedural'
    label_mode: str = 'raw'

    def __post_init__(self):
        check, numbers = Check(self), self.generator.num_ws * self.generator.w_dim
        check.need(self.settings.basis.size <= numbers, 'settings.basis.size', f'a code has only {numbers} numbers')
        side = self.generator.img_resolution
        check.need(self.settings.loss.size <= side, 'settings.loss.size', f'pictures have only {side} pixels')

    @property
    def img_resolution(self) -> int:
        """Side of the final picture."""
        return self.generator.img_resolution

    @classmethod
    def of(cls, generator: GeneratorConfig, settings: HFAGPConfig | None = None, **other: Any) -> ModelConfig:
        """A configuration whose pictures are compared and encoded at 256 pixels, or at the generator's if it makes
        fewer.
        """
        settings = HFAGPConfig() if settings is None else settings
        size = min(256, generator.img_resolution)
        settings = replace(
            settings, loss=replace(settings.loss, size=size), encoder=replace(settings.encoder, picture_size=size)
        )
        return cls(generator, settings, **other)

    @classmethod
    def full(cls, preset: str = 'paper', *drivers: str, **other: Any) -> ModelConfig:
        """The published sizes: EG3D's generator of 512 pixels (128 rendered), k = 50."""
        return cls(GeneratorConfig.ffhq512(128), _preset(preset, *drivers), **other)

    @classmethod
    def heads(
        cls, preset: str = 'paper', *drivers: str, generator: GeneratorConfig | None = None, **other: Any
    ) -> ModelConfig:
        """For the procedural heads of 128 pixels, with their 64 coefficients; a training of minutes: ten times the
        published learning rate, a sound network that hears from the start, and the generator tuned from update 301 on.
        It starts from the generator's average face. ``generator``: that of the shipped prior; None takes one of the
        same kind.
        """
        settings = _preset(preset, *drivers)
        settings = replace(
            settings,
            basis=replace(settings.basis, start='average'),
            encoder=EncoderConfig(256, 128, (128, 128, 96, 64, 32, 16), 64, sound_features='mel', sound_first='he'),
            loss=replace(settings.loss, size=128),
            train=replace(
                settings.train,
                iterations=3000,
                tune_iter=300,
                optimizer=OptimizerConfig('adam', 3e-3),
                generator_optimizer=OptimizerConfig('adam', 5e-4),
            ),
        )
        return cls(GeneratorConfig.heads128() if generator is None else generator, settings, **other)

    @classmethod
    def tiny(cls, preset: str = 'paper', *drivers: str, **other: Any) -> ModelConfig:
        """For tests: a few thousand parameters, every part present."""
        generator = GeneratorConfig.tiny()
        settings = _preset(preset, *drivers)
        settings = replace(
            settings,
            basis=replace(settings.basis, size=6),
            encoder=EncoderConfig(16, generator.img_resolution, (12, 8, 8, 8), 7, 32, 29, 'mel'),
            loss=replace(settings.loss, size=generator.img_resolution, pyramid_scales=2),
            train=replace(settings.train, iterations=4, tune_iter=2, batch_size=2),
        )
        return cls(generator, settings, **other)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ModelConfig:
        """The inverse of ``to_dict``. Raises ``UserError`` for unknown keys (with a suggestion) and wrong values."""
        return from_plain(cls, values)

    def to_dict(self) -> dict[str, Any]:
        """Plain nested values, as weight files and checkpoints store them."""
        return to_plain(self)


def _preset(name: str, *drivers: str) -> HFAGPConfig:
    if name not in PRESETS:
        raise UserError(f'preset: {name!r}; use one of {", ".join(PRESETS)}')
    return HFAGPConfig.paper(*drivers) if name == 'paper' else HFAGPConfig.release(*drivers)
