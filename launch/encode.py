"""One avatar of all portraits, in one forward pass each: ``avatar-jax invert`` for methods that encode."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from avatar_jax.errors import UserError

# Below this similarity two portraits probably show different people. Of 64 procedural people in four poses each, the
# stand-in network has 8 % of the pairs of one person below 0.1, and 23 % of the pairs of two people above.
SAME_PERSON = {'arcface18': 0.3, 'head_identity': 0.1}
SHOWN = 4  # portraits in the picture


def encode(args: argparse.Namespace, model: Any, out: Path) -> int:
    """Prepares the portraits, builds the avatar, writes ``out/<first picture's name>``; returns the exit status."""
    from avatar_jax.io.atomic import write_json
    from avatar_jax.io.provenance import Provenance
    from avatar_jax.progress import activity
    from launch.batch import Batch
    from launch.invert import own_motions, unique_names
    from launch.portraits import read_portrait

    if args.steps is not None or args.pti or args.early_stop or args.space != 'w+':
        raise UserError(
            f'--steps, --pti, --early-stop and --space: {model.method} encodes portraits and has no optimisation; '
            'leave them out'
        )
    config, names = model.config, unique_names(args.image)
    motions = own_motions(args.motion, len(args.image), config.basis)
    batch = Batch()

    def ready(i: int) -> Any:
        return read_portrait(args, i, config, config.img_resolution, motions[i])

    batch.run(range(len(args.image)), ready, name=lambda i: args.image[i])
    if not batch.results:
        return batch.finish()
    prepared, portraits = zip(*batch.results, strict=True)
    similarity = similarities(args.perception, config.img_resolution, portraits)
    warn_of_strangers([p.path.name for p in prepared], similarity)
    number = f'{len(portraits)} portrait{"s" if len(portraits) > 1 else ""}'
    with activity(f'encoding {number} (compiles first)'):
        began = time.monotonic()
        avatar = model.build(list(portraits))
        np.asarray(avatar.identity['planes'])
        seconds = time.monotonic() - began
    folder = out / names[0]
    provenance = Provenance(
        synthetic=True,
        weights=model.sha256,
        seed=args.seed,
        command='invert',
        sources={p.path.name: p.sha256 for p in prepared},
    )
    quality = write_avatar(
        model,
        folder,
        avatar,
        portraits,
        provenance,
        {
            'name': names[0],
            'portraits': [p.report() for p in prepared],
            'similarity_to_first': similarity,
            'seconds_with_compilation': seconds,
        },
    )
    write_json(
        out / 'report.json',
        {
            'avatars': [{'name': names[0], 'psnr': quality, 'portraits': len(portraits)}],
            'skipped': [{'image': name, 'reason': reason} for name, reason in batch.skipped],
            'weights': {'source': model.source, 'sha256': model.sha256},
            'provenance': provenance.as_dict(),
        },
    )
    print(f'{folder}: {quality:.1f} dB to the first portrait, from {number}')
    return batch.finish()


def similarities(files: Sequence[str], resolution: int, portraits: Sequence[Any]) -> dict[str, Any] | None:
    """Cosine similarity of each further portrait to the first, and the network it was measured with; None: no
    network.
    """
    import jax.numpy as jnp

    from avatar_jax.eval.estimators import from_bank
    from avatar_jax.losses.perception import PerceptionBank
    from launch.evaluate import named_files
    from launch.perception import default_bank

    if len(portraits) < 2:
        return None
    bank = PerceptionBank.load(named_files(files), default_bank(resolution))
    identity = from_bank(bank).identity
    if identity is None or (bank.has('arcface18') and any(p.landmarks is None for p in portraits)):
        return None
    first, values = None, []
    for p in portraits:  # one by one: a hundred portraits need no more memory than one
        marks = None if p.landmarks is None else jnp.asarray(p.landmarks)[None]
        code = np.asarray(identity.call(jnp.asarray(p.image)[None], marks))[0]
        code = code / max(float(np.linalg.norm(code)), 1e-12)
        first = code if first is None else first
        values.append(float(code @ first))
    kind = 'arcface18' if bank.has('arcface18') else 'head_identity'
    return {'network': identity.name, 'kind': kind, 'values': values[1:]}


def warn_of_strangers(names: Sequence[str], similarity: dict[str, Any] | None) -> list[str]:
    """One warning line for each portrait that looks like somebody else; returns the lines."""
    lines = []
    if similarity is not None:
        limit = SAME_PERSON[similarity['kind']]
        for name, value in zip(names[1:], similarity['values'], strict=True):
            if value < limit:
                lines.append(
                    f'{name}: may show another person than {names[0]} (similarity {value:.2f}, below {limit:.2f}; '
                    f'{similarity["network"]}); the avatar will be a mixture'
                )
    for line in lines:
        print(f'avatar-jax: {line}', file=sys.stderr)
    return lines


def write_avatar(
    model: Any, folder: Path, avatar: Any, portraits: Sequence[Any], provenance: Any, report: dict[str, Any]
) -> float:
    """Writes one avatar's folder, completely or not at all; returns the PSNR to the first portrait."""
    from avatar_jax.eval.image import psnr, to_unit
    from avatar_jax.faces.camera_labels import yaw_label
    from avatar_jax.io.atomic import atomic_folder, write_json
    from avatar_jax.io.images import grid, write_png
    from avatar_jax.methods.gpavatar.model import source_windows
    from avatar_jax.methods.registry import save_avatar
    from launch.invert import SIDE_VIEWS

    label = np.asarray(portraits[0].camera.label, np.float32)
    labels = np.stack([label, *(np.asarray(yaw_label(label, angle), np.float32) for angle in SIDE_VIEWS)])
    window = np.broadcast_to(np.asarray(source_windows(portraits[0])), (len(labels), 27, 70))
    views = np.asarray(model.animate(avatar, window, labels).rgb)
    shown = np.stack([np.asarray(p.image) for p in portraits[:SHOWN]])
    quality = float(psnr(to_unit(views[:1]), to_unit(shown[:1]))[0])
    with atomic_folder(folder) as temporary:
        save_avatar(temporary, avatar, provenance.as_dict())
        write_png(temporary / 'reconstruction.png', grid(np.concatenate([shown, views]), 4), provenance)
        write_json(
            temporary / 'report.json',
            {
                **report,
                'psnr': quality,
                'provenance': provenance.as_dict(),
                'limit': 'the likeness is bounded by what the weights have seen in training',
            },
        )
    return quality
