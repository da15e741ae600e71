"""Colours of decoded frames as 8-bit sRGB: high dynamic range (HLG, PQ) and wide gamuts (BT.2020, P3), not only BT.709.

ITU-R BT.2100 (transfer functions), BT.2408 (203 cd/m2 is the white of graphics and skin), BT.2020 and SMPTE EG 432-1
(primaries), ITU-T H.273 (the numbers that files tag them with). What is brighter than white is clipped.
"""

from __future__ import annotations

import dataclasses
import functools
import struct
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from av import CodecContext, VideoFrame


UNSPECIFIED = 2
_PQ, _HLG, _SRGB = 16, 18, 13  # H.273 transfer characteristics
_VIDEO_CURVES = (1, 6, 14, 15)  # BT.709, BT.601 and BT.2020 share one curve
_BT2020_MATRICES = (9, 10)
_IPT_MATRICES = (14, 15)  # ICtCp, IPT-PQ-C2
_DOLBY_TAGS = ('dvh1', 'dvhe', 'dva1', 'dvav', 'dav1')
_SIGNAL_SPACE = 185  # bytes to ``signal_color_space`` in FFmpeg's ``AVDOVIColorMetadata``
WHITE = 203.0  # cd/m2 of HDR that become sRGB white
_HLG_PEAK, _HLG_GAMMA = 1000.0, 1.2  # of the reference display
_LUMINANCE_2020 = np.array([0.2627, 0.6780, 0.0593], np.float32)
_WHITE_D65 = (0.3127, 0.3290)
# H.273 colour primaries -> name, (x, y) of red, green, blue. DCI's own white is taken for the white of the screen.
_PRIMARIES = {
    1: ('BT.709', (0.640, 0.330), (0.300, 0.600), (0.150, 0.060)),
    9: ('BT.2020', (0.708, 0.292), (0.170, 0.797), (0.131, 0.046)),
    11: ('DCI-P3', (0.680, 0.320), (0.265, 0.690), (0.150, 0.060)),
    12: ('Display P3', (0.680, 0.320), (0.265, 0.690), (0.150, 0.060)),
}
_HD = 720  # lines from which on untagged colours are more likely BT.709 than BT.601
_STEPS = 65535


@dataclasses.dataclass(frozen=True)
class Tags:
    """How a frame's colours are coded, H.273 numbers."""

    primaries: int = UNSPECIFIED
    transfer: int = UNSPECIFIED
    matrix: int = UNSPECIFIED

    @property
    def dynamic(self) -> bool:
        """High dynamic range."""
        return self.transfer in (_PQ, _HLG)

    @property
    def gamut(self) -> int:
        """Primaries that have to be converted: 9, 11, 12; else 1."""
        if self.primaries in _PRIMARIES:
            return self.primaries
        return 9 if self.dynamic or self.matrix in _BT2020_MATRICES else 1

    @property
    def plain(self) -> bool:
        """What every program shows alike: nothing to convert beyond the matrix."""
        return not self.dynamic and self.gamut == 1


def tags_of(frame: VideoFrame, codec: CodecContext) -> Tags:
    """The tags of a decoded frame; the track's where the frame has none."""
    pairs = (('color_primaries', 'color_primaries'), ('color_trc', 'color_trc'), ('colorspace', 'colorspace'))
    found = []
    for on_frame, on_codec in pairs:
        value = getattr(frame, on_frame, None)
        if value is None or int(value) == UNSPECIFIED:
            value = getattr(codec, on_codec, None)
        found.append(UNSPECIFIED if value is None else int(value))
    return Tags(*found)


def unshowable(tags: Tags, frame: VideoFrame, codec: CodecContext) -> str:
    """What helps where a film's colours cannot be shown; '' for all others.

    Dolby Vision of profile 5 has no picture that other programs know: its colours are IPT, bent by hidden tables.
    Profiles 7 and 8 (phones) are tagged as the HDR or SDR that they are without the tables.
    """
    untagged = tags.transfer == UNSPECIFIED and codec.codec_tag in _DOLBY_TAGS
    if tags.matrix not in _IPT_MATRICES and not untagged and not _is_ipt(frame):
        return ''
    return (
        'its colours are those of Dolby Vision alone (profile 5, IPT or ICtCp), which would be shown green and violet; '
        'export it as SDR, or convert it by an ffmpeg that has libplacebo: '
        'ffmpeg -i FILM -vf libplacebo=colorspace=bt709:color_primaries=bt709:color_trc=bt709:format=yuv420p OUT.mp4'
    )


def _is_ipt(frame: VideoFrame) -> bool:
    """Whether a frame's Dolby Vision metadata (FFmpeg's ``AVDOVIMetadata``) call its colours IPT."""
    data = frame.side_data.get('DOVI_METADATA')
    data = b'' if data is None else bytes(data)
    if len(data) < 24:
        return False
    colours = struct.unpack_from('=3Q', data)[2]
    return data[colours + _SIGNAL_SPACE : colours + _SIGNAL_SPACE + 1] == b'\2'


def tags_of_still(head: bytes) -> Tags:
    """The tags that a picture file has beside or instead of a profile: PNG's ``cICP``, AVIF's and HEIC's ``nclx``.

    Args:
        head: the beginning of the file, in which such entries stand.
    """
    if head.startswith(b'\x89PNG'):
        at = head.find(b'\0\0\0\x04cICP', 0, max(0, head.find(b'IDAT'))) + 8
        return Tags(*head[at : at + 3]) if at >= 8 and len(head) >= at + 4 else Tags()
    at = head.find(b'colrnclx') + 8
    known = head[4:8] == b'ftyp' and 8 <= at <= len(head) - 6
    return Tags(*struct.unpack('>3H', head[at : at + 6])) if known else Tags()


def notes(tags: Tags, frame: VideoFrame) -> tuple[str, ...]:
    """What is done to the colours, for reports."""
    if not tags.plain:
        return (note(tags),)
    coded = not frame.format.name.startswith(('rgb', 'bgr', 'gbr', 'gray', 'pal', 'mono'))
    if coded and tags.matrix == UNSPECIFIED and frame.height >= _HD:
        return ('colours are not tagged: read as BT.601, which may be off a little if BT.709 was meant',)
    return ()


def note(tags: Tags) -> str:
    """What is done to colours that are not plain."""
    gamut = _PRIMARIES[tags.gamut][0]
    if tags.dynamic:
        name = 'HLG' if tags.transfer == _HLG else 'PQ'
        return f'high dynamic range ({name}, {gamut}) converted to sRGB, {WHITE:g} cd/m2 to white'
    return f'colours converted from {gamut} to sRGB'


def to_srgb(frame: VideoFrame, width: int, height: int, tags: Tags) -> np.ndarray:
    """A decoded frame (``av.VideoFrame``) as [height, width, 3] uint8 sRGB."""
    if tags.plain:
        return frame.reformat(width=width, height=height, format='rgb24').to_ndarray()
    from av.video.reformatter import Colorspace

    matrix = {'src_colorspace': Colorspace.BT2020} if tags.gamut == 9 and tags.matrix in (UNSPECIFIED, 9, 10) else {}
    signal = frame.reformat(width=width, height=height, format='rgb48le', **matrix).to_ndarray()
    return signal_to_srgb(signal, tags)


def signal_to_srgb(signal: np.ndarray, tags: Tags) -> np.ndarray:
    """[..., 3] uint16 of coded RGB, 0 to 65535, as uint8 sRGB."""
    light = _decoded(tags.transfer)[signal]
    if tags.transfer == _HLG:  # scene light to the light of the reference display
        gain = np.maximum(light @ _LUMINANCE_2020, 1e-9) ** np.float32(_HLG_GAMMA - 1)
        light = light * (gain * np.float32(_HLG_PEAK / WHITE))[..., None]
    light = light @ to_bt709(tags.gamut).T.astype(np.float32)
    return _encoded(tags.transfer)[np.rint(np.clip(light, 0, 1) * _STEPS).astype(np.uint16)]


@functools.cache
def to_bt709(primaries: int) -> np.ndarray:
    """[3, 3] from linear RGB of ``primaries`` to linear RGB of BT.709; white stays white."""
    return np.linalg.inv(_to_xyz(1)) @ _to_xyz(primaries)


def _to_xyz(primaries: int) -> np.ndarray:
    def xyz(point):
        return np.array([point[0] / point[1], 1.0, (1 - point[0] - point[1]) / point[1]])

    columns = np.stack([xyz(p) for p in _PRIMARIES[primaries][1:]], 1)
    return columns * np.linalg.solve(columns, xyz(_WHITE_D65))


@functools.cache
def _decoded(transfer: int) -> np.ndarray:
    """[65536] float32: light of each code value. PQ: 1 is white; HLG: scene light; others: 1 is their white."""
    return _light(np.arange(_STEPS + 1) / _STEPS, transfer).astype(np.float32)


def _light(code: np.ndarray, transfer: int) -> np.ndarray:
    if transfer == _PQ:  # BT.2100, table 4
        m1, m2, c1, c2, c3 = 2610 / 16384, 2523 / 32, 3424 / 4096, 2413 / 128, 2392 / 128
        power = code ** (1 / m2)
        return 10000 / WHITE * (np.maximum(power - c1, 0) / (c2 - c3 * power)) ** (1 / m1)
    if transfer == _HLG:  # table 5
        a, b, c = 0.17883277, 0.28466892, 0.55991073
        return np.where(code <= 0.5, code**2 / 3, (np.exp((code - c) / a) + b) / 12)
    if transfer in _VIDEO_CURVES:  # BT.709
        return np.where(code < 0.081, code / 4.5, ((code + 0.099) / 1.099) ** (1 / 0.45))
    return srgb_to_linear(code)


@functools.cache
def _encoded(transfer: int) -> np.ndarray:
    """[65536] uint8 of linear light. BT.709 video is shown as it is coded everywhere: so is BT.2020's own curve."""
    light = np.arange(_STEPS + 1) / _STEPS
    if transfer in _VIDEO_CURVES:
        code = np.where(light < 0.018, 4.5 * light, 1.099 * light**0.45 - 0.099)
    else:
        code = linear_to_srgb(light)
    return np.rint(255 * np.clip(code, 0, 1)).astype(np.uint8)


def srgb_to_linear(code: np.ndarray) -> np.ndarray:
    """sRGB values in [0, 1] as linear light."""
    return np.where(code <= 0.04045, code / 12.92, ((np.maximum(code, 0.04045) + 0.055) / 1.055) ** 2.4)


def linear_to_srgb(light: np.ndarray) -> np.ndarray:
    """Linear light in [0, 1] as sRGB values."""
    light = np.clip(light, 0.0, 1.0)
    return np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)
