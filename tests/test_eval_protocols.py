"""The evaluation itself: a perfect method gets perfect scores, a frozen face is found out, gaps are reported."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from avatar_jax.errors import UserError
from avatar_jax.eval import cases, estimators, protocols, tables
from avatar_jax.eval.options import ProtocolConfig
from avatar_jax.eval.recorded import own_case
from avatar_jax.eval.statistics import Summary
from avatar_jax.ops.coefficients import SLICES
from avatar_jax.ops.windows import RADIUS
from avatar_jax.procedural import ProceduralHead
from avatar_jax.types import Frames, Motion
from data_pipelines.clips import evaluation_clips
from tests.recordings import recording_of

CONFIG = ProtocolConfig(resolution=48, frames=5, clip_frames=60)


@pytest.fixture(scope='module')
def clips():
    return evaluation_clips(3, seed=3, num_frames=CONFIG.clip_frames, num_cameras=3)


@pytest.fixture(scope='module')
def case(clips):
    return cases.procedural_case(clips[0], clips[1], CONFIG)


@pytest.fixture(scope='module')
def renderer(clips):
    """A method that cheats: it knows who the person is and draws them, with the driver's or the source expression."""
    from avatar_jax.procedural import render_head

    person = clips[0]

    def build(portrait):
        return portrait

    def make(keep: bool = False):
        def animate(avatar, windows, labels):
            expressions = [avatar.expression if keep else w[RADIUS, :64] for w in windows]
            heads = [
                render_head(person.identity, e, c, person.gamma, CONFIG.resolution, person.options.supersample).rgb
                for e, c in zip(expressions, labels, strict=True)
            ]
            return Frames(rgb=2 * np.stack(heads) - 1)

        return build, animate

    return make


def oracle():
    """An estimator set that reads what the test put into the pictures: mean colours stand for everything."""

    def numbers(images, _landmarks=None):
        return jnp.concatenate([images.mean((1, 2)), images.std((1, 2))], -1)

    def coefficients(images, landmarks):
        out = jnp.zeros((len(images), 257))
        return out.at[:, SLICES['exp'].start : SLICES['exp'].start + 6].set(numbers(images))

    return estimators.Estimators(
        coefficients=estimators.Network('test coefficients', coefficients),
        landmarks=estimators.Network('test landmarks', lambda x: jnp.tile(numbers(x)[:, None, :2], (1, 68, 1))),
        identity=estimators.Network('test identity', numbers),
        units=estimators.Network('test units', numbers),
        head=ProceduralHead(),
        missing=(('lpips', 'not in this test'),),
    )


@pytest.mark.slow
def test_case_is_what_it_says(case, clips):
    portrait = case.portrait
    assert portrait.image.shape == (48, 48, 3) and portrait.basis == 'procedural'
    assert len(case.driven) == 5 and case.novel_names == ('view_-30', 'view_+30')
    np.testing.assert_array_equal(portrait.camera.label, case.source.labels[0])
    np.testing.assert_array_equal(case.driven.windows[0, RADIUS, :64], clips[1].expression[0])
    assert (case.source.windows == case.source.windows[:, :1]).all()  # one picture has no neighbours in time
    assert (case.driven.windows != case.driven.windows[:, :1]).any()
    again = cases.procedural_case(clips[0], clips[1], CONFIG)
    np.testing.assert_array_equal(again.driven.truth, case.driven.truth)
    # The strongest blink of the driver is among the driven frames, and the source has open eyes.
    assert (
        case.driven.windows[:, RADIUS, cases_channel('blink_l')].max()
        == clips[1].expression[:, cases_channel('blink_l')].max()
    )
    assert portrait.expression[cases_channel('blink_l')] < 0.2
    # Unseen views: cameras about 30 degrees to the left and right of the source camera.
    position = case.source.labels[0][[3, 7, 11]] - [0, 0.006, 0.161]
    for k, sign in ((0, -1), (1, 1)):
        turned = case.novel.labels[k][[3, 7, 11]] - [0, 0.006, 0.161]
        angle = np.rad2deg(np.arctan2(turned[0], turned[2]) - np.arctan2(position[0], position[2]))
        np.testing.assert_allclose(angle, sign * 30, atol=3)


def test_frames_include_the_strongest_blink():
    blink = np.zeros(50)
    blink[17] = 1
    frames = cases.pick_frames(6, blink)
    assert 17 in frames and len(set(frames)) == 6 and (np.diff(frames) > 0).all()
    yaw = np.deg2rad(np.linspace(40, -40, 50))
    frame = cases.source_frame(yaw, blink, CONFIG)
    assert abs(np.rad2deg(yaw[frame])) <= 15 and frame != 17
    assert cases.source_frame(np.full(4, 1.0), np.array([0, 1, 1, 1.0]), CONFIG) == 0  # none is frontal


def test_several_portraits(case, clips):
    assert case.more == () and case.portraits is case.portrait
    config = dataclasses.replace(CONFIG, frames=2, portraits=3)
    several = cases.procedural_case(clips[0], clips[1], config)
    first, *more = several.portraits
    np.testing.assert_array_equal(first.image, case.portrait.image)
    assert len(more) == 2 and len({p.source for p in several.portraits}) == 3
    # From other sides, at other moments, of the same person.
    assert len({tuple(p.camera.label.tolist()) for p in several.portraits}) == 3
    assert all((p.shape == first.shape).all() and (p.expression != first.expression).any() for p in more)
    assert cases.other_frames(10, 3, 9) == [k for k in range(10) if k != 3]
    with pytest.raises(UserError, match='12 portraits wanted of a clip of 10 frames'):
        cases.other_frames(10, 3, 11)
    with pytest.raises(UserError, match='--portraits 0: must be between 1'):
        dataclasses.replace(CONFIG, portraits=0)


@pytest.mark.slow
def test_a_portrait_from_the_side(case, clips):
    config = dataclasses.replace(CONFIG, source_yaw=45.0)
    turned = cases.procedural_case(clips[0], clips[1], config)
    assert turned.novel_names == ('view_-30', 'view_+0', 'view_+30')
    # The front view is the one that was the portrait.
    np.testing.assert_array_equal(turned.novel.truth[1], case.source.truth[0])
    place, front = (c.source.labels[0][[3, 7, 11]] - [0, 0.006, 0.161] for c in (turned, case))
    angle = np.rad2deg(np.arctan2(place[0], place[2]) - np.arctan2(front[0], front[2]))
    np.testing.assert_allclose(angle, 45, atol=4)
    np.testing.assert_array_equal(turned.driven.labels, case.driven.labels)
    with pytest.raises(UserError, match='--source-yaw 120.0: must be between'):
        dataclasses.replace(CONFIG, source_yaw=120.0)


def test_steadiness():
    """A picture that brightens evenly changes and does not tremble; one that flickers does; only the head counts."""
    steps = np.arange(4, dtype=np.float32)[:, None, None, None]
    even = np.broadcast_to(-0.9 + 0.1 * steps, (4, 8, 8, 3))
    flicker = even + 0.2 * (steps % 2)
    mask = np.zeros((4, 8, 8), np.float32)
    mask[:, 2:5] = 1
    outside = np.where(mask[..., None] > 0, even, np.random.default_rng(0).normal(size=even.shape))
    scores = {}
    views = cases.TrueViews(np.zeros((4, 27, 70)), np.zeros((4, 25)), even, mask)
    protocols._steadiness(scores, flicker, views)
    np.testing.assert_allclose(scores['steady.change_truth'], 0.05, rtol=1e-5)
    np.testing.assert_allclose(scores['steady.trembling_truth'], 0, atol=1e-6)
    np.testing.assert_allclose(scores['steady.change'], (0.15 + 0.05 + 0.15) / 3, rtol=1e-5)
    np.testing.assert_allclose(scores['steady.trembling'], 0.2, rtol=1e-5)
    again = {}
    protocols._steadiness(again, outside, views)
    np.testing.assert_allclose(again['steady.change'], 0.05, rtol=1e-5)
    everywhere = {}
    protocols._steadiness(everywhere, outside, dataclasses.replace(views, mask=None))
    assert everywhere['steady.change'] > 0.1
    np.testing.assert_array_equal(cases.following_frames(10, 4), [3, 4, 5, 6])
    with pytest.raises(UserError, match='--steady 11: a clip has 10 frames'):
        cases.following_frames(10, 11)
    with pytest.raises(UserError, match='--steady 2: needs 3 to 60 frames'):
        dataclasses.replace(CONFIG, steady=2)
    with pytest.raises(UserError, match='--steady 5: is of --protocol own'):
        dataclasses.replace(CONFIG, steady=5, kind='cross')


def cases_channel(name):
    from avatar_jax.procedural import EXPRESSION_NAMES

    return EXPRESSION_NAMES.index(name)


@pytest.mark.slow
def test_a_perfect_method(case, renderer):
    case = dataclasses.replace(case, steady=case.driven)
    result = protocols.run_case(case, *renderer(), oracle(), batch=4)
    s = result.scores
    for name in ('change', 'trembling'):
        assert s[f'steady.{name}'] > 0
        np.testing.assert_allclose(s[f'steady.{name}'], s[f'steady.{name}_truth'], rtol=1e-5)
    for group in ('source', 'views', 'driven'):
        assert s[f'{group}.psnr_head'] > 100 and s[f'{group}.l1'] < 1e-6 and s[f'{group}.ssim'] > 0.9999
    assert s['driven.aed'] < 1e-5 and s['driven.akd'] < 1e-4 and s['driven.csim_truth'] > 0.9999
    assert s['driven.prmse'] < 1e-3 and s['driven.aucon'] == 1
    np.testing.assert_allclose(s['driven.avd'], s['driven.avd_floor'], atol=1e-4)
    assert s['driven.avd'] > 0 and s['source.avd'] < 1e-4
    assert s['gain.psnr_mouth_eyes_over_frozen'] > 60
    for part in ('mouth', 'eye'):
        assert s[f'control.{part}_correlation'] > 0.9999
        np.testing.assert_allclose(
            s[f'control.{part}_correlation_geometry'], s[f'control.{part}_correlation_ceiling'], atol=1e-4
        )
        assert s[f'control.{part}_correlation_ceiling'] > 0.5
    if case.eyes_shut.any():
        assert s['control.eyes_closed_share'] == 1
        assert s['control.eye_opening_shut'] < 0.3 < s['control.eye_opening_open']
    assert result.unavailable['driven.lpips'] == 'not in this test' and 'driven.lpips' not in s
    assert result.frames['mouth_opening'].shape == (5,)


@pytest.mark.slow
def test_a_frozen_face_is_found_out(case, renderer):
    perfect = protocols.run_case(case, *renderer())
    frozen = protocols.run_case(case, *renderer(keep=True))
    s = frozen.scores
    assert s['source.psnr_head'] > 100
    np.testing.assert_allclose(s['gain.psnr_mouth_eyes_over_frozen'], 0, atol=1e-3)
    np.testing.assert_allclose(s['driven.psnr_mouth_eyes'], s['frozen_truth.psnr_mouth_eyes'], rtol=1e-3)
    assert s['driven.psnr_mouth_eyes'] < 35
    assert not s['control.mouth_correlation'] > 0.6
    assert s['control.eyes_closed_share'] == 0
    for name in ('aed', 'prmse', 'aucon', 'avd'):
        assert perfect.unavailable[f'driven.{name}'] == 'no network was given for it'
    assert not any(name.endswith(('aed', 'akd', 'csim_truth', 'lpips')) for name in perfect.scores)


@pytest.mark.slow
def test_wrong_size_and_non_finite_pictures(case, renderer):
    build, animate = renderer()
    with pytest.raises(ValueError, match='renders'):
        protocols.run_case(case, build, lambda *a: Frames(rgb=animate(*a).rgb[:, ::2, ::2]))
    with pytest.raises(FloatingPointError, match='NaN'):
        protocols.run_case(case, build, lambda *a: Frames(rgb=animate(*a).rgb * np.nan))


def test_batches_are_padded_to_one_size():
    seen = []

    def animate(avatar, windows, labels):
        seen.append(len(windows))
        return Frames(rgb=windows[:, :1, :1, None] * np.ones((1, 1, 1, 3)))

    windows = np.arange(7.0)[:, None, None] * np.ones((1, 27, 70))
    rgb = protocols.animate_all(animate, None, windows, np.zeros((7, 25)), 3)
    assert seen == [3, 3, 3]
    np.testing.assert_array_equal(rgb[:, 0, 0, 0], np.arange(7))


def test_recorded_clip(case, renderer):
    motion = Motion(
        expression=case.driven.windows[:, RADIUS, :64],
        angle=case.driven.windows[:, RADIUS, 64:67],
        translation=case.driven.windows[:, RADIUS, 67:70],
        basis='procedural',
    )
    d = case.driven
    clip = own_case(recording_of('clip 1', motion, d.labels, d.truth, d.mask, d.landmarks), 3)
    assert len(clip.driven) == 3 and clip.novel is None
    np.testing.assert_allclose(clip.source.truth[0], d.truth[0], atol=1 / 255)
    result = protocols.run_case(clip, *renderer())
    assert result.scores['driven.psnr_head'] > 55, 'but for the rounding to 8 bits'
    assert not any(name.startswith(('views', 'control', 'frozen_truth')) for name in result.scores)
    assert result.scores['gain.psnr_mouth_eyes_over_frozen'] > 3
    with pytest.raises(UserError, match='nothing to drive'):
        own_case(recording_of('x', motion.frames(0, 1), d.labels[:1], d.truth[:1]), 3)


def test_protocol_options_are_checked():
    with pytest.raises(UserError, match='frames'):
        ProtocolConfig(frames=200)


def test_summary_skips_what_is_missing():
    summary = tables.summarise([{'a.x': 1.0, 'a.y': None}, {'a.x': 3.0, 'a.y': 2.0}])
    assert summary['a.x'].mean == 2 and summary['a.x'].count == 2
    assert summary['a.y'] == Summary(2.0, 2.0, 2.0, 1)


@pytest.mark.slow
def test_table_shows_scores_networks_gaps_and_failures(case, renderer):
    result = protocols.run_case(case, *renderer(keep=True), oracle())
    scores = {k: (v if np.isfinite(v) else None) for k, v in result.scores.items()}
    report = {
        'title': 'Evaluation',
        'about': {'seed': 3},
        'networks': oracle().report(),
        'mean': {k: v._asdict() for k, v in tables.summarise([scores]).items()},
        'identities': [{'name': case.name, 'scores': scores}],
        'unavailable': result.unavailable,
        'failed': [{'name': 'test identity 9', 'error': 'broken on purpose'}],
    }
    text = tables.render(report)
    for part in (
        'Reconstruction',
        'AED',
        'test coefficients',
        'lpips: not in this test',
        'broken on purpose',
        case.name,
    ):
        assert part in text, part
    assert max(map(len, text.splitlines())) < 140


def test_bank_without_weights_offers_nothing():
    from avatar_jax.losses.perception import PerceptionBank

    found = estimators.from_bank(PerceptionBank())
    assert all(text.startswith('unavailable: needs') for text in found.report().values())


@pytest.mark.slow
def test_bank_with_the_stand_ins(case):
    import jax

    from avatar_jax.losses.perception import PerceptionBank
    from avatar_jax.models.perception.head_nets import HeadCoefficients, HeadIdentity, HeadNetsConfig

    small = HeadNetsConfig(32, (4, 4), 8, 32, (4, 4), 8)
    image = jnp.zeros((1, 32, 32, 3))
    bank = PerceptionBank(head_nets=small)
    for name, module in (('head_identity', HeadIdentity(small)), ('head_coefficients', HeadCoefficients(small))):
        bank = bank.with_network(name, jax.jit(module.init)(jax.random.key(0), image), 'random, for this test')
    found = estimators.from_bank(bank)
    names = {k for k, v in found.report().items() if not v.startswith('unavailable')}
    assert names == {'coefficients', 'landmarks', 'identity', 'units', 'head'}
    assert all('stand-in' in found.report()[k] for k in names - {'head'}) and found.report()['head'] == 'procedural'
    images, marks = jnp.asarray(case.driven.truth), case.driven.landmarks
    vector = found.coefficients.call(images, marks)
    assert vector.shape == (5, 257) and jnp.abs(vector[:, SLICES['exp']]).sum() > 0
    assert found.landmarks.call(images).shape == (5, 68, 2)
    np.testing.assert_allclose(jnp.linalg.norm(found.identity.call(images, marks), axis=-1), 1, rtol=1e-4)
    arc = dataclasses.replace(found, identity=None, missing=(('identity', 'gone'),))
    assert arc.report()['identity'] == 'unavailable: gone'
