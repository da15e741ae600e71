"""Files out of packages: fetched only when asked for, checked, and every failure in one line. No network."""

import dataclasses
import hashlib
import io
import subprocess
import tarfile
import zipfile
from pathlib import Path

import pytest

from avatar_jax import cli
from avatar_jax.errors import UserError
from avatar_jax.io import assets, parcels

CONTENT = b'a network, as it were'
_DIST = 'carrier-1.0.dist-info'


def sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def wheel(folder: Path, content: bytes = CONTENT) -> Path:
    path = folder / 'carrier-1.0-py3-none-any.whl'
    with zipfile.ZipFile(path, 'w') as archive:
        archive.writestr('carrier/models/face.task', content)
        archive.writestr(f'{_DIST}/METADATA', 'Metadata-Version: 2.1\nName: carrier\nVersion: 1.0\n')
        archive.writestr(f'{_DIST}/WHEEL', 'Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n')
        archive.writestr(f'{_DIST}/RECORD', '')
    return path


@pytest.fixture
def shop(tmp_path, monkeypatch):
    """A folder with a package, the parcel in it as the only one there is, and an empty cache."""
    path = wheel(tmp_path)
    parcel = parcels.Parcel(
        'face-landmarker',
        'pip',
        'carrier',
        '1.0',
        sha(path.read_bytes()),
        'carrier/models/face.task',
        sha(CONTENT),
        len(CONTENT),
        'CC0',
    )
    monkeypatch.setattr(parcels, 'PARCELS', {parcel.name: parcel})
    monkeypatch.setattr(assets, 'PARCELS', parcels.PARCELS)
    monkeypatch.setenv('AVATAR_CACHE', str(tmp_path / 'cache'))
    for name in ('PIP_INDEX_URL', 'PIP_EXTRA_INDEX_URL'):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv('PIP_NO_INDEX', '1')
    monkeypatch.setenv('PIP_CONFIG_FILE', '/dev/null')
    monkeypatch.setenv('PIP_FIND_LINKS', str(tmp_path))
    return parcel, path


def test_pip_brings_the_file_once(shop, capsys, monkeypatch, tmp_path):
    parcel, _ = shop
    assert assets.located('face-landmarker') is None
    assert cli.main(['assets', '--get', 'face-landmarker']) == 0
    out = capsys.readouterr().out
    assert 'licence CC0' in out and parcel.sha256 in out
    found = tmp_path / 'cache' / 'assets' / 'face.task'
    assert found.read_bytes() == CONTENT and assets.located('face-landmarker') == found
    monkeypatch.setattr(subprocess, 'run', None)  # what is here is not fetched again
    assert parcels.fetch(parcel) == found
    found.write_bytes(b'something else')
    assert assets.located('face-landmarker') is None


def test_pip_that_fails(shop, capsys, tmp_path):
    parcel, path = shop
    path.write_bytes(path.read_bytes() + b'\0')  # another archive under the same name and version
    with pytest.raises(UserError, match=r'gives out something else as carrier 1\.0; nothing was kept'):
        parcels.fetch(parcel)
    path.unlink()
    assert cli.main(['assets', '--get', 'face-landmarker']) == 2
    [line] = [line for line in capsys.readouterr().err.splitlines() if line]
    assert 'pip could not fetch carrier 1.0' in line and '--from FILE' in line
    assert not (tmp_path / 'cache').exists()


def test_without_a_client(shop, monkeypatch):
    parcel, _ = shop
    done = subprocess.CompletedProcess([], 1, b'', b'/usr/bin/python: No module named pip\n')
    monkeypatch.setattr(subprocess, 'run', lambda *args, **options: done)
    with pytest.raises(UserError, match='pip is not installed beside this Python'):
        parcels.fetch(parcel)
    monkeypatch.setenv('PATH', '')
    with pytest.raises(UserError, match='npm is not installed'):
        parcels.fetch(dataclasses.replace(parcel, client='npm'))


def test_out_of_an_archive_that_is_here(shop, tmp_path, capsys):
    parcel, path = shop
    (tmp_path / 'other').mkdir()
    other = wheel(tmp_path / 'other', b'forged')
    with pytest.raises(UserError, match='has SHA-256'):
        parcels.fetch(parcel, archive=other)
    forged = dataclasses.replace(parcel, archive_sha256=sha(other.read_bytes()))
    with pytest.raises(UserError, match='is not the file that is meant'):
        parcels.fetch(forged, archive=other)
    with pytest.raises(UserError, match='holds no nothing'):
        parcels.fetch(dataclasses.replace(parcel, member='nothing'), archive=path)
    assert parcels.fetched(parcel) is None
    assert cli.main(['assets', '--get', 'face-landmarker', '--from', str(path)]) == 0
    assert cli.main(['assets', 'face-landmarker']) == 0
    assert 'avatar-jax assets --get face-landmarker' in capsys.readouterr().out

    archive = tmp_path / 'carrier-1.0.tgz'
    with tarfile.open(archive, 'w:gz') as opened:
        entry = tarfile.TarInfo('package/net.tflite')
        entry.size = len(CONTENT)
        opened.addfile(entry, io.BytesIO(CONTENT))
    packed = dataclasses.replace(parcel, member='package/net.tflite', archive_sha256=sha(archive.read_bytes()))
    assert parcels.fetch(packed, archive=archive).name == 'net.tflite'


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (('--get', 'nothing'), '--get nothing: cannot be fetched; there are face-landmarker'),
        (('--from', 'a.whl'), '--from a.whl: says where --get NAME takes a file from'),
        (('--get', 'face-landmarker', 'face-landmarker', '--from', 'a.whl'), 'is one package'),
        (('--get', 'face-landmarker', '--from', 'a.whl'), 'a.whl: no such file'),
    ],
)
def test_wrong_options(shop, capsys, arguments, message):
    assert cli.main(['assets', *arguments]) == 2
    assert message in capsys.readouterr().err


def test_the_parcels_are_assets():
    names = {asset.name for asset in assets.ASSETS}
    for name, parcel in parcels.PARCELS.items():
        assert name == parcel.name and name in names and len(parcel.sha256) == len(parcel.archive_sha256) == 64
