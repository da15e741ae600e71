"""From landmarks of a clip to its track: identity, lens, expression, pose, crops and camera labels of every frame."""

from __future__ import annotations

import time
from typing import Any

import jax.numpy as jnp
import numpy as np

from avatar_jax.errors import UserError
from avatar_jax.faces.camera_labels import label_from_pose
from avatar_jax.track import fit
from avatar_jax.track.camera import POSE, to_translation
from avatar_jax.track.face_numbers import GAZE
from avatar_jax.track.landmark_model import MOTION_WIDTH, LandmarkModel
from avatar_jax.track.numbers import read_numbers
from avatar_jax.track.observe import Observed
from avatar_jax.track.placing import RUN, crop_placement, crop_points, crop_poses, padded, project_clip
from avatar_jax.track.smooth import fill_gaps, jitter, steady
from avatar_jax.track.track import Track, TrackConfig

_OVERLAP = 12  # frames of the next run that are solved along, so that a run ends as if the clip went on
# Focal length of an unknown camera in units of the picture's longer side, and how uncertain that is (logarithm).
FOCAL_USUAL, FOCAL_SPREAD = 1.6, 0.6
_GAZE_SPREAD = 0.5  # a large change of where eyes look


def track_clip(
    observed: Observed,
    landmark_model: LandmarkModel,
    config: TrackConfig | None = None,
    calibration: dict[str, np.ndarray] | None = None,
) -> Track:
    """Fits a clip.

    Args:
        observed: landmarks of all frames.
        landmark_model: the head model at its landmarks.
        config: options; None: the defaults.
        calibration: errors of the network's guesses on held-out heads: 'expression' [64], 'angle' [3].

    Raises:
        UserError: no face in any frame.
    """
    if not observed.found.any():
        raise UserError(
            'no face found in any frame; use sharper, more frontal pictures, or give landmarks (--landmarks)'
        )
    config = TrackConfig() if config is None else config
    began = time.monotonic()
    t, e = observed.num_frames, landmark_model.num_expression
    out: dict[str, Any] = {
        'fitted': np.zeros((t, 68, 2)),
        'landmarks': np.zeros((t, 68, 2)),
        'sigma': np.zeros((t, 68)),
        'expression': np.zeros((t, MOTION_WIDTH)),
        'pose': np.zeros((t, POSE)),
        'valid': np.zeros(t, bool),
        'angle': np.zeros((t, 3)),
        'translation': np.zeros((t, 3)),
        'residual': np.full(t, np.nan),
        'matrices': np.zeros((t, 2, 3)),
        'placement': np.zeros((t, 3)),
        'five': np.zeros((t, 5, 2)),
    }
    notes, identities, focals, modes, jitters = list(observed.notes), [], [], set(), []
    for s in range(int(observed.segment.max()) + 1):
        rows = np.flatnonzero(observed.segment == s)
        if not observed.found[rows].any():
            identities.append(np.zeros(landmark_model.num_identity))
            focals.append(FOCAL_USUAL * max(observed.size))
            continue
        part = _segment(observed, rows, landmark_model, config, calibration or {})
        for name in (
            'fitted',
            'landmarks',
            'sigma',
            'pose',
            'angle',
            'translation',
            'residual',
            'matrices',
            'placement',
            'five',
        ):
            out[name][rows] = part[name]
        out['expression'][rows, :e] = part['expression']
        out['valid'][rows] = True
        identities.append(part['identity'])
        focals.append(part['focal'])
        modes.add(part['mode'])
        jitters.append((len(rows), *part['jitter']))
    weights = np.array([j[0] for j in jitters], float)
    both = tuple(float(np.sqrt(np.average(np.array([j[k] for j in jitters]) ** 2, weights=weights))) for k in (1, 2))
    labels = label_from_pose(out['angle'], out['translation'], config.label_mode).astype(np.float32)
    return Track(
        times=observed.times,
        found=observed.found,
        segment=observed.segment,
        present=observed.present,
        identity=np.array(identities, np.float32),
        focal=np.array(focals),
        labels=labels,
        size=observed.size,
        basis=landmark_model.basis,
        crop_mode='/'.join(sorted(modes)),
        crop_size=config.size,
        jitter=both,
        notes=notes,
        source=observed.source,
        likeness=observed.likeness,
        seconds=time.monotonic() - began,
        valid=out.pop('valid'),
        **{k: v.astype(np.float32 if k != 'matrices' else np.float64) for k, v in out.items()},
    )


def _segment(
    observed: Observed,
    rows: np.ndarray,
    landmark_model: LandmarkModel,
    config: TrackConfig,
    calibration: dict[str, np.ndarray],
) -> dict[str, Any]:
    """Everything of the frames ``rows``, which show one person without a cut."""
    times, found = observed.times[rows], observed.found[rows]
    known = np.isfinite(observed.sigma[rows]).all(0) | (np.isfinite(observed.sigma[rows]) & found[:, None]).any(0)
    measured = fill_gaps(observed.points[rows], found, times)
    sigma = np.where(found[:, None], observed.sigma[rows], np.inf)
    eyes = np.maximum(_extent(measured, known), 1e-3)
    # Nothing is measured better than this, and no head model is exact.
    sigma = np.maximum(sigma, 0.006 * eyes[:, None])
    noisy = jitter(measured[:, known], times, eyes)
    measured = steady(measured, times, config.steady, spread=float(np.median(eyes)))
    obs = _with_guesses(measured, sigma, observed, rows, landmark_model, config, calibration)
    centre = np.array(observed.size, np.float32) / 2
    identity, log_focal, local = _solve(obs, found, times, landmark_model, config.fit, centre, max(observed.size))

    first, last = np.flatnonzero(found)[[0, -1]]
    local = np.array(local)
    local[:first], local[last + 1 :] = (
        local[first],
        local[last],
    )  # held, where the fit's prior would draw them to neutral
    e = landmark_model.num_expression
    expression = np.asarray(landmark_model.unwhiten(jnp.asarray(local[:, :e])))
    shape = np.asarray(landmark_model.mean) + np.tensordot(np.asarray(identity), np.asarray(landmark_model.identity), 1)
    points3d = shape + np.tensordot(expression, np.asarray(landmark_model.expression), 1)
    pose = local[:, e:]
    focal = float(np.exp(log_focal))
    fitted = project_clip(points3d, pose, focal, centre)
    landmarks = np.where((found[:, None] & known)[..., None], measured, fitted)
    five, mode = crop_points(landmarks, fitted, known, times, config, observed.size)
    matrices, placement = zip(*(crop_placement(p - 0.5, observed.size, config.size) for p in five))
    matrices, placement = np.stack(matrices), np.stack(placement)

    def in_crop():
        crop_points = np.einsum('tij,tnj->tni', matrices[..., :2], fitted - 0.5) + matrices[:, None, :, 2]
        return to_translation(crop_poses(points3d, crop_points + 0.5, pose, config.size))

    angle, translation = in_crop()
    if config.read_numbers and landmark_model.basis == 'procedural':
        expression = read_numbers(expression, angle, times, found, landmark_model)
        points3d = shape + np.tensordot(expression, np.asarray(landmark_model.expression), 1)
        fitted = project_clip(points3d, pose, focal, centre)
        landmarks = np.where((found[:, None] & known)[..., None], measured, fitted)
        angle, translation = in_crop()
    if observed.gaze is not None and landmark_model.basis == 'procedural':
        expression = _with_gaze(expression, observed.gaze[rows], times, config.steady)
    residual = np.linalg.norm(np.where(known[:, None], measured - fitted, 0), axis=-1).sum(-1) / known.sum() / eyes
    residual = np.where(found, residual, np.nan)
    return {
        'identity': np.asarray(identity),
        'focal': focal,
        'pose': pose,
        'expression': expression,
        'fitted': fitted - 0.5,
        'landmarks': landmarks - 0.5,
        'sigma': np.where(np.isfinite(sigma), sigma, 0),
        'residual': residual,
        'matrices': matrices,
        'placement': placement,
        'five': five - 0.5,
        'angle': angle,
        'translation': translation,
        'mode': mode,
        'jitter': (noisy, jitter(landmarks, times, eyes)),
    }


def _extent(points: np.ndarray, known: np.ndarray) -> np.ndarray:
    """[T] about the eye distance of frontal faces, from what is known: turned faces are not smaller."""
    if known[36:48].any() and known[48:68].any():
        eyes = points[:, 36:48][:, known[36:48]].mean(1)
        mouth = points[:, 48:68][:, known[48:68]].mean(1)
        left, right = points[:, 36:42][:, known[36:42]].mean(1), points[:, 42:48][:, known[42:48]].mean(1)
        return np.maximum(np.linalg.norm(left - right, axis=-1), 0.9 * np.linalg.norm(eyes - mouth, axis=-1))
    return np.ptp(points[:, known], axis=1).max(-1) / 2


def _with_gaze(expression: np.ndarray, gaze: np.ndarray, times: np.ndarray, strength: float) -> np.ndarray:
    """Expressions [T,64] that look where the irises were seen to look [T,2]; NaN is interpolated, or held."""
    seen = np.isfinite(gaze).all(-1)
    if not seen.any():
        return expression
    filled = np.stack([np.interp(times, times[seen], column[seen]) for column in gaze.T], 1)
    out = expression.copy()
    out[:, list(GAZE)] = steady(filled[:, None], times, strength, spread=_GAZE_SPREAD)[:, 0]
    return out


def _with_guesses(measured, sigma, observed, rows, landmark_model, config, calibration) -> fit.Observations:
    obs = fit.observations(measured, sigma, landmark_model.num_expression)
    trust = config.fit.guess_weight
    if trust <= 0:
        return obs
    angle = observed.angle[rows]
    has = np.isfinite(angle).all(-1) & observed.found[rows]
    error = np.asarray(calibration.get('angle', np.full(3, 0.07)), np.float64) / trust
    # The network judges the angle in the crop; before the whole picture the head is seen along another ray.
    obs = obs.replace(
        angle=jnp.asarray(np.where(has[:, None], angle, 0), jnp.float32),
        angle_sigma=jnp.asarray(np.where(has[:, None], np.maximum(2 * error, 0.12), np.inf), jnp.float32),
    )
    if landmark_model.basis != 'procedural':
        return obs
    expression = observed.expression[rows][:, : landmark_model.num_expression]
    has = np.isfinite(expression).all(-1) & observed.found[rows]
    guess, error = unshrunk(expression, calibration.get('expression'), landmark_model)
    has = has[:, None] & np.isfinite(error)
    return obs.replace(
        expression=jnp.asarray(np.where(has, guess, 0), jnp.float32),
        expression_sigma=jnp.asarray(np.where(has, error / trust, np.inf), jnp.float32),
    )


def unshrunk(
    guess: np.ndarray, error: np.ndarray | None, landmark_model: LandmarkModel
) -> tuple[np.ndarray, np.ndarray]:
    """What a network's guess says beyond what is usual anyway.

    A regression's answer is drawn towards the mean where it is unsure, as the fit's own prior draws it again. Of the
    answer [T,E] and its error [E] this takes the prior's share out: (measurement [T,E], its error [E], infinite where
    the answer is hardly better than the mean).
    """
    mean = np.asarray(landmark_model.usual)
    usual = np.sqrt((np.asarray(landmark_model.spread) ** 2).sum(0))
    error = np.full(len(mean), np.inf) if error is None else np.asarray(error, np.float64)[: len(mean)]
    useful = error < 0.9 * usual
    error = np.maximum(np.where(useful, error, 0.5 * usual), 0.02)
    after, before = 1 / error**2, 1 / usual**2
    own = np.maximum(after - before, 1e-3 * before)
    return (after * guess - before * mean) / own, np.where(useful, own**-0.5, np.inf)


def key_frames(features: np.ndarray, found: np.ndarray, count: int) -> np.ndarray:
    """Frames that differ most: farthest-point sampling of ``features`` [T,F] among those found; ``count`` numbers.

    Shorter clips repeat frames, so that one compiled program serves all.
    """
    index = np.flatnonzero(found)
    values = features[index]
    chosen = [int(np.argmin(np.linalg.norm(values - np.median(values, 0), axis=1)))]
    distance = np.linalg.norm(values - values[chosen[0]], axis=1)
    while len(chosen) < min(count, len(index)):
        chosen.append(int(np.argmax(distance)))
        distance = np.minimum(distance, np.linalg.norm(values - values[chosen[-1]], axis=1))
    return index[np.resize(np.array(chosen), count)]


def _solve(
    obs: fit.Observations,
    found: np.ndarray,
    times: np.ndarray,
    landmark_model: LandmarkModel,
    config: fit.FitConfig,
    centre: np.ndarray,
    longer: int,
):
    """(identity [K], log focal, local numbers [T,E+6])."""
    points, sigma = np.asarray(obs.points), np.asarray(obs.sigma)
    focal = (config.focal or FOCAL_USUAL) * longer
    rough = fit.rough_poses(points, sigma, focal, centre, landmark_model)
    rough = fill_gaps(rough, found, times).astype(np.float32)
    poses = np.concatenate(
        [
            np.asarray(
                fit.start_poses(
                    landmark_model,
                    *(jnp.asarray(padded(a[i : i + RUN], RUN)) for a in (points, sigma)),
                    focal,
                    centre,
                    jnp.asarray(padded(rough[i : i + RUN], RUN)),
                )
            )[: len(points[i : i + RUN])]
            for i in range(0, len(points), RUN)
        ]
    )
    poses = fill_gaps(poses, found, times).astype(np.float32)
    middle = points.mean(1, keepdims=True)
    shape = (points - middle) / np.sqrt(((points - middle) ** 2).sum(-1).mean(-1))[:, None, None]
    keys = key_frames(shape.reshape(len(points), -1), found, config.key_frames)
    chosen = observation_rows(obs, keys)
    identity, log_focal, local, _ = fit.solve_clip(
        landmark_model,
        chosen,
        jnp.asarray(poses[keys]),
        jnp.float32(np.log(focal)),
        jnp.float32(FOCAL_SPREAD),
        jnp.asarray(centre),
        config.robust,
        config.clip_iterations,
        config.focal is None,
    )
    if config.focal is None:
        # The lens that was found changes distances alike.
        poses[:, 5] += float(log_focal) - np.log(focal)
        poses[:, 3:5] *= focal / float(np.exp(log_focal))
    start = np.concatenate([np.zeros((len(points), landmark_model.num_expression), np.float32), poses], 1)
    start[keys] = np.asarray(local)
    return (
        identity,
        float(log_focal),
        _solve_runs(obs, times, landmark_model, config, centre, identity, log_focal, start),
    )


def observation_rows(obs: fit.Observations, rows: np.ndarray) -> fit.Observations:
    """Some frames of the observations."""
    import jax

    return jax.tree.map(lambda a: a[np.asarray(rows)], obs)


def _solve_runs(obs, times, landmark_model, config, centre, identity, log_focal, start) -> np.ndarray:
    """``fit.solve_frames`` over the whole clip in runs of equal length; each continues the one before."""
    import jax

    total, ties = len(start), fit.stiffness(times, config.smooth, landmark_model.num_expression)
    out = np.array(start)
    length = RUN if total > 8 else 8 if total > 1 else 1
    step = length - _OVERLAP if total > length else length
    before, before_tie = jnp.zeros(start.shape[1]), jnp.zeros(start.shape[1])
    for first in range(0, total, step):
        rows = np.minimum(np.arange(first, first + length), total - 1)
        real = np.arange(first, first + length) < total
        part = observation_rows(obs, rows)
        blank = jnp.asarray(~real)

        def unseen(a, blank=blank):
            return jnp.where(blank.reshape(-1, *[1] * (a.ndim - 1)), jnp.inf, a)

        part = part.replace(
            sigma=unseen(part.sigma),
            expression_sigma=unseen(part.expression_sigma),
            angle_sigma=unseen(part.angle_sigma),
        )
        local_ties = (
            ties[np.minimum(rows[:-1], total - 2)] if total > 1 else np.zeros((length - 1, start.shape[1]), np.float32)
        )
        solved = np.asarray(
            fit.solve_frames(
                landmark_model,
                identity,
                log_focal,
                jnp.asarray(centre),
                part,
                jnp.asarray(out[rows]),
                jnp.asarray(local_ties),
                before,
                before_tie,
                config.robust,
                config.frame_iterations,
            )
        )
        end = min(first + length, total)
        out[first:end] = solved[: end - first]
        if end == total:
            break
        last = first + step - 1
        before, before_tie = jnp.asarray(out[last]), jnp.asarray(ties[last])
    return jax.tree.map(np.asarray, out)
