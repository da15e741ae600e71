"""Trains the prior (generator, mapping, controller) on procedural heads by regression and writes a weight file.

    python -m launch.train_prior --data DIR --val DIR --out DIR [--steps N] [--frame-steps N] [--seed N]

The run resumes from its last checkpoint. See `avatar_jax.bundled.prior` for what is learned and why.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

from launch.program import main

TEXTS = {  # of the options, by field of the configuration
    'seed': 'random seed',
    'steps': 'training steps of all three kinds: points, then rays, then frames',
    'ray_steps': 'how many of them are rays',
    'frame_steps': 'how many of them are frames',
    'batch': 'heads per step of points',
    'ray_batch': 'heads per step of rays',
    'frame_batch': 'heads per step of frames',
    'points': 'rays of each head in a step of points, with two points each',
    'rays': 'rays of each head in a step of rays',
    'lr': 'peak learning rate of the generator',
    'codes_lr': 'peak learning rate of the matrix from traits to codes',
    'controller_lr': 'peak learning rate of the controller',
    'noise_lr': 'peak learning rate of the noise maps',
    'frame_lr': 'peak learning rate in the steps of frames',
    'ema': 'decay of the moving average of the parameters',
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    from avatar_jax.bundled.prior_training import SCHEDULE

    for name, text in (('data', 'heads to train on'), ('val', 'heads to validate on'), ('out', 'folder of the run')):
        parser.add_argument(f'--{name}', type=Path, required=True, metavar='DIR', help=text)
    defaults = prior_config()
    for name in ('seed', *SCHEDULE):
        value, flag = getattr(defaults, name), '--' + name.replace('_', '-')
        text = f'{TEXTS[name]} (default: {value})'
        parser.add_argument(flag, type=type(value), default=value, metavar=name.split('_')[-1].upper(), help=text)


def prior_config(**options):
    """The ``PriorConfig`` of the shipped prior, with other ``options``."""
    from avatar_jax.bundled.prior import PriorConfig
    from configs._heads import heads_controller, heads_generator

    generator = heads_generator()
    return PriorConfig(generator, heads_controller(generator), **options)


def run(args: argparse.Namespace) -> int:
    """Command: returns the exit status."""
    from avatar_jax.bundled import prior, prior_training
    from avatar_jax.configure import from_plain
    from avatar_jax.methods.otavatar.model import ModelConfig
    from avatar_jax.train.checkpoints import config_dict
    from configs.otavatar_heads import get_config
    from data_pipelines.prior_batches import PriorData, random_heads

    config = prior_config(**{name: getattr(args, name) for name in ('seed', *prior_training.SCHEDULE)})
    data, val = PriorData(args.data), PriorData(args.val, limit=64)
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / 'config.json').write_text(json.dumps(config_dict(config), indent=1))
    began = time.monotonic()
    state = prior_training.train(config, data, val, args.out)
    _, constants = prior.init_state(config)
    facts = {
        'command': 'python -m launch.train_prior',
        'config': config_dict(config),
        'data': 'fast_heads, split train',
        'samples': len(data),
        'seed': config.seed,
        'validation': prior_training.validate(config, state, constants, val),
        'seconds_of_this_run': round(time.monotonic() - began),
    }
    settings = from_plain(ModelConfig, get_config().model.to_dict()).method
    path = args.out / 'heads128.safetensors'
    print(prior_training.export(config, settings, state, constants, random_heads(config.seed), path, facts))
    return 0


if __name__ == '__main__':
    sys.exit(main(__doc__, add_arguments, run))
