"""The supervised warm start on a network of a few thousand parameters: batches, steps of all kinds, resuming,
mapping.
"""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from avatar_jax.bundled import prior, prior_training
from avatar_jax.methods.otavatar.controller import ControllerConfig
from avatar_jax.models.triplane import GeneratorConfig
from data_pipelines.fast_heads import FastHeadsConfig, generate
from data_pipelines.prior_batches import LATENT_DIM, TRAIT_DIM, PriorData, traits


def tiny() -> prior.PriorConfig:
    """One configuration for all tests: each kind of step is compiled once."""
    rendering = {'ray_start': 2.35, 'ray_end': 3.25, 'box_warp': 0.72, 'c_gen_conditioning_zero': True}
    generator = GeneratorConfig.tiny().replace(z_dim=LATENT_DIM, rendering=rendering)
    controller = ControllerConfig(num_ws=generator.num_ws, w_dim=generator.w_dim, directions=4, channels=16)
    settings = {
        'steps': 62,
        'ray_steps': 1,
        'frame_steps': 1,
        'batch': 2,
        'ray_batch': 2,
        'frame_batch': 2,
        'points': 64,
        'rays': 16,
        'warmup': 1,
    }
    return prior.PriorConfig(generator=generator, controller=controller, **settings)


@pytest.fixture(scope='module')
def heads(tmp_path_factory):
    folder = tmp_path_factory.mktemp('heads')
    generate(FastHeadsConfig(resolution=32, supersample=1), folder, 0, 6, shard=6, progress=False)
    return PriorData(folder)


def test_traits_are_the_latent_and_what_its_style_says():
    latent = np.random.default_rng(0).standard_normal((300, LATENT_DIM)).astype(np.float32)
    found = traits(latent)
    assert found.shape == (300, TRAIT_DIM) == (300, prior.TRAIT_DIM)
    np.testing.assert_array_equal(found[:, :LATENT_DIM], latent)
    assert np.abs(found[:, LATENT_DIM:].mean(0)).max() < 0.4 and 0.5 < found[:, LATENT_DIM:].std(0).mean() < 1.5
    cuts = found[:, LATENT_DIM : LATENT_DIM + 8]
    assert len(np.unique(cuts.round(3), axis=0)) == 8  # one-hot, whitened


def test_points_lie_where_the_depth_says(heads):
    batch = heads.points(np.arange(6), 64, np.random.default_rng(0))
    assert batch['points'].shape == (6, 128, 3) and batch['rgb'].shape == (6, 64, 3)
    assert batch['solid'].min() >= 0 and batch['solid'].max() <= 1
    first, second = batch['solid'][:, :64], batch['solid'][:, 64:]
    on_head = batch['weight'] > 0
    assert 0.3 < on_head.mean() < 1
    # Around the surface about half is solid, before and behind it about 30 %, on empty rays nothing.
    assert 0.35 < first[on_head].mean() < 0.65 and 0.15 < second[on_head].mean() < 0.45
    eye = np.stack([np.asarray(x).reshape(4, 4)[:3, 3] for x in heads.data['label'][:, :16]])
    distance = np.linalg.norm(batch['points'] - eye[:, None], axis=-1)
    assert distance.min() > 2.2 and distance.max() < 3.4


@pytest.mark.slow
def test_every_kind_of_step_moves_what_it_should(heads):
    config = tiny()
    state, constants = prior.init_state(config)
    before = jax.tree.map(np.asarray, state.trees())
    assert [prior.kind_of(config, s) for s in (0, 59, 60, 61)] == ['points', 'points', 'rays', 'frames']
    rng = np.random.default_rng(0)
    index = np.arange(2)
    batches = {
        'points': heads.points(index, 64, rng),
        'rays': heads.rays(index, 16, rng),
        'frames': heads.frames(index),
    }

    def changed(state, old):
        return {
            k
            for k in prior.GROUPS
            if any(
                map(np.any, jax.tree.leaves(jax.tree.map(lambda a, b: np.asarray(a) != b, state.trees()[k], old[k])))
            )
        }

    for step, kind in enumerate(('points', 'rays')):
        state, metrics = prior.train_step(config, kind, state, constants, batches[kind], jnp.int32(step))
        assert all(np.isfinite(v) for v in metrics.values())
    # The first step alone leaves codes and controller: styles start from zero.
    assert changed(state, before) == set(prior.GROUPS)
    before = jax.tree.map(np.asarray, state.trees())
    state, metrics = prior.train_step(config, 'frames', state, constants, batches['frames'], jnp.int32(61))
    assert np.isfinite(metrics['psnr']) and changed(state, before) == {'generator'}
    after = state.trees()['generator']
    moved = {
        k
        for k in after
        if any(
            np.any(np.asarray(a) != b)
            for a, b in zip(jax.tree.leaves(after[k]), jax.tree.leaves(before['generator'][k]), strict=True)
        )
    }
    assert moved == {'superresolution'}


@pytest.mark.slow
def test_resumed_run_equals_the_uninterrupted_one_and_learns(heads, tmp_path, monkeypatch):
    monkeypatch.setattr(prior_training, 'validate', lambda *a: {})
    monkeypatch.setattr(prior_training, 'preview', lambda *a: None)
    config = tiny()
    whole = prior_training.train(config, heads, heads, tmp_path / 'a', log_every=1, save_every=31)
    rows = [json.loads(line) for line in (tmp_path / 'a' / 'metrics.jsonl').read_text().splitlines()]
    points = [r for r in rows if r.get('kind') == 'points']
    for term, wanted in (('color', 0.8), ('solid', 0.9)):
        values = [r[term] for r in points]
        assert np.mean(values[-5:]) < wanted * np.mean(values[:5])

    class Stop(Exception):
        pass

    def stop(*args):
        raise Stop

    monkeypatch.setattr(prior_training, 'preview', stop)
    with pytest.raises(Stop):
        prior_training.train(config, heads, heads, tmp_path / 'b', log_every=1, save_every=31)
    monkeypatch.setattr(prior_training, 'preview', lambda *a: None)
    resumed = prior_training.train(config, heads, heads, tmp_path / 'b', log_every=1, save_every=31)
    for a, b in zip(jax.tree.leaves(whole), jax.tree.leaves(resumed), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.slow
def test_mapping_network_learns_the_codes_without_pictures():
    config = tiny()
    state, _ = prior.init_state(config)
    weight = state.trees()['codes']['weight'] * 8 * (jnp.arange(TRAIT_DIM) < 3)[:, None]
    latent = np.random.default_rng(0).standard_normal((512, LATENT_DIM)).astype(np.float32)
    meaning = traits(latent)
    _, missed = prior.fit_mapping(
        config,
        state.trees()['generator']['backbone']['mapping'],
        lambda step: (latent[:256], meaning[:256]),
        weight,
        steps=300,
    )
    assert missed < 0.3


@pytest.mark.slow
def test_the_weight_file_is_a_model(monkeypatch, tmp_path):
    from avatar_jax.methods.model import load_model
    from avatar_jax.methods.otavatar.config import OTAvatarConfig

    monkeypatch.setattr(prior, 'fit_mapping', lambda config, mapping, draw, weight: (mapping, 0.25))
    config = tiny()
    state, constants = prior.init_state(config)
    settings = OTAvatarConfig.paper().replace(controller=config.controller)
    path = prior_training.export(config, settings, state, constants, None, tmp_path / 'a.safetensors', {'seed': 3})
    model = load_model(path)
    assert model.config.generator == config.generator and model.config.settings == settings
    assert (
        model.provenance['seed'] == 3 and model.provenance['mapping'] == 'explains 75.0 % of the variance of the codes'
    )
    assert not np.asarray(model.variables['ema_stats']['generator']['backbone']['mapping']['w_avg']).any()
