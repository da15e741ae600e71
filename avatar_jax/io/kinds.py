"""One table of the kinds of pictures and videos: a file's content decides what it is, the same in all commands."""

from __future__ import annotations

import dataclasses
import importlib
import os
import struct
from pathlib import Path

from avatar_jax.errors import UserError

PICTURE, VIDEO = 'picture', 'video'

# Endings by which pictures and videos are found in folders. What a file is, its content tells.
PICTURE_ENDINGS = (
    *('.png', '.jpg', '.jpeg', '.jfif', '.jpe', '.webp', '.bmp', '.tif', '.tiff', '.avif', '.heic', '.heif', '.hif'),
    *('.jxl', '.jp2', '.j2k', '.exr', '.hdr', '.tga', '.ppm', '.pgm', '.pnm', '.pfm', '.dpx', '.qoi', '.psd', '.ico'),
    *('.dng', '.nef', '.cr2', '.cr3', '.arw', '.raf', '.orf', '.rw2'),
)
VIDEO_ENDINGS = (
    *('.mp4', '.m4v', '.mov', '.qt', '.avi', '.mkv', '.webm', '.mpg', '.mpeg', '.m2v', '.vob', '.ts', '.mts', '.m2ts'),
    *('.wmv', '.asf', '.flv', '.f4v', '.3gp', '.3g2', '.ogv', '.mxf', '.dv', '.mjpeg', '.mjpg', '.y4m'),
    *('.gif', '.apng'),
)
_RAW = ('.dng', '.nef', '.nrw', '.cr2', '.arw', '.srf', '.sr2', '.orf', '.rw2', '.pef')
_EXPORT = "open it where you took or edit it and export it as PNG or JPEG, or use ImageMagick: magick '{}' picture.png"


@dataclasses.dataclass(frozen=True)
class Format:
    """A file format.

    Attributes:
        name: for people.
        kind: 'picture' or 'video'; animations are videos.
        help: what helps where it cannot be read; '' for formats that can.
        package: Python package that reads it where it is installed; module: its name for ``import``.
        decoder: 'pillow' or 'ffmpeg'.
    """

    name: str
    kind: str
    help: str = ''
    package: str = ''
    module: str = ''
    decoder: str = 'pillow'


_HEIC = Format(
    'HEIC',
    PICTURE,
    'convert it to JPEG or PNG (iPhone: Settings, Camera, Formats, Most Compatible; macOS: sips -s format png; '
    'else heif-convert or ImageMagick)',
    'pillow-heif',
    'pillow_heif',
)
_JXL = Format('JPEG XL', PICTURE, 'convert it to PNG: djxl picture.jxl picture.png', 'pillow-jxl-plugin', 'pillow_jxl')
_CAMERA_RAW = Format('camera raw', PICTURE, 'export it as JPEG, PNG or 16-bit TIFF from a raw converter')
_AVIF = Format('AVIF', PICTURE, '', decoder='pillow')
# (offset, bytes, format) of files that neither Pillow nor FFmpeg's containers tell apart by themselves.
_MAGIC = (
    (0, b'\x89PNG\r\n\x1a\n', Format('PNG', PICTURE)),
    (0, b'\xff\xd8\xff', Format('JPEG', PICTURE)),
    (0, b'GIF8', Format('GIF', PICTURE)),
    (0, b'BM', Format('BMP', PICTURE)),
    (0, b'II*\0', Format('TIFF', PICTURE)),
    (0, b'MM\0*', Format('TIFF', PICTURE)),
    (0, b'II+\0', Format('BigTIFF', PICTURE)),
    (0, b'MM\0+', Format('BigTIFF', PICTURE)),
    (8, b'WEBP', Format('WebP', PICTURE)),
    (0, b'\x76\x2f\x31\x01', Format('OpenEXR', PICTURE, decoder='ffmpeg')),
    (0, b'#?RADIANCE', Format('Radiance HDR', PICTURE, decoder='ffmpeg')),
    (0, b'#?RGBE', Format('Radiance HDR', PICTURE, decoder='ffmpeg')),
    (0, b'SDPX', Format('DPX', PICTURE, decoder='ffmpeg')),
    (0, b'XPDS', Format('DPX', PICTURE, decoder='ffmpeg')),
    (0, b'PF\n', Format('PFM', PICTURE, decoder='ffmpeg')),
    (0, b'Pf\n', Format('PFM', PICTURE, decoder='ffmpeg')),
    (0, b'PH\n', Format('PHM', PICTURE, decoder='ffmpeg')),
    (0, b'Ph\n', Format('PHM', PICTURE, decoder='ffmpeg')),
    (0, b'qoif', Format('QOI', PICTURE)),
    (0, b'8BPS', Format('Photoshop', PICTURE)),
    (0, b'\0\0\0\x0cjP  ', Format('JPEG 2000', PICTURE)),
    (0, b'\xff\x4f\xff\x51', Format('JPEG 2000', PICTURE)),
    (0, b'\xff\x0a', _JXL),
    (0, b'\0\0\0\x0cJXL ', _JXL),
    (0, b'FUJIFILMCCD-RAW', _CAMERA_RAW),
    (0, b'IIRO', _CAMERA_RAW),
    (0, b'IIU\0', _CAMERA_RAW),
    (0, b'gimp xcf', Format('GIMP', PICTURE, _EXPORT)),
    (0, b'%PDF', Format('PDF', PICTURE, 'export the page as PNG: pdftoppm -png')),
    (0, b'%!PS', Format('PostScript', PICTURE, _EXPORT)),
)
_BRANDS = {
    **dict.fromkeys((b'heic', b'heix', b'heim', b'heis', b'mif1', b'msf1', b'hevc', b'hevx'), _HEIC),
    **dict.fromkeys((b'avif', b'avis'), _AVIF),
    b'crx ': _CAMERA_RAW,
}
_ANIMATED = ('GIF', 'PNG', 'WebP', 'AVIF')


def format_of(path: str | os.PathLike) -> Format | None:
    """What a file is by its content; None for videos, and for files that are neither picture nor video.

    Animations (GIF, PNG, WebP, AVIF of more than one picture) are of the kind 'video'. Unreadable files give None.
    """
    if not os.path.isfile(path):  # opening a pipe would wait for its writer
        return None
    try:
        with open(path, 'rb') as file:
            head = file.read(1 << 12)
            found = format_of_bytes(head, os.fspath(path))
            if found is not None and found.name in _ANIMATED and _pictures(found.name, head, file) > 1:
                return dataclasses.replace(found, kind=VIDEO)
    except (OSError, ValueError):
        return None
    return found


def format_of_bytes(head: bytes, name: str = '') -> Format | None:
    """The format by a file's first bytes and, for camera raws, which look like TIFF, its name."""
    if head[4:8] == b'ftyp':
        size = min(max(struct.unpack('>I', head[:4])[0], 16), len(head))
        brands = [head[8:12], *(head[i : i + 4] for i in range(16, size, 4))]
        if b'avif' in brands or b'avis' in brands:
            return _AVIF
        return _BRANDS.get(brands[0]) or (
            _HEIC if _HEIC in map(_BRANDS.get, brands) and b'isom' not in brands else None
        )
    for offset, magic, known in _MAGIC:
        if head[offset : offset + len(magic)] == magic:
            if known.name.endswith('TIFF') and name.lower().endswith(_RAW):
                return _CAMERA_RAW
            return known
    if head[:5] in (b'<?xml', b'<svg ') and b'<svg' in head:
        return Format('SVG', PICTURE, 'export it as PNG: it has no pixels')
    return None


def _pictures(name: str, head: bytes, file) -> int:
    """How many pictures an animation holds, at least two of them counted; without decoding."""
    if name == 'PNG':
        at = head.find(b'acTL')
        return struct.unpack('>I', head[at + 4 : at + 8])[0] if 0 < at < len(head) - 8 else 1
    if name == 'WebP':
        return 2 if head[12:16] == b'VP8X' and head[20] & 2 else 1
    if name == 'AVIF':
        return 2 if head[8:12] == b'avis' else 1
    from PIL import Image

    file.seek(0)
    try:
        with Image.open(file) as image:
            image.seek(1)
            return 2
    except (OSError, EOFError, SyntaxError, ValueError):
        return 1


def kind_of(path: str | os.PathLike) -> str:
    """'picture' or 'video'. Where the content tells nothing, or there is no file, the name's ending does."""
    found = format_of(path)
    if found is not None:
        return found.kind
    suffix = Path(path).suffix.lower()
    if not os.path.isfile(path):
        return VIDEO if suffix in VIDEO_ENDINGS else PICTURE
    if _pillow_knows(path):
        return PICTURE
    return PICTURE if suffix in PICTURE_ENDINGS and not _is_media(path) else VIDEO


def _pillow_knows(path: str | os.PathLike) -> bool:
    from PIL import Image

    try:
        with Image.open(path):
            return True
    except Exception:  # plugins raise whatever they like
        return False


def _is_media(path: str | os.PathLike) -> bool:
    """Whether FFmpeg sees a container of videos in a file."""
    import av

    from avatar_jax.io.inputs import open_media, picture_tracks

    try:
        with open_media(path) as container:
            return bool(picture_tracks(container)) and not is_still_format(container.format.name)
    except (av.error.FFmpegError, ValueError, OSError):
        return False


def is_still_format(name: str) -> bool:
    """Whether one of FFmpeg's formats is single pictures or pictures made of letters, which it gives out as videos."""
    return name.endswith('_pipe') or name in ('image2', 'tty', 'bin', 'xbin', 'adf', 'idf', 'ico')


def readable(known: Format) -> bool:
    """Whether a picture format can be read here; tries the package that it needs."""
    if not known.help:
        return True
    try:
        module = importlib.import_module(known.module) if known.module else None
    except ImportError:
        return False
    if module is None:
        return False
    if hasattr(module, 'register_heif_opener'):
        module.register_heif_opener()
    return True


def check_readable(path: str | os.PathLike, known: Format | None = None) -> None:
    """Raises ``UserError`` with the conversion that helps, for picture formats that cannot be read here."""
    known = format_of(path) if known is None else known
    if known is None or readable(known):
        return
    package = f' (or: pip install {known.package})' if known.package else ''
    raise UserError(
        f'{os.fspath(path)}: is a picture of the kind {known.name}, which cannot be read; '
        f'{known.help.format(Path(path).name)}{package}'
    )


def need_picture(path: str | os.PathLike) -> None:
    """Raises ``UserError`` where one picture is needed and a file is a video or an animation."""
    found = format_of(path)
    moving = found is not None and found.kind == VIDEO
    if moving or (found is None and os.path.isfile(path) and not _pillow_knows(path) and _is_media(path)):
        what = f'an animation ({found.name})' if moving else 'a video'
        raise UserError(
            f'{os.fspath(path)}: is {what}, and one picture is needed; save a frame of it as PNG, or run avatar-jax '
            'track on it and give the folder that it writes'
        )
