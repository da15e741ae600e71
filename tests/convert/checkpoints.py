"""Small checkpoints of whole networks, in the originals' layouts, for the tests of conversions."""

from __future__ import annotations

from typing import Any

import numpy as np

from avatar_jax.convert.base import FIR
from avatar_jax.convert.layout import torch_shapes
from avatar_jax.io.foreign import RawFile
from avatar_jax.methods.eg3d.files import abstract_discriminator, abstract_generator
from avatar_jax.methods.otavatar.controller import ControllerConfig, abstract_params
from avatar_jax.models.triplane import GeneratorConfig
from tests.convert import writers as w

BUFFERS = ('noise_const', 'w_avg', 'resample_filter', 'dataset_label_std', 'running_mean', 'running_var')
RENDERING = {
    'image_resolution': 128,
    'disparity_space_sampling': False,
    'clamp_mode': 'softplus',
    'superresolution_module': 'training.superresolution.SuperresolutionHybrid2X',
    'c_gen_conditioning_zero': True,
    'gpc_reg_prob': None,
    'c_scale': 1.0,
    'superresolution_noise_mode': 'none',
    'density_reg': 0.25,
    'density_reg_p_dist': 0.004,
    'reg_type': 'l1',
    'decoder_lr_mul': 1.0,
    'sr_antialias': True,
    'depth_resolution': 4,
    'depth_resolution_importance': 4,
    'ray_start': 0.1,
    'ray_end': 2.6,
    'box_warp': 1.6,
    'white_back': True,
    'avg_camera_radius': 1.7,
    'avg_camera_pivot': [0, 0, 0],
}
DISCRIMINATOR = {
    'c_dim': 25,
    'img_resolution': 16,
    'img_channels': 3,
    'channel_base': 64,
    'channel_max': 4,
    'conv_clamp': 256,
    'cmap_dim': None,
    'mapping_layers': 2,
    'disc_c_noise': 0.0,
    'mbstd_group_size': 4,
    'mbstd_num_channels': 1,
    'num_half_res': 4,
}


def numbers(shapes: dict[str, tuple[int, ...]], seed: int = 0) -> dict[str, np.ndarray]:
    """A random state dict."""
    rng = np.random.default_rng(seed)
    return {k: rng.standard_normal(s).astype(np.float32) for k, s in shapes.items()}


def small_generator(**changes: Any) -> GeneratorConfig:
    """A generator of a few thousand parameters that follows the release's rules."""
    base = GeneratorConfig.shapenet128().replace(
        z_dim=8,
        w_dim=8,
        plane_resolution=16,
        channel_base=64,
        channel_max=4,
        sr_channels=(3, 2),
        rendering={'depth_resolution': 4, 'depth_resolution_importance': 4},
    )
    return base.replace(**changes)


def generator_state(config: GeneratorConfig, seed: int = 0) -> dict[str, np.ndarray]:
    """State dict of a generator, with its constant filters."""
    flat = numbers(torch_shapes(abstract_generator(config)), seed)
    layers = {k.rpartition('.')[0] for k in flat if k.endswith('.noise_const')}
    owners = layers | {layer.rpartition('.')[0] for layer in layers}
    owners |= set() if config.superresolution == '8XDC' else {'superresolution'}
    return flat | {f'{o}.resample_filter': FIR for o in owners}


def discriminator_state(seed: int = 5) -> dict[str, np.ndarray]:
    """State dict of a small discriminator."""
    return numbers(torch_shapes(abstract_discriminator(DISCRIMINATOR)), seed) | {'resample_filter': FIR}


def controller_state(config: ControllerConfig, seed: int = 1, module: bool = False) -> dict[str, np.ndarray]:
    """State dict of a controller: the shared layer is written once for each use."""
    flat = numbers(torch_shapes({'params': abstract_params(config)}), seed)
    for i in range(1, config.mlp_layers):
        for part in ('weight', 'bias'):
            flat.setdefault(f'mapping_Refine.{2 * i}.{part}', flat[f'mapping_Refine.0.{part}'])
    return {('module.' if module else '') + k: v for k, v in flat.items()}


def init_kwargs(config: GeneratorConfig, **rendering: Any) -> dict[str, Any]:
    """Constructor options as network pickles store them."""
    return {
        'z_dim': config.z_dim,
        'c_dim': 25,
        'w_dim': config.w_dim,
        'img_resolution': config.img_resolution,
        'img_channels': 3,
        'sr_num_fp16_res': 4,
        'mapping_kwargs': {'num_layers': 2},
        'rendering_kwargs': RENDERING | rendering,
        'sr_kwargs': {'channel_base': 32768},
        'channel_base': config.channel_base,
        'channel_max': config.channel_max,
        'fused_modconv_default': 'inference_only',
        'num_fp16_res': 0,
        'conv_clamp': None,
    }


def network(state: dict[str, np.ndarray], axes: np.ndarray | None = None, **attributes: Any) -> w.Call:
    """A persistent network; ``axes``: plane axes of its renderer."""
    made = w.nested_modules(state, BUFFERS, **attributes)
    if axes is not None:
        renderer = w.New(
            w.Name('training.volumetric_rendering.renderer', 'ImportanceRenderer'),
            w.module_state(plane_axes=w.tensor(axes)),
        )
        modules = made.arguments[0]['state']['_modules']
        modules.items = {**(modules.items or {}), 'renderer': renderer}
    return made


AXES = np.float32([np.eye(3), [[1, 0, 0], [0, 0, 1], [0, 1, 0]], [[0, 0, 1], [1, 0, 0], [0, 1, 0]]])


def eg3d_pickle(config: GeneratorConfig, *, raw: int = 64, change: dict | None = None, **rendering: Any) -> bytes:
    """A network pickle with G, D and G_ema. ``change``: entries of G_ema that are replaced (None: left out)."""
    options = {
        '_init_args': (),
        '_init_kwargs': init_kwargs(config, **rendering),
        'neural_rendering_resolution': raw,
        'rendering_kwargs': RENDERING | rendering,
    }
    ema = {k: v for k, v in (generator_state(config) | (change or {})).items() if v is not None}
    judge = {
        '_init_args': (),
        '_init_kwargs': {k: DISCRIMINATOR[k] for k in ('c_dim', 'img_resolution', 'img_channels')},
    }
    return w.pickled(
        {
            'training_set_kwargs': {'class_name': 'training.dataset.ImageFolderDataset', 'resolution': 128},
            'G': network(generator_state(config, 3), AXES, **options),
            'D': network(discriminator_state(), **judge),
            'G_ema': network(ema | {'dataset_label_std': np.ones(25, np.float32)}, AXES, **options),
            'augment_pipe': None,
        },
        w.Options(4),
    )


def tensors(flat: dict[str, np.ndarray]) -> w.Call:
    """A state dict as torch pickles it."""
    return w.ordered({k: w.tensor(v) for k, v in flat.items()})


def otavatar_value(config: GeneratorConfig, controller: ControllerConfig, **more: Any) -> dict[str, Any]:
    """Content of a checkpoint of OTAvatar."""
    module = {f'module.{k}': v for k, v in generator_state(config, 3).items()}
    return {
        'net_Warp': tensors(controller_state(controller, 4, module=True)),
        'net_Warp_ema': tensors(controller_state(controller)),
        'net_G': tensors(module),
        'net_G_ema': tensors(generator_state(config)),
        'opt_Warp': {
            'state': {0: {'step': 7, 'exp_avg': w.tensor(np.ones(3, np.float32))}},
            'param_groups': [{'lr': 0.001}],
        },
        'sch_Warp': {'last_epoch': 3},
        'opt_G': None,
        'sch_G': None,
        'current_epoch': 5,
        'current_iteration': 2000,
        **more,
    }


def abstract_file(tmp_path, flat_shapes: dict[str, tuple[int, ...]], start: str = '') -> RawFile:
    """A file of the given entries that takes up no memory: all of its numbers are one and the same zero."""
    zero = np.zeros((), np.float32)
    entries = {start + k: np.broadcast_to(zero, s) for k, s in flat_shapes.items()}
    return RawFile(tmp_path / 'abstract.pth', 'torch-zip', entries, {})
