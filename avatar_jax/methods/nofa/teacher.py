"""Teachers of the teeth stage (paper section 4.1): a restored picture whose mouth the base model learns.

A teacher takes pictures, the target pictures and their landmarks, and returns pictures of the same size in [-1,1]. No
gradient goes through it. It is a pytree, so that a network's weights are inputs of the program and no constants.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

from avatar_jax.errors import UserError
from avatar_jax.losses.identity import five_points
from avatar_jax.methods.nofa.config import TEACHERS, LossConfig
from avatar_jax.methods.nofa.losses import mouth_boxes
from avatar_jax.models.gfpgan import GFPGANConfig, restore
from avatar_jax.parallel import as_arrays
from avatar_jax.types import PyTree


@flax.struct.dataclass
class Teacher:
    """A teacher.

    Attributes:
        kind: one of ``config.TEACHERS``: 'none' hands pictures on, 'truth' gives the target, 'gfpgan' restores.
        align: the network sees the face aligned to its template, and only the mouth is taken from it.
        network: sizes of the network. variables: its weights.
    """

    kind: str = flax.struct.field(pytree_node=False, default='none')
    align: bool = flax.struct.field(pytree_node=False, default=True)
    network: GFPGANConfig | None = flax.struct.field(pytree_node=False, default=None)
    variables: PyTree = None

    @classmethod
    def create(
        cls,
        kind: str,
        align: bool = True,
        variables: Mapping[str, Any] | None = None,
        network: GFPGANConfig | None = None,
    ) -> Teacher:
        """Checks that a restoring teacher has its weights.

        Raises:
            UserError: unknown kind, or no weights for 'gfpgan'.
        """
        if kind not in TEACHERS:
            raise UserError(f'train.teacher: {kind!r}; use one of {", ".join(TEACHERS)}')
        if kind == 'gfpgan' and (variables is None or network is None):
            raise UserError("train.teacher: 'gfpgan' needs its weights; convert GFPGANv1.4.pth and give the file")
        if kind != 'gfpgan':
            return cls(kind, align)
        kept = {k: as_arrays(variables[k]) for k in ('params', 'noise')}
        return cls(kind, align, network, kept)

    def __call__(
        self, image: jax.Array, target: jax.Array, landmarks: jax.Array | None, config: LossConfig
    ) -> jax.Array:
        """Pictures [B,S,S,3] in [-1,1] -> restored ones of the same size, limited to [-1,1].

        Args:
            target: what they should be [B,S,S,3]. landmarks: of the targets [B,68,2].

        Raises:
            UserError: the teacher works on another size, or needs landmarks and there are none.
        """
        image = jax.lax.stop_gradient(image)
        if self.kind == 'none':
            restored = image
        elif self.kind == 'truth':
            restored = target
        elif self.align:
            if landmarks is None:
                raise UserError('landmarks: missing, but the teacher aligns faces by them; track the pictures')
            keep = box_mask(mouth_boxes(landmarks, image.shape[1], config.mouth_enlarge), image.shape[1])
            restored = restore(self.variables, self.network, image, five_points(landmarks), keep)
        else:
            if self.network.size != image.shape[1]:
                raise UserError(
                    f'train.teacher: it restores pictures of {self.network.size}, these have {image.shape[1]}; set '
                    'train.align_teacher'
                )
            restored = restore(self.variables, self.network, image)
        return jax.lax.stop_gradient(checked(jnp.clip(restored, -1, 1), image))


def checked(restored: jax.Array, image: jax.Array) -> jax.Array:
    """The teacher's picture. Raises ``UserError`` if it has another size than the one it was given."""
    if restored.shape != image.shape:
        raise UserError(
            f'train.teacher: returned pictures of {"x".join(map(str, restored.shape[1:]))}, not of '
            f'{"x".join(map(str, image.shape[1:]))}; it must keep the size'
        )
    return restored


def box_mask(boxes: jax.Array, size: int) -> jax.Array:
    """[B,size,size,1]: 1 for pixels whose centre is in the box [B,4] (pixel edges), else 0."""
    centre = jnp.arange(size) + 0.5
    columns = (centre >= boxes[:, :1]) & (centre < boxes[:, 2:3])
    rows = (centre >= boxes[:, 1:2]) & (centre < boxes[:, 3:4])
    return (rows[:, :, None] & columns[:, None, :]).astype(jnp.float32)[..., None]
