"""The six things that pass between tracking, methods and output: Portrait, Motion, Drive, Camera, Avatar, Frames.

All are ``flax.struct`` dataclasses: arrays are pytree leaves (so the objects pass through ``jit`` and ``vmap``), text
and settings are static. Every array may carry leading batch dimensions; the shapes below are those of one item.
Optional arrays are ``None`` when they were not measured.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from avatar_jax.ops.windows import window_indices

if TYPE_CHECKING:
    from jaxtyping import Float

Array = jax.Array | np.ndarray
PyTree = Any  # nested mappings, sequences and dataclasses of arrays


class Config(Protocol):
    """A model's configuration, as everything outside its method knows it: a frozen dataclass.

    Attributes:
        img_resolution: side of the pictures. basis: of the expression coefficients that drive it.
        label_mode: how camera labels are normalised (``faces.camera_labels.MODES``).
    """

    img_resolution: int
    basis: str
    label_mode: str

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as weight files store them."""


@struct.dataclass
class Camera:
    """A pinhole camera.

    Attributes:
        cam2world: [4, 4] camera-to-world matrix with OpenCV axes (x right, y down, z forward).
        intrinsics: [3, 3], normalised by the image size (focal 4.2647 and principal point 0.5 for EG3D's crop).
    """

    cam2world: Float[Array, '*batch 4 4']
    intrinsics: Float[Array, '*batch 3 3']

    @property
    def label(self) -> Float[Array, '*batch 25']:
        """[25] EG3D label: the pose row by row (16), then the intrinsics row by row (9)."""
        xp = np if isinstance(self.cam2world, np.ndarray) and isinstance(self.intrinsics, np.ndarray) else jnp
        lead = self.cam2world.shape[:-2]
        return xp.concatenate([self.cam2world.reshape(*lead, 16), self.intrinsics.reshape(*lead, 9)], axis=-1)

    @classmethod
    def from_label(cls, label: Float[Array, '*batch 25']) -> Camera:
        """Camera of an EG3D label [..., 25].

        Raises:
            ValueError: the last dimension is not 25.
        """
        if label.shape[-1] != 25:
            raise ValueError(f'a camera label has 25 numbers, got {label.shape}')
        lead = label.shape[:-1]
        return cls(label[..., :16].reshape(*lead, 4, 4), label[..., 16:].reshape(*lead, 3, 3))


@struct.dataclass
class Portrait:
    """One aligned picture of a head, and what was measured on it.

    Attributes:
        image: [H, W, 3] in [-1, 1].
        camera: the camera of the picture.
        expression: [64] expression coefficients in ``basis``.
        angle: [3] head rotation in radians (pitch, yaw, roll).
        translation: [3] head translation in decimetres.
        shape: [80] identity coefficients in ``basis``.
        landmarks: [68, 2] pixel positions (x, y), y downwards.
        mask: [H, W] head coverage in [0, 1].
        basis: name of the coefficient basis; empty when nothing was fitted.
        source: where the picture came from (file name or data set key).
    """

    image: Float[Array, '*batch height width 3']
    camera: Camera
    expression: Float[Array, '*batch expression'] | None = None
    angle: Float[Array, '*batch 3'] | None = None
    translation: Float[Array, '*batch 3'] | None = None
    shape: Float[Array, '*batch shape'] | None = None
    landmarks: Float[Array, '*batch 68 2'] | None = None
    mask: Float[Array, '*batch height width'] | None = None
    basis: str = struct.field(pytree_node=False, default='')
    source: str = struct.field(pytree_node=False, default='')


@struct.dataclass
class Motion:
    """A driving sequence of T frames.

    Attributes:
        expression: [T, 64] expression coefficients in ``basis``.
        angle: [T, 3] head rotation in radians (pitch, yaw, roll).
        translation: [T, 3] head translation in decimetres.
        fps: frames per second.
        basis: name of the coefficient basis.
        source: SHA-256 of what the motion was measured on, or a description of how it was made.
    """

    expression: Float[Array, '*batch frames expression']
    angle: Float[Array, '*batch frames 3']
    translation: Float[Array, '*batch frames 3']
    fps: float = struct.field(pytree_node=False, default=25.0)
    basis: str = struct.field(pytree_node=False, default='')
    source: str = struct.field(pytree_node=False, default='')

    @property
    def num_frames(self) -> int:
        """T."""
        return self.expression.shape[-2]

    @property
    def coefficients(self) -> Float[Array, '*batch frames coefficients']:
        """[T, 70]: expression, angle, translation side by side."""
        arrays = (self.expression, self.angle, self.translation)
        xp = np if all(isinstance(a, np.ndarray) for a in arrays) else jnp
        return xp.concatenate(arrays, axis=-1)

    def windows(self) -> Float[Array, '*batch frames 27 coefficients']:
        """[T, 27, 70]: for each frame the coefficients of its 13 neighbours on both sides (ends are repeated)."""
        index = window_indices(np.arange(self.num_frames), self.num_frames)
        return self.coefficients[..., index, :]

    def frames(self, start: int, stop: int | None = None) -> Motion:
        """The frames ``start:stop`` as a new motion."""
        part = slice(start, stop)
        return self.replace(
            expression=self.expression[..., part, :],
            angle=self.angle[..., part, :],
            translation=self.translation[..., part, :],
        )


@struct.dataclass
class Drive:
    """What drives an avatar for T frames: the signals that its method reads (``driving.signals`` makes them).

    Attributes:
        signals: name -> [T, ...], e.g. ``expression`` [T, 64] or ``windows`` [T, 27, 70].
        fps: frames per second.
        source: SHA-256 of what was measured, or a description.
    """

    signals: dict[str, Array]
    fps: float = struct.field(pytree_node=False, default=25.0)
    source: str = struct.field(pytree_node=False, default='')

    @property
    def num_frames(self) -> int:
        """T."""
        return len(next(iter(self.signals.values())))

    def frames(self, index: Array | slice) -> Drive:
        """The frames of an index array or slice."""
        return self.replace(signals={k: v[index] for k, v in self.signals.items()})


@struct.dataclass
class Avatar:
    """The identity that a method took from its pictures.

    Attributes:
        identity: pytree of arrays; its structure belongs to the method.
        camera: camera of the source picture (or of the first one).
        method: name of the method (``methods.base.names``).
        config: the method's frozen config dataclass.
        basis: coefficient basis that drives this avatar.
        weights: SHA-256 of the network weights that the identity code belongs to.
        source: where the pictures came from.
    """

    identity: PyTree
    camera: Camera | None = None
    method: str = struct.field(pytree_node=False, default='')
    config: Config | None = struct.field(pytree_node=False, default=None)
    basis: str = struct.field(pytree_node=False, default='')
    weights: str = struct.field(pytree_node=False, default='')
    source: str = struct.field(pytree_node=False, default='')


@struct.dataclass
class Frames:
    """What rendering returns for T frames.

    Attributes:
        rgb: [T, H, W, 3] final image in [-1, 1].
        raw: [T, R, R, 3] image of the volume renderer before super-resolution, in [-1, 1].
        depth: [T, R, R, 1] distance along the ray in world units.
        opacity: [T, R, R, 1] sum of the ray's weights, in [0, 1].
    """

    rgb: Float[Array, '*batch height width 3']
    raw: Float[Array, '*batch raw raw 3'] | None = None
    depth: Float[Array, '*batch raw raw 1'] | None = None
    opacity: Float[Array, '*batch raw raw 1'] | None = None
