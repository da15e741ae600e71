"""Training of GPAvatar at a tiny size: exact resume, parameter groups, the commands on what comes out."""

import dataclasses

import jax
import numpy as np
import pytest

from avatar_jax.cli import main
from avatar_jax.configure import from_plain, to_plain
from avatar_jax.errors import UserError
from avatar_jax.faces.camera_labels import label_from_pose
from avatar_jax.methods import base
from avatar_jax.methods.gpavatar import train as training
from avatar_jax.methods.gpavatar.build import strangers
from avatar_jax.methods.gpavatar.config import ModelConfig
from avatar_jax.methods.gpavatar.model import abstract, build, frame, load_model, with_coefficients
from avatar_jax.methods.gpavatar.train import RunConfig
from avatar_jax.train.checkpoints import config_difference
from avatar_jax.train.logging import read_jsonl
from avatar_jax.train.run import ClipsConfig, PeopleOutput
from avatar_jax.types import Camera, Portrait
from tests.runs import train, train_and_resume

SETTINGS = {
    'loss__box': 0.0,
    'training_noise': 'zero',
    'noise': 'zero',
    'train__ema': 0.9,
    'train__batch_size': 1,
    'train__milestones': (2,),
}
FRONT = np.asarray(label_from_pose(np.zeros(3, np.float32), np.zeros(3, np.float32), 'raw'))


def tiny_run(iterations=3):
    return RunConfig(
        model=ModelConfig.tiny(**SETTINGS, train__iterations=iterations),
        data=ClipsConfig(people=2, frames=4, resolution=16, in_memory=True, num_threads=0),
        output=PeopleOutput(log_every=1, sample_every=0, sample_people=0, checkpoint_every=1, tensorboard=False),
        parallel='single',
    )


@pytest.fixture(scope='module')
def both(tmp_path_factory):
    return train_and_resume(tiny_run(), tmp_path_factory.mktemp('gpavatar'), 2)


@pytest.fixture(scope='module')
def trained(both):
    return both.folder, both.whole


@pytest.mark.slow
def test_a_stopped_run_resumes_to_the_numbers_of_an_uninterrupted_one(both):
    folder = both.folder
    for a, b in zip(jax.tree.leaves(both.whole), jax.tree.leaves(both.resumed), strict=True):
        np.testing.assert_array_equal(a, b)
    log = read_jsonl(folder / 'metrics.jsonl')
    assert [r['step'] for r in log] == [1, 2, 3]
    for name in ('loss', 'psnr', 'pixel', 'perceptual', 'norm', 'main/grad_norm', 'slow/update_norm'):
        assert np.isfinite(log[-1][name]), name
    variables, config, _, provenance = load_model(folder / 'weights.safetensors')
    assert config == tiny_run().model and provenance['iterations'] == 3 and 'mesh' in variables


@pytest.mark.slow
def test_coefficients_can_join_trained_points(trained, tmp_path):
    weights = trained[0] / 'weights.safetensors'
    run = dataclasses.replace(tiny_run(1), init=str(weights))
    run = dataclasses.replace(run, model=run.model.with_method(field__kind='both'))
    known, config, _, _ = load_model(weights)
    started, both = with_coefficients(known, config)
    assert both == config.with_method(field__kind='both')
    expression = np.random.default_rng(0).uniform(size=(1, 64)).astype(np.float32)
    drawn = jax.jit(
        lambda v, identity, config: frame(v, config, identity, None, {'expression': expression}, FRONT[None], sr=False),
        static_argnames='config',
    )
    avatar = build(known, config, Portrait(image=np.zeros((16, 16, 3), np.float32), camera=Camera.from_label(FRONT)))
    frames = [drawn(v, avatar.identity, config=c).rgb for v, c in ((known, config), (started, both))]
    # It begins where the first training ended, up to the rounding of some hundred sums of numbers around 1.
    np.testing.assert_allclose(*frames, atol=1e-5)
    state = train(run, tmp_path / 'run', quiet=True)
    layer = state.groups['main'].params['nerf_mlp']['points_querier']['expression_layer']
    assert np.abs(layer['weight']).max() > 0
    wider = dataclasses.replace(run, model=run.model.with_method(field__hidden=16))
    with pytest.raises(UserError, match='hidden is 8, here 16'):
        train(wider, tmp_path / 'other', quiet=True)


@pytest.mark.slow
def test_groups_and_schedule():
    config = ModelConfig.tiny(**SETTINGS)
    whole = abstract(config)['params']
    main_part, slow = training.split_slow(whole)
    names = {'/'.join(str(getattr(k, 'key', k)) for k in path) for path, _ in jax.tree_util.tree_leaves_with_path(slow)}
    assert names and all('style_mlp' in n or 'final_linear' in n for n in names)
    assert jax.tree.structure(training.join(main_part, slow)) == jax.tree.structure(whole)
    scales = [float(training.learning_rate_scale(config, k)) for k in range(4)]
    np.testing.assert_allclose(scales, [1, 1, 0.2, 0.2])


@pytest.mark.slow
def test_super_resolution_learns_apart():
    config = ModelConfig.tiny(**SETTINGS)
    rng = np.random.default_rng(0)
    variables = jax.tree.map(lambda x: rng.normal(size=x.shape).astype(np.float32), abstract(config))
    state = training.init_state(config, variables)
    params = training.gather({name: g.params for name, g in state.groups.items()})
    assert jax.tree.structure(params) == jax.tree.structure(variables['params'])
    update = jax.jit(training.update, static_argnums=(0, 3))
    ones = jax.tree.map(np.ones_like, variables['params'])
    kinds = ('others', 'sr')
    for which in kinds:  # momentum everywhere
        state = jax.device_get(update(config, state, ones, which)[0])
    for which in kinds:
        rested, metrics = jax.device_get(update(config, state, ones, which))
        assert int(rested.step) == 3 and all(k.startswith('sr') == (which == 'sr') for k in metrics)
        for name, group in state.groups.items():
            same = [
                np.array_equal(a, b) for a, b in zip(*map(jax.tree.leaves, (group, rested.groups[name])), strict=True)
            ]
            assert all(same) == (name.startswith('sr') != (which == 'sr'))


def test_runs_survive_their_files():
    run = tiny_run()
    assert from_plain(RunConfig, to_plain(run)) == run
    longer, allowed = tiny_run(4), [f'run.{name}' for name in RunConfig.MAY_DIFFER]
    assert config_difference({'run': to_plain(run)}, {'run': to_plain(longer)}, allowed) is None
    with pytest.raises(UserError, match="method: 'nerf'; this configuration is of 'gpavatar'"):
        dataclasses.replace(run, method='nerf')
    boxes = training.face_boxes(np.array([[[10.0, 20], [30, 40]]]), 100)
    np.testing.assert_allclose(boxes, [[0.075, 0.175, 0.325, 0.425]])


def picture(path, seed):
    from PIL import Image

    pixels = np.random.default_rng(seed).integers(0, 255, (32, 32, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return str(path)


@pytest.mark.slow
def test_commands(trained, tmp_path, capsys, monkeypatch):
    weights = str(trained[0] / 'weights.safetensors')
    images = [picture(tmp_path / f'{name}.png', k) for k, name in enumerate('ab')]
    status = main(
        [
            'invert',
            '--method',
            'gpavatar',
            '--weights',
            weights,
            '--aligned',
            '--background',
            'keep',
            '--image',
            *images,
            '--out',
            str(tmp_path / 'out'),
        ]
    )
    assert status == 0 and '2 portraits' in capsys.readouterr().out
    assert (tmp_path / 'out' / 'a' / 'reconstruction.png').is_file() and (tmp_path / 'out' / 'report.json').is_file()
    assert (
        main(
            [
                'animate',
                '--avatar',
                str(tmp_path / 'out' / 'a'),
                '--weights',
                weights,
                '--motion',
                'speech:0:3',
                '--per-call',
                '3',
                '--out',
                str(tmp_path / 'a.mp4'),
            ]
        )
        == 0
    )
    assert (tmp_path / 'a.mp4').stat().st_size > 100
    capsys.readouterr()
    without = dataclasses.replace(base.method('gpavatar'), weights='')
    monkeypatch.setattr('avatar_jax.methods.model.method_with_avatars', lambda name: without)
    assert main(['invert', '--method', 'gpavatar', '--image', images[0], '--out', str(tmp_path / 'x')]) == 2
    assert 'no weights for it are in the package' in capsys.readouterr().err
    assert (
        main(['invert', '--weights', weights, '--steps', '3', '--image', images[0], '--out', str(tmp_path / 'x')]) == 2
    )
    assert '--steps: GPAvatar has no such option' in capsys.readouterr().err


def test_portraits_of_different_people_are_told():
    similarity = {'kind': 'head_identity', 'network': 'stand-in', 'values': [0.9, 0.01]}
    (line,) = strangers(['a.png', 'b.png', 'c.png'], similarity)
    assert line.startswith('c.png: may show another person than a.png (similarity 0.01')
    assert strangers(['a.png'], None) == []


@pytest.mark.slow
def test_pictures_of_portraits_are_compared_with_the_truth(trained, tmp_path, monkeypatch, capsys):
    from PIL import Image

    from avatar_jax.eval import portrait_pictures as pictures
    from data_pipelines.clips import evaluation_clips
    from launch import portrait_pictures as command
    from launch.program import main

    grey = {1: -0.4, 2: 0.1, 4: 0.5}
    monkeypatch.setattr(
        pictures, 'rendered', lambda model, portraits, label, code: np.full((16, 16, 3), grey[len(portraits)])
    )
    weights = ['--weights', str(trained[0] / 'weights.safetensors'), '--out', str(tmp_path)]
    program = command.__doc__, command.add_arguments, command.run
    assert main(*program, [*weights, '--people', '2', '--seed', '3']) == 0
    shown = capsys.readouterr().out
    for name, yaw, columns, width in (('eyes', 20, (1, 1, 2), 6), ('portraits', 32, (1, 2, 4), 8)):
        sitters = [pictures.Sitter(c.identity, c.gamma, 16) for c in evaluation_clips(2, 3, num_frames=2)]
        truth = [sitter.picture(yaw, jaw_open=pictures.LOOK)[0] for sitter in sitters]
        psnr = [np.mean([-10 * np.log10(np.mean((grey[n] - t) ** 2) / 4) for t in truth]) for n in columns]
        line = next(x for x in shown.splitlines() if f'{name}.jpg' in x)
        assert [float(x.split()[1]) for x in line.split(' ', 1)[1].split(', ')] == pytest.approx(psnr, abs=0.06)
        assert Image.open(tmp_path / f'{name}.jpg').size == (width * 20 - 4, 2 * 20 - 4)
    assert main(*program, [*weights, '--people', '0']) == 2 and '--people 0' in capsys.readouterr().err


def test_table_of_ablations_says_what_agrees_with_the_paper():
    from avatar_jax.eval.ablation import make_report, render

    table = base.method('gpavatar').tables['gpavatar3']
    scores = {name: [dict(row.paper)] * 2 for name, row in table.rows.items()}
    report = make_report(table, scores, {'size': 'tiny', 'seeds': 2})
    assert len(report['claims']) == len(table.claims) and all(c['psnr'] and c['aed'] for c in report['claims'])
    scores['one portrait'] = [{'psnr': 20.0, 'aed': 0.6}] * 2
    text = render(table, make_report(table, scores, {}))
    assert 'one portrait better than without field: PSNR the other way, AED the other way' in text


def test_sets_of_frames_repeat_by_position():
    from data_pipelines.clips import ClipOptions
    from data_pipelines.sets import SetConfig, Sets
    from data_pipelines.sources import RenderedFrames

    source = RenderedFrames.of_people(3, 0, 'train', 1, 16, ClipOptions(num_frames=5))
    a, b = (Sets(source, SetConfig(2, 4, seed=1)) for _ in range(2))
    assert all(a.choice(k) == b.choice(k) for k in range(6))
    assert sorted(a.source.table.person[a.choice(k)[0]] for k in range(3)) == [0, 1, 2]
    assert all(len(set(a.choice(k)[2])) == 4 for k in range(6))
    with pytest.raises(UserError, match='has 5 frames, sets need 6'):
        Sets(source, SetConfig(2, 6)).choice(0)
