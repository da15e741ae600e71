"""HFA-GP: the released checkpoints of one person (``gen``, and of sound ``AudNet`` and ``AudAttNet``)."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import jax
import numpy as np

from avatar_jax.convert.base import Checkpoint, ForeignFile, ForeignNetwork, NewWeights, has, match, places
from avatar_jax.convert.report import Report
from avatar_jax.errors import UserError
from avatar_jax.io.weights import Weights
from avatar_jax.methods.eg3d.files import METHOD as GENERATOR_METHOD
from avatar_jax.methods.eg3d.files import abstract_generator
from avatar_jax.methods.eg3d.foreign import find_generators
from avatar_jax.methods.eg3d.state_dicts import from_shapes
from avatar_jax.methods.hfagp import release
from avatar_jax.methods.hfagp.config import METHOD, ModelConfig
from avatar_jax.methods.hfagp.model import abstract

FILE = 'hfagp.safetensors'
GENERATOR = 'generator.'
_SECOND = ('bases_2', 'delta_2')
_VARIANT = 'eg3d-ffhq512-128'  # the generator that HFA-GP starts from
_FLOATS = (np.dtype(np.float32), np.dtype(np.float16), np.dtype(np.float64))
Flat = Mapping[str, np.ndarray]


def fits(flat: Flat) -> bool:
    """Whether a state dict is that of HFA-GP's networks with their generator."""
    encoder = any(k.startswith(('encoder.net_app.', 'weights_3dmm.')) for k in flat)
    return encoder and has(flat, bases=(None, None)) and any(k.startswith(GENERATOR) for k in flat)


def _find(tensors: Flat) -> list[str]:
    own = places(tensors, 'bases', fits)
    if not own:
        return []
    sound = [*places(tensors, 'encoder_fc1.0.weight', lambda f: has(f, encoder_conv__0__weight=(None, None, None)))]
    sound += places(tensors, 'attentionNet.0.weight', lambda f: has(f, attentionConvNet__0__weight=(None, None, None)))
    inside = [p for p in find_generators(tensors) if any(p == start + GENERATOR for start in own)]
    return [*own, *sound, *inside]


def _complete(roles: Collection[str]) -> bool:
    return 'gen' in roles and ('AudNet' in roles) == ('AudAttNet' in roles)


def _plan(source: ForeignNetwork, report: Report) -> list[NewWeights]:
    sections = {s: source.flat(s) for s in release.SECTIONS['sound'] if s in source.places}
    try:
        driver = release.driver_of(sections)
        generator = {k.removeprefix(GENERATOR): v for k, v in sections['gen'].items() if k.startswith(GENERATOR)}
        if source.hint:
            config = ModelConfig.from_dict(source.hint)
        else:
            shape = from_shapes(generator, source.variant or _VARIANT, str(source.raw.path))
            config = release.config_of(sections, shape)
        template = abstract(config)['params']
    except UserError as error:
        raise UserError(f'{source.raw.path}: {error}') from error
    place = source.places['gen'] + GENERATOR
    unused = {'dataset_label_std': 'statistics of the data of the base generator'}
    found = match(
        generator, abstract_generator(config.generator), report, place, FILE, unused=unused, tree_prefix=GENERATOR
    )
    taken = {f'gen/{GENERATOR}{k}': v for k, v in found.items()}
    table = release.personal_table(driver, config.settings.encoder.picture_size)
    kernels = {f'encoder.{k}' for k in release.kernel_keys(config.settings.encoder.picture_size)}
    for section, flat in sections.items():
        for key, value in flat.items():
            name = source.places[section] + key
            if section == 'gen' and key.startswith(GENERATOR):
                continue
            if (path := table.get((section, key))) is not None:
                wanted = _wanted(key, path, template)
                if value.shape != wanted:
                    report.wrong.append(f'{name} {value.shape} instead of {wanted}')
                elif value.dtype not in _FLOATS:
                    report.wrong.append(f'{name} has numbers of the type {value.dtype} instead of float32')
                else:
                    taken[f'{section}/{key}'] = value
                    report.mapped[name] = f'{FILE}: params.{".".join(path)}'
            elif section == 'gen' and driver == 'picture' and key in kernels:
                if value.shape == release.BLUR.shape and np.allclose(value, release.BLUR, atol=1e-6):
                    report.unused[name] = 'derived: the blur kernel [1, 3, 3, 1], checked'
                else:
                    report.unexpected[name] = 'another blur kernel than [1, 3, 3, 1], which is the only one supported'
            elif section == 'gen' and key in _SECOND:
                report.unused[name] = "a second person's basis; the first one is imported"
            else:
                report.unexpected[name] = ''
    report.missing += [f'{source.places.get(s, s + "/")}{k}' for s, k in table if k not in sections.get(s, {})]

    def build(flat: Flat) -> dict:
        return release.variables_of(release.sections_of(flat), config)[0]

    return [NewWeights(FILE, METHOD, config.to_dict(), taken, build)]


def _wanted(key: str, path: tuple[str, ...], template: Mapping) -> tuple[int, ...]:
    """The shape of an entry in the checkpoint."""
    node = template
    for part in path:
        node = node[part]
    return release.outward(key, np.broadcast_to(np.zeros((), np.bool_), node.shape)).shape


def _export(weights: Weights) -> dict[str, np.ndarray]:
    config = ModelConfig.from_dict(weights.config)
    variables = jax.tree.map(np.asarray, weights.variables)
    sections = release.state_dicts(variables, config)
    return {f'{section}.{key}': value for section, flat in sections.items() for key, value in flat.items()}


FOREIGN = (
    ForeignFile(
        METHOD,
        'checkpoint of HFA-GP (one person, of any of its three drivers)',
        METHOD,
        _find,
        _plan,
        export=_export,
        checkpoint=Checkpoint(
            ('gen', 'AudNet', 'AudAttNet', GENERATOR),
            (GENERATOR_METHOD,),
            _complete,
            'has a basis, but not as `gen` (and, of sound, AudNet and AudAttNet); get the whole checkpoint',
        ),
        left_out={f'{name}*': 'of the training, no weights' for name in release.IGNORED},
    ),
)
