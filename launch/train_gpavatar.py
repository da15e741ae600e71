"""Trains GPAvatar on sets of frames: what ``avatar-jax train`` runs for a configuration of that method."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from avatar_jax import processes
from avatar_jax.errors import UserError


def train(config: Any, out: str | Path, *, resume: bool = False, quiet: bool = False) -> Any:
    """Trains and writes ``weights.safetensors``; returns the final ``TrainState``.

    Args:
        config: ``methods.gpavatar.train.RunConfig``.
        out: folder of the run. resume: continue the run that is there.

    Raises:
        UserError: data, weights or folder cannot be used; another run is there.
        avatar_jax.train.logging.NonFiniteError: a term became NaN or infinite.
        avatar_jax.train.loop.Preempted: asked to stop; the checkpoint is written.
    """
    import jax

    from avatar_jax.configure import to_plain
    from avatar_jax.io.weights import check_config
    from avatar_jax.methods.gpavatar import train as training
    from avatar_jax.methods.gpavatar.losses import network_of
    from avatar_jax.methods.gpavatar.mesh import load_mesh
    from avatar_jax.methods.gpavatar.model import init, load_model, save_model, with_coefficients
    from avatar_jax.methods.registry import model_path
    from avatar_jax.parallel import device_order, parallelise, to_host
    from avatar_jax.train.costs import estimate
    from avatar_jax.train.loop import fit, skip_nonfinite
    from launch.train import open_source

    model = config.model
    devices = device_order(jax.devices())[: 1 if config.parallel == 'single' else None]
    size = model.method.train.batch_size
    if size % len(devices):
        raise UserError(
            f'model.method.train.batch_size: {size} is not divisible by {len(devices)} devices; use a multiple '
            f'of {len(devices)}'
        )
    variables, digest, known = None, '', {}
    if config.init:
        known, found, digest, _ = load_model(model_path(config.init))
        if (found.method.field.kind, model.method.field.kind) == ('points', 'both'):
            known, found = with_coefficients(known, found)
        check_config(config.init, to_plain(networks_of(found)), to_plain(networks_of(model)))
        variables = known
    else:
        variables = init(model, jax.random.key(config.seed))
    frozen = {'mesh': load_mesh(model), 'alexnet': alexnet(config.perception, known)}
    network = network_of(model.method.loss, frozen['alexnet'])
    state = training.init_state(model, variables)
    source = open_source(config)
    batches = partial(stream_batches, config, source)

    def step(state, batch, frozen, axis_name):
        body = partial(training.train_step, model, config.seed, frozen=frozen, axis_name=axis_name)
        return (skip_nonfinite(body) if config.output.nonfinite == 'skip' else body)(state, batch)

    spread = parallelise(step, kind=config.parallel, devices=devices, constants=frozen)
    shown = None

    def sample(state, done):
        nonlocal shown
        del done
        if shown is None:
            shown = sample_batch(config, source)
        state = jax.tree.map(lambda x: jax.numpy.asarray(jax.device_get(x)), state)
        return training.sample_sheet(model, state, shown, frozen)

    bound = {'run': to_plain(config), 'networks': {'perceptual': network}, 'init': digest}
    processes.agree('the configuration', bound)

    def announce(state, batch):
        known = estimate(spread, state, spread.put_batch(batch), False)
        return f'train: {size} sets of frames per step on {spread.num_devices} device(s); {known.text()}'

    state = fit(
        spread.put_state(state),
        lambda state, batch: spread.step(state, spread.put_batch(batch)),
        batches,
        folder=out,
        loop=config.loop(),
        config=bound,
        resume=resume,
        may_differ=[f'run.{p}' for p in training.RunConfig.MAY_DIFFER],
        label='train',
        headline='psnr',
        sample_fn=sample if config.output.sample_people else None,
        place_state=spread.put_state,
        images_per_step=size,
        announce=None if quiet else announce,
        quiet=quiet,
    )
    state = to_host(state) if processes.several() else state
    if not processes.is_first():
        return state
    provenance = {
        'command': 'train',
        'seed': config.seed,
        'iterations': int(state.step),
        'data': to_plain(config.data),
        'networks': {'perceptual': network},
        'init': digest,
    }
    kept = {k: v for k, v in known.items() if k in ('perception', 'unused')}
    final = jax.device_get(training.variables_of(state)) | kept
    save_model(Path(out) / 'weights.safetensors', final, model, provenance, config.storage)
    return state


def networks_of(model: Any) -> Any:
    """The configuration without what does not change the networks' shapes (losses, training)."""
    import dataclasses

    from avatar_jax.methods.gpavatar.config import LossConfig, TrainConfig

    return dataclasses.replace(model, method=dataclasses.replace(model.method, loss=LossConfig(), train=TrainConfig()))


def alexnet(files: Sequence[str], variables: Any) -> Any:
    """AlexNet for the perceptual loss: from ``alexnet=FILE``, else the one that imported weights contain, else None.

    Raises:
        UserError: another network, or a file that cannot be used.
    """
    from avatar_jax.losses.perception import PerceptionBank
    from avatar_jax.methods.gpavatar.losses import alexnet_of

    for option in files:
        name, equals, path = option.partition('=')
        if name != 'alexnet' or not equals or not path:
            raise UserError(f"perception: {option!r}; GPAvatar's loss looks through alexnet=FILE")
        return PerceptionBank.load({name: path}).weights[name]
    return alexnet_of(variables['perception']['percep_loss']['net']) if 'perception' in variables else None


def stream_batches(config: Any, source: Any, start: int) -> Iterator[dict[str, Any]]:
    """Batches of the steps from ``start`` on, with the arrays that training reads."""
    from avatar_jax.methods.gpavatar.train import with_host_arrays
    from data_pipelines.sets import SetConfig, set_batches
    from launch.train import share_of_data

    train, data = config.model.method.train, config.data
    frames = train.drivers + train.sources
    settings = SetConfig(train.batch_size, frames, config.seed, data.num_threads, data.prefetch)
    with set_batches(source, settings, start, *share_of_data(train.batch_size)) as batches:
        for step, batch in enumerate(batches, start):
            whole = step >= train.ray_iterations or (train.whole_every and (step + 1) % train.whole_every == 0)
            yield with_host_arrays(config.model, batch, rays=not whole)


def sample_batch(config: Any, source: Any) -> dict[str, Any]:
    """One set of each of a few people of the training data, for the pictures."""
    import numpy as np

    from avatar_jax.methods.gpavatar.train import with_host_arrays
    from data_pipelines.sets import SetConfig, Sets

    train = config.model.method.train
    sets = Sets(source, SetConfig(1, train.drivers + train.sources, config.seed + 1))
    rows = [sets(k) for k in range(config.output.sample_people)]
    return with_host_arrays(config.model, {k: np.stack([r[k] for r in rows]) for k in rows[0]})
