"""OTAvatar's networks together: one tree of variables, one configuration, one way to render.

Variables are nested dicts, collections first and then the network, as weight files hold them:

    params    / generator, controller
    noise     / generator                 constant noise maps of the backbone
    ema_stats / generator                 ``w_avg``
    constants / w_std [D]                 only for ``sigma_w = 'std'``

``frame`` renders an identity (a code, the correction of the intrinsics, and possibly generator weights that were tuned
to the person) from motion windows and camera labels. It is a pure function of arrays with a static configuration, so it
passes through ``jit`` and ``vmap``; ``methods.render.animate`` calls it for many frames, ``otavatar.invert`` finds the
identity of a portrait.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, ClassVar

import flax.struct
import jax
import jax.numpy as jnp

from avatar_jax.checks import Check
from avatar_jax.configure import from_plain, to_plain
from avatar_jax.faces.camera_labels import correct_intrinsics
from avatar_jax.faces.conventions import Conventions
from avatar_jax.methods.otavatar.config import OTAvatarConfig
from avatar_jax.methods.otavatar.controller import Controller, ControllerConfig, MotionCode, clamp_codes, combine_codes
from avatar_jax.methods.weight_files import WeightFiles, traced_once
from avatar_jax.models.triplane import GeneratorConfig, TriPlaneGenerator, init_generator
from avatar_jax.ops.windows import RADIUS
from avatar_jax.render.cameras import frontal_label
from avatar_jax.render.sampling import RenderDraws
from avatar_jax.types import Array, Frames, Portrait, PyTree

METHOD = 'otavatar'
NETWORKS = ('generator', 'controller')
STD_SAMPLES = 4096  # latents


@dataclass(frozen=True)
class ModelConfig:
    """What builds the networks and says how they are used.

    Attributes:
        generator: the tri-plane generator.
        settings: everything of OTAvatar itself; ``settings.controller`` must fit the generator's code.
        basis: name of the coefficient basis that drives the controller.
        label_mode: how camera labels are normalised in the data that the model was trained on (one of
            ``faces.camera_labels.MODES``); labels of photographs are made alike.
    """

    FORMER_NAMES: ClassVar[Mapping[str, str]] = {'method': 'settings'}  # in files of before

    generator: GeneratorConfig = field(default_factory=GeneratorConfig)
    settings: OTAvatarConfig = field(default_factory=OTAvatarConfig)
    basis: str = 'procedural'
    label_mode: str = 'raw'

    @property
    def img_resolution(self) -> int:
        """Side of the final picture."""
        return self.generator.img_resolution

    @property
    def conventions(self) -> Conventions:
        """Of the pictures that the weights know: heads before white."""
        return Conventions(self.basis, self.label_mode, 'white', 'clip' if self.label_mode == 'hdtf' else 'five_points')

    def __post_init__(self):
        check = Check(self)
        for name in ('num_ws', 'w_dim'):
            wanted = getattr(self.generator, name)
            check.need(
                getattr(self.settings.controller, name) == wanted,
                f'settings.controller.{name}',
                f'the generator reads {wanted}; set both alike',
            )
        check.need(
            not self.settings.controller.use_crop,
            'settings.controller.use_crop',
            'motions have 70 numbers a frame and none about the crop; set it to False',
        )

    @classmethod
    def of(cls, generator: GeneratorConfig, settings: OTAvatarConfig | None = None, **other: Any) -> ModelConfig:
        """A configuration whose controller is sized to the generator."""
        settings = OTAvatarConfig.paper() if settings is None else settings
        settings = settings.replace(controller__num_ws=generator.num_ws, controller__w_dim=generator.w_dim)
        return cls(generator, settings, **other)

    @classmethod
    def tiny(cls, preset: str = 'release') -> ModelConfig:
        """For tests: a few thousand parameters, iterations of a few steps, every part present."""
        generator = GeneratorConfig.tiny()
        base = OTAvatarConfig.release() if preset == 'release' else OTAvatarConfig.paper()
        sr_steps = 2 if preset == 'release' else 5
        settings = base.replace(
            controller=ControllerConfig(num_ws=generator.num_ws, w_dim=generator.w_dim, directions=4, channels=16),
            decoupling__identity_steps=3,
            decoupling__controller_steps=2,
            decoupling__sr_steps=sr_steps,
            loss__density_points=32,
            loss__perceptual_scales_sr=3,
            train__batch_size=2,
            inversion__w_steps=4,
            inversion__wplus_steps=4,
            **({'inversion__sr_steps': 2} if preset == 'release' else {}),
        )
        return cls(generator, settings)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ModelConfig:
        """The inverse of ``to_dict``. Raises ``UserError`` for unknown keys (with a suggestion) and wrong values."""
        return from_plain(cls, values)

    def to_dict(self) -> dict[str, Any]:
        """Plain nested values, as weight files and checkpoints store them."""
        return to_plain(self)


# --------------------------------------------------------------------------------------------------------- variables


def join(generator: Mapping[str, Any], controller: Mapping[str, Any], w_std: Array | None = None) -> dict[str, Any]:
    """One tree from the variables of the two networks, each ``{'params': ..., ...}``."""
    tree: dict[str, Any] = {}
    for name, variables in zip(NETWORKS, (generator, controller), strict=True):
        for collection, values in variables.items():
            tree.setdefault(collection, {})[name] = values
    if w_std is not None:
        tree['constants'] = {'w_std': w_std}
    return tree


def network(variables: Mapping[str, Any], name: str) -> dict[str, Any]:
    """The variables of one network out of the common tree, as its module takes them."""
    return {collection: tree[name] for collection, tree in variables.items() if name in tree}


def init(config: ModelConfig, key: jax.Array) -> dict[str, Any]:
    """Fresh variables."""
    k_generator, k_controller = jax.random.split(key)
    controller = _drawn_controller(k_controller, config=config.settings.controller)
    generator = init_generator(config.generator, k_generator)
    w_std = code_std(generator, config.generator) if config.settings.sigma_w == 'std' else None
    return join(generator, controller, w_std)


@partial(jax.jit, static_argnames='config')  # of the module: one program for each configuration
def _drawn_controller(key, *, config):
    return Controller(config).init(key, jnp.zeros((1, 2 * RADIUS + 1, 70)), method='codes')


@partial(jax.jit, static_argnames='config')
def code_std(generator: Mapping[str, Any], config: GeneratorConfig) -> jax.Array:
    """[D] standard deviation of each number of the codes that the mapping network makes of normal latents.

    Always of the same latents, seen from the front, so that it is a property of the weights.
    """
    render = config.rendering
    z = jax.random.normal(jax.random.key(0), (STD_SAMPLES, config.z_dim))
    labels = jnp.repeat(frontal_label(render.avg_camera_radius, render.avg_camera_pivot), STD_SAMPLES, 0)
    return jnp.std(TriPlaneGenerator(config).apply(generator, z, labels, method='mapping')[:, 0], 0)


@traced_once
def abstract(config: ModelConfig) -> dict[str, Any]:
    """Names and shapes of the variables, without computing anything."""
    return jax.eval_shape(lambda: init(config, jax.random.key(0)))


def merge(frozen: Mapping[str, Any], trained: Mapping[str, Any]) -> dict[str, Any]:
    """One parameter tree from two that have no leaf in common."""
    merged = dict(frozen)
    for key, value in trained.items():
        both = key in merged and isinstance(merged[key], Mapping) and isinstance(value, Mapping)
        merged[key] = merge(merged[key], value) if both else value
    return merged


def split_trained(params: Mapping[str, Any], subset: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Generator parameters as (fixed, trained).

    The mapping network takes no part in rendering a given code and is always fixed. ``subset``: 'all' others, or the
    'superresolution' module alone.
    """
    if subset == 'superresolution':
        trained = {'superresolution': params['superresolution']}
        return {k: v for k, v in params.items() if k not in trained}, trained
    if subset != 'all':
        raise ValueError(f"subset {subset!r}: use 'all' or 'superresolution'")
    backbone = dict(params['backbone'])
    fixed = {'backbone': {'mapping': backbone.pop('mapping')}} if 'mapping' in backbone else {}
    return fixed, {**params, 'backbone': backbone}


def w_avg(variables: Mapping[str, Any]) -> jax.Array:
    """[D] the generator's average code, where inversion starts."""
    return variables['ema_stats']['generator']['backbone']['mapping']['w_avg']


def sigma(variables: Mapping[str, Any], config: ModelConfig) -> jax.Array | None:
    """[D] scale of motion offset and clamp; None stands for ones."""
    return variables['constants']['w_std'] if config.settings.sigma_w == 'std' else None


WEIGHTS = WeightFiles(METHOD, ModelConfig.from_dict, abstract)
save_model = WEIGHTS.save
load_model = WEIGHTS.load


# --------------------------------------------------------------------------------------------------------- rendering


@flax.struct.dataclass
class Views:
    """N rendered views; ``image`` is None where super-resolution was not asked for.

    Attributes:
        planes: [N,3,H,W,C]. raw: [N,R,R,3]. image: [N,S,S,3]. Neither is clamped.
        depth, opacity: [N,R,R,1].
    """

    planes: jax.Array
    raw: jax.Array
    depth: jax.Array
    opacity: jax.Array
    image: jax.Array | None = None


def motion_codes(
    params: PyTree, config: ModelConfig, windows: jax.Array, code_book: jax.Array | None = None
) -> MotionCode:
    """Controller outputs for windows [..., 27, 70]; leading axes are kept. ``code_book``: of ``code_book_of``."""
    lead = windows.shape[:-2]
    flat = windows.reshape(-1, *windows.shape[-2:])
    codes = Controller(config.settings.controller).apply({'params': params}, flat, code_book, method='codes')
    return jax.tree.map(lambda x: x.reshape(*lead, *x.shape[1:]), codes)


def code_book_of(variables: Mapping[str, Any], config: ModelConfig) -> jax.Array:
    """[D, K] the orthogonal code book. It depends on the weights alone: compute it once for a whole video."""
    return Controller(config.settings.controller).apply(network(variables, 'controller'), method='code_book')


def driven_codes(
    w: jax.Array, code: MotionCode, config: ModelConfig, variables: Mapping[str, Any], clamp: bool
) -> jax.Array:
    """What the generator gets, [N,L,D]: identity plus motion, with ``clamp`` kept near the average code."""
    scale = sigma(variables, config)
    ws = combine_codes(w, code, scale)
    return clamp_codes(ws, w_avg(variables), config.settings.clamp_radius, scale) if clamp else ws


def sample_draws(keys: jax.Array, config: GeneratorConfig, resolution: int) -> RenderDraws:
    """Draws for N views from N keys: each view's do not depend on the others around it."""
    draws = jax.vmap(lambda k: RenderDraws.from_key(k, config.rendering, 1, resolution**2))(keys)
    return jax.tree.map(lambda x: x[:, 0], draws)


def render_views(
    generator: Mapping[str, Any],
    config: GeneratorConfig,
    ws: jax.Array,
    labels: jax.Array,
    keys: jax.Array | None = None,
    sr: bool = True,
) -> Views:
    """Renders codes [N,L,D] from cameras [N,25].

    Args:
        generator: variables of the generator.
        keys: [N] typed keys that jitter the samples along the rays; None renders deterministically.
        sr: also run super-resolution (static).
    """
    model = TriPlaneGenerator(config)
    planes = model.apply(generator, ws, method='planes')
    draws = None if keys is None else sample_draws(keys, config, config.neural_rendering_resolution)
    out = model.apply(generator, planes, labels, draws=draws, method='render')
    image = model.apply(generator, out.rgb, out.features, ws, method='superresolve') if sr else None
    return Views(planes, out.rgb, out.depth, out.opacity, image)


# -------------------------------------------------------------------------------------------------------------- frames


def identity_of(identity: Mapping[str, Any], variables: Mapping[str, Any]) -> tuple[jax.Array, jax.Array, PyTree]:
    """Code [L,D], correction [18] and generator variables (the avatar's own if it has tuned ones)."""
    generator = network(variables, 'generator')
    if 'generator' in identity:
        generator = {**generator, 'params': identity['generator']}
    return identity['code'], identity['bias'], generator


def prepare(variables: Mapping[str, Any], config: ModelConfig, identity: Mapping[str, Any]) -> jax.Array:
    """What is computed once for a video: ``code_book_of``."""
    return code_book_of(variables, config)


def frame(
    variables: Mapping[str, Any],
    config: ModelConfig,
    identity: Mapping[str, Any],
    code_book: jax.Array | None,
    signals: Mapping[str, jax.Array],
    labels: jax.Array,
    keys: jax.Array | None = None,
    sr: bool = True,
) -> Frames:
    """N frames side by side; a pure function (``config`` and ``sr`` static under ``jit``).

    Args:
        identity: ``{'code': [L,D], 'bias': [18]}``, and ``'generator'`` where it was tuned.
        code_book: what ``code_book_of`` gives; None computes it.
        signals: ``windows`` [N,27,70] of the driver. labels: [N,25] cameras of the driver.
        keys: [N], jitter the samples along the rays, as the released program does; None is deterministic, without
            flicker.
        sr: False leaves super-resolution out; ``rgb`` is then the raw rendering.

    Returns:
        ``Frames`` with rgb and raw limited to [-1, 1]. The code is not clamped, unlike during inversion.
    """
    code, bias, generator = identity_of(identity, variables)
    motion = motion_codes(network(variables, 'controller')['params'], config, signals['windows'], code_book)
    w = jnp.broadcast_to(code, (labels.shape[0], *code.shape))
    ws = driven_codes(w, motion, config, variables, clamp=False)
    views = render_views(generator, config.generator.for_frames(), ws, correct_intrinsics(labels, bias), keys, sr)
    raw = jnp.clip(views.raw, -1, 1)
    return Frames(raw if views.image is None else jnp.clip(views.image, -1, 1), raw, views.depth, views.opacity)


def source_windows(portrait: Portrait) -> jax.Array:
    """[..., 27, 70] motion windows of still pictures: the picture's coefficients in every frame.

    Coefficients that were not measured are taken as zero (a neutral face, an unturned head).
    """
    parts = []
    lead = portrait.image.shape[:-3]
    for value, size in ((portrait.expression, 64), (portrait.angle, 3), (portrait.translation, 3)):
        parts.append(jnp.zeros((*lead, size)) if value is None else jnp.asarray(value))
    row = jnp.concatenate(parts, -1)
    return jnp.broadcast_to(row[..., None, :], (*lead, 2 * RADIUS + 1, row.shape[-1]))
