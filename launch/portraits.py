"""The portraits of a command: measured pictures with what the weights that will read them ask for.

Here, and nowhere else, is asked how the camera labels of a weight file's data were normalised, and in which basis its
expressions are.
"""

from __future__ import annotations

import argparse
import sys
from typing import Any

from avatar_jax.errors import UserError


def read_portrait(args: argparse.Namespace, index: int, config: Any, size: int, own: Any = None) -> tuple[Any, Any]:
    """(``Measured``, ``Portrait``) of picture ``index`` of a command; warnings go to stderr.

    Args:
      args: options of ``avatar-jax invert``.
      config: of the weights: ``label_mode`` and ``basis``.
      size: side of the picture.
      own: motion whose first frame is the picture's own expression and pose, in place of what is measured; or None.

    Raises:
      UserError: the picture cannot be used.
    """
    from avatar_jax.track.measure import measure

    measured = measure(
        args.image[index],
        size=size,
        label_mode=config.label_mode,
        background=args.background,
        aligned=args.aligned,
        landmarks=args.landmarks[index] if args.landmarks else None,
        face=args.face,
    ).best()
    portrait, notes = in_basis(measured.portrait(), config.basis)
    if own is not None:
        first, notes = own.frames(0, 1), ()
        portrait = portrait.replace(
            expression=first.expression[0], angle=first.angle[0], translation=first.translation[0], basis=config.basis
        )
    for warning in (*measured.warnings, *notes):
        print(f'avatar-jax: {measured.path}: {warning}', file=sys.stderr)
    return measured, portrait


def in_basis(portrait: Any, basis: str) -> tuple[Any, tuple[str, ...]]:
    """The portrait with its expression in ``basis``, and what could not be brought there, one line each.

    Expressions are moved over as a driver's are; shapes mean nothing in another basis and are left out.
    """
    from avatar_jax.driving.retarget import retarget
    from avatar_jax.types import Motion

    if not portrait.basis or portrait.basis == basis:
        return portrait, ()
    found = Motion(portrait.expression[None], portrait.angle[None], portrait.translation[None], basis=portrait.basis)
    bare = portrait.replace(expression=None, shape=None, basis=basis)
    try:
        return bare.replace(expression=retarget(found, basis).expression[0]), ()
    except UserError as error:
        return bare, (f'its expression is taken as neutral: it was measured in {portrait.basis!r}; {error}',)


def expression_source(measured: Any, portrait: Any, own: Any) -> str:
    """Where a portrait's expression is from, for reports."""
    if own is not None:
        return 'from the motion file'
    if portrait.expression is None:
        return 'neutral (not measured)'
    return f'measured ({measured.basis})' + ('' if measured.basis == portrait.basis else f', moved to {portrait.basis}')
