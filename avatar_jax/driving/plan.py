"""From a driver to the motion that an avatar is given: its basis, what is relative, which regions, how strongly."""

from __future__ import annotations

from typing import Any

import numpy as np

from avatar_jax.driving.bases import region_channels
from avatar_jax.driving.edit import amplified, neutral_frame, only, relative_to
from avatar_jax.driving.fields import HeadModels, load_head_model
from avatar_jax.driving.request import Plan
from avatar_jax.driving.retarget import region_map, retarget
from avatar_jax.errors import UserError
from avatar_jax.faces.camera_labels import pose_from_label
from avatar_jax.types import Avatar, Motion


def apply_plan(
    motion: Motion, plan: Plan, basis: str, avatar: Avatar, *, models: HeadModels = load_head_model
) -> tuple[Motion, tuple[str, ...]]:
    """The motion for an avatar that is driven by ``basis``, and what was done, one phrase each.

    Raises:
        UserError: the neutral frame does not exist, a factor is out of range, a head model that is needed is not here.
    """
    notes = []
    if motion.basis != basis:
        notes.append(f"expressions moved from the basis '{motion.basis}' to '{basis}'")
        motion = retarget(motion, basis, models=models)
    angle, translation = source_pose(avatar)
    relative_expression, relative_pose = plan.relative in ('expression', 'all'), plan.relative in ('pose', 'all')
    neutral = plan.neutral
    if neutral is not None and not 0 <= neutral < motion.num_frames:
        raise UserError(f'--neutral {neutral}: the driver has the frames 0 to {motion.num_frames - 1}')
    if plan.relative != 'none' and neutral is None:
        neutral = neutral_frame(motion)
        notes.append(f'frame {neutral} taken as the neutral one')
    if plan.relative != 'none':
        motion = relative_to(
            motion,
            neutral,
            expression=relative_expression,
            pose=relative_pose,
            source_angle=angle,
            source_translation=translation,
        )
    if plan.amplify != 1 or plan.amplify_pose != 1:
        # A relative expression is at rest in the neutral frame already.
        motion = amplified(motion, plan.amplify, 1.0, None if relative_expression else neutral)
        motion = amplified(motion, 1.0, plan.amplify_pose, neutral)
    if plan.only:
        maps = {
            r: region_map(basis, r, models)
            for r in plan.only
            if r != 'pose' and 'expression' not in plan.only and region_channels(basis, r) is None
        }
        motion = only(motion, plan.only, source_angle=angle, source_translation=translation, region_maps=maps)
    return motion, tuple(notes)


def source_pose(avatar: Avatar) -> tuple[np.ndarray, np.ndarray]:
    """Angle and translation [3] of the head in the avatar's portrait; straight ahead where it is not known."""
    camera: Any = avatar.camera
    if camera is None:
        return np.zeros(3), np.zeros(3)
    angle, translation = pose_from_label(np.asarray(camera.label, np.float64).reshape(-1)[:25])
    return np.asarray(angle), np.asarray(translation)
