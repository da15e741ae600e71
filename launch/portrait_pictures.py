"""Pictures of what one and several portraits make of a person, for methods that take any number of them.

    python -m launch.portrait_pictures --out DIR [--weights FILE|NAME] [--people N] [--seed N]

``eyes.jpg``: one portrait with closed and one with open eyes. A row for each person: the two portraits; the avatar of
the closed, of the open and of both, all driven to open eyes from a third side; the truth. ``portraits.jpg``: the avatar
of one, two and four portraits, seen from a side that none of them shows. The people are of the split 'test'. Printed
are the mean PSNRs of the avatars in both pictures against the truth.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import numpy as np

from avatar_jax.errors import UserError

LOOK = 0.15  # jaw of the driver, so that it is neither portrait's expression


class Sitter:
    """A person of the test split and the pictures that can be taken: [r,r,3] in [-1,1]."""

    def __init__(self, number: int, seed: int, resolution: int):
        from data_pipelines.clips import evaluation_clips

        clip = evaluation_clips(number + 1, seed, num_frames=2)[number]
        self.identity, self.gamma, self.resolution = clip.identity, clip.gamma, resolution

    def picture(self, yaw: float, **expression: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(picture, label [25], expression [64]) from ``yaw`` degrees."""
        from avatar_jax.procedural import render_head
        from avatar_jax.procedural.gallery import camera_label
        from avatar_jax.procedural.gallery import expression as numbers

        label, code = camera_label(yaw), numbers(**expression)
        head = render_head(self.identity, code, label, self.gamma, resolution=self.resolution, supersample=2)
        return (2 * np.asarray(head.rgb) - 1).astype(np.float32), label, code

    def portrait(self, yaw: float, **expression: float) -> Any:
        """The same as a ``Portrait``."""
        from avatar_jax.types import Camera, Portrait

        image, label, code = self.picture(yaw, **expression)
        return Portrait(image=image, camera=Camera.from_label(label), expression=code, source=f'{yaw:+.0f} degrees')


def rendered(model: Any, portraits: list[Any], label: np.ndarray, expression: np.ndarray) -> np.ndarray:
    """[r,r,3] in [-1,1]: the avatar of the portraits with that expression from that camera."""
    row = np.zeros((1, 70), np.float32)
    row[:, :64] = expression
    return model.frames(model.build(portraits).avatar, row, label[None]).rgb[0]


def eyes_row(model: Any, sitter: Sitter) -> list[np.ndarray]:
    """The row of one person in ``eyes.jpg``."""
    closed, opened = sitter.portrait(-12, blink=1.0), sitter.portrait(10, smile=0.3)
    truth, label, code = sitter.picture(20, jaw_open=LOOK)
    avatars = [rendered(model, use, label, code) for use in ([closed], [opened], [closed, opened])]
    return [closed.image, opened.image, *avatars, truth]


def portraits_row(model: Any, sitter: Sitter) -> list[np.ndarray]:
    """The row of one person in ``portraits.jpg``."""
    portraits = [
        sitter.portrait(-25),
        sitter.portrait(5, smile=0.6),
        sitter.portrait(-8, jaw_open=0.3),
        sitter.portrait(18, brow_inner_up=0.7),
    ]
    truth, label, code = sitter.picture(32, jaw_open=LOOK)
    return [*(p.image for p in portraits), *(rendered(model, portraits[:n], label, code) for n in (1, 2, 4)), truth]


def make(out: Path, weights: str, people: int, seed: int) -> dict[Path, dict[str, float]]:
    """Writes both pictures; returns the mean PSNR in dB of each kind of avatar in them."""
    from PIL import Image

    from avatar_jax.io import atomic
    from avatar_jax.io.images import grid
    from avatar_jax.methods.model import choose_model
    from avatar_jax.ops.image_metrics import psnr, to_unit

    model = choose_model(None, weights)
    if not model.method.joins_portraits:
        raise UserError(
            f'{weights}: {model.method.title} makes an avatar from one portrait; give weights of a method that '
            'joins several'
        )
    folder, found = atomic.output_folder(out), {}
    for name, row, kinds in (
        ('eyes.jpg', eyes_row, ('closed', 'open', 'both')),
        ('portraits.jpg', portraits_row, ('one', 'two', 'four')),
    ):
        rows = [row(model, Sitter(k, seed, model.config.img_resolution)) for k in range(people)]
        pictures = to_unit(np.stack([np.stack(r) for r in rows]))  # [people, columns, r, r, 3]
        found[folder / name] = {
            kind: float(np.mean(psnr(pictures[:, k - 4], pictures[:, -1]))) for k, kind in enumerate(kinds)
        }
        Image.fromarray(grid(np.stack([image for r in rows for image in r]), len(rows[0]))).save(
            folder / name, quality=92
        )
    return found


def main(argv: list[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--out', type=Path, required=True)
    parser.add_argument('--weights', default='gpavatar128', help='weight file, or a shipped one (default: gpavatar128)')
    parser.add_argument('--people', type=int, default=4)
    parser.add_argument('--seed', type=int, default=11)
    args = parser.parse_args(argv)
    try:
        if args.people < 1:
            raise UserError(f'--people {args.people}: must be at least 1')
        for path, scores in make(args.out, args.weights, args.people, args.seed).items():
            print(path, ', '.join(f'{kind} {value:.1f} dB' for kind, value in scores.items()))
    except UserError as e:
        print(f'error: {e}', file=sys.stderr)
        return 2
    return 0


if __name__ == '__main__':
    raise SystemExit(main())
