"""Whole runs of HiDe-NeRF's training: across the warm-up of the discriminators, and data that lack something."""

import dataclasses
import functools
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from avatar_jax.driving.bases import ICT as ICT_BASIS
from avatar_jax.errors import UserError
from avatar_jax.faces.ict import ICT
from avatar_jax.methods.eg3d.augment.pipe import AugmentConfig
from avatar_jax.methods.hidenerf import adversary, secc
from avatar_jax.methods.hidenerf import train as training
from avatar_jax.methods.hidenerf.config import ModelConfig
from avatar_jax.methods.hidenerf.train import RunConfig
from avatar_jax.methods.hidenerf.training import program, start
from avatar_jax.train.logging import read_jsonl
from data_pipelines.sets import SetConfig, Sets
from data_pipelines.sources import RenderedFrames
from launch.config_args import load_run
from tests.runs import copied_as_if_killed, train
from tests.test_faces_geometry import tiny_ict

PLAIN = ModelConfig.tiny()


@pytest.mark.slow
def test_resuming_across_the_warm_up_of_the_discriminators(tmp_path):
    """Before their first step and after it, with their augmentation: bit for bit."""
    _, run = load_run('hidenerf_voxceleb:tiny')
    small = {'appearance__residual': 0, 'deformation__residual': 0, 'refine__residual': 0}
    small |= {'appearance__single_scale': True, 'image_size': 8, 'secc__size': 8}
    small |= {f'refine__{name}': (4, 4, 4) for name in ('identity', 'encoder', 'decoder')}
    small |= {f'loss__{name}': 0.0 for name in ('perceptual', 'focus', 'opacity')}
    small |= {f'{name}__mapping_layers': 1 for name in adversary.NAMES}
    settings = run.model.replace(
        **small,
        train__iterations=3,
        loss__r1_gamma=0.0,
        augment__mode='ada',
        augment__p=0.4,
        augment__interval=1,
        augment__kimg=0.01,
        augment__transforms=dataclasses.asdict(AugmentConfig(brightness=1.0)),
    )
    assert settings.adversarial and settings.train.gan_from == 1
    run = dataclasses.replace(run, model=settings, parallel='single')
    programs, whole = {}, tmp_path / 'whole'
    with copied_as_if_killed(whole, tmp_path / '1', 1), copied_as_if_killed(whole, tmp_path / '2', 2):
        state = jax.device_get(train(run, whole, programs=programs))
    rows = read_jsonl(whole / 'metrics.jsonl')
    for name in adversary.NAMES:
        assert [f'{name}/main/loss' in row for row in rows] == [False, True, True]
        assert int(state.groups[name].opt_state.count) == 2
        assert float(state.extra[name].p) != np.float32(0.4)
    for after in ('1', '2'):
        resumed = jax.device_get(train(run, tmp_path / after, resume=True, programs=programs))
        paths = jax.tree_util.tree_leaves_with_path(state)
        for (path, a), b in zip(paths, jax.tree.leaves(resumed), strict=True):
            np.testing.assert_array_equal(a, b, err_msg=f'{after}: {jax.tree_util.keystr(path)}')
    first, second = programs.values()
    for a, b in zip(jax.tree.leaves(first.constants), jax.tree.leaves(second.constants), strict=True):
        assert a is b  # kept on the device once


# ---------------------------------------------------------------------------------------------------------------- data


class Without:
    """Rendered clips whose records lack something, as those of ``avatar-jax track`` lack ``identity``."""

    def __init__(self, *names):
        self.source, self.names = RenderedFrames.of_people(1, resolution=16), names
        self.table = self.source.table

    def __getitem__(self, record):
        return {k: v for k, v in self.source[record].items() if k not in self.names}


def batch_without(*names):
    row = Sets(Without(*names), SetConfig(1, 2, 0))(0)
    return {k: np.asarray(v)[None] for k, v in row.items()}


def test_data_that_lack_something():
    mesh, own = secc.procedural_mesh(), PLAIN.replace(shape='own')
    whole, tracked = batch_without(), batch_without('identity')
    found = training.with_host_arrays(own, tracked, mesh)
    np.testing.assert_array_equal(found['shapes'][0], whole['identity'][0, :80])
    for config in (own, PLAIN):
        again = training.with_host_arrays(config, whole, mesh)
        for name, value in training.with_host_arrays(config, tracked, mesh).items():
            np.testing.assert_array_equal(value, again[name], err_msg=name)
    with pytest.raises(UserError, match="model.shape: 'own' needs data with shape coefficients"):
        training.with_host_arrays(own, batch_without('shape'), mesh)
    unmarked = batch_without('landmarks')
    with pytest.raises(UserError, match=r'loss.focus: these data have no landmarks.*set it to 0'):
        training.with_host_arrays(PLAIN, unmarked, mesh)
    assert 'importance' not in training.with_host_arrays(PLAIN.replace(loss__focus=0.0), unmarked, mesh)


def test_what_data_lack_is_said_before_the_training_starts(monkeypatch):
    def sets(source, frames, seed, count):
        return batch_without('landmarks')

    monkeypatch.setattr(training, 'fresh_state', lambda config, seed: None)  # takes seconds
    streams = SimpleNamespace(clips=lambda *given: None, first_sets=sets)
    with pytest.raises(UserError, match='loss.focus: these data have no landmarks'):
        start(RunConfig(model=PLAIN, parallel='single'), streams)


@pytest.mark.parametrize('shape', ['own', 'mean'])
def test_head_models_with_more_shapes_than_data_have(shape, tmp_path, monkeypatch):
    """ICT's 100: the 80 of the data are filled with zeros, in trainings that draw codes on the device, too."""
    mesh = secc.build_mesh(ICT.load(tiny_ict(tmp_path)[1]))
    config = PLAIN.replace(shape=shape, basis=ICT_BASIS)
    batch = batch_without()
    data = training.with_host_arrays(config, batch, mesh)
    assert data['shapes'].shape == (1, mesh.num_shape) == (1, 100) and not data['shapes'][:, 80:].any()
    assert np.array_equal(data['shapes'][:, :80], batch['shapes'][:, training.SOURCE]) == (shape == 'own')
    flags = np.zeros(1, bool)
    for codes in (None, secc.CodeStore(mesh, config.secc)):
        data = training.with_host_arrays(config, batch, mesh, codes)
        made = jax.eval_shape(functools.partial(training.flip, config), data, flags, flags, mesh)
        assert made['driving'].shape == made['canonical'].shape == (1, 32, 32, 3)
    monkeypatch.setattr(secc, 'load_mesh', lambda basis: mesh)
    assert program(RunConfig(model=config)).make_batch(2)['shapes'].shape == (2, 100)
    few = batch | {'shapes': batch['shapes'][..., :79]}
    if shape == 'own':
        with pytest.raises(UserError, match='79 shape coefficients, the head model has 100'):
            training.with_host_arrays(config, few, mesh)
