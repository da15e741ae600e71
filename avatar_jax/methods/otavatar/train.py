"""Training of OTAvatar: the state, one iteration on a batch of clips, sample pictures, and the run's configuration.

The iteration itself is ``inversion.decoupling``; here it gets its networks, its data and its optimizers. ``training``
hands it to ``train.runner``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange

from avatar_jax.inversion.decoupling import Optimizers, decoupling_iteration
from avatar_jax.losses.perception import PerceptionBank
from avatar_jax.methods.otavatar.controller import MotionCode
from avatar_jax.methods.otavatar.invert import avatars_of
from avatar_jax.methods.otavatar.model import (
    ModelConfig,
    driven_codes,
    join,
    merge,
    motion_codes,
    network,
    render_views,
    split_trained,
    w_avg,
)
from avatar_jax.methods.otavatar.objective import prepare_targets, training_objective
from avatar_jax.parallel import ScaleConfig, as_arrays
from avatar_jax.train.loop import LoopConfig
from avatar_jax.train.optimizers import make_optimizer
from avatar_jax.train.run import ClipsConfig, PeopleOutput
from avatar_jax.train.state import Group, TrainState, step_key
from avatar_jax.types import Camera, Portrait

TILE = 128  # pixels of one picture in a sample sheet


@dataclass(frozen=True)
class DataConfig(ClipsConfig):
    """Where clips come from: ``train.run.ClipsConfig``, and

    Attributes:
        cameras: 'any', 'same' or 'front', for clips that several cameras see.
        num_workers: processes that read batches; it does not change them.
    """

    cameras: str = 'any'
    num_workers: int = 0


@dataclass(frozen=True)
class RunConfig:
    """One training run.

    Attributes:
        seed: decides initial weights, data order and all random draws.
        model: networks and method; ``model.settings.train.iterations`` is the length of the run.
        data: the clips. output: logs, samples, checkpoints.
        init: weight file to start from: a path, or the name of a shipped file, of which generator and controller are
            taken, or that of the two which it has (a converted EG3D generator has no controller: that is fresh);
            'generator=FILE', 'controller=FILE' or both joined by a comma name the file of each, and what is not named
            is fresh. '' starts from fresh networks.
        perception: 'name=file' of frozen networks for the losses (see ``losses.perception.NETWORKS``).
        stand_ins: let the losses look through the shipped stand-in networks where nothing better is given.
        parallel: 'pmap', 'shard_map', 'single' or 'sharded'; scale: how a step is made to fit
            (``avatar_jax.parallel``).
    """

    seed: int = 0
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    output: PeopleOutput = field(default_factory=PeopleOutput)
    init: str = ''
    perception: tuple[str, ...] = ()
    stand_ins: bool = True
    parallel: str = 'pmap'
    scale: ScaleConfig = field(default_factory=ScaleConfig)

    # What a resumed run may change.
    MAY_DIFFER = (
        'output.*',
        'data.num_workers',
        'data.num_threads',
        'data.prefetch',
        'data.in_memory',
        'parallel',
        'scale.*',
        'model.generator.remat',
        'model.settings.train.iterations',
        'perception',
    )

    def loop(self) -> LoopConfig:
        """The settings of the loop."""
        return self.output.loop(self.model.settings.train.iterations)


# ------------------------------------------------------------------------------------------------------------- state


def optimizers(config: ModelConfig) -> Optimizers:
    """The four optimizers."""
    o = config.settings.optimizers
    return Optimizers(*(make_optimizer(c) for c in (o.codes, o.intrinsics, o.controller, o.generator)))


def init_state(config: ModelConfig, variables: Mapping[str, Any]) -> TrainState:
    """A state before the first iteration.

    Groups ``controller`` (with its average) and ``generator`` (the parameters that fine-tuning may change; with an
    average if the configuration has one). ``extra`` holds all other variables, which never change.
    """
    moves, settings = optimizers(config), config.settings
    fixed, trained = split_trained(variables['params']['generator'], settings.train.generator_subset)
    groups = {
        'controller': Group.create(variables['params']['controller'], moves.controller, ema=True),
        'generator': Group.create(trained, moves.generator, ema=settings.decoupling.ema_generator),
    }
    extra = {k: v for k, v in variables.items() if k != 'params'} | {'params': {'generator': fixed}}
    return TrainState.create(groups, as_arrays(extra))


def variables_of(state: TrainState, averaged: bool = True) -> dict[str, Any]:
    """The model's variables: averages where there are some (what inference uses), or the raw parameters."""
    pick = {name: group.inference_params if averaged else group.params for name, group in state.groups.items()}
    generator = network(state.extra, 'generator')
    generator = {**generator, 'params': merge(generator['params'], pick['generator'])}
    w_std = state.extra.get('constants', {}).get('w_std')
    return join(generator, {'params': pick['controller']}, w_std)


# --------------------------------------------------------------------------------------------------------- iteration


def train_step(
    config: ModelConfig,
    seed: int,
    state: TrainState,
    batch: Mapping[str, jax.Array],
    bank: PerceptionBank,
    axis_name: str | None = None,
    accumulate: int = 1,
) -> tuple[TrainState, dict[str, jax.Array]]:
    """One iteration of decoupling-by-inverting.

    Args:
        config, seed: static.
        batch: this device's share: ``images`` [B,F,H,W,3] in [-1,1], ``landmarks`` [B,F,68,2] pixels (may be missing:
            the terms that need them are then left out), ``windows`` [B,F,27,70], ``labels`` [B,F,25].
        bank: the frozen networks of the losses.
        accumulate: parts of the share whose gradients are computed one after the other.

    Returns:
        the state and the curves of all terms and norms (see ``inversion.decoupling``).
    """
    targets = prepare_targets(bank, config, batch['images'], batch.get('landmarks'))
    inner = {'windows': batch['windows'], 'labels': batch['labels'], 'targets': targets}
    state, metrics, _, _ = decoupling_iteration(
        state,
        inner,
        step_key(seed, state.step),
        objective=training_objective(config, bank, state.extra),
        config=config.settings.decoupling,
        optimizers=optimizers(config),
        w_avg=w_avg(state.extra),
        num_frames=batch['images'].shape[1],
        axis_name=axis_name,
        accumulate=accumulate,
    )
    return state, metrics


PHASES = ('joint', 'identity', 'controller', 'refine')  # first parts of metric names, in order of time
BATCH_KEYS = ('images', 'landmarks', 'windows', 'labels')


# ----------------------------------------------------------------------------------------------------------- samples


@partial(jax.jit, static_argnames='config')
def _both_ways(variables, codes, biases, windows, labels, *, config):
    """Views of N frames with and without motion: (image, raw) each, [N,...]."""
    from avatar_jax.faces.camera_labels import correct_intrinsics

    labels = correct_intrinsics(labels, biases)
    motion = motion_codes(network(variables, 'controller')['params'], config, windows)
    still = MotionCode(jnp.zeros_like(motion.w_x), motion.alpha, None)
    generator = network(variables, 'generator')
    found = []
    for code in (motion, still):
        views = render_views(
            generator, config.generator, driven_codes(codes, code, config, variables, clamp=False), labels
        )
        found.append((views.image, views.raw))
    return found


def sample_sheet(
    config: ModelConfig, state: TrainState, batch: Mapping[str, np.ndarray], bank: PerceptionBank, people: int
) -> tuple[np.ndarray, dict[str, float]]:
    """What the networks make of the first people of a batch.

    Frame 0 of each is inverted as at inference (with the averages). One column per frame; rows: target; then for the
    raw and the averaged networks: super-resolved and volume-rendered picture, each with and without the motion code.

    Returns:
        the sheet, uint8 [H, W, 3], and scores (``sample/psnr_source``, ``sample/psnr_driven``; averaged networks).
    """
    from avatar_jax.ops.image_metrics import psnr, to_unit
    from avatar_jax.ops.resize import match_size, resize

    batch = {k: np.asarray(v[:people]) for k, v in batch.items() if k in BATCH_KEYS}
    count, frames = batch['windows'].shape[:2]
    averaged, raw = (as_arrays(variables_of(state, a)) for a in (True, False))
    portraits = [_portrait(batch, i) for i in range(count)]
    identities = [avatar.identity for avatar, _ in avatars_of(averaged, config, portraits, bank)]
    codes, biases = (jnp.repeat(jnp.stack([i[k] for i in identities]), frames, 0) for k in ('code', 'bias'))
    windows, labels = (batch[k].reshape(count * frames, *batch[k].shape[2:]) for k in ('windows', 'labels'))
    target = jnp.asarray(batch['images'].reshape(count * frames, *batch['images'].shape[2:]))
    rows, driven = [target], None
    for variables in (raw, averaged):
        (image, low), (image_still, low_still) = _both_ways(variables, codes, biases, windows, labels, config=config)
        rows += [image, image_still, low, low_still]
        driven = image  # of the averaged networks, at the end
    truth = match_size(target, driven.shape[1])
    scores = np.asarray(psnr(to_unit(driven), to_unit(truth))).reshape(count, frames)
    metrics = {'sample/psnr_source': float(scores[:, 0].mean())}
    if frames > 1:
        metrics['sample/psnr_driven'] = float(scores[:, 1:].mean())
    tiles = [np.asarray(jnp.clip(_tile(row, resize), -1, 1)) for row in rows]
    sheet = rearrange(np.stack(tiles), 'rows n h w c -> (rows h) (n w) c')
    return np.round((sheet + 1) * 127.5).astype(np.uint8), metrics


def _tile(images: jax.Array, resize) -> jax.Array:
    return resize(images, TILE, 'area' if images.shape[1] > TILE else 'nearest')


def _portrait(batch: Mapping[str, np.ndarray], index: int) -> Portrait:
    """Frame 0 of a clip as the portrait that inference would get; the centre of its window is its own motion."""
    row = batch['windows'][index, 0][batch['windows'].shape[2] // 2]
    landmarks = batch['landmarks'][index, 0] if 'landmarks' in batch else None
    return Portrait(
        image=batch['images'][index, 0],
        camera=Camera.from_label(batch['labels'][index, 0]),
        expression=row[:64],
        angle=row[64:67],
        translation=row[67:70],
        landmarks=landmarks,
    )
