"""Scores of a trained generator: FID, KID, precision and recall, identity over views, depth and pose.

    avatar-jax metrics --weights RUN|FILE|NAME --out DIR --source fast_heads --data heads [--count 50000]
        [--inception inception.npz]

FID and KID need the public Inception weights of the FID (``--inception``, an .npz of its state dict or what
``avatar-jax convert`` made of it). Without them the same distances are taken on the features of a stand-in network that
was trained on procedural heads, and are named after it: they are not FIDs. Identity, pose and depth are scored for
generators of procedural heads. A run that was interrupted goes on; a larger ``--count`` uses what a smaller one left.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from avatar_jax.errors import UserError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the subcommand."""
    parser.add_argument(
        '--weights',
        required=True,
        metavar='FILE|NAME|RUN',
        help='weight file, the name of one in the package, or the folder of a training run',
    )
    parser.add_argument('--out', required=True, type=Path, metavar='DIR', help='folder for features and scores')
    parser.add_argument(
        '--source', default='rendered', help="real pictures: 'eg3d', 'built', 'fast_heads', 'rendered' (default)"
    )
    parser.add_argument(
        '--data', default='', metavar='PATH', help='folder or zip of the real pictures (not for rendered)'
    )
    parser.add_argument('--split', default='val', help='split of the real pictures (default: val)')
    parser.add_argument('--count', type=int, default=50000, help='number of generated pictures (default: 50000)')
    parser.add_argument(
        '--real-count', type=int, default=0, help='number of real ones (default: all; rendered: --count)'
    )
    parser.add_argument('--inception', type=Path, help='weights of the Inception network that FIDs are defined with')
    parser.add_argument(
        '--batch', type=int, default=16, help='pictures per batch, on all devices together (default: 16)'
    )
    parser.add_argument(
        '--people', type=int, default=64, help='people for identity, depth and pose; 0: none (default: 64)'
    )
    parser.add_argument('--seed', type=int, default=0, help='random seed of the generated pictures (default: 0)')


def run(args: argparse.Namespace) -> int:
    """Runs the subcommand; returns the exit status."""
    from avatar_jax.io.atomic import json_text, output_folder, write_json

    if args.count < 4 or args.batch < 1 or args.people < 0:
        raise UserError('--count must be at least 4, --batch at least 1 and --people not negative')
    scores = measure(args.weights, output_folder(args.out), args)
    write_json(args.out / 'scores.json', scores)
    print(json_text(scores))
    return 0


def measure(weights: str, out: Path, args: Any) -> dict[str, Any]:
    """All scores that the options allow; see the module text."""
    from avatar_jax.eval import generators
    from avatar_jax.eval.feature_sets import collect
    from avatar_jax.methods.eg3d.config import DataConfig
    from avatar_jax.methods.eg3d.files import load_generator
    from data_pipelines.image_sources import open_images

    variables, config, digest = load_generator(weights)
    data = DataConfig(source=args.source, folder=args.data, split=args.split, count=args.real_count or args.count)
    source = open_images(data, config.img_resolution)
    labels = np.asarray(source.all_labels(), np.float32)
    real_count = min(args.real_count or len(source), len(source))
    if real_count < 4:
        raise UserError(f'--data: {real_count} pictures are too few for a distribution; at least 4 are needed')
    bank, network, features = feature_network(args.inception, config.img_resolution)
    common = {'network': network, 'data': source.fingerprint()}
    real = collect(
        out / 'real',
        common,
        real_count,
        generators.real_features(source, bank, features, args.batch),
        label='real pictures',
    )
    fake = collect(
        out / 'fake',
        {**common, 'weights': digest, 'seed': args.seed},
        args.count,
        generators.fake_features(variables, config, labels, bank, features, args.seed, args.batch),
        label='generated pictures',
    )
    found = generators.distribution_scores(real, fake, args.seed)
    if args.inception is None:
        found = {{'fid': 'frechet_stand_in', 'kid': 'kernel_stand_in'}.get(k, k): v for k, v in found.items()}
    scores = {'weights': digest, **common, 'generated': args.count, 'real': real_count, **found}
    if args.people:
        scores |= head_scores(variables, config, labels, args.people, args.seed)
    return scores


def feature_network(inception: Path | None, resolution: int) -> tuple[Any, str, Callable]:
    """Parameters, name and function of the network whose features are compared.

    Raises:
        UserError: no weights were given and there is no stand-in for pictures of this size.
    """
    from avatar_jax.losses.networks import default_bank
    from avatar_jax.losses.perception import PerceptionBank
    from avatar_jax.models.perception.inception import fid_features

    if inception is not None:
        bank = PerceptionBank.load({'inception': inception})
        return bank.weights['inception'], f'Inception ({dict(bank.sources)["inception"]})', fid_features
    bank = default_bank(resolution)
    if not bank.has('head_identity'):
        raise UserError('--inception: give the Inception weights; there is no stand-in for pictures of this size')
    name = f'stand-in: head_identity ({dict(bank.sources)["head_identity"]})'
    return bank, name, lambda bank, images: bank.apply('head_identity', images * 2 - 1)


def head_scores(
    variables: Mapping[str, Any], config: Any, labels: np.ndarray, people: int, seed: int
) -> dict[str, Any]:
    """Identity, pose and depth, as far as the networks and the generator's latent allow."""
    import jax

    from avatar_jax.eval import generators
    from avatar_jax.eval.feature_sets import spread
    from avatar_jax.losses.networks import default_bank

    bank, scores = default_bank(config.img_resolution), {}
    if not bank.has('head_identity') or not bank.has('head_coefficients'):
        return {'heads': 'unavailable: needs the stand-in networks for procedural heads'}
    embed = jax.jit(lambda b, x: b.apply('head_identity', x))
    found = generators.identity_consistency(variables, config, labels, lambda x: embed(bank, x), people, seed)
    scores['identity'] = {'network': 'stand-in: head_identity', **found}

    render = spread(lambda v, z, c: generators.generate(v, config, z, c))
    z, row = generators.sample_codes(seed, 0, people, config.z_dim, len(labels))
    truth = true_heads(z, labels[row], config.neural_rendering_resolution) if has_head_latent(config) else None
    out = render(dict(variables), z, labels[row])
    angles = jax.jit(lambda b, x: b.apply('head_coefficients', x).angle)
    scores['pose'] = {
        'network': 'stand-in: head_coefficients',
        'degrees': float(generators.pose_error(angles(bank, out['image']), labels[row]).mean()),
    }
    if truth is None:
        scores['depth'] = 'unavailable: the generator does not take the latent of procedural heads'
    else:
        scores['depth'] = generators.depth_scores(out['image_depth'][..., 0], out['opacity'][..., 0], *truth)
    return scores


def has_head_latent(config: Any) -> bool:
    """Whether a generator's code is the latent from which procedural heads are made, so that the truth is known."""
    from data_pipelines.prior_batches import LATENT_DIM

    return config.z_dim == LATENT_DIM


def true_heads(z: np.ndarray, labels: np.ndarray, resolution: int) -> tuple[np.ndarray, np.ndarray]:
    """Depth [N, R, R] and mask of the neutral heads of latents [N, 200], seen from cameras [N, 25]."""
    from avatar_jax.procedural import render_head

    depth, mask = [], []
    for latent, label in zip(z, labels, strict=True):
        head = render_head(latent[:192], np.zeros(64, np.float32), label, resolution=resolution, supersample=1)
        depth.append(np.asarray(head.depth, np.float32))
        mask.append(np.asarray(head.mask, np.float32))
    return np.stack(depth), np.stack(mask)
