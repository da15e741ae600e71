"""Fitting a head model to landmarks of one person: identity and lens of the clip, expression and pose of every frame.

Three solvers, all Levenberg-Marquardt with robust weights (Cauchy), compiled and vectorised over frames:

* ``start_poses``: pose alone, frame by frame, from a neutral start;
* ``solve_clip``: identity, focal length and the frames together, on a few frames that differ most. Frames only meet in
  identity and lens, so their own numbers are eliminated first (Schur complement);
* ``solve_frames``: expression and pose of a run of frames with identity and lens known, tied to their neighbours in
  time. The normal equations are block-tridiagonal and solved exactly by a forward and a backward sweep. Frames without
  landmarks have no data term and come out interpolated.

Every residual is in units of its expected size, so the sum of squares is the negative logarithm of a posterior.
"""

from __future__ import annotations

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from avatar_jax.track.camera import POSE, seen
from avatar_jax.track.landmark_model import LandmarkModel

# Standard deviations of a pose about a usual one: pitch, yaw, roll; place (free); log distance.
_POSE_SPREAD = np.array([0.35, 0.6, 0.6, 5.0, 5.0, 0.5])
# ... and of its change within a 25th of a second at strength 1 of the smoothness; expressions in whitened numbers.
_POSE_STEP, _EXPRESSION_STEP = np.array([0.06, 0.06, 0.05, 0.05, 0.05, 0.03]), 0.8
_RANGE_SIZE = 0.08  # expression numbers beyond their range by this much are unusual
_DISTANCE = 10.0  # decimetres


@dataclasses.dataclass(frozen=True)
class FitConfig:
    """Options of the fit.

    Attributes:
        key_frames: frames that decide identity and lens.
        clip_iterations, frame_iterations: Levenberg-Marquardt steps.
        robust: landmark errors beyond this many standard deviations lose weight.
        smooth: strength of the tie between neighbouring frames; 0 leaves every frame on its own (gaps are still
            filled).
        focal: focal length in units of the longer side of the picture; None finds one.
        guess_weight: trust in the network's expression and angle, 1 as measured on held-out heads, 0 none.
    """

    key_frames: int = 12
    clip_iterations: int = 15
    frame_iterations: int = 6
    robust: float = 3.0
    smooth: float = 1.0
    focal: float | None = None
    guess_weight: float = 0.5


@struct.dataclass
class Observations:
    """Landmarks of T frames (or one frame, without the leading axis).

    Attributes:
        points: [T,68,2] pixels, y down, first pixel centred at 0.5.
        sigma: [T,68] expected error in pixels; infinite for a landmark that is not there.
        expression: [T,E] a guess of the expression, and ``expression_sigma`` [T,E] its error (infinite: no guess).
        angle: [T,3] a guess of the angle in radians, and ``angle_sigma`` [T,3].
    """

    points: jax.Array
    sigma: jax.Array
    expression: jax.Array
    expression_sigma: jax.Array
    angle: jax.Array
    angle_sigma: jax.Array


def observations(points: np.ndarray, sigma: np.ndarray, num_expression: int) -> Observations:
    """Observations without a guess of expression and angle."""
    t = len(points)
    return Observations(
        *(
            jnp.asarray(a, jnp.float32)
            for a in (
                points,
                sigma,
                np.zeros((t, num_expression)),
                np.full((t, num_expression), np.inf),
                np.zeros((t, 3)),
                np.full((t, 3), np.inf),
            )
        )
    )


def _frame_residuals(
    local, identity, log_focal, landmark_model: LandmarkModel, seen_by: jax.Array, obs: Observations, robust
):
    """(residuals, and the part of them that is landmarks) of one frame; ``local`` = [whitened expression E, pose 6]."""
    z, pose = local[: landmark_model.num_expression], local[landmark_model.num_expression :]
    expression = landmark_model.unwhiten(z)
    points = seen(landmark_model.points(identity, expression), pose, jnp.exp(log_focal), seen_by)
    error = (points - obs.points) / obs.sigma[:, None]
    error = jnp.where(jnp.isfinite(obs.sigma)[:, None], error, 0.0)
    size = jax.lax.stop_gradient(jnp.sum(error**2, -1, keepdims=True))
    landmarks = error * jax.lax.rsqrt(1 + size / robust**2)
    outside = (
        jnp.minimum(expression - landmark_model.low, 0) + jnp.maximum(expression - landmark_model.high, 0)
    ) / _RANGE_SIZE
    rest = [
        z,
        jnp.where(jnp.isfinite(outside), outside, 0.0),
        (expression - obs.expression) / obs.expression_sigma,
        (pose[:3] - obs.angle) / obs.angle_sigma,
        pose[:3] / _POSE_SPREAD[:3],
        (pose[5:] - np.log(_DISTANCE)) / _POSE_SPREAD[5:],
    ]
    return jnp.concatenate([landmarks.ravel(), *rest])


def _damped(hessian: jax.Array, damping: jax.Array) -> jax.Array:
    return hessian + (damping * jnp.diagonal(hessian) + 1e-6)[:, None] * jnp.eye(hessian.shape[0])


def _positive_solve(matrix: jax.Array, right: jax.Array) -> jax.Array:
    """Solution [D] of a positive definite system [D,D]."""
    return jax.scipy.linalg.cho_solve(jax.scipy.linalg.cho_factor(matrix), right)


def _positive_inverse(matrix: jax.Array) -> jax.Array:
    """Inverse of a positive definite matrix [D,D] by the sweep operator (Goodnight 1979).

    On the CPU XLA's triangular solves with many right sides are ten times slower than this loop.
    """

    def sweep(k, a):
        row, column, pivot = a[k] / a[k, k], a[:, k], a[k, k]
        a = a - jnp.outer(column, row)
        return a.at[k].set(row).at[:, k].set(-column / pivot).at[k, k].set(1 / pivot)

    return jax.lax.fori_loop(0, matrix.shape[0], sweep, matrix)


@partial(jax.jit, static_argnames='iterations')
def start_poses(
    landmark_model: LandmarkModel,
    points: jax.Array,
    sigma: jax.Array,
    focal: jax.Array,
    centre: jax.Array,
    start: jax.Array,
    iterations: int = 20,
) -> jax.Array:
    """Poses [T,6] of the usual face under landmarks [T,68,2] with errors [T,68], from ``start`` [T,6]."""
    face = landmark_model.points(jnp.zeros(landmark_model.num_identity), landmark_model.usual)

    def one(points, sigma, pose):
        weight = jnp.where(jnp.isfinite(sigma), 1 / jnp.maximum(sigma, 1e-6), 0.0)
        weight = weight / jnp.maximum(weight.max(), 1e-12)
        extent = jnp.maximum(jnp.sqrt(jnp.var(points, 0).sum()), 1e-3)

        def residuals(pose):
            error = (seen(face, pose, focal, centre) - points) * weight[:, None] / (0.05 * extent)
            return jnp.concatenate(
                [error.ravel(), (pose - start_pose) / _POSE_SPREAD * jnp.array([1, 1, 1, 0, 0, 0.3])]
            )

        start_pose = pose.at[:3].set(0)

        def step(carry, _):
            pose, damping, value = carry
            r, jacobian = residuals(pose), jax.jacfwd(residuals)(pose)
            move = _positive_solve(_damped(jacobian.T @ jacobian, damping), -jacobian.T @ r)
            trial = pose + jnp.clip(move, -0.4, 0.4)
            new = jnp.sum(residuals(trial) ** 2)
            good = new < value
            return (
                jnp.where(good, trial, pose),
                jnp.where(good, damping * 0.3, damping * 6).clip(1e-6, 1e6),
                jnp.where(good, new, value),
            ), None

        begin = (pose, jnp.float32(1e-2), jnp.sum(residuals(pose) ** 2))
        return jax.lax.scan(step, begin, None, iterations)[0][0]

    return jax.vmap(one)(points, sigma, start)


def rough_poses(
    points: np.ndarray, sigma: np.ndarray, focal: float, centre: np.ndarray, landmark_model: LandmarkModel
) -> np.ndarray:
    """Starting poses [T,6]: place and size from the landmarks' mean and spread, roll from the eyes."""
    face = np.asarray(landmark_model.points(jnp.zeros(landmark_model.num_identity), landmark_model.usual))
    known = np.isfinite(sigma)
    poses = np.zeros((len(points), POSE), np.float32)
    poses[:, 5] = np.log(_DISTANCE)
    for t, (p, k) in enumerate(zip(points, known)):
        if k.sum() < 3:
            continue
        spread = np.sqrt(((face[k, :2] - face[k, :2].mean(0)) ** 2).sum(-1).mean())
        size = max(np.sqrt(((p[k] - p[k].mean(0)) ** 2).sum(-1).mean()), 1e-3)
        eyes = [i for i in range(36, 48) if k[i]]
        left, right = [i for i in eyes if i < 42], [i for i in eyes if i >= 42]
        roll = 0.0
        if left and right:
            across = p[right].mean(0) - p[left].mean(0)
            roll = -np.arctan2(across[1], across[0])
        place = (p[k].mean(0) - centre) / focal
        middle = face[k].mean(0)
        distance = spread * focal / size + middle[2]
        poses[t] = [0, 0, roll, place[0] - middle[0] / distance, -place[1] - middle[1] / distance, np.log(distance)]
    return poses


@partial(jax.jit, static_argnames=('iterations', 'free_focal'))
def solve_clip(
    landmark_model: LandmarkModel,
    obs: Observations,
    poses: jax.Array,
    log_focal: jax.Array,
    focal_prior: jax.Array,
    centre: jax.Array,
    robust: float = 3.0,
    iterations: int = 15,
    free_focal: bool = True,
):
    """Identity, lens, and the given frames together.

    Args:
        obs: of F frames. poses: [F,6] start. log_focal: start, in pixels. focal_prior: its standard deviation.

    Returns:
        (identity [K], log focal, local numbers [F,E+6], mean squared residual).
    """
    k, frames = landmark_model.num_identity, poses.shape[0]
    begin_shared = jnp.concatenate([jnp.zeros(k), log_focal[None]])
    begin_local = jnp.concatenate([jnp.zeros((frames, landmark_model.num_expression)), poses], -1)

    def residuals(local, shared, obs):
        focal = shared[k] if free_focal else log_focal
        return _frame_residuals(local, shared[:k], focal, landmark_model, centre, obs, robust)

    def own(shared):  # of the clip: everybody is somewhat average
        return jnp.concatenate([shared[:k], (shared[k:] - log_focal) / focal_prior])

    def value(local, shared):
        return jnp.sum(jax.vmap(residuals, (0, None, 0))(local, shared, obs) ** 2) + jnp.sum(own(shared) ** 2)

    def step(carry, _):
        local, shared, damping, best = carry

        def normal(local, obs):
            r = residuals(local, shared, obs)
            jl = jax.jacfwd(residuals)(local, shared, obs)
            js = jax.jacfwd(residuals, 1)(local, shared, obs)
            inner = _damped(jl.T @ jl, damping)
            solved = _positive_inverse(inner) @ jnp.concatenate([jl.T @ js, (jl.T @ r)[:, None]], 1)
            cross = js.T @ jl
            return js.T @ js - cross @ solved[:, :-1], js.T @ r - cross @ solved[:, -1], solved

        s, g, solved = jax.vmap(normal)(local, obs)
        own_j = jax.jacfwd(own)(shared)
        matrix = _damped(s.sum(0) + own_j.T @ own_j, damping)
        move = _positive_solve(matrix, -(g.sum(0) + own_j.T @ own(shared)))
        move = jnp.clip(move, -1.0, 1.0)
        local_move = -solved[..., -1] - jnp.einsum('fls,s->fl', solved[..., :-1], move)
        trial, trial_shared = local + jnp.clip(local_move, -1.5, 1.5), shared + move
        new = value(trial, trial_shared)
        good = new < best
        return (
            jnp.where(good, trial, local),
            jnp.where(good, trial_shared, shared),
            jnp.where(good, damping * 0.3, damping * 8).clip(1e-7, 1e7),
            jnp.where(good, new, best),
        ), None

    begin = (begin_local, begin_shared, jnp.float32(1e-2), value(begin_local, begin_shared))
    local, shared, _, final = jax.lax.scan(step, begin, None, iterations)[0]
    return shared[:k], shared[k], local, final / (frames * 136)


@partial(jax.jit, static_argnames='iterations')
def solve_frames(
    landmark_model: LandmarkModel,
    identity: jax.Array,
    log_focal: jax.Array,
    centre: jax.Array,
    obs: Observations,
    start: jax.Array,
    stiffness: jax.Array,
    before: jax.Array,
    before_stiffness: jax.Array,
    robust: float = 3.0,
    iterations: int = 6,
):
    """Expression and pose of a run of frames, tied to their neighbours.

    Args:
        start: [T,E+6] first guess. stiffness: [T-1,E+6] inverse variances of the change from frame to frame.
        before: [E+6] the frame before the run, and its stiffness [E+6] (zeros: there is none).

    Returns:
        [T,E+6].
    """

    def residuals(local, obs):
        return _frame_residuals(local, identity, log_focal, landmark_model, centre, obs, robust)

    def tie(local):
        first = jnp.sum(before_stiffness * (local[0] - before) ** 2)
        return first + jnp.sum(stiffness * (local[1:] - local[:-1]) ** 2)

    def value(local):
        return jnp.sum(jax.vmap(residuals)(local, obs) ** 2) + tie(local)

    def step(carry, _):
        local, damping, best = carry

        def normal(local, obs):
            r, jacobian = residuals(local, obs), jax.jacfwd(residuals)(local, obs)
            return _damped(jacobian.T @ jacobian, damping), jacobian.T @ r

        h, g = jax.vmap(normal)(local, obs)
        zero = jnp.zeros((1, local.shape[1]))
        left = jnp.concatenate([before_stiffness[None], stiffness])  # tie to the frame before
        right = jnp.concatenate([stiffness, zero])
        previous = jnp.concatenate([before[None], local[:-1]])
        following = jnp.concatenate([local[1:], local[-1:]])
        g = g + left * (local - previous) + right * (local - following)
        h = h + jax.vmap(jnp.diag)(left + right)
        move = _tridiagonal(h, stiffness, -g)
        trial = local + jnp.clip(move, -1.0, 1.0)
        new = value(trial)
        good = new < best
        return (
            jnp.where(good, trial, local),
            jnp.where(good, damping * 0.2, damping * 8).clip(1e-8, 1e6),
            jnp.where(good, new, best),
        ), None

    return jax.lax.scan(step, (start, jnp.float32(1e-3), value(start)), None, iterations)[0][0]


def _tridiagonal(blocks: jax.Array, ties: jax.Array, right: jax.Array) -> jax.Array:
    """Solves the symmetric system with diagonal ``blocks`` [T,D,D] and off-diagonal blocks ``-diag(ties)`` [T-1,D]."""
    d = right.shape[1]

    def forward(carry, inputs):
        previous_inverse, previous_right = carry  # of the frame before, everything earlier eliminated
        block, tie, r = inputs
        reduced = block - tie[:, None] * previous_inverse * tie[None]
        r = r + tie * (previous_inverse @ previous_right)
        inverse = _positive_inverse(reduced)
        return (inverse, r), (inverse, r)

    first = jnp.zeros((1, d))
    _, (inverses, rights) = jax.lax.scan(
        forward, (jnp.zeros((d, d)), jnp.zeros(d)), (blocks, jnp.concatenate([first, ties]), right)
    )

    def backward(following, inputs):
        inverse, r, tie = inputs
        x = inverse @ (r + tie * following)
        return x, x

    _, out = jax.lax.scan(backward, jnp.zeros(d), (inverses, rights, jnp.concatenate([ties, first])), reverse=True)
    return out


def stiffness(times: np.ndarray, strength: float, num_expression: int) -> np.ndarray:
    """Inverse variances [T-1,E+6] of the change between frames at ``times`` [T] seconds.

    Changes grow with the square root of the time between frames. At strength 0 only frames without landmarks are tied,
    by what is left here: a thousandth.
    """
    gap = np.clip(np.diff(times), 1e-3, 10.0)[:, None] * 25
    step = np.concatenate([np.full(num_expression, _EXPRESSION_STEP), _POSE_STEP])
    return (max(strength, 1e-3) / (step**2 * gap)).astype(np.float32)


@partial(jax.jit, static_argnames='iterations')
def fit_poses(
    points: jax.Array,
    targets: jax.Array,
    focal: jax.Array,
    centre: jax.Array,
    start: jax.Array,
    distance_spread: float,
    sigma: float,
    iterations: int = 12,
) -> jax.Array:
    """Poses [T,6] under which rigid points [T,N,3] are seen at ``targets`` [T,N,2] (pixels, errors ``sigma``).

    The logarithm of the distance is held near that of ``start`` [T,6] by ``distance_spread``.
    """

    def one(points, targets, start):
        def residuals(pose):
            error = (seen(points, pose, focal, centre) - targets) / sigma
            return jnp.concatenate([error.ravel(), (pose[5:] - start[5:]) / distance_spread])

        def step(carry, _):
            pose, damping, value = carry
            r, jacobian = residuals(pose), jax.jacfwd(residuals)(pose)
            trial = pose + jnp.clip(
                _positive_solve(_damped(jacobian.T @ jacobian, damping), -jacobian.T @ r), -0.5, 0.5
            )
            new = jnp.sum(residuals(trial) ** 2)
            good = new < value
            return (
                jnp.where(good, trial, pose),
                jnp.where(good, damping * 0.2, damping * 6).clip(1e-9, 1e6),
                jnp.where(good, new, value),
            ), None

        return jax.lax.scan(step, (start, jnp.float32(1e-3), jnp.sum(residuals(start) ** 2)), None, iterations)[0][0]

    return jax.vmap(one)(points, targets, start)
