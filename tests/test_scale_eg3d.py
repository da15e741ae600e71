"""EG3D's iteration on one, two and four devices: the same SGD update, all four phases included."""

import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from avatar_jax.methods.eg3d import train as training
from avatar_jax.methods.eg3d.config import DiscriminatorConfig, RunConfig, TrainConfig
from avatar_jax.models.triplane import GeneratorConfig, init_generator
from avatar_jax.parallel import parallelise
from avatar_jax.render import cameras

ROOT = Path(__file__).resolve().parents[1]
ROWS = 8


def tiny_run():
    generator = GeneratorConfig.tiny()
    return RunConfig(
        generator=generator,
        discriminator=DiscriminatorConfig(channel_base=128, channel_max=8, mapping_layers=1, mbstd_group_size=2),
        train=TrainConfig(batch=ROWS, optimizer='sgd', beta1=0.0, g_lr=0.01, d_lr=0.01),
    )


def made_up(config):
    """Variables without compiling an initialisation, a batch of pictures, cameras."""
    rng = np.random.default_rng(0)

    def draw(path, leaf):
        names = [p.key for p in path]
        if names[-1] in ('bias', 'w_avg', 'noise_strength'):
            return jnp.full(leaf.shape, float('affine' in names and names[-1] == 'bias'), jnp.float32)
        return jnp.asarray(rng.normal(size=leaf.shape), jnp.float32)

    shapes = jax.eval_shape(lambda: (init_generator(config.generator, jax.random.key(0)),
                                     training.init_discriminator(config, jax.random.key(1))))  # fmt: skip
    generator, discriminator = jax.tree_util.tree_map_with_path(lambda p, x: draw(p[1:], x), shapes)
    render, size = config.generator.rendering, config.generator.img_resolution
    labels = np.asarray(cameras.orbit_labels(ROWS, render.avg_camera_radius, render.avg_camera_pivot), np.float32)
    images = rng.integers(0, 256, (ROWS, size, size, 3)).astype(np.uint8)
    return generator, discriminator, {'image': images, 'label': labels}, labels


def compare_devices():
    """Runs in a process with four devices."""
    config = tiny_run()
    generator, discriminator, batch, labels = made_up(config)
    flags = training.flags_at(config, 0)
    assert flags.g_reg and flags.d_reg
    start = training.init_state(config, generator, discriminator)

    def step(state, batch, labels, axis_name):
        return training.train_step(config, flags, state, batch, labels, axis_name)

    results = {}
    for kind, count in (('single', 1), ('pmap', 4), ('shard_map', 2)):
        spread = parallelise(step, kind=kind, devices=jax.devices()[:count], constants=labels)
        state, metrics = spread.step(spread.put_state(start), spread.put_batch(batch))
        results[kind] = [np.asarray(x) for x in jax.tree.leaves((state, metrics))]
    for name in ('generator', 'discriminator'):
        moved = jax.tree.map(lambda a, b: float(np.abs(np.asarray(a) - np.asarray(b)).max()),
                             state.groups[name].params, start.groups[name].params)  # fmt: skip
        assert sum(m > 1e-6 for m in jax.tree.leaves(moved)) > 10, f'the step changes next to nothing of the {name}'
    for kind in ('pmap', 'shard_map'):
        for a, b in zip(results[kind], results['single'], strict=True):
            np.testing.assert_allclose(a, b, atol=1e-6, rtol=2e-5, err_msg=kind)
    print('devices agree')


def test_one_two_and_four_devices_make_the_same_update():
    flags = '--xla_force_host_platform_device_count=4 --xla_backend_optimization_level=0'
    code = 'from tests.test_scale_eg3d import compare_devices; compare_devices()'
    done = subprocess.run([sys.executable, '-c', code], cwd=ROOT, env={**os.environ, 'XLA_FLAGS': flags, 'JAX_PLATFORMS': 'cpu'},
                          capture_output=True, text=True, timeout=1800, check=False)  # fmt: skip
    assert done.returncode == 0 and 'devices agree' in done.stdout, done.stderr[-3000:]
