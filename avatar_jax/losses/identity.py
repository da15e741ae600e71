"""Identity loss: cosine distance of face-recognition embeddings (OTAvatar paper section 3.4, equation 14)."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import struct

from avatar_jax.faces.alignment import template_matrix
from avatar_jax.models.perception.arcface import to_gray
from avatar_jax.models.perception.dlib_face import SIDE as DLIB_SIDE
from avatar_jax.ops.warp import similarity_transform, warp_affine

FACE_SIZE = 128
COLOUR_SIZE = 112  # of the networks that look at colours: the template's own size

Embed = Callable[[jax.Array], jax.Array]


def five_points(landmarks: jax.Array) -> jax.Array:
    """Eye centres (mean of the corners), nose tip, mouth corners: [B,68,2] -> [B,5,2]; [B,5,2] is kept."""
    if landmarks.shape[-2:] == (5, 2):
        return landmarks
    if landmarks.shape[-2:] != (68, 2):
        raise ValueError(f'identity loss: landmarks {landmarks.shape}; expected [B,68,2] or [B,5,2]')
    left = (landmarks[:, 36] + landmarks[:, 39]) / 2
    right = (landmarks[:, 42] + landmarks[:, 45]) / 2
    return jnp.stack([left, right, landmarks[:, 30], landmarks[:, 48], landmarks[:, 54]], 1)


def face_matrix(landmarks: jax.Array) -> jax.Array:
    """Similarity [B,2,3] from image pixels to the recognition template, of 68 or 5 landmarks in image pixels.

    The template is that of 112-pixel crops and is not rescaled to the 128-pixel crop, as in the released program, so
    the face sits up and to the left. Without gradient.
    """
    return jax.lax.stop_gradient(template_matrix(five_points(landmarks)))


def aligned_gray(image: jax.Array, matrix: jax.Array) -> jax.Array:
    """Aligned gray faces [B,128,128,1] of images [B,H,W,3]; zeros beyond the image."""
    return warp_affine(to_gray(image), matrix, FACE_SIZE)


def aligned_colour(image: jax.Array, matrix: jax.Array) -> jax.Array:
    """Aligned faces [B,112,112,3] of images [B,H,W,3] in [-1,1]; black (-1) beyond the image."""
    return warp_affine(image + 1, matrix, COLOUR_SIZE) - 1


# Where dlib's five points (corners of the eyes from left to right in the picture, base of the nose) lie in the mean
# face of its training, in shares of the face; around the face there is a quarter of it on all sides.
_DLIB_POINTS = ((0.12058, 0.21373), (0.33409, 0.22906), (0.64606, 0.22897), (0.85957, 0.21350), (0.49011, 0.62780))
_DLIB_IDS = (36, 39, 42, 45, 33)  # of the 68
_DLIB_BORDER = 0.25


def dlib_matrix(landmarks: jax.Array) -> jax.Array:
    """Similarity [B,2,3] from image pixels to the cut-out of dlib's network, of 68 landmarks; of five (eyes, nose tip,
    mouth corners) by the eyes alone. Without gradient.
    """
    target = (jnp.asarray(_DLIB_POINTS) + _DLIB_BORDER) * (DLIB_SIDE / (1 + 2 * _DLIB_BORDER))
    if landmarks.shape[-2:] == (5, 2):
        source, target = landmarks[:, :2], jnp.stack([target[:2].mean(0), target[2:4].mean(0)])
    else:
        five_points(landmarks)  # complains about other numbers of points
        source = landmarks[:, jnp.asarray(_DLIB_IDS)]
    return jax.lax.stop_gradient(similarity_transform(source, target))


def aligned_dlib(image: jax.Array, matrix: jax.Array) -> jax.Array:
    """Faces [B,150,150,3] of images [B,H,W,3] in [-1,1], cut out by ``dlib_matrix``; black (-1) beyond the image."""
    return warp_affine(image + 1, matrix, DLIB_SIDE) - 1


class FaceNetwork(NamedTuple):
    """A face recognition network: its name in reports, how it wants (images, matrices) cut out, and the matrices
    [B,2,3] of landmarks [B,68,2] or [B,5,2].
    """

    title: str
    cut: Callable[[jax.Array, jax.Array], jax.Array]
    place: Callable[[jax.Array], jax.Array] = face_matrix


# In order of preference where several are given and none is named. All need landmarks.
FACE_NETWORKS: dict[str, FaceNetwork] = {
    'arcface18': FaceNetwork('ArcFace-18', aligned_gray),
    'arcface18_se': FaceNetwork('ArcFace-18 with squeeze-excitation', aligned_gray),
    **{f'iresnet{n}': FaceNetwork(f'insightface iResNet-{n}', aligned_colour) for n in (18, 34, 50, 100)},
    'ir50': FaceNetwork('IR-50 (pSp family), on faces aligned to the recognition template', aligned_colour),
    'irse50': FaceNetwork('IR-SE-50 (pSp family), on faces aligned to the recognition template', aligned_colour),
    'dlib_face': FaceNetwork("dlib's face recognition network (2017)", aligned_dlib, dlib_matrix),
}


def cosine_distance(a: jax.Array, b: jax.Array, eps: float = 1e-12) -> jax.Array:
    """Mean over the batch of ``1 - a.b / sqrt((|a|^2 + eps)(|b|^2 + eps))``."""
    product = jnp.sum(a * b, -1)
    norm = jnp.sqrt((jnp.sum(a * a, -1) + eps) * (jnp.sum(b * b, -1) + eps))
    return jnp.mean(1 - product / norm)


@struct.dataclass
class IdentityTarget:
    """Embedding of the target [B,D] and, where faces are aligned, the matrix [B,2,3] used for both images."""

    embedding: jax.Array
    matrix: jax.Array | None = None


def identity_target(
    embed: Embed,
    target: jax.Array,
    landmarks: jax.Array | None,
    cut: Callable = aligned_gray,
    place: Callable = face_matrix,
) -> IdentityTarget:
    """Prepares targets [B,H,W,3].

    Args:
        embed: network on aligned faces, or on whole images [B,H,W,3] when `landmarks` is None.
        landmarks: [B,68,2] or [B,5,2] pixels of the target.
        cut: how the network wants its faces; place: where they are (``FaceNetwork``).
    """
    matrix = None if landmarks is None else place(landmarks)
    embedding = embed(target if matrix is None else cut(target, matrix))
    return jax.lax.stop_gradient(IdentityTarget(embedding, matrix))


def identity_loss(
    embed: Embed, prediction: jax.Array, target: IdentityTarget, cut: Callable = aligned_gray
) -> jax.Array:
    """Mean of 1 - cosine between the embeddings of prediction and target; arguments as for ``identity_target``."""
    face = prediction if target.matrix is None else cut(prediction, target.matrix)
    return cosine_distance(embed(face), target.embedding)
