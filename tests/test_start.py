"""Inversions that start from an encoder's code, what that saves, and tuning that is chosen by options."""

import dataclasses

import jax
import numpy as np
import pytest

from avatar_jax.errors import UserError
from avatar_jax.inversion import start
from avatar_jax.inversion.saving import Course, StepClock, saving
from avatar_jax.inversion.tuning import LocalityConfig, TuningConfig, chosen_tuning
from avatar_jax.losses.perception import PerceptionBank
from avatar_jax.methods.base import Source, method
from avatar_jax.methods.model import Model
from avatar_jax.methods.nofa import model as nofa
from avatar_jax.methods.nofa.config import ModelConfig as NofaConfig
from avatar_jax.methods.otavatar import build, finetune, invert, model
from tests.comparison import close
from tests.nofa_tiny import variables_of
from tests.tiny_model import portrait, random_variables

CONFIG = model.ModelConfig.tiny('release')
SHORT = dataclasses.replace(
    CONFIG,
    settings=CONFIG.settings.replace(
        inversion__w_steps=1, inversion__wplus_steps=2, inversion__sr_steps=2, loss__local=0.0
    ),
)
VARIABLES = random_variables(CONFIG)
GENERATOR = model.network(VARIABLES, 'generator')
PICTURES = np.stack([portrait(i).image for i in range(2)])


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
    rows = nofa.style_rows(variables, config, PICTURES)
    assert encoder.sha256 == sha256
    devices = jax.local_devices()[:1]
    codes, seconds = start.first_codes(encoder, PICTURES, 'w+', devices)
    close(codes, rows, atol=1e-5, what='W+')
    assert seconds > 0
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
    rows = np.asarray(start.encoded_rows(encoder, PICTURES))
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


def test_encoders_that_do_not_fit_are_named(file, tmp_path):
    def load(path):
        return start.load_encoder(path, CONFIG.generator, GENERATOR)

    with pytest.raises(UserError, match='other.safetensors: its encoder was trained for another generator'):
        load(
            nofa_file(tmp_path / 'other.safetensors', generator=model.network(random_variables(CONFIG, 1), 'generator'))
        )
    tiny = NofaConfig.tiny()
    deeper = NofaConfig(
        tiny.generator.replace(plane_resolution=32), tiny.settings.replace(encoder__num_ws=8), tiny.basis
    )
    with pytest.raises(UserError, match='its encoder gives 8 style rows, but the generator takes 6; give one'):
        load(nofa_file(tmp_path / 'deeper.safetensors', deeper))
    wider = NofaConfig(tiny.generator.replace(img_resolution=64), tiny.settings, tiny.basis)
    with pytest.raises(UserError, match='its encoder is for pictures of 64 pixels, but the weights make 32; give one'):
        load(nofa_file(tmp_path / 'wider.safetensors', wider))
    model.save_model(tmp_path / 'none.safetensors', VARIABLES, CONFIG, {})
    with pytest.raises(UserError, match="holds weights of 'otavatar' without an encoder and its generator"):
        load(tmp_path / 'none.safetensors')
    with pytest.raises(UserError, match='missing.safetensors'):
        load(tmp_path / 'missing.safetensors')
    steps = Model(method('otavatar'), SHORT, VARIABLES).steps
    for options, text in (
        ({'start': 'encoder'}, '--start encoder: which one? Give --encoder FILE'),
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
    config = dataclasses.replace(SHORT, settings=SHORT.settings.replace(inversion__wplus_steps=0))
    people = [portrait(0), portrait(1), portrait(2).replace(mask=None)]  # the last one is a group of its own
    found = invert.invert_people(VARIABLES, config, people)
    options = method('otavatar').options({'tune': 'generator', 'fit_steps': 3, 'locality': 0.1})
    settings = dataclasses.replace(build.fit_of(options), locality=LocalityConfig(0.1, 1.0))
    bank, calls = PerceptionBank(), []
    tuned = finetune.tune_people(
        VARIABLES, config, people, found, bank, None, settings, on_step=lambda done, loss: calls.append(done)
    )
    assert calls == [1, 3]
    for one, before in zip(tuned, found, strict=True):
        assert float(one.inversion.psnr) > float(before.psnr)
        assert int(one.tuned.steps) == 3 and not bool(one.tuned.stopped) and 'locality' in one.tuned.terms
        np.testing.assert_array_equal(one.inversion.avatar.identity['code'], before.avatar.identity['code'])
    # The third person again, with the program that it had; and a rule that the first step meets.
    (alone,) = finetune.tune_people(VARIABLES, config, people[2:], found[2:], bank, None, settings)
    close(alone.tuned.curve[:3], tuned[2].tuned.curve[:3], rtol=1e-4, what='curve alone')
    easy = dataclasses.replace(settings, stop_term='negative_psnr', stop_below=1e3)
    (stopped,) = finetune.tune_people(VARIABLES, config, people[1:2], found[1:2], bank, None, easy)
    assert int(stopped.tuned.steps) == 1 and bool(stopped.tuned.stopped)
    close(
        stopped.tuned.curve[0], tuned[1].tuned.curve[0], rtol=1e-4, what='first loss, beside another person and alone'
    )
