"""Frames that were tracked for GPAvatar: pictures in an LMDB environment, FLAME numbers in ``dataset.pkl``.

    source = GPAvatarFrames('datasets/vfhq', 'train')
    item = source[0]        # image, shape, expression, pose, transform, ...

A frame is named ``PREFIX_VIDEO_NUMBER``; frames of one video belong together. The pickle is read without running
anything in it and kept beside it in a quick form (``dataset.records.npz``) where the folder can be written to.
"""

from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path
from typing import Any

import numpy as np

from avatar_jax.driving.bases import FLAME, FLAME_EXPRESSION, FLAME_JAW, WIDTH
from avatar_jax.errors import UserError
from avatar_jax.faces.camera_labels import intrinsics, make_label, pose_matrix
from avatar_jax.faces.conventions import Conventions
from avatar_jax.faces.pose import euler_angles
from avatar_jax.io import atomic
from avatar_jax.io.inputs import file_sha256, input_file
from avatar_jax.io.text import decode
from avatar_jax.types import Motion
from data_pipelines.lmdb_files import LmdbFile
from data_pipelines.tables import ClipTable

SPLITS = ('train', 'val', 'test')
SPLIT_NAMES = {'validation': 'val'}
FIELDS = {
    'bbox': (4,),
    'kps': (5, 2),
    'mica_shape': (100,),
    'emoca_expression': (50,),
    'emoca_pose': (6,),
    'transform_matrix': (3, 4),
}
CAMERA = {'flame_scale': 5.0, 'focal_length': 12.0, 'principal_point': [0.0, 0.0]}
FPS = 25.0
_MANY = 200  # times as many values as a file of weights: some thirty for each of a quarter of a million frames
# PyTorch3D's camera axes (left, up, into the picture) to the viewer's (right, up, towards the viewer).
_VIEWER = np.diag([-1.0, 1.0, -1.0])
_CAMERA = np.array([-1.0, -1.0, 1.0])  # to OpenCV's axes, applied to matrix columns
CUBE = 2.5  # units of the cube, which is five times FLAME, per unit of the labels' world


class GPAvatarFrames:
    """Frames of one split.

    ``source[i]`` is a dict: ``image`` [H,W,3] uint8, ``frame``, ``video`` (text), ``number``, and the tracked numbers
    ``bbox`` [4], ``kps`` [5,2], ``shape`` [100], ``expression`` [50], ``pose`` [6], ``transform`` [3,4].

    Args:
        folder: has ``dataset.pkl``, ``camera.json`` (optional) and the LMDB environment (in it or in a sub-folder).
        split: 'train', 'val' or 'test'.

    Raises:
        UserError: a part is missing or damaged.

    Attributes:
        videos: video name -> numbers of its items, in the order of the frames.
        camera: ``flame_scale``, ``focal_length``, ``principal_point``.
    """

    def __init__(self, folder: str | Path, split: str = 'train'):
        self.folder, self.split = Path(folder), split
        if split not in SPLITS:
            raise UserError(f'split {split!r}: unknown; use one of {", ".join(SPLITS)}')
        self.records = load_records(self.folder / 'dataset.pkl')
        if split not in self.records.splits:
            raise UserError(f'{folder}: dataset.pkl has no split {split!r}')
        self.index = np.array(sorted(self.records.splits[split], key=lambda i: _parts(self.records.names[i])), int)
        if not len(self.index):
            raise UserError(f'{folder}: the split {split!r} is empty')
        self.file = LmdbFile(_environment(self.folder))
        self.camera = _camera(self.folder / 'camera.json')
        self.videos: dict[str, list[int]] = {}
        for item, i in enumerate(self.index):
            self.videos.setdefault(_parts(self.records.names[i])[0], []).append(item)

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, item: int) -> dict[str, Any]:
        if not 0 <= item < len(self):
            raise IndexError(f'frame {item} of {len(self)}')
        i = self.index[item]
        name = self.records.names[i]
        video, number = _parts(name)
        a = self.records.arrays
        return {
            'image': self.file.picture(name),
            'frame': name,
            'video': video,
            'number': number,
            'bbox': a['bbox'][i],
            'kps': a['kps'][i],
            'shape': a['mica_shape'][i],
            'expression': a['emoca_expression'][i],
            'pose': a['emoca_pose'][i],
            'transform': a['transform_matrix'][i],
        }

    def sources(self, video: str, views: int = 1) -> list[int]:
        """Items that serve as inputs when a video is evaluated with 1 to 4 views: first; and last; middle; at 30 and
        60 %.
        """
        items = self.videos[video]
        last = len(items) - 1
        places = {
            1: [0],
            2: [0, last],
            3: [0, len(items) // 2, last],
            4: [0, int(0.3 * len(items)), int(0.6 * len(items)), last],
        }
        if views not in places:
            raise UserError(f'views={views}: evaluation takes 1 to 4')
        return [items[min(k, last)] for k in places[views]]

    def targets(self, video: str) -> list[int]:
        """Items that are generated: all, in 'test' without frames numbered 0."""
        return [
            k for k in self.videos[video] if self.split != 'test' or _parts(self.records.names[self.index[k]])[1] != 0
        ]

    def motion(self, video: str, fps: float = FPS) -> Motion:
        """The movement of a video in FLAME's basis. Translations are zero: crops are centred on the face.

        Raises:
            UserError: no such video.
        """
        if video not in self.videos:
            raise UserError(f'{self.folder}: {self.split} has no video {video!r}')
        rows = self.index[self.videos[video]]
        a = self.records.arrays
        expression = np.zeros((len(rows), WIDTH), np.float32)
        expression[:, FLAME_EXPRESSION] = a['emoca_expression'][rows]
        expression[:, FLAME_JAW] = a['emoca_pose'][rows, 3:]
        angle = euler_angles(a['transform_matrix'][rows, :, :3].astype(np.float64) @ _VIEWER).astype(np.float32)
        return Motion(expression, angle, np.zeros_like(angle), float(fps), FLAME, f'video {video}')


class GPAvatarClips:
    """The same frames as a source of clips (``data_pipelines.sources``): each video is a person, cameras are labels.

    Records have ``box`` [4], the enlarged face box relative to the picture, and ``shape`` [100], but no landmarks and
    no mask (``mask`` is full): the pictures lie over black already.
    """

    has_masks = False
    conventions = Conventions(FLAME, 'raw', 'black', 'frame', 100)

    def __init__(self, folder: str | Path, split: str = 'train'):
        self.frames = GPAvatarFrames(folder, SPLIT_NAMES.get(split, split))
        if any(self.frames.camera['principal_point']):
            raise UserError(
                f'{folder}: camera.json has a principal point that is not 0, 0; labels have it in the middle'
            )
        names, counts = list(self.frames.videos), np.array([len(v) for v in self.frames.videos.values()])
        motions = [self.frames.motion(name) for name in names]
        self.order = np.concatenate([self.frames.videos[name] for name in names])
        self.table = ClipTable(
            name=np.array(names),
            person=np.arange(len(names)),
            first=np.cumsum(counts) - counts,
            num_frames=counts,
            num_cameras=np.ones(len(names), int),
            motion=np.concatenate([np.concatenate([m.expression, m.angle, m.translation], 1) for m in motions]),
            fps=FPS,
            basis=FLAME,
        )

    def __len__(self) -> int:
        return len(self.order)

    def __getitem__(self, record: int) -> dict[str, np.ndarray]:
        item = self.frames[int(self.order[record])]
        return {
            'image': item['image'],
            'mask': np.full(item['image'].shape[:2], 255, np.uint8),
            'label': label_of(item['transform'], self.frames.camera['focal_length']),
            'box': item['bbox'],
            'shape': item['shape'],
        }


def label_of(transform: np.ndarray, focal: float) -> np.ndarray:
    """Camera label [25] of a world-to-camera transform [3,4] (PyTorch3D's axes, row vectors) and a focal length in half
    pictures, with the head's cube of side 2 scaled to the labels' world.
    """
    rotation, shift = np.asarray(transform, np.float64)[:, :3], np.asarray(transform, np.float64)[:, 3]
    pose = pose_matrix(rotation * _CAMERA, -(rotation @ shift) / CUBE)
    return make_label(pose, intrinsics(np.float64(focal / 2)))


class Records:
    """The table of all frames: ``names`` [N], ``arrays`` (the ``FIELDS``, [N,...] float32), ``splits`` -> row
    numbers.
    """

    def __init__(self, names: list[str], arrays: dict[str, np.ndarray], splits: dict[str, list[int]]):
        self.names, self.arrays, self.splits = names, arrays, splits


def load_records(path: str | Path) -> Records:
    """Reads ``dataset.pkl`` (or its quick form, if that was made from the same file).

    Raises:
        UserError: missing, damaged, something in it is no data, or a field is missing.
    """
    path = input_file(path)
    quick, digest = path.with_name('dataset.records.npz'), file_sha256(path)
    with contextlib.suppress(OSError, ValueError, KeyError, EOFError), np.load(quick, allow_pickle=False) as z:
        if str(z['sha256']) == digest:
            splits = {s: z[f'split/{s}'].tolist() for s in SPLITS if f'split/{s}' in z.files}
            return Records([str(n) for n in z['names']], {k: z[k] for k in FIELDS}, splits)
    records = _read_pickle(path)
    data = io.BytesIO()
    np.savez(
        data,
        sha256=digest,
        names=np.array(records.names),
        **records.arrays,
        **{f'split/{s}': np.array(v, int) for s, v in records.splits.items()},
    )
    with contextlib.suppress(OSError, UserError):  # a read-only folder: it is read anew next time
        atomic.write_bytes(quick, data.getvalue())
    return records


def _read_pickle(path: Path) -> Records:
    from avatar_jax.io.foreign import read
    from avatar_jax.progress import activity

    with activity(f'reading {path.name} (once)'):
        raw = read(path, many=_MANY)
    tree = raw.tree if isinstance(raw.tree, dict) else {}
    table, meta = tree.get('records'), tree.get('meta_info')
    if not isinstance(table, dict) or not isinstance(meta, dict) or not table:
        raise UserError(f"{path}: has no 'records' and 'meta_info'; is it the dataset.pkl of GPAvatar's preparation?")
    names = sorted(str(n) for n in table)
    arrays = {}
    for field, shape in FIELDS.items():
        out = np.zeros((len(names), *shape), np.float32)
        for i, name in enumerate(names):
            value = table[name].get(field) if isinstance(table[name], dict) else None
            value = np.asarray(value) if value is not None else None
            if value is None or value.dtype.kind not in 'fiu' or value.size != int(np.prod(shape)):
                raise UserError(f'{path}: {name} has no {field} of {int(np.prod(shape))} numbers; the data are damaged')
            out[i] = value.reshape(shape)
        if not np.isfinite(out).all():
            raise UserError(f'{path}: {field} has values that are not finite; the data are damaged')
        arrays[field] = out
    row = {n: i for i, n in enumerate(names)}
    splits = {}
    for split in SPLITS:
        frames = meta.get(split)
        if isinstance(frames, list | tuple):
            missing = [f for f in frames if f not in row]
            if missing:
                raise UserError(f'{path}: {split} lists {missing[0]!r}, which has no record; the data are incomplete')
            splits[split] = [row[f] for f in frames]
    for name in names:
        _parts(name, path)
    return Records(names, arrays, splits)


def _parts(name: str, path: Path | str = 'dataset.pkl') -> tuple[str, int]:
    """Video and number of a frame ``PREFIX_VIDEO_NUMBER``."""
    parts = name.split('_')
    if len(parts) < 3 or not parts[-1].isdigit():
        raise UserError(f'{path}: the frame {name!r} is not named PREFIX_VIDEO_NUMBER; the data are of another kind')
    return parts[1], int(parts[-1])


def _environment(folder: Path) -> Path:
    places = [folder, *sorted(p for p in folder.iterdir() if p.is_dir())]
    found = next((p for p in places if (p / 'data.mdb').is_file()), None)
    if found is None:
        raise UserError(f'{folder}: holds no LMDB environment (data.mdb); check that it was unpacked')
    return found


def _camera(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return dict(CAMERA)
    try:
        values = json.loads(decode(path.read_bytes()))
        return {
            'flame_scale': float(values['flame_scale']),
            'focal_length': float(values['focal_length']),
            'principal_point': [float(x) for x in values['principal_point']],
        }
    except (OSError, ValueError, KeyError, TypeError) as e:
        raise UserError(
            f'{path}: not of the form {{"flame_scale": ..., "focal_length": ..., "principal_point": [0, 0]}}'
        ) from e
