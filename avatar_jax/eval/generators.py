"""Scores of a tri-plane generator: distribution of its pictures, identity over views, depth and pose against truth.

The protocols of EG3D: codes from a normal distribution, cameras drawn from the data set and used for conditioning and
rendering alike, no truncation, random noise, 8-bit pictures.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from avatar_jax.eval.distributions import frechet_distance, kernel_distance, precision_recall
from avatar_jax.eval.feature_sets import bytes_of, spread
from avatar_jax.eval.statistics import pearson
from avatar_jax.faces.camera_labels import pose_from_label, yaw_label
from avatar_jax.losses.perception import PerceptionBank
from avatar_jax.models.fresh_noise import noise_size, planes_of
from avatar_jax.models.triplane import GeneratorConfig, TriPlaneGenerator
from avatar_jax.render.sampling import RenderDraws
from avatar_jax.types import PyTree

Embed = Callable[[jax.Array], jax.Array]


def sample_codes(seed: int, first: int, count: int, z_dim: int, num_labels: int) -> tuple[np.ndarray, np.ndarray]:
    """Codes [count, z_dim] and label rows [count] of the samples from ``first`` on; sample i depends on (seed, i)."""
    rngs = [np.random.Generator(np.random.Philox(key=[seed, i])) for i in range(first, first + count)]
    z = np.stack([r.standard_normal(z_dim) for r in rngs]).astype(np.float32)
    return z, np.asarray([r.integers(0, num_labels) for r in rngs])


def generate(
    variables: Mapping[str, PyTree],
    config: GeneratorConfig,
    z: jax.Array,
    c: jax.Array,
    numbers: jax.Array | None = None,
) -> dict[str, jax.Array]:
    """Pictures of codes [N, z_dim] from cameras [N, 25]; ``numbers`` [N] seed each sample's noise and jitter (None:
    none).

    Returns:
        image, image_raw, image_depth, opacity as ``TriPlaneGenerator.synthesis``.
    """
    model, size = TriPlaneGenerator(config), config.neural_rendering_resolution
    condition = jnp.zeros_like(c) if config.rendering.gpc_reg_prob is None else c
    ws = model.apply(variables, z, condition, method='mapping')
    if numbers is None:
        return model.apply(variables, ws, c, method='synthesis')
    keys = jax.vmap(jax.random.key)(numbers)
    maps = jax.vmap(lambda k: jax.random.normal(jax.random.fold_in(k, 0), (noise_size(variables['noise']),)))(keys)
    draws = jax.vmap(lambda k: RenderDraws.from_key(jax.random.fold_in(k, 1), config.rendering, 1, size**2))(keys)
    planes = planes_of(model, variables, ws, maps)
    draws = jax.tree.map(lambda x: x[:, 0], draws)
    return model.apply(variables, ws, c, draws=draws, planes=planes, method='synthesis')


def fake_features(
    variables: Mapping[str, PyTree],
    config: GeneratorConfig,
    labels: np.ndarray,
    bank: PerceptionBank,
    features: Callable[[Any, jax.Array], jax.Array],
    seed: int,
    batch: int,
) -> Callable[[int, int], np.ndarray]:
    """(first, count) -> features of generated pictures, computed over all local devices.

    Args:
        labels: [M, 25] cameras of the data set. bank: parameters of the feature network.
        features: (bank, images [N, H, W, 3] in [0, 1]) -> [N, D].
    """

    def run(constants, z, c, numbers):
        variables, bank = constants
        return features(bank, bytes_of(generate(variables, config, z, c, numbers)['image']) / 255)

    compiled, constants = spread(run), (dict(variables), bank)

    def compute(first: int, count: int) -> np.ndarray:
        rows = []
        for start in range(first, first + count, batch):
            size = min(batch, first + count - start)
            z, row = sample_codes(seed, start, size, config.z_dim, len(labels))
            numbers = np.arange(start, start + size, dtype=np.int32)
            rows.append(compiled(constants, *_padded(batch, z, labels[row], numbers))[:size])
        return np.concatenate(rows)

    return compute


class RealPictures(Protocol):
    """Real pictures and their cameras (``data_pipelines.image_sources``)."""

    def __len__(self) -> int:
        """N."""

    def __getitem__(self, index: int) -> Mapping[str, np.ndarray]:
        """``image`` [H, W, 3] uint8 and ``label`` [25]."""

    def all_labels(self) -> np.ndarray:
        """[N, 25]."""

    def fingerprint(self) -> str:
        """The same for the same pictures."""


def real_features(
    source: RealPictures, bank: PerceptionBank, features: Callable[[Any, jax.Array], jax.Array], batch: int
) -> Callable[[int, int], np.ndarray]:
    """(first, count) -> features of the pictures of a source."""
    compiled = spread(lambda bank, images: features(bank, images.astype(jnp.float32) / 255))

    def compute(first: int, count: int) -> np.ndarray:
        rows = []
        for start in range(first, first + count, batch):
            size = min(batch, first + count - start)
            images = np.stack([source[i]['image'] for i in range(start, start + size)])
            rows.append(compiled(bank, *_padded(batch, images))[:size])
        return np.concatenate(rows)

    return compute


def _padded(size: int, *arrays: np.ndarray) -> list[np.ndarray]:
    """Arrays filled up to ``size`` rows with their first one, so that one program serves all."""
    return [np.concatenate([a, np.repeat(a[:1], size - len(a), 0)]) if len(a) < size else a for a in arrays]


def distribution_scores(real: np.ndarray, fake: np.ndarray, seed: int = 0) -> dict[str, float]:
    """FID, KID (times 1, mean over 100 subsets of up to 1000), precision and recall of two feature sets [N, D]."""
    precision, recall = precision_recall(real, fake)
    subsets = 100 if min(len(real), len(fake)) > 1000 else None
    return {
        'fid': frechet_distance(real, fake),
        'kid': kernel_distance(fake, real, subsets, seed=seed),
        'precision': precision,
        'recall': recall,
    }


def identity_consistency(
    variables: Mapping[str, PyTree],
    config: GeneratorConfig,
    labels: np.ndarray,
    embed: Embed,
    people: int,
    seed: int = 0,
    degrees: tuple[float, ...] = (-30.0, 0.0, 30.0),
) -> dict[str, float]:
    """How much one code remains one person when the camera moves.

    Each person is seen from a camera of the data set turned by ``degrees`` around the head, with one style.

    Args:
        embed: images [N, H, W, 3] in [-1, 1] -> embeddings [N, D].

    Returns:
        ``same``: mean cosine between views of one person; ``different``: between people, for comparison.
    """
    run = spread(lambda v, z, c, d: _turned(v, config, z, c, d))
    z, row = sample_codes(seed, 0, people, config.z_dim, len(labels))
    views = []
    for angle in degrees:
        turn = np.full(people, np.deg2rad(angle), np.float32)
        views.append(np.asarray(embed(jnp.asarray(run(dict(variables), z, labels[row], turn)))))
    x = np.stack(views, 1)
    x = x / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), 1e-12)  # [people, views, D]
    same = np.einsum('pid,pjd->pij', x, x)
    off = ~np.eye(len(degrees), dtype=bool)
    different = np.einsum('pid,qid->pqi', x, x)[~np.eye(people, dtype=bool)] if people > 1 else np.full(1, np.nan)
    return {'same': float(same[:, off].mean()), 'different': float(different.mean())}


def _turned(variables, config, z, c, radians):
    model = TriPlaneGenerator(config)
    condition = jnp.zeros_like(c) if config.rendering.gpc_reg_prob is None else c
    ws = model.apply(variables, z, condition, method='mapping')
    return model.apply(variables, ws, yaw_label(c, radians), method='synthesis')['image']


def pose_error(angles: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Geodesic distance in degrees [N] between estimated head angles [N, 3] and those that cameras [N, 25] stand
    for.
    """
    from avatar_jax.faces.pose import rotation_matrix

    wanted, _ = pose_from_label(np.asarray(labels, np.float64))
    a, b = (np.asarray(rotation_matrix(x)) for x in (np.asarray(angles, np.float64), wanted))
    trace = np.einsum('nij,nij->n', a, b)
    return np.rad2deg(np.arccos(np.clip((trace - 1) / 2, -1, 1)))


def depth_scores(depth: np.ndarray, opacity: np.ndarray, true_depth: np.ndarray, mask: np.ndarray) -> dict[str, float]:
    """Rendered depth against the truth where both show the head.

    Args:
        depth, opacity: [N, R, R]. true_depth, mask: [N, R, R], distances along the ray and coverage in [0, 1].

    Returns:
        ``depth_error``: mean absolute difference in world units after removing each picture's mean offset, which one
        camera cannot tell from size; ``depth_offset``: mean absolute size of that offset; ``depth_correlation``;
        ``overlap``: intersection over union of the silhouettes.
    """
    errors, offsets, correlations, overlaps = [], [], [], []
    for d, o, t, m in zip(depth, opacity, true_depth, mask, strict=True):
        ours, truth = o > 0.5, (m > 0.5) & (t > 0)
        both = ours & truth
        overlaps.append(both.sum() / max((ours | truth).sum(), 1))
        if both.sum() < 8:
            continue
        difference = (d - t)[both].astype(np.float64)
        offsets.append(abs(difference.mean()))
        errors.append(np.abs(difference - difference.mean()).mean())
        correlations.append(pearson(d[both], t[both]))
    mean = lambda x: float(np.mean(x)) if x else float('nan')
    return {
        'depth_error': mean(errors),
        'depth_offset': mean(offsets),
        'depth_correlation': mean(correlations),
        'overlap': mean(overlaps),
    }
