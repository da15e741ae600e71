"""Contact sheets of procedural heads: ``python -m avatar_jax.procedural.gallery --out DIR``."""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from avatar_jax.procedural.expressions import EXPRESSION_DIM, INDEX
from avatar_jax.procedural.identity import sample_identity
from avatar_jax.procedural.looks import VERSIONS
from avatar_jax.procedural.render import default_gamma, render_head
from avatar_jax.procedural.streams import Stream

# (caption, components) of the expression sweep; names without _l/_r stand for both sides.
SWEEP = (
    ('neutral', {}),
    ('aa', {'viseme_aa': 1}),
    ('oh', {'viseme_oh': 1}),
    ('ee', {'viseme_ih': 1}),
    ('fv', {'viseme_fv': 1}),
    ('smile', {'smile': 1}),
    ('laugh', {'smile': 1, 'jaw_open': 0.35, 'cheek_squint': 0.7}),
    ('pucker', {'mouth_pucker': 1}),
    ('blink', {'blink': 1}),
    ('half', {'blink': 0.5}),
    ('surprise', {'wide': 1, 'brow_inner_up': 1, 'brow_outer_up': 1, 'jaw_open': 0.5}),
    ('angry', {'brow_down': 1, 'brow_furrow': 1, 'frown': 0.7}),
    ('right', {'gaze_x': 1}),
    ('left', {'gaze_x': -1}),
    ('tongue', {'tongue_out': 1, 'jaw_open': 0.5}),
    ('puff', {'cheek_puff': 1, 'press': 0.5}),
)


def expression(**values: float) -> np.ndarray:
    """[64] float32 from component names; ``smile=1`` sets ``smile_l`` and ``smile_r``.

    Raises:
        KeyError: no such component.
    """
    out = np.zeros(EXPRESSION_DIM, np.float32)
    for name, value in values.items():
        for part in (name,) if name in INDEX else (f'{name}_l', f'{name}_r'):
            out[INDEX[part]] = value
    return out


def camera_label(yaw: float = 0.0, pitch: float = 0.0, radius: float = 2.7, target=(0.0, 0.006, 0.0)) -> np.ndarray:
    """[25] EG3D label of a camera on a sphere around ``target`` (angles in degrees, yaw > 0 from the image right)."""
    y, p = np.radians(yaw), np.radians(pitch)
    outward = np.array([np.sin(y) * np.cos(p), np.sin(p), np.cos(y) * np.cos(p)])
    right = np.cross(-outward, [0, 1, 0])
    right /= np.linalg.norm(right)
    pose = np.eye(4)
    pose[:3] = np.stack([right, np.cross(-outward, right), -outward, np.asarray(target) + radius * outward], 1)
    return np.concatenate([pose.ravel(), [4.2647, 0, 0.5, 0, 4.2647, 0.5, 0, 0, 1]]).astype(np.float32)


def sheet(images: list[np.ndarray], columns: int) -> np.ndarray:
    """Joins [H, W, 3] images in 0..1 to one uint8 picture, row by row; white where images are missing."""
    images = images + [np.ones_like(images[0])] * (-len(images) % columns)
    rows = [np.concatenate(images[i : i + columns], 1) for i in range(0, len(images), columns)]
    return np.round(255 * np.clip(np.concatenate(rows), 0, 1)).astype(np.uint8)


def _light(index: int, looks: int) -> np.ndarray:
    """[27] the default light; in version 2, which shows more of it, another one for every number."""
    shift = Stream('gallery', index).normal(0, 0.03, (3, 9)) * [1, 1, 1, 1.5, 0, 0, 0, 0, 0]
    return default_gamma() + (looks > 1) * (shift.mean(0) + 0.2 * shift).reshape(27).astype(np.float32)


def identities(
    seed: int = 0, count: int = 16, resolution: int = 256, split: str = 'train', looks: int = 1
) -> np.ndarray:
    """Sheet of ``count`` people, four to a row, from changing directions."""
    turns = (0, 22, -25, 0)
    return sheet(
        [
            render_head(
                sample_identity(seed + i, split),
                expression(),
                camera_label(turns[i % 4]),
                _light(i, looks),
                resolution,
                looks=looks,
            ).rgb
            for i in range(count)
        ],
        4,
    )


def sweep(seed: int = 0, resolution: int = 256, split: str = 'train', looks: int = 1) -> np.ndarray:
    """Sheet of one person going through ``SWEEP``."""
    person = sample_identity(seed, split)
    return sheet(
        [
            render_head(person, expression(**values), camera_label(), resolution=resolution, looks=looks).rgb
            for _, values in SWEEP
        ],
        4,
    )


def main(argv: list[str] | None = None) -> None:
    """Writes ``identities.png`` and ``expressions.png``."""
    from PIL import Image

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--out', type=Path, required=True, help='folder for the pictures')
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--resolution', type=int, default=256)
    parser.add_argument('--looks', type=int, default=1, choices=VERSIONS, help='version of the looks (default: 1)')
    options = parser.parse_args(argv)
    options.out.mkdir(parents=True, exist_ok=True)
    for name, picture in (
        ('identities', identities(options.seed, resolution=options.resolution, looks=options.looks)),
        ('expressions', sweep(options.seed + 40, resolution=options.resolution, looks=options.looks)),
    ):
        Image.fromarray(picture).save(options.out / f'{name}.png')
        print(options.out / f'{name}.png')


if __name__ == '__main__':
    main()
