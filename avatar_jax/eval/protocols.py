"""Scores of one test case: rebuild the person from the portrait, make every view, compare with the truth.

The method is two callables, so that anything that follows the project's interface can be tested:

    build(portrait, or a list of several) -> avatar
    animate(avatar, windows [B, 27, 70], labels [B, 25]) -> Frames (rgb [B, H, W, 3] in [-1, 1])

Every score has a dotted name, ``<group>.<score>``:

| group | what is compared |
|---|---|
| ``source`` | the portrait's own view |
| ``view_-30``, ``view_+30``, ``views`` | unseen views, by the camera's yaw, and their mean |
| ``driven`` | driven frames with the true pictures |
| ``frozen`` | baseline: the same avatar and poses, the source expression kept |
| ``frozen_truth`` | baseline: perfect pictures with the source expression kept |
| ``gain`` | ``driven`` minus the baselines |
| ``control`` | how measured mouth and eye openings follow the driver |
| ``steady`` | how much frames that follow one another change, and how much the true pictures do |
| ``cross`` | another person drives: identity with the portrait; expression, pose and points with the driver |
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
import numpy as np

from avatar_jax.eval import faces
from avatar_jax.eval.cases import Case, TrueViews, keep_expression
from avatar_jax.eval.estimators import Estimators
from avatar_jax.eval.shape import neutral_vertices
from avatar_jax.eval.statistics import pearson
from avatar_jax.ops import image_metrics as image
from avatar_jax.ops.coefficients import SLICES
from avatar_jax.ops.windows import RADIUS
from avatar_jax.types import Avatar

ANIMATE_BATCH = 8
NEEDS_OWN_TRUTH = ('csim_truth', 'csim_ceiling', 'lpips', 'lpips_vgg', 'lpips_squeeze', 'avd_floor')


@dataclass
class CaseResult:
    """Scores of one case.

    Attributes:
        scores: dotted name -> number; NaN where the case does not define it.
        unavailable: dotted name -> reason, for scores that need something which is not at hand.
        frames: per-frame measurements, name -> [T].
        pictures: name -> [T, H, W, 3] in [-1, 1], for a contact sheet.
        features: 'made' and 'real' -> [T, D] of the FID's network, where there is one.
    """

    scores: dict[str, float] = field(default_factory=dict)
    unavailable: dict[str, str] = field(default_factory=dict)
    frames: dict[str, np.ndarray] = field(default_factory=dict)
    pictures: dict[str, np.ndarray] = field(default_factory=dict)
    features: dict[str, np.ndarray] = field(default_factory=dict)


def animate_all(animate: Callable, avatar: Avatar, windows: np.ndarray, labels: np.ndarray, batch: int) -> np.ndarray:
    """All frames through ``animate`` in batches of one size (one compilation), the last one padded.

    Returns:
        rgb [T, H, W, 3].

    Raises:
        FloatingPointError: a frame has NaN or infinite pixels.
    """
    count, frames = len(windows), []
    for start in range(0, count, batch):
        index = np.minimum(np.arange(start, start + batch), count - 1)
        frames.append(np.asarray(animate(avatar, windows[index], labels[index]).rgb, np.float32))
    rgb = np.concatenate(frames)[:count]
    if not np.isfinite(rgb).all():
        raise FloatingPointError('the avatar renders NaN or infinite pixels')
    return rgb


def run_case(
    case: Case,
    build: Callable,
    animate: Callable,
    estimators: Estimators | None = None,
    batch: int = ANIMATE_BATCH,
) -> CaseResult:
    """Rebuilds, drives and scores one person; see the module docstring.

    Args:
        case: the person and the truth.
        build, animate: the method.
        estimators: networks for the scores that need one; without, those are ``unavailable``.
        batch: frames per call of ``animate``.

    Raises:
        ValueError: the avatar's pictures have another size than the truth.
    """
    estimators = Estimators() if estimators is None else estimators
    avatar = build(case.portraits)
    novel = () if case.novel is None else (case.novel,)
    frozen = keep_expression(case.driven.windows, case.source.windows[0])
    steady = () if case.steady is None else (case.steady,)
    parts = [(v.windows, v.labels) for v in (case.source, *novel, case.driven)]
    parts += [(frozen, case.driven.labels), *((v.windows, v.labels) for v in steady)]
    rgb = animate_all(animate, avatar, *(np.concatenate(x) for x in zip(*parts, strict=True)), batch)
    if rgb.shape[1:] != case.source.truth.shape[1:]:
        raise ValueError(f'the avatar renders {rgb.shape[1:3]}, the truth has {case.source.truth.shape[1:3]}')
    pieces = iter(np.split(rgb, np.cumsum([len(w) for w, _ in parts])[:-1]))

    result = CaseResult()
    source = next(pieces)
    result.pictures |= {'source_truth': case.source.truth, 'source': source}
    _compare(result, 'source', source, case.source, case, estimators)
    if case.novel is not None:
        views = next(pieces)
        result.pictures |= {'views_truth': case.novel.truth, 'views': views}
        for k, name in enumerate(case.novel_names):
            _compare(result, name, views[k : k + 1], _one(case.novel, k), case, estimators)
        for name in [k.partition('.')[2] for k in result.scores if k.startswith(case.novel_names[0] + '.')]:
            result.scores[f'views.{name}'] = np.mean([result.scores[f'{view}.{name}'] for view in case.novel_names])
    driven, kept = next(pieces), next(pieces)
    result.pictures |= {'driven_truth': case.driven.truth, 'driven': driven, 'frozen': kept}
    if case.steady is not None:
        _steadiness(result.scores, next(pieces), case.steady)
    if case.cross:
        _through_networks(result, 'cross', driven, case.driven, case, estimators)
    else:
        _compare(result, 'driven', driven, case.driven, case, estimators)
        _compare(result, 'frozen', kept, case.driven, case, estimators)
        if case.frozen_truth is not None:
            _compare(result, 'frozen_truth', case.frozen_truth, case.driven, case, estimators)
        _gains(result.scores)
        _control(result, case, driven)
    if estimators.inception is not None:
        real = case.driven.truth if case.real is None else case.real
        for name, shown in (('made', driven), ('real', real)):
            parts = [estimators.inception.call(shown[k : k + batch]) for k in range(0, len(shown), batch)]
            result.features[name] = np.concatenate([np.asarray(x, np.float32) for x in parts])
    for name, value in list(result.scores.items()):
        result.scores[name] = float(value)
    return result


def _one(views: TrueViews, k: int) -> TrueViews:
    def part(x):
        return None if x is None else x[k : k + 1]

    return TrueViews(*(part(x) for x in (views.windows, views.labels, views.truth, views.mask, views.landmarks)))


@jax.jit
def _picture_scores(rgb, truth, mask, landmarks) -> dict[str, jax.Array]:
    """Per-frame scores [T] of pictures in [-1, 1]; ``mask`` and ``landmarks`` may be None."""
    ours, truth = image.to_unit(rgb), image.to_unit(truth)
    scores = {'psnr': image.psnr(ours, truth), 'ssim': image.ssim(ours, truth), 'l1': image.l1(ours, truth)}
    if mask is not None:
        scores['psnr_head'] = image.psnr(ours, truth, mask=mask)
        scores['ssim_head'] = image.ssim(ours, truth, mask=mask)
    if landmarks is not None:
        for region, box in faces.region_boxes(landmarks, rgb.shape[1]).items():
            scores[f'psnr_{region}'] = image.psnr(ours, truth, mask=box)
            scores[f'l1_{region}'] = image.l1(ours, truth, mask=box)
    return scores


def _compare(
    result: CaseResult, group: str, rgb: np.ndarray, views: TrueViews, case: Case, estimators: Estimators
) -> None:
    """All scores of pictures against the truth of the same views, averaged over frames."""
    for name, value in _picture_scores(rgb, views.truth, views.mask, views.landmarks).items():
        result.scores[f'{group}.{name}'] = np.mean(value)
    _through_networks(result, group, rgb, views, case, estimators)


def _through_networks(
    result: CaseResult, group: str, rgb: np.ndarray, views: TrueViews, case: Case, estimators: Estimators
) -> None:
    """Scores that need a network; those without one go to ``unavailable``."""
    out, gone = network_scores(rgb, views, case.source, case.portrait.basis, estimators)
    if case.cross and group == 'cross':  # the truth is another person: only these say something
        out = {k: v for k, v in out.items() if k not in NEEDS_OWN_TRUTH}
        gone = {k: v for k, v in gone.items() if k not in NEEDS_OWN_TRUTH}
    result.scores |= {f'{group}.{k}': np.mean(v) for k, v in out.items()}
    result.unavailable |= {f'{group}.{k}': v for k, v in gone.items()}


def network_scores(
    rgb: np.ndarray, views: TrueViews, source: TrueViews, basis: str, estimators: Estimators
) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Scores [T] of pictures against the truth that need a network, and of those that cannot be had the reason.

    Args:
        rgb: [T, H, W, 3] in [-1, 1]. views: the same views of the truth. source: one picture that the avatar was made
            of. basis: of the expressions in ``views`` and ``source``.
    """
    marks = views.landmarks
    out, gone = {}, {}

    def why(name: str) -> str:
        """Why a network cannot be used; '' where it can."""
        network = getattr(estimators, name)
        if network is None:
            return estimators.reason(name)
        lacks = network.needs_landmarks and (marks is None or (name == 'identity' and source.landmarks is None))
        return f'{network.name} needs landmarks of the data' if lacks else ''

    if not (reason := why('coefficients')):
        p, q = (np.asarray(estimators.coefficients.call(jnp.asarray(x), marks)) for x in (rgb, views.truth))
        out['aed'] = faces.expression_distance(p, q)
        out['aed_l2'] = faces.expression_distance(p, q, 'l2')
        out['apd'] = faces.pose_distance(p, q)
        out['apd_trans_l2'] = faces.pose_distance(p, q, 'l2', 'angle+trans')
        out['prmse'] = np.rad2deg(faces.pose_rmse(p[:, SLICES['angle']], q[:, SLICES['angle']]))
    else:
        gone |= dict.fromkeys(('aed', 'aed_l2', 'apd', 'apd_trans_l2', 'prmse'), reason)
    if not (reason := why('units')):
        p, q = (np.asarray(estimators.units.call(jnp.asarray(x), marks)) for x in (rgb, views.truth))
        out['aucon'] = faces.action_unit_agreement(p, q)
    else:
        gone['aucon'] = reason
    if not (reason := _no_mesh(basis, estimators)):
        own = _neutral(estimators, source.truth, source)
        for name, pictures in (('avd', rgb), ('avd_floor', views.truth)):
            out[name] = faces.vertex_distance(_neutral(estimators, pictures, views), own)
    else:
        gone |= dict.fromkeys(('avd', 'avd_floor'), reason)
    if not (reason := why('landmarks')):
        p, q = (np.asarray(estimators.landmarks.call(jnp.asarray(x))) for x in (rgb, views.truth))
        out['akd'], out['akd_l2'] = faces.keypoint_distance(p, q), faces.keypoint_distance(p, q, 'l2')
    else:
        gone |= dict.fromkeys(('akd', 'akd_l2'), reason)
    if not (reason := why('identity')):
        embed = estimators.identity.call
        p, q = (np.asarray(embed(jnp.asarray(x), marks)) for x in (rgb, views.truth))
        portrait = np.asarray(embed(jnp.asarray(source.truth), source.landmarks))
        out['csim_source'] = faces.identity_similarity(p, portrait)
        out['csim_truth'] = faces.identity_similarity(p, q)
        out['csim_ceiling'] = faces.identity_similarity(q, portrait)
    else:
        gone |= dict.fromkeys(('csim_source', 'csim_truth', 'csim_ceiling'), reason)
    if not (reason := why('lpips')):
        out['lpips'] = np.asarray(estimators.lpips.call(jnp.asarray(rgb), jnp.asarray(views.truth)))
    else:
        gone['lpips'] = reason
    for name, network in estimators.more:
        out[name] = np.asarray(network.call(jnp.asarray(rgb), jnp.asarray(views.truth)))
    return out, gone


def _no_mesh(basis: str, estimators: Estimators) -> str:
    """Why vertex distances cannot be measured; empty if they can."""
    if estimators.head is None:
        return estimators.reason('head')
    if not estimators.landmarks:
        return estimators.reason('landmarks')
    if basis != estimators.head.basis:
        return f"the head model has the basis '{estimators.head.basis}', the case '{basis}'"
    return ''


def _neutral(estimators: Estimators, pictures: np.ndarray, views: TrueViews) -> np.ndarray:
    """Neutral meshes [T, V, 3] of pictures of these views."""
    marks = np.asarray(estimators.landmarks.call(jnp.asarray(pictures))) / pictures.shape[2]
    return neutral_vertices(estimators.head, marks, views.labels, views.windows[:, RADIUS, :64])


def _steadiness(scores: dict[str, float], rgb: np.ndarray, views: TrueViews) -> None:
    """Changes from frame to frame, and changes of these changes (trembling), beside those of the true pictures.

    Means of absolute differences of pictures in [0, 1] over the head; the whole picture where there is no mask.
    """
    weight = np.ones(rgb.shape[:3]) if views.mask is None else np.asarray(views.mask, np.float64)
    for suffix, pictures in (('', rgb), ('_truth', views.truth)):
        moved = np.asarray(pictures, np.float64) / 2
        for order, name in enumerate(('change', 'trembling'), 1):
            moved = np.diff(moved, axis=0)
            # Where the head is in one of the frames at least.
            seen = np.max([weight[k : len(weight) - order + k] for k in range(order + 1)], axis=0)
            scores[f'steady.{name}{suffix}'] = float((np.abs(moved).mean(-1) * seen).sum() / max(seen.sum(), 1e-9))


def _gains(scores: dict[str, float]) -> None:
    for region in ('mouth_eyes', 'mouth', 'eyes'):
        name = f'psnr_{region}'
        for baseline in ('frozen', 'frozen_truth'):
            if f'{baseline}.{name}' in scores:
                scores[f'gain.{name}_over_{baseline}'] = scores[f'driven.{name}'] - scores[f'{baseline}.{name}']


def _control(result: CaseResult, case: Case, driven: np.ndarray) -> None:
    """Openings measured in the avatar's pictures, in the true pictures, and in the driver's geometry.

    ``control.mouth_correlation`` compares avatar and truth through the same measurement; ``..._geometry`` compares the
    avatar with the driver's geometry, and ``..._ceiling`` is what the true pictures reach there.
    """
    scores = result.scores
    if case.closed is None or case.opened is None or case.driven.landmarks is None:
        return
    boxes = faces.region_boxes(case.driven.landmarks, driven.shape[1])
    for part, region, geometry in (('mouth', 'mouth', case.mouth), ('eye', 'eyes', case.eyes)):
        ours = faces.response(driven, case.closed, case.opened, boxes[region])
        truth = faces.response(case.driven.truth, case.closed, case.opened, boxes[region])
        result.frames |= {f'{part}_opening': ours, f'{part}_opening_truth': truth}
        scores[f'control.{part}_correlation'] = pearson(ours, truth)
        if geometry is not None:
            result.frames[f'{part}_opening_driver'] = geometry
            scores[f'control.{part}_correlation_geometry'] = pearson(ours, geometry)
            scores[f'control.{part}_correlation_ceiling'] = pearson(truth, geometry)
    if case.eyes_shut is not None:
        ours, truth, shut = result.frames['eye_opening'], result.frames['eye_opening_truth'], case.eyes_shut
        result.frames['eyes_shut_driver'] = shut
        half = (_mean(truth[shut]) + _mean(truth[~shut])) / 2
        scores['control.eye_opening_shut'] = _mean(ours[shut])
        scores['control.eye_opening_open'] = _mean(ours[~shut])
        scores['control.eyes_closed_share'] = _mean(ours[shut] < half)


def _mean(values: np.ndarray) -> float:
    return float(np.mean(values)) if len(values) else float('nan')
