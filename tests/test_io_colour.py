"""Colours of video frames: HDR and wide gamuts come out as the sRGB that was meant."""

import struct
import zlib
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace

import av
import numpy as np
import pytest
from PIL import Image, features

from avatar_jax.errors import UserError
from avatar_jax.io import colour
from avatar_jax.io.animation import open_video
from avatar_jax.io.colour import Tags
from avatar_jax.io.images import read_image
from avatar_jax.io.video import VideoReader

CASES = Path(__file__).parents[1] / '../shared/cases'
MEANT = np.array([(200, 40, 40), (40, 180, 60), (40, 60, 200), (235, 235, 235), (20, 20, 20), (224, 172, 140)])
PQ, HLG, BT709, BT2020 = 16, 18, 1, 9


def inverse_hlg(nits):
    """Coded HLG of display light (cd/m2), on a display of 1000 cd/m2: written from BT.2100 independently."""
    light = nits / 1000
    luminance = light @ [0.2627, 0.6780, 0.0593]
    scene = light * np.maximum(luminance, 1e-12)[..., None] ** (1 / 1.2 - 1)
    return np.where(
        scene <= 1 / 12, np.sqrt(3 * scene), 0.17883277 * np.log(np.maximum(12 * scene - 0.28466892, 1e-9)) + 0.55991073
    )


def inverse_pq(nits):
    y = (nits / 10000) ** 0.1593017578125
    return ((0.8359375 + 18.8515625 * y) / (1 + 18.6875 * y)) ** 78.84375


def coded(transfer, primaries=BT2020):
    """MEANT as coded RGB in [0, 1] of HDR or of wide gamuts."""
    light = colour.srgb_to_linear(MEANT / 255)
    light = light @ np.linalg.inv(colour.to_bt709(primaries if primaries != 2 else 1)).T
    if transfer == HLG:
        return inverse_hlg(203 * light)
    if transfer == PQ:
        return inverse_pq(203 * light)
    return colour.linear_to_srgb(light)


@pytest.mark.parametrize('transfer', [PQ, HLG, colour._SRGB])
@pytest.mark.parametrize('primaries', [9, 12])
def test_signals_become_the_srgb_that_was_meant(transfer, primaries):
    if transfer == HLG and primaries == 12:
        pytest.skip('HLG is defined with the luminance of BT.2020')
    signal = np.rint(65535 * coded(transfer, primaries)).astype(np.uint16)
    assert np.abs(colour.signal_to_srgb(signal, Tags(primaries, transfer)).astype(int) - MEANT).max() <= 1


@pytest.mark.parametrize('transfer', [PQ, HLG, colour._SRGB])
@pytest.mark.parametrize('suffix', ['png', *(['avif'] if features.check('avif') else [])])
def test_stills_and_animations_say_their_colours_without_a_profile(tmp_path, transfer, suffix):
    pixels = np.rint(255 * coded(transfer)).astype(np.uint8)[None].repeat(48, 0).repeat(32, 1)
    image, path, numbers = Image.fromarray(pixels), tmp_path / f'a.{suffix}', bytes([0, BT2020, 0, transfer])
    for many in (False, True):
        image.save(path, save_all=many, append_images=[image.rotate(180)] * many, quality=100, subsampling='4:4:4')
        data = path.read_bytes()
        if suffix == 'png':
            chunk = b'cICP' + numbers[1::2] + b'\0\1'
            chunk = b'\0\0\0\4' + chunk + zlib.crc32(chunk).to_bytes(4, 'big')
            data = data[:33] + chunk + data[33:]
        else:
            assert b'colrnclx' in data
            head, *rest = data.split(b'colrnclx')
            data = head + b''.join(b'colrnclx' + numbers + r[4:] for r in rest)
        path.write_bytes(data)
        picture = next(iter(open_video(path))).pixels if many else read_image(path).pixels
        notes = (open_video(path) if many else read_image(path)).notes
        assert np.abs(picture[24, 16::32].astype(int) - MEANT).max(1)[[0, 2, 3, 4, 5]].max() <= 12  # in 8 bits
        assert any('BT.2020' in n and 'converted' in n for n in notes)


def test_known_values_of_the_standards():
    nits = colour.WHITE * colour._light(np.array([0.0, 0.58, 1.0]), PQ)
    assert nits == pytest.approx([0, 203, 10000], rel=0.01)  # BT.2408: 58 % is 203 cd/m2
    assert colour._light(np.array([0.0, 0.5, 1.0]), HLG) == pytest.approx([0, 1 / 12, 1], abs=1e-4)
    white = np.full((1, 3), round(0.75 * 65535), np.uint16)
    assert (colour.signal_to_srgb(white, Tags(9, HLG)) >= 254).all()  # BT.2408: 75 % is 203 cd/m2
    # BT.2087: the matrix from BT.2020 to BT.709
    known = [[1.6605, -0.5876, -0.0728], [-0.1246, 1.1329, -0.0083], [-0.0182, -0.1006, 1.1187]]
    assert np.allclose(colour.to_bt709(9), known, atol=2e-4)
    assert np.allclose(colour.to_bt709(1), np.eye(3)) and np.allclose(colour.to_bt709(12).sum(1), 1)
    gray = np.repeat(np.linspace(0, 65535, 18).astype(np.uint16)[:, None], 3, 1)
    shown = colour.signal_to_srgb(gray, Tags(9, 14)).astype(int)
    assert np.abs(shown - gray / 257).max() <= 1, 'grays of BT.2020 SDR are shown as those of BT.709'


def film(path, transfer, primaries, matrix, codec='libx265', pixels='yuv420p10le', size=(192, 64)):
    """A film of six patches, coded with the given tags."""
    picture = np.repeat(coded(transfer, primaries), size[0] // 6, 0)
    picture = np.broadcast_to(np.rint(65535 * np.clip(picture, 0, 1)).astype(np.uint16), (size[1], *picture.shape))
    with av.open(str(path), 'w') as file:
        # with B frames, x265 gives films as short as this decoding times that it never set
        options = {'x265-params': 'log-level=none:lossless=1:bframes=0'} if codec == 'libx265' else {'qp': '0'}
        stream = file.add_stream(codec, rate=25, options=options)
        stream.width, stream.height, stream.pix_fmt = *size, pixels
        codec = stream.codec_context
        codec.color_primaries, codec.color_trc, codec.colorspace, codec.color_range = primaries, transfer, matrix, 1
        for k in range(2):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format='rgb48le')
            options = {} if matrix == 2 else {'dst_colorspace': matrix}
            frame = frame.reformat(format=pixels, dst_color_range=1, **options)
            frame.pts, frame.time_base = k, Fraction(1, 25)
            file.mux(stream.encode(frame))
        file.mux(stream.encode())
    return path


@pytest.mark.parametrize(
    ('transfer', 'primaries', 'matrix', 'codec', 'pixels', 'said'),
    [
        (PQ, 9, 9, 'libx265', 'yuv420p10le', 'PQ'),
        (HLG, 9, 9, 'libx265', 'yuv420p10le', 'HLG'),
        (13, 9, 9, 'libx265', 'yuv420p10le', 'BT.2020'),
        (13, 12, 1, 'libx264', 'yuv444p', 'P3'),
    ],
)
def test_films_become_the_srgb_that_was_meant(tmp_path, transfer, primaries, matrix, codec, pixels, said):
    reader = VideoReader(film(tmp_path / 'a.mp4', transfer, primaries, matrix, codec, pixels))
    frame = next(iter(reader)).pixels
    found = frame[32, 16::32].astype(int)
    assert np.abs(found - MEANT).max() <= 5, found
    assert any(said in n and 'sRGB' in n for n in reader.notes)


def test_dolby_vision_alone_is_refused_with_a_conversion(tmp_path):
    """Its profile 5 has no tags; phones' profile 8 has those of the HLG that it is for everybody else."""
    for name, transfer, primaries, matrix in (('five.mp4', 2, 2, 2), ('eight.mp4', HLG, 9, 9)):
        path = film(tmp_path / name, transfer, primaries, matrix)
        data = path.read_bytes()
        assert data.count(b'hev1') >= 1
        path.write_bytes(data.replace(b'hev1', b'dvh1'))
    with pytest.raises(UserError, match='five.mp4: .*Dolby Vision.*libplacebo'):
        VideoReader(tmp_path / 'five.mp4')
    assert any('HLG' in n for n in VideoReader(tmp_path / 'eight.mp4').notes)
    metadata = struct.pack('=3Q', 24, 24, 24) + bytes(185) + b'\2'
    for tags, data in ((Tags(9, PQ, 15), None), (Tags(9, PQ, 9), metadata)):
        frame = SimpleNamespace(side_data={} if data is None else {'DOVI_METADATA': data})
        assert colour.unshowable(tags, frame, SimpleNamespace(codec_tag='hvc1'))
    assert not colour.unshowable(Tags(9, PQ, 9), SimpleNamespace(side_data={}), SimpleNamespace(codec_tag='hvc1'))


def test_untagged_hd_is_said(tmp_path):
    assert any(
        'BT.601' in n for n in VideoReader(film(tmp_path / 'a.mp4', 2, 2, 2, 'libx264', 'yuv420p', (960, 720))).notes
    )
    assert VideoReader(film(tmp_path / 'b.mp4', 2, 2, 2, 'libx264', 'yuv420p')).notes == ()


@pytest.mark.skipif(not CASES.is_dir(), reason='the shared cases are not here')
def test_shared_hlg_recording():
    reader = VideoReader(CASES / 'hdr_hlg.mov')
    frames = list(reader)
    for frame in frames:
        assert np.abs(frame.pixels[45, 40::80].astype(int) - MEANT).max() <= 4
    assert any('HLG' in n for n in reader.notes)
