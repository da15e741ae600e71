"""What the volume renderer can be told."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

from avatar_jax.checks import Check
from avatar_jax.errors import UserError
from avatar_jax.ops.grid_sample import PLANE_AXES

# Keys of a released model's rendering options that describe the network instead; models/triplane.py reads them.
_NETWORK_KEYS = ('image_resolution', 'superresolution_module')


CACHED_SAMPLES = 12_288  # whose features and hidden layer (3 MB each) are worked on at a time, see ``for_frames``


@dataclass(frozen=True)
class RenderConfig:
    """Rendering options; the names and meanings are those of EG3D's ``rendering_kwargs``.

    Attributes:
        depth_resolution: stratified samples per ray, >= 2 (>= 4 when importance samples are taken).
        depth_resolution_importance: further samples per ray where the first pass found something; 0 switches them off.
        ray_start, ray_end: nearest and farthest distance from the camera, or both 'auto': where the ray meets the box.
        box_warp: side of the cube, centred at the origin, that the planes cover.
        white_back: composite onto white instead of black.
        disparity_space_sampling: spread the first samples evenly in 1/depth.
        clamp_mode: how densities are made positive; only 'softplus' exists.
        density_noise: standard deviation of the noise on densities, for training; applied when draws or a key are
            given.
        plane_axes: 'legacy' (XY, XZ, ZX: EG3D's released weights), 'orthogonal' (XY, XZ, ZY) or
            'ordered' (XY, XZ, YZ).
        ray_chunk: largest number of rays (images x pixels) that are rendered at a time; None: all.
        c_gen_conditioning_zero, c_scale: whether, and how strongly, the mapping network sees the camera label.
        superresolution_noise_mode: 'none', 'const' or 'random' noise inside the super-resolution module.
        sr_antialias: widen the resize kernel when the super-resolution input has to be made smaller.
        avg_camera_radius, avg_camera_pivot: the usual camera's distance and the point that it looks at.
        decoder_lr_mul: learning-rate multiplier of the decoder's layers.
        density_reg, density_reg_p_dist, reg_type: weight, step and kind of the density regulariser in training.
        gpc_reg_prob: probability of conditioning the mapping on another camera in training; None never conditions.
    """

    depth_resolution: int = 48
    depth_resolution_importance: int = 48
    ray_start: float | str = 2.25
    ray_end: float | str = 3.3
    box_warp: float = 1.0
    white_back: bool = False
    disparity_space_sampling: bool = False
    clamp_mode: str = 'softplus'
    density_noise: float = 0.0
    plane_axes: str = 'legacy'
    ray_chunk: int | None = None
    c_gen_conditioning_zero: bool = False
    c_scale: float = 1.0
    superresolution_noise_mode: str = 'none'
    sr_antialias: bool = True
    avg_camera_radius: float = 2.7
    avg_camera_pivot: tuple[float, float, float] = (0.0, 0.0, 0.2)
    decoder_lr_mul: float = 1.0
    density_reg: float = 0.25
    density_reg_p_dist: float = 0.004
    reg_type: str = 'l1'
    gpc_reg_prob: float | None = 0.5

    def __post_init__(self):
        check = Check(self, 'rendering')
        if 'auto' in (self.ray_start, self.ray_end):
            for name in ('ray_start', 'ray_end'):
                check.need(
                    getattr(self, name) == 'auto',
                    name,
                    "'auto' works for both ends of the rays or for neither; set both",
                )
            check.need(
                not self.disparity_space_sampling, 'disparity_space_sampling', "needs a fixed ray range, not 'auto'"
            )
        else:
            for name in ('ray_start', 'ray_end'):
                value = getattr(self, name)
                check.need(not isinstance(value, str) and math.isfinite(value), name, "give a number or 'auto'")
            check.need(self.ray_end > self.ray_start, 'ray_end', f'must be beyond ray_start {self.ray_start}')
        check.at_least(2, 'depth_resolution')
        check.need(self.depth_resolution_importance >= 0, 'depth_resolution_importance', 'must be 0 (off) or more')
        check.need(
            self.depth_resolution_importance == 0 or self.depth_resolution >= 4,
            'depth_resolution',
            'importance sampling needs at least 4 samples in the first pass',
        )
        check.need(self.clamp_mode == 'softplus', 'clamp_mode', "does not exist; use 'softplus'")
        check.one_of('plane_axes', *sorted(PLANE_AXES))
        check.above(0, 'box_warp')
        check.at_least(1, 'ray_chunk')
        check.one_of('superresolution_noise_mode', 'none', 'const', 'random')
        object.__setattr__(self, 'avg_camera_pivot', tuple(float(x) for x in self.avg_camera_pivot))

    def for_frames(self) -> RenderConfig:
        """For pictures that are only looked at: on a CPU so few rays at a time that their samples stay in its cache.

        Most of the time there is memory traffic, which this halves. Gradients would be taken through the same chunks,
        each computed twice, so that training and inversion keep the configured ``ray_chunk``.
        """
        import jax

        if jax.default_backend() != 'cpu':
            return self
        samples = max(self.depth_resolution, self.depth_resolution_importance)
        rays = max(64, CACHED_SAMPLES // samples)
        return dataclasses.replace(self, ray_chunk=rays if self.ray_chunk is None else min(rays, self.ray_chunk))

    @classmethod
    def from_rendering_kwargs(cls, kwargs: dict[str, Any], **changes: Any) -> RenderConfig:
        """Options as stored with a released EG3D model.

        Keys that are missing there take the meaning that the release gives to their absence (``c_scale`` 0, no
        ``white_back``, a camera at (0, 0, 0)+2.7); keys that are not known are a `UserError`. ``changes`` win.
        """
        values = {'c_scale': 0.0, 'avg_camera_pivot': (0.0, 0.0, 0.0)}
        values |= {k: v for k, v in kwargs.items() if k not in _NETWORK_KEYS} | changes
        unknown = sorted(set(values) - {f.name for f in dataclasses.fields(cls)})
        if unknown:
            raise UserError(f'rendering_kwargs: unknown option(s) {", ".join(unknown)}; remove or rename them')
        return cls(**values)
