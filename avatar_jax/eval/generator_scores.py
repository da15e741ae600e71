"""All scores of a trained generator: distribution, identity over views, pose and depth, with the networks at hand.

Without the Inception weights of the FID, distances are taken on the features of a stand-in network that was trained on
procedural heads, and are named after it: they are not FIDs. Identity, pose and depth are scored for generators of
procedural heads.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from avatar_jax.errors import UserError
from avatar_jax.eval import generators
from avatar_jax.eval.feature_sets import collect, spread
from avatar_jax.losses.networks import default_bank
from avatar_jax.losses.perception import PerceptionBank
from avatar_jax.models.perception.inception import fid_features
from avatar_jax.models.triplane import GeneratorConfig
from avatar_jax.procedural import render_head

# A code of so many numbers is the latent from which procedural heads are made (identity, light): the truth is known.
HEAD_LATENT, IDENTITY = 200, 192


def generator_scores(
    weights: tuple[Mapping[str, Any], GeneratorConfig, str],
    source: generators.RealPictures,
    out: Path,
    *,
    count: int,
    real_count: int = 0,
    inception: Path | None = None,
    batch: int = 16,
    people: int = 64,
    seed: int = 0,
) -> dict[str, Any]:
    """All scores that the networks at hand and the generator's latent allow.

    Args:
        weights: variables, configuration and SHA-256 of a generator.
        source: of the real pictures.
        out: folder that keeps features, so that an interrupted measurement goes on.
        count, real_count: generated and real pictures; 0 real ones: all.
        inception: weights of the Inception network of the FID; None: a stand-in, after which the scores are named.
        batch: pictures at a time, over all devices.
        people: for identity, depth and pose; 0 leaves these out.
        seed: of codes, cameras and subsets.

    Raises:
        UserError: too few real pictures; no network for pictures of this size; ``out`` belongs to another measurement.
    """
    variables, config, digest = weights
    labels = np.asarray(source.all_labels(), np.float32)
    real_count = min(real_count or len(source), len(source))
    if real_count < 4:
        raise UserError(f'--data: {real_count} pictures are too few for a distribution; at least 4 are needed')
    bank, network, features = feature_network(inception, config.img_resolution)
    common = {'network': network, 'data': source.fingerprint()}
    real = collect(
        out / 'real',
        common,
        real_count,
        generators.real_features(source, bank, features, batch),
        label='real pictures',
    )
    fake = collect(
        out / 'fake',
        {**common, 'weights': digest, 'seed': seed},
        count,
        generators.fake_features(variables, config, labels, bank, features, seed, batch),
        label='generated pictures',
    )
    found = generators.distribution_scores(real, fake, seed)
    if inception is None:
        found = {{'fid': 'frechet_stand_in', 'kid': 'kernel_stand_in'}.get(k, k): v for k, v in found.items()}
    scores = {'weights': digest, **common, 'generated': count, 'real': real_count, **found}
    if people:
        scores |= head_scores(variables, config, labels, people, seed)
    return scores


def feature_network(inception: Path | None, resolution: int) -> tuple[Any, str, Callable]:
    """Parameters, name and function of the network whose features are compared.

    Raises:
        UserError: no weights were given and there is no stand-in for pictures of this size.
    """
    if inception is not None:
        bank = PerceptionBank.load({'inception': inception})
        return bank.weights['inception'], f'Inception ({dict(bank.sources)["inception"]})', fid_features
    bank = default_bank(resolution)
    if not bank.has('head_identity'):
        raise UserError('--inception: give the Inception weights; there is no stand-in for pictures of this size')
    name = f'stand-in: head_identity ({dict(bank.sources)["head_identity"]})'
    return bank, name, lambda bank, images: bank.apply('head_identity', images * 2 - 1)


def head_scores(
    variables: Mapping[str, Any], config: GeneratorConfig, labels: np.ndarray, people: int, seed: int
) -> dict[str, Any]:
    """Identity, pose and depth, as far as the networks and the generator's latent allow."""
    bank, scores = default_bank(config.img_resolution), {}
    if not bank.has('head_identity') or not bank.has('head_coefficients'):
        return {'heads': 'unavailable: needs the stand-in networks for procedural heads'}
    embed = jax.jit(lambda b, x: b.apply('head_identity', x))
    found = generators.identity_consistency(variables, config, labels, lambda x: embed(bank, x), people, seed)
    scores['identity'] = {'network': 'stand-in: head_identity', **found}

    render = spread(lambda v, z, c: generators.generate(v, config, z, c))
    z, row = generators.sample_codes(seed, 0, people, config.z_dim, len(labels))
    truth = true_heads(z, labels[row], config.neural_rendering_resolution) if config.z_dim == HEAD_LATENT else None
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


def true_heads(z: np.ndarray, labels: np.ndarray, resolution: int) -> tuple[np.ndarray, np.ndarray]:
    """Depth [N, R, R] and mask of the neutral heads of latents [N, 200], seen from cameras [N, 25]."""
    depth, mask = [], []
    for latent, label in zip(z, labels, strict=True):
        head = render_head(latent[:IDENTITY], np.zeros(64, np.float32), label, resolution=resolution, supersample=1)
        depth.append(np.asarray(head.depth, np.float32))
        mask.append(np.asarray(head.mask, np.float32))
    return np.stack(depth), np.stack(mask)
