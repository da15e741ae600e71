"""Where an inversion starts: at the mean code, or at what an encoder sees in the picture (``--start encoder``).

The encoder is an e4e (``models.e4e``) out of a weight file that holds it together with its generator. Its rows mean
something in the latent space of that generator alone; generators that descend from one another share that space, for
no training moves the mapping network. So the mapping networks are compared, and not what was trained further.
"""

from __future__ import annotations

import functools
import os
import time
from collections.abc import Mapping, Sequence
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from avatar_jax.configure import from_plain
from avatar_jax.errors import UserError
from avatar_jax.io.weights import Weights, check_tree, load_weights, weight_file
from avatar_jax.models.e4e import E4eEncoder, EncoderConfig, abstract_encoder, encoder_input
from avatar_jax.models.triplane import GeneratorConfig
from avatar_jax.parallel import as_arrays, over_devices
from avatar_jax.types import PyTree

STARTS = ('mean', 'encoder')
ROUNDED = 0.02  # of the largest number: weights may be stored in few bits


@flax.struct.dataclass
class StartEncoder:
    """An encoder and the mean code that its rows are offsets from.

    Attributes:
        variables: of ``models.e4e.E4eEncoder``. w_avg: [D].
        config: its sizes. sha256: of the file it is from.
    """

    variables: PyTree
    w_avg: jax.Array
    config: EncoderConfig = flax.struct.field(pytree_node=False)
    sha256: str = flax.struct.field(pytree_node=False, default='')


def chosen_encoder(start: str, file: str, config: GeneratorConfig, generator: Mapping[str, Any]) -> StartEncoder | None:
    """The encoder that the options ``--start`` and ``--encoder`` ask for; None for the mean code.

    Args:
        config, generator: sizes and variables of the generator whose codes are wanted.

    Raises:
        UserError: options that do not go together, or a file that does not fit (``load_encoder``).
    """
    check_start(start, file)
    return load_encoder(file, config, generator) if start == 'encoder' else None


def check_start(start: str, file: str) -> None:
    """Raises ``UserError`` where ``--start`` and ``--encoder`` do not go together; reads nothing."""
    if start not in STARTS:
        raise UserError(f'--start {start}: use one of {", ".join(STARTS)}')
    if start == 'encoder' and not file:
        raise UserError('--start encoder: which one? Give --encoder FILE, weights with an encoder for this generator')
    if start != 'encoder' and file:
        raise UserError(f'--encoder {file}: is read with --start encoder only; add that, or leave it out')


def load_encoder(path: str | os.PathLike, config: GeneratorConfig, generator: Mapping[str, Any]) -> StartEncoder:
    """Reads the encoder of a weight file, and checks that its codes are those of a generator.

    Args:
        config, generator: sizes and variables (``params``, ``ema_stats``) of that generator.

    Raises:
        UserError: a missing or damaged file, one without an encoder, or one for another generator, number of layers
            or size of pictures.
    """
    path = weight_file(path)
    weights = _read(str(path), path.stat().st_mtime_ns if path.is_file() else 0)
    settings = weights.config.get('settings', weights.config.get('method', {}))
    if 'encoder' not in weights.variables.get('batch_stats', {}) or 'generator' not in weights.config:
        raise UserError(
            f"{path}: holds weights of '{weights.method}' without an encoder and its generator; give a file that has "
            'both, e.g. of a training of encoders'
        )
    found = from_plain(EncoderConfig, settings['encoder'])
    _check_sizes(str(path), from_plain(GeneratorConfig, weights.config['generator']), config)
    own = {c: tree['encoder'] for c, tree in weights.variables.items() if c in ('params', 'batch_stats')}
    check_tree(path, own, abstract_encoder(found))
    if not _same_space(_space(_generator(weights)), _space(generator)):
        raise UserError(
            f'{path}: its encoder was trained for another generator, whose codes mean other faces; give one whose '
            'training started from the generator of these weights'
        )
    w_avg = _generator(weights)['ema_stats']['backbone']['mapping']['w_avg']
    return StartEncoder(as_arrays(own), jnp.asarray(w_avg), found, weights.sha256)


@functools.lru_cache(maxsize=1)  # evaluations make one avatar after the other
def _read(path: str, changed: int) -> Weights:
    del changed  # another file under the same name is read again
    return load_weights(path)


def _generator(weights: Weights) -> dict[str, Any]:
    return {c: tree['generator'] for c, tree in weights.variables.items() if 'generator' in tree}


def _check_sizes(path: str, theirs: GeneratorConfig, ours: GeneratorConfig) -> None:
    if theirs.num_ws != ours.num_ws:
        raise UserError(
            f'{path}: its encoder gives {theirs.num_ws} style rows, but the generator takes {ours.num_ws}; give one '
            'for a generator with as many layers'
        )
    if theirs.img_resolution != ours.img_resolution:
        raise UserError(
            f'{path}: its encoder is for pictures of {theirs.img_resolution} pixels, but the weights make '
            f'{ours.img_resolution}; give one for this size'
        )
    if theirs.w_dim != ours.w_dim:
        raise UserError(f'{path}: its style rows have {theirs.w_dim} numbers, the generator takes {ours.w_dim}')


def _space(generator: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """What defines a latent space: the mapping network, or, where a file leaves it out, the mean code."""
    mapping = generator['params']['backbone'].get('mapping')
    found = generator['ema_stats']['backbone']['mapping'] if mapping is None else mapping
    return {jax.tree_util.keystr(p): np.asarray(x) for p, x in jax.tree_util.tree_leaves_with_path(found)}


def _same_space(a: Mapping[str, np.ndarray], b: Mapping[str, np.ndarray]) -> bool:
    return a.keys() == b.keys() and all(
        a[k].shape == b[k].shape and np.abs(a[k] - b[k]).max() <= ROUNDED * max(np.abs(b[k]).max(), 1e-6) for k in a
    )


# -------------------------------------------------------------------------------------------------------------- codes


def encoded_rows(encoder: StartEncoder, images: jax.Array) -> jax.Array:
    """Style rows [N,L,D] of pictures [N,S,S,3] in [-1,1]; S is at least the encoder's size.

    Raises:
        UserError: pictures that are not square, or smaller than the encoder's.
    """
    x = encoder_input(images, encoder.config.image_size)
    return E4eEncoder(encoder.config).apply(encoder.variables, x) + encoder.w_avg


def in_space(rows: jax.Array, space: str) -> jax.Array:
    """Rows [...,L,D] as a code of 'w+' (as they are) or of 'w': their mean in every row."""
    return rows if space == 'w+' else jnp.broadcast_to(rows.mean(-2, keepdims=True), rows.shape)


_COMPILED: set[tuple] = set()  # programs that ran once already


@functools.partial(jax.jit, static_argnames=('space', 'devices'))
def _first_codes(encoder, images, *, space, devices):
    def all_of(encoder, images):
        return in_space(encoded_rows(encoder, images), space)

    return over_devices(all_of, devices)(encoder, images)


def first_codes(
    encoder: StartEncoder, images: jax.Array, space: str, devices: Sequence[jax.Device]
) -> tuple[jax.Array, float]:
    """Codes [N,L,D] that people's inversions start from, and the seconds that it took, without compilation.

    Args:
        images: [N,S,S,3], N a multiple of the number of devices; or [N,P,S,S,3], several pictures of each person, whose
            mean code is taken. space: 'w' or 'w+'.
    """
    if images.ndim == 5:
        codes, seconds = first_codes(encoder, images.reshape(-1, *images.shape[2:]), space, devices)
        return codes.reshape(*images.shape[:2], *codes.shape[1:]).mean(1), seconds
    how = {'space': space, 'devices': tuple(devices)}
    program = (encoder.config, *how.values(), images.shape)
    if program not in _COMPILED:
        _COMPILED.add(program)
        jax.block_until_ready(_first_codes(encoder, images, **how))
    begun = time.perf_counter()
    codes = jax.block_until_ready(_first_codes(encoder, images, **how))
    return codes, time.perf_counter() - begun
