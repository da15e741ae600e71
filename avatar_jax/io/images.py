"""Pictures in and out: any format that Pillow or FFmpeg reads, always as upright 8-bit sRGB; PNG with provenance.

Arrays are [H, W, 3]: uint8 in files and photographs, float32 in [-1, 1] for the networks (``to_float``, ``to_uint8``).
"""

from __future__ import annotations

import dataclasses
import io
import os
import struct
import warnings
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from avatar_jax.errors import UserError
from avatar_jax.io import atomic, kinds
from avatar_jax.io.inputs import input_file, read_error
from avatar_jax.io.provenance import Provenance

if TYPE_CHECKING:
    import PIL.Image
    from numpy.typing import ArrayLike

MIN_SIDE = 32
MAX_SIDE = 4096
WHITE = (255, 255, 255)

_COLOURS = 'avatar_jax colours'  # in ``Image.info``: how the colours are coded (``colour.Tags``), if unusual
_ORIENTATION = 'avatar_jax orientation'  # in ``Image.info``: EXIF's, where it is not in the picture's EXIF data

# What Pillow's decoders raise for damaged files.
DAMAGED = (OSError, SyntaxError, ValueError, EOFError, IndexError, KeyError, TypeError, struct.error, zlib.error)


@dataclasses.dataclass(frozen=True)
class Picture:
    """A picture file after decoding.

    Attributes:
        pixels: [H, W, 3] uint8 sRGB, upright.
        alpha: [H, W] uint8 opacity, or None when the file is opaque. ``pixels`` are already laid over the background.
        path: the file.
        notes: what was done to the file's pixels, one phrase each, for reports.
    """

    pixels: np.ndarray
    alpha: np.ndarray | None
    path: Path
    notes: tuple[str, ...] = ()

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) in pixels."""
        return self.pixels.shape[1], self.pixels.shape[0]


def to_float(image: np.ndarray) -> np.ndarray:
    """uint8 0..255 -> float32 [-1, 1]."""
    return np.asarray(image, np.float32) / 127.5 - 1.0


def to_uint8(image: ArrayLike) -> np.ndarray:
    """float [-1, 1] -> uint8 by EG3D's rule, the exact inverse of ``to_float``; values outside are clipped.

    Raises:
        ValueError: the picture has NaN or infinite values.
    """
    image = np.asarray(image)
    if image.dtype == np.uint8:
        return image
    image = image.astype(np.float32)
    if not np.isfinite(image).all():
        raise ValueError('the picture has NaN or infinite values')
    return np.clip(image * 127.5 + 128.0, 0, 255).astype(np.uint8)


def read_image(
    path: str | os.PathLike,
    *,
    max_side: int = MAX_SIDE,
    min_side: int = MIN_SIDE,
    background: tuple[int, int, int] = WHITE,
) -> Picture:
    """Reads a picture file as upright 8-bit sRGB.

    EXIF orientation is applied, embedded colour profiles are converted to sRGB, 16-bit and floating-point pixels are
    scaled, palettes, gray and CMYK become RGB, transparent pixels are laid over ``background``, the first frame of an
    animation is taken, and a picture whose longer side exceeds ``max_side`` is reduced to it.

    Args:
        path: the file.
        max_side: largest side of the result, in pixels.
        min_side: smallest side that is accepted, in pixels.
        background: RGB colour under transparent pixels.

    Raises:
        UserError: the file is missing, damaged, not a picture, too small, or too large to decode safely.
    """
    path = input_file(path)
    kinds.check_readable(path)
    try:
        with open(path, 'rb') as file:
            return _read(file, path, max_side, min_side, background)
    except PermissionError as error:
        raise read_error(path, error) from error


def decode_image(
    data: bytes, where: str, *, max_side: int = MAX_SIDE, min_side: int = 1, background: tuple[int, int, int] = WHITE
) -> Picture:
    """As ``read_image``, of a file's bytes; ``where`` says in messages where they come from."""
    known = kinds.format_of_bytes(data[:4096], where)
    if known is not None:
        kinds.check_readable(where, known)
    return _read(io.BytesIO(data), Path(where), max_side, min_side, background)


def _read(file: Any, path: Path, max_side: int, min_side: int, background: tuple[int, int, int]) -> Picture:
    from PIL import Image, UnidentifiedImageError

    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')  # Pillow warns of large or odd files that it then reads correctly
            with Image.open(file) as image:
                image.info |= coded_colours(image, file)
                _keep_orientation(image, file)
                return decoded(image, path, max_side, min_side, background)
    except UnidentifiedImageError as error:
        file.seek(0)
        found = _by_ffmpeg(file, path, max_side, min_side, background)
        if found is not None:
            return found
        raise UserError(
            f'{path}: is not a picture that can be read; give a PNG, JPEG, WebP, TIFF, BMP or GIF file'
        ) from error
    except Image.DecompressionBombError as error:
        raise UserError(f'{path}: has too many pixels to decode safely; reduce the picture first') from error
    except MemoryError as error:
        raise UserError(f'{path}: not enough memory to decode the picture; reduce it first') from error
    except DAMAGED as error:
        raise UserError(f'{path}: the picture is damaged ({first_line(error)}); get the file again') from error


def coded_colours(image: PIL.Image.Image, file: BinaryIO) -> dict[str, Any]:
    """What PNG, AVIF and HEIC files say of their colours, for ``Image.info`` and ``decoded``; {} for ordinary ones.

    Pillow heeds colour profiles only.
    """
    from avatar_jax.io.colour import tags_of_still

    if image.info.get('icc_profile'):
        return {}
    place = file.tell()
    file.seek(0)
    tags = tags_of_still(file.read(1 << 16))
    file.seek(place)
    return {} if tags.plain else {_COLOURS: tags}


def _keep_orientation(image: PIL.Image.Image, file: Any) -> None:
    """HEIC: pillow-heif sets EXIF's orientation aside, for the container turns the picture; but not in all files."""
    orientation = image.info.get('original_orientation')
    if orientation is None:
        return
    place = file.tell()
    file.seek(0)
    head = file.read(1 << 18)
    file.seek(place)
    if b'irot' not in head and b'imir' not in head:
        image.info[_ORIENTATION] = orientation


def _by_ffmpeg(file: Any, path: Path, max_side: int, min_side: int, background: tuple[int, int, int]) -> Picture | None:
    """A picture that Pillow does not know; None where FFmpeg does not know it either."""
    from PIL import Image

    from avatar_jax.io import stills

    try:
        pixels, alpha, notes = stills.decode(file)
    except stills.TooLarge as error:
        raise UserError(f'{path}: has too many pixels to decode safely; reduce the picture first') from error
    except stills.NoPicture:
        return None
    image = Image.fromarray(pixels if alpha is None else np.dstack([pixels, alpha]))
    found = decoded(image, path, max_side, min_side, background)
    return dataclasses.replace(found, notes=(*notes, *found.notes))


def first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:120] if lines else type(error).__name__


def decoded(
    image: PIL.Image.Image, path: Path, max_side: int, min_side: int, background: tuple[int, int, int] = WHITE
) -> Picture:
    """An open Pillow picture as ``read_image`` gives it; raises what Pillow raises for damaged files (``DAMAGED``)."""
    from PIL import Image

    width, height = image.size
    if min(width, height) < min_side:
        raise UserError(
            f'{path}: the picture is only {width}x{height} pixels; at least {min_side} on each side are needed'
        )
    notes = []
    if getattr(image, 'is_animated', False):
        notes.append(f'first of {image.n_frames} pictures in the file')
    if image.format == 'JPEG':
        image.draft(None, (max_side, max_side))  # decodes large files at 1/2, 1/4 or 1/8 size
    image.load()
    image = _upright(image, notes)
    image, alpha = _to_rgb(image, notes)
    if max(image.size) > max_side:
        scale = max_side / max(image.size)
        size = tuple(max(1, round(s * scale)) for s in image.size)
        image = image.resize(size, Image.Resampling.LANCZOS, reducing_gap=3.0)
        alpha = alpha.resize(size, Image.Resampling.LANCZOS, reducing_gap=3.0) if alpha is not None else None
    if max(width, height) > max_side:
        notes.append(f'reduced from {width}x{height} pixels')
    pixels = np.array(image, np.uint8)
    if alpha is None or alpha.getextrema()[0] == 255:
        return Picture(pixels, None, path, tuple(notes))
    opacity = np.array(alpha, np.uint8)
    weight = opacity[..., None].astype(np.float32) / 255.0
    flat = pixels * weight + np.array(background, np.float32) * (1.0 - weight)
    notes.append('transparent parts laid over the background colour')
    return Picture(np.rint(flat).astype(np.uint8), opacity, path, tuple(notes))


def _upright(image: PIL.Image.Image, notes: list[str]) -> PIL.Image.Image:
    """Applies the EXIF orientation."""
    from PIL import ExifTags, Image

    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
        if _ORIENTATION in image.info:
            orientation = image.info[_ORIENTATION]
    except Exception:
        notes.append('EXIF data unreadable, orientation taken as upright')
        return image
    turn = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_270,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_90,
    }.get(orientation)
    if turn is None:
        return image
    notes.append(f'turned upright (EXIF orientation {orientation})')
    info, mode = image.info, image.mode
    turned = image.transpose(turn)
    turned.info = info  # transparency and colour profile go with the pixels
    assert turned.mode == mode
    return turned


def _to_rgb(image: PIL.Image.Image, notes: list[str]) -> tuple[PIL.Image.Image, PIL.Image.Image | None]:
    """8-bit sRGB and, where the file has one, the alpha channel."""
    from PIL import Image

    profile = image.info.get('icc_profile')
    if image.mode.startswith('I') or image.mode == 'F':
        notes.append('scaled to 8 bits')
        image = Image.fromarray(_eight_bits(image))
        profile = None  # gray scientific pictures: the profile, if any, describes another encoding
    if image.mode in ('P', 'PA', '1'):
        opaque = image.mode != 'PA' and 'transparency' not in image.info
        image = image.convert('RGB' if opaque else 'RGBA')
    elif image.mode in ('RGB', 'L') and 'transparency' in image.info:
        image = image.convert('RGBA')
    elif image.mode in ('La', 'LA', 'RGBa'):
        # Pillow converts premultiplied modes only to their plain twins.
        image = image.convert({'La': 'LA', 'RGBa': 'RGBA'}.get(image.mode, 'LA'))
    alpha = image.getchannel('A') if image.mode in ('RGBA', 'LA') else None
    if alpha is not None:
        image = image.convert('RGB' if image.mode == 'RGBA' else 'L')
    converted = _from_tags(image, notes) or _through_profile(image, profile, notes)
    if converted is None:
        if image.mode not in ('RGB', 'L'):
            notes.append(f'converted from {image.mode}')
        converted = image.convert('RGB')
    return converted, alpha


def _eight_bits(image: PIL.Image.Image) -> np.ndarray:
    """[H, W] uint8 of a 16-bit, 32-bit or floating-point gray picture, by the range that its numbers imply."""
    values = np.asarray(image).astype(np.float64)
    values = np.nan_to_num(values, nan=0.0, posinf=values[np.isfinite(values)].max(initial=0.0), neginf=0.0)
    bits = getattr(image, 'tag_v2', {}).get(258, (16,))[0]  # TIFF BitsPerSample: 12-bit scans arrive as 16-bit
    if image.mode.startswith('I;16'):
        top = 4095.0 if bits == 12 else 65535.0
    else:
        largest = values.max(initial=0.0)
        top = next((t for t in (1.0, 255.0, 65535.0) if largest <= t and (image.mode == 'F' or t > 1)), largest)
    return np.rint(np.clip(values / top, 0.0, 1.0) * 255.0).astype(np.uint8)


def _from_tags(image: PIL.Image.Image, notes: list[str]) -> PIL.Image.Image | None:
    """The picture in sRGB, where its file says that its colours are others (``coded_colours``)."""
    from PIL import Image

    from avatar_jax.io import colour

    tags = image.info.get(_COLOURS)
    if tags is None:
        return None
    notes.append(colour.note(tags))
    signal = np.asarray(image.convert('RGB')).astype(np.uint16) * 257
    return Image.fromarray(colour.signal_to_srgb(signal, tags))


def _through_profile(image: PIL.Image.Image, profile: bytes | None, notes: list[str]) -> PIL.Image.Image | None:
    """The picture in sRGB according to its embedded colour profile; None when there is none that can be used."""
    from PIL import ImageCms

    if image.mode == 'LAB':
        source = ImageCms.createProfile('LAB')
    elif profile:
        source = None
    else:
        return None
    try:
        source = source or ImageCms.ImageCmsProfile(io.BytesIO(profile))
        name = ImageCms.getProfileDescription(source).strip() if profile else 'CIELAB'
        result = ImageCms.profileToProfile(image, source, ImageCms.createProfile('sRGB'), outputMode='RGB')
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
        notes.append('embedded colour profile unusable, colours taken as sRGB')
        return None
    if 'srgb' not in name.lower():
        notes.append(f'colours converted from {name[:60]}')
    return result


def encode_png(image: ArrayLike, provenance: Provenance | None = None) -> bytes:
    """PNG file as bytes. Arguments as ``write_png``."""
    from PIL import Image, PngImagePlugin

    pixels = to_uint8(image)
    if pixels.ndim == 3 and pixels.shape[-1] == 1:
        pixels = pixels[..., 0]
    if not (pixels.ndim == 2 or (pixels.ndim == 3 and pixels.shape[-1] in (3, 4))) or pixels.size == 0:
        raise ValueError(f'a picture is [H, W], [H, W, 1], [H, W, 3] or [H, W, 4], got {pixels.shape}')
    text = PngImagePlugin.PngInfo()
    for key, value in (provenance.png_text() if provenance else {}).items():
        text.add_itxt(key, value)
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(buffer, format='PNG', pnginfo=text)
    return buffer.getvalue()


def write_png(path: str | os.PathLike, image: ArrayLike, provenance: Provenance | None = None) -> None:
    """Writes a PNG, completely or not at all.

    Args:
        path: the file; missing folders are made.
        image: [H, W, 3], [H, W, 4], [H, W, 1] or [H, W], uint8 or float in [-1, 1].
        provenance: written into the file's text chunks.

    Raises:
        UserError: the place cannot be written to.
        ValueError: not a picture, or not finite.
    """
    atomic.write_bytes(path, encode_png(image, provenance))


def grid(images: ArrayLike, columns: int, *, gap: int = 4, background: int = 255) -> np.ndarray:
    """Lays [N, H, W, 3] pictures out in rows of ``columns``; returns uint8 [H', W', 3]."""
    images = to_uint8(images)
    number, height, width, channels = images.shape
    columns = max(1, min(columns, number))
    rows = -(-number // columns)
    sheet = np.full((rows * (height + gap) - gap, columns * (width + gap) - gap, channels), background, np.uint8)
    for index, image in enumerate(images):
        top, left = (index // columns) * (height + gap), (index % columns) * (width + gap)
        sheet[top : top + height, left : left + width] = image
    return sheet
