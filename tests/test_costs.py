"""What a step costs: counted arithmetic and collectives, predictions, what is checked before anything is compiled."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from avatar_jax.errors import UserError
from avatar_jax.models.superresolution import SuperResolution
from avatar_jax.models.synthesis import SynthesisNetwork
from avatar_jax.parallel import ScaleConfig, cut, parallelise
from avatar_jax.train.accumulate import value_and_grad_in_parts
from avatar_jax.train.costs import (
    COMPUTE_SHARE,
    DEVICES,
    Costs,
    collective_time,
    count,
    count_step,
    estimate,
    find_device,
    predict,
)
from tests import scale_worker
from tests.test_train_otavatar import tiny_run


def test_products_convolutions_loops_and_sums_are_counted():
    a, b = jnp.zeros((3, 4)), jnp.zeros((4, 5))
    assert count(jax.make_jaxpr(jnp.matmul)(a, b)) == Costs(2 * 3 * 4 * 5, 4 * (12 + 20 + 15))
    x, w = jnp.zeros((2, 8, 8, 3)), jnp.zeros((3, 3, 3, 5))

    def conv(x):
        return jax.lax.conv_general_dilated(x, w, (1, 1), 'SAME', dimension_numbers=('NHWC', 'HWIO', 'NHWC'))

    assert count(jax.make_jaxpr(conv)(x)).flops == 2 * 2 * 64 * 5 * 27

    def loop(a):
        step = jax.checkpoint(lambda c, _: (jax.lax.cond(c[0, 0] > 0, lambda y: y @ b @ b.T, lambda y: y, c), None))
        return jax.jit(lambda a: jax.lax.scan(step, a, None, length=7)[0])(a)

    assert count(jax.make_jaxpr(loop)(a)).flops == pytest.approx(7 * (2 * 60 + 2 * 60), rel=0.2)
    state, batch = scale_worker.fresh_state(), {k: v[None] for k, v in scale_worker.load(0).items()}
    alone, among = (count_step(scale_worker.step, state, batch, jnp.zeros(()), n) for n in (1, 64))
    assert alone.collectives == 0 and among.flops == pytest.approx(alone.flops, rel=0.1)
    assert among.collective_bytes == 4 * (6 * 1024 + 1024 * 2 + 1)  # gradients and loss


def test_predictions_name_what_comes_first():
    h100, tpu = find_device('NVIDIA H100 80GB HBM3'), find_device('TPU v5 lite')
    assert (h100.name, tpu.name, find_device('TPU v5').name) == ('H100', 'TPU v5e', 'TPU v5p')
    assert find_device('abacus') is None and len({d.name for d in DEVICES}) == len(DEVICES)
    work = Costs(1e13, 1e9, 1e8, 10)
    one, many = predict(work, h100, 1), predict(work, h100, 512)
    assert one.bottleneck == 'arithmetic' and one.step == pytest.approx(1e13 / (494e12 * COMPUTE_SHARE))
    assert many.step > one.step and many.collectives == collective_time(work, h100, 512)
    assert predict(Costs(1e9, 1e12, 0, 0), h100, 1).bottleneck == 'memory'
    assert predict(Costs(1e9, 1e3, 1e9, 1), h100, 64).bottleneck == 'collectives'
    within, beyond = collective_time(work, h100, 8), collective_time(work, h100, 16)
    assert beyond > 4 * within  # the network is slower than the links


def test_the_estimate_is_one_line_and_its_program_is_the_one_that_runs():
    spread = parallelise(scale_worker.step, kind='shard_map', devices=jax.devices()[:1], constants=np.float32(0))
    rows = [scale_worker.load(i) for i in range(4)]
    batch = spread.put_batch({k: np.stack([r[k] for r in rows]) for k in rows[0]})
    state = spread.put_state(scale_worker.fresh_state())
    known = estimate(spread, state, batch)
    assert known.state_bytes > 4 * 3 * 8192 and known.total_bytes >= known.state_bytes and known.time > 0
    assert '\n' not in known.text() and 'about' in known.text() and 'GFLOP' in known.text()
    compiled = spread.compile(state, batch)
    spread.step(state, batch)
    assert spread.compile(spread.put_state(scale_worker.fresh_state()), batch) is compiled


def test_gradients_in_parts_are_those_of_the_whole():
    rng = np.random.default_rng(0)
    w, own, x = (jnp.asarray(rng.normal(size=s), jnp.float32) for s in ((3, 2), (6, 3), (6, 3)))
    keys = jax.random.split(jax.random.key(0), 6)

    def loss(w, own, batch):
        x, keys = batch
        noise = jax.vmap(lambda k: jax.random.normal(k, (2,)))(keys)
        value = jnp.mean(jnp.sum(((x * own) @ w + noise) ** 2, -1)) + jnp.sum(w**2)
        return value, {'value': value}

    whole = value_and_grad_in_parts(loss, w, own, (x, keys))
    for a, b in zip(
        jax.tree.leaves(value_and_grad_in_parts(loss, w, own, (x, keys), 3)), jax.tree.leaves(whole), strict=True
    ):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match='6 samples do not divide into 4 parts'):
        value_and_grad_in_parts(loss, w, own, (x, keys), 4)


@pytest.mark.slow
@pytest.mark.parametrize('remat', [False, True])
def test_rematerialised_blocks_have_the_same_names_and_gradients(remat):
    backbone = SynthesisNetwork(8, 6, 32, 4, remat=remat)
    above = SuperResolution('2X', 128, (4, 4), remat=remat)
    ws = jnp.ones((1, backbone.num_ws, 5))
    variables = jax.eval_shape(backbone.init, {'params': jax.random.key(0), 'noise': jax.random.key(1)}, ws)
    assert set(variables['params']) == {'b4', 'b8'} and 'conv0' in variables['params']['b8']
    x, rgb = jnp.zeros((1, 64, 64, 4)), jnp.zeros((1, 64, 64, 3))
    names = jax.eval_shape(above.init, {'params': jax.random.key(0)}, rgb, x, ws)['params']
    assert set(names) == {'block0', 'block1'}
    flat, structure = jax.tree.flatten(variables)
    variables = jax.tree.unflatten(structure, [jnp.full(v.shape, 0.1 + 0.01 * i) for i, v in enumerate(flat)])

    def loss(params):
        return jnp.sum(backbone.apply({**variables, 'params': params}, ws, 'const') ** 2)

    jaxpr = str(jax.make_jaxpr(jax.grad(loss))(variables['params']))
    assert ('remat' in jaxpr or 'checkpoint' in jaxpr) == remat
    total = sum(float(jnp.sum(g)) for g in jax.tree.leaves(jax.jit(jax.grad(loss))(variables['params'])))
    _GRADIENTS.setdefault('first', total)
    assert total == pytest.approx(_GRADIENTS['first'], rel=1e-5)


_GRADIENTS: dict[str, float] = {}


def test_arrays_are_cut_along_their_longest_divisible_axis():
    assert tuple(cut((3, 3, 512, 256), 4)) == (None, None, 'model', None)
    assert tuple(cut((4099, 512), 4)) == (None, 'model')
    assert tuple(cut((16,), 4)) == () and tuple(cut((4099, 513), 4)) == ()


def test_what_is_checked_before_anything_is_compiled():
    from avatar_jax.methods.eg3d.config import check_resolutions
    from avatar_jax.methods.otavatar.training import devices_and_batch

    run = tiny_run()
    generator = run.model.generator
    check_resolutions(generator, 'generator')
    with pytest.raises(UserError, match='img_resolution: 100; use a power of two from 8 on, e.g. 128'):
        check_resolutions(generator.replace(img_resolution=100), 'generator')
    with pytest.raises(UserError, match='neural_rendering_resolution: 64'):
        check_resolutions(generator.replace(neural_rendering_resolution=64, img_resolution=32), 'generator')
    with pytest.raises(UserError, match=r'scale.accumulate: 2 people on 1 devices do not divide into 3 parts'):
        devices_and_batch(dataclasses.replace(run, scale=ScaleConfig(accumulate=3)))
    with pytest.raises(UserError, match='scale.accumulate: 0; must be at least 1'):
        ScaleConfig(accumulate=0)
    with pytest.raises(UserError, match='scale.model_shards: 2 does not divide 1 devices'):
        parallelise(scale_worker.step, kind='sharded', devices=jax.devices()[:1], model_shards=2)


def test_training_benchmark_measures_and_counts(tmp_path):
    from avatar_jax.bench import scaling
    from avatar_jax.bench.training import run_train_benchmark
    from avatar_jax.train.program import Program

    def batch(rows):
        return {k: np.stack([scale_worker.load(i)[k] for i in range(rows)]) for k in ('x', 'y')}

    program = Program(
        'toy',
        ((0.75, 'often', scale_worker.step), (0.25, 'rare', scale_worker.step)),
        scale_worker.fresh_state,
        lambda: jax.eval_shape(scale_worker.fresh_state),
        lambda: np.float32(0),
        lambda: jax.ShapeDtypeStruct((), jnp.float32),
        batch,
        2,
        8,
        False,
    )
    lines = []
    found = run_train_benchmark(program, [1], 4, 2, 'pmap', tmp_path / 'a' / 'b.json', lines.append)
    (one,) = found['results']
    assert one['images'] == 8 and one['efficiency'] == 1 and one['images_per_s'] == pytest.approx(8 / one['step_s'])
    assert len(one['times_s']['rare']) == 2 and one['predicted_s'] > 0 and 'toy on 1 device(s), 4 rows each' in lines[0]
    assert json.loads((tmp_path / 'a' / 'b.json').read_text())['results'][0]['devices'] == 1
    counted = run_train_benchmark(program, [1, 64], 4, count_only=True)['results']
    assert (
        counted[0]['gflop'] == pytest.approx(one['gflop'], rel=0.1)
        and counted[1]['collectives'] >= 1
        and 'step_s' not in counted[1]
    )
    (planned,) = run_train_benchmark(program, [1], 4, report=lines.append, memory_only=True)['results']
    assert planned['peak_bytes'] >= planned['argument_bytes'] > 0 and 'step_s' not in planned
    assert 'memory 0 MiB' in lines[-1] and 's/step' not in lines[-1]
    with pytest.raises(UserError, match='--devices 4096: there are only'):
        run_train_benchmark(program, [4096])
    text = scaling.tables(program, [1, 8, 64], ['H100', 'TPU v5p'], 4)
    assert '| weak | 64 | 4 | 256 |' in text and 'batch of 8 does not divide among 64 devices' in text
    assert '| strong | 8 | 1 | 8 |' in text
