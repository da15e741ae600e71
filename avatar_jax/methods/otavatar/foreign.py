"""OTAvatar: a checkpoint with generator and controller, each as trained and as average; or a controller alone."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from functools import partial
from typing import Any

import jax.numpy as jnp
import numpy as np

from avatar_jax.configure import from_plain, to_plain
from avatar_jax.convert.base import Checkpoint, ForeignFile, ForeignNetwork, NewWeights, has, match, places
from avatar_jax.convert.comparison import NET, VALUE, Verification, thinned
from avatar_jax.convert.layout import from_torch
from avatar_jax.convert.report import Report
from avatar_jax.errors import UserError
from avatar_jax.faces.bfm import BFM
from avatar_jax.io.weights import Weights
from avatar_jax.methods.eg3d.files import METHOD as GENERATOR_METHOD
from avatar_jax.methods.eg3d.files import abstract_generator
from avatar_jax.methods.eg3d.foreign import GENERATOR_RECORDS, compare_generator, find_generators
from avatar_jax.methods.eg3d.state_dicts import from_shapes, generator_keys
from avatar_jax.methods.otavatar.config import OTAvatarConfig
from avatar_jax.methods.otavatar.controller import (
    CONTROLLER_METHOD,
    Controller,
    ControllerConfig,
    abstract_params,
    load_controller,
    to_release_keys,
)
from avatar_jax.methods.otavatar.model import METHOD, ModelConfig, join, load_model, network

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


def _plan(source: ForeignNetwork, report: Report) -> list[NewWeights]:
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
                controller, config.settings.controller, report, source.places[roles[1]], file, 'controller.'
            ).items()
        }
        plans.append(NewWeights(file, METHOD, config.to_dict(), taken, _build))
    if not plans:
        raise UserError(
            f'{source.raw.path}: has no generator with its controller; --as {CONTROLLER_METHOD} or --as eg3d '
            'takes one of them alone'
        )
    return plans


def _leave_out(source: ForeignNetwork, role: str, report: Report) -> None:
    if role in source.places:
        for key in source.flat(role):
            report.unused[source.places[role] + key] = 'its counterpart is not in the file'


def _model_config(source: ForeignNetwork, generator: Flat, controller: Flat) -> ModelConfig:
    if source.hint:
        return ModelConfig.from_dict(source.hint)
    variant = source.variant or 'eg3d-ffhq512-64'  # the generator that OTAvatar starts from
    shape = from_shapes(generator, variant, str(source.raw.path))
    part = _config_of(controller, shape.num_ws, source.raw.path)
    settings = OTAvatarConfig.release().replace(controller=part)
    return ModelConfig(shape, settings, basis=BFM.basis, label_mode='hdtf')


def _build(flat: dict[str, np.ndarray]) -> dict[str, Any]:
    parts = [{k[2:]: v for k, v in flat.items() if k.startswith(p)} for p in ('G/', 'C/')]
    return join(*(from_torch(part) for part in parts))


def _plan_controller(source: ForeignNetwork, report: Report) -> list[NewWeights]:
    flat, file = source.flat(), 'otavatar_controller.safetensors'
    config = from_plain(ControllerConfig, source.hint) if source.hint else _config_of(flat, None, source.raw.path)
    return [
        NewWeights(
            file, CONTROLLER_METHOD, to_plain(config), match_controller(flat, config, report, source.places[''], file)
        )
    ]


def find_controllers(tensors: Flat) -> list[str]:
    """Where motion controllers are."""
    return places(tensors, 'direction.weight', fits_controller)


def _find(tensors: Flat) -> list[str]:
    generators = find_generators(tensors)
    return [*generators, *find_controllers(tensors)] if generators else []


def _complete(roles: Collection[str]) -> bool:
    return any({f'net_G{ending}', f'net_Warp{ending}'} <= set(roles) for ending in FILES)


# -------------------------------------------------------------------------------------------- export and verification


def _export(weights: Weights) -> dict[str, np.ndarray]:
    config = ModelConfig.from_dict(weights.config)
    generator = generator_keys(network(weights.variables, 'generator'), config.generator.superresolution)
    controller = to_release_keys(network(weights.variables, 'controller')['params'], config.settings.controller)
    return {f'net_G_ema.{k}': v for k, v in generator.items()} | {f'net_Warp_ema.{k}': v for k, v in controller.items()}


def _export_controller(weights: Weights) -> dict[str, np.ndarray]:
    return to_release_keys(weights.variables['params'], from_plain(ControllerConfig, weights.config))


def _compare_controller(run: Verification) -> None:
    golden = run.golden
    weights = run.find(CONTROLLER_METHOD, METHOD)
    if weights.method == CONTROLLER_METHOD:
        variables, config = load_controller(weights.path)
    else:
        variables, model, _, _ = load_model(weights.path)
        variables, config = network(variables, 'controller'), model.settings.controller
    hyper = golden.config.get('hyper', {})
    told = {'short_cut': hyper.get('if_short_cut', True), 'scaling': hyper.get('if_plus_scaling', False)}
    differ = [k for k, v in told.items() if getattr(config, k) != v]
    if differ:
        raise UserError(f'{golden.path}: was recorded with other options of the controller: {", ".join(differ)}')
    run.weights(to_release_keys(variables['params'], config))
    module, motion = Controller(config), jnp.asarray(golden.inp['driving'].transpose(0, 2, 1))
    code, state = module.apply(variables, motion, method='codes', mutable='intermediates')
    run.compare('ws_trans', code.w_x, VALUE)
    run.compare('alpha', code.alpha, VALUE)
    if code.scaling is not None:
        run.compare('ws_scaling', code.scaling, VALUE)
    run.compare('Q', module.apply(variables, method='code_book'), VALUE)
    inner = state['intermediates']['mapping_3DMM']
    run.compare('pooled', np.asarray(inner['pooled'][0])[:, :, None], VALUE)
    for name in golden.out:
        if name == 'first' or name.startswith('encoder'):
            value = np.asarray(inner[f'after_{name}'][0]).transpose(0, 2, 1)
            run.compare(name, thinned(value, golden.out[name]), VALUE)
    if 'scalar' in golden.out:
        target = jnp.asarray(golden.inp['target'])
        run.compare('scalar', jnp.sum(code.w_x * target) / 100 + jnp.mean(code.alpha**2), NET)


_CONTROLLER_RECORDS = dict.fromkeys(('controller_full', 'controller_variant'), _compare_controller)

FOREIGN = (
    ForeignFile(
        METHOD,
        'checkpoint of OTAvatar (generator and controller)',
        METHOD,
        _find,
        _plan,
        export=_export,
        verify=dict.fromkeys(GENERATOR_RECORDS, partial(compare_generator, METHOD)) | _CONTROLLER_RECORDS,
        checkpoint=Checkpoint(
            ROLES,
            (GENERATOR_METHOD, CONTROLLER_METHOD),
            _complete,
            'holds generators and controllers, but not as net_G and net_Warp; '
            f'--as {GENERATOR_METHOD} or --as {CONTROLLER_METHOD} with --prefix takes one of them',
        ),
    ),
    ForeignFile(
        CONTROLLER_METHOD,
        'motion controller of OTAvatar alone',
        CONTROLLER_METHOD,
        find_controllers,
        _plan_controller,
        export=_export_controller,
        verify=_CONTROLLER_RECORDS,
        preferred='net_Warp_ema',
    ),
)
