"""People and frames are spread over all devices of a process, with the numbers of one."""

import pytest

from tests.devices import on_four_devices

PROGRAM = """
import jax, numpy as np
from avatar_jax.methods.base import method
from avatar_jax.methods.model import Model
from avatar_jax.methods.otavatar import invert
from avatar_jax.procedural.motion import speech_motion
from tests.test_otavatar_model import SHORT, VARIABLES, portrait, some_avatar

devices = jax.devices()
assert len(devices) == 4
model = Model(method('otavatar'), SHORT, VARIABLES)
motion, labels = speech_motion(0, 5), np.repeat(np.asarray(portrait(0).camera.label)[None], 5, 0)
one, four = (model.frames(some_avatar(), motion, labels, per_call=4, devices=d) for d in (devices[:1], devices))
for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(four), strict=True):
    assert len(b) == 5
    np.testing.assert_allclose(a, b, atol=2e-5)
people = [portrait(k) for k in range(3)]  # on two devices the last one fills up
alone, spread = (invert.invert_people(VARIABLES, SHORT, people, devices=d) for d in (devices[:1], devices[:2]))
assert len(spread) == 3
for a, b in zip(alone, spread, strict=True):
    np.testing.assert_allclose(a.avatar.identity['code'], b.avatar.identity['code'], atol=1e-4)
    np.testing.assert_allclose(float(a.psnr), float(b.psnr), atol=1e-2)
"""


FITTED = """
import jax, numpy as np
from avatar_jax.inversion.tuning import TuningConfig
from avatar_jax.methods.nofa import fit
from avatar_jax.train.optimizers import OptimizerConfig
from tests.nofa_tiny import ModelConfig, awake, portrait, variables_of

devices, config = jax.devices(), ModelConfig.tiny()
variables = awake(variables_of(config), config, 0.02)
tuned = fit.with_tuning(config, tuning=TuningConfig('compensation', 3, OptimizerConfig('adam', 3e-3)))
people = [portrait(k) for k in range(3)]
alone, spread = (fit.fit_people(variables, tuned, people, devices=d) for d in (devices[:1], devices[:2]))
assert len(spread) == 3
for a, b in zip(alone, spread, strict=True):
    np.testing.assert_allclose(a.tuned.curve, b.tuned.curve, rtol=1e-3)
    np.testing.assert_allclose(a.avatar.identity['planes'], b.avatar.identity['planes'], atol=1e-3)
"""
BUILT = """
import jax, numpy as np, pytest
from avatar_jax.losses.perception import PerceptionBank
from avatar_jax.methods.base import method
from avatar_jax.methods.model import Model
from tests.test_gpavatar import CONFIG, mesh, model, motion, portrait

variables = {**model.init(CONFIG, jax.random.key(0)), 'mesh': mesh.load_mesh(CONFIG)}
whole, bank, steps = Model(method('gpavatar'), CONFIG, variables), PerceptionBank(), []
people = [portrait(k) for k in range(6)]
built = whole.build_many(people, bank=bank, on_step=lambda done, **_: steps.append(done))
assert steps == [1, 2, 3, 4, 5, 6], steps
for k, (person, found) in enumerate(zip(people, built, strict=True)):
    alone = whole.build(person, bank=bank).avatar
    assert found.avatar.source == person.source
    np.testing.assert_allclose(alone.identity['planes'], found.avatar.identity['planes'], atol=2e-5)
rows, labels = motion(2)
assert whole.frames(built[3].avatar, rows, labels, devices=jax.devices()[:1]).rgb.shape[0] == 2
with pytest.raises((AttributeError, TypeError, ValueError)):
    whole.build_many([*people[:3], people[3].replace(image=None)], bank=bank)
"""


@pytest.mark.slow
@pytest.mark.parametrize('program', [PROGRAM, FITTED, BUILT], ids=['inverted', 'fitted', 'built'])
def test_frames_and_people_over_devices(program):
    on_four_devices(program)


@pytest.mark.slow
def test_programs_that_fail_are_told():
    with pytest.raises(AssertionError, match='ValueError: no'):
        on_four_devices('raise ValueError("no")')
    on_four_devices('import jax; assert len(jax.devices()) == 4')  # the process lives on
