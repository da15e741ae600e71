"""Frames come out upright, whole and of one size: display matrices, interlacing, sizes that change midway."""

import struct
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from avatar_jax.io.interlaced import comb_share
from avatar_jax.io.upright import Turn, boxed, fitted, turn_of_matrix
from avatar_jax.io.video import VideoReader

CASES = Path(__file__).parents[1] / '../shared/cases'
ONE = 1 << 16


def picture(width=96, height=64):
    """Four different quarters."""
    image = np.zeros((height, width, 3), np.uint8)
    image[: height // 2, : width // 2] = (200, 40, 40)
    image[: height // 2, width // 2 :] = (40, 190, 60)
    image[height // 2 :, : width // 2] = (50, 60, 210)
    return image


def close(a, b, bound=14):
    assert a.shape == b.shape
    h, w = a.shape[:2]
    spots = [(y, x) for y in (h // 4, 3 * h // 4) for x in (w // 4, 3 * w // 4)]
    return max(np.abs(a[s].astype(int) - b[s].astype(int)).max() for s in spots) <= bound


def film(path, pictures, options=None, before=lambda stream: None, each=lambda frame: None):
    with av.open(str(path), 'w') as file:
        stream = file.add_stream('libx264', rate=25, options={'qp': '1', **(options or {})})
        stream.height, stream.width = pictures[0].shape[:2]
        stream.pix_fmt = 'yuv444p'
        before(stream)
        for k, image in enumerate(pictures):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format='rgb24')
            frame.pts, frame.time_base = k, Fraction(1, 25)
            each(frame)
            file.mux(stream.encode(frame))
        file.mux(stream.encode())
    return path


def with_matrix(path, matrix):
    """Writes a display matrix (a, b, c, d) into the track header of an MP4 file."""
    data = bytearray(path.read_bytes())
    at = data.index(b'tkhd') + 4
    at += 52 if data[at] == 1 else 40
    a, b, c, d = matrix
    data[at : at + 36] = struct.pack('>9i', a, b, 0, c, d, 0, 0, 0, 1 << 30)
    path.write_bytes(bytes(data))
    return path


@pytest.mark.parametrize(
    'matrix', [(x, 0, 0, y) for x in (1, -1) for y in (1, -1)] + [(0, x, y, 0) for x in (1, -1) for y in (1, -1)]
)
def test_all_eight_display_matrices(tmp_path, matrix):
    a, b, c, d = matrix
    stored = picture()
    shown = np.zeros_like(stored if a else stored.swapaxes(0, 1))
    h, w = stored.shape[:2]
    for y in range(h):  # the definition, pixel by pixel, about the middle of the picture
        for x in range(w):
            u, v = x - (w - 1) / 2, y - (h - 1) / 2
            shown[round(b * u + d * v + (shown.shape[0] - 1) / 2), round(a * u + c * v + (shown.shape[1] - 1) / 2)] = (
                stored[y, x]
            )
    path = with_matrix(film(tmp_path / 'a.mp4', [stored] * 2), tuple(ONE * m for m in matrix))
    reader = VideoReader(path)
    frames = [f.pixels for f in reader]
    assert reader.size == (shown.shape[1], shown.shape[0])
    assert len(frames) == 2 and close(frames[0], shown) and close(frames[1], shown)
    assert bool(reader.notes) == (matrix != (1, 0, 0, 1))
    assert any('mirror' in n for n in reader.notes) == (a * d - b * c < 0)


def test_turns():
    assert turn_of_matrix((0,) * 9) == Turn()
    slanted = tuple(int(ONE * v) for v in (0.9, 0.43, 0, -0.43, 0.9, 0))
    assert turn_of_matrix(slanted) == Turn()
    assert turn_of_matrix((2 * ONE, 0, 0, 0, -ONE, 0)) == Turn(mirror_y=True)
    image = np.arange(12).reshape(3, 4)
    assert (Turn(True, False, True).apply(image) == np.rot90(image)).all()
    assert fitted((360, 480), (480, 360)) == (270, 360) and fitted((961, 720), (480, 360)) == (480, 360)
    assert boxed(np.ones((2, 2, 3), np.uint8), (6, 2))[0, :, 0].tolist() == [0, 0, 1, 1, 0, 0]


def moving(frames=16, height=64, width=96, interlaced=True, step=5):
    """A bright bar that moves to the right; each frame's even lines are of one moment, its odd lines of the next."""
    out = []
    for t in range(frames):
        image = np.full((height, width, 3), 60, np.uint8)
        for field in range(2):
            left = 4 + (2 * t + (field if interlaced else 0)) * step // 2
            image[field::2, left : left + 12] = 210
        out.append(image)
    return out


def combs(pixels):
    lines = pixels[:, :, 1].astype(int)
    return np.abs(2 * lines[1:-1] - lines[:-2] - lines[2:]).mean()


@pytest.mark.parametrize('flagged', [True, False])
def test_interlaced_frames_lose_their_combs(tmp_path, flagged):
    pictures = moving()
    options = {'x264-params': 'tff=1'} if flagged else {}
    path = film(tmp_path / 'a.mkv', pictures, options)
    with av.open(str(path)) as file:
        assert next(file.decode(video=0)).interlaced_frame == flagged
    reader = VideoReader(path)
    frames = list(reader)
    assert len(frames) == len(pictures) and [f.index for f in frames] == list(range(16))
    assert np.allclose([f.time for f in frames], np.arange(16) / 25, atol=2e-3)
    assert any('interlaced' in n for n in reader.notes)
    for frame, image in zip(frames, pictures, strict=True):
        assert combs(frame.pixels) < 0.35 * combs(image)
        shown = frame.pixels.astype(int).mean(0)
        assert min(np.abs(shown - image[k::2].astype(int).mean(0)).mean() for k in range(2)) < 5, 'one of the moments'


def test_whole_frames_are_left_alone(tmp_path):
    for name, pictures in [('moves', moving(interlaced=False))] + [
        ('shirt', [np.tile(np.array([[[40] * 3], [[200] * 3]], np.uint8), (32, 96, 1))] * 8)
    ]:
        reader = VideoReader(film(tmp_path / f'{name}.mp4', pictures))
        assert not any('interlaced' in n for n in reader.notes)
        assert all(np.abs(f.pixels.astype(int) - p).max() < 25 for f, p in zip(reader, pictures, strict=True))
    a, b = (m[..., 0].astype(np.int16) for m in moving(2))
    assert comb_share(b, a) > 0.01 and comb_share(a, a) == 0


def test_a_size_that_changes_keeps_its_aspect(tmp_path):
    film(tmp_path / 'a.ts', [picture(96, 64)] * 5)
    film(tmp_path / 'b.ts', [picture(64, 96)] * 5)
    joined = tmp_path / 'joined.ts'
    joined.write_bytes((tmp_path / 'a.ts').read_bytes() + (tmp_path / 'b.ts').read_bytes())
    reader = VideoReader(joined)
    frames = [f.pixels for f in reader]
    assert len(frames) == 10 and {f.shape for f in frames} == {(64, 96, 3)}
    assert close(frames[0], picture())
    narrow = frames[-1][:, 27:69]  # 64x96 in 96x64 is 43 pixels wide
    assert frames[-1][:, :24].max() < 30 and frames[-1][:, 72:].max() < 30
    assert close(narrow, picture(42, 64), 20)
    assert any('size changes' in n and 'frame 5' in n for n in reader.notes)


@pytest.mark.skipif(not CASES.is_dir(), reason='the shared cases are not here')
def test_shared_cases():
    reader = VideoReader(CASES / 'display_hflip.mp4')
    with av.open(str(CASES / 'display_hflip.mp4')) as file:
        stored = next(file.decode(video=0)).to_ndarray(format='rgb24')
    assert np.abs(next(iter(reader)).pixels.astype(int) - stored[:, ::-1]).max() <= 2
    assert any('mirrored left-right' in n for n in reader.notes)
    reader = VideoReader(CASES / 'size_changes_midway.ts')
    frames = [f.pixels for f in reader]
    assert len(frames) == 50 and any('size changes' in n for n in reader.notes)
    assert frames[-1][:, :90].max() < 30 and frames[-1][:, 110:370].max() > 100
