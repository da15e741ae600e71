"""GPAvatar's checkpoint: every entry in, every entry back."""

import jax
import numpy as np
import pytest

from avatar_jax.errors import UserError
from avatar_jax.io.weights import load_weights
from avatar_jax.methods.gpavatar.config import ModelConfig
from avatar_jax.methods.gpavatar.mesh import load_mesh
from avatar_jax.methods.gpavatar.model import abstract, load_model
from avatar_jax.methods.gpavatar.release import state_dict
from tests.convert import writers as w
from tests.convert.known import convert, export
from tests.convert.test_convert_eg3d import same

# As the shapes of the weights tell it: tiny, what they do not show as released.
TINY = ModelConfig.tiny(samples=32, fine_samples=32)


def checkpoint_state(seed=0):
    rng = np.random.default_rng(seed)
    shapes = state_dict(jax.tree.map(lambda x: np.broadcast_to(np.zeros((), np.bool_), x.shape), abstract(TINY)))
    flat = {k: rng.normal(size=v.shape).astype(np.float32) for k, v in shapes.items()}
    for name, shape in (
        ('style_tplane.toRGB.0.weight', (3, 4, 1, 1)),
        ('up_renderer.toRGB.0.bias', (3,)),
        ('percep_loss.net.slice1.0.weight', (2, 3, 11, 11)),
        ('percep_loss.net.slice1.0.bias', (2,)),
    ):
        flat[name] = rng.normal(size=shape).astype(np.float32)
    return flat


def written(folder, flat, name='one_model.ckpt'):
    value = {
        'config_dict': {'MODEL': {'MODEL_NAME': 'OneModel'}},
        'data_meta_info': {'flame_scale': 5.0},
        'step': 7,
        'metric': 0.5,
        'state_dict': flat,
    }
    return w.write(folder, name, w.torch_zip(value))


@pytest.mark.slow
def test_import_export_and_import_again(tmp_path):
    flat = checkpoint_state()
    done = convert(written(tmp_path, flat), tmp_path / 'a')
    assert [p.name for p in done.files] == ['gpavatar.safetensors']
    path = tmp_path / 'a' / 'gpavatar.safetensors'
    same(state_dict(load_weights(path).variables), flat)
    config = load_weights(path).config
    assert (
        config['image_size'],
        config['plane_size'],
        config['img_resolution'],
        config['channel_base'],
        config['channel_max'],
        config['style_dim'],
        config['mapping_layers'],
    ) == (16, 8, 16, 32, 4, 8, 2)
    assert config['basis'] == 'flame-2020' and config['settings']['field']['reference_samples'] == 524_288
    exported = export(path, tmp_path / 'b')
    convert(exported, tmp_path / 'c')
    again = load_weights(tmp_path / 'c' / 'gpavatar.safetensors')
    assert (again.sha256, again.config) == (load_weights(path).sha256, config)


def test_incomplete_checkpoints_are_refused(tmp_path):
    flat = checkpoint_state()
    flat.pop('nerf_mlp.density_layers.0.bias')
    flat['nerf_mlp.extra.weight'] = np.zeros(3, np.float32)
    with pytest.raises(UserError, match=r'nerf_mlp.extra.weight'):
        convert(written(tmp_path, flat), tmp_path / 'a')
    del flat['nerf_mlp.extra.weight']
    with pytest.raises(UserError, match=r'density_layers.0.bias'):
        convert(written(tmp_path, flat), tmp_path / 'a')


@pytest.mark.slow
def test_imported_weights_need_the_head_model(tmp_path, monkeypatch):
    convert(written(tmp_path, checkpoint_state()), tmp_path / 'a')
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv('AVATAR_ASSETS', raising=False)
    with pytest.raises(UserError, match='FLAME: generic_model.pkl is missing'):
        load_model(tmp_path / 'a' / 'gpavatar.safetensors')
    assert set(load_mesh(TINY)) == {'mean', 'shapes', 'moves'}
