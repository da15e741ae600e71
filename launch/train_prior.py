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

from avatar_jax.options import add_options, from_arguments
from launch.program import main


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    from avatar_jax.bundled.prior import PriorConfig

    for name, text in (('data', 'heads to train on'), ('val', 'heads to validate on'), ('out', 'folder of the run')):
        parser.add_argument(f'--{name}', type=Path, required=True, metavar='DIR', help=text)
    add_options(parser, PriorConfig)


def run(args: argparse.Namespace) -> int:
    """Command: returns the exit status."""
    from avatar_jax.bundled import prior, prior_training
    from avatar_jax.configure import from_plain, to_plain
    from avatar_jax.methods.otavatar.model import ModelConfig
    from configs._heads import heads_controller, heads_generator
    from configs.otavatar_heads import get_config
    from data_pipelines.prior_batches import PriorData, random_heads

    generator = heads_generator()
    config = from_arguments(prior.PriorConfig, args, generator=generator, controller=heads_controller(generator))
    data, val = PriorData(args.data), PriorData(args.val, limit=64)
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / 'config.json').write_text(json.dumps(to_plain(config), indent=1))
    began = time.monotonic()
    state = prior_training.train(config, data, val, args.out)
    _, constants = prior.init_state(config)
    facts = {
        'command': 'python -m launch.train_prior',
        'config': to_plain(config),
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
