"""The 257-number description of a face in one image, and the 260-number record of a video frame.

| columns | meaning |
|---|---|
| 0:80 | identity, standard deviations |
| 80:144 | expression |
| 144:224 | albedo |
| 224:227 | Euler angles x, y, z, radians |
| 227:254 | spherical-harmonic light, 3 colour channels x 9 bands, channel-major |
| 254:257 | translation, decimetres |
| 257:260 | crop scale and offset (video records only) |

The layout is Deep3DFaceRecon's; every face model of this project uses it (with zeros where it has no such numbers).
"""

from __future__ import annotations

import jax
import numpy as np
from flax import struct

from avatar_jax.ops.arrays import Array, namespace

NUM_ID, NUM_EXP, NUM_TEX, NUM_GAMMA = 80, 64, 80, 27
SLICES = {
    'id': slice(0, 80),
    'exp': slice(80, 144),
    'tex': slice(144, 224),
    'angle': slice(224, 227),
    'gamma': slice(227, 254),
    'trans': slice(254, 257),
    'crop': slice(257, 260),
}
NUM_COEFFICIENTS = 257
NUM_RECORD = 260


@struct.dataclass
class Coefficients:
    """One face per leading index; see the module docstring for units."""

    id: jax.Array  # [..., 80]
    exp: jax.Array  # [..., 64]
    tex: jax.Array  # [..., 80]
    angle: jax.Array  # [..., 3] radians
    gamma: jax.Array  # [..., 27]
    trans: jax.Array  # [..., 3] decimetres

    @classmethod
    def zeros(cls, *leading: int, dtype=np.float32) -> Coefficients:
        """The mean face, looking straight ahead under the default light (numpy arrays)."""
        return unpack(np.zeros((*leading, NUM_COEFFICIENTS), dtype))


def unpack(vector: Array) -> Coefficients:
    """Splits [..., 257] (or the first 257 of [..., 260]).

    Raises:
        ValueError: the last axis is neither 257 nor 260.
    """
    if vector.shape[-1] not in (NUM_COEFFICIENTS, NUM_RECORD):
        raise ValueError(f'expected 257 coefficients or 260 with the crop, got shape {tuple(vector.shape)}')
    return Coefficients(**{k: vector[..., s] for k, s in SLICES.items() if k != 'crop'})


def pack(coefficients: Coefficients) -> Array:
    """Joins the parts to [..., 257]; leading axes must agree."""
    c = coefficients
    parts = (c.id, c.exp, c.tex, c.angle, c.gamma, c.trans)
    return namespace(*parts).concatenate(parts, axis=-1)


def pack_record(coefficients: Coefficients, crop: Array) -> Array:
    """Joins coefficients and crop (scale, t0, t1) to a video record [..., 260]."""
    vector = pack(coefficients)
    return namespace(vector, crop).concatenate([vector, crop], axis=-1)


def crop_of(record: Array) -> Array:
    """Crop scale and offset [..., 3] of a 260-number record."""
    if record.shape[-1] != NUM_RECORD:
        raise ValueError(f'expected 260 numbers per record, got shape {tuple(record.shape)}')
    return record[..., SLICES['crop']]
