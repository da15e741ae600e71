"""People and frames are spread over all devices of a process, with the numbers of one."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
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
print('as on one device')
"""


@pytest.mark.slow
def test_frames_and_people_over_devices():
    flags = '--xla_force_host_platform_device_count=4 --xla_backend_optimization_level=0'
    done = subprocess.run(
        [sys.executable, '-c', PROGRAM],
        cwd=ROOT,
        env={**os.environ, 'JAX_PLATFORMS': 'cpu', 'XLA_FLAGS': flags, 'PYTHONPATH': str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert 'as on one device' in done.stdout
