"""The training loop on a model of two numbers: resume, kill, stop signals, finite checks, refused folders, logs."""

import gc
import json
import os
import signal
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from avatar_jax.errors import UserError
from avatar_jax.train.checkpoints import Checkpoints, config_difference
from avatar_jax.train.logging import (
    JsonlLog,
    NonFiniteError,
    RunProgress,
    duration,
    nonfinite_terms,
    read_jsonl,
    scalars,
)
from avatar_jax.train.loop import PREEMPTED_STATUS, LoopConfig, Preempted, fit, skip_nonfinite
from avatar_jax.train.optimizers import OptimizerConfig, make_optimizer
from avatar_jax.train.state import Group, TrainState, step_key
from tests.nasty_names import NASTY

TX = make_optimizer(OptimizerConfig('adam', 0.05))
CONFIG = {'seed': 3, 'model': {'width': 4}, 'loop': {'total_steps': 12}}


def fresh_state(width=4):
    return TrainState.create({'net': Group.create({'w': jnp.linspace(-1, 1, width)}, TX, ema=True)})


def train_step(state, batch):
    """Noisy regression: data and noise both follow from (seed, step)."""
    group = state.groups['net']
    noise = jax.random.normal(step_key(3, state.step), group.params['w'].shape)

    def loss_fn(params):
        return jnp.mean((params['w'] * batch['x'] - batch['y'] + 0.1 * noise) ** 2)

    loss, grads = jax.value_and_grad(loss_fn)(group.params)
    group, stats = group.apply_gradients(grads, TX, max_norm=1.0)
    state = state.with_groups(net=group.update_ema(0.9)).replace(step=state.step + 1)
    return state, {'loss': loss, 'curve': jnp.stack([loss, 2 * loss]), **stats}


def batches(start):
    step = start
    while True:
        rng = np.random.default_rng([3, step])
        yield {'x': rng.normal(size=4).astype(np.float32), 'y': rng.normal(size=4).astype(np.float32)}
        step += 1


def run(folder, steps, **kwargs):
    loop = LoopConfig(steps, log_every=2, checkpoint_every=3, sample_every=5, tensorboard=False)
    kwargs = {'config': CONFIG, 'quiet': True, 'may_differ': ('loop.*',), 'loop': loop, **kwargs}
    step = jax.jit(kwargs.pop('step', train_step), donate_argnums=0)
    placed = lambda state, batch: step(state, jax.device_put(batch))
    return fit(fresh_state(), placed, kwargs.pop('batches', batches), folder=folder, **kwargs)


def leaves(state):
    return [np.asarray(x) for x in jax.tree.leaves(state)]


def assert_equal(a, b):
    for x, y in zip(leaves(a), leaves(b), strict=True):
        np.testing.assert_array_equal(x, y)


def test_a_step_moves_nothing_to_the_device_unasked(tmp_path):
    """Batches are placed on purpose; ``conftest`` sees to it that the steps of all methods are tested so."""
    for step in (jax.jit(train_step), lambda state, batch: (state, {'loss': jnp.float32(len(batch))})):
        with pytest.raises(jax.errors.JaxRuntimeError, match='Disallowed host-to-device transfer'):
            fit(fresh_state(), step, batches, folder=tmp_path, loop=LoopConfig(3), config=CONFIG, quiet=True)


def test_resume_equals_the_uninterrupted_run(tmp_path):
    whole = run(tmp_path / 'a', 12)
    run(tmp_path / 'b', 7)
    resumed = run(tmp_path / 'b', 12, resume=True)
    assert_equal(whole, resumed)
    assert int(resumed.step) == 12
    drop = ('steps_per_second',)
    logs = [
        [{k: v for k, v in r.items() if k not in drop} for r in read_jsonl(tmp_path / n / 'metrics.jsonl')]
        for n in 'ab'
    ]
    by_step = [{r['step']: r for r in log} for log in logs]
    assert by_step[0][12] == by_step[1][12]
    assert [r['step'] for r in logs[0]] == [2, 4, 6, 8, 10, 12]
    assert {'loss', 'curve', 'curve/mean', 'grad_norm', 'update_norm', 'param_norm'} <= set(logs[0][0])


def test_a_second_run_in_the_same_folder_is_refused(tmp_path):
    run(tmp_path, 3)
    with pytest.raises(UserError, match='holds a run at step 3'):
        run(tmp_path, 6)


def test_another_config_is_refused_by_field_name(tmp_path):
    run(tmp_path, 3)
    other = {**CONFIG, 'model': {'width': 8}}
    with pytest.raises(UserError, match=r'model\.width = 4, this run has 8'):
        run(tmp_path, 6, resume=True, config=other)
    run(tmp_path, 6, resume=True, config={**CONFIG, 'loop': {'total_steps': 99}})  # allowed to differ
    assert config_difference({'a': {'b': 1}}, {'a': {'b': 1, 'c': 2}}) == 'a.c = no such field, this run has 2'


def test_non_finite_term_stops_with_its_name_and_leaves_the_checkpoint(tmp_path):
    def broken(state, batch):
        new, metrics = train_step(state, batch)
        bad = jnp.where(state.step == 4, jnp.nan, 1.0)
        metrics['curve'] = metrics['curve'] * jnp.stack([jnp.ones(()), bad])
        return new, metrics

    with pytest.raises(NonFiniteError, match=r'step 4: not finite: curve\[1\]'):
        run(tmp_path, 12, step=broken)
    with Checkpoints(tmp_path / 'checkpoints', config=CONFIG, may_differ=('loop.*',)) as checkpoints:
        assert checkpoints.latest_step() == 3


def test_non_finite_steps_can_be_skipped_and_are_counted(tmp_path):
    def broken(state, batch):
        new, metrics = train_step(state, batch)
        bad = jnp.where(state.step == 4, jnp.nan, 1.0)
        return jax.tree.map(lambda x: x * bad.astype(x.dtype), new).replace(step=new.step), {
            **metrics,
            'loss': metrics['loss'] * bad,
        }

    loop = LoopConfig(8, log_every=8, checkpoint_every=0, sample_every=0, nonfinite='skip', tensorboard=False)
    state = run(tmp_path, 8, step=skip_nonfinite(broken), loop=loop)
    assert all(np.isfinite(x).all() for x in leaves(state)) and int(state.step) == 8
    assert read_jsonl(tmp_path / 'metrics.jsonl')[-1]['skipped'] == pytest.approx(1 / 8)

    def hopeless(state, batch):
        new, metrics = train_step(state, batch)
        return new, {**metrics, 'loss': metrics['loss'] * jnp.nan}

    with pytest.raises(NonFiniteError, match='in a row'):
        run(
            tmp_path / 'b',
            8,
            step=skip_nonfinite(hopeless),
            loop=LoopConfig(8, nonfinite='skip', max_skipped=3, tensorboard=False),
        )


def test_data_that_ends_early_is_said(tmp_path):
    def short(start):
        return (b for _, b in zip(range(4), batches(start), strict=False))

    with pytest.raises(UserError, match='data ended at step 4 of 12'):
        run(tmp_path, 12, batches=short)


def test_damaged_checkpoint_is_refused_and_an_earlier_one_named(tmp_path):
    run(tmp_path, 6)
    folder = tmp_path / 'checkpoints'
    data = max((folder / '6' / 'state').rglob('d/*'), key=lambda p: p.stat().st_size)
    raw = bytearray(data.read_bytes())
    raw[len(raw) // 2] ^= 0xFF
    data.write_bytes(bytes(raw))
    with pytest.raises(UserError, match='damaged.*resume from step 3'):
        run(tmp_path, 12, resume=True)
    for part, said in (('manifest', 'no manifest'), ('config', 'no configuration')):
        (folder / '6' / part / 'metadata').write_text('{')
        with pytest.raises(UserError, match=rf'damaged \({said}\); resume from step 3'):
            run(tmp_path, 12, resume=True)


def test_nothing_is_left_running_after_damage(tmp_path, monkeypatch):
    """Arrays in the lost half of a file fail at once, while those in the other half still take their time."""
    state = {f'a{k}': np.random.default_rng(k).normal(size=500_000).astype(np.float32) for k in range(8)}
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, state)
        data = max((tmp_path / '1' / 'state').rglob('d/*'), key=lambda p: p.stat().st_size)
        data.write_bytes(data.read_bytes()[: data.stat().st_size // 2])
        lost = []
        monkeypatch.setattr(sys, 'unraisablehook', lambda what: lost.append(repr(what.exc_value)))
        for restore in (checkpoints.restore, checkpoints.restore_part):
            with pytest.raises(UserError, match='damaged.*start again'):
                restore(state)
        time.sleep(0.3)
        gc.collect()
    assert not lost


def test_checkpoint_shapes_parts_and_keys(tmp_path):
    run(tmp_path, 3)
    with Checkpoints(tmp_path / 'checkpoints', config=CONFIG, read_only=True) as checkpoints:
        with pytest.raises(UserError, match=r'shape \[4\], this run needs \[6\]'):
            checkpoints.restore(jax.eval_shape(lambda: fresh_state(6)))
        part, step = checkpoints.restore_part(
            {'groups': {'net': {'ema': {'w': jax.ShapeDtypeStruct((4,), 'float32')}}}}
        )
        state, _ = checkpoints.restore(jax.eval_shape(fresh_state))
        np.testing.assert_array_equal(part['groups']['net']['ema']['w'], state.groups['net'].ema['w'])
        assert step == 3 and checkpoints.stored_config() == CONFIG
        with pytest.raises(UserError, match='no checkpoint of step 99; there are: 3'):
            checkpoints.restore(state, step=99)
    with Checkpoints(tmp_path / 'x') as checkpoints:
        with pytest.raises(ValueError, match='PRNG key'):
            checkpoints.save(1, {'key': jax.random.key(0)})
        with pytest.raises(UserError, match='no complete checkpoint'):
            checkpoints.restore({'a': np.zeros(2)})
    with pytest.raises(UserError, match='no such checkpoint folder'):
        Checkpoints(tmp_path / 'absent', read_only=True)


def test_full_disk_is_one_line_and_keeps_what_was_there(tmp_path, monkeypatch):
    with Checkpoints(tmp_path / 'c') as checkpoints:
        checkpoints.save(1, {'a': np.ones(3, np.float32)})

        def full(*args, **kwargs):
            raise OSError(28, 'No space left on device')

        monkeypatch.setattr(checkpoints._manager, 'save', full)
        with pytest.raises(UserError, match='step 2 could not be written: No space left; earlier'):
            checkpoints.save(2, {'a': np.ones(3, np.float32)})
        monkeypatch.setattr(checkpoints._manager, 'save', lambda *a, **k: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            checkpoints.save(3, {'a': np.ones(3, np.float32)})
        assert checkpoints.steps() == [1]


def test_kept_checkpoints_follow_the_rule(tmp_path):
    with Checkpoints(tmp_path / 'c', keep=2, keep_every=4) as checkpoints:
        for step in range(1, 8):
            checkpoints.save(step, {'a': np.full(3, step, np.float32)})
        assert checkpoints.steps() == [4, 6, 7]


def test_sample_pictures_are_written(tmp_path):
    from PIL import Image

    run(tmp_path, 6, sample_fn=lambda state, step: np.full((4, 6, 3), step, np.uint8))
    assert sorted(p.name for p in (tmp_path / 'samples').iterdir()) == ['step_00000005.png', 'step_00000006.png']
    assert np.asarray(Image.open(tmp_path / 'samples' / 'step_00000005.png')).max() == 5
    assert json.loads((tmp_path / 'config.json').read_text())['config'] == CONFIG


def test_log_after_resume_has_no_lines_of_lost_steps(tmp_path):
    log = JsonlLog(tmp_path / 'm.jsonl')
    for step in (1, 2, 3):
        log.write(step, {'a': float('nan') if step == 2 else np.float32(step)})
    log.close()
    with (tmp_path / 'm.jsonl').open('a') as file:
        file.write('{"step": 2, "a": 0.1')  # torn by a kill
    JsonlLog(tmp_path / 'm.jsonl', resume_step=2).close()
    assert read_jsonl(tmp_path / 'm.jsonl') == [{'step': 1, 'a': 1.0}, {'step': 2, 'a': None}]


def test_terms_are_reported_in_the_order_of_failure():
    metrics = {'late': np.asarray([1, 1, np.nan]), 'total': np.float32(np.nan), 'early': np.asarray([1, np.inf, 1])}
    assert nonfinite_terms(metrics) == ['early[1]', 'late[2]', 'total']
    bad = np.asarray([np.nan, np.nan])
    metrics = {'b/pixel': bad, 'a/loss': np.asarray([1, np.nan]), 'a/tv': np.asarray([1, np.nan]), 'x': bad}
    assert nonfinite_terms(metrics, ('a', 'b')) == ['a/tv[1]', 'a/loss[1]', 'b/pixel[0]', 'x[0]']
    assert scalars({'a': np.asarray([1.0, 3.0]), 'b': 2}) == {'a': 3.0, 'a/mean': 2.0, 'b': 2.0}


def test_progress_line(capsys):
    progress = RunProgress(100, every_seconds=0.0, stream=sys.stdout)
    progress.update(0)
    for step in (1, 2, 3):
        time.sleep(0.01)
        progress.update(step, 'loss 0.5')
    out = capsys.readouterr().out
    assert 'train 0/100  compiling' in out and 'train 3/100' in out and 'steps/s  left' in out and 'loss 0.5' in out
    assert [duration(s) for s in (5, 75.4, 3700)] == ['0:05', '1:15', '1:01:40']


SCRIPT = """
import sys, time
sys.path.insert(0, {root!r})
from tests.test_train_loop import run, train_step, batches
def slow(start):
    for batch in batches(start):
        time.sleep({delay})
        yield batch
run({folder!r}, 60, resume=True, batches=slow)
"""


def start_run(folder, delay=0.02):
    root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    code = SCRIPT.format(root=root, folder=str(folder), delay=delay)
    environment = os.environ | {'JAX_PLATFORMS': 'cpu'}
    return subprocess.Popen([sys.executable, '-c', code], env=environment, stderr=subprocess.PIPE, text=True)


def wait_for_checkpoint(folder, process, after=-1):
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and process.poll() is None:
        done = [int(p.name) for p in (folder / 'checkpoints').glob('*') if p.name.isdigit()]
        if done and max(done) > after:
            return max(done)
        time.sleep(0.01)
    raise AssertionError(f'no checkpoint after {after}: {process.communicate()[1][-2000:]}')


@pytest.mark.slow
def test_killed_and_terminated_runs_resume_to_the_same_numbers(tmp_path):
    process = start_run(tmp_path)
    seen = wait_for_checkpoint(tmp_path, process)
    time.sleep(0.03)  # somewhere in a step or in a save
    process.kill()
    assert process.wait() == -signal.SIGKILL

    process = start_run(tmp_path)
    wait_for_checkpoint(tmp_path, process, after=seen)
    process.send_signal(signal.SIGTERM)
    errors = process.communicate()[1]
    assert process.returncode == PREEMPTED_STATUS, errors

    final = run(tmp_path, 60, resume=True)
    assert_equal(run(tmp_path / 'whole', 60), final)
    steps = [r['step'] for r in read_jsonl(tmp_path / 'metrics.jsonl')]
    assert steps == sorted(set(steps)) and steps[-1] == 60


def test_stop_request_inside_the_process(tmp_path):
    def stopping(start):
        for step, batch in enumerate(batches(start), start=start):
            if step == 4:
                os.kill(os.getpid(), signal.SIGTERM)
            yield batch

    with pytest.raises(Preempted) as stopped:
        run(tmp_path, 12, batches=stopping)
    assert stopped.value.code == PREEMPTED_STATUS and stopped.value.step == 5
    assert_equal(run(tmp_path, 12, resume=True), run(tmp_path / 'whole', 12))


def test_two_runs_in_one_folder_at_once(tmp_path):
    def meanwhile(start):
        for i, batch in enumerate(batches(start)):
            if i == 2:
                with pytest.raises(UserError, match='is training there'):
                    run(tmp_path, 4, resume=True)
            yield batch

    first = run(tmp_path, 6, batches=meanwhile)
    assert_equal(first, run(tmp_path.with_name('alone'), 6))
    assert not list(tmp_path.glob('.avatar_jax*')), 'released'
    assert int(run(tmp_path, 8, resume=True).step) == 8


@pytest.mark.parametrize('name', ['colons', 'line break', 'no utf-8'])
def test_folders_of_every_name(tmp_path, name):
    folder = tmp_path / NASTY[name]
    if name == 'no utf-8':
        with pytest.raises(UserError, match='need a name in UTF-8'):
            run(folder, 2)
        return
    run(folder, 2)
    assert int(run(folder, 3, resume=True).step) == 3
