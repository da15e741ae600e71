"""The e4e encoder: stages, first values, batch norm over several devices, foreign files, the pool of codes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from avatar_jax.convert.layout import to_torch
from avatar_jax.errors import UserError
from avatar_jax.losses.codes import CodePool, code_norm, delta_regularizer, query_pool
from avatar_jax.models import e4e_files
from avatar_jax.models.e4e import E4eEncoder, EncoderConfig, encoder_input, init_encoder, progressive_stage
from tests.comparison import close

CONFIG = EncoderConfig(16, 4, 6, 4, (2, 4, 6, 8), (1, 1, 1, 1), 2, 1, 2)


@pytest.fixture(scope='module')
def encoder():
    module = E4eEncoder(CONFIG)
    return module, init_encoder(CONFIG, jax.random.key(0)), jax.random.normal(jax.random.key(1), (4, 16, 16, 3))


@pytest.mark.slow
def test_stage_freezes_the_later_rows(encoder):
    module, variables, x = encoder
    stage = 1

    def scalar(params, stage):
        rows = module.apply({**variables, 'params': params}, x, stage)
        return jnp.sum(rows**2), rows

    grads, rows = jax.jit(jax.grad(scalar, has_aux=True))(variables['params'], jnp.int32(stage))
    for i in range(CONFIG.num_ws):
        assert bool((rows[:, i] == rows[:, 0]).all()) == (i == 0 or i > stage), i
        largest = max(float(jnp.abs(g).max()) for g in jax.tree.leaves(grads['styles'][str(i)]))
        assert (largest == 0) == (i > stage), i
    close(jax.jit(lambda v, x: module.apply(v, x, stage))(variables, x), rows, scale=1e-5, what='static stage')


def test_progress_follows_the_schedule():
    steps = {0: 0, 19_999: 0, 20_000: 1, 21_999: 1, 22_000: 2, 43_999: 12, 44_000: 13, 10**6: 13}
    for step, stage in steps.items():
        assert progressive_stage(step) == stage
        assert int(progressive_stage(jnp.int32(step))) == stage


def test_pictures_of_another_size_are_refused(encoder):
    module, variables, _ = encoder
    with pytest.raises(UserError, match='32x32.*resize it'):
        module.apply(variables, jnp.zeros((1, 32, 32, 3)))
    with pytest.raises(UserError, match='8x8'):
        encoder_input(jnp.zeros((1, 8, 8, 3)), 16)
    image = jax.random.normal(jax.random.key(2), (1, 32, 32, 3))
    close(encoder_input(image, 16), image.reshape(1, 16, 2, 16, 2, 3).mean((2, 4)), atol=1e-6, what='2x2 means')


@pytest.mark.slow
def test_batch_norm_sees_the_batches_of_all_devices(encoder):
    module, variables, x = encoder

    def run(x, axis_name):
        rows, moved = module.apply(variables, x, None, True, axis_name, mutable=['batch_stats'])
        return rows, moved['batch_stats']

    whole, stats = jax.jit(lambda x: run(x, None))(x)
    split = jax.jit(jax.vmap(lambda x: run(x, 'data'), axis_name='data', out_axes=(0, None)))
    rows, both = split(x.reshape(2, 2, 16, 16, 3))
    close(rows.reshape(whole.shape), whole, atol=1e-4, what='rows')
    jax.tree.map(lambda a, b: close(a, b, rtol=1e-4, atol=1e-6, what='statistics'), both, stats)
    assert float(jnp.abs(stats['input_layer']['1']['running_mean']).max()) > 0
    alone, _ = jax.jit(lambda x: run(x, None))(x[:2])
    assert float(jnp.abs(alone - whole[:2]).max()) > 1e-3, 'half the batch has other statistics'


def test_zero_offsets_have_no_norm_and_finite_gradients():
    zero = jnp.zeros((2, 4, 6))
    for term in (code_norm, delta_regularizer):
        value, grad = jax.jit(jax.value_and_grad(term))(zero)
        assert float(value) == 0 and not np.asarray(grad).any()


def test_files_go_in_and_out(encoder):
    _, variables, _ = encoder
    flat = {f'encoder.{k}': v for k, v in e4e_files.encoder_state_dict(variables).items()} | {
        'decoder.conv1.weight': np.zeros(1, np.float32)
    }
    assert e4e_files.config_of(e4e_files.encoder_part(flat)) == CONFIG
    back = e4e_files.encoder_variables(flat, CONFIG)
    jax.tree.map(np.testing.assert_array_equal, back, variables)


def test_a_backbone_can_come_from_another_file(encoder):
    _, variables, _ = encoder
    other = init_encoder(EncoderConfig(**{**vars(CONFIG), 'num_ws': 5}), jax.random.key(7))
    flat = to_torch(other)
    with pytest.raises(UserError, match='5 style heads.*takes 4'):
        e4e_files.encoder_variables(flat, CONFIG, 'e4e.pt')
    arcface = {k: v for k, v in flat.items() if k.startswith(('input_layer', 'body'))}
    arcface |= {'output_layer.0.weight': np.ones(8, np.float32)}
    for source in (flat, arcface):
        mixed = e4e_files.with_backbone(variables, source)
        jax.tree.map(np.testing.assert_array_equal, mixed['params']['body'], other['params']['body'])
        jax.tree.map(np.testing.assert_array_equal, mixed['params']['styles'], variables['params']['styles'])
        jax.tree.map(np.testing.assert_array_equal, mixed['batch_stats'], other['batch_stats'])
    with pytest.raises(UserError, match='arcface.pth'):
        wide = init_encoder(EncoderConfig(**{**vars(CONFIG), 'widths': (2, 4, 6, 10)}), jax.random.key(7))
        e4e_files.with_backbone(variables, to_torch(wide), 'arcface.pth')
    with pytest.raises(UserError, match='no IR-SE backbone'):
        e4e_files.config_of({'fc.weight': np.zeros((2, 2), np.float32)})


def test_the_pool_fills_and_then_mixes():
    pool, codes = CodePool.empty(4, 1), jnp.arange(1.0, 4.0)[:, None]
    query = jax.jit(query_pool)
    pool, out = query(pool, codes, jax.random.key(0))
    np.testing.assert_array_equal(out, codes)
    assert int(pool.filled) == 3
    seen, new = [], jnp.arange(10.0, 13.0)[:, None]
    for n in range(20):
        before = set(np.asarray(pool.codes[:, 0])[: int(pool.filled)].tolist())
        pool, out = query(pool, new + n * 3, jax.random.key(n))
        handed = set(np.asarray(new[:, 0] + n * 3).tolist())
        assert set(np.asarray(out[:, 0]).tolist()) <= before | handed
        seen += [bool(x) for x in np.asarray(out[:, 0] != new[:, 0] + n * 3)]
    assert int(pool.filled) == 4
    assert 0.3 < np.mean(seen[3:]) < 0.7, 'about every second code is an earlier one'
    np.testing.assert_array_equal(query_pool(CodePool.empty(0, 1), codes, jax.random.key(0))[1], codes)
