"""From landmarks of a clip to its track: identity, lens, expression, pose, crops and camera labels of every frame."""

from __future__ import annotations

import dataclasses
import time
from typing import Any

import jax.numpy as jnp
import numpy as np

from avatar_jax.checks import Check
from avatar_jax.errors import UserError
from avatar_jax.faces.alignment import EG3D_CROP, EG3D_RESCALE, EG3D_SIZE, five_points, solve_pose
from avatar_jax.faces.camera_labels import CROP, FOCAL_1024, label_from_pose
from avatar_jax.faces.pose import rotation_matrix
from avatar_jax.faces.translation import head_sizes, pixel_offset, translate_label
from avatar_jax.ops.coefficients import NUM_ID, SLICES
from avatar_jax.track import fit
from avatar_jax.track.camera import POSE, from_translation, to_translation
from avatar_jax.track.landmark_model import MOTION_WIDTH, LandmarkModel
from avatar_jax.track.numbers import read_numbers
from avatar_jax.track.observe import Observed
from avatar_jax.track.smooth import fill_gaps, jitter, runs, steady

RUN = 64  # frames that are solved together; a shorter rest is filled up with frames without landmarks
_OVERLAP = 12  # frames of the next run that are solved along, so that a run ends as if the clip went on
# Focal length of an unknown camera in units of the picture's longer side, and how uncertain that is (logarithm).
FOCAL_USUAL, FOCAL_SPREAD = 1.6, 0.6
_CROP_DISTANCE_SPREAD = 0.03  # of the logarithm of the distance of a head in the aligned crop
MODES = ('auto', 'frame', 'clip')
_STAYS = 0.12  # a head that moves less than this share of the crop's side stays in one crop


@dataclasses.dataclass(frozen=True)
class TrackConfig:
    """Options of the second half of tracking.

    Attributes:
      fit: of the fit.
      steady: strength of the filter against jitter, 0 off.
      crop: 'clip' cuts the same square out of every frame of a shot, 'frame' follows the face, 'auto' decides.
      label_mode: how camera labels are normalised (``camera_labels.normalise_pose``).
      size: side of the crops in pixels.
      read_numbers: in the procedural basis, let ``track.numbers`` tell which numbers moved the landmarks.
    """

    fit: fit.FitConfig = dataclasses.field(default_factory=fit.FitConfig)
    steady: float = 1.0
    crop: str = 'auto'
    label_mode: str = 'orig'
    size: int = 512
    read_numbers: bool = True

    def __post_init__(self):
        check = Check(self)
        check.one_of('crop', *MODES)
        check.need(self.size >= 16, 'size', 'the crop needs at least 16 pixels')
        check.at_least(0, 'steady', 'fit.smooth')


@dataclasses.dataclass
class Track:
    """One tracked clip (or photograph: one frame) of T frames.

    Attributes:
      times: [T] seconds. found: [T] a face was measured; else the numbers are interpolated or held.
      valid: [T] the numbers mean something (False in shots without any face).
      segment: [T] shot or person.
      landmarks: [T,68,2] measured and filtered, pixels of the input, y down, integers at pixel centres.
      sigma: [T,68] their expected error in pixels.
      fitted: [T,68,2] the landmarks of the fitted head.
      identity: [S,K] of each segment. expression: [T,64] in ``basis`` (zeros beyond what the basis has).
      pose: [T,6] before the camera of the whole picture (``track.camera``). focal: [S] pixels.
      angle, translation: [T,3] in the aligned crop, radians and decimetres.
      labels: [T,25] camera labels. matrices: [T,2,3] from input pixels to crop pixels (integers at pixel centres).
      placement: [T,3] scale and place (x, y up) of the alignment.
      five: [T,5,2] the five points that the crop was made from.
      residual: [T] distance of fitted from measured landmarks, in eye distances.
      present: [T] probability of a face. size: (width, height) of the input.
      basis: of the coefficients. crop_mode: 'clip' or 'frame'. jitter: (before, after) in eye distances.
      notes: what happened. source: landmark backend. seconds: of the fit.
      gamma: [S,27] light and texture: [S,80] albedo of each segment, where pixels were used.
    """

    times: np.ndarray
    found: np.ndarray
    valid: np.ndarray
    segment: np.ndarray
    landmarks: np.ndarray
    sigma: np.ndarray
    fitted: np.ndarray
    identity: np.ndarray
    expression: np.ndarray
    pose: np.ndarray
    focal: np.ndarray
    angle: np.ndarray
    translation: np.ndarray
    labels: np.ndarray
    matrices: np.ndarray
    placement: np.ndarray
    five: np.ndarray
    residual: np.ndarray
    present: np.ndarray
    size: tuple[int, int]
    basis: str
    crop_mode: str
    crop_size: int
    jitter: tuple[float, float]
    notes: list[str]
    source: str
    likeness: list[float]
    seconds: float = 0.0
    gamma: np.ndarray | None = None
    texture: np.ndarray | None = None

    @property
    def num_frames(self) -> int:
        """T."""
        return len(self.times)

    def coefficients(self) -> np.ndarray:
        """[T,260] records: identity, expression, albedo (0), angle, light (0), translation, and the crop numbers."""
        out = np.zeros((self.num_frames, 260), np.float32)
        rows = self.identity[self.segment]
        width = min(rows.shape[1], NUM_ID)
        out[:, :width] = rows[:, :width]
        out[:, SLICES['exp']] = self.expression
        out[:, SLICES['angle']], out[:, SLICES['trans']] = self.angle, self.translation
        out[:, SLICES['crop']] = self.placement
        if self.gamma is not None:
            out[:, SLICES['gamma']], out[:, SLICES['tex']] = self.gamma[self.segment], self.texture[self.segment]
        return out

    def crop_landmarks(self) -> np.ndarray:
        """[T,68,2] landmarks in the crops, pixels, y down, integers at pixel centres."""
        m = self.matrices
        return (np.einsum('tij,tnj->tni', m[..., :2], self.landmarks) + m[:, None, :, 2]).astype(np.float32)

    def missing(self) -> list[tuple[int, int]]:
        """Half-open ranges of frames in which no face was measured."""
        return runs(~self.found)


def track_clip(
    observed: Observed,
    landmark_model: LandmarkModel,
    config: TrackConfig = TrackConfig(),
    calibration: dict[str, np.ndarray] | None = None,
) -> Track:
    """Fits a clip.

    Args:
      observed: landmarks of all frames.
      basis: of the head model.
      config: options.
      calibration: errors of the network's guesses on held-out heads: 'expression' [64], 'angle' [3].

    Raises:
      UserError: no face in any frame.
    """
    if not observed.found.any():
        raise UserError(
            'no face found in any frame; use sharper, more frontal pictures, or give landmarks (--landmarks)'
        )
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
    five, mode = _five(landmarks, fitted, known, times, config, observed.size)
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


def project_clip(points: np.ndarray, pose: np.ndarray, focal: float, centre: np.ndarray) -> np.ndarray:
    """Head points [T,N,3] under poses [T,6] in pixels [T,N,2], y down, first pixel centred at 0.5 (NumPy)."""
    turned = points @ rotation_matrix(np.asarray(pose[:, :3], np.float64))
    distance = np.exp(pose[:, 5])[:, None]
    depth = np.maximum(distance - turned[..., 2], 0.05 * distance)
    x = (turned[..., 0] + pose[:, 3, None] * distance) / depth
    y = (turned[..., 1] + pose[:, 4, None] * distance) / depth
    return np.stack([centre[0] + focal * x, centre[1] - focal * y], -1)


def _extent(points: np.ndarray, known: np.ndarray) -> np.ndarray:
    """[T] about the eye distance of frontal faces, from what is known: turned faces are not smaller."""
    if known[36:48].any() and known[48:68].any():
        eyes = points[:, 36:48][:, known[36:48]].mean(1)
        mouth = points[:, 48:68][:, known[48:68]].mean(1)
        left, right = points[:, 36:42][:, known[36:42]].mean(1), points[:, 42:48][:, known[42:48]].mean(1)
        return np.maximum(np.linalg.norm(left - right, axis=-1), 0.9 * np.linalg.norm(eyes - mouth, axis=-1))
    return np.ptp(points[:, known], axis=1).max(-1) / 2


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
                    *(jnp.asarray(_padded(a[i : i + RUN], RUN)) for a in (points, sigma)),
                    focal,
                    centre,
                    jnp.asarray(_padded(rough[i : i + RUN], RUN)),
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


def _padded(values: np.ndarray, length: int) -> np.ndarray:
    missing = length - len(values)
    return np.concatenate([values, np.repeat(values[-1:], missing, 0)]) if missing > 0 else values


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


def _five(landmarks, fitted, known, times, config: TrackConfig, size) -> tuple[np.ndarray, str]:
    """The five points [T,5,2] that each frame's crop is made from, and the mode."""
    complete = known[[30, 48, 54]].all() and known[36:48].any()
    # Landmark files of five points have no eye outlines of their own: the fitted ones stand for them.
    five = five_points(np.where(known[:, None], landmarks, fitted) if complete and known.all() else fitted)
    if complete and not known.all():
        five[:, 2:] = landmarks[:, [30, 48, 54]]
        five[:, 0] = (landmarks[:, 36] + landmarks[:, 39]) / 2
        five[:, 1] = (landmarks[:, 42] + landmarks[:, 45]) / 2
    if len(five) == 1:
        return five, 'frame'
    up = five * [1, -1]
    fits = [solve_pose(p) for p in up]
    place = np.stack([np.concatenate([[np.log(max(f.scale, 1e-6))], f.translation]) for f in fits])
    typical = np.median(place, 0)
    side = EG3D_CROP / EG3D_RESCALE * np.exp(typical[0])
    stays = (np.abs(place[:, 1:] - typical[1:]).max() < _STAYS * side) and np.abs(place[:, 0] - typical[0]).max() < 0.2
    mode = config.crop if config.crop != 'auto' else 'clip' if stays else 'frame'
    if mode == 'clip':
        nearest = int(np.argmin(np.abs((place - typical) / [1, side, side]).sum(1)))
        return np.broadcast_to(five[nearest], five.shape).copy(), mode
    # A crop that follows the face must not tremble or breathe with it: only slow changes are followed.
    units = np.array([1.0, side, side])
    calm = place if len(five) < 3 else units * steady(place / units, times, 8 * max(config.steady, 0.25), spread=0.3)
    scale = np.exp(calm[:, :1] - place[:, :1])[..., None]
    middle = np.stack([p.translation for p in fits])[:, None]
    return ((up - middle) * scale + calm[:, None, 1:]) * [1, -1], mode


def crop_placement(five: np.ndarray, size: tuple[int, int], side: int) -> tuple[np.ndarray, np.ndarray]:
    """Where EG3D's crop lies.

    Args:
      five: [5,2] pixels, y down, integers at pixel centres. size: (width, height) of the picture. side: of the crop.

    Returns:
      ([2,3] matrix from picture pixels to crop pixels, integers at pixel centres in both; [3] scale and place (x, y
      up)).
    """
    width, height = size
    up = np.asarray(five, np.float64).copy()
    up[:, 1] = height - 1 - up[:, 1]
    found = solve_pose(up)
    scale = EG3D_RESCALE / max(found.scale, 1e-9)
    tx, ty = found.translation
    # As ``alignment.align`` moves landmarks: sizes are cut to integers first.
    x0 = (-tx + width / 2) * scale - (int(width * scale) / 2 - EG3D_SIZE / 2)
    y0 = (-ty + height / 2) * scale - (int(height * scale) / 2 - EG3D_SIZE / 2)
    matrix = np.array([[scale, 0, x0], [0, scale, EG3D_SIZE - 1 - y0 - scale * (height - 1)]])
    start, ratio = int(EG3D_SIZE / 2 - EG3D_CROP / 2), side / EG3D_CROP
    matrix[:, 2] = (matrix[:, 2] - start + 0.5) * ratio - 0.5
    matrix[:, :2] *= ratio
    return matrix, np.array([scale, tx, ty])


def crop_poses(points3d: np.ndarray, targets: np.ndarray, start: np.ndarray, side: int) -> np.ndarray:
    """Poses [T,6] before the crop's camera, of the fitted heads seen in the crops (first pixel centred at 0.5)."""
    begin = from_translation(start[:, :3], np.zeros((len(start), 3))).astype(np.float32)
    solved = [
        np.asarray(
            fit.fit_poses(
                jnp.asarray(_padded(points3d[i : i + RUN], RUN), jnp.float32),
                jnp.asarray(_padded(targets[i : i + RUN], RUN), jnp.float32),
                jnp.float32(FOCAL_1024 * side / CROP),
                jnp.full(2, side / 2),
                jnp.asarray(_padded(begin[i : i + RUN], RUN)),
                _CROP_DISTANCE_SPREAD,
                0.003 * side,
            )
        )
        for i in range(0, len(start), RUN)
    ]
    return np.concatenate(solved)[: len(start)]


def with_head_translation(track: Track) -> Track:
    """The track with labels that also follow the head through the uncropped picture (NOFA).

    Each shot's first measured frame counts as zero. Only crops that follow the face need it: in one square for the
    whole shot the head moves, and its labels tell so already.
    """
    labels = np.array(track.labels)
    for s in range(len(track.identity)):
        rows = np.flatnonzero((track.segment == s) & track.valid)
        if not len(rows) or (len(rows) > 1 and (track.matrices[rows] == track.matrices[rows[0]]).all()):
            continue
        first = rows[np.argmax(track.found[rows])]
        side = track.crop_size / track.matrices[first, 0, 0]
        offset = pixel_offset(track.landmarks[rows].astype(np.float64), track.landmarks[first].astype(np.float64), side)
        zoom = head_sizes(track.fitted[rows]) / head_sizes(track.fitted[first])
        labels[rows] = translate_label(labels[rows], offset.astype(np.float32), zoom.astype(np.float32))
    return dataclasses.replace(track, labels=labels)
