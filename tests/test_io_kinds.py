"""Content decides what a file is, the same in all commands; what cannot be read says which conversion helps."""

import io
import zipfile
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace

import av
import numpy as np
import pytest
from PIL import Image, features

from avatar_jax import cli
from avatar_jax.errors import UserError
from avatar_jax.io import colour, kinds
from avatar_jax.io.animation import AnimationReader, open_video
from avatar_jax.io.images import decode_image, read_image
from avatar_jax.io.video import VideoReader, write_video
from avatar_jax.methods.reading import measured_as
from avatar_jax.track.inputs import find_inputs
from avatar_jax.track.measure import PictureFrames, open_frames
from data_pipelines.cameras import pose_labels
from data_pipelines.eg3d_images import Eg3dImages, write_eg3d
from tests.test_io_upright import close, picture

WEIGHTS = SimpleNamespace(img_resolution=64, label_mode='raw', basis='procedural')


def prepare(path):
    return measured_as(path, WEIGHTS)


CASES = Path(__file__).parents[1] / '../shared/cases'
STILLS = ('png', 'jpg', 'webp', 'bmp', 'tif', 'gif', 'ppm', 'jp2', 'ico', 'tga')
ANIMATED = ('gif', 'png', 'webp')


def frames(count=6):
    return [np.roll(picture(), 9 * k, 1) for k in range(count)]


def animation(path, suffix, durations=80, alpha=False):
    images = [Image.fromarray(f) for f in frames()]
    if alpha:
        for image in images:
            mask = np.full((64, 96), 255, np.uint8)
            mask[:20] = 0
            image.putalpha(Image.fromarray(mask))
    options = {'lossless': True} if suffix == 'webp' else {'disposal': 2} if suffix == 'gif' else {}
    images[0].save(path, suffix.upper(), save_all=True, append_images=images[1:], duration=durations, loop=0, **options)
    return path


def still(path, suffix):
    formats = {'jpg': 'JPEG', 'tif': 'TIFF', 'jp2': 'JPEG2000'}
    Image.fromarray(picture()).save(path, formats.get(suffix, suffix.upper()))
    return path


@pytest.mark.parametrize('suffix', STILLS)
@pytest.mark.parametrize('named', ['own', 'mp4', 'none', 'dat'])
def test_stills_are_pictures_whatever_their_name(tmp_path, suffix, named):
    path = still(tmp_path / ('a' if named == 'none' else f'a.{suffix if named == "own" else named}'), suffix)
    assert kinds.kind_of(path) == kinds.PICTURE
    assert find_inputs([path])[0].kind == 'photo' and isinstance(open_frames(path), PictureFrames)
    if suffix != 'ico':  # these have sizes of their own
        assert close(read_image(path).pixels, picture(), 60)
    with pytest.raises(UserError, match='not a video'):
        VideoReader(path)


@pytest.mark.parametrize('suffix', [*ANIMATED, *(['avif'] if features.check('avif') else [])])
@pytest.mark.parametrize('named', ['own', 'jpg', 'mp4'])
@pytest.mark.slow
def test_animations_are_videos_in_every_command(tmp_path, suffix, named, capsys):
    path = animation(tmp_path / f'a.{suffix if named == "own" else named}', suffix)
    assert kinds.kind_of(path) == kinds.VIDEO
    assert find_inputs([path])[0].kind == 'video'
    for reader in (open_frames(path), open_video(path), find_inputs([path])[0].open()):
        shown = list(reader)
        assert len(shown) == 6 and reader.fps == 12.5
        assert [f.time for f in shown] == pytest.approx(0.08 * np.arange(6))
        for frame, image in zip(shown, frames(), strict=True):
            assert close(frame.pixels, image, 40)
    with pytest.raises(UserError, match='is an animation .* one picture is needed'):
        prepare(path)
    assert cli.main(['invert', '--image', str(path), '--out', str(tmp_path / 'o')]) == 2
    assert 'is an animation' in capsys.readouterr().err


def test_animations_with_uneven_times_and_transparency(tmp_path):
    reader = AnimationReader(animation(tmp_path / 'a.png', 'png', [100, 50, 50, 100, 50, 50], alpha=True))
    shown = list(reader)
    assert [f.time for f in shown] == pytest.approx([0, 0.1, 0.15, 0.2, 0.3, 0.35])
    assert reader.fps == 15 and reader.duration == pytest.approx(0.4) and reader.num_frames == 6
    assert all((f.pixels[:18] == 255).all() and f.pixels[30:].min() < 60 for f in shown)
    assert any('6 pictures' in n for n in reader.notes)
    whole = animation(tmp_path / 'whole.gif', 'gif').read_bytes()
    (tmp_path / 'cut.gif').write_bytes(whole[: len(whole) * 2 // 3])
    with pytest.raises(UserError, match='cut.gif'):
        list(open_video(tmp_path / 'cut.gif'))


def test_videos_are_videos_whatever_their_name(tmp_path):
    write_video(tmp_path / 'a.mp4', frames(), 25)
    for name in ('a.png', 'a.gif', 'a.dat', 'a'):
        (tmp_path / name).write_bytes((tmp_path / 'a.mp4').read_bytes())
        assert kinds.kind_of(tmp_path / name) == kinds.VIDEO
        assert len(list(open_frames(tmp_path / name))) == 6
        with pytest.raises(UserError, match='is a video, and one picture is needed'):
            prepare(tmp_path / name)
    (tmp_path / 'text.png').write_text('hello ' * 100)
    (tmp_path / 'text.mp4').write_text('hello ' * 100)
    (tmp_path / 'text.nfo').write_text('hello ' * 100)
    assert [kinds.kind_of(tmp_path / f'text.{e}') for e in ('png', 'mp4')] == [kinds.PICTURE, kinds.VIDEO]
    for name in ('text.mp4', 'text.nfo'):
        with pytest.raises(UserError, match='not a video'):
            open_video(tmp_path / name)
    assert kinds.kind_of(tmp_path / 'none.mp4') == kinds.VIDEO and kinds.kind_of(tmp_path / 'none') == kinds.PICTURE


@pytest.mark.parametrize(
    ('head', 'said'),
    [
        (b'\0\0\0\x18ftypheic\0\0\0\0mif1heic' + bytes(99), 'HEIC.*convert it to JPEG or PNG'),
        (b'\0\0\0\x18ftypmif1\0\0\0\0mif1heix' + bytes(99), 'HEIC'),
        (b'\0\0\0\x18ftypmsf1\0\0\0\0msf1hevc' + bytes(99), 'HEIC'),
        (b'\xff\x0a' + bytes(99), 'JPEG XL.*djxl'),
        (b'\0\0\0\x0cJXL \r\n\x87\n' + bytes(99), 'JPEG XL.*djxl'),
        (b'\0\0\0\x18ftypcrx \0\0\0\1crx isom' + bytes(99), 'camera raw.*export'),
        (b'<?xml version="1.0"?><svg width="1">' + bytes(99), 'SVG.*PNG'),
        (b'%PDF-1.7' + bytes(99), 'PDF.*PNG'),
    ],
)
@pytest.mark.parametrize('name', ['a.heic', 'a.jpg', 'a.mov', 'a'])
def test_what_cannot_be_read_says_which_conversion_helps(tmp_path, monkeypatch, head, said, name, capsys):
    monkeypatch.setattr(kinds, 'readable', lambda known: not known.help)  # whatever is installed here
    path = tmp_path / name
    path.write_bytes(head)
    assert kinds.kind_of(path) == kinds.PICTURE
    for read in (read_image, VideoReader, open_video, lambda p: list(open_frames(p)), prepare):
        with pytest.raises(UserError, match=said) as caught:
            read(path)
        assert name in str(caught.value) and '\n' not in str(caught.value)
    assert cli.main(['track', str(path), '--out', str(tmp_path / 'o')]) == 2
    assert 'cannot be read' in capsys.readouterr().err


def by_ffmpeg(path, codec, pixels, values):
    """A picture file by one of FFmpeg's encoders, from planes or bytes."""
    with av.open(str(path), 'w', format='image2', options={'update': '1'}) as file:
        stream = file.add_stream(codec, rate=1)
        stream.height, stream.width, stream.pix_fmt = *values.shape[:2], pixels
        frame = av.VideoFrame.from_ndarray(values, format=pixels)
        frame.pts, frame.time_base = 0, Fraction(1)
        file.mux(stream.encode(frame))
        file.mux(stream.encode())
    return path


@pytest.mark.parametrize(('suffix', 'codec'), [('exr', 'exr'), ('hdr', 'hdr'), ('pfm', 'pfm')])
def test_linear_light_is_shown_as_srgb(tmp_path, suffix, codec):
    light = colour.srgb_to_linear(picture() / 255).astype(np.float32)
    light[:8, :8] = 4.0
    path = by_ffmpeg(tmp_path / f'frame%03d.{suffix}', codec, 'gbrpf32le', light)
    assert kinds.kind_of(path) == kinds.PICTURE and isinstance(open_frames(path), PictureFrames)
    found = read_image(path)
    assert close(found.pixels, picture(), 4) and (found.pixels[2:6, 2:6] >= 250).all()
    assert any('linear light' in n for n in found.notes)
    # The same through the bytes, and by another name.
    assert (decode_image(path.read_bytes(), 'zip: a').pixels == found.pixels).all()


def test_dpx_is_a_picture(tmp_path):
    path = by_ffmpeg(tmp_path / 'a.dpx', 'dpx', 'rgb24', picture())
    assert kinds.kind_of(path) == kinds.PICTURE and close(read_image(path).pixels, picture(), 2)


@pytest.mark.skipif(not features.check('avif'), reason='this Pillow has no AVIF')
def test_avif_is_upright(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(np.ascontiguousarray(np.rot90(picture()))).save(tmp_path / 'a.avif', exif=exif, quality=95)
    assert kinds.kind_of(tmp_path / 'a.avif') == kinds.PICTURE
    assert close(read_image(tmp_path / 'a.avif').pixels, picture(), 25)


def test_heic_is_upright_by_its_container_or_else_by_exif(tmp_path):
    heif = pytest.importorskip('pillow_heif')
    heif.register_heif_opener()
    exif = Image.Exif()
    exif[0x0112] = 6
    lying = Image.fromarray(np.ascontiguousarray(np.rot90(picture())))
    lying.save(tmp_path / 'a.heic', exif=exif, quality=95)
    assert close(read_image(tmp_path / 'a.heic').pixels, picture(), 30)
    assert close(decode_image((tmp_path / 'a.heic').read_bytes(), 'a').pixels, picture(), 30)


def gray16(value):
    """A 16-bit gray PNG whose picture is 8-bit gray ``value``."""
    data = io.BytesIO()
    Image.fromarray(value.astype(np.uint16) * 257).save(data, 'PNG')
    return data.getvalue()


@pytest.mark.parametrize('packed', [True, False])
def test_eg3d_sets_read_pictures_as_all_commands_do(tmp_path, packed):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (4, 8, 8, 3), dtype=np.uint8)
    labels = pose_labels(rng.normal(0, 0.2, (4, 3)), rng.normal(0, 0.1, (4, 3)))
    folder = write_eg3d(tmp_path / 'set', zip(images, labels, strict=True))
    gray = rng.integers(0, 256, (8, 8)).astype(np.uint8)
    (folder / '00000' / 'img00000001.png').write_bytes(gray16(gray))
    alpha = np.zeros((8, 8), np.uint8)
    alpha[:4] = 255
    Image.fromarray(np.dstack([images[2], alpha])).save(folder / '00000' / 'img00000002.png')
    Image.fromarray(np.ascontiguousarray(images[3])).quantize(256).save(folder / '00000' / 'img00000003.png')
    if packed:
        with zipfile.ZipFile(tmp_path / 'set.zip', 'w') as archive:
            for path in sorted(folder.rglob('*.*')):
                archive.write(path, path.relative_to(folder))
        folder = tmp_path / 'set.zip'
    reader = Eg3dImages(folder)
    np.testing.assert_array_equal(reader[0]['image'], images[0])
    np.testing.assert_array_equal(reader[1]['image'], np.repeat(gray[..., None], 3, 2))
    np.testing.assert_array_equal(reader[2]['image'][:4], images[2][:4])
    assert (reader[2]['image'][4:] == 255).all()
    assert np.abs(reader[3]['image'].astype(int) - images[3]).mean() < 12


@pytest.mark.skipif(not CASES.is_dir(), reason='the shared cases are not here')
def test_shared_cases(tmp_path, monkeypatch):
    assert len(list(open_video(CASES / 'talk.gif'))) >= 14 and open_video(CASES / 'talk.gif').fps == Fraction(25, 2)
    found = read_image(CASES / 'linear_half.exr')
    assert found.size == (240, 240) and 60 < found.pixels.mean() < 250
    monkeypatch.setattr(kinds, 'readable', lambda known: not known.help)
    with pytest.raises(UserError, match='HEIC'):
        read_image(CASES / 'phone6.heic')
    with zipfile.ZipFile(CASES / 'eg3d_gray16.zip') as archive:
        archive.extractall(tmp_path)
    reader = Eg3dImages(tmp_path / 'g16')
    sixteen = np.asarray(Image.open(tmp_path / 'g16' / reader.names[3]))
    assert sixteen.max() > 255
    assert np.abs(reader[3]['image'][..., 0].astype(float) - sixteen / 257).max() <= 0.51
