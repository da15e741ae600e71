"""OTAvatar: a checkpoint with generator and controller, each as trained and as average; or a controller alone."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from avatar_jax.configure import from_plain, to_plain
from avatar_jax.convert.kinds.base import Kind, Plan, Source, has, match, places
from avatar_jax.convert.kinds.eg3d import abstract_generator, fits_generator, from_shapes
from avatar_jax.convert.layout import from_torch
from avatar_jax.convert.report import Report
from avatar_jax.errors import UserError
from avatar_jax.faces.bfm import BFM
from avatar_jax.methods.otavatar.config import OTAvatarConfig
from avatar_jax.methods.otavatar.controller import ControllerConfig, abstract_params
from avatar_jax.methods.otavatar.model import METHOD, ModelConfig, join

CONTROLLER_METHOD = 'otavatar_controller'
ROLES = ('net_G_ema', 'net_Warp_ema', 'net_G', 'net_Warp')
FILES = {'_ema': 'otavatar.safetensors', '': 'otavatar_training.safetensors'}
Flat = Mapping[str, np.ndarray]


def fits_controller(flat: Flat) -> bool:
    """Whether a state dict is a motion controller's."""
    return has(
        flat,
        direction__weight=(None, None),
        mapping_3DMM__first__0__weight=(None, None, 7),
        mapping_Refine__0__weight=(None, None),
    )


def controller_config(flat: Flat, num_ws: int | None = None) -> ControllerConfig:
    """Configuration of a controller by the shapes of its weights; what they do not show is as released.

    Args:
        flat: its state dict.
        num_ws: rows of the generator that it belongs to, if known.

    Raises:
        UserError: the shapes are not those of one controller.
    """
    hidden = sorted(int(m.group(1)) for k in flat if (m := re.fullmatch(r'mapping_Refine\.(\d+)\.weight', k)))
    w_dim, directions = (int(n) for n in flat['direction.weight'].shape)
    channels, inputs, _ = (int(n) for n in flat['mapping_3DMM.first.0.weight'].shape)
    if hidden != list(range(0, 2 * len(hidden), 2)) or inputs not in (64, 70, 73):
        raise UserError('the controller has layers or inputs of an unknown form')
    outputs = int(flat[f'mapping_Refine.{hidden[-1]}.weight'].shape[0])
    rows = outputs // directions
    scaling = num_ws is not None and rows == 2 * (num_ws + 1)
    rows = rows // 2 if scaling else rows
    if outputs % directions or rows < 2 or (num_ws is not None and rows != num_ws + 1):
        raise UserError(
            f'the controller has {outputs} outputs, which do not fit {directions} directions and {num_ws} rows'
        )
    copies = [(flat[f'mapping_Refine.{i}.weight'], flat[f'mapping_Refine.{i}.bias']) for i in hidden[:-1]]
    shared = all(np.array_equal(a, b) for copy in copies[1:] for a, b in zip(copy, copies[0], strict=True))
    return ControllerConfig(
        num_ws=rows - 1,
        w_dim=w_dim,
        directions=directions,
        channels=channels,
        mlp_layers=len(hidden) - 1,
        mlp_shared=shared,
        use_pose=inputs > 64,
        use_crop=inputs == 73,
        scaling=scaling,
        temporal_layers=sum(bool(re.fullmatch(r'mapping_3DMM\.encoder\d+\.1\.weight', k)) for k in flat),
    )


def _config_of(flat: Flat, num_ws: int | None, path: Any) -> ControllerConfig:
    try:
        return controller_config(flat, num_ws)
    except (KeyError, ValueError, IndexError) as error:
        raise UserError(f'{path}: the controller is incomplete ({error})') from error
    except UserError as error:
        raise UserError(f'{path}: {error}') from error


def match_controller(
    flat: Flat, config: ControllerConfig, report: Report, place: str, file: str, tree: str = ''
) -> dict:
    """Controller entries; the copies of the shared layer, which are equal, are recorded and left out."""
    unused = {}
    if config.mlp_shared:
        for i in range(1, config.mlp_layers):
            unused[f'mapping_Refine.{2 * i}.'] = 'a copy of the shared layer mapping_Refine.0, compared: equal'
    return match(flat, {'params': abstract_params(config)}, report, place, file, unused=unused, tree_prefix=tree)


def _plan(source: Source, report: Report) -> list[Plan]:
    plans = []
    for ending, file in FILES.items():
        roles = [f'net_G{ending}', f'net_Warp{ending}']
        if not all(role in source.places for role in roles):
            if any(role in source.places for role in roles):
                report.notes.append(f'only one of {" and ".join(roles)} is in the file; {file} is not written')
                for role in roles:
                    _leave_out(source, role, report)
            continue
        generator, controller = (source.flat(role) for role in roles)
        config = _model_config(source, generator, controller)
        label = 'dataset_label_std'
        taken = {
            f'G/{k}': v
            for k, v in match(
                generator,
                abstract_generator(config.generator),
                report,
                source.places[roles[0]],
                file,
                unused={label: 'statistics of the data of the base generator'},
                tree_prefix='generator.',
            ).items()
        }
        taken |= {
            f'C/{k}': v
            for k, v in match_controller(
                controller, config.method.controller, report, source.places[roles[1]], file, 'controller.'
            ).items()
        }
        plans.append(Plan(file, METHOD, config.to_dict(), taken, _build))
    if not plans:
        raise UserError(
            f'{source.raw.path}: has no generator with its controller; --as {CONTROLLER_METHOD} or --as eg3d '
            'takes one of them alone'
        )
    return plans


def _leave_out(source: Source, role: str, report: Report) -> None:
    if role in source.places:
        for key in source.flat(role):
            report.unused[source.places[role] + key] = 'its counterpart is not in the file'


def _model_config(source: Source, generator: Flat, controller: Flat) -> ModelConfig:
    if source.hint:
        return ModelConfig.from_dict(source.hint)
    variant = source.variant or 'eg3d-ffhq512-64'  # the generator that OTAvatar starts from
    shape = from_shapes(generator, variant, str(source.raw.path))
    part = _config_of(controller, shape.num_ws, source.raw.path)
    return ModelConfig(shape, OTAvatarConfig.release().replace(controller=part), basis=BFM.basis)


def _build(flat: dict[str, np.ndarray]) -> dict[str, Any]:
    parts = [{k[2:]: v for k, v in flat.items() if k.startswith(p)} for p in ('G/', 'C/')]
    return join(*(from_torch(part) for part in parts))


def _plan_controller(source: Source, report: Report) -> list[Plan]:
    flat, file = source.flat(), 'otavatar_controller.safetensors'
    config = from_plain(ControllerConfig, source.hint) if source.hint else _config_of(flat, None, source.raw.path)
    return [
        Plan(file, CONTROLLER_METHOD, to_plain(config), match_controller(flat, config, report, source.places[''], file))
    ]


def find_controllers(tensors: Flat) -> list[str]:
    """Where motion controllers are."""
    return places(tensors, 'direction.weight', fits_controller)


def _find(tensors: Flat) -> list[str]:
    generators = places(tensors, 'backbone.synthesis.b4.const', fits_generator)
    return [*generators, *find_controllers(tensors)] if generators else []


OTAVATAR = (
    Kind(METHOD, 'checkpoint of OTAvatar (generator and controller)', _find, _plan),
    Kind(CONTROLLER_METHOD, 'motion controller of OTAvatar alone', find_controllers, _plan_controller),
)
