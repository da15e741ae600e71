"""Several pictures of one person make one avatar of OTAvatar: one code, and each picture's own camera and motion."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from avatar_jax.cli import main
from avatar_jax.errors import UserError
from avatar_jax.faces.camera_labels import canonical_label, yaw_label
from avatar_jax.inversion.tuning import Tuned
from avatar_jax.io.images import to_uint8
from avatar_jax.losses.perception import PerceptionBank
from avatar_jax.methods.base import Source, method
from avatar_jax.methods.model import Model, load_avatar
from avatar_jax.methods.otavatar import build, finetune, invert, model
from avatar_jax.methods.otavatar.holding import turned
from avatar_jax.methods.otavatar.several import alike, compared, mean_loss, stack_portraits, yaw_of
from tests.tiny_model import portrait, short, tiny_variables

VARIABLES, CONFIG = tiny_variables(), short(w_steps=3, wplus_steps=0, sr_steps=3)
BANK = PerceptionBank()
FRONT, SIDE = (portrait(i).replace(source=f'{i}.png', basis='procedural') for i in (1, 4))


def owner(config=CONFIG):
    return Model(method('otavatar'), config, VARIABLES, 'abc', {})


@jax.jit
def mean_of(person, code, bias):
    """Mean loss of a stacked person's pictures and its gradient."""

    def loss(code, bias):
        problem = invert.pose_problem(VARIABLES, CONFIG, person, BANK)
        return invert.loss_of(VARIABLES, CONFIG, problem, BANK, False)(code, bias, jax.random.key(0), True)

    return jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)(code, bias)


def stacked(*pictures):
    return jax.tree.map(lambda x: x[0], stack_portraits([pictures]))


# --------------------------------------------------------------------------------------------------------- the parts


def test_the_mean_loss_and_its_gradient():
    pictures = {'a': jnp.asarray([1.0, 2.0, 4.0]), 'b': jnp.asarray([[1.0], [0.0], [2.0]])}

    def one(picture, moving, key):
        noise = jax.random.uniform(key)
        loss = jnp.sin(moving['w'] * picture['a']).sum() + noise * (moving['v'] * picture['b']).sum()
        return loss, {'loss': loss, 'noise': noise}

    def plain(moving, key):
        rows = [jax.tree.map(lambda x, i=i: x[i], pictures) for i in range(3)]
        return sum(one(row, moving, jax.random.fold_in(key, i))[0] for i, row in enumerate(rows)) / 3

    moving, key = {'w': jnp.arange(4.0), 'v': jnp.float32(0.5)}, jax.random.key(2)
    many = jax.tree.map(lambda x: jnp.stack([x, 2 * x]), moving)

    @jax.jit
    @jax.vmap
    def both(moving):
        (loss, terms), grads = jax.value_and_grad(mean_loss(one, pictures), has_aux=True)(moving, key)
        return loss, terms, grads, *jax.value_and_grad(plain)(moving, key)

    loss, terms, grads, wanted, wanted_grads = both(many)
    np.testing.assert_allclose(loss, wanted, rtol=1e-6)
    np.testing.assert_allclose(terms['loss'], wanted, rtol=1e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), grads, wanted_grads)
    assert not np.allclose(loss[0], loss[1]) and 0 < terms['noise'][0] < 1
    np.testing.assert_allclose(mean_loss(one, pictures)(moving, key)[0], wanted[0], rtol=1e-6)


def test_many_pictures_need_the_memory_of_one():
    def one(picture, moving, key):
        wide = jnp.tanh(jnp.outer(moving, picture) + 1)
        loss = jnp.square(jnp.sin(wide) @ wide.T).mean()
        return loss, {'loss': loss}

    def bytes_of(count):
        gradient = jax.jit(lambda pictures, w, key: jax.grad(mean_loss(one, pictures), has_aux=True)(w, key)[0])
        lowered = gradient.lower(jnp.zeros((count, 300)), jnp.zeros(400), jax.random.key(0))
        return lowered.compile().memory_analysis().temp_size_in_bytes

    assert bytes_of(2) > 4 * 300 * 400 and bytes_of(8) < 1.1 * bytes_of(2)


def test_people_are_stacked_with_those_of_as_many_pictures():
    bare = portrait(2).replace(landmarks=None, expression=None, mask=None)
    people = [FRONT, (FRONT, SIDE), (FRONT, bare), (SIDE, SIDE), (SIDE, FRONT, SIDE)]
    assert alike(people) == [[0], [1, 3], [2], [4]]
    both = stack_portraits([people[1], people[3]])
    assert both.image.shape == (2, 2, 32, 32, 3) and both.landmarks.shape == (2, 2, 68, 2) and both.mask is None
    first, second = compared(people[2])
    assert first.landmarks is None and first.expression is not None and not second.expression.any()
    assert compared(bare) == (bare,), 'what is not known of a single portrait stays so'


def test_where_cameras_stand():
    np.testing.assert_allclose(yaw_of(FRONT.replace(camera=SIDE.camera)) - yaw_of(FRONT), np.rad2deg(0.3), atol=0.5)
    left, right, front = (jnp.asarray(yaw_label(canonical_label(), np.float32(a))) for a in (-0.4, 0.4, 0.0))
    np.testing.assert_allclose(turned(left, front), np.rad2deg(0.4), atol=0.1)
    assert float(turned(left, right)) < 0.2, 'the other portrait shows what the mirror image would tell'


def test_more_portraits_than_it_takes_are_refused():
    with pytest.raises(UserError, match='me: OTAvatar takes at most 8 portraits of one person, not 9; leave some out'):
        owner().build(Source([FRONT] * 9, name='me'))
    assert method('otavatar').takes_portraits and not method('otavatar').joins_portraits
    assert method('gpavatar').joins_portraits


def test_who_is_fitted_goes_by_the_mean_of_all():
    limit = build.REACHED
    each = tuple({'psnr': np.float32(9), 'psnr_mask': np.float32(v)} for v in (limit + 4, limit - 5))
    found = invert.Inversion(None, [], None, None, {}, np.float32(9), np.float32(9), np.float32(limit + 4), each=each)
    heads = Model(method('otavatar'), CONFIG, VARIABLES, 'abc', {'data': 'fast_heads, split train'})
    wanted, why = build.whether_to_fit(heads, heads.options({}), found)
    assert wanted and f'shows the 2 portraits at an average of {limit - 0.5:.1f} dB in the mask, under' in why


# ------------------------------------------------------------------------------------------------------------ avatars


@pytest.mark.slow
def test_copies_of_a_picture_have_its_loss_and_gradient():
    code, bias = invert.first_code(VARIABLES, CONFIG)
    code = code + 0.1 * jax.random.normal(jax.random.key(1), code.shape)
    (one, terms), grads = mean_of(jax.tree.map(lambda x: x[0], stack_portraits([FRONT])), code, bias)
    (three, same), others = mean_of(stacked(FRONT, FRONT, FRONT), code, bias)
    np.testing.assert_allclose(three, one, rtol=1e-5)
    assert terms.keys() == same.keys()
    for a, b in zip(grads, others, strict=True):
        np.testing.assert_allclose(b, a, rtol=1e-3, atol=1e-5 * float(jnp.abs(a).max()))


@pytest.mark.slow
def test_an_avatar_of_two_pictures_is_better_at_both():
    config = short(w_steps=40, wplus_steps=0, sr_steps=40)
    found = invert.invert_people(VARIABLES, config, [FRONT, (FRONT, SIDE), SIDE])
    both = stacked(FRONT, SIDE)
    losses = [float(mean_of(both, *(one.avatar.identity[k] for k in ('code', 'bias')))[0][0]) for one in found]
    assert losses[1] < 0.98 * min(losses[0], losses[2]), losses
    assert not found[0].each and len(found[1].each) == 2
    assert float(found[1].each[0]['psnr']) == float(found[1].psnr) != float(found[1].each[1]['psnr'])
    assert found[1].avatar.source == '1.png, 4.png' and found[1].views.shape == (3, 32, 32, 3)
    np.testing.assert_array_equal(found[1].avatar.camera.label, FRONT.camera.label)
    # The reported terms are means at the final code, and those of the last step but one update before.
    total = sum(float(v) for v in found[1].terms.values())
    np.testing.assert_allclose(total, losses[1], rtol=0.02)


@pytest.mark.slow
def test_a_list_of_one_picture_is_that_picture():
    alone, listed = (owner().build(one, bank=BANK, tune='none') for one in (FRONT, Source([FRONT], 'portraits')))
    jax.tree.map(np.testing.assert_array_equal, alone.avatar, listed.avatar)
    np.testing.assert_array_equal(alone.views, listed.views)
    assert alone.scores == listed.scores and alone.report.keys() == listed.report.keys()
    assert 'each_portrait' not in alone.report and 'psnr_mean' not in alone.scores


@pytest.mark.slow
def test_people_with_several_pictures_side_by_side_and_fitted():
    """Each picture has its figures, before and after the fit."""
    options = {'tune': 'generator', 'fit_steps': 4, 'hold': 1.0, 'bank': BANK}
    both, turned_about = owner().build_many([[FRONT, SIDE], [SIDE, FRONT]], **options)
    first, second = both.report['each_portrait']
    assert (first['name'], second['name']) == ('1.png', '4.png') and json.dumps(both.report)
    assert first['psnr'] == both.scores['psnr'] and first['psnr_before'] == both.report['tuning']['psnr_before']
    np.testing.assert_allclose(both.scores['psnr_mean'], (first['psnr'] + second['psnr']) / 2)
    assert both.scores['psnr_mean'] > (first['psnr_before'] + second['psnr_before']) / 2, 'the fit saw both'
    assert both.report['yaw'] == [first['yaw'], second['yaw']] and 15 < second['yaw'] - first['yaw'] < 20
    assert {'hold/shape', 'hold/mirror', 'sr/pixel'} <= set(both.report['tuning']['terms'])
    assert both.report['tuning']['loss'][-1] < both.report['tuning']['loss'][0]
    # Only which picture is the avatar's own depends on their order.
    np.testing.assert_allclose(turned_about.report['tuning']['loss'], both.report['tuning']['loss'], rtol=1e-2)
    np.testing.assert_array_equal(turned_about.avatar.camera.label, SIDE.camera.label)


def test_every_picture_is_fitted(monkeypatch):
    """What is handed to the fit, without computing it."""
    seen = {}

    def found(*args, **options):
        zero = np.float32(20)
        each = tuple({'psnr': np.float32(v), 'psnr_mask': np.float32(np.nan)} for v in (10, 20))
        return [invert.Inversion(None, [], None, None, {}, zero, zero, np.float32(np.nan), each=each)]

    def tuned(variables, config, portraits, inverted, *rest, **options):
        seen['people'] = portraits
        result = Tuned({}, np.zeros(2), {}, np.int32(2), np.bool_(False))
        return [finetune.TunedPerson(found()[0], result, 1.0) for _ in portraits]

    monkeypatch.setattr(invert, 'invert_people', found)
    monkeypatch.setattr(finetune, 'tune_people', tuned)
    bare = SIDE.replace(landmarks=None, source='')
    config = model.ModelConfig.tiny('release')
    built = owner(config).build([FRONT, bare], bank=BANK, tune='generator', fit_steps=2)
    assert seen['people'] == [(FRONT, bare)]
    assert [p['name'] for p in built.report['each_portrait']] == ['1.png', 'portrait 2']
    assert built.scores['psnr_mean'] == 15 and np.isnan(built.scores['psnr_in_mask_mean'])
    assert any('1.png: the local term' in n and 'not all 2 portraits have 68 landmarks' in n for n in built.notes)


# ------------------------------------------------------------------------------------------------------------ command


@pytest.mark.slow
def test_the_command_makes_one_avatar_of_two_pictures(tmp_path, capsys):
    weights, broken = tmp_path / 'tiny.safetensors', tmp_path / 'broken.png'
    model.save_model(weights, VARIABLES, CONFIG, {'seed': 0})
    files = [tmp_path / 'a.png', tmp_path / 'b.png']
    for file, one in zip(files, (FRONT, SIDE), strict=True):
        Image.fromarray(to_uint8(one.image)).save(file)
    broken.write_bytes(b'no picture')
    how = ['--weights', str(weights), '--out', str(tmp_path / 'out'), '--aligned', '--background', 'keep']

    def invert_command(*arguments):
        status = main(['invert', *how, '--image', *map(str, arguments)])
        return status, capsys.readouterr()

    status, said = invert_command(*files, broken, '--one-person', '--steps', '3', '--space', 'w')
    assert status == 2 and '1 of 3 inputs were skipped' in said.err and 'broken.png' in said.err
    assert 'dB to the first of 2 portraits' in said.out
    summary = json.loads((tmp_path / 'out' / 'report.json').read_text())
    assert [(a['name'], a['portraits']) for a in summary['avatars']] == [('a', 2)]
    report = json.loads((tmp_path / 'out' / 'a' / 'report.json').read_text())
    assert [one['name'] for one in report['each_portrait']] == ['a.png', 'b.png']
    assert set(report['provenance']['sources']) == {'a.png', 'b.png'}
    assert load_avatar(tmp_path / 'out' / 'a').identity['code'].shape[0] == CONFIG.generator.num_ws
    for arguments, text in (
        ([*files * 5, '--one-person'], '--one-person: OTAvatar takes at most 8 portraits of one person, not 10'),
        ([*files, '--one-person', '--share', '1/2'], '--share 1/2: one avatar of all pictures is made; leave it out'),
        ([*files, '--one-person', '--landmarks', 'x.npy'], '--landmarks: 1 files for 2 images; give one for each'),
    ):
        status, said = invert_command(*arguments)
        assert status == 2 and text in said.err and 'Traceback' not in said.err, said.err
    assert main(['invert', '--method', 'hidenerf', '--image', 'a', 'b', '--out', str(tmp_path), '--one-person']) == 2
    assert '--one-person: hidenerf rebuilds a person from one picture; use --method gpavatar' in capsys.readouterr().err


def test_an_evaluation_with_several_portraits():
    from avatar_jax.eval.options import ProtocolConfig

    ProtocolConfig(portraits=3).check_method(method('otavatar'))
    with pytest.raises(UserError, match='--portraits 9: OTAvatar takes at most 8 portraits of one person'):
        ProtocolConfig(portraits=9).check_method(method('otavatar'))
