"""The pictures that ``avatar-jax invert`` is given, read one by one, and the people that avatars are made of."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from avatar_jax.errors import UserError
from avatar_jax.io.motion import load_motion
from avatar_jax.methods.avatars import Person
from avatar_jax.methods.base import Source
from avatar_jax.methods.reading import expression_source, is_clip, measured_as, portrait_of, read_clip
from avatar_jax.types import Config, Motion, Portrait

if TYPE_CHECKING:
    from avatar_jax.track.measured import Measured


@dataclass(frozen=True)
class ReadFile:
    """A file that was read: the source it is, what was measured (of a video: on its best frame), and where the
    expression is from ('' for a video)."""

    source: Source
    measured: Measured
    expression: str = ''


class Pictures:
    """Files with their landmarks and motions.

    Args:
        files: pictures, folders of ``avatar-jax track``, or videos.
        motion: files whose first frame has a portrait's expression and pose, one for each or one for all.
        landmarks: files of landmarks, one for each, or ('network',).
        note: called with each sentence for the person who asked.
        options: of ``methods.reading.measured_as``: ``background``, ``aligned``, ``face``.

    Attributes:
        files: as given. names: a folder name for each.

    Raises:
        UserError: another number of landmark or motion files than of pictures.
    """

    def __init__(
        self,
        files: Sequence[str | os.PathLike],
        *,
        motion: Sequence[str | os.PathLike] | None = None,
        landmarks: Sequence[str | os.PathLike] | None = None,
        note: Callable[[str], None] = lambda text: None,
        **options: Any,
    ):
        if landmarks and list(landmarks) == ['network']:
            landmarks = ['network'] * len(files)
        for name, given, allowed in (
            ('landmarks', landmarks, {len(files)}),
            ('motion', motion, {len(files), 1}),
        ):
            if given and len(given) not in allowed:
                raise UserError(f'--{name}: {len(given)} files for {len(files)} images; give one for each')
        self.files, self.names = list(files), unique_names(files)
        self._motion, self._landmarks, self._note, self._options = motion, landmarks, note, options

    def read(self, i: int, config: Config, *, clips: bool = False) -> ReadFile:
        """File ``i`` for a model of that configuration; with ``clips`` a video as one, else as its best frame."""
        options = {**self._options, 'landmarks': self._landmarks[i] if self._landmarks else None}
        if clips and is_clip(self.files[i]):
            options.pop('aligned', None)
            source = read_clip(self.files[i], config, **options)
            return ReadFile(replace(source, name=self.names[i]), source.portraits.best())
        measured = measured_as(self.files[i], config, **options)
        portrait, notes = portrait_of(measured, config)
        if (own := self._motion_of(i, config.basis)) is not None:
            portrait, notes = with_motion(portrait, own, config.basis), ()
        for text in (*measured.warnings, *notes):
            self._note(f'{measured.path}: {text}')
        expression = expression_source(measured, portrait, own)
        return ReadFile(Source([portrait], name=self.names[i]), measured, expression)

    def _motion_of(self, i: int, basis: str) -> Motion | None:
        files = self._motion
        return None if not files else load_motion(files[i] if len(files) > 1 else files[0], basis=basis)


def people_of(readings: Sequence[ReadFile], joined: bool, name: str) -> list[Person]:
    """Whom avatars are made of: one person of all portraits where they are joined, else one of each; and one of each
    video. ``name``: of the person of all portraits.
    """
    portraits = [r for r in readings if r.source.kind != 'video']
    clips = [Person(r.source, [r.measured]) for r in readings if r.source.kind == 'video']
    if not joined or not portraits:
        return [*(Person(r.source, [r.measured], r.expression) for r in portraits), *clips]
    person = Source([r.source.portraits[0] for r in portraits], name=name)
    return [Person(person, [r.measured for r in portraits], portraits[0].expression), *clips]


def people_in_turn(readings: Iterator[ReadFile], joined: bool, name: str, out: Path) -> Iterator[Person]:
    """``people_of``, each read when its turn comes, with ``with_work``: of a long list only one group is in memory.
    Where portraits are joined, all have to be read.
    """
    if joined:
        return iter([with_work(person, out) for person in people_of(list(readings), joined, name)])

    def alone(reading: ReadFile) -> Person:
        return with_work(people_of([reading], joined, name)[0], out)

    return map(alone, readings)  # unlike a loop, it has no name that holds the last one until the next is read


def with_work(person: Person, out: Path) -> Person:
    """A person of a video with a folder in ``out`` for what a long training keeps."""
    if person.source.kind != 'video':
        return person
    return replace(person, source=replace(person.source, work=str(out / f'{person.source.name}.training')))


def with_motion(portrait: Portrait, motion: Motion | None, basis: str) -> Portrait:
    """A portrait with the coefficients of a motion's first frame, if they are in the model's basis."""
    if motion is None or motion.basis != basis:
        return portrait
    first = motion.frames(0, 1)
    return portrait.replace(
        expression=first.expression[0], angle=first.angle[0], translation=first.translation[0], basis=basis
    )


def unique_names(files: Sequence[str | os.PathLike]) -> list[str]:
    """A folder name for each file: its stem, numbered where stems repeat."""
    names: list[str] = []
    for file in files:
        stem, number = Path(file).stem or 'portrait', 2
        name = stem
        while name in names:
            name, number = f'{stem}-{number}', number + 1
        names.append(name)
    return names
