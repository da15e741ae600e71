"""Networks of EG3D in and out of files: what a run starts from, and what it leaves behind."""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from avatar_jax.configure import from_plain, to_plain
from avatar_jax.errors import UserError
from avatar_jax.io.weights import check_config, check_tree, load_weights, save_weights, weight_file
from avatar_jax.methods.eg3d.config import DiscriminatorConfig, RunConfig
from avatar_jax.models.discriminator import DualDiscriminator
from avatar_jax.models.triplane import GeneratorConfig, init_generator
from avatar_jax.parallel import as_arrays
from avatar_jax.train.checkpoints import Checkpoints
from avatar_jax.types import PyTree

METHOD, DISCRIMINATOR_METHOD = 'eg3d', 'eg3d_discriminator'
WEIGHTS, DISCRIMINATOR_WEIGHTS = 'weights.safetensors', 'discriminator.safetensors'
# Options that a generator may change when it is trained on: they do not decide what its numbers mean.
_FREE = ('neural_rendering_resolution', 'dtype', 'sr_dtype', 'release_image_raw', 'remat')
_FREE_RENDERING = (
    'depth_resolution',
    'depth_resolution_importance',
    'density_noise',
    'ray_chunk',
    'density_reg',
    'density_reg_p_dist',
    'reg_type',
    'gpc_reg_prob',
    'c_gen_conditioning_zero',
    'avg_camera_radius',
    'avg_camera_pivot',
)
_DISCRIMINATOR_FIELDS = (
    'c_dim',
    'img_resolution',
    'img_channels',
    'channel_base',
    'channel_max',
    'conv_clamp',
    'cmap_dim',
    'mapping_layers',
    'disc_c_noise',
    'mbstd_group_size',
    'mbstd_num_channels',
    'num_half_res',
)


@dataclass(frozen=True)
class Start:
    """What a run starts from: generator variables, its average (or None), discriminator parameters (or None).

    ``digest`` identifies the numbers ('' for a fresh start).
    """

    generator: Mapping[str, PyTree]
    ema: PyTree | None = None
    discriminator: PyTree | None = None
    digest: str = ''


def meaning(config: GeneratorConfig) -> dict[str, Any]:
    """The part of a generator's configuration that must agree before its weights can be used."""
    plain = {k: v for k, v in to_plain(config).items() if k not in _FREE}
    plain['rendering'] = {k: v for k, v in plain['rendering'].items() if k not in _FREE_RENDERING}
    return plain


@functools.lru_cache(maxsize=16)  # tracing a generator takes seconds, and a file may hold several of one form
def abstract_generator(config: GeneratorConfig) -> dict[str, Any]:
    """Names and shapes of a generator's variables; do not change what it returns."""
    return jax.eval_shape(lambda: init_generator(config, jax.random.key(0)))


def make_discriminator(config: Mapping[str, Any]) -> DualDiscriminator:
    """The module of a stored configuration."""
    return DualDiscriminator(**{k: config[k] for k in _DISCRIMINATOR_FIELDS})


def abstract_discriminator(config: Mapping[str, Any]):
    """Names and shapes of a discriminator's variables."""
    return _abstract_discriminator(make_discriminator(config))


@functools.lru_cache(maxsize=16)
def _abstract_discriminator(net: DualDiscriminator):
    image = jax.ShapeDtypeStruct((1, net.img_resolution, net.img_resolution, net.img_channels), jnp.float32)
    label = jax.ShapeDtypeStruct((1, net.c_dim), jnp.float32)
    return jax.eval_shape(lambda i, c: net.init(jax.random.key(0), i, i, c), image, label)


def load_generator(path: str | os.PathLike) -> tuple[dict[str, PyTree], GeneratorConfig, str]:
    """Variables, configuration and identification of a generator.

    Args:
        path: a weight file of a generator or of a method that has one, the name of a shipped file, or the folder of a
            training run (its average at the latest checkpoint is taken).

    Raises:
        UserError: missing, damaged or foreign file.
    """
    if Path(path).is_dir():
        start, config = load_run(path)
        return {**start.generator, 'params': start.ema}, config.generator, start.digest
    path = weight_file(path)
    weights = load_weights(path)
    if weights.method == METHOD:
        config = from_plain(GeneratorConfig, weights.config)
        variables = {k: v for k, v in weights.variables.items() if k != 'dataset'}
    elif 'generator' in weights.variables.get('params', {}) and 'generator' in weights.config:
        config = from_plain(GeneratorConfig, weights.config['generator'])
        variables = {k: v['generator'] for k, v in weights.variables.items() if 'generator' in v}
    else:
        raise UserError(f"{path}: holds weights of '{weights.method}', which has no tri-plane generator")
    check_tree(path, variables, abstract_generator(config))
    return as_arrays(variables), config, weights.sha256


def load_discriminator(path: str | os.PathLike) -> tuple[dict[str, PyTree], DualDiscriminator]:
    """Variables and module of a dual discriminator.

    Raises:
        UserError: missing, damaged or foreign file, or weights that do not fit their configuration.
    """
    weights = load_weights(path, method=DISCRIMINATOR_METHOD)
    check_tree(path, weights.variables, abstract_discriminator(weights.config))
    return as_arrays(weights.variables), make_discriminator(weights.config)


def load_run(folder: str | os.PathLike) -> tuple[Start, RunConfig]:
    """Networks of another run's latest checkpoint, without its optimizers and counters.

    Raises:
        UserError: no such folder, no checkpoint, damaged, or not a run of EG3D.
    """
    from avatar_jax.methods.eg3d.train import fresh_variables

    with Checkpoints(Path(folder) / 'checkpoints', read_only=True) as checkpoints:
        stored = checkpoints.stored_config().get('run', {})
        if 'discriminator' not in stored:
            raise UserError(f'{folder}: is not a training run of EG3D')
        config = from_plain(RunConfig, stored)
        g, d = jax.eval_shape(lambda: fresh_variables(config))
        template = {
            'groups': {'generator': {'params': g['params'], 'ema': g['params']}, 'discriminator': {'params': d}},
            'extra': {'noise': g['noise'], 'ema_stats': g['ema_stats']},
        }
        part, step = checkpoints.restore_part(template)
    part = as_arrays(part)
    generator = {'params': part['groups']['generator']['params'], **part['extra']}
    return Start(
        generator,
        part['groups']['generator']['ema'],
        part['groups']['discriminator']['params'],
        f'{Path(folder).resolve().name}@{step}',
    ), config


def starting_point(config: RunConfig) -> Start:
    """The networks that ``config`` asks to start from.

    Raises:
        UserError: files that are missing, damaged, or do not fit the configuration.
    """
    from avatar_jax.methods.eg3d.train import fresh_variables

    g, d = fresh_variables(config)
    start = Start(g, None, d)
    if config.init and Path(config.init).is_dir():
        start, other = load_run(config.init)
        check_config(f'{config.init} (generator)', meaning(other.generator), meaning(config.generator))
        check_tree(config.init, {'d': start.discriminator}, {'d': d})
    elif config.init:
        variables, found, digest = load_generator(config.init)
        check_config(f'{config.init} (generator)', meaning(found), meaning(config.generator))
        start = Start(variables, None, d, digest)
    if config.init_discriminator:
        weights = load_weights(config.init_discriminator, method=DISCRIMINATOR_METHOD)
        check_tree(config.init_discriminator, weights.variables, {'params': d})
        start = Start(
            start.generator,
            start.ema,
            as_arrays(weights.variables['params']),
            f'{start.digest}+{weights.sha256}',
        )
    return start


def save_networks(
    folder: str | os.PathLike,
    variables: Mapping[str, PyTree],
    generator: GeneratorConfig,
    d_params: PyTree,
    discriminator: DiscriminatorConfig,
    provenance: Mapping[str, Any],
) -> str:
    """Writes the averaged generator and the discriminator as weight files; returns the generator's SHA-256.

    ``load_generator`` reads the first; a single discriminator, which no other program reads, is not
    written.
    """
    sha = save_weights(
        Path(folder) / WEIGHTS, variables, method=METHOD, config=to_plain(generator), provenance=provenance
    )
    if discriminator.kind == 'dual':
        net = discriminator.module(generator.img_resolution, generator.c_dim)
        config = {k: getattr(net, k) for k in _DISCRIMINATOR_FIELDS}
        save_weights(
            Path(folder) / DISCRIMINATOR_WEIGHTS,
            {'params': d_params},
            method=DISCRIMINATOR_METHOD,
            config=config,
            provenance=provenance,
        )
    return sha
