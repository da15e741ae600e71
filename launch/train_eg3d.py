"""EG3D's adversarial training; ``avatar-jax train`` calls it for configs such as ``configs/eg3d_heads.py``."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from avatar_jax import processes


def train(config: Any, out: str | Path, *, resume: bool = False, quiet: bool = False) -> Any:
    """Trains and writes ``weights.safetensors`` (averaged generator) and ``discriminator.safetensors``.

    Args:
        config: ``methods.eg3d.config.RunConfig``.
        out: folder of the run.
        resume: continue the run that is there.

    Returns:
        the final ``TrainState``.

    Raises:
        UserError: data, weights, batch or folder cannot be used; another run is there.
        avatar_jax.train.logging.NonFiniteError: a term became NaN or infinite.
        avatar_jax.train.loop.Preempted: asked to stop; the checkpoint is written.
    """
    import jax
    import jax.numpy as jnp
    import numpy as np

    from avatar_jax.configure import to_plain
    from avatar_jax.methods.eg3d import files
    from avatar_jax.methods.eg3d import train as training
    from avatar_jax.methods.eg3d.config import WITHOUT_EFFECT, RunConfig
    from avatar_jax.methods.eg3d.samples import sample_sheet
    from avatar_jax.parallel import parallelise, to_host
    from avatar_jax.train.costs import estimate
    from avatar_jax.train.loop import fit, skip_nonfinite
    from avatar_jax.train.manifest import write_manifest
    from data_pipelines.image_sources import open_images
    from launch.train import check_resolutions

    # What can be wrong is looked at before anything is compiled.
    check_resolutions(config.generator, 'generator')
    source = open_images(config.data, config.generator.img_resolution, progress=not quiet and processes.is_first())
    labels = np.asarray(source.all_labels(), np.float32)
    fingerprint = source.fingerprint()
    if config.generator.rendering.reg_type in WITHOUT_EFFECT and not quiet:
        print(
            f'generator.rendering.reg_type: {config.generator.rendering.reg_type!r} regularises nothing, as in the '
            "original; use 'l1', 'monotonic-detach' or 'monotonic-fixed'"
        )

    # One program per kind of iteration, made when it first comes up.
    programs: dict[training.Flags, Any] = {}

    def program(flags: training.Flags) -> Any:
        if flags not in programs:

            def step(state, batch, labels, axis_name):
                body = partial(training.train_step, config, flags, labels=labels, axis_name=axis_name)
                return (skip_nonfinite(body) if config.output.nonfinite == 'skip' else body)(state, batch)

            programs[flags] = parallelise(
                step, kind=config.parallel, constants=labels, model_shards=config.model_shards
            )
        return programs[flags]

    first = program(training.flags_at(config, 0))
    training.check_batch(config, first.num_devices)
    start = files.starting_point(config)
    state = training.init_state(config, start.generator, start.discriminator, start.ema)

    bound = {'run': to_plain(config), 'data': fingerprint, 'init': start.digest}
    processes.agree('the configuration', bound)

    def batches(start: int) -> Iterator[tuple[int, Any]]:
        """Numbered batches; asked for once the folder has been accepted."""
        if processes.is_first():
            write_manifest(out, config, data={'fingerprint': fingerprint, 'pictures': len(source)})
        return stream_batches(config, source, start)

    def run_step(state, numbered):
        number, batch = numbered
        chosen = program(training.flags_at(config, number))
        return chosen.step(state, chosen.put_batch(batch))

    def announce(state, numbered):
        number, batch = numbered
        chosen = program(training.flags_at(config, number))
        known = estimate(chosen, state, chosen.put_batch(batch), config.generator.dtype == 'bfloat16')
        return f'train: {config.train.batch} images per step on {chosen.num_devices} device(s); {known.text()}'

    real = np.stack([source[i % len(source)]['image'] for i in range(config.output.sample_columns)])

    def resolution_after(done: int) -> int:
        return training.flags_at(config, max(done - 1, 0)).resolution

    def sample(state, done):
        variables = jax.tree.map(lambda x: jnp.asarray(jax.device_get(x)), training.generator_variables(state))
        return sample_sheet(config, variables, labels, real, resolution_after(done))

    state = fit(
        first.put_state(state),
        run_step,
        batches,
        folder=out,
        loop=config.loop(),
        config=bound,
        resume=resume,
        may_differ=[f'run.{p}' for p in RunConfig.MAY_DIFFER],
        headline='d_main/loss',
        sample_fn=sample if config.output.sample_rows else None,
        place_state=first.put_state,
        images_per_step=config.train.batch,
        phases=training.PHASES,
        announce=None if quiet else announce,
        quiet=quiet,
    )
    if processes.several():
        state = to_host(state)
    if not processes.is_first():
        return state

    done = int(state.step)
    generator = training.with_resolution(config, resolution_after(done)).generator
    provenance = {
        'command': 'train',
        'seed': config.seed,
        'iterations': done,
        'images': done * config.train.batch,
        'data': to_plain(config.data) | {'fingerprint': fingerprint},
        'init': start.digest,
    }
    files.save_networks(
        out,
        jax.device_get(training.generator_variables(state)),
        generator,
        jax.device_get(state.groups['discriminator'].params),
        config.discriminator,
        provenance,
    )
    return state


def stream_batches(config: Any, source: Any, start: int) -> Iterator[tuple[int, Any]]:
    """(number, this process's rows of the batch) for the iterations from ``start`` on."""
    import jax

    from data_pipelines.eg3d_images import image_batches

    data = config.data
    with image_batches(
        source,
        config.train.batch,
        config.seed,
        start,
        jax.process_index(),
        jax.process_count(),
        data.num_workers,
        data.num_threads,
        data.prefetch,
        as_bytes=True,
    ) as batches:
        yield from enumerate(batches, start=start)
