"""EG3D's own data format: a folder or zip of square pictures with ``dataset.json`` and 25-number camera labels.

    reader = Eg3dImages('ffhq.zip', mirror='images+labels'); reader[0] -> {'image': [H,W,3] uint8, 'label': [25]}

``dataset.json`` holds ``{"labels": [["00000/img00000000.png", [25 numbers]], ...]}``. Labels are checked when the set
is
opened: a wrong convention otherwise shows up only as a training run that never learns the shape.
``python -m data_pipelines.eg3d_images PATH`` checks a set, every picture included.
"""

from __future__ import annotations

import io
import json
import os
import sys
import threading
import zipfile
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

import numpy as np

from avatar_jax.errors import UserError
from avatar_jax.faces.camera_labels import mirror_label, pose_from_label
from avatar_jax.io.images import decode_image
from avatar_jax.progress import Console
from data_pipelines.stream import Batches, Order

MIRRORS = ('off', 'images', 'images+labels')
EXTENSIONS = ('.png', '.jpg', '.jpeg', '.jfif', '.webp', '.bmp', '.tif', '.tiff', '.avif')
TABLE = 'dataset.json'
RADIUS_RANGE = (1.0, 6.0)  # distance of the camera from the origin of the volume; FFHQ has 2.7


def check_labels(
    labels: np.ndarray, names: list[str], radius: tuple[float, float] = RADIUS_RANGE, where: str = 'dataset.json'
) -> None:
    """Checks camera labels [N,25]: pose, axes, distance, intrinsics.

    Raises:
        UserError: names the first picture whose label is wrong, what is wrong and what is expected.
    """
    pose, k = labels[:, :16].reshape(-1, 4, 4).astype(np.float64), labels[:, 16:].reshape(-1, 3, 3).astype(np.float64)
    rotation, position = pose[:, :3, :3], pose[:, :3, 3]
    distance = np.linalg.norm(position, axis=1)
    orthogonality = np.abs(np.einsum('nij,nik->njk', rotation, rotation) - np.eye(3)).max((1, 2))
    facing = -np.einsum('ni,ni->n', rotation[:, :, 2], position)
    rules = (
        (~np.isfinite(labels).all(1), 'holds NaN or infinite numbers'),
        (
            np.abs(pose[:, 3] - [0, 0, 0, 1]).max(1) > 1e-4,
            'is not a camera-to-world matrix stored row by row (its last row must be 0 0 0 1; is it transposed?)',
        ),
        (orthogonality > 1e-2, 'has a rotation that is not orthonormal'),
        (np.linalg.det(rotation) < 0, 'has a left-handed rotation (determinant -1): one axis is flipped'),
        (
            (distance < radius[0]) | (distance > radius[1]),
            (
                f'puts the camera at an implausible distance (expected {radius[0]:g} to {radius[1]:g} from the origin; '
                'check the unit and that the matrix is camera-to-world)'
            ),
        ),
        (facing <= 0, 'looks away from the origin: the axes must be x right, y down, z forward (OpenCV, not OpenGL)'),
        (np.abs(k[:, 2] - [0, 0, 1]).max(1) > 1e-4, 'has intrinsics whose last row is not 0 0 1'),
        ((k[:, 0, 0] <= 0) | (k[:, 1, 1] <= 0), 'has a focal length that is not positive'),
        (
            (k[:, 0, 0] > 50) | (np.abs(k[:, :2, 2]) > 5).any(1),
            'has intrinsics in pixels; divide them by the image size (FFHQ has focal 4.2647, centre 0.5)',
        ),
    )
    with np.errstate(invalid='ignore'):
        for wrong, what in rules:
            if wrong.any():
                first = int(np.flatnonzero(wrong)[0])
                raise UserError(
                    f'{where}: the label of {names[first]} {what}; {int(wrong.sum())} of {len(names)} '
                    'labels have this fault'
                )


class Eg3dImages:
    """Random access to an EG3D folder or zip.

    Args:
        path: folder, or zip file.
        mirror: 'off'; 'images+labels' doubles the set with mirrored pictures and mirrored cameras; 'images' mirrors the
            pictures only, as EG3D's own loader does (wrong for camera labels, kept for comparison).
        max_size: largest number of pictures to keep, chosen by ``seed``.
        seed: see ``max_size``.
        use_labels: False gives zeros [25] and needs no ``dataset.json``.
        radius: plausible distances of the cameras from the origin.
    Raises:
        UserError: missing or damaged files, no pictures, wrong labels.
    """

    def __init__(
        self,
        path: str | Path,
        mirror: str = 'off',
        max_size: int | None = None,
        seed: int = 0,
        use_labels: bool = True,
        radius: tuple[float, float] = RADIUS_RANGE,
    ):
        if mirror not in MIRRORS:
            raise UserError(f'mirror={mirror!r}: unknown; use one of {", ".join(MIRRORS)}')
        if max_size is not None and max_size < 1:
            raise UserError(f'max_size={max_size}: must be at least 1')
        self.path, self.mirror = Path(path), mirror
        self._zip, self._lock = None, threading.Lock()
        if not self.path.is_dir() and not (self.path.is_file() and zipfile.is_zipfile(self.path)):
            raise UserError(f'{path}: no such folder, or not a zip file')
        self._entries = self._found()
        names = sorted(n for n in self._entries if PurePosixPath(n).suffix.lower() in EXTENSIONS)
        if not names:
            raise UserError(f'{path}: holds no pictures ({", ".join(EXTENSIONS)})')
        labels = self._labels(names, radius) if use_labels else np.zeros((len(names), 25), np.float32)
        if max_size is not None and max_size < len(names):
            order = np.arange(len(names))
            np.random.RandomState(seed % 2**31).shuffle(order)
            keep = np.sort(order[:max_size])
            names, labels = [names[i] for i in keep], labels[keep]
        self.names, self.labels = names, labels
        self.resolution = self._decode(names[0]).shape[0]

    def _list(self) -> list[str]:
        if self.path.is_dir():
            found = (Path(folder, f) for folder, _, files in os.walk(self.path) for f in files)
            return [p.relative_to(self.path).as_posix() for p in found]
        return self._archive().namelist()

    def _found(self) -> dict[str, str]:
        """Name in the set -> name in the folder or zip: without what macOS adds, and below the set's own folder."""
        clean = {n.replace('\\', '/'): n for n in self._list()}
        clean = {
            n: original
            for n, original in clean.items()
            if not any(part == '__MACOSX' or part.startswith('._') for part in n.split('/'))
        }
        if TABLE in clean:
            return clean
        tables = sorted(n for n in clean if n.endswith('/' + TABLE))
        if len(tables) > 1:
            raise UserError(
                f'{self.path}: holds {len(tables)} data sets ({tables[0]}, {tables[1]}, ...); unpack it, and give one'
            )
        within = tables[0].removesuffix(TABLE) if tables else ''  # a zip of the folder instead of what is in it
        return {n.removeprefix(within): original for n, original in clean.items() if n.startswith(within)}

    def _archive(self) -> zipfile.ZipFile:
        if self._zip is None:
            self._zip = zipfile.ZipFile(self.path)
        return self._zip

    def _read(self, name: str) -> bytes:
        try:
            if self.path.is_dir():
                return (self.path / self._entries[name]).read_bytes()
            with self._lock:
                return self._archive().read(self._entries[name])
        except (OSError, KeyError, zipfile.BadZipFile, RuntimeError) as e:  # the last: encrypted, unknown packing
            raise UserError(f'{self.path}: cannot read {name} ({e})') from e

    def _labels(self, names: list[str], radius: tuple[float, float]) -> np.ndarray:
        where = f'{self.path}/{TABLE}'
        try:
            table = json.loads(self._read(TABLE))['labels']
        except UserError:
            raise UserError(
                f'{where}: missing, also in the folders below; camera labels are needed (or pass use_labels=False)'
            ) from None
        except (ValueError, KeyError, TypeError) as e:
            raise UserError(f'{where}: not of the form {{"labels": [[file, [25 numbers]], ...]}} ({e})') from e
        if table is None:
            raise UserError(f'{where}: "labels" is null; camera labels are needed (or pass use_labels=False)')
        rows = {}
        for entry in table:
            try:
                name, numbers = entry
                vector = np.asarray(numbers, np.float32)
            except (ValueError, TypeError) as e:
                raise UserError(f'{where}: entry {str(entry)[:60]} is not [file, [25 numbers]]') from e
            if vector.shape != (25,):
                raise UserError(f'{where}: the label of {name} has {vector.size} numbers instead of 25')
            rows[name.replace('\\', '/').removeprefix('./')] = vector
        # The table, too, may count from outside of the set's own folder.
        rows |= {n: rows[o] for n in names if n not in rows and (o := self._entries[n].replace('\\', '/')) in rows}
        missing = [n for n in names if n not in rows]
        if missing:
            raise UserError(f'{where}: no label for {missing[0]} ({len(missing)} of {len(names)} pictures have none)')
        labels = np.stack([rows[n] for n in names])
        check_labels(labels, names, radius, where)
        return labels

    def _decode(self, name: str) -> np.ndarray:
        image = decode_image(self._read(name), f'{self.path}: {name}').pixels
        size = getattr(self, 'resolution', image.shape[0])
        if image.shape[:2] != (size, size):
            raise UserError(
                f'{self.path}: {name} is {image.shape[1]} x {image.shape[0]} pixels; all pictures must be '
                f'square and of one size ({size} x {size})'
            )
        return image

    def all_labels(self) -> np.ndarray:
        """Labels of all pictures, mirrored ones included: [N,25]."""
        if self.mirror == 'off':
            return self.labels
        other = mirror_label(self.labels) if self.mirror == 'images+labels' else self.labels
        return np.concatenate([self.labels, other]).astype(np.float32)

    def fingerprint(self) -> str:
        """Changes when names, sizes, checksums (of a zip) or labels do; no picture is read."""
        import hashlib

        found = hashlib.sha256(self.all_labels().tobytes())
        for name in self.names:
            if self.path.is_dir():
                found.update(
                    f'{name} {(self.path / self._entries[name]).stat().st_size}'.encode('utf-8', 'surrogateescape')
                )
            else:
                entry = self._archive().getinfo(self._entries[name])
                found.update(f'{name} {entry.file_size} {entry.CRC}'.encode('utf-8', 'surrogateescape'))
        return found.hexdigest()[:16]

    def __getstate__(self):
        return {**self.__dict__, '_zip': None, '_lock': None}

    def __setstate__(self, state):
        self.__dict__.update(state)
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self.names) * (1 if self.mirror == 'off' else 2)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        if not 0 <= index < len(self):
            raise IndexError(f'picture {index} of {len(self)}')
        flip, k = divmod(int(index), len(self.names))
        image, label = self._decode(self.names[k]), self.labels[k]
        if flip:
            image = image[:, ::-1]
            label = mirror_label(label) if self.mirror == 'images+labels' else label
        return {'image': np.ascontiguousarray(image), 'label': np.asarray(label, np.float32)}


class _Shuffled:
    """Position -> element of an image source in an endless shuffled order, image as float in [-1,1] or as bytes."""

    def __init__(self, source, seed: int, as_bytes: bool = False):
        self.source, self._order, self._as_bytes = source, Order(len(source), seed, 'images'), as_bytes

    def __call__(self, position: int) -> dict[str, np.ndarray]:
        row = self.source[self._order[position]]
        image = row['image'] if self._as_bytes else row['image'].astype(np.float32) / 127.5 - 1.0
        return {'image': image, 'label': np.asarray(row['label'], np.float32)}


def image_batches(
    source,
    batch_size: int,
    seed: int = 0,
    start_step: int = 0,
    process_index: int = 0,
    process_count: int = 1,
    num_workers: int = 0,
    num_threads: int = 2,
    prefetch: int = 16,
    as_bytes: bool = False,
) -> Batches:
    """Endless shuffled batches of single pictures: ``image`` [B,H,W,3] float32 in [-1,1], ``label`` [B,25].

    Args:
        source: ``Eg3dImages``, or any source of ``data_pipelines.sources``.
        batch_size, start_step, process_index, process_count, num_workers, num_threads, prefetch: see
            ``data_pipelines.stream.Batches``.
        seed: decides the order.
        as_bytes: ``image`` is uint8 instead.
    Raises:
        UserError: fewer pictures than processes, or a batch that does not divide.
    """
    if len(source) < process_count:
        raise UserError(f'data set: {len(source)} pictures are too few for {process_count} processes')
    return Batches(
        _Shuffled(source, seed, as_bytes),
        batch_size,
        start_step,
        process_index,
        process_count,
        num_workers,
        num_threads,
        prefetch,
    )


def write_eg3d(destination: str | Path, pictures: Iterable[tuple[np.ndarray, np.ndarray]]) -> Path:
    """Writes pictures [H,W,3] uint8 with labels [25] as an EG3D folder, or as a zip if the name ends in ``.zip``.

    Nothing appears under the final name before everything is written. PNG without compression, zip entries stored,
    as EG3D's own tool makes them.

    Raises:
        UserError: the destination exists, cannot be written, nothing was given, sizes differ, or a label is wrong.
    """
    destination = Path(destination)
    if destination.exists():
        raise UserError(f'{destination}: exists already; choose another name')
    temporary = destination.with_name(f'.{destination.name}.{os.getpid()}.tmp')
    try:
        destination.parent.mkdir(parents=True, exist_ok=True)
        put, close = _writer(temporary, destination.suffix == '.zip')
        try:
            _write_all(put, pictures, destination)
        finally:
            close()
        os.replace(temporary, destination)
    except OSError as e:
        raise UserError(
            f'{destination}: cannot write ({e.strerror or e}); free some space or choose another place'
        ) from e
    finally:
        _remove(temporary)
    return destination


def _write_all(put, pictures: Iterable, destination: Path) -> None:
    from PIL import Image

    table, labels, names, size = [], [], [], None
    for i, (image, label) in enumerate(pictures):
        size = image.shape if size is None else size
        if image.shape != size or size[0] != size[1] or size[2:] != (3,) or image.dtype != np.uint8:
            raise UserError(
                f'{destination}: picture {i} is {image.shape} {image.dtype}; all must be square RGB uint8 of one size'
            )
        if np.shape(label) != (25,):
            raise UserError(f'{destination}: the label of picture {i} has {np.size(label)} numbers instead of 25')
        name = f'{i:08d}'[:5] + f'/img{i:08d}.png'
        data = io.BytesIO()
        Image.fromarray(image).save(data, 'PNG', compress_level=0)
        put(name, data.getvalue())
        table.append([name, [float(x) for x in label]])
        labels.append(np.asarray(label, np.float32))
        names.append(name)
    if not names:
        raise UserError(f'{destination}: no pictures were given')
    check_labels(np.stack(labels), names, where=str(destination))
    put('dataset.json', json.dumps({'labels': table}).encode())


def _writer(path: Path, as_zip: bool):
    if as_zip:
        archive = zipfile.ZipFile(path, 'w', zipfile.ZIP_STORED)

        def put(name: str, data: bytes) -> None:
            archive.writestr(zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0)), data)  # no clock: same input, same file

        return put, archive.close

    def put_file(name: str, data: bytes) -> None:
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(data)

    return put_file, lambda: None


def _remove(path: Path) -> None:
    import shutil

    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def main(argv: list[str] | None = None) -> int:
    """Checks a folder or zip completely and says what is in it; exit status 2 when something is wrong."""
    import argparse

    from tqdm import tqdm

    parser = argparse.ArgumentParser(
        prog='python -m data_pipelines.eg3d_images',
        description='Checks an EG3D folder or zip: labels and every picture.',
    )
    parser.add_argument('path', type=Path, metavar='PATH', help='folder or zip with dataset.json')
    path = parser.parse_args(argv).path
    try:
        reader = Eg3dImages(path)
        for i in tqdm(range(len(reader)), desc='pictures', file=Console(), disable=None):
            reader[i]
    except UserError as e:
        print(f'error: {e}', file=sys.stderr)
        return 2
    angle, _ = pose_from_label(reader.labels.astype(np.float64))
    radius = np.linalg.norm(reader.labels[:, [3, 7, 11]], axis=1)
    low, high = np.rad2deg(angle).min(0), np.rad2deg(angle).max(0)
    print(
        f'{path}: {len(reader)} pictures of {reader.resolution} x {reader.resolution}; camera distance '
        f'{radius.min():.2f} to {radius.max():.2f}, yaw {low[1]:.0f} to {high[1]:.0f} and pitch {low[0]:.0f} to '
        f'{high[0]:.0f} degrees, focal {reader.labels[:, 16].min():.3f} to {reader.labels[:, 16].max():.3f}'
    )
    return 0


if __name__ == '__main__':
    sys.exit(main())
