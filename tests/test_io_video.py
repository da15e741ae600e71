"""Videos: what is written can be read back with rate, colours and provenance; bad files give one line."""

import subprocess
import sys
import textwrap
from fractions import Fraction

import av
import numpy as np
import pytest

from avatar_jax.errors import UserError
from avatar_jax.io.provenance import Provenance, from_metadata
from avatar_jax.io.video import VideoReader, VideoWriter, frame_rate, write_video


def patches(width=96, height=64, level=0):
    """Four large patches of clear colours; ``level`` changes the last one, so that frames can be told apart."""
    image = np.zeros((height, width, 3), np.uint8)
    image[: height // 2, : width // 2] = (200, 40, 40)
    image[: height // 2, width // 2 :] = (40, 190, 60)
    image[height // 2 :, : width // 2] = (50, 60, 210)
    image[height // 2 :, width // 2 :] = level
    return image


def corners(image):
    height, width = image.shape[:2]
    return [image[y, x].astype(int) for y in (height // 4, 3 * height // 4) for x in (width // 4, 3 * width // 4)]


def test_round_trip(tmp_path):
    record = Provenance(synthetic=True, weights='ab', seed=1)
    levels = [0, 60, 120, 180, 240]
    count = write_video(tmp_path / 'v' / 'a.mp4', (patches(level=v) for v in levels), 25, crf=12, provenance=record)
    reader = VideoReader(tmp_path / 'v' / 'a.mp4')
    frames = list(reader)
    assert count == len(frames) == reader.num_frames == 5
    assert reader.fps == 25 and reader.size == (96, 64) and reader.duration == pytest.approx(0.2)
    assert [f.time for f in frames] == pytest.approx([0, 0.04, 0.08, 0.12, 0.16])
    assert [f.index for f in frames] == list(range(5))
    for frame, level in zip(frames, levels, strict=True):
        for found, expected in zip(corners(frame.pixels), corners(patches(level=level)), strict=True):
            assert np.abs(found - expected).max() <= 6
    assert from_metadata(reader.metadata) == record
    assert reader.notes == () and len(list(reader)) == 5  # can be read again
    assert [p.name for p in (tmp_path / 'v').iterdir()] == ['a.mp4']


def test_float_frames_odd_sizes_and_codec(tmp_path):
    image = patches(95, 63)
    write_video(tmp_path / 'a.mp4', [image / 127.5 - 1.0], '30000/1001')
    with av.open(str(tmp_path / 'a.mp4')) as container:
        stream = container.streams.video[0]
        assert stream.codec_context.name == 'h264' and stream.codec_context.pix_fmt == 'yuv420p'
        assert stream.average_rate == Fraction(30000, 1001)
        assert (stream.width, stream.height) == (96, 64)
    frame = next(iter(VideoReader(tmp_path / 'a.mp4')))
    assert all(np.abs(a - b).max() <= 6 for a, b in zip(corners(frame.pixels), corners(patches()), strict=True))


@pytest.mark.parametrize(
    ('given', 'rate'),
    [
        (25, Fraction(25)),
        (29.97, Fraction(30000, 1001)),
        ('30000/1001', Fraction(30000, 1001)),
        (23.976, Fraction(24000, 1001)),
        (12.5, Fraction(25, 2)),
        ('60', Fraction(60)),
        (np.float64(30), Fraction(30)),
    ],
)
def test_frame_rates(given, rate):
    assert frame_rate(given) == rate


@pytest.mark.parametrize('bad', [0, -1, 'fast', float('nan'), float('inf'), 5000, '1/0', None])
def test_bad_frame_rates(bad):
    with pytest.raises(UserError, match='frame rate'):
        frame_rate(bad)


def test_refusals_leave_no_file(tmp_path):
    with pytest.raises(UserError, match='ends in .mp4'):
        VideoWriter(tmp_path / 'a.avi', 25)
    with pytest.raises(UserError, match='crf'):
        VideoWriter(tmp_path / 'a.mp4', 25, crf=60)
    with pytest.raises(ValueError, match='no frame'):
        write_video(tmp_path / 'a.mp4', [], 25)
    with pytest.raises(ValueError, match='frame 1 is'):
        write_video(tmp_path / 'a.mp4', [patches(), patches(64, 64)], 25)
    with pytest.raises(ValueError, match='NaN'):
        write_video(tmp_path / 'a.mp4', [np.full((32, 32, 3), np.nan)], 25)
    with pytest.raises(KeyboardInterrupt), VideoWriter(tmp_path / 'a.mp4', 25) as video:
        video.write(patches())
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


def test_full_disk_is_one_line_and_leaves_no_file(tmp_path):
    program = textwrap.dedent(f"""
        import resource, sys
        import numpy as np
        from avatar_jax.errors import UserError
        from avatar_jax.io.video import write_video
        resource.setrlimit(resource.RLIMIT_FSIZE, (20000, 20000))
        noise = np.random.default_rng(0).integers(0, 255, (60, 96, 96, 3), np.uint8)
        try:
            write_video({str(tmp_path / 'a.mp4')!r}, noise, 25)
        except UserError as error:
            sys.exit(f'user error: {{error}}')
    """)
    done = subprocess.run([sys.executable, '-c', program], capture_output=True, text=True, timeout=120, check=False)
    assert done.stderr.startswith('user error: ') and 'could not be written' in done.stderr, done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize('turn', [90, 180, 270])
def test_rotation_flag_is_applied(tmp_path, turn):
    path = tmp_path / 'a.mp4'
    stored = np.ascontiguousarray(np.rot90(patches(), -turn // 90))  # turning it counter-clockwise restores it
    with av.open(str(path), 'w') as container:
        stream = container.add_stream('libx264', rate=25)
        stream.height, stream.width, stream.pix_fmt = *stored.shape[:2], 'yuv420p'
        stream.set_display_rotation(turn)
        frame = av.VideoFrame.from_ndarray(stored, format='rgb24')
        frame.pts, frame.time_base = 0, Fraction(1, 25)
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    reader = VideoReader(path)
    frame = next(iter(reader))
    assert reader.size == (96, 64) and frame.pixels.shape == (64, 96, 3)
    assert f'turned upright by {turn} degrees' in reader.notes
    assert all(np.abs(a - b).max() <= 12 for a, b in zip(corners(frame.pixels), corners(patches()), strict=True))


def test_pixel_aspect_ten_bit_and_size_limit(tmp_path):
    path = tmp_path / 'a.mkv'
    with av.open(str(path), 'w') as container:
        stream = container.add_stream('libx265', rate=25, options={'x265-params': 'log-level=none:bframes=0'})
        stream.width, stream.height, stream.pix_fmt = 96, 64, 'yuv420p10le'
        stream.codec_context.sample_aspect_ratio = Fraction(2, 1)
        for k in range(3):
            frame = av.VideoFrame.from_ndarray(patches(), format='rgb24')
            frame.pts, frame.time_base = k, Fraction(1, 25)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    reader = VideoReader(path)
    frame = next(iter(reader))
    assert frame.pixels.shape == (64, 192, 3) and frame.pixels.dtype == np.uint8
    assert all(np.abs(a - b).max() <= 12 for a, b in zip(corners(frame.pixels), corners(patches()), strict=True))
    assert VideoReader(path, max_side=96).size == (96, 32)


def test_bad_files_give_one_line(tmp_path):
    write_video(tmp_path / 'good.mp4', [patches(level=v) for v in range(0, 250, 10)], 25)
    good = (tmp_path / 'good.mp4').read_bytes()
    (tmp_path / 'cut.mp4').write_bytes(good[: len(good) // 3])
    (tmp_path / 'text.mp4').write_bytes(b'hello ' * 500)
    (tmp_path / 'empty.mp4').write_bytes(b'')
    with av.open(str(tmp_path / 'sound.m4a'), 'w', format='mp4') as container:
        stream = container.add_stream('aac', rate=16000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 4096), np.float32), format='fltp', layout='mono')
        frame.sample_rate, frame.pts, frame.time_base = 16000, 0, Fraction(1, 16000)
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    for name, message in [
        ('cut.mp4', 'damaged'),
        ('text.mp4', 'not a video'),
        ('empty.mp4', 'empty'),
        ('sound.m4a', 'no picture track'),
        ('missing.mp4', 'no such file'),
    ]:
        with pytest.raises(UserError, match=message) as caught:
            list(VideoReader(tmp_path / name))
        assert name in str(caught.value) and '\n' not in str(caught.value)
