"""The tri-plane generator (EG3D): style rows -> three feature planes -> rendered features -> image."""

from __future__ import annotations

import dataclasses
import functools
import math
from dataclasses import dataclass, field
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
from einops import rearrange

from avatar_jax.checks import Check
from avatar_jax.errors import UserError
from avatar_jax.models.decoder import OSGDecoder, decode
from avatar_jax.models.mapping import MappingNetwork
from avatar_jax.models.superresolution import VARIANTS, SuperResolution
from avatar_jax.models.synthesis import SynthesisNetwork, num_style_rows
from avatar_jax.render.cameras import unpack_label
from avatar_jax.render.config import RenderConfig
from avatar_jax.render.rays import sample_rays
from avatar_jax.render.renderer import Deform, RayOutput, decode_points, render_rays
from avatar_jax.render.sampling import RenderDraws

# Constructor options of the release that change nothing here: how kernels are fused, half precision (`dtype` instead),
# and super-resolution arguments that its modules ignore.
_WITHOUT_EFFECT = ('fused_modconv_default', 'num_fp16_res', 'sr_kwargs')
_RELEASE_PREFIX = 'SuperresolutionHybrid'


@dataclass(frozen=True)
class GeneratorConfig:
    """Sizes and options of a tri-plane generator.

    Attributes:
        z_dim, w_dim, c_dim: latent code, style row, camera label.
        img_resolution: side of the final image; plane_resolution: side of the feature planes.
        plane_channels: channels of one plane.
        channel_base, channel_max: the backbone's block of resolution r has min(channel_base // r, channel_max)
            channels.
        mapping_layers: depth of the mapping network.
        decoder_hidden, decoder_out: width of the decoder, and its colour features (the first three are the raw image).
        superresolution: '8XDC', '8X', '4X', '2X' or 'deepfp32'; sr_channels: channels of its two blocks, None for those
            of the release; sr_conv_clamp: limit of its activations (the release has 256, in float32 too).
        conv_clamp: limit of the backbone's activations, None in the release.
        neural_rendering_resolution: side of the volume-rendered image.
        dtype: 'float32' or 'bfloat16', the type of the convolutions' activations in backbone and super-resolution.
            sr_dtype: the same of super-resolution alone; '' is ``dtype``. The original halves only its precision.
            Parameters, mapping, style affines, skip images, decoder, densities and compositing stay float32.
        remat: compute the activations of backbone and super-resolution blocks again in the backward pass instead of
                keeping
            them: less memory, about a third more time. (`rendering.ray_chunk` does so for rays.)
        release_image_raw: report ``image_raw`` as the release does in float32, where '4X' at 128 and '2X' at 64 raw
            pixels overwrite it with the first super-resolution block's sum; False reports the rendered colours.
        rendering: see `RenderConfig`.
    """

    z_dim: int = 512
    w_dim: int = 512
    c_dim: int = 25
    img_resolution: int = 512
    plane_resolution: int = 256
    plane_channels: int = 32
    channel_base: int = 32768
    channel_max: int = 512
    mapping_layers: int = 2
    decoder_hidden: int = 64
    decoder_out: int = 32
    superresolution: str = '8XDC'
    sr_channels: tuple[int, int] | None = None
    sr_conv_clamp: float | None = 256.0
    conv_clamp: float | None = None
    neural_rendering_resolution: int = 64
    dtype: str = 'float32'
    sr_dtype: str = ''
    remat: bool = False
    release_image_raw: bool = False
    rendering: RenderConfig = field(default_factory=RenderConfig)

    def __post_init__(self):
        check = Check(self, 'generator')
        check.one_of('dtype', 'float32', 'bfloat16')
        check.one_of('sr_dtype', '', 'float32', 'bfloat16')
        check.one_of('superresolution', *VARIANTS)
        check.need(self.c_dim in (0, 25), 'c_dim', 'a camera label has 25 numbers (0: no conditioning)')
        check.need(self.decoder_out >= 3, 'decoder_out', 'the first three features are the raw image; give at least 3')
        if self.sr_channels is not None:
            object.__setattr__(self, 'sr_channels', tuple(self.sr_channels))

    @property
    def num_ws(self) -> int:
        """Style rows of one image: 14 for planes of 256."""
        return num_style_rows(self.plane_resolution)

    def replace(self, **changes: Any) -> GeneratorConfig:
        """A copy with other fields; ``rendering`` may be a dict of changes. Unknown names are a `UserError`."""
        rendering = changes.get('rendering')
        if isinstance(rendering, dict):
            _known('rendering', rendering, RenderConfig)
            changes['rendering'] = dataclasses.replace(self.rendering, **rendering)
        _known('generator', changes, GeneratorConfig)
        return dataclasses.replace(self, **changes)

    def for_frames(self) -> GeneratorConfig:
        """For pictures that are only looked at, see ``RenderConfig.for_frames``."""
        return dataclasses.replace(self, rendering=self.rendering.for_frames())

    @classmethod
    def ffhq512(cls, raw: int = 64) -> GeneratorConfig:
        """EG3D's FFHQ model, 512 pixels; ``raw``: 64 or 128 rendered pixels (two releases of one architecture)."""
        return cls(neural_rendering_resolution=raw)

    @classmethod
    def afhq512(cls) -> GeneratorConfig:
        """EG3D's AFHQ (cats) model: 512 pixels, 128 rendered ones."""
        rendering = RenderConfig(avg_camera_pivot=(0.0, 0.0, -0.06), gpc_reg_prob=0.8)
        return cls(neural_rendering_resolution=128, rendering=rendering)

    @classmethod
    def shapenet128(cls) -> GeneratorConfig:
        """EG3D's ShapeNet (cars) model: 128 pixels, 64 rendered ones, no pose conditioning, white background."""
        rendering = RenderConfig(
            depth_resolution=64,
            depth_resolution_importance=64,
            ray_start=0.1,
            ray_end=2.6,
            box_warp=1.6,
            white_back=True,
            c_gen_conditioning_zero=True,
            gpc_reg_prob=None,
            avg_camera_radius=1.7,
            avg_camera_pivot=(0.0, 0.0, 0.0),
        )
        return cls(img_resolution=128, superresolution='2X', rendering=rendering)

    @classmethod
    def heads128(cls) -> GeneratorConfig:
        """A small generator for the procedural heads: 128 pixels from 64 rendered ones, under 3 million parameters.

        Orthogonal planes and a white background. The mapping does not see the camera: the poses of made heads say
        nothing about who they are.
        """
        rendering = RenderConfig(
            depth_resolution=24,
            depth_resolution_importance=24,
            white_back=True,
            plane_axes='orthogonal',
            c_gen_conditioning_zero=True,
            gpc_reg_prob=None,
        )
        return cls(
            z_dim=256,
            w_dim=256,
            img_resolution=128,
            plane_resolution=128,
            channel_base=4096,
            channel_max=176,
            superresolution='2X',
            sr_channels=(64, 32),
            rendering=rendering,
        )

    @classmethod
    def tiny(cls) -> GeneratorConfig:
        """For tests: 32 pixels from 16, a few thousand parameters, every stage present."""
        rendering = RenderConfig(
            depth_resolution=6, depth_resolution_importance=6, white_back=True, plane_axes='orthogonal'
        )
        return cls(
            z_dim=16,
            w_dim=16,
            img_resolution=32,
            plane_resolution=16,
            plane_channels=8,
            channel_base=256,
            channel_max=16,
            decoder_hidden=16,
            decoder_out=8,
            superresolution='2X',
            sr_channels=(8, 8),
            neural_rendering_resolution=16,
            rendering=rendering,
        )

    @classmethod
    def from_release(
        cls, init_kwargs: dict[str, Any], neural_rendering_resolution: int = 64, plane_axes: str = 'legacy'
    ) -> GeneratorConfig:
        """The configuration of a released model.

        Args:
            init_kwargs: its constructor options (``_init_kwargs`` of the stored network), with ``rendering_kwargs``.
            neural_rendering_resolution: the attribute of that name.
            plane_axes: see `ops.grid_sample.plane_axes_of`.

        Raises:
            UserError: for options that are unknown or that this generator does not have.
        """
        kwargs = dict(init_kwargs)
        rendering = kwargs.pop('rendering_kwargs')
        for name in _WITHOUT_EFFECT:
            kwargs.pop(name, None)
        if (channels := kwargs.pop('img_channels', 3)) != 3:
            raise UserError(f'img_channels: {channels}; only colour images (3) are supported')
        mapping = dict(kwargs.pop('mapping_kwargs', {}))
        kwargs['mapping_layers'] = mapping.pop('num_layers', 8)
        module = rendering['superresolution_module'].rpartition('.')[2]
        if not module.startswith(_RELEASE_PREFIX):
            raise UserError(f'superresolution_module: {module} is not one of the release')
        suffix = module.removeprefix(_RELEASE_PREFIX)
        kwargs['superresolution'] = next((name for name in VARIANTS if name.lower() == suffix.lower()), suffix)
        kwargs['sr_conv_clamp'] = 256.0 if kwargs.pop('sr_num_fp16_res', 0) > 0 else None
        kwargs['neural_rendering_resolution'] = neural_rendering_resolution
        _known('mapping_kwargs', mapping, ())
        _known('generator', kwargs, cls)
        return cls(rendering=RenderConfig.from_rendering_kwargs(rendering, plane_axes=plane_axes), **kwargs)


def _known(where: str, options: dict[str, Any], owner: Any) -> None:
    names = {f.name for f in dataclasses.fields(owner)} if owner else set()
    if unknown := sorted(set(options) - names):
        raise UserError(f'{where}: unknown option(s) {", ".join(unknown)}; remove or rename them')


@flax.struct.dataclass
class Rendered:
    """A volume-rendered image of R x R rays.

    Attributes:
        rgb: [N, R, R, 3], nominally in [-1, 1]: the first three features.
        features: [N, R, R, K].
        depth: [N, R, R, 1] distance along the ray, in world units.
        opacity: [N, R, R, 1] in [0, 1]: how much of the ray's light was stopped.
    """

    rgb: jax.Array
    features: jax.Array
    depth: jax.Array
    opacity: jax.Array


class Backbone(nn.Module):
    """Mapping and synthesis network under the names of the release."""

    config: GeneratorConfig

    def setup(self):
        c = self.config
        self.mapping = MappingNetwork(c.z_dim, c.c_dim, c.w_dim, c.num_ws, c.mapping_layers)
        self.synthesis = SynthesisNetwork(
            c.plane_resolution,
            3 * c.plane_channels,
            c.channel_base,
            c.channel_max,
            c.conv_clamp,
            dtype=jnp.dtype(c.dtype),
            remat=c.remat,
        )


class TriPlaneGenerator(nn.Module):
    """EG3D's generator. Every stage can be called by itself: ``model.apply(variables, ..., method='planes')``.

    Collections: ``params``, ``noise`` (constant noise maps), ``ema_stats`` (mean style row).
    """

    config: GeneratorConfig

    def setup(self):
        c = self.config
        self.backbone = Backbone(c)
        self.superresolution = SuperResolution(
            c.superresolution,
            c.img_resolution,
            c.sr_channels,
            conv_clamp=c.sr_conv_clamp,
            sr_antialias=c.rendering.sr_antialias,
            dtype=jnp.dtype(c.sr_dtype or c.dtype),
            remat=c.remat,
        )
        self.decoder = OSGDecoder(c.plane_channels, c.decoder_hidden, c.decoder_out, c.rendering.decoder_lr_mul)

    @property
    def num_ws(self) -> int:
        """Style rows of one image."""
        return self.config.num_ws

    def mapping(
        self,
        z: jax.Array,
        c: jax.Array,
        truncation_psi: float | jax.Array = 1.0,
        truncation_cutoff: int | None = None,
        update_emas: bool = False,
    ) -> jax.Array:
        """Codes z [N, z_dim] and camera labels c [N, 25] -> style rows [N, num_ws, w_dim], float32.

        ``truncation_psi`` pulls the first ``truncation_cutoff`` rows (None: all) to the mean row; ``update_emas`` moves
        that mean and needs ``mutable=['ema_stats']``.
        """
        scale = 0.0 if self.config.rendering.c_gen_conditioning_zero else self.config.rendering.c_scale
        return self.backbone.mapping(z, c * scale, truncation_psi, truncation_cutoff, update_emas)

    def planes(self, ws: jax.Array, noise_mode: str = 'const') -> jax.Array:
        """Style rows [N, num_ws, w_dim] -> feature planes [N, 3, H, W, C] float32.

        ``noise_mode``: 'const', 'none' or 'random' (needs ``rngs={'noise': key}``).
        """
        return self.as_planes(self.backbone.synthesis(ws, noise_mode))

    def as_planes(self, image: jax.Array) -> jax.Array:
        """An image [N, H, W, 3 C] as the backbone makes it, plane after plane, as planes [N, 3, H, W, C]."""
        return rearrange(image, 'n h w (p c) -> n p h w c', p=3)

    def planes_and_features(
        self, ws: jax.Array, resolution: int, noise_mode: str = 'const'
    ) -> tuple[jax.Array, jax.Array]:
        """`planes`, and the features [N, resolution, resolution, C'] that leave the backbone's block of that size."""
        image, features = self.backbone.synthesis(ws, noise_mode, resolution)
        return self.as_planes(image), features

    def _decode(self):
        """The decoder as a pure function, which the renderer may call inside loops."""
        params, lr_mul = self.decoder(), self.config.rendering.decoder_lr_mul
        return lambda features: decode(params, features, lr_mul)

    def render(
        self,
        planes: jax.Array,
        c: jax.Array,
        resolution: int | None = None,
        key: jax.Array | None = None,
        draws: RenderDraws | None = None,
        deform: Deform | None = None,
    ) -> Rendered:
        """Volume-renders planes [N, 3, H, W, C] from the cameras c [N, 25].

        Args:
            resolution: R, pixels per side; None is ``neural_rendering_resolution``.
            key: jitters the samples along the rays; None renders deterministically.
            draws: given random numbers instead of a key.
            deform: moves the samples before the planes are looked up, see `renderer.render_rays`.
        """
        if key is not None and draws is not None:
            raise ValueError('render: give a key or draws, not both')
        size = self.config.neural_rendering_resolution if resolution is None else resolution
        config = self.config.rendering
        origins, directions = sample_rays(*unpack_label(c), size)
        if draws is None:
            draws = RenderDraws.from_key(key, config, *origins.shape[:2])
        out = render_rays(self._decode(), planes, origins, directions, config, draws, deform)
        maps = [a.reshape(a.shape[0], size, size, a.shape[-1]) for a in (out.features, out.depth, out.opacity)]
        return Rendered(maps[0][..., :3], *maps)

    def render_rays(
        self,
        planes: jax.Array,
        origins: jax.Array,
        directions: jax.Array,
        draws: RenderDraws | None = None,
        deform: Deform | None = None,
    ) -> RayOutput:
        """Volume-renders single rays [N, M, 3]; see `renderer.render_rays`."""
        return render_rays(self._decode(), planes, origins, directions, self.config.rendering, draws, deform)

    def superresolve(self, rgb: jax.Array, features: jax.Array, ws: jax.Array) -> jax.Array:
        """Rendered colours [N, R, R, 3] and features [N, R, R, K] -> image [N, H, W, 3], not clamped.

        The last style row drives all layers. Noise is the configuration's ``superresolution_noise_mode``.
        """
        return self.superresolution(rgb, features, ws, self.config.rendering.superresolution_noise_mode)

    def superresolve_with_raw(
        self, rgb: jax.Array, features: jax.Array, ws: jax.Array, noise_mode: str | None = None
    ) -> tuple[jax.Array, jax.Array]:
        """`superresolve`, and the raw image as ``release_image_raw`` wants it: what a discriminator is shown.

        ``noise_mode`` None: that of the configuration.
        """
        mode = noise_mode or self.config.rendering.superresolution_noise_mode
        image, released = self.superresolution.with_raw(rgb, features, ws, mode)
        return image, released if self.config.release_image_raw else rgb

    def synthesis(
        self,
        ws: jax.Array,
        c: jax.Array,
        resolution: int | None = None,
        noise_mode: str = 'const',
        key: jax.Array | None = None,
        draws: RenderDraws | None = None,
        planes: jax.Array | None = None,
    ) -> dict[str, jax.Array]:
        """Style rows [N, num_ws, w_dim] seen from cameras c [N, 25].

        Args:
            resolution, key, draws: see `render`; noise_mode: of the backbone, see `planes`.
            planes: already computed planes of these ``ws``, to render further views without the backbone.

        Returns:
            image [N, H, W, 3] and image_raw [N, R, R, 3], nominally in [-1, 1] but not clamped;
            image_depth [N, R, R, 1]; opacity [N, R, R, 1].
        """
        if planes is None:
            planes = self.planes(ws, noise_mode)
        out = self.render(planes, c, resolution, key, draws)
        image, raw = self.superresolve_with_raw(out.rgb, out.features, ws)
        return {'image': image, 'image_raw': raw, 'image_depth': out.depth, 'opacity': out.opacity}

    def sample_density(
        self, planes: jax.Array, points: jax.Array, deform: Deform | None = None
    ) -> tuple[jax.Array, jax.Array]:
        """Colour features [N, M, K] in [0, 1] and raw densities [N, M, 1] at world points [N, M, 3]."""
        return decode_points(self._decode(), planes, points, self.config.rendering, deform)

    def __call__(
        self,
        z: jax.Array,
        c: jax.Array,
        truncation_psi: float | jax.Array = 1.0,
        truncation_cutoff: int | None = None,
        resolution: int | None = None,
        noise_mode: str = 'const',
        key: jax.Array | None = None,
    ) -> dict[str, jax.Array]:
        """`synthesis` of `mapping`; the same labels condition the mapping and place the camera."""
        ws = self.mapping(z, c, truncation_psi, truncation_cutoff)
        return self.synthesis(ws, c, resolution, noise_mode, key)


def init_generator(config: GeneratorConfig, key: jax.Array) -> dict[str, Any]:
    """Fresh variables {'params', 'noise', 'ema_stats'} of a generator, without running it.

    The same distributions as ``TriPlaneGenerator(config).init``, drawn in one go: a random generator per tensor takes
    XLA far longer to compile than the rest of a small model. Under ``jax.eval_shape`` the full-size model costs
    nothing.
    """
    return _drawn(key, config=config)


@functools.partial(jax.jit, static_argnames='config')  # of the module: one program for each configuration
def _drawn(key, *, config):
    z, c = jnp.zeros((1, config.z_dim)), jnp.zeros((1, 25))
    abstract = jax.eval_shape(TriPlaneGenerator(config).init, key, z, c)
    paths, structure = jax.tree_util.tree_flatten_with_path(abstract)
    paths = [([k.key for k in path], leaf.shape) for path, leaf in paths]
    numbers = jax.random.normal(key, (sum(math.prod(s) for p, s in paths if _scale(config, p)),))
    leaves, start = [], 0
    for path, shape in paths:
        scale, size = _scale(config, path), math.prod(shape)
        if scale:
            leaves.append(numbers[start : start + size].reshape(shape) * scale)
            start += size
        else:
            leaves.append(jnp.full(shape, 1.0 if path[-2:] == ['affine', 'bias'] else 0.0))
    return jax.tree.unflatten(structure, leaves)


def _scale(config: GeneratorConfig, path: list[str]) -> float:
    """Standard deviation of a variable's initial values; 0 for those that start constant."""
    if path[-1] not in ('weight', 'const', 'noise_const'):
        return 0.0
    if 'decoder' in path:
        return 1 / config.rendering.decoder_lr_mul
    if 'mapping' in path and path[-2] != 'embed':
        return 1 / MappingNetwork.lr_multiplier
    return 1.0
