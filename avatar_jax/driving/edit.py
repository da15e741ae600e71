"""What is taken from a driver: which parts, relative to what, how strongly. All functions take and give motions.

The neutral frame of a clip is found from the numbers alone: the one nearest to the clip's own rest, where one-sided
components (jaw, lids, smile) rest at their lower decile and two-sided ones at their median, so that a tracker's
constant offset does not matter.
"""

from __future__ import annotations

import numpy as np

from avatar_jax.driving.bases import one_sided, ranges, region_channels, width
from avatar_jax.driving.request import REGIONS
from avatar_jax.errors import UserError
from avatar_jax.faces.pose import euler_angles, rotation_matrix
from avatar_jax.types import Motion

_REST_QUANTILE = 0.1
_ANGLE_WEIGHT = 1.0  # of a radian of head turn against the mean change of the components, in their own spread
MAX_AMPLIFICATION = 10.0


def resting_values(motion: Motion) -> np.ndarray:
    """[64] the expression that the clip comes back to."""
    expression = np.asarray(motion.expression, np.float64)
    low = np.quantile(expression, _REST_QUANTILE, axis=0)
    return np.where(one_sided(motion.basis), low, np.median(expression, axis=0))


def neutral_frame(motion: Motion) -> int:
    """Number of the frame whose face is nearest to rest and whose head is nearest to the clip's usual pose."""
    expression = np.asarray(motion.expression, np.float64)[:, : width(motion.basis)]
    rest = resting_values(motion)[: width(motion.basis)]
    spread = np.abs(expression - rest).mean(1)
    # Neighbours count, too: a single quiet frame between two loud ones is usually the tracker's mistake.
    padded = np.pad(spread, 1, mode='edge')
    activity = 0.25 * padded[:-2] + 0.5 * padded[1:-1] + 0.25 * padded[2:]
    scale = max(activity.mean(), 1e-6)
    angle = np.asarray(motion.angle, np.float64)
    turn = np.linalg.norm(angle - np.median(angle, axis=0), axis=1)
    return int(np.argmin(activity / scale + _ANGLE_WEIGHT * turn))


def column_rotation(angle: np.ndarray) -> np.ndarray:
    """Euler angles [..., 3] to matrices that turn column vectors, float64."""
    return np.swapaxes(rotation_matrix(np.asarray(angle, np.float64)), -1, -2)


def angles_of(rotation: np.ndarray) -> np.ndarray:
    """Inverse of ``column_rotation``."""
    return euler_angles(np.swapaxes(rotation, -1, -2))


def rotation_power(rotation: np.ndarray, factor: float) -> np.ndarray:
    """Rotations [..., 3, 3] about the same axes by ``factor`` times their angles (angles below 180 degrees)."""
    skew = (rotation - np.swapaxes(rotation, -1, -2)) / 2
    axis = np.stack([skew[..., 2, 1], skew[..., 0, 2], skew[..., 1, 0]], -1)
    sine = np.linalg.norm(axis, axis=-1)
    angle = np.arctan2(sine, (np.trace(rotation, axis1=-2, axis2=-1) - 1) / 2)
    unit = axis / np.maximum(sine, 1e-12)[..., None]
    x, y, z = np.moveaxis(unit, -1, 0)
    zero = np.zeros_like(x)
    cross = np.stack([zero, -z, y, z, zero, -x, -y, x, zero], -1).reshape(*x.shape, 3, 3)
    turned = (factor * angle)[..., None, None]
    return np.eye(3) + np.sin(turned) * cross + (1 - np.cos(turned)) * (cross @ cross)


def relative_to(
    motion: Motion,
    neutral: int,
    *,
    expression: bool = True,
    pose: bool = True,
    source_expression: np.ndarray | None = None,
    source_angle: np.ndarray | None = None,
    source_translation: np.ndarray | None = None,
) -> Motion:
    """Moves a driver so that its neutral frame falls on the source: what counts is how it changes.

    Args:
        neutral: frame number.
        expression, pose: which of the two is made relative.
        source_expression: [64] face of the source in that frame; None for a face at rest.
        source_angle, source_translation: [3] head of the source; None for a head that looks straight ahead.
    """
    changes = {}
    if expression:
        rest = np.asarray(motion.expression)[neutral]
        start = 0.0 if source_expression is None else np.asarray(source_expression, np.float32)
        moved = np.asarray(motion.expression) - rest + start
        limits = ranges(motion.basis)
        # A driver whose rest is above zero would push one-sided components below it, where no face goes.
        low = np.minimum(np.where(one_sided(motion.basis), limits[:, 0], -np.inf), start)
        changes['expression'] = np.maximum(moved, low).astype(np.float32)
    if pose:
        turns = column_rotation(motion.angle)
        source = column_rotation(np.zeros(3) if source_angle is None else source_angle)
        moved = turns @ turns[neutral].T @ source
        changes['angle'] = angles_of(moved).astype(np.float32)
        start = np.zeros(3) if source_translation is None else np.asarray(source_translation)
        translation = np.asarray(motion.translation)
        changes['translation'] = (translation - translation[neutral] + start).astype(np.float32)
    return motion.replace(**changes)


def amplified(motion: Motion, expression: float = 1.0, pose: float = 1.0, neutral: int | None = None) -> Motion:
    """Exaggerates (above 1) or weakens (below 1) a motion about its neutral frame, or about rest.

    Expressions of named bases stay within their nominal range, unless they were beyond it already. Angles are
    multiplied about the axis of each frame's rotation.

    Raises:
        UserError: a factor is negative, not finite or above 10.
    """
    for name, factor in (('--amplify', expression), ('--amplify-pose', pose)):
        if not 0 <= factor <= MAX_AMPLIFICATION:
            raise UserError(f'{name} {factor:g}: must lie between 0 and {MAX_AMPLIFICATION:g}')
    changes = {}
    if expression != 1:
        values = np.asarray(motion.expression)
        centre = 0.0 if neutral is None else values[neutral]
        limits = ranges(motion.basis)
        changed = centre + expression * (values - centre)
        low, high = np.minimum(limits[:, 0], values), np.maximum(limits[:, 1], values)
        changes['expression'] = np.clip(changed, low, high).astype(np.float32)
    if pose != 1:
        turns = column_rotation(motion.angle)
        centre = np.eye(3) if neutral is None else turns[neutral]
        changes['angle'] = angles_of(rotation_power(turns @ centre.T, pose) @ centre).astype(np.float32)
        translation = np.asarray(motion.translation)
        start = np.zeros(3, np.float32) if neutral is None else translation[neutral]
        changes['translation'] = (start + pose * (translation - start)).astype(np.float32)
    return motion.replace(**changes)


def only(
    motion: Motion,
    regions: list[str] | tuple[str, ...],
    *,
    source_expression: np.ndarray | None = None,
    source_angle: np.ndarray | None = None,
    source_translation: np.ndarray | None = None,
    region_maps: dict[str, np.ndarray] | None = None,
) -> Motion:
    """Keeps some regions of a motion; the others stay as in the source for the whole clip.

    Args:
        regions: of ``request.REGIONS``.
        source_expression, source_angle, source_translation: the source's own values; None is a face at rest that looks
            straight ahead.
        region_maps: region -> [64, 64] matrix that takes the region's share out of expression rows, for bases whose
            components mix regions (``retarget.region_map``).

    Raises:
        UserError: unknown region, or one that the basis cannot take apart without a map.
    """
    unknown = [r for r in regions if r not in REGIONS]
    if unknown:
        raise UserError(f'--only {unknown[0]}: choose from {", ".join(REGIONS)}')
    values = np.asarray(motion.expression, np.float32)
    rest = np.zeros(values.shape[1], np.float32) if source_expression is None else np.asarray(source_expression)
    kept = np.zeros_like(values)
    used = np.zeros(values.shape[1])
    if 'expression' in regions:
        kept, used = values, np.ones(values.shape[1])
    else:
        for region in (r for r in regions if r != 'pose'):
            channels = region_channels(motion.basis, region)
            if channels is not None:
                kept, used = np.where(channels, values, kept), np.maximum(used, channels)
            elif region_maps and region in region_maps:
                kept = kept + values @ region_maps[region]
            else:
                raise UserError(
                    f"--only {region}: the components of '{motion.basis}' each move the whole face; taking a "
                    'region out needs its head model (avatar-jax assets)'
                )
    changes = {'expression': (kept + rest * (1 - used)).astype(np.float32)}
    if 'pose' not in regions:
        for name, value in (('angle', source_angle), ('translation', source_translation)):
            value = np.zeros(3) if value is None else value
            changes[name] = np.broadcast_to(np.asarray(value, np.float32), (motion.num_frames, 3)).copy()
    return motion.replace(**changes)
