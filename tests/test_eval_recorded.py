"""Protocols of recorded clips, the FID of an evaluation, and scores of what other programs measured."""

import types

import numpy as np
import pytest

from avatar_jax.errors import UserError
from avatar_jax.eval import evaluation, faces, tables
from avatar_jax.eval.distributions import frechet_distance
from avatar_jax.eval.estimators import Estimators, Network
from avatar_jax.eval.measured import measured_scores
from avatar_jax.eval.options import ProtocolConfig
from avatar_jax.eval.protocols import run_case
from avatar_jax.eval.recorded import cross_case, own_case, paper_frames
from avatar_jax.eval.sync import sync_scores
from avatar_jax.ops.coefficients import SLICES
from avatar_jax.types import Frames
from data_pipelines import test_people as people
from data_pipelines.tables import ClipTable

SIZE, LENGTH = 16, 8


class Clips:
    """Three people, the first with two clips; pictures show clip, camera and frame as grey levels."""

    def __init__(self, cameras=1, yaw=0.0):
        rng = np.random.default_rng(0)
        counts = np.full(4, LENGTH)
        motion = rng.normal(0, 0.1, (4 * cameras * LENGTH, 70)).astype(np.float32)
        motion[:, 65] = np.tile(np.repeat(yaw + 0.6 * np.arange(cameras), LENGTH), 4)  # the yaw as each camera sees it
        self.has_masks, self.cameras = False, cameras
        self.table = ClipTable(
            name=np.array(['a#0', 'a#1', 'b', 'c']),
            person=np.array([0, 0, 1, 2]),
            first=np.arange(4) * cameras * LENGTH,
            num_frames=counts,
            num_cameras=np.full(4, cameras),
            motion=motion,
            fps=25.0,
        )

    def __getitem__(self, record):
        label = np.zeros(25, np.float32)
        label[0] = record
        return {
            'image': np.full((SIZE, SIZE, 3), record, np.uint8),
            'mask': np.full((SIZE, SIZE), 255, np.uint8),
            'label': label,
            'landmarks': np.full((68, 2), record, np.float32),
            'shape': np.full(80, record, np.float32),
        }


def items(source=None, count=9, **options):
    config = ProtocolConfig(resolution=SIZE, frames=4, **options)
    return people.clip_items(Clips() if source is None else source, count, config)


def seen(views):
    """Numbers of the records that views show."""
    return [int(k) for k in views.labels[:, 0]]


def test_own_motion():
    found = items()
    assert [i.name for i in found] == ['a#0', 'b', 'c']
    case = found[1].make()
    assert seen(case.source) == [16] and not case.cross
    assert seen(case.driven) == [17, 19, 21, 23] and case.driven.mask is None
    np.testing.assert_array_equal(case.portrait.shape, np.full(80, 16))
    assert (case.source.windows == case.source.windows[:, :1]).all()


def test_which_frames_are_the_portraits():
    assert [paper_frames(60, n) for n in (1, 2, 3, 4)] == [[0], [0, 59], [0, 30, 59], [0, 18, 36, 59]]
    with pytest.raises(UserError, match='takes 1 to 4'):
        paper_frames(60, 5)
    with pytest.raises(UserError, match='not that many different'):
        paper_frames(3, 4)
    case = items(portraits=3, rule='paper')[1].make()
    assert [int(p.camera.label[0]) for p in case.portraits] == [16, 20, 23]
    spread = items(portraits=3)[1].make()
    assert [int(p.camera.label[0]) for p in spread.portraits] == [16, 18, 22]


def test_another_person_drives():
    found = items(kind='cross', driver='c')
    assert [i.name for i in found] == ['a#0', 'b'], 'nobody drives themselves'
    case = found[0].make()
    assert case.cross and seen(case.source) == [0] and set(seen(case.driven)) <= set(range(24, 32))
    assert case.name == 'a#0-by-c'
    np.testing.assert_allclose(case.real[:, 0, 0, 0], np.array([0, 2, 5, 7]) / 127.5 - 1, atol=1e-6)
    ring = items(kind='cross')
    assert [seen(i.make().driven)[0] // LENGTH for i in ring] == [2, 3, 0], 'each by the next'
    for options, text in (
        ({'kind': 'cross', 'driver': 'd'}, 'no such clip'),
        ({'driver': 'c'}, '--protocol cross only'),
        ({'kind': 'views', 'portraits': 2}, 'first frontal frame'),
        ({'kind': 'views'}, 'one camera each'),
        ({'kind': 'all'}, 'use one of own, cross, views'),
    ):
        with pytest.raises(UserError, match=text):
            items(**options)


def test_many_cameras_see_what_follows():
    """The frontal camera is the second one; all three see the frames that follow."""
    case = items(Clips(cameras=3, yaw=-0.6), kind='views')[1].make()
    first = 16 * 3
    assert seen(case.source) == [first + LENGTH]
    assert seen(case.driven)[:3] == [first + 1, first + LENGTH + 1, first + 2 * LENGTH + 1] and len(case.driven) == 12
    with pytest.raises(UserError, match='is of recorded clips'):
        people.items_of(None, 'test', 2, 0, ProtocolConfig(kind='cross'), types.SimpleNamespace(basis='procedural'))


# ------------------------------------------------------------------------------------------------------- scores


def level(images, _landmarks=None):
    return np.asarray(images, np.float32).mean((1, 2))


def coefficients(images, landmarks):
    out = np.zeros((len(images), 257), np.float32)
    out[:, SLICES['exp'].start] = level(images)[:, 0]
    return out


LOOKING = Estimators(
    coefficients=Network('stand-in: levels', coefficients),
    identity=Network('levels', lambda x, lm: level(x) + 2),
    inception=Network('levels', level),
    missing=(('lpips', 'not here'), ('landmarks', 'none'), ('units', 'none'), ('head', 'none')),
)


def shows_the_portrait(avatar, windows, labels):
    return Frames(rgb=np.repeat(np.asarray(avatar.image)[None], len(windows), 0))


def test_cross_identity_compares_with_portrait_and_driver():
    a, b = (people.recording(Clips(), k) for k in (0, 3))
    case = cross_case(a, b, 4)
    result = run_case(case, lambda portrait: portrait, shows_the_portrait, LOOKING)
    groups = {name.partition('.')[0] for name in result.scores}
    assert groups == {'source', 'cross'}, 'no picture scores where the truth is another person'
    gap = np.abs(level(case.driven.truth)[:, 0] - level(case.portrait.image[None])[0, 0])
    assert result.scores['cross.aed'] == pytest.approx(gap.mean() / 64, rel=1e-5)
    assert result.scores['cross.csim_source'] == pytest.approx(1) and 'cross.csim_truth' not in result.scores
    assert result.features['made'].shape == (4, 3) and 'cross.lpips' not in result.unavailable
    np.testing.assert_allclose(result.features['real'], level(case.real))


def test_an_evaluation_has_a_fid_and_says_what_it_is_worth(tmp_path):
    clips = [people.recording(Clips(), k) for k in (0, 2, 3)]
    todo = [evaluation.TestItem(c.name, lambda c=c: own_case(c, 4)) for c in clips]
    method = evaluation.Subject('shows', lambda portrait, on_step: portrait, shows_the_portrait)
    out = tmp_path / 'out'
    report = evaluation.evaluate(out, method, todo, estimators=LOOKING, sheets=False)
    made = np.concatenate([np.repeat(level(own_case(c, 4).portrait.image[None]), 4, 0) for c in clips])
    real = np.concatenate([level(own_case(c, 4).driven.truth) for c in clips])
    assert report['fid']['made'] == 12
    assert report['fid']['fid'] == pytest.approx(frechet_distance(real, made, ddof=1), rel=1e-4)
    text = (out / 'report.txt').read_text()
    assert 'fewer than 2048: biased' in text and 'AED (mean of 64), by a stand-in too weak to rank by' in text
    assert 'identity similarity to the portrait  ' in text, 'a real network needs no caveat'

    # The finished people are there; only the pictures are missing, and then other programs measure them.
    evaluation.evaluate(out, method, todo, estimators=LOOKING, sheets=False, save_frames=True)
    assert len(list((out / 'frames' / 'b' / 'made').glob('*.png'))) == 4
    assert len(list((out / 'frames' / 'b' / 'true').glob('*.png'))) == 4
    rng = np.random.default_rng(0)
    marks = rng.uniform(0, 16, (2, 4, 68, 2))
    (tmp_path / 'measured').mkdir()
    np.savez(tmp_path / 'measured' / 'b.npz', landmarks=marks[0], landmarks_true=marks[1])
    report = evaluation.evaluate(out, method, todo, estimators=LOOKING, sheets=False, measured=tmp_path / 'measured')
    assert report['mean']['measured.akd']['mean'] == pytest.approx(np.abs(marks[0] - marks[1]).mean())
    assert report['mean']['measured.akd']['count'] == 1
    assert 'Measured by other programs' in (out / 'report.txt').read_text()
    with pytest.raises(UserError, match='has no file NAME.npz'):
        evaluation.evaluate(out, method, todo, estimators=LOOKING, sheets=False, measured=tmp_path)


def test_scores_of_other_programs(tmp_path):
    rng = np.random.default_rng(1)
    arrays = {
        'expression': rng.normal(size=(4, 50)),
        'pose': rng.normal(size=(4, 3)),
        'degrees': rng.normal(0, 20, (4, 3)),
        'units': rng.uniform(size=(4, 20)),
        'embedding': rng.normal(size=(4, 512)),
        'vertices': rng.normal(size=(4, 9, 3)),
    }
    arrays |= {f'{k}_true': v + rng.normal(0, 0.1, v.shape) for k, v in arrays.items()}
    arrays['embedding_true'] = arrays['embedding_true'][:1]
    arrays['degrees'][1] = np.nan
    lips, sound = rng.normal(size=(2, 4, 1024))
    path = tmp_path / 'a.npz'
    np.savez(path, lips=lips, sound=sound, **arrays)
    found = measured_scores(path, 4)
    assert found['measured.aed'] == pytest.approx(np.abs(arrays['expression'] - arrays['expression_true']).mean())
    kept = [0, 2, 3]
    expected = faces.pose_rmse(arrays['degrees'], arrays['degrees_true'])[kept].mean()
    assert found['measured.prmse'] == pytest.approx(expected), 'frames without a face are dropped'
    same = (arrays['units'] > 0.5) == (arrays['units_true'] > 0.5)
    assert found['measured.aucon'] == pytest.approx(same.mean())
    distance = np.linalg.norm(arrays['vertices'] - arrays['vertices_true'], axis=-1)
    assert found['measured.avd'] == pytest.approx(distance.mean())
    assert found['measured.lse_c'] == pytest.approx(float(sync_scores(lips, sound).confidence))
    assert {name.partition('.')[2] for name in found} <= set(tables.TERMS), 'each has a name in the table'


@pytest.mark.parametrize(
    ('arrays', 'text'),
    [
        ({'landmark': np.zeros((4, 68, 2))}, "has an array 'landmark'; use the names"),
        ({'landmarks': np.zeros((4, 68, 2))}, 'landmarks and landmarks_true belong together'),
        ({'pose': np.zeros((3, 3)), 'pose_true': np.zeros((3, 3))}, '4 frames'),
        ({'pose': np.zeros((4, 3)), 'pose_true': np.zeros((4, 6))}, 'equal rows'),
        ({'pose': np.zeros((4, 3)), 'pose_true': np.zeros((1, 3))}, '4 frames'),
        ({}, 'holds none of'),
    ],
)
def test_files_of_other_programs_that_are_refused(tmp_path, arrays, text):
    path = tmp_path / 'a.npz'
    np.savez(path, **arrays)
    with pytest.raises(UserError, match=text) as error:
        measured_scores(path, 4)
    assert '\n' not in str(error.value)
    path.write_bytes(b'text')
    with pytest.raises(UserError, match='cannot be read'):
        measured_scores(path, 4)
