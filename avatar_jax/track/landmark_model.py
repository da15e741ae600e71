"""A head model as the tracker uses it: the 68 landmarks as linear functions, and what expressions are usual.

Any model behind ``faces.base`` will do. Expressions are fitted in whitened numbers z ~ N(0, 1) around a usual face:
``expression = mean + z @ spread``. For the procedural basis mean and spread are those of the project's own motion
generator, whose shapes overlap (an open mouth is partly jaw, partly a vowel): without them, landmarks could not tell
which of the shapes a speaker uses. Other bases get independent numbers of a usual size.
"""

from __future__ import annotations

import functools
import os
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from avatar_jax.errors import UserError
from avatar_jax.faces.base import MorphableModel

MOTION_WIDTH = 64  # expression numbers of a frame in motion files and records
# Bases that are fitted without a sampled motion: usual size of an expression number, and its allowed range.
_SPREAD = {'ict-facekit-53': 0.25}
_RANGE = {'ict-facekit-53': (0.0, 1.0), 'procedural': (0.0, 1.0)}
_ORTHONORMAL = 1.0


@struct.dataclass
class LandmarkModel:
    """What the fit needs of a head model; K identity and E expression numbers, both cut to what is fitted.

    Attributes:
        mean: [68,3] landmarks of the mean head, decimetres.
        identity: [K,68,3], for numbers ~ N(0, 1).
        expression: [E,68,3].
        usual: [E] mean expression. spread: [E,E] rows of the whitened directions.
        low, high: [E] range outside which numbers are drawn back (infinite where there is none).
        basis: of the numbers, as motion files have it.
    """

    mean: jax.Array
    identity: jax.Array
    expression: jax.Array
    usual: jax.Array
    spread: jax.Array
    low: jax.Array
    high: jax.Array
    basis: str = struct.field(pytree_node=False, default='')

    @property
    def num_identity(self) -> int:
        """K."""
        return self.identity.shape[0]

    @property
    def num_expression(self) -> int:
        """E."""
        return self.expression.shape[0]

    def points(self, identity: jax.Array, expression: jax.Array) -> jax.Array:
        """[K], [E] -> [68,3] decimetres, unposed."""
        return self.mean + jnp.tensordot(identity, self.identity, 1) + jnp.tensordot(expression, self.expression, 1)

    def unwhiten(self, z: jax.Array) -> jax.Array:
        """Whitened numbers [..., E] -> expression [..., E]."""
        return self.usual + z @ self.spread

    def whiten(self, expression: jax.Array) -> jax.Array:
        """Inverse of ``unwhiten``."""
        return jnp.linalg.solve(self.spread.T, (expression - self.usual)[..., None])[..., 0]


def at_landmarks(model: MorphableModel, num_identity: int = 80, num_expression: int = MOTION_WIDTH) -> LandmarkModel:
    """Tabulates the landmarks of ``model``.

    Raises:
        UserError: the model's landmarks are not linear in its numbers.
    """
    k, e = min(num_identity, model.num_id), min(num_expression, model.num_exp)
    zero_id, zero_exp = np.zeros(model.num_id, np.float32), np.zeros(model.num_exp, np.float32)
    mean = np.asarray(model.landmarks(zero_id, zero_exp), np.float64)

    def directions(rows: int, width: int, call) -> np.ndarray:
        eye = np.eye(width, dtype=np.float32)[:rows]
        return np.stack([np.asarray(call(row), np.float64) for row in eye]) - mean

    identity = directions(k, model.num_id, lambda row: model.landmarks(row, zero_exp))
    expression = directions(e, model.num_exp, lambda row: model.landmarks(zero_id, row))
    probe = np.linspace(0.1, 1.0, e)
    full = zero_exp.copy()
    full[:e] = probe
    if np.abs(np.asarray(model.landmarks(zero_id, full)) - mean - np.tensordot(probe, expression, 1)).max() > 1e-3:
        raise UserError(
            f'{model.name}: its landmarks are not linear in its expression numbers; the tracker cannot fit it'
        )
    low, high = (np.full(e, v, np.float32) for v in _RANGE.get(model.basis, (-np.inf, np.inf)))
    if model.basis == 'procedural':
        usual, spread = procedural_expressions()
        gaze = [model.expression_names.index(n) for n in ('gaze_x', 'gaze_y')]
        low[gaze] = -1.0
    else:
        usual, spread = np.zeros(e), np.eye(e) * _SPREAD.get(model.basis, _ORTHONORMAL)
    arrays = (mean, identity, expression, usual, spread, low, high)
    return LandmarkModel(*(jnp.asarray(a, jnp.float32) for a in arrays), basis=model.basis)


@functools.cache
def procedural_expressions(count: int = 3000, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Mean [64] and whitened directions [64,64] of procedural expressions: half speech, half independent ones."""
    from avatar_jax.procedural import motion, random_expressions
    from avatar_jax.procedural.streams import Stream

    speech = [motion.speech_arrays(1000 * seed + k, 250)['expression'][::2] for k in range(count // 250)]
    independent = random_expressions.random_expressions(Stream(seed, 'track'), count // 2)
    both = np.concatenate([*speech, independent])
    mean = both.mean(0)
    covariance = np.cov(both.T) + 1e-4 * np.eye(both.shape[1])
    return mean, np.linalg.cholesky(covariance).T


def load_head(spec: str | os.PathLike) -> MorphableModel:
    """The head model behind an option: 'procedural', or a file of BFM, FLAME or ICT-FaceKit.

    Raises:
        UserError: no such file, or not a head model.
    """
    if str(spec) == 'procedural':
        from avatar_jax.procedural import ProceduralHead

        return ProceduralHead()
    path = Path(spec)
    if not path.exists():
        raise UserError(
            f"{spec}: no such head model; give 'procedural' or the file of a BFM, FLAME or ICT-FaceKit model"
        )
    from avatar_jax.faces.files import load_face_model

    return load_face_model(path)
