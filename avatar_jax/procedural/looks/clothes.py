"""Patterns of clothes and hats, and what eyeglass frames look like."""

from __future__ import annotations

import numpy as np

from avatar_jax.procedural.curves import step
from avatar_jax.procedural.looks.noise import MOTTLE, PORES, skin_noise
from avatar_jax.procedural.looks.traits import Glasses, Hat, Looks
from avatar_jax.procedural.style import Style


def _mix(albedo, amount, colour):
    albedo += np.asarray(amount, np.float32)[:, None] * (np.asarray(colour, np.float32) - albedo)


def paint_cloth(albedo, canonical, azimuth, position, style: Style, looks: Looks) -> None:
    """Patterns on samples of cloth in place: ``albedo`` [N, 3], ``canonical`` [N, >=2] (|azimuth|, row),
    ``position`` [N, 3]."""
    row = canonical[:, 1]
    noise = skin_noise(azimuth * 2.5, position[:, 1] + position[:, 2], looks.offset)
    size = 0.06 + 0.16 * looks.pattern_scale
    x, y = position[:, 0], position[:, 1] - 0.5 * position[:, 2]
    below = step(2.2, 2.8, row)  # not on the collar
    if looks.pattern == 'stripes':
        _mix(albedo, 0.9 * below * step(-0.15, 0.15, np.sin(2 * np.pi * x / size)), style.cloth2)
    elif looks.pattern == 'check':
        for t in (x, y):
            _mix(albedo, 0.5 * below * step(-0.1, 0.1, np.sin(2 * np.pi * t / (1.5 * size))), style.cloth2)
            _mix(albedo, 0.6 * below * step(0.93, 0.97, np.sin(2 * np.pi * t / (1.5 * size) + 0.8)), looks.colour3)
    elif looks.pattern == 'dots':
        shift = np.floor(y / size) % 2 * 0.5
        d = np.hypot(x / size + shift - np.floor(x / size + shift) - 0.5, y / size - np.floor(y / size) - 0.5)
        _mix(albedo, below * step(0.30, 0.24, d), looks.colour3)
    elif looks.pattern == 'print':
        _mix(albedo, below * step(0.3, 0.45, noise[:, MOTTLE]), style.cloth2)
        _mix(albedo, below * step(0.9, 1.05, noise[:, MOTTLE]), looks.colour3)
    weave = 0.05 * noise[:, PORES] + (0.16 if looks.pattern == 'melange' else 0.03) * noise[:, PORES]
    folds = 0.05 * np.sin(5 * azimuth + 2 * noise[:, MOTTLE] + 3 * row)
    albedo *= (1 + weave + folds + 0.03 * noise[:, MOTTLE])[:, None].astype(np.float32)


def paint_hat(albedo, canonical, hat: Hat, looks: Looks) -> None:
    """Colours samples of the hat in place; ``canonical`` [N, >=2] (azimuth, 0 crown .. 1 edge, above 1.4 the brim)."""
    a, s = canonical[:, 0], canonical[:, 1]
    albedo[:] = hat.colour
    noise = skin_noise(a * 1.5, s, looks.offset)
    if hat.kind == 'beanie':
        if looks.pattern in ('stripes', 'check'):
            _mix(albedo, step(-0.1, 0.1, np.sin(14 * s)), hat.colour2)
        knit = np.abs(np.sin(38 * a))
        albedo *= (0.72 + 0.36 * knit + 0.10 * np.sin(90 * s) * np.cos(38 * a))[:, None]
        albedo *= (1 - 0.25 * step(0.02, 0.0, np.abs(s - 0.74)))[:, None]
    elif hat.kind == 'cap':
        _mix(albedo, s > 1.4, hat.colour2)
        seam = np.abs(np.sin(3 * a))
        albedo *= (1 - 0.3 * step(0.06, 0.0, seam) * (s < 1.4))[:, None]
        if looks.pattern != 'plain':
            _mix(albedo, step(0.16, 0.13, np.hypot(a, 2.2 * (s - 0.62))) * (s < 1.4), looks.colour3)
    else:
        _mix(albedo, step(0.76, 0.79, s) * (s < 1.01), hat.colour2)
    albedo *= (1 + 0.05 * noise[:, PORES] + 0.03 * noise[:, MOTTLE])[:, None].astype(np.float32)


def paint_frame(albedo, canonical, glasses: Glasses, looks: Looks) -> None:
    """Colours samples of a frame in place; brown ones are mottled like horn."""
    albedo[:] = glasses.colour
    if glasses.colour[0] > 2.2 * glasses.colour[2] and glasses.rim > 0.012:
        noise = skin_noise(canonical[:, 0] * 4, canonical[:, 1], looks.offset)
        albedo *= (1 + 0.45 * noise[:, MOTTLE].clip(-1.5, 1.5))[:, None].astype(np.float32)
