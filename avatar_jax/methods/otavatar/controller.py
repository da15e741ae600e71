"""The motion controller: a window of expression and pose coefficients -> an offset of the generator's latent code.

Paper section 3.1 and supplementary 6.3. Temporal convolutions compress 27 frames into one feature, a small MLP turns
it into magnitudes of 20 directions for each latent row, and the directions come from an orthogonalised code book.

Letters: B batch, T frames of a window, L rows of the latent code (num_ws), D its width (w_dim), K directions.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from avatar_jax.checks import Check
from avatar_jax.configure import from_plain
from avatar_jax.convert.layout import from_torch, to_torch
from avatar_jax.errors import UserError
from avatar_jax.io.weights import check_tree, load_weights
from avatar_jax.ops.conv import conv1d
from avatar_jax.parallel import as_arrays

CONTROLLER_METHOD = 'otavatar_controller'
"""Of weight files that hold a controller alone."""

NUM_EXPRESSION, NUM_POSE, NUM_CROP = 64, 6, 3


@dataclass(frozen=True)
class ControllerConfig:
    """Shape of the controller. The defaults are the released network (869,420 parameters).

    Attributes:
        num_ws: rows L of the generator's latent code (14 for a 512-pixel generator).
        w_dim: width D of the latent code.
        directions: number K of code-book directions.
        channels: width of the temporal features and of the MLP.
        temporal: 'residual' is one convolution (kernel 7) and `temporal_layers` residual dilated ones, as released;
            'plain' is the paper's wording, `temporal_layers` ordinary convolutions (kernel 7) with an activation
            between.
        temporal_layers: see `temporal`.
        mlp_layers: hidden linear layers of the MLP.
        mlp_shared: all hidden layers are one and the same layer, as released; False gives each its own weights.
        short_cut: add the temporal feature to the MLP's output before the last layer.
        use_pose: read head angle and translation too (70 channels); False reads the 64 expression numbers alone.
        use_crop: read three crop parameters as well (73 channels, the size that the paper gives). Frames that were
            cropped by one fixed rule have constant crop parameters, and motions have none here: a controller by itself
            (an imported one) may read them, a whole model refuses to.
        motion_space: 'w+' gives each latent row its own magnitudes; 'w' one set for all rows (ablation of the paper).
        code_book: 'orthogonal' is the QR code book, 'linear' ordinary weights (ablation "w/o code book").
        scaling: also predict a factor for the identity code.
        leaky_slope: negative slope of every activation.
        init_gain: gain of the Xavier-normal initialisation.
    """

    FORMER_NAMES: ClassVar[Mapping[str, str]] = {'basis': 'code_book'}  # in files of before

    num_ws: int = 14
    w_dim: int = 512
    directions: int = 20
    channels: int = 256
    temporal: str = 'residual'
    temporal_layers: int = 3
    mlp_layers: int = 5
    mlp_shared: bool = True
    short_cut: bool = True
    use_pose: bool = True
    use_crop: bool = False
    motion_space: str = 'w+'
    code_book: str = 'orthogonal'
    scaling: bool = False
    leaky_slope: float = 0.1
    init_gain: float = 0.02

    def __post_init__(self):
        check = Check(self, 'controller')
        check.one_of('temporal', 'residual', 'plain')
        check.one_of('motion_space', 'w+', 'w')
        check.one_of('code_book', 'orthogonal', 'linear')
        check.at_least(1, 'num_ws', 'w_dim', 'directions', 'channels', 'temporal_layers', 'mlp_layers')
        check.need(
            self.code_book == 'linear' or self.directions <= self.w_dim,
            'directions',
            f"so many orthogonal directions do not fit into {self.w_dim} dimensions; use fewer or code_book='linear'",
        )
        check.need(
            self.use_pose or not self.use_crop, 'use_crop', 'needs use_pose, the crop channels follow the pose channels'
        )

    @property
    def motion_channels(self) -> int:
        """Coefficients per frame that are read: the first 64, 70 or 73."""
        return NUM_EXPRESSION + NUM_POSE * self.use_pose + NUM_CROP * self.use_crop

    @property
    def rows(self) -> int:
        """Rows of magnitudes per code book use: one common row and, in W+, one for each latent row."""
        return self.num_ws + 1 if self.motion_space == 'w+' else 1

    @property
    def min_window(self) -> int:
        """The shortest window that the unpadded convolutions leave something of."""
        return 7 + 6 * self.temporal_layers if self.temporal == 'residual' else 1 + 6 * self.temporal_layers


class MotionCode(NamedTuple):
    """Output of the controller.

    Attributes:
        w_x: [B,L,D] offset.
        alpha: magnitudes; [B,L,K] ([B,1,K] for motion_space 'w'), with scaling the raw output of the MLP
            [B,2*rows,K].
        scaling: [B,L,D] relative change of the identity code, or None.
    """

    w_x: jax.Array
    alpha: jax.Array
    scaling: jax.Array | None = None


# ------------------------------------------------------------------------------------------------------ pure functions


def orthogonal_directions(weight: jax.Array) -> jax.Array:
    """Reduced QR of (weight + 1e-8): Q [D,K] with the column signs of LAPACK's Householder convention.

    The magnitudes multiply the columns, so the signs are part of a trained model and are not normalised.
    """
    return jnp.linalg.qr(weight + 1e-8, mode='reduced')[0]


def combine_codes(w: jax.Array, code: MotionCode, sigma: jax.Array | None = None) -> jax.Array:
    """The code that the generator gets: ``w * (1 + scaling) + sigma * w_x``.

    Args:
        w: identity code, [B,1,D] (W) or [B,L,D] (W+).
        sigma: [D] (or broadcastable) scale of the offset; None means ones, which is what the released weights need.

    Returns:
        [B,L,D].
    """
    offset = code.w_x if sigma is None else sigma * code.w_x
    return (w if code.scaling is None else w * (1 + code.scaling)) + offset


def clamp_codes(ws: jax.Array, w_avg: jax.Array, radius: float | None, sigma: jax.Array | None = None) -> jax.Array:
    """Limits ws [B,L,D] to ``w_avg +- radius * sigma`` element by element; radius None leaves it as it is."""
    if radius is None:
        return ws
    reach = radius if sigma is None else radius * sigma
    return jnp.clip(ws, w_avg - reach, w_avg + reach)


# ------------------------------------------------------------------------------------------------- parameter holders


def _xavier(gain: float, fan_in: int, fan_out: int):
    return nn.initializers.normal(gain * (2.0 / (fan_in + fan_out)) ** 0.5)


class _Conv1d(nn.Module):
    """weight [k,I,O], bias [O]; no padding."""

    features: int
    kernel: int
    dilation: int
    gain: float

    @nn.compact
    def __call__(self, x):
        fans = (x.shape[-1] * self.kernel, self.features * self.kernel)
        weight = self.param('weight', _xavier(self.gain, *fans), (self.kernel, x.shape[-1], self.features))
        bias = self.param('bias', nn.initializers.zeros, (self.features,))
        return conv1d(x, weight, padding='VALID', dilation=self.dilation) + bias


class _Linear(nn.Module):
    """weight [I,O], bias [O]."""

    features: int
    gain: float

    @nn.compact
    def __call__(self, x):
        weight = self.param('weight', _xavier(self.gain, x.shape[-1], self.features), (x.shape[-1], self.features))
        return x @ weight + self.param('bias', nn.initializers.zeros, (self.features,))


class _At(nn.Module):
    """Holds a convolution under an index, as the original key names have it (``first.0.weight``)."""

    index: str
    features: int
    kernel: int
    dilation: int
    gain: float

    @nn.compact
    def __call__(self, x):
        return _Conv1d(self.features, self.kernel, self.dilation, self.gain, name=self.index)(x)


class _Temporal(nn.Module):
    config: ControllerConfig

    @nn.compact
    def __call__(self, x):  # [B,T,C_in] -> [B,channels]
        c = self.config
        h = _At('0', c.channels, 7, 1, c.init_gain, name='first')(x)
        self.sow('intermediates', 'after_first', h)
        for i in range(c.temporal_layers if c.temporal == 'residual' else c.temporal_layers - 1):
            active = nn.leaky_relu(h, c.leaky_slope)
            if c.temporal == 'residual':
                h = _At('1', c.channels, 3, 3, c.init_gain, name=f'encoder{i}')(active) + h[:, 3:-3]
            else:
                h = _At('1', c.channels, 7, 1, c.init_gain, name=f'encoder{i}')(active)
            self.sow('intermediates', f'after_encoder{i}', h)
        pooled = h.mean(axis=1)
        self.sow('intermediates', 'pooled', pooled)
        return pooled


class _Refine(nn.Module):
    config: ControllerConfig

    @nn.compact
    def __call__(self, f):  # [B,channels] -> [B,rows * K (* 2)]
        c = self.config
        hidden = [_Linear(c.channels, c.init_gain, name=str(2 * i)) for i in range(1 if c.mlp_shared else c.mlp_layers)]
        u = f
        for i in range(c.mlp_layers):
            u = hidden[0 if c.mlp_shared else i](u if i == 0 else nn.leaky_relu(u, c.leaky_slope))
        u = f + u if c.short_cut else u
        outputs = c.rows * c.directions * (2 if c.scaling else 1)
        return _Linear(outputs, c.init_gain, name=str(2 * c.mlp_layers))(nn.leaky_relu(u, c.leaky_slope))


class _CodeBook(nn.Module):
    """weight [D,K]; the columns are the directions."""

    config: ControllerConfig

    @nn.compact
    def __call__(self):
        c = self.config
        # Orthogonalised directions have unit columns whatever the scale; plain ones start with the same length.
        scale = 1.0 if c.code_book == 'orthogonal' else c.w_dim**-0.5
        weight = self.param('weight', nn.initializers.normal(scale), (c.w_dim, c.directions))
        return orthogonal_directions(weight) if c.code_book == 'orthogonal' else weight


class Controller(nn.Module):
    """Motion windows -> latent offsets. Parameters are named as in the released state dict."""

    config: ControllerConfig = ControllerConfig()

    def setup(self):
        self.mapping_3DMM = _Temporal(self.config)
        self.mapping_Refine = _Refine(self.config)
        self.direction = _CodeBook(self.config)

    def code_book(self) -> jax.Array:
        """The directions [D,K]. They depend on the parameters alone: for inference compute them once and pass them."""
        return self.direction()

    def codes(self, motion: jax.Array, code_book: jax.Array | None = None) -> MotionCode:
        """All outputs for motion windows.

        Args:
            motion: [B,T,C] with expression 64, angle 3 (radians), translation 3 (and crop 3) in the last axis; channels
                beyond those that the configuration reads are not used.
            code_book: the result of `code_book`, to save its computation.

        Raises:
            ValueError: fewer channels or a shorter window than the network reads.
        """
        c = self.config
        if motion.ndim != 3 or motion.shape[-1] < c.motion_channels or motion.shape[1] < c.min_window:
            raise ValueError(
                f'controller input {motion.shape}: expected [B, at least {c.min_window} frames, at least '
                f'{c.motion_channels} coefficients]'
            )
        y = self.mapping_Refine(self.mapping_3DMM(motion[..., : c.motion_channels]))
        y = y.reshape(motion.shape[0], -1, c.directions)
        code_book = self.direction() if code_book is None else code_book

        def offset(rows):  # [B,rows,K] -> magnitudes and latent rows
            alpha = rows[:, :1] + rows[:, 1:] if c.motion_space == 'w+' else rows
            latent = jnp.einsum('blk,dk->bld', alpha, code_book)
            return alpha, jnp.broadcast_to(latent, (latent.shape[0], c.num_ws, c.w_dim))

        if not c.scaling:
            alpha, w_x = offset(y)
            return MotionCode(w_x, alpha)
        (_, scaling), (_, w_x) = offset(y[:, : c.rows]), offset(y[:, c.rows :])
        return MotionCode(w_x, y, scaling)

    def __call__(self, motion: jax.Array, code_book: jax.Array | None = None) -> tuple[jax.Array, jax.Array]:
        """``(w_x [B,L,D], alpha)``; see `codes`, which is also the way to the scaling output."""
        code = self.codes(motion, code_book)
        if code.scaling is not None:
            raise ValueError('this controller has a scaling output: call the method `codes`')
        return code.w_x, code.alpha


# --------------------------------------------------------------------------------------------- the released key names


def _hidden_keys(config: ControllerConfig) -> list[str]:
    return [f'mapping_Refine.{2 * i}' for i in range(config.mlp_layers)]


def to_release_keys(params: Mapping, config: ControllerConfig) -> dict[str, np.ndarray]:
    """The state dict of the original program: its key names and layouts, the shared layer written once per use."""
    flat = to_torch({'params': params})
    if config.mlp_shared:
        for key in _hidden_keys(config)[1:]:
            flat[f'{key}.weight'], flat[f'{key}.bias'] = flat['mapping_Refine.0.weight'], flat['mapping_Refine.0.bias']
    return flat


def from_release_keys(flat: Mapping[str, np.ndarray], config: ControllerConfig) -> dict:
    """Parameters from a state dict of the original program (a leading ``module.`` is accepted).

    Raises:
        UserError: missing, surplus or wrongly shaped entries, or copies of the shared layer that differ.
    """
    flat = {k.removeprefix('module.'): np.asarray(v) for k, v in flat.items()}
    if config.mlp_shared:
        for key in _hidden_keys(config)[1:]:
            for part in ('weight', 'bias'):
                copy, first = flat.pop(f'{key}.{part}', None), flat.get(f'mapping_Refine.0.{part}')
                if copy is not None and (first is None or not np.array_equal(copy, first)):
                    raise UserError(
                        f'controller state dict: {key}.{part} differs from mapping_Refine.0.{part}, but this '
                        'configuration shares one layer; set controller.mlp_shared=False'
                    )
    variables = from_torch(flat, {'params': abstract_params(config)})
    return as_arrays(variables['params'])


@functools.lru_cache(maxsize=4)
def abstract_params(config: ControllerConfig) -> dict:
    """Shapes and dtypes of the parameters, without computing anything; do not change what it returns."""
    motion = jax.ShapeDtypeStruct((1, max(27, config.min_window), config.motion_channels), jnp.float32)
    module = Controller(config)
    return jax.eval_shape(lambda m: module.init(jax.random.key(0), m, method='codes'), motion)['params']


def load_controller(path: str | os.PathLike) -> tuple[dict[str, Any], ControllerConfig]:
    """Variables and configuration of a weight file that holds a controller alone.

    Raises:
        UserError: missing, damaged or foreign file, or weights that do not fit their configuration.
    """
    weights = load_weights(path, method=CONTROLLER_METHOD)
    config = from_plain(ControllerConfig, weights.config)
    check_tree(path, weights.variables, {'params': abstract_params(config)})
    return as_arrays(weights.variables), config
