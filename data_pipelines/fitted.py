"""Frames of a data set as weights know them: camera labels and background brought to the weights' conventions.

Raw labels keep the head's pose and can be normalised in any way; pictures with head masks can be laid over another
background. What cannot be changed is refused, in one line that says what differs.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import numpy as np

from avatar_jax.errors import UserError
from avatar_jax.faces.camera_labels import make_label, normalise_pose, split_label
from avatar_jax.faces.conventions import BACKGROUNDS, Conventions, differences

if TYPE_CHECKING:
    from data_pipelines.sources import ClipFrames


class FittedFrames:
    """A source (``data_pipelines.sources``) with other labels or another background."""

    def __init__(self, source: ClipFrames, want: Conventions):
        self.source, self.want, self.table = source, want, source.table
        self._has = source.conventions
        self.has_masks = source.has_masks
        self.conventions = dataclasses.replace(self._has, labels=want.labels, background=want.background)

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, record: int) -> dict[str, np.ndarray]:
        row = dict(self.source[record])
        if self.want.labels != self._has.labels:
            pose, lens = split_label(np.asarray(row['label'], np.float64))
            row['label'] = make_label(normalise_pose(pose, self.want.labels), lens)
        if self.want.background != self._has.background:
            row['image'] = _laid_over(row['image'], row['mask'], self._has.background, self.want.background)
        return row


def _laid_over(image: np.ndarray, mask: np.ndarray, old: str, new: str) -> np.ndarray:
    """A picture [H,W,3] uint8 over another background by its mask [H,W] (255 = head)."""
    alpha = mask.astype(np.float32)[..., None] / 255
    picture, wanted = image.astype(np.float32), 127.5 * (BACKGROUNDS[new] + 1)
    if old in BACKGROUNDS:  # it is composed already: only the background's share is exchanged
        found = picture + (1 - alpha) * (wanted - 127.5 * (BACKGROUNDS[old] + 1))
    else:
        found = wanted + alpha * (picture - wanted)
    return np.rint(np.clip(found, 0, 255)).astype(np.uint8)


def fitted(source: ClipFrames, weights: Conventions, where: str) -> tuple[Any, list[str]]:
    """A source as the weights know pictures, and what differs without harm.

    Args:
        where: the option or file that names the data, for messages.

    Raises:
        UserError: the data do not fit; says what differs.
    """
    has = source.conventions
    labels = weights.labels if has.labels == 'raw' else has.labels
    background = has.background
    if weights.background in BACKGROUNDS and source.has_masks:
        background = weights.background
    want = dataclasses.replace(has, labels=labels, background=background)
    wrong, notes = differences(weights, want)
    if wrong:
        raise UserError(f'{where}: {"; ".join(wrong)}; use other data, or a configuration that says the same')
    changed = [n for n, a, b in (('labels', has.labels, labels), ('background', has.background, background)) if a != b]
    if not changed:
        return source, notes
    notes += [f"{n}: '{getattr(has, n)}' in the data, changed to '{getattr(want, n)}' of the weights" for n in changed]
    return FittedFrames(source, want), notes
