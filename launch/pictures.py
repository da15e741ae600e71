"""The pictures that ``avatar-jax invert`` is given, read one by one as its options say."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from avatar_jax.errors import UserError
from avatar_jax.io.names import shown


class Pictures:
    """Files with their landmarks and motions.

    Attributes:
        names: a folder name for each. expressions: number -> where a picture's expression is from, once it was read.

    Raises:
        UserError: another number of landmark or motion files than of pictures.
    """

    def __init__(self, args: argparse.Namespace):
        if args.landmarks == ['network']:
            args.landmarks = args.landmarks * len(args.image)
        for name in ('landmarks', 'motion'):
            files = getattr(args, name)
            allowed = {len(args.image), 1} if name == 'motion' else {len(args.image)}
            if files and len(files) not in allowed:
                raise UserError(f'--{name}: {len(files)} files for {len(args.image)} images; give one for each')
        self.args, self.names = args, unique_names(args.image)
        self.expressions: dict[int, str] = {}

    def read(self, i: int, config: Any) -> tuple[Any, Any]:
        """What was measured on picture ``i``, and its ``Portrait`` for a model of that configuration."""
        from avatar_jax.methods.reading import expression_source, measured_as, portrait_of

        args = self.args
        options = {'background': args.background, 'aligned': args.aligned, 'face': args.face}
        landmarks = args.landmarks[i] if args.landmarks else None
        measured = measured_as(args.image[i], config, landmarks=landmarks, **options)
        portrait, notes = portrait_of(measured, config)
        if (own := self._motion(i, config.basis)) is not None:
            portrait, notes = with_motion(portrait, own, config.basis), ()
        for warning in (*measured.warnings, *notes):
            print(shown(f'avatar-jax: {measured.path}: {warning}'), file=sys.stderr)
        self.expressions[i] = expression_source(measured, portrait, own)
        return measured, portrait

    def clip(self, i: int, config: Any) -> tuple[Any, Any]:
        """The best frame of video ``i`` as it was measured, and all its frames as a ``Source``."""
        from dataclasses import replace

        from avatar_jax.methods.reading import read_clip

        landmarks = self.args.landmarks[i] if self.args.landmarks else None
        options = {'background': self.args.background, 'face': self.args.face, 'landmarks': landmarks}
        source = read_clip(self.args.image[i], config, **options)
        return source.portraits.best(), replace(source, name=self.names[i])

    def _motion(self, i: int, basis: str) -> Any:
        from avatar_jax.io.motion import load_motion

        files = self.args.motion
        return None if not files else load_motion(files[i] if len(files) > 1 else files[0], basis=basis)


def with_motion(portrait: Any, motion: Any, basis: str) -> Any:
    """A portrait with the coefficients of a motion's first frame, if they are in the model's basis."""
    if motion is None or motion.basis != basis:
        return portrait
    first = motion.frames(0, 1)
    return portrait.replace(
        expression=first.expression[0], angle=first.angle[0], translation=first.translation[0], basis=basis
    )


def unique_names(images: list[str]) -> list[str]:
    """A folder name for each picture: its stem, numbered where stems repeat."""
    names: list[str] = []
    for image in images:
        stem, number = Path(image).stem or 'portrait', 2
        name = stem
        while name in names:
            name, number = f'{stem}-{number}', number + 1
        names.append(name)
    return names
