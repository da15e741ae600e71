"""What pictures and cameras mean to a weight file, and what they are in a data set: one description for both.

Weights know the pictures that they were trained on: how camera labels were made from a head's pose, what is behind the
head, how the head was cut out, in which basis expressions are, whose shape the head has. ``of_model`` tells it of a
model's configuration, ``data_pipelines.sources`` of data; ``differences`` compares.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from avatar_jax.errors import UserError
from avatar_jax.faces.camera_labels import MODES, RADIUS
from avatar_jax.types import Config, Portrait

BACKGROUNDS = {'white': 1.0, 'black': -1.0}  # in pictures of [-1, 1]
CROPS = {
    'five_points': 'the five-point crop of EG3D',
    'clip': 'one face box for a whole clip (OTAvatar)',
    'frame': "GPAvatar's 512-pixel frames",
}
# Labels of OTAvatar's own rule keep a distance of 2.7 to 2.9 (spec: head at a depth of -4 to -5), near those of 'orig'.
_NEAR = ({'orig', 'hdtf'},)


@dataclass(frozen=True)
class Conventions:
    """Of a weight file or a data set.

    Attributes:
        basis: of the expression coefficients.
        labels: how camera labels are made of a head's pose, one of ``faces.camera_labels.MODES``.
        background: 'white', 'black', or 'keep' for whatever was in the photograph.
        crop: how heads are cut out, a key of ``CROPS``.
        shape: number of shape coefficients in ``basis``: of weights those that they need, of data those that it has; 0:
            none.
    """

    basis: str
    labels: str = 'raw'
    background: str = 'white'
    crop: str = 'five_points'
    shape: int = 0

    def __post_init__(self):
        if self.labels not in MODES:
            raise UserError(f'label_mode: {self.labels!r}; use one of {", ".join(MODES)}')

    @property
    def radius(self) -> float | None:
        """Distance of the cameras from the middle of the head's volume, where labels fix it."""
        return RADIUS if self.labels in ('orig', 'cor', 'simplify') else None


def of_model(config: Config) -> Conventions:
    """What a model's configuration says of the pictures that its weights know.

    A configuration may have ``conventions``; one without has white pictures in its ``basis`` and ``label_mode``.
    """
    found = getattr(config, 'conventions', None)
    return Conventions(config.basis, config.label_mode) if found is None else found


def background_of(config: Config, choice: str = 'weights') -> str:
    """What ``--background`` stands for: 'weights' asks the weights, everything else is itself."""
    if choice not in ('weights', 'keep', *BACKGROUNDS):
        raise UserError(f'background {choice!r}: choose weights, white, black or keep')
    return of_model(config).background if choice == 'weights' else choice


def differences(weights: Conventions, data: Conventions) -> tuple[list[str], list[str]]:
    """What does not fit (each a sentence), and what differs without harm.

    Data with 'raw' labels or head masks can be brought to the weights' conventions (``data_pipelines.fitted``); what is
    compared here is what is left after that.
    """
    wrong, notes = [], []
    if weights.basis != data.basis:
        wrong.append(f"expressions are in the basis '{data.basis}', the weights read '{weights.basis}'")
    if weights.labels != data.labels:
        text = f"camera labels are made as '{data.labels}', those of the weights as '{weights.labels}'"
        near = any({weights.labels, data.labels} <= pair for pair in _NEAR)
        (notes if near else wrong).append(text)
    if weights.background != data.background and weights.background != 'keep':
        wrong.append(f"the background is '{data.background}', that of the weights '{weights.background}'")
    if weights.shape and data.shape != weights.shape:
        has = f'{data.shape} shape coefficients' if data.shape else 'no shape coefficients'
        wrong.append(f'there are {has}, the weights need {weights.shape}')
    if weights.crop != data.crop:
        notes.append(f'heads are cut out by {CROPS[data.crop]}, those of the weights by {CROPS[weights.crop]}')
    return wrong, notes


def over(portrait: Portrait, background: str) -> Portrait:
    """A portrait that lies over white (``background='white'`` of the readers), over another colour by its mask."""
    if background not in BACKGROUNDS or background == 'white' or portrait.mask is None:
        return portrait
    shift = (BACKGROUNDS[background] - BACKGROUNDS['white']) * (1 - np.asarray(portrait.mask, np.float32))
    image = np.clip(np.asarray(portrait.image, np.float32) + shift[..., None], -1, 1)
    return portrait.replace(image=image)
