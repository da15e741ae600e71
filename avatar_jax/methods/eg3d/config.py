"""Configuration of EG3D's adversarial training."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import jax.numpy as jnp

from avatar_jax.checks import Check
from avatar_jax.errors import UserError
from avatar_jax.methods.eg3d.augment import AdaConfig
from avatar_jax.models.discriminator import Discriminator, DualDiscriminator, SingleDiscriminator
from avatar_jax.models.triplane import GeneratorConfig
from avatar_jax.ops.resize import FILTER_MODES
from avatar_jax.train import run
from avatar_jax.train.loop import LoopConfig

# Density regularisers by ``rendering.reg_type``. The last two can be asked for in the original and do nothing there.
REG_TYPES = ('l1', 'monotonic-detach', 'monotonic-fixed', 'l1-alt', 'total-variation')
WITHOUT_EFFECT = ('l1-alt', 'total-variation')


@dataclass(frozen=True)
class DiscriminatorConfig:
    """The discriminator. Its image size and label size are the generator's.

    Attributes:
        kind: 'dual' (judges image and raw image together) or 'single' (the image alone).
        channel_base, channel_max, conv_clamp, mapping_layers, num_half_res: see ``models.discriminator``.
        c_noise: strength of the noise on camera labels, in standard deviations of the batch.
        mbstd_group_size: samples per group of the minibatch standard deviation; None: a micro-batch. Groups are
            consecutive samples of the global batch ('contiguous'), so they do not depend on the number of devices;
            'strided' are the original's (sample n mod number of groups, within one device's share).
        freeze_layers: number of convolutions, from the image on, that are not trained (Freeze-D).
        dtype: 'float32' or 'bfloat16', type of the activations of the ``num_half_res`` highest resolutions.
    """

    kind: str = 'dual'
    channel_base: int = 32768
    channel_max: int = 512
    conv_clamp: float | None = 256.0
    mapping_layers: int = 8
    num_half_res: int = 4
    c_noise: float = 0.0
    mbstd_group_size: int | None = 4
    mbstd_num_channels: int = 1
    mbstd_grouping: str = 'contiguous'
    freeze_layers: int = 0
    dtype: str = 'float32'

    def __post_init__(self):
        check = Check(self, 'discriminator')
        check.one_of('kind', 'dual', 'single')
        check.one_of('dtype', 'float32', 'bfloat16')
        check.one_of('mbstd_grouping', 'contiguous', 'strided')

    def module(self, img_resolution: int, c_dim: int = 25) -> Discriminator:
        """The network for images of that size."""
        kind = DualDiscriminator if self.kind == 'dual' else SingleDiscriminator
        return kind(
            c_dim=c_dim,
            img_resolution=img_resolution,
            channel_base=self.channel_base,
            channel_max=self.channel_max,
            conv_clamp=self.conv_clamp,
            mapping_layers=self.mapping_layers,
            mbstd_group_size=self.mbstd_group_size,
            mbstd_num_channels=self.mbstd_num_channels,
            mbstd_contiguous=self.mbstd_grouping == 'contiguous',
            dtype=jnp.dtype(self.dtype),
            num_half_res=self.num_half_res,
        )


@dataclass(frozen=True)
class LossConfig:
    """The losses. Density regularisation and pose conditioning are set in ``generator.rendering`` (``density_reg``,
    ``density_reg_p_dist``, ``reg_type``, ``gpc_reg_prob``), where weight files keep them.

    Attributes:
        r1_gamma: weight of the gradient penalty on real images; 0: none.
        style_mixing_prob: probability that the upper style rows come from another code.
        blur_init_sigma, blur_fade_kimg: initial blur of the discriminator's images, and the kimg in which it fades with
            batches of 32; as in the original it takes batch/32 of that (``RunConfig.blur_fade_kimg``).
        gpc_reg_fade_kimg: kimg in which the probability of swapping conditioning poses falls from 1 to
            ``gpc_reg_prob``.
        resolution_final, resolution_fade_kimg: side of the raw image after the fade (None: it stays that of the
            generator), and the kimg of the fade. resolution_multiple: the side grows in steps of this many pixels; 1
            is the original's, and compiles another program for every pixel.
        filter_mode: how real images are reduced to the raw size: 'antialiased', 'none', 'classic' or a number between.
        path_length_weight: weight of StyleGAN2's path-length regularisation (not part of EG3D); 0: none.
        path_length_decay: of the running mean length. path_length_shrink: it is computed on 1/N of the batch.
    """

    r1_gamma: float = 1.0
    style_mixing_prob: float = 0.0
    blur_init_sigma: float = 10.0
    blur_fade_kimg: float = 200.0
    gpc_reg_fade_kimg: float = 1000.0
    resolution_final: int | None = None
    resolution_fade_kimg: float = 1000.0
    resolution_multiple: int = 1
    filter_mode: str | float = 'antialiased'
    path_length_weight: float = 0.0
    path_length_decay: float = 0.01
    path_length_shrink: int = 2

    def __post_init__(self):
        check = Check(self, 'loss')
        check.at_least(0, 'r1_gamma', 'style_mixing_prob', 'blur_init_sigma', 'path_length_weight')
        check.at_least(1, 'resolution_multiple', 'path_length_shrink')
        check.need(
            self.filter_mode in FILTER_MODES or (isinstance(self.filter_mode, float) and 0 < self.filter_mode < 1),
            'filter_mode',
            f'use one of {", ".join(FILTER_MODES)}, or a number between 0 and 1',
        )


@dataclass(frozen=True)
class TrainConfig:
    """Optimisation.

    Attributes:
        kimg: length of the run in thousands of real images. batch: images per iteration, over all devices.
        accumulate: number of micro-batches that each device splits its share into (gradients are averaged).
        remat: recompute activations of generator and discriminator in the backward pass, to save memory.
        g_lr, d_lr, beta1, beta2, eps: of Adam, before the correction for lazy regularisation.
        g_reg_interval, d_reg_interval: iterations between two regularisation steps; 0: one step for loss and
            regularisation together. Without density and path-length regularisation the generator has none.
        ema_kimg: half-life of the generator's average; None: batch * 10/32. ema_rampup: see ``schedules.ema_decay``.
        clean_gradients: gradient entries that are NaN become 0, infinite ones 1e5, as in the original; their number is
            logged (``.../cleaned``). Off: they stop the run.
    """

    kimg: float = 25000.0
    batch: int = 32
    accumulate: int = 1
    remat: bool = False
    g_lr: float = 0.0025
    d_lr: float = 0.002
    beta1: float = 0.0
    beta2: float = 0.99
    eps: float = 1e-8
    optimizer: str = 'adam'
    g_reg_interval: int = 4
    d_reg_interval: int = 16
    ema_kimg: float | None = None
    ema_rampup: float | None = 0.05
    clean_gradients: bool = True

    def __post_init__(self):
        check = Check(self, 'train')
        check.at_least(1, 'batch', 'accumulate')
        check.above(0, 'kimg')
        check.at_least(0, 'g_reg_interval', 'd_reg_interval')

    @property
    def iterations(self) -> int:
        """Length of the run in iterations."""
        return max(-(-int(self.kimg * 1000) // self.batch), 1)


DataConfig = run.PicturesConfig


@dataclass(frozen=True)
class OutputConfig(run.OutputConfig):
    """``train.run.OutputConfig``, and the numbers of columns and rows of a sample sheet.

    ``fid_images``: so many pictures are generated with every sample sheet and compared with all real ones by the FID
    (50,000 in papers; below 2,048 the FID is strongly biased, which is why its name has the number); 0: none. It needs
    ``RunConfig.inception``.
    """

    sample_every: int = 500
    checkpoint_every: int = 500
    sample_columns: int = 8
    sample_rows: int = 2
    fid_images: int = 0

    def __post_init__(self):
        super().__post_init__()
        check = Check(self, 'output')
        check.at_least(1, 'sample_columns')
        check.at_least(0, 'sample_rows')
        check.need(self.fid_images == 0 or self.fid_images > 1, 'fid_images', 'give 0 for none, or at least 2')


@dataclass(frozen=True)
class RunConfig:
    """One training run.

    Attributes:
        seed: decides initial weights, data order and all random draws.
        init: what the networks start from: '' (fresh), a weight file of a generator (or of a method that has one: the
            name of a shipped file will do), or the folder of another run, of which the latest checkpoint is taken.
        init_discriminator: weight file of a discriminator; '' takes that of ``init`` if it is a run, else a fresh one.
        inception: weights of the Inception network that the FID is defined with (``.npz`` of its state dict, or what
            ``avatar-jax convert`` made of it), for ``output.fid_images``.
        parallel: 'pmap', 'shard_map', 'single' or 'sharded'. model_shards: with the last, over how many devices
            parameters and optimizer states are cut; 0: all (``avatar_jax.parallel``).
    """

    seed: int = 0
    generator: GeneratorConfig = field(default_factory=GeneratorConfig)
    discriminator: DiscriminatorConfig = field(default_factory=DiscriminatorConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    augment: AdaConfig = field(default_factory=AdaConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    data: DataConfig = field(default_factory=DataConfig)
    output: OutputConfig = field(default_factory=OutputConfig)
    init: str = ''
    init_discriminator: str = ''
    inception: str = ''
    parallel: str = 'pmap'
    model_shards: int = 0

    # What a resumed run may change.
    MAY_DIFFER = (
        'output.*',
        'inception',
        'data.num_workers',
        'data.num_threads',
        'data.prefetch',
        'data.in_memory',
        'parallel',
        'model_shards',
        'generator.remat',
        'train.kimg',
        'train.accumulate',
        'train.remat',
        'generator.rendering.ray_chunk',
    )

    def __post_init__(self):
        check = Check(self)
        check.one_of('generator.rendering.reg_type', *REG_TYPES)
        check.need(self.generator.c_dim == 25, 'generator.c_dim', 'training needs camera labels of 25 numbers')
        if self.output.fid_images:
            check.need(bool(self.inception), 'inception', 'output.fid_images needs the file of the Inception network')
        else:
            check.need(not self.inception, 'inception', 'nothing uses it; set output.fid_images, or leave it out')

    @property
    def blur_fade_kimg(self) -> float:
        """Thousands of images over which the blur fades: smaller batches see it for fewer images, as originally."""
        return self.loss.blur_fade_kimg * self.train.batch / 32

    @property
    def g_interval(self) -> int | None:
        """Iterations between regularisation steps of the generator; None when there is nothing to regularise."""
        active = self.generator.rendering.density_reg > 0 or self.loss.path_length_weight > 0
        return self.train.g_reg_interval if active else None

    def loop(self) -> LoopConfig:
        """The settings of the loop."""
        return self.output.loop(self.train.iterations)


def check_resolutions(generator: GeneratorConfig, where: str) -> None:
    """Raises ``UserError`` for picture sizes that the networks cannot make, before anything is compiled."""
    for name in ('img_resolution', 'plane_resolution'):
        value = getattr(generator, name)
        if value < 8 or value & (value - 1):
            close = 2 ** max(3, round(math.log2(max(value, 1))))
            raise UserError(f'{where}.{name}: {value}; use a power of two from 8 on, e.g. {close}')
    if not 1 <= generator.neural_rendering_resolution <= generator.img_resolution:
        raise UserError(
            f'{where}.neural_rendering_resolution: {generator.neural_rendering_resolution}; '
            f'use 1 to {generator.img_resolution}'
        )
