"""One process of a small training run, for the tests of several processes: ``python -m tests.scale_worker OPTIONS``.

The run is made like the real ones: a step with a named axis, batches that are a function of (seed, step), ``fit``.
Every sample draws its own noise, so a sample that a run leaves out, repeats or places elsewhere shows in the weights.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
BATCH, WIDTH = 8, 6


def load(position):
    import numpy as np

    rng = np.random.default_rng([3, position])
    x = rng.normal(size=WIDTH).astype(np.float32)
    return {'x': x, 'y': (x[:2] * [1.0, -2.0]).astype(np.float32)}


def step(state, batch, constants, axis_name):
    import jax
    import jax.numpy as jnp

    from avatar_jax.parallel import mean_over_devices, sample_keys
    from avatar_jax.train.optimizers import OptimizerConfig, make_optimizer
    from avatar_jax.train.state import step_key

    keys = sample_keys(step_key(0, state.step), batch['x'].shape[0], axis_name)
    noise = jax.vmap(lambda k: jax.random.normal(k, (WIDTH,)))(keys)

    def loss(params):
        hidden = jnp.tanh((batch['x'] + 0.1 * noise) @ params['a'])
        return jnp.mean(jnp.sum((hidden @ params['b'] - batch['y']) ** 2, -1)) + 0 * constants

    value, grads = jax.value_and_grad(loss)(state.groups['net'].params)
    value, grads = mean_over_devices((value, grads), axis_name)
    group, stats = state.groups['net'].apply_gradients(
        grads, make_optimizer(OptimizerConfig('sgd', 0.0005, momentum=0.9))
    )
    return state.with_groups(net=group.update_ema(0.9)).replace(step=state.step + 1), {'loss': value, **stats}


def fresh_state():
    import numpy as np

    from avatar_jax.train.optimizers import OptimizerConfig, make_optimizer
    from avatar_jax.train.state import Group, TrainState

    rng = np.random.default_rng(0)
    params = {
        'a': rng.normal(size=(WIDTH, 1024)).astype(np.float32),
        'b': 0.01 * rng.normal(size=(1024, 2)).astype(np.float32),
    }
    return TrainState.create(
        {'net': Group.create(params, make_optimizer(OptimizerConfig('sgd', 0.0005, momentum=0.9)), ema=True)}
    )


def main() -> int:
    from avatar_jax import processes
    from avatar_jax.errors import UserError

    parser = argparse.ArgumentParser()
    processes.add_arguments(parser)
    parser.add_argument('--out', default='')
    parser.add_argument('--steps', type=int, default=24)
    parser.add_argument('--kind', default='pmap')
    parser.add_argument('--delay', type=float, default=0.0)
    parser.add_argument('--resume', action='store_true')
    parser.add_argument('--people', type=int, default=99)
    parser.add_argument('--value', type=int, default=0)
    args = parser.parse_args()
    try:
        processes.join(processes.from_arguments(args))
    except UserError as error:
        print(f'avatar-jax: error: {error}', file=sys.stderr)
        return 2
    with processes.ending_together(args.out):
        run(args)
    return 0


def run(args: argparse.Namespace) -> None:
    import jax
    import numpy as np

    from avatar_jax import processes
    from avatar_jax.parallel import parallelise, to_host
    from avatar_jax.train.costs import estimate
    from avatar_jax.train.loop import LoopConfig, fit
    from data_pipelines.stream import Batches
    from data_pipelines.streams import share

    spread = parallelise(step, kind=args.kind, constants=np.float32(0), model_shards=2 if args.kind == 'sharded' else 0)
    processes.agree('the configuration', {'value': args.value})

    def batches(start):
        with Batches(load, BATCH, start, *share(BATCH), num_threads=0) as stream:
            for batch in stream:
                time.sleep(args.delay)
                yield batch

    def announce(state, batch):
        return estimate(spread, state, spread.put_batch(batch)).text()

    def sample(state, done):
        assert processes.is_first() and np.isfinite(np.asarray(state.groups['net'].ema['a'])).all()
        return np.zeros((2, 2, 3), np.uint8)

    loop = LoopConfig(args.steps, log_every=1, sample_every=4, checkpoint_every=3, tensorboard=False)
    state = fit(
        spread.put_state(fresh_state()),
        lambda s, b: spread.step(s, spread.put_batch(b)),
        batches,
        folder=args.out,
        loop=loop,
        config={'batch': BATCH},
        resume=args.resume,
        place_state=spread.put_state,
        sample_fn=sample,
        announce=announce,
    )
    if args.kind == 'sharded':  # parameters, average and velocity lie in halves
        for leaf in jax.tree.leaves(
            state.groups['net'].replace(params={'a': state.groups['net'].params['a']}, ema=None)
        ):
            if leaf.size >= 4096:
                assert leaf.addressable_shards[0].data.nbytes * 2 == leaf.nbytes, leaf.sharding
    state = to_host(state)
    if processes.is_first():
        np.savez(Path(args.out) / 'final.npz', *jax.tree.leaves(state))


def environment(devices: int = 1) -> dict[str, str]:
    from tests.runs import flags_of_devices

    return flags_of_devices(devices) | {'PYTHONPATH': str(ROOT)}


if __name__ == '__main__':
    sys.exit(main())
