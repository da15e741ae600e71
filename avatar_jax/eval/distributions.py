"""Distances between sets of image features: Frechet distance (FID) and kernel distance (KID), in float64.

The features themselves (2048 numbers of the FID Inception network) come from the caller. With fewer samples than
features the covariances are singular and FID is strongly biased: compare values only within one table.
"""

from __future__ import annotations

import numpy as np


def moments(features: np.ndarray, ddof: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Mean [D] and covariance [D, D] of features [N, D]; ``ddof=0`` as in EG3D, 1 as in pytorch-fid."""
    x = np.asarray(features, np.float64)
    if len(x) <= ddof:
        raise ValueError(f'{len(x)} samples are too few for a covariance')
    mean = x.mean(0)
    centred = x - mean
    return mean, centred.T @ centred / (len(x) - ddof)


def frechet_from_moments(mean_a, covariance_a, mean_b, covariance_b) -> float:
    """|m_a - m_b|^2 + tr(C_a + C_b - 2 (C_a C_b)^(1/2)).

    The trace of the root is the sum of the roots of the eigenvalues of C_a^(1/2) C_b C_a^(1/2), which are real and
    non-negative also when the covariances are singular.
    """
    ca, cb = np.asarray(covariance_a, np.float64), np.asarray(covariance_b, np.float64)
    values, vectors = np.linalg.eigh(ca)
    root = (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T
    product = root @ cb @ root
    cross = np.sqrt(np.maximum(np.linalg.eigvalsh((product + product.T) / 2), 0)).sum()
    return float(((mean_a - mean_b) ** 2).sum() + np.trace(ca) + np.trace(cb) - 2 * cross)


def frechet_distance(features_a: np.ndarray, features_b: np.ndarray, ddof: int = 0) -> float:
    """Frechet distance of two feature sets [N, D], [M, D]; ``ddof`` as in ``moments``."""
    return frechet_from_moments(*moments(features_a, ddof), *moments(features_b, ddof))


def _unbiased_mmd(x: np.ndarray, y: np.ndarray) -> float:
    def kernel(a, b):
        return (a @ b.T / a.shape[1] + 1) ** 3

    m, n = len(x), len(y)
    kx, ky = kernel(x, x), kernel(y, y)
    within = (kx.sum() - np.trace(kx)) / (m * (m - 1)) + (ky.sum() - np.trace(ky)) / (n * (n - 1))
    return float(within - 2 * kernel(x, y).mean())


def kernel_distance(
    features_a: np.ndarray,
    features_b: np.ndarray,
    subsets: int | None = None,
    subset_size: int = 1000,
    seed: int = 0,
) -> float:
    """KID: unbiased squared MMD with the kernel (x.y / D + 1)^3.

    Args:
        features_a, features_b: [N, D], [M, D] with at least two samples each.
        subsets: None uses all samples once; else the mean over this many random subsets (EG3D: 100 of 1000).
        subset_size: samples per subset, at most min(N, M).
        seed: of the subsets.
    """
    x, y = np.asarray(features_a, np.float64), np.asarray(features_b, np.float64)
    if min(len(x), len(y)) < 2:
        raise ValueError('KID needs at least two samples on each side')
    if subsets is None:
        return _unbiased_mmd(x, y)
    rng = np.random.default_rng(seed)
    size = min(subset_size, len(x), len(y))
    draws = (
        _unbiased_mmd(x[rng.choice(len(x), size, replace=False)], y[rng.choice(len(y), size, replace=False)])
        for _ in range(subsets)
    )
    return float(np.mean(list(draws)))


def precision_recall(real: np.ndarray, fake: np.ndarray, neighbours: int = 3, block: int = 2048) -> tuple[float, float]:
    """Share of fakes inside the real manifold, and of reals inside the fake one (Kynkaanniemi et al. 2019).

    A manifold is the union of balls around its samples, each reaching to the ``neighbours``-th nearest other sample
    (EG3D: 3, on VGG-16 features; with other features values are comparable among themselves only).

    Args:
        real, fake: features [N, D], [M, D], more than ``neighbours`` of each.
        block: rows of the distance matrix in memory at once.
    """
    real, fake = np.asarray(real, np.float64), np.asarray(fake, np.float64)
    if min(len(real), len(fake)) <= neighbours:
        raise ValueError(f'precision and recall need more than {neighbours} samples on each side')

    def distances(a, b):
        for start in range(0, len(a), block):
            part = a[start : start + block]
            squared = (part**2).sum(1)[:, None] + (b**2).sum(1) - 2 * part @ b.T
            yield np.maximum(squared, 0)

    def radii(x):
        return np.concatenate([np.partition(d, neighbours, axis=1)[:, neighbours] for d in distances(x, x)])

    def covered(points, centres):
        reach = radii(centres)
        return float(np.concatenate([(d <= reach).any(1) for d in distances(points, centres)]).mean())

    return covered(fake, real), covered(real, fake)
