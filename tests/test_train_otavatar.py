"""Training of the whole model at a tiny size: exact resume, devices, configurations, the command."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from avatar_jax.configure import from_plain, to_plain
from avatar_jax.errors import UserError
from avatar_jax.io.weights import save_weights
from avatar_jax.methods.otavatar import training
from avatar_jax.methods.otavatar.model import ModelConfig, load_model, network, save_model
from avatar_jax.methods.otavatar.train import DataConfig, RunConfig, init_state, train_step, variables_of
from avatar_jax.train.logging import read_jsonl
from avatar_jax.train.optimizers import OptimizerConfig
from avatar_jax.train.run import PeopleOutput
from tests.devices import on_four_devices
from tests.runs import train, train_and_resume
from tests.tiny_model import batch, random_variables


def tiny_run(iterations=3, **changes):
    """As few compiled parts as an iteration can have: raw identity steps, controller steps with super-resolution; and
    two blocks of the backbone, the first and one that enlarges.
    """
    model = ModelConfig.tiny('release')
    generator = model.generator.replace(plane_resolution=8)
    settings = {
        'train__iterations': iterations,
        'decoupling__identity_steps': 2,
        'decoupling__controller_steps': 1,
        'decoupling__sr_steps': 1,
        'decoupling__refine': 'together',
        'loss__local': 0.0,
        'controller__num_ws': generator.num_ws,
        **changes,
    }
    return RunConfig(
        model=dataclasses.replace(model, generator=generator, settings=model.settings.replace(**settings)),
        data=DataConfig(people=2, frames=4, resolution=32, in_memory=True, num_threads=0),
        output=PeopleOutput(log_every=1, sample_every=0, sample_people=0, checkpoint_every=1, tensorboard=False),
        parallel='single',
        stand_ins=False,
    )


def plainly_rendered(iterations, **changes):
    """The same with the renderer's first pass alone and no terms of densities, for what does not depend on them: a
    third less to compile.
    """
    run = tiny_run(iterations, loss__tv=0.0, loss__monotonic=0.0, **changes)
    generator = run.model.generator.replace(rendering={'depth_resolution_importance': 0})
    return dataclasses.replace(run, model=dataclasses.replace(run.model, generator=generator))


def leaves(state):
    return [np.asarray(x) for x in jax.tree.leaves(state)]


@pytest.mark.slow
def test_a_stopped_run_resumes_to_the_numbers_of_an_uninterrupted_one(tmp_path):
    whole, resumed, folder, out, _ = train_and_resume(tiny_run(), tmp_path, 1)
    for a, b in zip(leaves(whole), leaves(resumed), strict=True):
        np.testing.assert_array_equal(a, b)

    # What is left behind: a log of every term, weights that load, a folder that another configuration may not use.
    log = read_jsonl(folder / 'metrics.jsonl')
    assert [r['step'] for r in log] == [1, 2, 3] == [r['step'] for r in read_jsonl(out / 'metrics.jsonl')]
    for name in (
        'identity/raw/pixel',
        'identity/raw/pyramid',
        'identity/monotonic',
        'identity/tv',
        'controller/sr/pixel',
        'refine/sr/pyramid',
        'controller/grad_norm',
        'controller/param_norm',
        'refine/generator_grad_norm',
        'refine/generator_update_norm',
        'identity/code_grad_norm',
        'inner/loss',
    ):
        assert np.isfinite(log[-1][name]), name
    assert not any(name.startswith('identity/sr') for name in log[-1])
    variables, config, _, provenance = load_model(out / 'weights.safetensors')
    assert config == tiny_run().model and provenance['iterations'] == 3
    for a, b in zip(leaves(variables), leaves(variables_of(whole)), strict=True):
        np.testing.assert_array_equal(a, b)
    with pytest.raises(UserError, match=r'run\.model\.settings\.decoupling\.identity_steps = 2, this run has 5'):
        train(tiny_run(decoupling__identity_steps=5), out, resume=True, quiet=True)
    with pytest.raises(UserError, match='holds a run at step 3'):
        train(tiny_run(), out, quiet=True)


def test_a_state_trains_only_what_it_should():
    for subset, preset in (('all', 'release'), ('superresolution', 'paper')):
        config = ModelConfig.tiny(preset)
        config = dataclasses.replace(config, settings=config.settings.replace(train__generator_subset=subset))
        variables = random_variables(config)
        state = init_state(config, variables)
        trained = state.groups['generator'].params
        assert 'mapping' not in trained.get('backbone', {})
        assert set(trained) == (
            {'superresolution'} if subset == 'superresolution' else {'backbone', 'decoder', 'superresolution'}
        )
        assert (state.groups['generator'].ema is not None) == (preset == 'release')
        for averaged in (True, False):
            rebuilt = variables_of(state, averaged)
            assert jax.tree.structure(rebuilt) == jax.tree.structure(variables)
            for a, b in zip(leaves(rebuilt), leaves(variables), strict=True):
                np.testing.assert_array_equal(a, b)


# ------------------------------------------------------------------------------------------------------ many devices


def sgd_model():
    config = tiny_run(loss__monotonic=0.0).model  # it looks where the other term of densities does
    sgd = OptimizerConfig('sgd', 1e-3)
    settings = config.settings.replace(
        optimizers__codes=sgd, optimizers__intrinsics=sgd, optimizers__controller=sgd, optimizers__generator=sgd
    )
    return dataclasses.replace(config, settings=settings)


def compare_devices():
    """Runs in the process with four devices."""
    from avatar_jax.losses.perception import PerceptionBank
    from avatar_jax.parallel import parallelise

    config = sgd_model()
    variables = random_variables(config)

    def step(state, batch, bank, axis_name):
        return train_step(config, 0, state, batch, bank, axis_name)

    results = {}
    # pmap is shard_map inside; both, on two and on four devices, are compared in tests/test_inversion.py.
    for kind, count in (('single', 1), ('pmap', 4)):
        spread = parallelise(step, kind=kind, devices=jax.devices()[:count], constants=PerceptionBank())
        state, metrics = spread.step(spread.put_state(init_state(config, variables)), spread.put_batch(batch(4)))
        results[kind] = leaves(state), leaves(metrics)
    start = leaves(init_state(config, variables))
    moved = sum(np.abs(a - b).max() > 1e-6 for a, b in zip(results['single'][0], start, strict=True))
    assert moved > 20, 'the step changes next to nothing'
    for a, b in zip(results['pmap'][0], results['single'][0], strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6, rtol=0)
    for a, b in zip(results['pmap'][1], results['single'][1], strict=True):  # losses and norms, up to hundreds
        np.testing.assert_allclose(a, b, atol=1e-6, rtol=2e-5)


@pytest.mark.slow
def test_one_and_four_devices_make_the_same_update():
    on_four_devices('from tests.test_train_otavatar import compare_devices; compare_devices()')


# ---------------------------------------------------------------------------------------------------- configurations


@pytest.mark.parametrize(
    'spec',
    [
        'otavatar_heads',
        'otavatar_heads:tiny',
        'otavatar_heads:tiny,release',
        'otavatar_heads:release,joint',
        'otavatar_hdtf',
        'otavatar_hdtf:tiny',
        'otavatar_hdtf:motion_in_w',
    ],
)
def test_config_files_become_run_configs(spec):
    from launch.config_args import load_run

    _, config = load_run(spec)
    assert from_plain(RunConfig, json.loads(json.dumps(to_plain(config)))) == config
    if spec == 'otavatar_hdtf':
        settings, generator = config.model.settings, config.model.generator
        assert (settings.train.batch_size, settings.train.iterations, generator.img_resolution) == (24, 2000, 512)
        assert (settings.decoupling.identity_steps, settings.decoupling.controller_steps) == (90, 10)
    if 'joint' in spec:
        assert config.model.settings.decoupling.mode == 'joint'


def test_config_mistakes_are_named():
    from launch.config_args import load_config

    with pytest.raises(UserError, match="did you mean 'identity_steps'"):
        load_config('otavatar_heads:tiny', ['--config.model.settings.decoupling.identity_stepz=3'])
    with pytest.raises(UserError, match="did you mean 'release'"):
        load_config('otavatar_heads:relaese')
    with pytest.raises(UserError, match=r"model\.settings\.loss\.perceptul: unknown option; did you mean 'perceptual'"):
        from_plain(RunConfig, {'model': {'settings': {'loss': {'perceptul': 1}}}})
    with pytest.raises(UserError, match=r"seed: '3' is not int"):
        from_plain(RunConfig, {'seed': '3'})
    with pytest.raises(UserError, match=r'controller\.w_dim: 512; the generator reads 8'):
        ModelConfig.from_dict({'generator': {'w_dim': 8}})
    with pytest.raises(UserError, match='data.folder'):
        from_plain(RunConfig, {'data': {'source': 'built'}})
    config = from_plain(
        RunConfig,
        {'model': {'generator': {'sr_channels': [8, 4], 'rendering': {'ray_start': 'auto', 'ray_end': 'auto'}}}},
    )
    assert config.model.generator.sr_channels == (8, 4) and config.model.generator.rendering.ray_start == 'auto'


def test_batches_and_devices_are_checked_before_anything_is_compiled():
    from avatar_jax.methods.otavatar.training import devices_and_batch

    assert devices_and_batch(tiny_run())[1] == 2


# ------------------------------------------------------------------------------------- options that no preset has


@pytest.mark.slow
def test_options_that_no_preset_has_are_trained_and_used(tmp_path):
    """Together, as one program; without frames of their own beside the first, there is only the training to look at."""
    from avatar_jax.methods.model import load_model as load
    from tests.tiny_model import portrait

    changes = {
        'sigma_w': 'std',
        'clamp_radius': 5.0,
        'controller__scaling': True,
        'controller__motion_space': 'w',
        'train__frames_per_clip': 3,
        'loss__alpha_mutual': 0.1,
    }
    run = plainly_rendered(1, inversion__w_steps=1, inversion__wplus_steps=0, **changes)
    train(run, tmp_path / 'all')
    row = read_jsonl(tmp_path / 'all' / 'metrics.jsonl')[-1]
    assert row['controller/grad_norm'] > 0 and np.isfinite(row['controller/alpha_mutual'])
    model = load(tmp_path / 'all' / 'weights.safetensors')
    assert model.config == run.model
    windows = np.random.default_rng(0).uniform(0, 1, (2, 27, 70)).astype(np.float32)
    avatar = model.build(portrait(0)).avatar
    labels = np.repeat(np.asarray(portrait(0).camera.label)[None], 2, 0)
    pictures = model.frames(avatar, windows, labels, sr=False).rgb
    assert np.isfinite(pictures).all() and np.abs(pictures[0] - pictures[1]).max() > 0


@pytest.mark.slow
def test_one_frame_per_clip_is_trained(tmp_path):
    """By a step that moves codes and controller together."""
    steps = {'mode': 'joint', 'identity_steps': 1, 'controller_steps': 0}
    run = plainly_rendered(1, train__frames_per_clip=1, **{f'decoupling__{k}': v for k, v in steps.items()})
    train(run, tmp_path)
    row = read_jsonl(tmp_path / 'metrics.jsonl')[-1]
    assert row['joint/grad_norm'] > 0 and row['joint/code_grad_norm'] > 0 and 'joint/alpha_mutual' not in row
    assert load_model(tmp_path / 'weights.safetensors')[1] == run.model


def test_standard_deviations_of_codes_are_those_of_the_mapping_network():
    from avatar_jax.methods.otavatar.model import code_std, init, sigma

    config = tiny_run(sigma_w='std').model
    variables = init(config, jax.random.key(0))
    found = sigma(variables, config)
    generator = network(variables, 'generator')
    np.testing.assert_array_equal(found, code_std(generator, config.generator))
    mapping = generator['params']['backbone']['mapping']
    last = max(mapping)
    wider = mapping | {last: mapping[last] | {'weight': 2 * mapping[last]['weight']}}
    params = generator['params'] | {'backbone': generator['params']['backbone'] | {'mapping': wider}}
    np.testing.assert_allclose(code_std({**generator, 'params': params}, config.generator), 2 * found, rtol=1e-5)
    # A run that takes its generator from a file measures that one's codes.
    begun = training.Starting({'generator': {**generator, 'params': params}}, {}, (), '')
    parts = training.with_parts(variables, begun, config)
    np.testing.assert_allclose(sigma(parts, config), 2 * found, rtol=1e-5)


@pytest.mark.parametrize(
    ('changes', 'said'),
    [
        ({'controller': {'use_crop': True}}, r'model.settings.controller.use_crop: True; motions have 70 numbers'),
        (
            {'loss': {'alpha_mutual': 1.0}, 'train': {'frames_per_clip': 1}},
            r'model.settings.loss.alpha_mutual: 1.0; comp',
        ),
        ({'train': {'frames_per_clip': 0}}, r'model.settings.train.frames_per_clip: 0; must be at least 1'),
        ({'sigma_w': 'mean'}, "model.settings.sigma_w: 'mean'; use one of ones, std"),
    ],
)
def test_options_that_cannot_work_are_refused_when_they_are_read(changes, said):
    with pytest.raises(UserError, match=said):
        training.run_config({'model': {'settings': changes}})


# ----------------------------------------------------------------------------------------------------- starting points


@pytest.fixture(scope='module')
def files(tmp_path_factory):
    """Weight files of a tiny model: whole, its generator alone (as a converted EG3D), its controller alone."""
    folder, config = tmp_path_factory.mktemp('weights'), ModelConfig.tiny()
    variables = random_variables(config)
    save_model(folder / 'both.safetensors', variables, config, {})
    for name, part in (('generator', config.generator), ('controller', config.settings.controller)):
        kind = {'generator': 'eg3d', 'controller': 'otavatar_controller'}[name]
        save_weights(
            folder / f'{name}.safetensors', network(variables, name), method=kind, config=to_plain(part), provenance={}
        )
    return folder, config, variables


def other_controller(config):
    return dataclasses.replace(config, settings=config.settings.replace(controller__channels=8))


def equal(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.mark.slow
def test_a_run_starts_from_any_parts(files):
    folder, config, variables = files
    fresh = random_variables(config, 1)

    def start(init, config=config):
        init = init.replace('@', f'{folder}/')
        begun = training.starting_point(init, config)
        return begun, training.with_parts(fresh, begun, config)

    begun, found = start('@both.safetensors')
    equal(found, variables)
    assert len(begun.digest) == 64 and len(begun.notes) == 1
    begun, found = start('@generator.safetensors')  # a converted EG3D generator, and a fresh controller
    equal(network(found, 'generator'), network(variables, 'generator'))
    equal(network(found, 'controller'), network(fresh, 'controller'))
    assert begun.report['controller'] == 'fresh' and begun.report['generator']['numbers'] > 1000
    assert 'generator from ' in begun.notes[0] and 'controller fresh' in begun.notes[0]
    begun, found = start('generator=@both.safetensors', other_controller(config))
    equal(network(found, 'generator'), network(variables, 'generator'))
    assert begun.report['not_used'] == {f'{folder}/both.safetensors': ['controller']}
    assert 'controller of ' in begun.notes[0] and 'not used' in begun.notes[0]
    begun, found = start('controller=@controller.safetensors')
    equal(network(found, 'controller'), network(variables, 'controller'))
    begun, found = start('generator=@generator.safetensors,controller=@both.safetensors')
    equal(found, variables)
    assert len(begun.digest) > 64
    begun, found = start('')
    equal(found, fresh)
    assert begun.notes == () and begun.digest == ''


@pytest.mark.parametrize(
    ('init', 'text'),
    [
        ('@both.safetensors', r'\(controller\).*channels is 16, here 8.*init=generator=.*both'),
        ('controller=@both.safetensors', 'channels is 16, here 8'),
        ('controller=@generator.safetensors', 'has no controller; leave controller= out'),
        ('encoder=@both.safetensors', 'with the parts generator, controller'),
        ('generator=', 'with the parts generator, controller'),
        ('head_nets', 'has none of generator, controller'),
    ],
)
def test_starting_points_that_do_not_fit_are_refused(files, init, text):
    folder, config, _ = files
    with pytest.raises(UserError, match=text) as error:
        training.starting_point(init.replace('@', f'{folder}/'), other_controller(config))
    assert '\n' not in str(error.value)


@pytest.mark.parametrize('variant', ['motion_in_w', 'linear_basis', 'n_mo_1'])
def test_variants_start_from_the_shipped_weights(variant):
    from launch.config_args import load_run

    _, config = load_run(f'otavatar_heads:{variant}')
    begun = training.starting_point(config.init, config.model)
    assert set(begun.parts) == ({'generator', 'controller'} if variant == 'n_mo_1' else {'generator'})
