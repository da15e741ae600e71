"""Which of several faces is tracked: the largest, the N-th largest, or the one most like a given picture."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from avatar_jax.errors import UserError
from avatar_jax.faces.alignment import eg3d_crop, five_points
from avatar_jax.parallel import as_arrays
from avatar_jax.track.detect import Face

STAND_IN = "the project's stand-in identity network, trained on procedural heads: no face recognition"
_SAME_SIZE = 0.8  # a face smaller than this share of the largest is clearly smaller


@functools.cache
def _identity_network():
    from avatar_jax.configure import from_plain
    from avatar_jax.io.weights import load_weights, shipped
    from avatar_jax.losses.perception import HEAD_NETS_METHOD
    from avatar_jax.models.perception.head_nets import HeadIdentity, HeadNetsConfig

    weights = load_weights(shipped('head_nets'), method=HEAD_NETS_METHOD)
    config = from_plain(HeadNetsConfig, weights.config)
    variables = {k: as_arrays(weights.variables[k]['head_identity']) for k in ('params', 'batch_stats')}
    return jax.jit(lambda x: HeadIdentity(config).apply(variables, x.astype(jnp.float32) / 127.5 - 1))


def embedding(pixels: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Unit identity vector of the face at landmarks [68,2]; of the stand-in network (``STAND_IN``)."""
    crop, _ = eg3d_crop(pixels, five_points(points), output=64)
    return np.asarray(_identity_network()(crop[None]))[0]


class Chooser:
    """Chooses a face among those of a picture.

    Args:
        rule: 'size' (the largest), a number from 1 (the largest) on, a picture file whose person is looked for, or
            None: the largest if it is clearly that.
        reader: landmark network, needed to compare people.

    Raises:
        UserError: no such rule, or the picture shows no face; when called: faces of similar size and no rule.
    """

    def __init__(self, rule: str | int | None = 'size', reader=None):
        self.rule, self._reader, self._wanted, self._number = rule, reader, None, None
        if str(rule).isdigit():
            self._number = int(rule)
            if self._number < 1:
                raise UserError(f'--face {rule}: faces are counted from 1, the largest')
        elif rule not in ('size', None):
            if not Path(rule).is_file():
                raise UserError(
                    f"--face {rule}: give 'size', a number (1 is the largest face), or a picture of the person"
                )
            from avatar_jax.io.images import read_image
            from avatar_jax.track.search import find_faces

            picture = read_image(rule)
            faces = find_faces(picture.pixels, reader)
            if not faces:
                raise UserError(f'--face {rule}: no face found in this picture')
            self._wanted = embedding(picture.pixels, faces[0][1].points)

    def __call__(self, pixels: np.ndarray, faces: Sequence[Face]) -> tuple[Face | None, str]:
        """(the chosen face or None, what was chosen in words; '' when there was nothing to choose)."""
        faces = plausible(faces)
        if not faces:
            return None, ''
        if self.rule is None and len(faces) > 1 and faces[1].size > _SAME_SIZE * faces[0].size:
            raise UserError(f'{len(faces)} faces of similar size ({describe(faces)}); choose one with --face')
        if self._number is not None:
            if self._number > len(faces):
                return None, f'there is no face {self._number}, only {describe(faces)}'
            chosen, why = faces[self._number - 1], f'number {self._number} by size, as asked'
        elif self._wanted is not None:
            likeness = [float(self._wanted @ embedding(pixels, self._reader.from_box(pixels, f).points)) for f in faces]
            best = int(np.argmax(likeness))
            chosen, why = faces[best], f'most like {Path(self.rule).name} (cosine {likeness[best]:.2f}, {STAND_IN})'
        else:
            chosen, why = faces[0], 'the largest'
            if len(faces) > 1 and faces[1].size > _SAME_SIZE * faces[0].size:
                why = 'the largest by little: check it'
        if len(faces) == 1:
            return chosen, ''
        x, y = chosen.center
        return chosen, f'{len(faces)} faces ({describe(faces)}); taken: the one at ({x:.0f}, {y:.0f}), {why}'


def plausible(faces: Sequence[Face]) -> list[Face]:
    """Faces without eyes are usually patterns: they count only where no other is found."""
    return [f for f in faces if f.eyes is not None] or list(faces)


def describe(faces: Sequence[Face]) -> str:
    """Sizes and places in words."""
    return ', '.join(f'{i}: {f.size:.0f} px at ({f.center[0]:.0f}, {f.center[1]:.0f})' for i, f in enumerate(faces, 1))
