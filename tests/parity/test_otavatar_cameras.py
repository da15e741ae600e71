"""OTAvatar's labels, intrinsic correction, orbit and motion windows against reference numbers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from avatar_jax.faces import camera_labels
from avatar_jax.ops import windows
from tests.comparison import close
from tests.parity.golden import handles


@pytest.mark.slow
@handles('otavatar', 'camera_labels')
def test_camera_labels(golden):
    cases = golden.config['cases']
    for case in cases:
        for xp in (np, jnp):
            condition = xp.asarray(golden.inp[f'{case}.condition'])
            rotation = camera_labels.condition_rotation(condition)
            close(rotation, golden.out[f'{case}.R'], what=f'{case} R', atol=1e-5)
            label = camera_labels.labels_from_conditions(condition, release=True)
            close(label, golden.out[f'{case}.label'], what=f'{case} label', atol=1e-5)
            if condition.shape[0] == 1:  # our default replaces the release's NaN by the frame itself
                sane = camera_labels.labels_from_conditions(condition)
                close(sane[:, :12].reshape(3, 4)[:, :3], rotation[0] * np.float32([1, -1, -1]), atol=1e-5)
                close(sane[:, 16:], golden.out[f'{case}.label'][:, 16:], atol=1e-5)
            else:
                np.testing.assert_array_equal(label, camera_labels.labels_from_conditions(condition))
        assert np.allclose(golden.inp[f'{case}.condition'][:, :3], -golden.inp[f'{case}.euler_raw'], atol=1e-6)
    golden.check_all_used()


@handles('otavatar', 'camera_bias')
def test_camera_bias(golden):
    inp, out = golden.inp, golden.out
    label, intrinsic, extrinsic = (jnp.asarray(inp[k]) for k in ('label', 'intri_bias', 'extri_bias'))
    corrected = camera_labels.correct_intrinsics(label, intrinsic)
    close(corrected, out['intri'], atol=1e-6, rtol=1e-6)
    close(camera_labels.correct_intrinsics(label, jnp.zeros_like(intrinsic)), out['none'], atol=1e-6, rtol=1e-6)
    close(camera_labels.correct_rotation(corrected, extrinsic), out['both'], atol=1e-6, rtol=1e-6)
    close(
        camera_labels.correct_intrinsics(np.asarray(label), np.asarray(intrinsic)), out['intri'], atol=1e-6, rtol=1e-6
    )
    gradient = jax.grad(lambda b: jnp.sum(camera_labels.correct_intrinsics(label, b) * inp['weight']))(intrinsic)
    close(gradient, golden.grad['intri_bias'], atol=1e-6, rtol=1e-5)
    golden.check_all_used()


@handles('otavatar', 'camera_orbit')
def test_camera_orbit(golden):
    for xp in (np, jnp):
        poses = camera_labels.orbit_pose(xp.asarray(golden.inp['frames']))
        close(poses.reshape(-1, 16), golden.out['pose'], atol=1e-5)
    close(camera_labels.canonical_label()[None], golden.out['canonical_label'], atol=1e-5)
    golden.check_all_used()


@handles('otavatar', 'motion_windows')
@pytest.mark.slow
def test_motion_windows(golden):
    radius = golden.config['semantic_radius']
    clips = sorted({name.split('.')[0] for name in golden.inp})
    for clip in clips:
        for xp in (np, jnp):
            records, frames = xp.asarray(golden.inp[f'{clip}.coeff']), xp.asarray(golden.inp[f'{clip}.frames'])
            index = windows.window_indices(frames, records.shape[0], radius)
            np.testing.assert_array_equal(index, golden.out[f'{clip}.index'])
            motion = windows.motion_windows(records, frames, radius=radius, channel_first=True)
            np.testing.assert_array_equal(motion, golden.out[f'{clip}.motion'])
            close(windows.frame_weights(records), golden.out[f'{clip}.frame_weight'], rtol=1e-6)
    golden.check_all_used()
