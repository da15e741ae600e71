"""An adversarial training run of EG3D: networks, data and steps, as ``train.runner`` wants them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import numpy as np

from avatar_jax.configure import from_plain, to_plain
from avatar_jax.methods.eg3d import files
from avatar_jax.methods.eg3d import train as training
from avatar_jax.methods.eg3d.config import WITHOUT_EFFECT, RunConfig, check_resolutions
from avatar_jax.methods.eg3d.samples import sample_sheet
from avatar_jax.render.cameras import orbit_labels
from avatar_jax.train.loop import Sample
from avatar_jax.train.manifest import write_manifest
from avatar_jax.train.program import Program
from avatar_jax.train.runner import Run
from avatar_jax.train.state import TrainState


def run_config(values: Mapping[str, Any]) -> RunConfig:
    """The configuration of a run from plain values."""
    return from_plain(RunConfig, values)


def start(config: RunConfig, streams: ModuleType, quiet: bool = False) -> Run:
    """A run that is ready to begin; see ``methods.base.Training``."""
    check_resolutions(config.generator, 'generator')  # before anything is compiled
    source = streams.pictures(config.data, config.generator.img_resolution, quiet)
    labels, fingerprint = np.asarray(source.all_labels(), np.float32), source.fingerprint()
    if config.generator.rendering.reg_type in WITHOUT_EFFECT and not quiet:
        print(
            f'generator.rendering.reg_type: {config.generator.rendering.reg_type!r} regularises nothing, as in the '
            "original; use 'l1', 'monotonic-detach' or 'monotonic-fixed'"
        )
    found = files.starting_point(config)

    def batches(first: int) -> Iterator[dict[str, np.ndarray]]:
        return streams.images(source, config.data, config.train.batch, config.seed, first)

    def on_start(folder: Path) -> None:
        write_manifest(folder, config, data={'fingerprint': fingerprint, 'pictures': len(source)})

    real = np.stack([source[i % len(source)]['image'] for i in range(config.output.sample_columns)])

    def resolution_after(done: int) -> int:
        return training.flags_at(config, max(done - 1, 0)).resolution

    count = config.output.fid_images
    distance = streams.frechet(source, config.inception, count, config.seed) if count else None

    def sample(state: TrainState, done: int) -> Sample:
        variables, resolution = training.generator_variables(state), resolution_after(done)
        sheet = sample_sheet(config, variables, labels, real, resolution)
        if distance is None:
            return sheet
        generator = training.with_resolution(config, resolution).generator
        return sheet, {f'sample/fid_{count}': distance(variables, generator, labels)}

    def export(state: TrainState, folder: Path, provenance: dict[str, Any]) -> None:
        done = int(state.step)
        files.save_networks(
            folder,
            training.generator_variables(state),
            training.with_resolution(config, resolution_after(done)).generator,
            state.groups['discriminator'].params,
            config.discriminator,
            provenance | {'images': done * config.train.batch},
        )

    return Run(
        state=training.init_state(config, found.generator, found.discriminator, found.ema),
        step=lambda flags: _step(config, flags),
        batches=batches,
        export=export,
        batch_size=config.train.batch,
        unit='images',
        images_per_step=config.train.batch,
        kind_of=lambda number: training.flags_at(config, number),
        constants=labels,
        bound={'data': fingerprint, 'init': found.digest},
        provenance={'data': to_plain(config.data) | {'fingerprint': fingerprint}, 'init': found.digest},
        sample=sample if config.output.sample_rows or count else None,
        headline='d_main/loss',
        phases=training.PHASES,
        bf16=config.generator.dtype == 'bfloat16',
        model_shards=config.model_shards,
        on_start=on_start,
        check=lambda devices: training.check_batch(config, devices),
    )


def _step(config: RunConfig, flags: training.Flags):
    def step(state, batch, labels, axis_name):
        return training.train_step(config, flags, state, batch, labels, axis_name)

    return step


def program(config: RunConfig) -> Program:
    """The steps with made-up data, for measuring and counting."""
    generator, t = config.generator, config.train
    # One period of the regularisations, after all schedules have come to their end.
    period = math.lcm(*(n for n in (config.g_interval, t.d_reg_interval, 1) if n))
    end = 10**6 * period
    flags = [training.flags_at(config, end + k) for k in range(period)]
    shares = {f: flags.count(f) / period for f in flags}

    def named(flag: training.Flags) -> str:
        return '+'.join(['main', *(name for name in ('g_reg', 'd_reg') if getattr(flag, name))])

    def labels(count: int) -> np.ndarray:
        render = generator.rendering
        return np.asarray(orbit_labels(count, render.avg_camera_radius, render.avg_camera_pivot), np.float32)

    def make_state() -> TrainState:
        return training.init_state(config, *training.fresh_variables(config))

    def make_batch(rows: int) -> dict[str, np.ndarray]:
        size = generator.img_resolution
        images = np.random.default_rng(0).integers(0, 256, (rows, size, size, 3)).astype(np.uint8)
        return {'image': images, 'label': labels(rows)}

    return Program(
        name='EG3D',
        variants=tuple((share, named(f), _step(config, f)) for f, share in shares.items()),
        make_state=make_state,
        abstract_state=lambda: jax.eval_shape(make_state),
        make_constants=lambda: labels(64),
        abstract_constants=lambda: jax.ShapeDtypeStruct((64, 25), np.float32),
        make_batch=make_batch,
        images_per_row=1,
        batch=t.batch,
        bf16=generator.dtype == 'bfloat16',
        unit=t.accumulate * (config.discriminator.mbstd_group_size or 1),
    )
