"""OTAvatar's checkpoints, controllers alone, and networks inside of training checkpoints."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from avatar_jax.convert.layout import to_torch
from avatar_jax.errors import UserError
from avatar_jax.io.weights import load_weights
from avatar_jax.methods.eg3d.files import load_generator
from avatar_jax.methods.otavatar.controller import Controller, ControllerConfig, load_controller, to_release_keys
from avatar_jax.methods.otavatar.model import load_model, network
from avatar_jax.models.triplane import GeneratorConfig
from tests.convert import checkpoints as c
from tests.convert import writers as w
from tests.convert.known import convert, export
from tests.convert.test_convert_eg3d import same

GENERATOR = GeneratorConfig.ffhq512().replace(z_dim=8, w_dim=8, plane_resolution=16, channel_max=4, sr_channels=(3, 2))
CONTROLLER = ControllerConfig(num_ws=GENERATOR.num_ws, w_dim=8, directions=4, channels=8)


@pytest.fixture(scope='module')
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp('otavatar')
    content = w.torch_zip(c.otavatar_value(GENERATOR, CONTROLLER))
    return w.write(folder, 'epoch_00005_iteration_000002000_checkpoint.pt', content)


@pytest.mark.slow
def test_checkpoint(checkpoint, tmp_path):
    done = convert(checkpoint, tmp_path)
    assert [p.name for p in done.files] == ['otavatar.safetensors', 'otavatar_training.safetensors']
    for name, seeds in (('otavatar', (0, 1)), ('otavatar_training', (3, 4))):
        variables, config, _, provenance = load_model(tmp_path / f'{name}.safetensors')
        assert config.generator == GENERATOR and config.settings.controller == CONTROLLER
        assert (
            config.settings.preset == 'release'
            and config.settings.sigma_w == 'ones'
            and config.settings.clamp_radius == 5.0
        )
        assert config.basis == 'bfm2009-deep3d' and provenance['source'] == checkpoint.name
        same(to_torch(network(variables, 'generator')), c.generator_state(GENERATOR, seeds[0]))
        flat = to_release_keys(network(variables, 'controller')['params'], CONTROLLER)
        same(flat, c.controller_state(CONTROLLER, seeds[1]))
    report = json.loads((tmp_path / 'otavatar.report.json').read_text())
    assert 'training run' in report['unused']['opt_Warp/state/0/exp_avg']
    assert 'NoneType' in report['unused']['opt_G'] and 'int' in report['unused']['current_epoch']
    assert 'compared: equal' in report['unused']['net_Warp_ema/mapping_Refine.4.weight']
    assert report['mapped']['net_Warp/module.direction.weight'].startswith(
        'otavatar_training.safetensors: params.controller'
    )


def test_export_and_import_again(checkpoint, tmp_path):
    convert(checkpoint, tmp_path)
    convert(export(tmp_path / 'otavatar.safetensors', tmp_path / 'exported'), tmp_path / 'again')
    before, after = (load_weights(folder / 'otavatar.safetensors') for folder in (tmp_path, tmp_path / 'again'))
    assert (before.sha256, before.config) == (after.sha256, after.config)


def test_copies_of_the_shared_layer_that_differ(tmp_path):
    value = c.controller_state(CONTROLLER)
    value['mapping_Refine.4.bias'] = value['mapping_Refine.4.bias'] + 1
    convert(w.write(tmp_path, 'c.pt', w.torch_zip({'net_Warp_ema': c.tensors(value)})), tmp_path)
    variables, config = load_controller(tmp_path / 'otavatar_controller.safetensors')
    assert not config.mlp_shared
    same(to_release_keys(variables['params'], config), value)


def test_controller_alone(tmp_path):
    state = c.controller_state(CONTROLLER)
    done = convert(w.write(tmp_path, 'c.pt', w.stream({'net_Warp_ema': c.tensors(state)})), tmp_path)
    assert done.kind == 'otavatar_controller'
    variables, config = load_controller(tmp_path / 'otavatar_controller.safetensors')
    assert config == CONTROLLER
    w_x, alpha = Controller(config).apply(variables, jnp.ones((1, 27, 70)))
    assert w_x.shape == (1, GENERATOR.num_ws, 8) and np.isfinite(np.asarray(alpha)).all()
    assert sum(x.size for x in jax.tree.leaves(variables)) < sum(v.size for v in state.values())


def test_an_incomplete_pair_is_told(tmp_path):
    value = c.otavatar_value(GENERATOR, CONTROLLER)
    del value['net_Warp']
    done = convert(w.write(tmp_path, 'a.pt', w.torch_zip(value)), tmp_path)
    assert [p.name for p in done.files] == ['otavatar.safetensors']
    assert any('net_Warp is in the file' in note for note in done.report.notes)
    assert done.report.unused['net_G/module.decoder.net.0.bias'] == 'its counterpart is not in the file'


def test_controller_and_generator_must_fit(tmp_path):
    value = c.otavatar_value(GENERATOR, ControllerConfig(num_ws=9, w_dim=8, directions=4, channels=8))
    with pytest.raises(UserError, match='do not fit 4 directions'):
        convert(w.write(tmp_path, 'a.pt', w.torch_zip(value)), tmp_path / 'out')
    assert not (tmp_path / 'out').exists()


def test_lightning_checkpoint(tmp_path):
    state = {f'generator.{k}': v for k, v in c.generator_state(c.small_generator()).items()}
    state |= {f'average.{k}': v for k, v in c.generator_state(c.small_generator(), 2).items()}
    state['loss.scale'] = np.ones(3, np.float32)
    value = {
        'epoch': 3,
        'global_step': 77,
        'pytorch-lightning_version': '1.9.0',
        'state_dict': c.tensors(state),
        'optimizer_states': [{'state': {0: {'exp_avg': w.tensor(np.ones(2, np.float32))}}}],
        'lr_schedulers': [],
        'hyper_parameters': {'lr': 0.1},
    }
    path = w.write(tmp_path, 'last.ckpt', w.torch_zip(value))
    with pytest.raises(
        UserError, match="eg3d at 'state_dict/average.'.*eg3d at 'state_dict/generator.'.*--prefix"
    ) as error:
        convert(path, tmp_path / 'out')
    assert '\n' not in str(error.value)
    with pytest.raises(UserError, match='unexpected: state_dict/generator'):
        convert(path, tmp_path / 'out', prefix='state_dict/average')
    done = convert(
        path, tmp_path / 'out', prefix='state_dict/average', allow=['state_dict/generator.*', 'state_dict/loss.*']
    )
    assert done.report.unused['optimizer_states/0/state/0/exp_avg'].startswith('state of a training run')
    same(to_torch(load_generator(tmp_path / 'out' / 'eg3d.safetensors')[0]), c.generator_state(c.small_generator(), 2))
    with pytest.raises(UserError, match="under 'nothing'"):
        convert(path, tmp_path / 'out', prefix='nothing')
