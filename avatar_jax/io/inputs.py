"""Checks on input files, before a decoder sees them: one clear line instead of a library's message."""

from __future__ import annotations

import hashlib
import os
import stat
from pathlib import Path
from typing import TYPE_CHECKING

from avatar_jax.errors import UserError
from avatar_jax.io.names import media_url

if TYPE_CHECKING:
    from av.audio.stream import AudioStream
    from av.container import InputContainer
    from av.video.stream import VideoStream


def read_error(path: str | os.PathLike, error: OSError) -> UserError:
    """One line for a file that could not be opened or read."""
    if isinstance(error, FileNotFoundError):
        reason = 'no such file; check the path'
    elif isinstance(error, IsADirectoryError):
        reason = 'is a folder; give a file'
    elif isinstance(error, PermissionError):
        reason = 'no permission to read it; change its permissions or copy it'
    else:
        reason = f'could not be read ({error.strerror or error}); check the path and the disk'
    return UserError(f'{os.fspath(path)}: {reason}')


def input_file(path: str | os.PathLike) -> Path:
    """Checks that ``path`` is a readable, ordinary, non-empty file.

    Raises:
        UserError: it is missing, a folder, a device, empty, or may not be read.
    """
    path = Path(path)
    try:
        mode = path.stat().st_mode
        if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):  # opening a pipe would wait for its writer for ever
            raise UserError(f'{path}: is a device or a pipe; give an ordinary file')
        with open(path, 'rb') as file:
            if not file.read(1):
                raise UserError(f'{path}: the file is empty; check how it was made')
    except OSError as error:
        raise read_error(path, error) from error
    except ValueError as error:  # a NUL byte in the name
        raise UserError(f'{path!r}: is not a file name') from error
    return path


def file_sha256(path: str | os.PathLike) -> str:
    """SHA-256 of a file's bytes, read in pieces.

    Raises:
        UserError: the file is missing or cannot be read.
    """
    path = input_file(path)
    try:
        with open(path, 'rb') as file:
            return hashlib.file_digest(file, 'sha256').hexdigest()
    except OSError as error:
        raise read_error(path, error) from error


def open_media(path: str | os.PathLike) -> InputContainer:
    """A PyAV container for reading; text entries that are not UTF-8 do not make a file unreadable."""
    import av

    # Before version 19, PyAV is strict about them unless told otherwise; from then on there is nothing to tell.
    strict = int(av.__version__.partition('.')[0]) < 19
    return av.open(media_url(path), **({'metadata_errors': 'replace'} if strict else {}))


def picture_tracks(container: InputContainer) -> list[VideoStream]:
    """The picture tracks of an open container, the default one first; covers of sound files are none."""
    import av

    cover, first = av.stream.Disposition.attached_pic, av.stream.Disposition.default
    return sorted(
        (s for s in container.streams.video if not s.disposition & cover), key=lambda s: not s.disposition & first
    )


def sound_track(container: InputContainer) -> AudioStream | None:
    """The default sound track of an open container, else its first one; None where it has none."""
    import av

    default = av.stream.Disposition.default
    return min(container.streams.audio, key=lambda s: not s.disposition & default, default=None)
