"""Fitting a portrait: what moves, people side by side, the search in W, the generator with locality."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from avatar_jax.errors import UserError
from avatar_jax.inversion.tuning import LocalityConfig, TuningConfig
from avatar_jax.losses.perception import PerceptionBank
from avatar_jax.methods.nofa import fit
from avatar_jax.methods.nofa import model as nofa
from avatar_jax.methods.nofa.config import ModelConfig
from avatar_jax.train.optimizers import OptimizerConfig
from tests.comparison import close
from tests.nofa_tiny import awake, portrait, variables_of

CONFIG = ModelConfig.tiny()
VARIABLES = awake(variables_of(CONFIG), CONFIG, 0.02)
ADAM = OptimizerConfig('adam', 3e-3)


def settings(tune, steps=12, **more):
    return fit.with_tuning(CONFIG, tuning=TuningConfig(tune, steps, ADAM, **more))


@jax.jit
def frame(variables, identity, signals, label):
    return nofa.frame(variables, CONFIG, identity, None, signals, label)


def shown(avatar, person):
    """The portrait's own view of an avatar."""
    signals = {'expression': jnp.asarray(person.expression)[None]}
    return frame(VARIABLES, avatar.identity, signals, jnp.asarray(person.camera.label)[None]).rgb[0]


@pytest.fixture(scope='module')
def pair():
    people = [portrait(0), portrait(1)]
    calls = []
    found = fit.fit_people(
        VARIABLES,
        settings('compensation'),
        people,
        weights='abc',
        on_step=lambda done, loss: calls.append((done, loss)),
    )
    return people, found, calls


@pytest.mark.slow
def test_the_compensation_network_fits_people(pair):
    people, found, calls = pair
    assert [c[0] for c in calls] == [10, 12]
    for person, one in zip(people, found, strict=True):
        assert int(one.tuned.steps) == 12
        assert one.scores['psnr'] > one.scores['psnr_forward'] + 0.05
        assert one.tuned.curve[11] < one.tuned.curve[0]
        assert set(one.avatar.identity) == {'code', 'planes', 'shape'}, 'only the volume is another one'
        assert (one.avatar.weights, one.avatar.method) == ('abc', 'nofa')
        close(shown(one.avatar, person), one.image, atol=1e-4, what='the avatar shows what was fitted')
        forward = nofa.build(VARIABLES, CONFIG, person)
        close(one.avatar.identity['code'], forward.identity['code'], atol=1e-5, what='code of the encoder')
        assert float(jnp.abs(one.avatar.identity['planes'] - forward.identity['planes']).max()) > 1e-3
        assert json.dumps(one.report())
    assert jax.tree.structure(found[0].tuned.params) == jax.tree.structure(VARIABLES['params']['compensation'])


@pytest.mark.slow
def test_people_do_not_see_each_other(pair):
    """The same persons beside another one, in another place, and in a portion that is filled up."""
    people, found, _ = pair
    three, calls = [portrait(2), *people], []
    others = fit.fit_people(
        VARIABLES, settings('compensation'), three, portion=2, on_step=lambda done, loss: calls.append(done)
    )
    assert len(others) == 3 and calls == [5, 6, 11, 12]
    close(others[2].image, found[1].image, atol=1e-2, what='picture')
    close(others[1].tuned.curve[:12], found[0].tuned.curve[:12], rtol=1e-3, what='curve')
    close(others[1].image, found[0].image, atol=1e-2, what='picture')
    assert float(np.abs(others[0].image - found[1].image).max()) > 0.05


@pytest.mark.slow
def test_nothing_needs_to_be_tuned(pair):
    people, found, _ = pair
    one = fit.fit_people(VARIABLES, settings('none'), people)[0]
    assert one.tuned is None
    close(one.scores['psnr'], one.scores['psnr_forward'], rtol=1e-6, what='scores')
    close(one.scores['psnr_forward'], found[0].scores['psnr_forward'], rtol=1e-5, what='before tuning')
    forward = nofa.build(VARIABLES, CONFIG, people[0])
    close(one.avatar.identity['planes'], forward.identity['planes'], atol=1e-5, what='planes')
    assert fit.steps_of(settings('none')) == 0


@pytest.mark.slow
def test_the_generator_fits_a_person_around_a_searched_code():
    config = settings('generator', 6, locality=LocalityConfig(0.1, 1.0))
    config = fit.with_tuning(config, pivot='search', tuning=config.settings.tuning)
    person = portrait(0)
    one = fit.fit_people(VARIABLES, config, [person], key=jax.random.key(0))[0]
    rows = np.asarray(one.avatar.identity['code'])
    assert np.abs(rows - rows[0]).max() == 0, 'one code for all rows'
    assert len(one.pivot.curve) == config.settings.search.steps
    assert one.scores['psnr'] > one.scores['psnr_forward']
    assert set(one.avatar.identity['renderer']) == {'decoder', 'superresolution'}
    close(shown(one.avatar, person), one.image, atol=1e-4, what='the avatar shows what was fitted')
    assert 'locality' in one.report()['tuning']['terms']
    assert 'depth' not in one.report()['tuning']['terms']
    assert len(one.report()['search']['loss']) == config.settings.search.steps


@pytest.mark.slow
def test_the_rule_may_look_at_what_the_loss_reports():
    """How a rule ends a fit is in tests/test_tuning.py; here is what it may name."""
    person = portrait(0)

    def terms(tune):
        def reported(image):
            problem = fit.pose_problem(PerceptionBank(), CONFIG, person.replace(image=image))
            rows = jnp.zeros((1, CONFIG.generator.num_ws, CONFIG.generator.w_dim))
            loss, first = fit.tuning_loss(VARIABLES, CONFIG, problem, rows, PerceptionBank(), tune, False)
            return loss(first, None)[1]

        return set(jax.eval_shape(reported, jnp.asarray(person.image)))

    common = {'reconstruction', 'mouth', 'negative_psnr', 'perceptual'}
    assert terms('compensation') == common | {'depth'}
    assert terms('generator') == common


def test_portraits_that_cannot_be_fitted_are_named():
    with pytest.raises(UserError, match='person 0.*not 32x32'):
        fit.fit_people(VARIABLES, CONFIG, [portrait(0, 16)])
    with pytest.raises(UserError, match='^person 0: landmarks: missing'):
        fit.fit_people(VARIABLES, CONFIG, [portrait(0).replace(landmarks=None)])
    outside = portrait(1)
    with pytest.raises(UserError, match='person 1: its mouth'):
        fit.fit_people(VARIABLES, CONFIG, [outside.replace(landmarks=outside.landmarks + 500)])
    with pytest.raises(UserError, match='compensation.use'):
        fit.with_tuning(
            ModelConfig.tiny(compensation__use=False, tuning__tune='none'), tuning=TuningConfig('compensation')
        )
    with pytest.raises(UserError, match='pivot'):
        fit.with_tuning(CONFIG, pivot='guess')
