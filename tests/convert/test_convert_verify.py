"""Verification of imports, the command line of ``convert`` and ``assets``."""

import numpy as np
import pytest

from avatar_jax import cli
from avatar_jax.convert.comparison import relative_error
from avatar_jax.convert.layout import torch_shapes
from avatar_jax.errors import UserError
from avatar_jax.methods.eg3d.files import abstract_discriminator, abstract_generator
from avatar_jax.methods.eg3d.state_dicts import from_shapes
from tests.convert import checkpoints as c
from tests.convert import writers as w
from tests.convert.known import convert, verify
from tests.convert.test_convert_perception import lin
from tests.parity import golden as g


def golden(folder, name):
    path = next((p for p in g.golden_files(folder) if p.stem == name), None)
    if path is None:
        pytest.skip(f'no {name}')
    return path, g.load(path)


@pytest.mark.slow
def test_controller(tmp_path, capsys):
    path, record = golden('otavatar', 'controller_full')
    file = w.write(tmp_path, 'c.pt', w.torch_zip({'net_Warp_ema': c.tensors(record.param)}))
    assert cli.main(['convert', str(file), '--to', str(tmp_path / 'out')]) == 0
    assert 'mapped' in capsys.readouterr().out
    assert cli.main(['convert', '--verify', str(path), str(tmp_path / 'out')]) == 0
    text = capsys.readouterr().out
    assert 'passed' in text and 'ws_trans' in text and 'all equal' in text

    wrong = {k: v + np.float32(0.01) if k == 'direction.weight' else v for k, v in record.param.items()}
    file = w.write(tmp_path, 'd.pt', w.torch_zip({'net_Warp_ema': c.tensors(wrong)}))
    assert cli.main(['convert', str(file), '--to', str(tmp_path / 'bad')]) == 0
    capsys.readouterr()
    assert cli.main(['convert', '--verify', str(path), str(tmp_path / 'bad')]) == 1
    text = capsys.readouterr().out
    assert 'FAILED' in text and 'TOO LARGE' in text and '1 differ: direction.weight' in text


@pytest.mark.slow
def test_regressor(tmp_path):
    path, record = golden('face_models', 'recon_net')
    flat = {k.removeprefix('net_recon.'): v for k, v in record.param.items()}
    convert(w.write(tmp_path, 'epoch_20.pth', w.torch_zip({'net_recon': c.tensors(flat)})), tmp_path)
    result = verify(path, tmp_path)
    assert result.passed and {'coeffs', 'stem', 'layer4'} <= {line.name for line in result.lines_out}


@pytest.mark.slow
def test_discriminator(tmp_path):
    path, record = golden('eg3d', 'dual_discriminator')
    value = {
        'D': c.network(
            record.param,
            _init_args=(),
            _init_kwargs={
                k: record.config[k] for k in ('c_dim', 'img_resolution', 'channel_base', 'channel_max', 'conv_clamp')
            },
        )
    }
    convert(w.write(tmp_path, 'd.pkl', w.pickled(value, w.Options(4))), tmp_path)
    result = verify(path, tmp_path)
    assert result.passed and not result.skipped, result.lines()


@pytest.mark.slow
def test_generator(tmp_path):
    path, record = golden('eg3d', 'triplane_e2e_4x_whiteback')
    keys = (
        'z_dim',
        'c_dim',
        'w_dim',
        'img_resolution',
        'img_channels',
        'sr_num_fp16_res',
        'mapping_kwargs',
        'conv_clamp',
        'rendering_kwargs',
        'sr_kwargs',
        'channel_base',
        'channel_max',
        'fused_modconv_default',
        'num_fp16_res',
    )
    state, size = dict(record.param), record.config['img_resolution']
    for name in [
        k.rpartition('.')[0] for k in state if k.endswith('.noise_strength')
    ]:  # noise that is off is not recorded
        block = name.split('.')[-2]
        side = {'block0': size // 2, 'block1': size}.get(block) or int(block.removeprefix('b'))
        state.setdefault(f'{name}.noise_const', np.zeros((side, side), np.float32))
    value = {
        'G_ema': c.network(
            state,
            c.AXES,
            _init_args=(),
            _init_kwargs={k: record.config[k] for k in keys},
            neural_rendering_resolution=record.config['neural_rendering_resolution'],
        )
    }
    convert(w.write(tmp_path, 'network.pkl', w.pickled(value, w.Options(4))), tmp_path)
    result = verify(path, tmp_path)
    assert result.passed and not result.skipped, result.lines()


def test_what_cannot_be_verified(tmp_path):
    np.savez(tmp_path / 'strange.npz', **{'out/x': np.ones(3), 'config': np.array('{}')})
    with pytest.raises(UserError, match="'strange' is of no kind"):
        verify(tmp_path / 'strange.npz', tmp_path)
    np.savez(tmp_path / 'flame.npz', **{'out/x': np.ones(3), 'config': np.array('{}')})
    with pytest.raises(UserError, match="has nothing of 'flame'"):
        verify(tmp_path / 'flame.npz', tmp_path)
    with pytest.raises(UserError, match='no file of recorded numbers'):
        verify(w.write(tmp_path, 'flame_2.npz', b'PK broken'), tmp_path)
    assert relative_error(np.ones(2), np.ones(3)) == relative_error(np.full(2, np.nan), np.ones(2)) == np.inf
    assert relative_error(np.float32([1, 2]), np.float32([1, 4])) == 0.5


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['missing.pkl', '--to', 'out'], 'no such file'),
        (['missing.pkl'], '--to: give a folder'),
        (['a', '--to', 'out', '--export', 'onnx'], '--export onnx: unknown'),
        (['a', '--verify', 'b.npz', '--to', 'out'], '--to: nothing is written'),
        (['a', '--verify', 'b.npz', '--as', 'eg3d'], '--as: works only'),
        (['a', '--verify', 'b.npz', '--export', 'safetensors'], 'does not go with --verify'),
    ],
)
def test_command_line_errors(arguments, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cli.main(['convert', *arguments]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len([x for x in lines if 'error' in x]) == 1 and message in lines[-1]


def test_export_and_assets(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv('AVATAR_ASSETS', raising=False)
    (tmp_path / 'assets').mkdir()
    path = w.write(tmp_path / 'assets', 'alex.pth', w.stream(c.tensors(lin('alex'))))
    assert cli.main(['assets', 'lpips']) == 0
    text = capsys.readouterr().out
    assert 'here, not imported' in text and 'BSD-2-Clause' in text and 'alex.pth' in text
    assert cli.main(['convert', str(path), '--to', 'assets', '--all']) == 0
    assert 'lin4.model.1.weight ->' in capsys.readouterr().out
    assert cli.main(['convert', '--export', 'safetensors', 'assets/lpips_alex.safetensors', '--to', 'back']) == 0
    assert (tmp_path / 'back' / 'lpips_alex.original.safetensors').is_file()
    capsys.readouterr()
    assert cli.main(['assets']) == 0
    text = capsys.readouterr().out
    assert next(line for line in text.splitlines() if line.startswith('lpips')).split()[1] == 'imported'
    (tmp_path / 'assets' / 'ffhq512-64.pkl').write_bytes(b'short')
    w.write(tmp_path / 'assets', 'vgg19-dcbb9e9d.pth', b'other')
    assert cli.main(['assets', '--check']) == 0
    text = capsys.readouterr().out
    assert 'incomplete download' in text and 'does not start with dcbb9e9d' in text
    assert cli.main(['assets', 'nothing']) == 2
    monkeypatch.setenv('AVATAR_ASSETS', 'gone')
    assert cli.main(['assets']) == 2
    assert 'AVATAR_ASSETS=gone: no such folder' in capsys.readouterr().err


@pytest.mark.slow
def test_templates_are_cached_without_mixing():
    small = c.small_generator()
    assert abstract_generator(small) is abstract_generator(c.small_generator())
    other = torch_shapes(abstract_generator(small.replace(w_dim=16)))
    assert other['backbone.mapping.w_avg'] == (16,) and torch_shapes(abstract_generator(small))[
        'backbone.mapping.w_avg'
    ] == (8,)
    wide = abstract_discriminator(c.DISCRIMINATOR | {'mapping_layers': 3})
    assert (
        'fc2' in wide['params']['mapping'] and 'fc2' not in abstract_discriminator(c.DISCRIMINATOR)['params']['mapping']
    )
    flat = c.generator_state(small)
    assert from_shapes(flat, None, 'file').w_dim == 8
