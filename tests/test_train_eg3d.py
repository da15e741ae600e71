"""EG3D's training at a tiny size: exact resume, the same update on any number of devices, weight files."""

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from avatar_jax.errors import UserError
from avatar_jax.faces.camera_labels import canonical_label
from avatar_jax.methods.eg3d import files
from avatar_jax.methods.eg3d import train as training
from avatar_jax.methods.eg3d.augment import AdaConfig, AugmentConfig
from avatar_jax.methods.eg3d.config import (
    DataConfig,
    DiscriminatorConfig,
    LossConfig,
    OutputConfig,
    RunConfig,
    TrainConfig,
)
from avatar_jax.models.triplane import GeneratorConfig, TriPlaneGenerator, init_generator
from avatar_jax.parallel import parallelise
from avatar_jax.train.checkpoints import Checkpoints, config_difference
from avatar_jax.train.logging import read_jsonl
from tests.devices import on_four_devices
from tests.runs import train, train_and_resume


def tiny_run(batch=4, iterations=4, lazy=0, **train):
    """All losses in every iteration, augmentation on: one small program. ``lazy`` 1: regularisation in its own
    steps.
    """
    generator = GeneratorConfig.tiny().replace(
        img_resolution=16,
        plane_resolution=8,
        neural_rendering_resolution=8,
        channel_base=64,
        channel_max=8,
        sr_channels=(4, 4),
        rendering={'depth_resolution': 4, 'depth_resolution_importance': 4, 'ray_start': 2.3},
    )
    transforms = AugmentConfig(xflip=1, scale=1, brightness=1)
    settings = {'g_reg_interval': lazy, 'd_reg_interval': lazy, 'kimg': batch * iterations / 1000} | train
    return RunConfig(
        generator=generator,
        discriminator=DiscriminatorConfig(channel_base=64, channel_max=8, mapping_layers=1, mbstd_group_size=2),
        loss=LossConfig(blur_init_sigma=0.0),
        train=TrainConfig(batch=batch, **settings),
        augment=AdaConfig(mode='ada', p=0.4, kimg=0.1, interval=2, transforms=transforms),
        data=DataConfig(count=4, in_memory=True, num_threads=0),
        output=OutputConfig(log_every=1, sample_every=0, sample_rows=0, checkpoint_every=1, keep=10, tensorboard=False),
        parallel='single',
    )


def stored_numbers(out, step):
    """Checksums of all arrays of a checkpoint."""
    import orbax.checkpoint as ocp

    with ocp.CheckpointManager((out / 'checkpoints').resolve()) as manager:
        args = ocp.args.Composite(manifest=ocp.args.JsonRestore())
        return manager.restore(step, args=args)['manifest']['leaves']


@pytest.mark.slow
def test_a_stopped_run_resumes_to_the_numbers_of_an_uninterrupted_one(tmp_path):
    _, _, whole, out, _ = train_and_resume(tiny_run(), tmp_path, 2)
    expected, found = stored_numbers(whole, 4), stored_numbers(out, 4)
    assert expected == found
    assert any('augment' in name for name in found) and any(name.endswith('w_avg') for name in found)
    assert stored_numbers(whole, 1) != expected

    # What the run wrote down.
    lines = read_jsonl(out / 'metrics.jsonl')
    assert [line['step'] for line in lines] == [1, 2, 3, 4]
    terms = {'g_main/loss', 'g_main/reg_l1', 'd_main/fake', 'd_main/real', 'd_main/reg_r1', 'augment/p', 'ema/decay'}
    norms = {f'{phase}/{k}_norm' for phase in ('g_main', 'd_main') for k in ('grad', 'update', 'param')}
    assert terms | norms <= set(lines[-1])
    manifest = json.loads((out / 'manifest.json').read_text())
    assert manifest['data']['pictures'] == 4 and manifest['versions']['jax'] and len(manifest['earlier']) >= 1

    # Generator only: into another run, and as a weight file.
    again = dataclasses.replace(tiny_run(), init=str(out))
    from_run = files.starting_point(again)
    variables, config, _ = files.load_generator(out / files.WEIGHTS)
    assert config == tiny_run().generator
    for a, b in zip(jax.tree.leaves(from_run.ema), jax.tree.leaves(variables['params']), strict=True):
        np.testing.assert_array_equal(a, b)
    from_file = files.starting_point(
        dataclasses.replace(
            again, init=str(out / files.WEIGHTS), init_discriminator=str(out / files.DISCRIMINATOR_WEIGHTS)
        )
    )
    for a, b in zip(jax.tree.leaves(from_run.discriminator), jax.tree.leaves(from_file.discriminator), strict=True):
        np.testing.assert_array_equal(a, b)
    other = dataclasses.replace(again, generator=again.generator.replace(channel_max=4))
    with pytest.raises(UserError, match='channel_max is 8, here 4'):
        files.starting_point(other)


def compare_devices():
    """Runs in the process with four devices."""

    def settings(accumulate):
        config = tiny_run(8, lazy=1, optimizer='sgd', g_lr=0.01, d_lr=0.01, accumulate=accumulate)
        return dataclasses.replace(config, loss=dataclasses.replace(config.loss, style_mixing_prob=0.9))

    start = training.init_state(settings(1), *training.fresh_variables(settings(1)))

    def update(kind, count, accumulate):
        config = settings(accumulate)
        flags = training.flags_at(config, 0)
        step = lambda s, b, labels, axis: training.train_step(config, flags, s, b, labels, axis)
        spread = parallelise(step, kind=kind, devices=jax.devices()[:count], constants=labels_of(6))
        state, metrics = spread.step(spread.put_state(start), spread.put_batch(batch_of(8)))
        return jax.tree.map(np.array, state), metrics

    one, metrics = update('single', 1, 2)
    many, other = update('pmap', 4, 1)  # pmap is shard_map inside
    for (path, a), b in zip(jax.tree_util.tree_flatten_with_path(one)[0], jax.tree.leaves(many), strict=True):
        scale = max(np.abs(a).max(), 1.0)
        assert np.abs(a - b).max() <= 1e-6 * scale, (jax.tree_util.keystr(path), np.abs(a - b).max())
    for name, value in metrics.items():
        np.testing.assert_allclose(value, other[name], rtol=2e-4, atol=1e-5, err_msg=name)
    assert {f'{phase}/grad_norm' for phase in training.PHASES} <= set(metrics)
    moved = [np.abs(a - b).max() for a, b in zip(jax.tree.leaves(start.groups), jax.tree.leaves(one.groups))]
    assert max(moved) > 1e-4, moved


def labels_of(count):
    """Cameras on an arc in front of the head."""
    from avatar_jax.faces.camera_labels import canonical_label, yaw_label

    return np.stack([np.asarray(yaw_label(canonical_label(), 0.1 * i - 0.2), np.float32) for i in range(count)])


def batch_of(count, size=16):
    rng = np.random.default_rng(3)
    return {'image': rng.integers(0, 256, (count, size, size, 3), dtype=np.uint8), 'label': labels_of(count)}


@pytest.mark.slow
def test_the_update_does_not_depend_on_devices_and_micro_batches():
    on_four_devices('from tests.test_train_eg3d import compare_devices; compare_devices()')


def test_batches_that_do_not_divide_are_refused():
    config = tiny_run(8)
    training.check_batch(config, 4)
    for devices, changes, message in (
        (3, {}, 'does not divide among 3 devices'),
        (8, {}, 'mbstd_group_size: 2'),
        (4, {'accumulate': 4}, 'use a multiple of 16'),
    ):
        bad = dataclasses.replace(config, train=dataclasses.replace(config.train, **changes))
        with pytest.raises(UserError, match=message):
            training.check_batch(bad, devices)
    path = dataclasses.replace(config, loss=LossConfig(path_length_weight=2.0, path_length_shrink=3))
    with pytest.raises(UserError, match='path_length_shrink'):
        training.check_batch(path, 4)


def test_phases_follow_the_iteration_number():
    config = dataclasses.replace(
        tiny_run(),
        train=TrainConfig(batch=32),
        loss=LossConfig(resolution_final=16, resolution_fade_kimg=1.0, blur_init_sigma=10.0, blur_fade_kimg=200.0),
    )
    flags = [training.flags_at(config, i) for i in range(33)]
    assert [i for i, f in enumerate(flags) if f.g_reg] == [0, 4, 8, 12, 16, 20, 24, 28, 32]
    assert [i for i, f in enumerate(flags) if f.d_reg] == [0, 16, 32]
    assert flags[0].resolution == 8 and flags[32].resolution == 16 and flags[0].blur
    assert not training.flags_at(config, 6200).blur
    # With a quarter of the batch the blur is seen for a quarter of the images: for as many iterations.
    small = dataclasses.replace(config, train=TrainConfig(batch=8))
    assert (config.blur_fade_kimg, small.blur_fade_kimg) == (200.0, 50.0)
    for i in (0, 1000, 6000, 6200):
        assert training.flags_at(small, i).blur == training.flags_at(config, i).blur
    plain = dataclasses.replace(config, generator=config.generator.replace(rendering={'density_reg': 0.0}))
    assert plain.g_interval is None and not training.flags_at(plain, 0).g_reg
    nothing = config.generator.replace(rendering={'reg_type': 'total-variation'})
    assert not training.flags_at(dataclasses.replace(config, generator=nothing), 0).g_reg
    assert not training.flags_at(dataclasses.replace(config, loss=LossConfig(r1_gamma=0.0)), 0).d_reg


def test_state_holds_everything_and_frozen_layers_get_no_gradient():
    config = tiny_run()
    g, d = jax.eval_shape(lambda: training.fresh_variables(config))
    state = jax.eval_shape(lambda: training.init_state(config, *training.fresh_variables(config)))
    assert set(state.groups) == {'generator', 'discriminator'} and state.groups['discriminator'].ema is None
    assert set(state.extra) == {'noise', 'ema_stats', 'augment', 'path_mean'}
    assert jax.tree.structure(state.groups['generator'].params) == jax.tree.structure(g['params'])
    assert d['b16']['fromrgb']['weight'].shape[2] == 6
    single = dataclasses.replace(config, discriminator=dataclasses.replace(config.discriminator, kind='single'))
    assert jax.eval_shape(lambda: training.fresh_variables(single))[1]['b16']['fromrgb']['weight'].shape[2] == 3
    with pytest.raises(UserError, match='reg_type'):
        dataclasses.replace(config, generator=config.generator.replace(rendering={'reg_type': 'l2'}))


def test_gradients_are_cleaned_and_counted():
    grads, bad = training.clean({'a': jnp.asarray([jnp.nan, jnp.inf, -jnp.inf, 2.0])})
    np.testing.assert_array_equal(grads['a'], [0, 1e5, -1e5, 2])
    assert float(bad) == 3


def test_configs_and_their_variants():
    from avatar_jax.methods.base import training as training_of
    from launch.config_args import load_config, load_run

    for name in ('eg3d_heads', 'eg3d_ffhq512_64', 'eg3d_ffhq512_128'):
        for variant in ('', ':tiny', ':bf16,ada', ':mixed', ':mixed,tiny'):
            found, config = load_run(f'configs/{name}.py{variant}')
            assert isinstance(config, RunConfig) and found is training_of('eg3d')
    _, ffhq = load_run('configs/eg3d_ffhq512_64.py')
    assert (ffhq.train.batch, ffhq.loss.r1_gamma, ffhq.train.kimg, ffhq.loss.blur_fade_kimg) == (32, 1, 25000, 200)
    assert ffhq.generator == GeneratorConfig.ffhq512() and ffhq.g_interval == 4 and not ffhq.augment.active
    _, after = load_run('configs/eg3d_ffhq512_128.py')
    assert after.loss.resolution_final == 128 and after.train.kimg == 2000 and after.train.ema_rampup is None
    _, mixed = load_run('configs/eg3d_ffhq512_64.py:mixed')
    assert (mixed.generator.dtype, mixed.generator.sr_dtype) == ('float32', 'bfloat16')
    assert mixed.discriminator.dtype == 'bfloat16' and files.meaning(mixed.generator) == files.meaning(ffhq.generator)
    with pytest.raises(UserError, match="did you mean 'rebalanced'"):
        load_config('configs/eg3d_ffhq512_64.py:rebalance')
    _, heads = load_run('configs/eg3d_heads.py')
    start = jax.eval_shape(lambda: files.starting_point(heads).generator)  # the shipped prior fits
    assert heads.init == 'heads128' and start['params']['decoder']
    longer = dataclasses.replace(heads, train=dataclasses.replace(heads.train, kimg=999.0))
    assert config_difference({'run': heads}, {'run': longer}, [f'run.{p}' for p in RunConfig.MAY_DIFFER]) is None


@pytest.mark.slow
def test_bad_starts_are_one_line(tmp_path):
    config = tiny_run()
    cases = {
        'no such file': dataclasses.replace(config, init=str(tmp_path / 'x.safetensors')),
        'no such checkpoint folder': dataclasses.replace(config, init=str(tmp_path)),
        'no such folder, or not a zip': dataclasses.replace(
            config, data=DataConfig(source='eg3d', folder=str(tmp_path / 'no'))
        ),
        'mbstd_group_size': dataclasses.replace(config, discriminator=DiscriminatorConfig(mbstd_group_size=3)),
    }
    for message, bad in cases.items():
        with pytest.raises(UserError, match=message) as found:
            train(bad, tmp_path / 'out', quiet=True)
        assert '\n' not in str(found.value)
    with Checkpoints(tmp_path / 'other' / 'checkpoints', config={'run': {'model': 1}}) as checkpoints:
        checkpoints.save(1, {'a': np.ones(2, np.float32)})
    with pytest.raises(UserError, match='is not a training run of EG3D'):
        files.load_run(tmp_path / 'other')


@pytest.mark.slow
def test_mixed_precision_halves_super_resolution_alone():
    """Raw pictures are those of float32, up to rounding; the super-resolved ones are nearly."""
    config = GeneratorConfig.tiny()
    variables = jax.jit(lambda key: init_generator(config, key))(jax.random.key(0))
    ws = jax.random.normal(jax.random.key(1), (1, config.num_ws, config.w_dim))

    @functools.partial(jax.jit, static_argnums=0)
    def run(config, variables, ws):
        return TriPlaneGenerator(config).apply(variables, ws, jnp.asarray(canonical_label())[None], method='synthesis')

    full, mixed = (run(c, variables, ws) for c in (config, config.replace(sr_dtype='bfloat16')))
    np.testing.assert_allclose(full['image_raw'], mixed['image_raw'], atol=1e-5)
    gap = float(jnp.abs(full['image'] - mixed['image']).max() / jnp.abs(full['image']).max())
    assert 0 < gap < 0.05
    with pytest.raises(UserError, match=r'generator\.sr_dtype'):
        config.replace(sr_dtype='float8')


def test_the_fid_at_samples_needs_its_network():
    config = tiny_run()
    output = dataclasses.replace(config.output, fid_images=8)
    with pytest.raises(UserError, match='inception: .*output.fid_images needs'):
        dataclasses.replace(config, output=output)
    with pytest.raises(UserError, match='inception: .*nothing uses it'):
        dataclasses.replace(config, inception='inception.npz')
    assert dataclasses.replace(config, output=output, inception='a.npz').output.fid_images == 8
    with pytest.raises(UserError, match='fid_images: 1'):
        dataclasses.replace(config.output, fid_images=1)


def test_the_fid_compares_generated_with_all_real_pictures(monkeypatch, tmp_path):
    from avatar_jax.eval import generators
    from avatar_jax.eval.distributions import frechet_distance
    from avatar_jax.losses.perception import PerceptionBank
    from avatar_jax.models.perception import inception
    from data_pipelines import streams

    rng = np.random.default_rng(0)
    pictures = rng.integers(0, 256, (6, 8, 8, 3)).astype(np.uint8)
    made = rng.uniform(-1, 1, (5, 8, 8, 3)).astype(np.float32)
    bank = PerceptionBank(weights={'inception': {'gain': jnp.float32(2.0)}})
    monkeypatch.setattr(PerceptionBank, 'load', classmethod(lambda cls, files: bank))
    monkeypatch.setattr(inception, 'fid_features', lambda weights, x: weights['gain'] * x.mean((1, 2)))
    fakes = {'image': jnp.asarray(np.concatenate([made, made[:3]]))}
    monkeypatch.setattr(
        generators, 'generate', lambda variables, config, z, c, numbers: {'image': fakes['image'][numbers]}
    )
    config = GeneratorConfig.tiny()
    source = [{'image': p} for p in pictures]
    distance = streams.frechet(source, 'inception.npz', 5, 0, batch=4)
    found = distance({}, config, np.zeros((3, 25), np.float32))
    seen = np.floor(np.clip(made * 127.5 + 128, 0, 255)) / 255
    expected = frechet_distance(2 * pictures.mean((1, 2)) / 255, 2 * seen.mean((1, 2)))
    np.testing.assert_allclose(found, expected, rtol=1e-4)
    assert distance({}, config, np.zeros((3, 25), np.float32)) == found
