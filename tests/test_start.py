"""Inversions that start from an encoder's code, what that saves, and tuning that is chosen by options."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from avatar_jax.configure import to_plain
from avatar_jax.errors import UserError
from avatar_jax.inversion import start
from avatar_jax.inversion.saving import Course, StepClock, saving
from avatar_jax.inversion.tuning import LocalityConfig, Tuned, TuningConfig, chosen_tuning
from avatar_jax.io.weights import load_weights, save_weights
from avatar_jax.losses.perception import PerceptionBank
from avatar_jax.methods.base import Source, method
from avatar_jax.methods.model import Model
from avatar_jax.methods.nofa import model as nofa
from avatar_jax.methods.nofa.config import ModelConfig as NofaConfig
from avatar_jax.methods.otavatar import build, finetune, invert, model
from avatar_jax.methods.otavatar.holding import HoldConfig
from tests.comparison import close
from tests.nofa_tiny import variables_of
from tests.tiny_model import CONFIG, portrait, random_variables, short, tiny_variables

SHORT = short(w_steps=1, wplus_steps=2, sr_steps=2)
VARIABLES = tiny_variables()
GENERATOR = model.network(VARIABLES, 'generator')
PICTURES = np.stack([portrait(i).image for i in range(2)])
HEADS = {'data': {'source': 'heads'}}  # provenance of weights that know procedural heads


def nofa_file(path, config=None, generator=None):
    """A weight file with an encoder."""
    config = NofaConfig.tiny() if config is None else config
    variables = variables_of(config)
    if generator is not None:
        variables = nofa.with_network(variables, 'generator', generator)
    nofa.save_model(path, variables, config, {})
    return str(path)


@pytest.fixture(scope='module')
def file(tmp_path_factory):
    """Weights whose generator was trained further: all but its mapping network is another one."""
    moved = jax.tree_util.tree_map_with_path(
        lambda path, x: x if any(p.key == 'mapping' for p in path) else 1.5 * x, GENERATOR
    )
    return nofa_file(tmp_path_factory.mktemp('encoder') / 'weights.safetensors', generator=moved)


@pytest.mark.slow
def test_codes_are_those_of_the_encoder(file):
    encoder = start.load_encoder(file, CONFIG.generator, GENERATOR)
    variables, config, sha256, _ = nofa.load_model(file)
    rows = jax.jit(nofa.style_rows, static_argnums=1)(variables, config, PICTURES)
    assert encoder.sha256 == sha256
    devices = jax.local_devices()[:1]
    codes, seconds = start.first_codes(encoder, PICTURES, 'w+', devices)
    close(codes, rows, atol=1e-5, what='W+')
    assert seconds > 0
    together, _ = start.first_codes(encoder, PICTURES[None], 'w+', devices)  # two pictures of one person
    close(together, np.asarray(rows).mean(0, keepdims=True), atol=1e-5, what='mean of both')
    codes, _ = start.first_codes(encoder, PICTURES, 'w', devices)
    close(codes, np.repeat(np.asarray(rows).mean(1, keepdims=True), rows.shape[1], 1), atol=1e-5, what='W')


@pytest.mark.slow
def test_an_inversion_goes_on_from_the_encoder(file):
    """All its steps move a code by no more than their rates, so it says where they began."""
    owner = Model(method('otavatar'), SHORT, VARIABLES, 'abc')
    encoder = start.load_encoder(file, CONFIG.generator, GENERATOR)
    people, found = [Source([portrait(i)]) for i in range(2)], {}
    for kind, options in {'mean': {}, 'encoder': {'start': 'encoder', 'encoder': file}}.items():
        found[kind] = owner.build_many(people, bank=PerceptionBank(), **options)
    rows = np.asarray(jax.jit(start.encoded_rows)(encoder, PICTURES))
    way = 4 * SHORT.settings.optimizers.codes.lr
    for i, (usual, better) in enumerate(zip(*found.values(), strict=True)):
        assert np.abs(usual.avatar.identity['code'] - model.w_avg(VARIABLES)).max() < way
        assert np.abs(better.avatar.identity['code'] - rows[i]).max() < way < np.abs(rows[i]).max() / 2
        report = better.report['inversion']
        assert (report['start'], report['encoder'], report['steps']) == ('encoder', encoder.sha256, 3)
        assert report['seconds'] > 0 and report['seconds_before'] > 0
        assert usual.report['inversion']['start'] == 'mean' and usual.report['inversion']['seconds_before'] == 0
        assert len(better.course.loss) == len(better.course.seconds) == 3
        # In W all rows are one; the differences of the encoder's are left out.
    flat = owner.build(people[0], bank=PerceptionBank(), space='w', steps=1, start='encoder', encoder=file)
    code = np.asarray(flat.avatar.identity['code'])
    assert np.abs(code - code[0]).max() < 1e-6 and np.abs(code[0] - rows[0].mean(0)).max() < way


@pytest.mark.slow
def test_the_forward_pass_is_the_code_of_the_encoder(file):
    """``invert --fast``: nothing is searched or fitted."""
    owner = Model(method('otavatar'), SHORT, VARIABLES, 'abc', HEADS)
    options, steps = owner.method.forward_options({'encoder': file}), []
    assert options['start'] == 'encoder' and owner.steps(**options) == 1
    people = [portrait(0), [portrait(0), portrait(1)]]
    built, both = owner.build_many(people, bank=PerceptionBank(), on_step=lambda n: steps.append(n), **options)
    rows = jax.jit(start.encoded_rows)(start.load_encoder(file, CONFIG.generator, GENERATOR), PICTURES)
    close(built.avatar.identity['code'], rows[0], atol=1e-5, what='code')
    close(both.avatar.identity['code'], rows.mean(0), atol=1e-5, what='mean code')
    assert len(both.report['each_portrait']) == 2
    assert steps == [1] and built.course is None and built.curves['loss'].size == 0
    assert built.report['inversion']['stages'] == [] and not built.report['tuning']['tuned']
    assert np.isfinite(built.scores['psnr_in_mask']) and built.views.shape == (3, 32, 32, 3)


def test_which_methods_have_a_forward_pass():
    for name, given, options in (
        ('gpavatar', {}, {}),
        ('hidenerf', {}, {}),
        ('nofa', {}, {'tune': 'none', 'pivot': 'encoder'}),
        ('nofa', {'tune': 'none', 'portion': 2}, {'tune': 'none', 'pivot': 'encoder', 'portion': 2}),
        ('otavatar', {'encoder': 'a'}, {'start': 'encoder', 'steps': 0, 'tune': 'none', 'encoder': 'a'}),
    ):
        assert method(name).forward_options(given) == options
    for name, given, text in (
        ('hfagp', {}, '--fast: HFA-GP has no forward pass; choose another --method (gpavatar, hidenerf, nofa)'),
        ('otavatar', {}, '--fast: OTAvatar has no forward pass without --encoder FILE; add that, or choose another'),
        ('nofa', {'tune': 'generator'}, '--fast: --tune generator is more than a forward pass; leave one of them out'),
    ):
        with pytest.raises(UserError) as error:
            method(name).forward_options(given)
        assert text in str(error.value) and '\n' not in str(error.value)


def test_encoders_that_do_not_fit_are_named(file, tmp_path):
    def load(path):
        return start.load_encoder(path, CONFIG.generator, GENERATOR)

    with pytest.raises(UserError, match='other.safetensors: its encoder was trained for another generator'):
        load(
            nofa_file(tmp_path / 'other.safetensors', generator=model.network(random_variables(CONFIG, 1), 'generator'))
        )
    # The sizes are looked at before the numbers: any will do.
    tiny, numbers = NofaConfig.tiny(), load_weights(file).variables
    for changes, text in (
        ({'plane_resolution': 32}, 'its encoder gives 8 style rows, but the generator takes 6; give one'),
        ({'img_resolution': 64}, 'its encoder is for pictures of 64 pixels, but the weights make 32; give one'),
        ({'w_dim': 8}, 'its style rows have 8 numbers, the generator takes 16'),
    ):
        config = tiny.to_dict() | {'generator': to_plain(tiny.generator.replace(**changes))}
        save_weights(tmp_path / 'sizes.safetensors', numbers, method='nofa', config=config, provenance={})
        with pytest.raises(UserError, match=text):
            load(tmp_path / 'sizes.safetensors')
    model.save_model(tmp_path / 'none.safetensors', VARIABLES, CONFIG, {})
    with pytest.raises(UserError, match="holds weights of 'otavatar' without an encoder and its generator"):
        load(tmp_path / 'none.safetensors')
    with pytest.raises(UserError, match='missing.safetensors'):
        load(tmp_path / 'missing.safetensors')
    steps = Model(method('otavatar'), SHORT, VARIABLES).steps
    for options, text in (
        ({'start': 'encoder'}, '--start encoder: which one? Give --encoder FILE'),
        ({'steps': 0}, '--steps 0: no code is searched; give 1 or more, or add --start encoder'),
        ({'encoder': 'a'}, '--encoder a: is read with --start encoder only'),
        ({'fit_steps': 3}, '--fit-steps 3: nothing is fitted'),
        ({'locality': 0.1}, '--locality 0.1: nothing is fitted'),
        ({'fit_stop': 30.0}, '--fit-stop 30: nothing is fitted'),
        ({'hold': 1.0}, '--hold 1: nothing is fitted; leave it out, or add --tune generator'),
        ({'tune': 'generator', 'fit_steps': 0}, '--fit-steps 0: must be at least 1'),
        ({'tune': 'generator', 'locality': -1.0}, '--locality -1.0: must not be negative'),
    ):
        with pytest.raises(UserError) as error:
            steps(**options)
        assert text in str(error.value) and '\n' not in str(error.value)
    assert steps() == 3 and steps(tune='generator') == 53 and steps(tune='generator', fit_steps=4) == 7
    heads = Model(method('otavatar'), SHORT, VARIABLES, 'abc', HEADS).steps
    assert (
        heads(tune='auto') == 53 and heads(tune='auto', fit_steps=4, hold=0.5) == 7 and heads(tune='auto', steps=2) == 4
    )


# -------------------------------------------------------------------------------------------------------------- saving


def test_what_a_start_saves():
    usual = Course(np.array([8.0, 4.0, 2.0, 1.0, 1.5]), np.full(5, 2.0))
    better = Course(np.array([3.0, 1.0, 0.5, np.nan]), np.full(4, 2.0), before=0.5)
    found = saving(usual, better)
    assert (found['steps_usual'], found['steps_better'], found['steps']) == (3, 1, 2)
    assert (found['seconds_usual'], found['seconds_better'], found['seconds']) == (6.0, 2.5, 3.5)
    assert found['reached'] == 1 and found['loss_last_better'] == 0.5
    assert better.report() == {'steps': 3, 'seconds': 6.0, 'seconds_before': 0.5}
    never = saving(better, usual)
    assert never['reached'] == 0 and np.isnan(never['steps']) and np.isnan(never['seconds'])
    assert never['steps_usual'] == 2


def test_compilation_does_not_count():
    clock = StepClock()
    for seconds in (60.0, 2.0, 4.0, 3.0):
        clock.add('a', 10, seconds)
    clock.add('b', 5, 1.0)
    close(clock.per_step(), [0.3] * 10 + [0.2] * 10 + [0.4] * 10 + [0.3] * 10 + [0.2] * 5, rtol=1e-6, what='seconds')
    assert clock.total == 70.0


# -------------------------------------------------------------------------------------------------------------- tuning


def test_options_of_a_fit():
    base = TuningConfig('generator', 9, locality=LocalityConfig(radius=3.0))
    assert chosen_tuning(base) == base
    found = chosen_tuning(base, 'generator', 4, 31.5, 0.2)
    assert (found.steps, found.stop_term, found.stop_below) == (4, 'negative_psnr', -31.5)
    assert (found.locality.weight, found.locality.radius) == (0.2, 3.0)
    assert chosen_tuning(base, 'none').tune == 'none'
    with pytest.raises(UserError, match='--locality 0.1: it compares generators'):
        chosen_tuning(base, 'compensation', locality=0.1)


@pytest.mark.slow
def test_people_are_tuned_side_by_side_and_stop_by_themselves():
    people, bank, calls = [portrait(0), portrait(1)], PerceptionBank(), []
    found = invert.invert_people(VARIABLES, SHORT, people)
    psnr = [float(f.psnr) for f in found]
    # A rule that the better one meets at once.
    options = {'tune': 'generator', 'fit_steps': 3, 'fit_stop': max(psnr) - 0.05, 'locality': 0.1}
    settings = build.fit_of(Model(method('otavatar'), SHORT, VARIABLES), method('otavatar').options(options))
    settings = dataclasses.replace(settings, locality=LocalityConfig(0.1, 1.0))
    tuned = finetune.tune_people(
        VARIABLES, SHORT, people, found, bank, None, settings, on_step=lambda done, loss: calls.append(done)
    )
    assert calls == [3]
    for one, before in zip(tuned, found, strict=True):
        steps, seen = int(one.tuned.steps), np.asarray(one.tuned.terms['negative_psnr'])
        met = [k for k in range(steps) if seen[k] < settings.stop_below]
        assert bool(one.tuned.stopped) == bool(met) and steps == (met[0] + 1 if met else 3)
        assert {'locality', 'sr/pixel'} <= set(one.tuned.terms) and one.seconds > 0
        np.testing.assert_array_equal(one.inversion.avatar.identity['code'], before.avatar.identity['code'])
        close(-seen[0], before.psnr, rtol=1e-3, what='first step')
        assert float(one.tuned.curve[steps - 1]) <= float(one.tuned.curve[0])
        assert float(jnp.abs(one.inversion.image - before.image).max()) > 0
    first = psnr.index(max(psnr))
    assert int(tuned[first].tuned.steps) == 1 < int(tuned[1 - first].tuned.steps)


def test_who_is_fitted_without_being_asked():
    """Those whom the code alone shows badly, with weights of procedural heads: of these, photographs."""
    heads = Model(method('otavatar'), SHORT, VARIABLES, 'abc', {'data': 'fast_heads, split train'})
    others = dataclasses.replace(heads, provenance={'data': {'source': 'built'}})
    limit = build.REACHED

    def found(mask, whole=40.0):
        return invert.Inversion(None, [], None, None, {}, np.float32(whole), np.float32(0), np.float32(mask))

    def asked(owner, one, **options):
        return build.whether_to_fit(owner, owner.options(options), one)

    wanted, why = asked(heads, found(limit - 1))
    assert wanted and f'{limit - 1:.1f} dB in the mask, under {limit:g}' in why
    assert not asked(heads, found(limit + 1))[0] and asked(heads, found(np.nan, limit - 1))[0]
    wanted, why = asked(others, found(limit - 1))
    assert not wanted and 'do not say that they were trained on procedural heads' in why
    assert not asked(heads, found(0.0), steps=20)[0] and not asked(heads, found(0.0), space='w')[0]
    assert asked(others, found(99.0), tune='generator') == (True, '--tune generator')
    assert not asked(heads, found(0.0), tune='none')[0] and heads.options({}).tune == 'auto'
    assert method('otavatar').evaluation_options == {'tune': 'none'}  # figures stay those of the code alone


def test_only_those_are_fitted_whom_the_code_does_not_show(monkeypatch):
    """Of a group: one at a time, held, with what was decided and why in the report and in a sentence."""
    owner = Model(method('otavatar'), SHORT, VARIABLES, 'abc', HEADS)
    scores, calls, seen = {'a': build.REACHED + 1, 'b': build.REACHED - 1}, [], {}

    def found(score):
        number = np.float32(score)
        return invert.Inversion(None, [], None, None, {}, number, number, number)

    def tuned(variables, config, portraits, inverted, bank, key, settings, hold, *, on_step, portion):
        seen.update(names=[p.source for p in portraits], portion=portion, hold=hold, steps=settings.steps)
        on_step(settings.steps)
        result = Tuned({}, np.zeros(2), {}, np.int32(2), np.bool_(False))
        return [finetune.TunedPerson(found(40.0), result, 1.0) for _ in portraits]

    monkeypatch.setattr(invert, 'invert_people', lambda *a, **b: [found(s) for s in scores.values()])
    monkeypatch.setattr(finetune, 'tune_people', tuned)
    people = [portrait(i).replace(source=name) for i, name in enumerate(scores)]
    options = {'fit_steps': 2}
    one, other = owner.build_many(people, bank=PerceptionBank(), on_step=lambda n, **_: calls.append(n), **options)
    assert seen == {'names': ['b'], 'portion': 1, 'hold': HoldConfig().times(build.AUTO_HOLD), 'steps': 2}
    assert calls == [owner.steps(**options)] == [5]
    assert not one.report['tuning']['tuned'] and one.scores['psnr'] == build.REACHED + 1
    assert other.report['tuning']['tuned'] and other.report['tuning']['psnr_before'] == build.REACHED - 1
    assert other.scores['psnr'] == 40 and other.report['tuning']['hold'] == build.AUTO_HOLD
    assert not any('was fitted to it' in note for note in one.notes)
    assert any(note.startswith('b: the code alone shows') and '--tune none' in note for note in other.notes)
