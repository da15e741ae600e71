"""Everything that can be chosen about OTAvatar, and the two presets.

`OTAvatarConfig.paper()` follows the text of the paper, `OTAvatarConfig.release()` the behaviour that the released
weights were trained with and need. `PRESET_DIFFERENCES` lists, topic by topic, where the two differ and which options
carry the difference; `ABLATIONS` has the paper's ablation studies as overrides of a preset.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from avatar_jax.checks import Check
from avatar_jax.configure import differences, replaced
from avatar_jax.inversion.decoupling import DecouplingConfig
from avatar_jax.inversion.invert import StageConfig
from avatar_jax.methods.otavatar.controller import ControllerConfig
from avatar_jax.methods.otavatar.losses import LossConfig
from avatar_jax.train.optimizers import OptimizerConfig


@dataclass(frozen=True)
class OptimizersConfig:
    """One optimizer for each kind of parameters; those of codes and intrinsics start afresh with every inversion."""

    codes: OptimizerConfig = field(default_factory=lambda: OptimizerConfig('adam', 0.01))
    intrinsics: OptimizerConfig = field(default_factory=lambda: OptimizerConfig('adamw', 0.01, 0.9, 0.9999))
    controller: OptimizerConfig = field(default_factory=lambda: OptimizerConfig('adam', 1e-4))
    generator: OptimizerConfig = field(default_factory=lambda: OptimizerConfig('adam', 1e-4))


@dataclass(frozen=True)
class TrainConfig:
    """What surrounds the decoupling-by-inverting iterations.

    Attributes:
        iterations: length of the training (2000 in the paper and for the released weights).
        batch_size: people per iteration over all devices; each contributes `frames_per_clip` frames of one clip.
        frames_per_clip: frames that share one identity code.
        frame_sampling: 'uniform' or 'expression' (probability proportional to the L1 norm of the expression + 0.001).
        average_gradients: average controller and generator gradients over devices. False trains one replica per device
            on its own share of the batch; the first one is kept.
        generator_subset: what the fine-tuning may change, 'all' generator parameters or 'superresolution' alone.
    """

    iterations: int = 2000
    batch_size: int = 24
    frames_per_clip: int = 2
    frame_sampling: str = 'uniform'
    average_gradients: bool = True
    generator_subset: str = 'all'

    def __post_init__(self):
        check = Check(self, 'train')
        check.one_of('frame_sampling', 'uniform', 'expression')
        check.one_of('generator_subset', 'all', 'superresolution')
        check.at_least(1, 'batch_size', 'frames_per_clip')
        check.at_least(0, 'iterations')


@dataclass(frozen=True)
class InversionConfig:
    """One-shot inversion of a portrait (paper section 3.3): a stage in W, then one in W+.

    Attributes:
        w_steps: steps in W, one code row for the whole generator, from the average code; 0 leaves the stage out.
        wplus_steps: steps in W+, all rows free; 0 stays in W (an ablation).
        sr_steps: number of steps, at the end of each stage, with the super-resolved image in the loss; None: all.
        keep_last_w_update: False returns the code before the last update of the W stage, as the released program does
            (99 of 100 updates count; the intrinsics keep all 100).
        optimise_intrinsics: fit a correction of the camera intrinsics, with a fresh optimizer in each stage.
        early_stop, tolerance, patience: end a phase for a person whose smoothed loss has not fallen by the fraction
            `tolerance` for `patience` steps.
    """

    w_steps: int = 100
    wplus_steps: int = 100
    sr_steps: int | None = None
    keep_last_w_update: bool = True
    optimise_intrinsics: bool = False
    early_stop: bool = False
    tolerance: float = 0.01
    patience: int = 20

    def __post_init__(self):
        check = Check(self, 'inversion')
        check.at_least(0, 'w_steps', 'wplus_steps', 'sr_steps')
        check.need(self.w_steps + self.wplus_steps > 0, 'w_steps', 'wplus_steps is 0, too; give steps to one of them')
        self.stages()

    def stages(self) -> tuple[StageConfig, ...]:
        """The stages as `inversion.invert` takes them."""
        stages = []
        for space, steps in (('w', self.w_steps), ('w+', self.wplus_steps)):
            if steps:
                stages.append(
                    StageConfig(
                        space=space,
                        steps=steps,
                        sr_steps=steps if self.sr_steps is None else min(steps, self.sr_steps),
                        optimise_intrinsics=self.optimise_intrinsics,
                        return_previous=space == 'w' and not self.keep_last_w_update,
                        early_stop=self.early_stop,
                        tolerance=self.tolerance,
                        patience=self.patience,
                    )
                )
        return tuple(stages)


# The paper's iteration; the defaults of DecouplingConfig are the release's.
_PAPER_DECOUPLING = DecouplingConfig(
    sr_steps=100,
    optimise_intrinsics=False,
    clip_code=None,
    clip_controller=None,
    clip_generator=None,
    reset_from_ema=True,
    inner_generator='raw',
    refine='together',
    refine_controller=False,
    ema_generator=False,
    lr_decay_every=0,
    lr_decay=1.0,
)


@dataclass(frozen=True)
class OTAvatarConfig:
    """All options of the method.

    Attributes:
        preset: 'paper' or 'release': what reports compare this configuration with (`changes`); it sets nothing itself.
        controller: shape of the motion controller.
        loss: terms and weights.
        decoupling: one training iteration (paper section 3.2, Algorithm 1): steps, order, clipping, averages.
        optimizers: of codes, intrinsics, controller and generator.
        train: batches, length and what the fine-tuning may change.
        inversion: one-shot inversion.
        sigma_w: scale of the motion offset and of the clamp: 'ones' (which the released weights need) or 'std', the
            standard deviations of the codes that the generator's mapping network makes (``model.code_std``).
        clamp_radius: during optimisation the code is kept within this distance (times sigma_w) of the average code;
            None does not limit it. Animation never clamps.
    """

    preset: str = 'paper'
    controller: ControllerConfig = field(default_factory=ControllerConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    decoupling: DecouplingConfig = _PAPER_DECOUPLING
    optimizers: OptimizersConfig = field(default_factory=OptimizersConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    inversion: InversionConfig = field(default_factory=InversionConfig)
    sigma_w: str = 'ones'
    clamp_radius: float | None = None

    def __post_init__(self):
        check = Check(self)
        check.one_of('sigma_w', 'ones', 'std')
        check.one_of('preset', 'paper', 'release')
        check.above(0, 'clamp_radius')
        check.need(
            not self.loss.alpha_mutual or self.train.frames_per_clip > 1,
            'loss.alpha_mutual',
            'compares two frames of a clip; set it to 0 or train.frames_per_clip to 2',
        )

    @classmethod
    def paper(cls, **overrides: Any) -> OTAvatarConfig:
        """What the paper describes. Where it gives no number (loss weights) the released one is used.

        Overrides are dotted paths with ``__`` for the dot (``decoupling__controller_steps=5``) or whole groups
        (``loss=LossConfig()``).
        """
        return replaced(cls(preset='paper'), overrides)

    @classmethod
    def release(cls, **overrides: Any) -> OTAvatarConfig:
        """What the released program does, including what is known to be a mistake in it. Overrides as for `paper`."""
        return replaced(replaced(cls(preset='release'), _RELEASE), overrides)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> OTAvatarConfig:
        """A configuration from nested (or dotted) keys on top of ``values['preset']`` (default 'paper').

        Raises:
            UserError: unknown keys (with the nearest known one), wrong types or values.
        """
        preset = values.get('preset', 'paper')
        Check.values(preset=preset).one_of('preset', 'paper', 'release')
        return replaced(cls.paper() if preset == 'paper' else cls.release(), values)

    @property
    def changes(self) -> dict[str, Any]:
        """Options that are not as in the preset that this configuration names: dotted name -> value."""
        return differences(self, type(self).paper() if self.preset == 'paper' else type(self).release())

    def to_dict(self) -> dict[str, Any]:
        """Nested plain dictionaries; `from_dict` reads them back."""
        return dataclasses.asdict(self)

    def replace(self, **overrides: Any) -> OTAvatarConfig:
        """A copy with some options changed; paths as for `paper`."""
        return replaced(self, overrides)

    def ablation(self, name: str) -> OTAvatarConfig:
        """A copy with one of `ABLATIONS` applied."""
        Check.values(ablation=name).one_of('ablation', *ABLATIONS)
        return replaced(self, ABLATIONS[name])


# What the released program does differently from the defaults above, which are the paper's.
_RELEASE: dict[str, Any] = {
    'clamp_radius': 5.0,
    'loss.eyes': False,
    'loss.pixel': 1.0,
    'loss.controller_l1': 0.0,
    'decoupling': DecouplingConfig(),
    'optimizers.controller': OptimizerConfig('adamw', 1e-3, 0.5, 0.999, weight_decay=1.0),
    'optimizers.generator': OptimizerConfig('adam', 1e-4, 0.9, 0.9999),
    'train.batch_size': 16,
    'train.average_gradients': False,
    'train.frame_sampling': 'expression',
    'inversion.sr_steps': 10,
    'inversion.keep_last_w_update': False,
    'inversion.optimise_intrinsics': True,
}

# Topic -> the options that carry it, which differ between the presets.
PRESET_DIFFERENCES: dict[str, tuple[str, ...]] = {
    'controller reset to its average before each iteration': ('decoupling.reset_from_ema',),
    'fine-tuning step': ('decoupling.refine', 'decoupling.refine_controller'),
    'averages': ('decoupling.ema_generator', 'decoupling.inner_generator'),
    'optimizer of the controller': ('optimizers.controller', 'decoupling.clip_controller'),
    'optimizer of the generator': (
        'optimizers.generator',
        'decoupling.clip_generator',
        'decoupling.lr_decay_every',
        'decoupling.lr_decay',
    ),
    'clipping of the identity gradients': ('decoupling.clip_code',),
    'L1 penalty on the controller': ('loss.controller_l1',),
    'losses on the super-resolved image': ('decoupling.sr_steps', 'inversion.sr_steps'),
    'eye term': ('loss.eyes',),
    'pixel loss': ('loss.pixel',),
    'intrinsics optimisation': ('decoupling.optimise_intrinsics', 'inversion.optimise_intrinsics'),
    'clamp of the code': ('clamp_radius',),
    'frame sampling': ('train.frame_sampling',),
    'batch': ('train.batch_size', 'train.average_gradients'),
    'updates of W at inference': ('inversion.keep_last_w_update',),
}
# Topics on which the paper is too vague to build from (or its text and its own figures disagree), so that both presets
# have the released form; the options are there to try the paper's wording.
SHARED_CHOICES: dict[str, tuple[str, ...]] = {
    'motion size: 73 in the paper, with crop parameters': ('controller.use_crop',),
    'temporal convolutions: three plain ones in the paper': ('controller.temporal', 'controller.temporal_layers'),
    'MLP: five layers in the paper, one shared layer and a short cut in the release': (
        'controller.mlp_layers',
        'controller.mlp_shared',
        'controller.short_cut',
    ),
    'Algorithm 1, line 9: 89 + 11 steps read literally, 90 + 10 in the text': (
        'decoupling.identity_steps',
        'decoupling.controller_steps',
    ),
    'loss weights: none in the paper': ('loss.perceptual', 'loss.style', 'loss.local', 'loss.identity'),
    'perceptual loss: a sum of L1 norms in the paper, means over several scales in the release': (
        'loss.perceptual_reduction',
        'loss.perceptual_scales_raw',
        'loss.perceptual_scales_sr',
        'loss.style_scales',
    ),
    'training length': ('train.iterations',),
}

# The paper's ablations (tables 3, 4 and 5), and inversion in W instead of W+.
ABLATIONS: dict[str, dict[str, Any]] = {
    'n_mo_1': {'decoupling.identity_steps': 99, 'decoupling.controller_steps': 1},
    'n_mo_5': {'decoupling.identity_steps': 95, 'decoupling.controller_steps': 5},
    'n_mo_20': {'decoupling.identity_steps': 80, 'decoupling.controller_steps': 20},
    'joint': {'decoupling.mode': 'joint'},
    'no_local': {'loss.local': 0.0},
    'no_identity': {'loss.identity': 0.0},
    'no_finetune': {'decoupling.refine': 'off'},
    'motion_in_w': {'controller.motion_space': 'w'},
    'linear_basis': {'controller.code_book': 'linear'},
    'identity_in_w': {'inversion.wplus_steps': 0},
}


# -------------------------------------------------------------------------------------------------- reading options
