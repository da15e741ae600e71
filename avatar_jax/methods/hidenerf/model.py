"""HiDe-NeRF's networks together: a source seen once, and its frames.

Variables are ``{'params': {...}}`` as weight files hold them; ``load_model`` adds ``mesh``, the head model that draws
the codes, which no weight file contains. ``encode`` computes everything that depends on the source alone (planes,
identity features, canonical code); ``frame`` only what depends on expression and camera. Pictures are in [-1, 1], with
the background removed.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from flax import struct

from avatar_jax.errors import UserError
from avatar_jax.methods.hidenerf import cameras, field, secc
from avatar_jax.methods.hidenerf.appearance import Appearance, Front, Planes
from avatar_jax.methods.hidenerf.config import METHOD, ModelConfig
from avatar_jax.methods.hidenerf.deformation import Deformation
from avatar_jax.methods.hidenerf.refine import IdentityEncoder, Maps, Modulations, Refine
from avatar_jax.methods.hidenerf.secc import HeadMesh
from avatar_jax.methods.weight_files import WeightFiles, traced_once
from avatar_jax.models.decoder import OSGDecoder
from avatar_jax.ops.resize import resize
from avatar_jax.parallel import sample_keys
from avatar_jax.render.cameras import unpack_label
from avatar_jax.types import Frames, PyTree

if TYPE_CHECKING:
    from avatar_jax.faces.base import MorphableModel

SOURCE_PARTS, FRAME_PARTS = ('appearance', 'identity'), ('deformation', 'points', 'refine')


@struct.dataclass
class EncodedSource:
    """What is kept of N sources.

    Attributes:
        planes: tri-planes [N,3,h,h,C] of each level, coarse to fine.
        affine: [N,3,4] map from the world to the planes.
        identity: feature maps for the refine network, largest first.
        shape: [N,K] coefficients of the head. canonical: [N,S,S,3] its code without expression.
        front: the pictures themselves, with ``appearance.picture``; else None.
    """

    planes: Planes
    affine: jax.Array
    identity: Maps
    shape: jax.Array
    canonical: jax.Array
    front: Front | None = None


@struct.dataclass
class Draws:
    """Random numbers of N training pictures: ``jitter`` uniforms [N,M,S], ``perturbation`` normals [N,H,W,S,3]."""

    jitter: jax.Array | None = None
    perturbation: jax.Array | None = None

    @classmethod
    def from_key(cls, key: jax.Array, config: ModelConfig, count: int, axis_name: str | None = None) -> Draws:
        """Fresh draws of ``count`` pictures of this device's share."""
        size, samples = config.raw_size, config.volume.samples

        def one(key):
            first, second = jax.random.split(key)
            noise = jax.random.normal(second, (size, size, samples, 3)) if config.deformation.perturbation else None
            return cls(jax.random.uniform(first, (size * size, samples)), noise)

        return jax.vmap(one)(sample_keys(key, count, axis_name))


@struct.dataclass
class Views:
    """N rendered frames.

    Attributes:
        raw: [N,r,r,3] volume-rendered picture. image: [N,R,R,3] final one, or None; neither is limited to [-1, 1].
        depth, opacity: [N,r,r,1]. shift: displacements [N,r,r,S,3] of the sample points, world units.
    """

    raw: jax.Array
    image: jax.Array | None
    depth: jax.Array
    opacity: jax.Array
    shift: jax.Array


# ---------------------------------------------------------------------------------------------------------- parameters


def init(config: ModelConfig, key: jax.Array) -> dict[str, Any]:
    """Fresh variables, without running the networks."""
    keys = iter(jax.random.split(key, 5))

    def shape(*sizes):
        return jax.ShapeDtypeStruct(sizes, jnp.float32)

    size, raw, samples = config.image_size, config.raw_size, config.volume.samples
    picture, code = shape(1, size, size, 3), shape(1, config.secc.size, config.secc.size, 3)
    small = shape(1, config.appearance_size, config.appearance_size, 3)
    identity = jax.eval_shape(IdentityEncoder(config.refine).init_with_output, jax.random.key(0), picture)[0]
    params = {
        'appearance': Appearance(config.appearance).lazy_init(
            next(keys), small, shape(1, 3, 4), shape(1), config.volume.pivot
        ),
        'identity': IdentityEncoder(config.refine).lazy_init(next(keys), picture),
        'deformation': Deformation(config.deformation, samples).lazy_init(
            next(keys), shape(1, raw, raw, samples, 3), code, code
        ),
        'points': {
            'params': OSGDecoder(config.point_inputs, config.volume.hidden, config.volume.channels).init(next(keys))[
                'params'
            ]
        },
        'refine': refiner(config).lazy_init(next(keys), shape(1, raw, raw, config.volume.channels), identity),
    }
    return {'params': {name: part['params'] for name, part in params.items()}}


@traced_once
def abstract(config: ModelConfig) -> dict[str, Any]:
    """Names and shapes of the variables, without computing anything."""
    return jax.eval_shape(lambda: init(config, jax.random.key(0)))


MESH = 'mesh'  # in the provenance: fingerprint of the mesh
WEIGHTS = WeightFiles(METHOD, ModelConfig.from_dict, abstract)


def save_model(
    path: str | os.PathLike,
    variables: Mapping[str, Any],
    config: ModelConfig,
    provenance: Mapping[str, Any],
    storage: str = 'float32',
) -> str:
    """Writes a weight file of this method; returns its SHA-256.

    The mesh is not in it. Of variables with ``mesh`` its fingerprint is kept in the provenance, so that weights are not
    used with codes of another topology.
    """
    if 'mesh' in variables:
        provenance = {**provenance, MESH: secc.fingerprint(variables['mesh'])}
    return WEIGHTS.save(path, {'params': variables['params']}, config, provenance, storage)


def load_model(
    path: str | os.PathLike, head: MorphableModel | None = None
) -> tuple[dict[str, Any], ModelConfig, str, dict[str, Any]]:
    """Reads a weight file of this method: (variables with the mesh, configuration, SHA-256, provenance).

    Args:
        head: the head model that draws the codes; None: that of the weights' basis, from the package or the user's
            asset folders.

    Raises:
        UserError: missing, damaged or foreign file; weights that do not fit their configuration; no head model, or one
            of another mesh than that which the weights were trained with.
    """
    variables, config, sha256, provenance = WEIGHTS.load(path)
    mesh = secc.load_mesh(config.basis, head, str(path))
    if provenance.get(MESH, secc.fingerprint(mesh)) != secc.fingerprint(mesh):
        raise UserError(
            f"{path}: was trained with codes of another mesh of the basis '{config.basis}' (other vertices, triangles "
            'or colours) than the head model that was found; give that one'
        )
    return {**variables, 'mesh': mesh}, config, sha256, provenance


# -------------------------------------------------------------------------------------------------------------- source


def masked(images: jax.Array, masks: jax.Array, fill: float) -> jax.Array:
    """Pictures [...,H,W,3] before a plain background: where masks [...,H,W] in [0, 1] are 0."""
    return images * masks[..., None] + fill * (1 - masks[..., None])


def seen(config: ModelConfig, images: jax.Array) -> jax.Array:
    """Source pictures [N,R,R,3] in the size in which planes are computed from them."""
    return resize(images, config.appearance_size, antialias=True)


def encode(
    params: PyTree,
    config: ModelConfig,
    mesh: HeadMesh,
    images: jax.Array,
    labels: jax.Array,
    shape: jax.Array,
    mirrored: jax.Array | None = None,
    canonical: jax.Array | None = None,
) -> EncodedSource:
    """Everything that depends on N sources alone.

    Args:
        images: [N,R,R,3] in [-1, 1] before the background of ``config``. labels: [N,25] their cameras.
        shape: [N,K] coefficients of the head. mirrored: [N] bool, see ``secc.points``.
        canonical: [N,S,S,3] codes that were drawn before; None draws them.
    """
    pivot = config.volume.pivot
    cam2world, intrinsics = unpack_label(labels)
    mode, extent = config.appearance.transform, config.appearance.extent
    affine = cameras.look_up_map(cam2world, intrinsics, mode, pivot, extent)
    if mode == 'plane_warp':
        size = cameras.plane_extent(cam2world, intrinsics, pivot, extent)
        own = cameras.source_map(cam2world, size, pivot)
    else:
        own, size = affine, jnp.ones(len(images))  # not looked at
    appearance = Appearance(config.appearance)
    planes = appearance.apply({'params': params['appearance']}, seen(config, images), own, size, pivot)
    identity = IdentityEncoder(config.refine).apply({'params': params['identity']}, images)
    if canonical is None:
        canonical = secc.canonical(mesh, shape, config.secc, mirrored)
    front = None
    if config.appearance.picture is not None:
        picture = resize(images, config.appearance.picture, antialias=True)
        front = Front(picture, cameras.picture_map(cam2world, intrinsics, mode, affine))
    return EncodedSource(planes, affine, identity, shape, canonical, front)


def identity_of(source: EncodedSource) -> dict[str, Any]:
    """One source (its arrays without a leading axis) as nested dicts, as avatar files hold it."""

    def numbered(arrays):
        return {str(k): x for k, x in enumerate(arrays)}

    front = source.front
    return {
        'planes': numbered(source.planes),
        'affine': source.affine,
        'identity': numbered(source.identity),
        'shape': source.shape,
        'canonical': source.canonical,
    } | ({} if front is None else {'front': {'picture': front.picture, 'view': front.view}})


def source_of(identity: Mapping[str, Any]) -> EncodedSource:
    """The inverse of ``identity_of``."""

    def listed(arrays):
        return tuple(arrays[str(k)] for k in range(len(arrays)))

    return EncodedSource(
        listed(identity['planes']),
        identity['affine'],
        listed(identity['identity']),
        identity['shape'],
        identity['canonical'],
        Front(**identity['front']) if 'front' in identity else None,
    )


# --------------------------------------------------------------------------------------------------------------- frame


def displacements(
    params: PyTree,
    config: ModelConfig,
    rays: field.Rays,
    driving: jax.Array,
    canonical: jax.Array,
    perturbation: jax.Array | None = None,
) -> jax.Array:
    """Displacements [N,r,r,S,3] of the rays' sample points, world units.

    Args:
        driving, canonical: [N,S,S,3] codes in [-1, 1].
        perturbation: standard normals [N,r,r,S,3]; the network sees the points moved by them (supplement 6.1), the
            displacements are those of the points themselves.
    """
    c, size = config.deformation, config.raw_size
    points = rays.points.reshape(rays.depths.shape[0], size, size, config.volume.samples, 3)
    if perturbation is not None:
        points = points + c.perturbation * config.volume.spacing * perturbation
    points = jax.lax.stop_gradient(field.unit_points(config.volume, points))
    net = Deformation(c, config.volume.samples)
    found = net.apply({'params': params['deformation']}, points, driving, canonical)
    if c.antisymmetric:
        rest = net.apply({'params': params['deformation']}, points, canonical, canonical)
        # Exactly 0 for one and the same code, in whatever order a device adds up.
        same = (driving == canonical).all((1, 2, 3), keepdims=True)[..., None]
        found = jnp.where(same, 0.0, found - rest)
    return found * (c.scale * config.volume.box_warp)


def refiner(config: ModelConfig) -> Refine:
    """The refine network of a configuration."""
    return Refine(config.refine, config.image_size, config.raw_size, config.volume.channels)


def render(
    params: PyTree,
    config: ModelConfig,
    source: EncodedSource,
    driving: jax.Array,
    labels: jax.Array,
    draws: Draws | None = None,
    refine: bool = True,
    modulations: tuple[Modulations, ...] | None = None,
) -> Views:
    """Frames of N sources with driving codes [N,S,S,3] from cameras [N,25].

    Args:
        draws: random places of the samples and perturbation, for training; None: neither.
        refine: also run the refine network (static). modulations: what it is told of the sources, if that was
            computed before (``prepare``).
    """
    draws = Draws() if draws is None else draws
    size = config.raw_size
    rays = field.rays_of(config.volume, labels, size, draws.jitter)
    shift = displacements(params, config, rays, driving, source.canonical, draws.perturbation)
    flat = shift.reshape(*rays.depths.shape, 3)
    found = field.render(params['points'], config, source.planes, source.affine, rays, flat, source.front)
    features, depth, opacity = (
        x.reshape(len(labels), size, size, -1) for x in (found.features, found.depth, found.opacity)
    )
    image = None
    if refine:
        net, own = refiner(config), {'params': params['refine']}
        if modulations is None:
            modulations = net.apply(own, source.identity, method='modulations')
        image = net.apply(own, features, modulations, method='refined')
    return Views(features[..., :3], image, depth, opacity, shift)


def driving_codes(
    config: ModelConfig,
    mesh: HeadMesh,
    shape: jax.Array,
    expression: jax.Array,
    labels: jax.Array,
    mirrored: jax.Array | None = None,
) -> jax.Array:
    """Driving codes [N,S,S,3] of shapes [N,K] with expressions [N,64]; cameras [N,25] count only if pose-coupled."""
    pose = labels if config.deformation.pose_coupled else None
    return secc.codes(mesh, shape, expression, config.secc, mirrored=mirrored, labels=pose)


def prepare(variables: Mapping[str, Any], config: ModelConfig, identity: Mapping[str, Any]) -> tuple[Modulations, ...]:
    """What the refine network is told of an avatar's source, once for all of its frames.

    More than half of the network's arithmetic; kept in memory (at the paper's size about 150 MB) and in no file.
    """
    maps = tuple(x[None] for x in source_of(identity).identity)
    return refiner(config).apply({'params': variables['params']['refine']}, maps, method='modulations')


def frame(
    variables: Mapping[str, Any],
    config: ModelConfig,
    identity: Mapping[str, Any],
    prepared: tuple[Modulations, ...] | None,
    signals: Mapping[str, jax.Array],
    labels: jax.Array,
    keys: jax.Array | None = None,
    sr: bool = True,
) -> Frames:
    """N frames side by side: deformation, point network and refine network, nothing of the source's.

    A pure function (``config`` and ``sr`` static under ``jit``).

    Args:
        variables: with ``mesh``. identity: of ``identity_of``. prepared: of ``prepare``; None works it out again.
        keys: not needed, nothing is drawn at random.
        signals: ``expression`` [N,64] of the driver. labels: [N,25] cameras.
        sr: False leaves the refine network out; ``rgb`` is then the raw rendering.

    Returns:
        ``Frames`` with rgb and raw limited to [-1,1].
    """
    del keys
    count = labels.shape[0]
    source = jax.tree.map(lambda x: jnp.broadcast_to(x, (count, *x.shape)), source_of(identity))
    driving = driving_codes(config, variables['mesh'], source.shape, signals['expression'], labels)
    found = render(variables['params'], config, source, driving, labels, refine=sr, modulations=prepared)
    raw = jnp.clip(found.raw, -1, 1)
    rgb = raw if found.image is None else jnp.clip(found.image, -1, 1)
    return Frames(rgb, raw, found.depth, found.opacity)
