"""Text files from other systems: marks, UTF-16, comments, iBUG's points; and what macOS puts into zips."""

import io
import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from avatar_jax import cli
from avatar_jax.errors import UserError
from avatar_jax.io import text
from avatar_jax.io.landmarks import find_landmarks, read_landmark_frames, read_landmarks
from data_pipelines.cameras import pose_labels
from data_pipelines.eg3d_images import Eg3dImages
from data_pipelines.otavatar_lmdb import _names
from data_pipelines.tracked.layouts import read_list
from tests.test_side_files import POINTS

CASES = Path(__file__).parents[1] / '../shared/cases'
PLAIN = ''.join(f'{x} {y}\n' for x, y in POINTS)


@pytest.mark.parametrize('encoding', ['utf-8', 'utf-8-sig', 'utf-16', 'utf-16-le', 'utf-16-be', 'utf-32', 'cp1252'])
def test_encodings(encoding):
    content = 'Jos\xe9 1.5\r\n\xfcber\r\n'
    assert text.decode(content.encode(encoding)) == content
    if encoding != 'cp1252':
        assert text.decode('张伟 1.5\n'.encode(encoding)) == '张伟 1.5\n'
    with pytest.raises(ValueError):
        text.decode(b'\x89PNG\0\0\0\x01\x02\0\0')


@pytest.mark.parametrize('encoding', ['utf-8', 'utf-8-sig', 'utf-16', 'utf-16-le', 'utf-16-be', 'utf-32', 'cp1252'])
@pytest.mark.parametrize(
    'content',
    [
        PLAIN,
        PLAIN.replace('\n', '\r\n'),
        PLAIN.replace('\n', '\r'),
        PLAIN.replace(' ', ', '),
        PLAIN.replace(' ', ';'),
        PLAIN.replace(' ', '\t'),
        '# caf\xe9: made by a tool\n' + PLAIN.replace('\n', '  # left\n', 1) + '\n\n# end\n',
        'x,y\n' + PLAIN.replace(' ', ','),
        PLAIN.replace('\n', ' '),
        'version: 1\nn_points: 5\n{\n' + PLAIN + '}\n',
        'version: 1\nn_points:  5\n{\n' + PLAIN + '}',
    ],
)
def test_landmarks_from_other_systems(tmp_path, encoding, content):
    for name in ('a.landmarks5.txt', 'a.pts'):
        (tmp_path / name).write_bytes(content.encode(encoding))
        np.testing.assert_allclose(read_landmarks(tmp_path / name), POINTS, rtol=1e-6)
    (tmp_path / 'a.json').write_bytes(json.dumps({'points': POINTS.tolist()}).encode(encoding))
    np.testing.assert_allclose(read_landmarks(tmp_path / 'a.json'), POINTS, rtol=1e-6)


def test_ibug_files_of_68_points_and_broken_ones(tmp_path):
    points = np.random.default_rng(0).uniform(0, 99, (68, 2)).round(3)
    rows = '\n'.join(f'{x} {y}' for x, y in points)
    (tmp_path / 'a.pts').write_text(f'version: 1\nn_points: 68\n{{\n{rows}\n}}\n')
    np.testing.assert_allclose(read_landmark_frames(tmp_path / 'a.pts')[0], points, rtol=1e-6)
    assert find_landmarks(tmp_path / 'a.jpg') == tmp_path / 'a.pts'
    for broken in (
        f'version: 1\nn_points: 67\n{{\n{rows}\n}}\n',
        'version: 1\n{\n}\n',
        f'{{\n{rows[:80]}',
        'version: x',
    ):
        (tmp_path / 'b.pts').write_text(broken)
        with pytest.raises(UserError, match=r'b\.pts'):
            read_landmark_frames(tmp_path / 'b.pts')


@pytest.mark.parametrize('encoding', ['utf-8-sig', 'utf-16'])
def test_lists_of_names(tmp_path, encoding):
    (tmp_path / 'list.txt').write_bytes('张伟\r\nb.mp4\r\n\r\n'.encode(encoding))
    assert read_list(tmp_path / 'list.txt') == ['张伟', 'b'] and _names(tmp_path / 'list.txt') == ['张伟', 'b.mp4']


def eg3d_zip(path, parent='', junk=True, encoding='utf-8', slash='/', in_table='', drop=()):
    """A set of four pictures as other systems zip it."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (4, 8, 8, 3), dtype=np.uint8)
    labels = pose_labels(rng.normal(0, 0.2, (4, 3)), rng.normal(0, 0.1, (4, 3)))
    names = [f'0000{k % 2}/img{k:08d}.png' for k in range(4)]
    table = {'labels': [[in_table + n, label.tolist()] for n, label in zip(names, labels, strict=True)]}
    files = {'dataset.json': json.dumps(table).encode(encoding)}
    for name, image in zip(names, images, strict=True):
        data = io.BytesIO()
        Image.fromarray(image).save(data, 'PNG')
        files[name] = data.getvalue()
    with zipfile.ZipFile(path, 'w') as archive:
        for name, data in files.items():
            if name in drop:
                continue
            archive.writestr((parent + name).replace('/', slash), data)
            if junk:
                folder, _, last = (parent + name).rpartition('/')
                archive.writestr(f'__MACOSX/{folder}/._{last}', b'\0\5\x16\7' + bytes(60))
                if f'{folder}/.DS_Store' not in archive.namelist():
                    archive.writestr(f'{folder}/.DS_Store', b'x')
                archive.writestr(f'{folder}/._{last}', b'\0\5\x16\7' + bytes(60))
    order = sorted(range(4), key=names.__getitem__)
    return images[order], labels[order]


@pytest.mark.parametrize(
    'options',
    [
        {},
        {'parent': 'faces/'},
        {'parent': 'a b/张/'},
        {'parent': 'faces/', 'in_table': 'faces/'},
        {'encoding': 'utf-8-sig'},
        {'encoding': 'utf-16'},
        {'slash': '\\'},
        {'in_table': './'},
    ],
    ids=str,
)
@pytest.mark.parametrize('packed', [True, False])
def test_eg3d_sets_as_other_systems_zip_them(tmp_path, options, packed):
    path = tmp_path / 'set.zip'
    images, labels = eg3d_zip(path, **options)
    if not packed:
        if 'slash' in options:
            pytest.skip('unpacking makes folders of it')
        with zipfile.ZipFile(path) as archive:
            archive.extractall(tmp_path / 'unpacked')
        path = tmp_path / 'unpacked'
    reader = Eg3dImages(path)
    assert len(reader) == 4 and all('MACOSX' not in n and '._' not in n for n in reader.names)
    for k in range(4):
        np.testing.assert_array_equal(reader[k]['image'], images[k])
        np.testing.assert_allclose(reader[k]['label'], labels[k], rtol=1e-6)
    assert reader.fingerprint()


def test_eg3d_zips_that_cannot_be_used_say_why(tmp_path):
    eg3d_zip(tmp_path / 'no.zip', drop=('dataset.json',))
    with pytest.raises(UserError, match='missing, also in the folders below'):
        Eg3dImages(tmp_path / 'no.zip')
    assert len(Eg3dImages(tmp_path / 'no.zip', use_labels=False)) == 4
    with zipfile.ZipFile(tmp_path / 'two.zip', 'w') as archive:
        for folder in 'ab':
            archive.writestr(f'{folder}/dataset.json', '{}')
            archive.writestr(f'{folder}/a.png', b'x')
    with pytest.raises(UserError, match='holds 2 data sets'):
        Eg3dImages(tmp_path / 'two.zip')


def test_folders_from_macos_are_read_without_its_files(tmp_path, capsys):
    (tmp_path / 'in').mkdir()
    (tmp_path / 'in' / '._a.png').write_bytes(b'\0\5\x16\7')
    (tmp_path / 'in' / '.DS_Store').write_bytes(b'x')
    assert cli.main(['track', str(tmp_path / 'in'), '--out', str(tmp_path / 'o')]) == 2
    assert 'holds no pictures and no videos' in capsys.readouterr().err


@pytest.mark.skipif(not CASES.is_dir(), reason='the shared cases are not here')
def test_shared_cases():
    for name in ('bom.txt', 'ibug.pts', 'plain.txt'):
        np.testing.assert_allclose(read_landmarks(CASES / 'landmarks' / name), POINTS, rtol=1e-6)
    for name in ('eg3d_macos_finder.zip', 'eg3d_gray16.zip'):
        reader = Eg3dImages(CASES / name)
        assert len(reader) == 8 and reader[3]['image'].shape[2] == 3
