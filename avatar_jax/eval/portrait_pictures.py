"""Pictures of what one and several portraits make of a person, for methods that take any number of them.

``eyes.jpg``: one portrait with closed and one with open eyes. A row for each person: the two portraits; the avatar of
the closed, of the open and of both, all driven to open eyes from a third side; the truth. ``portraits.jpg``: the avatar
of one, two and four portraits, seen from a side that none of them shows; the truth.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from avatar_jax.errors import UserError
from avatar_jax.io import atomic
from avatar_jax.io.images import grid
from avatar_jax.methods.model import Model
from avatar_jax.ops.image_metrics import psnr, to_unit
from avatar_jax.procedural import render_head
from avatar_jax.procedural.gallery import camera_label
from avatar_jax.procedural.gallery import expression as numbers
from avatar_jax.types import Camera, Portrait

LOOK = 0.15  # jaw of the driver, so that it is neither portrait's expression


class Sitter:
    """A procedural person, in one light, and the pictures that can be taken: [r,r,3] in [-1,1].

    Args:
        identity: [192]. gamma: [27] light. resolution: r.
    """

    def __init__(self, identity: np.ndarray, gamma: np.ndarray, resolution: int):
        self.identity, self.gamma, self.resolution = identity, gamma, resolution

    def picture(self, yaw: float, **expression: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(picture, label [25], expression [64]) from ``yaw`` degrees."""
        label, code = camera_label(yaw), numbers(**expression)
        head = render_head(self.identity, code, label, self.gamma, resolution=self.resolution, supersample=2)
        return (2 * np.asarray(head.rgb) - 1).astype(np.float32), label, code

    def portrait(self, yaw: float, **expression: float) -> Portrait:
        """The same as a ``Portrait``."""
        image, label, code = self.picture(yaw, **expression)
        return Portrait(image=image, camera=Camera.from_label(label), expression=code, source=f'{yaw:+.0f} degrees')


def rendered(model: Model, portraits: list[Portrait], label: np.ndarray, expression: np.ndarray) -> np.ndarray:
    """[r,r,3] in [-1,1]: the avatar of the portraits with that expression from that camera."""
    row = np.zeros((1, 70), np.float32)
    row[:, :64] = expression
    return model.frames(model.build(portraits, **model.method.evaluation_options).avatar, row, label[None]).rgb[0]


def eyes_row(model: Model, sitter: Sitter) -> list[np.ndarray]:
    """The row of one person in ``eyes.jpg``."""
    closed, opened = sitter.portrait(-12, blink=1.0), sitter.portrait(10, smile=0.3)
    truth, label, code = sitter.picture(20, jaw_open=LOOK)
    avatars = [rendered(model, use, label, code) for use in ([closed], [opened], [closed, opened])]
    return [closed.image, opened.image, *avatars, truth]


def portraits_row(model: Model, sitter: Sitter) -> list[np.ndarray]:
    """The row of one person in ``portraits.jpg``."""
    portraits = [
        sitter.portrait(-25),
        sitter.portrait(5, smile=0.6),
        sitter.portrait(-8, jaw_open=0.3),
        sitter.portrait(18, brow_inner_up=0.7),
    ]
    truth, label, code = sitter.picture(32, jaw_open=LOOK)
    return [*(p.image for p in portraits), *(rendered(model, portraits[:n], label, code) for n in (1, 2, 4)), truth]


def portrait_pictures(model: Model, sitters: list[Sitter], out: Path) -> dict[Path, dict[str, float]]:
    """Writes both pictures; returns the mean PSNR in dB of each kind of avatar in them.

    Args:
        model: of procedural heads; its method takes several portraits. sitters: a row of each picture for each.
        out: folder for ``eyes.jpg`` and ``portraits.jpg``.
    Raises:
        UserError: the method takes one portrait only, or ``out`` cannot be written.
    """
    from PIL import Image

    if not model.method.takes_portraits:
        raise UserError(
            f'{model.path}: {model.method.title} makes an avatar from one portrait; give weights of a method that '
            'joins several'
        )
    folder, found = atomic.output_folder(out), {}
    for name, row, kinds in (
        ('eyes.jpg', eyes_row, ('closed', 'open', 'both')),
        ('portraits.jpg', portraits_row, ('one', 'two', 'four')),
    ):
        rows = [row(model, sitter) for sitter in sitters]
        pictures = to_unit(np.stack([np.stack(r) for r in rows]))  # [people, columns, r, r, 3]
        found[folder / name] = {
            kind: float(np.mean(psnr(pictures[:, k - 4], pictures[:, -1]))) for k, kind in enumerate(kinds)
        }
        Image.fromarray(grid(np.stack([image for r in rows for image in r]), len(rows[0]))).save(
            folder / name, quality=92
        )
    return found
