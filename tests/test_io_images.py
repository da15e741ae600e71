"""Pictures: every readable format arrives as upright 8-bit sRGB; unreadable ones give one clear line."""

import io
import json

import numpy as np
import pytest
from PIL import Image, ImageCms

from avatar_jax.errors import UserError
from avatar_jax.io.images import grid, read_image, to_float, to_uint8, write_png
from avatar_jax.io.provenance import Provenance, from_metadata


@pytest.fixture
def photo():
    """[48, 64, 3] uint8 with a different colour in every corner: rotations and channel swaps show."""
    y, x = np.mgrid[:48, :64].astype(np.float64)
    red, green, blue = 255 * x / 63, 255 * y / 47, 255 * (1 - x / 63) * (1 - y / 47)
    return np.rint(np.stack([red, green, blue], -1)).astype(np.uint8)


def difference(a, b):
    return np.abs(a.astype(int) - b.astype(int)).max()


@pytest.mark.parametrize('name', ['a.png', 'a.bmp', 'a.tif', 'a.webp', 'a.ppm', 'a b ü.png'])
def test_plain_formats_are_exact(tmp_path, photo, name):
    Image.fromarray(photo).save(tmp_path / name, **({'lossless': True} if name.endswith('webp') else {}))
    picture = read_image(tmp_path / name)
    np.testing.assert_array_equal(picture.pixels, photo)
    assert picture.alpha is None and picture.notes == () and picture.size == (64, 48)


@pytest.mark.parametrize('orientation', range(1, 9))
def test_exif_orientation(tmp_path, photo, orientation):
    undo = {  # what a camera with this orientation stores
        1: lambda a: a,
        2: np.fliplr,
        3: lambda a: np.rot90(a, 2),
        4: np.flipud,
        5: lambda a: a.transpose(1, 0, 2),
        6: lambda a: np.rot90(a, 1),
        7: lambda a: np.rot90(a, 2).transpose(1, 0, 2),
        8: lambda a: np.rot90(a, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(np.ascontiguousarray(undo(photo))).save(tmp_path / 'a.png', exif=exif)
    picture = read_image(tmp_path / 'a.png')
    np.testing.assert_array_equal(picture.pixels, photo)
    assert bool(picture.notes) == (orientation != 1)


def test_gray_sixteen_bit_float_and_one_bit(tmp_path, photo):
    gray = photo[..., 0]
    Image.fromarray(gray.astype(np.uint16) * 257).save(tmp_path / 'a.png')
    Image.fromarray(gray.astype(np.uint16) * 257).save(tmp_path / 'a.tif')
    Image.fromarray(gray.astype(np.int32) * 257).save(tmp_path / 'i.tif')
    Image.fromarray((gray / 255).astype(np.float32)).save(tmp_path / 'f.tif')
    Image.fromarray(gray.astype(np.float32)).save(tmp_path / 'f255.tif')
    Image.fromarray(gray).save(tmp_path / 'l.png')
    for name in ('a.png', 'a.tif', 'i.tif', 'f.tif', 'f255.tif', 'l.png'):
        assert difference(read_image(tmp_path / name).pixels, np.repeat(gray[..., None], 3, 2)) <= 1, name
    Image.fromarray(gray > 127).save(tmp_path / 'one.png')
    assert set(np.unique(read_image(tmp_path / 'one.png').pixels)) == {0, 255}


def test_sixteen_bit_colour(tmp_path, photo):
    import cv2

    for name in ('a.png', 'a.tif'):
        cv2.imwrite(str(tmp_path / name), photo[..., ::-1].astype(np.uint16) * 257)
        assert difference(read_image(tmp_path / name).pixels, photo) <= 1


def test_palette_and_first_frame(tmp_path, photo):
    paletted = Image.fromarray(photo).quantize(256)
    paletted.save(tmp_path / 'p.png')
    expected = np.asarray(paletted.convert('RGB'))
    np.testing.assert_array_equal(read_image(tmp_path / 'p.png').pixels, expected)
    other = Image.fromarray(255 - photo).quantize(256)
    paletted.save(tmp_path / 'a.gif', save_all=True, append_images=[other])
    picture = read_image(tmp_path / 'a.gif')
    assert difference(picture.pixels, expected) <= 4
    assert picture.notes == ('first of 2 pictures in the file',)


def test_cmyk(tmp_path):
    colours = np.zeros((32, 64, 3), np.uint8)
    colours[:, :32] = (200, 40, 30)
    colours[:, 32:] = (20, 60, 210)
    cmyk = Image.fromarray(colours).convert('CMYK')
    cmyk.save(tmp_path / 'a.tif')
    cmyk.save(tmp_path / 'a.jpg', quality=98)
    for name in ('a.tif', 'a.jpg'):
        picture = read_image(tmp_path / name)
        assert difference(picture.pixels, colours) <= 6, name
        assert 'converted from CMYK' in picture.notes


def test_alpha_is_laid_over_the_background(tmp_path, photo):
    alpha = np.zeros(photo.shape[:2], np.uint8)
    alpha[:, :20], alpha[:, 20:40] = 255, 128
    Image.fromarray(np.dstack([photo, alpha])).save(tmp_path / 'a.png')
    picture = read_image(tmp_path / 'a.png', background=(0, 255, 0))
    np.testing.assert_array_equal(picture.alpha, alpha)
    np.testing.assert_array_equal(picture.pixels[:, :20], photo[:, :20])
    np.testing.assert_array_equal(picture.pixels[:, 40:], np.broadcast_to([0, 255, 0], (48, 24, 3)))
    middle = photo[:, 20:40] * (128 / 255) + np.array([0, 255, 0]) * (127 / 255)
    assert np.abs(picture.pixels[:, 20:40] - middle).max() <= 0.51
    Image.merge('LA', [Image.fromarray(photo[..., 0]), Image.fromarray(alpha)]).save(tmp_path / 'la.png')
    np.testing.assert_array_equal(read_image(tmp_path / 'la.png').alpha, alpha)
    paletted = Image.fromarray(photo).quantize(16)
    paletted.save(tmp_path / 'p.png', transparency=0)
    assert set(np.unique(read_image(tmp_path / 'p.png').alpha)) == {0, 255}


def test_colour_profile_is_converted(tmp_path, photo):
    lab = ImageCms.createProfile('LAB')
    to_lab = ImageCms.buildTransform(ImageCms.createProfile('sRGB'), lab, 'RGB', 'LAB')
    muted = (photo // 2 + 64).astype(np.uint8)  # 8-bit Lab is too coarse for saturated colours
    ImageCms.applyTransform(Image.fromarray(muted), to_lab).save(tmp_path / 'lab.tif')
    error = np.abs(read_image(tmp_path / 'lab.tif').pixels.astype(int) - muted)
    assert error.max() <= 10 and error.mean() < 2
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile('sRGB')).tobytes()
    Image.fromarray(photo).save(tmp_path / 'srgb.png', icc_profile=srgb)
    picture = read_image(tmp_path / 'srgb.png')
    assert difference(picture.pixels, photo) <= 1 and picture.notes == ()
    Image.fromarray(photo).save(tmp_path / 'bad.png', icc_profile=b'not a profile')
    picture = read_image(tmp_path / 'bad.png')
    np.testing.assert_array_equal(picture.pixels, photo)
    assert 'profile unusable' in picture.notes[0]


def test_large_pictures_are_reduced(tmp_path):
    wide = np.zeros((100, 800, 3), np.uint8)
    wide[:, 400:] = 255
    for name in ('a.png', 'a.jpg'):
        Image.fromarray(wide).save(tmp_path / name)
        picture = read_image(tmp_path / name, max_side=400)
        assert picture.size == (400, 50) and 'reduced from 800x100 pixels' in picture.notes
        assert picture.pixels[:, :190].max() <= 3 and picture.pixels[:, 210:].min() >= 252


@pytest.mark.parametrize(
    ('name', 'content', 'message'),
    [
        ('missing.png', None, 'no such file'),
        ('empty.png', b'', 'the file is empty'),
        ('text.png', b'hello, this is text' * 20, 'is not a picture'),
        ('folder.png', 'folder', 'is a folder'),
    ],
)
def test_bad_files_give_one_line(tmp_path, name, content, message):
    path = tmp_path / name
    if content == 'folder':
        path.mkdir()
    elif content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=message) as caught:
        read_image(path)
    assert str(path) in str(caught.value) and '\n' not in str(caught.value)


@pytest.mark.parametrize('suffix', ['png', 'jpg', 'webp', 'tif', 'gif'])
def test_truncated_files(tmp_path, photo, suffix):
    buffer = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 255, (96, 96, 3), np.uint8)
    Image.fromarray(noise).save(buffer, {'jpg': 'JPEG', 'tif': 'TIFF'}.get(suffix, suffix.upper()))
    path = tmp_path / f'cut.{suffix}'
    path.write_bytes(buffer.getvalue()[: len(buffer.getvalue()) // 2])
    with pytest.raises(UserError, match='damaged|not a picture'):
        read_image(path)


def test_too_small_and_far_too_large(tmp_path):
    Image.fromarray(np.zeros((8, 64, 3), np.uint8)).save(tmp_path / 'small.png')
    with pytest.raises(UserError, match='only 64x8 pixels'):
        read_image(tmp_path / 'small.png')
    Image.new('1', (20000, 20000)).save(tmp_path / 'bomb.png')
    with pytest.raises(UserError, match='too many pixels'):
        read_image(tmp_path / 'bomb.png')


def test_pipe_does_not_block(tmp_path):
    import os

    os.mkfifo(tmp_path / 'pipe.png')
    with pytest.raises(UserError, match='device or a pipe'):
        read_image(tmp_path / 'pipe.png')


def test_float_conversion_is_invertible_and_refuses_nan():
    every = np.arange(256, dtype=np.uint8).reshape(16, 16)
    np.testing.assert_array_equal(to_uint8(to_float(every)), every)
    assert to_float(every).min() == -1 and to_float(every).max() == 1
    np.testing.assert_array_equal(to_uint8(np.array([-7.0, 7.0])), [0, 255])
    with pytest.raises(ValueError, match='NaN'):
        to_uint8(np.array([0.0, np.nan]))


def test_png_carries_provenance(tmp_path, photo):
    record = Provenance(synthetic=True, weights='ab' * 32, seed=5, command='demo', sources={'a.jpg': 'cd'})
    write_png(tmp_path / 'new' / 'a.png', to_float(photo), record)
    with Image.open(tmp_path / 'new' / 'a.png') as image:
        np.testing.assert_array_equal(np.asarray(image), photo)
        assert from_metadata(image.info) == record
        assert json.loads(image.info['avatar_jax'])['synthetic'] is True
        assert 'trainedAlgorithmicMedia' in image.info['XML:com.adobe.xmp']
    write_png(tmp_path / 'gray.png', photo[..., :1])
    with Image.open(tmp_path / 'gray.png') as image:
        assert image.mode == 'L' and from_metadata(image.info) is None
    with pytest.raises(ValueError, match='picture is'):
        write_png(tmp_path / 'x.png', np.zeros((4, 4, 2), np.uint8))
    assert not (tmp_path / 'x.png').exists()


def test_grid_places_every_picture():
    pictures = np.stack([np.full((4, 6, 3), 10 * i, np.uint8) for i in range(5)])
    sheet = grid(pictures, 3, gap=2)
    assert sheet.shape == (10, 22, 3)
    assert (sheet[:4, 8:14] == 10).all() and (sheet[6:, 8:14] == 40).all()
    assert (sheet[6:, 16:] == 255).all() and (sheet[4:6] == 255).all()
