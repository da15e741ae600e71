"""The landmark network of this project: 68 landmarks with their uncertainty, head mask, expression, head angle.

One small network reads a square crop around a face (``CROP_SIDE`` pixels). A pyramid of residual convolutions down to
4 x 4 cells and back to 16 x 16 gives, for every landmark, a map of where it is and the offset from each cell; the
landmark is the mean of the cells' votes. Expression (procedural basis), head angle and uncertainties come from the 4 x
4 cells together with the landmarks. It was trained on rendered procedural heads only (``launch/train_face_net.py``).
"""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax import struct

from avatar_jax.checks import Check
from avatar_jax.models.perception.layers import BatchNorm, Conv, Linear

FACE_NET_METHOD = 'face_net'
CROP_SIDE = 128
NUM_EXPRESSION, NUM_LANDMARKS = 64, 68
# The crop around 68 landmarks: its side in root-mean-square distances of the landmarks from their mean (about 3.7 eye
# distances), and how far its centre lies above their mean, in sides.
CROP_PER_SPREAD, CROP_RAISE = 4.4, 0.06


@dataclass(frozen=True)
class FaceNetConfig:
    """Sizes of the network.

    Attributes:
        side: of the crop in pixels; a multiple of 32.
        widths: channels at 1/4, 1/8, 1/16 and 1/32 of the side.
        blocks: residual blocks on each of these levels.
        neck: channels of the way back at 1/16 and 1/8.
        hidden: width of the layer before expression and angle.
    """

    side: int = CROP_SIDE
    widths: tuple[int, ...] = (32, 48, 80, 128)
    blocks: tuple[int, ...] = (1, 2, 2, 2)
    neck: tuple[int, ...] = (80, 64)
    hidden: int = 192

    def __post_init__(self):
        check = Check(self)
        for name, length in (('widths', 4), ('blocks', 4), ('neck', 2)):
            object.__setattr__(self, name, tuple(getattr(self, name)))
            check.length(length, name)
        check.need(self.side >= 32 and self.side % 32 == 0, 'side', 'must be a multiple of 32')


@struct.dataclass
class FaceNetOutput:
    """What the network reads in N crops.

    Attributes:
        landmarks: [N,68,2] (x, y), y downwards, in units of the crop's side (0..1 inside).
        log_sigma: [N,68] logarithm of the landmark's expected error per axis, in the same unit.
        mask: [N,side/4,side/4] logits of head, hair and clothes against the rest.
        expression: [N,64] procedural basis. angle: [N,3] radians, as seen in the crop.
        present: [N] logit: there is a face in the crop.
    """

    landmarks: jax.Array
    log_sigma: jax.Array
    mask: jax.Array
    expression: jax.Array
    angle: jax.Array
    present: jax.Array


def crop_matrix(points: np.ndarray, side: int = CROP_SIDE) -> np.ndarray:
    """[2, 3] similarity from picture pixels to the upright crop around 68 landmarks [68, 2].

    Both pictures have the centre of the first pixel at 0.5. Points without extent give a crop of one pixel.
    """
    points = np.asarray(points, np.float64)
    middle = points.mean(0)
    spread = max(float(np.sqrt(((points - middle) ** 2).sum(-1).mean())), 1 / CROP_PER_SPREAD)
    across = points[42:48].mean(0) - points[36:42].mean(0)
    down = points[48:68].mean(0) - points[36:48].mean(0)
    # Both axes of the face tell the roll; a turned face shortens one, a nodding face the other.
    up = across + np.array([down[1], -down[0]])
    angle = float(np.arctan2(up[1], up[0]))
    scale = side / (CROP_PER_SPREAD * spread)
    cosine, sine = scale * np.cos(angle), scale * np.sin(angle)
    linear = np.array([[cosine, sine], [-sine, cosine]])
    target = np.array([side / 2, side * (0.5 + CROP_RAISE)])
    return np.concatenate([linear, (target - linear @ middle)[:, None]], 1)


class _Unit(nn.Module):
    """Convolution, batch norm, ReLU; with ``residual`` the input is added before the ReLU."""

    inputs: int
    features: int
    kernel: int = 3
    stride: int = 1
    residual: bool = False

    @nn.compact
    def __call__(self, x, train):
        padding = (self.kernel - self.stride + 1) // 2 if self.kernel > 3 else self.kernel // 2
        y = Conv(self.inputs, self.features, self.kernel, self.stride, padding, name='conv')(x)
        y = BatchNorm(self.features, name='norm')(y, train)
        return jax.nn.relu(x + y if self.residual else y)


def _double(x: jax.Array) -> jax.Array:
    """Repeats pixels: [N,H,W,C] -> [N,2H,2W,C]."""
    n, h, w, c = x.shape
    return jnp.broadcast_to(x[:, :, None, :, None], (n, h, 2, w, 2, c)).reshape(n, 2 * h, 2 * w, c)


class FaceNet(nn.Module):
    """Landmarks, uncertainty, mask, expression and angle of a face crop."""

    config: FaceNetConfig = FaceNetConfig()

    @nn.compact
    def __call__(self, image: jax.Array, train: bool = False) -> FaceNetOutput:
        """[N,side,side,3] in [-1,1] -> FaceNetOutput.

        Raises:
            ValueError: another size.
        """
        c = self.config
        if image.ndim != 4 or image.shape[1:] != (c.side, c.side, 3):
            raise ValueError(f'the face network takes crops [N,{c.side},{c.side},3], got {image.shape}')
        levels, x = [], _Unit(3, c.widths[0], 8, 4, name='stem')(image, train)
        for i, (width, blocks) in enumerate(zip(c.widths, c.blocks)):
            if i:
                x = _Unit(x.shape[-1], width, 3, 2, name=f'down{i}')(x, train)
            for k in range(blocks):
                x = _Unit(width, width, residual=True, name=f'level{i}_{k}')(x, train)
            levels.append(x)
        up = levels[3]
        for i, width in zip((2, 1), c.neck):
            # 1 x 1 convolutions commute with repeating pixels: the cheaper order.
            lifted = _double(Conv(up.shape[-1], width, 1, 1, 0, name=f'lift{i}')(up))
            up = lifted + Conv(c.widths[i], width, 1, 1, 0, name=f'skip{i}')(levels[i])
            up = _Unit(width, width, name=f'neck{i}')(
                jax.nn.relu(BatchNorm(width, name=f'neck_norm{i}')(up, train)), train
            )

        votes = Conv(c.neck[1], 3 * NUM_LANDMARKS, 1, 1, 0, use_bias=True, name='votes')(up)
        landmarks = self._mean_vote(0.3 * votes)
        fine = _double(Conv(c.neck[1], 16, 1, 1, 0, name='mask_lift')(up))
        fine = fine + Conv(c.widths[0], 16, 1, 1, 0, name='mask_skip')(levels[0])
        mask = Conv(16, 1, 3, use_bias=True, name='mask')(jax.nn.relu(BatchNorm(16, name='mask_norm')(fine, train)))[
            ..., 0
        ]

        # Geometry alone tells most of the expression; no gradient, so that landmarks stay what is seen.
        seen = jax.lax.stop_gradient(landmarks)
        centred = (seen - seen.mean(1, keepdims=True)).reshape(image.shape[0], -1) * 6
        y = jnp.concatenate([levels[3].reshape(image.shape[0], -1), centred], -1)
        y = Linear(y.shape[-1], c.hidden, use_bias=False, name='hidden')(y)
        y = jax.nn.relu(BatchNorm(c.hidden, name='hidden_norm')(y, train))
        y = Linear(c.hidden, NUM_EXPRESSION + 3 + NUM_LANDMARKS + 1, init_scale=0.05, name='out')(y)
        scale = self.variable('batch_stats', 'scale', jnp.ones, (NUM_EXPRESSION + 3,)).value
        offset = self.variable('batch_stats', 'offset', jnp.zeros, (NUM_EXPRESSION + 3,)).value
        coefficients = y[:, : NUM_EXPRESSION + 3] * scale + offset
        return FaceNetOutput(
            landmarks=landmarks,
            log_sigma=y[:, NUM_EXPRESSION + 3 : -1] - 4.0,
            mask=mask,
            expression=coefficients[:, :NUM_EXPRESSION],
            angle=coefficients[:, NUM_EXPRESSION:],
            present=10 * y[:, -1],
        )

    @staticmethod
    def _mean_vote(votes: jax.Array) -> jax.Array:
        """[N,G,G,3*68] (weight, x offset, y offset in cells) -> [N,68,2] in units of the side."""
        n, grid = votes.shape[:2]
        votes = votes.reshape(n, grid * grid, 3, NUM_LANDMARKS)
        weight = jax.nn.softmax(votes[:, :, 0] * 4, axis=1)
        place = (jnp.arange(grid) + 0.5) / grid
        rows, columns = jnp.meshgrid(place, place, indexing='ij')
        cells = jnp.stack([columns.ravel(), rows.ravel()], -1)  # [G*G,2]
        offset = (weight[:, :, None] * votes[:, :, 1:]).sum(1) / grid  # [N,2,68]
        return jnp.einsum('ncl,cd->nld', weight, cells) + offset.transpose(0, 2, 1)
