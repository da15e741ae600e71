"""Training of GPAvatar: configurations, data, face boxes, the table of ablations, warnings about strangers."""

import dataclasses

import numpy as np
import pytest

from avatar_jax.configure import from_plain, to_plain
from avatar_jax.errors import UserError
from avatar_jax.methods.gpavatar import train as training
from avatar_jax.methods.gpavatar.config import ModelConfig
from avatar_jax.methods.gpavatar.train import DataConfig, OutputConfig, RunConfig
from launch.encode import warn_of_strangers

SETTINGS = {'loss__box': 0.0, 'training_noise': 'zero', 'noise': 'zero', 'train__ema': 0.9, 'train__batch_size': 1,
            'train__milestones': (2,)}  # fmt: skip


def tiny_run(iterations=3):
    return RunConfig(
        model=ModelConfig.tiny(**SETTINGS, train__iterations=iterations),
        data=DataConfig(people=2, frames=4, resolution=16, in_memory=True, num_threads=0),
        output=OutputConfig(log_every=1, sample_every=0, sample_people=0, checkpoint_every=1, tensorboard=False),
        parallel='single',
    )  # fmt: skip


def test_runs_survive_their_files():
    run = tiny_run()
    assert from_plain(RunConfig, to_plain(run)) == run
    with pytest.raises(UserError, match='this configuration is of'):
        dataclasses.replace(run, method='nerf')
    boxes = training.face_boxes(np.array([[[10.0, 20], [30, 40]]]), 100)
    np.testing.assert_allclose(boxes, [[0.075, 0.175, 0.325, 0.425]])


def test_portraits_of_different_people_are_told(capsys):
    similarity = {'kind': 'head_identity', 'network': 'stand-in', 'values': [0.9, 0.1]}
    (line,) = warn_of_strangers(['a.png', 'b.png', 'c.png'], similarity)
    assert line.startswith('c.png: may show another person than a.png (similarity 0.10')
    assert warn_of_strangers(['a.png'], None) == []


def test_table_of_ablations_says_what_agrees_with_the_paper():
    from launch.ablate import CLAIMS, GPAVATAR3, make_report, render

    scores = {row: [{'psnr': psnr, 'aed': aed}] * 2 for row, (_, _, psnr, aed) in GPAVATAR3.items()}
    report = make_report(scores, {'size': 'tiny', 'seeds': 2})
    assert len(report['claims']) == len(CLAIMS) and all(c['psnr'] and c['aed'] for c in report['claims'])
    scores['one portrait'] = [{'psnr': 20.0, 'aed': 0.6}] * 2
    text = render(make_report(scores, {}))
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
