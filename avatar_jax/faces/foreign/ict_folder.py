"""ICT-FaceKit as it is distributed: one Wavefront OBJ file per shape and a table of vertex ids.

The light model's division into regions is not in the files; it is known for its 26,719 vertices.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from avatar_jax.errors import UserError
from avatar_jax.io.foreign import RawFile
from avatar_jax.io.inputs import input_file

NEUTRAL, TABLE = 'generic_neutral_mesh.obj', 'vertex_indices.json'
EXTRA = ('cheekRaiser_L', 'cheekRaiser_R', 'PupilDilate_L', 'PupilDilate_R')
ARRAYS = (
    'vertices',
    'faces',
    'identity_deltas',
    'expression_deltas',
    'extra_deltas',
    'landmarks68',
    'region_vertex_range',
    'region_face_range',
)
NAMES = ('expression_names', 'extra_names', 'region_names')
_LIMIT = 64 << 20  # bytes of one text file


@dataclass(frozen=True)
class Layout:
    """What is known about a version of the model: counts, and half-open ranges of vertices and polygons per region."""

    vertices: int
    polygons: int
    identities: int
    expressions: int
    regions: tuple[tuple[str, int, int], ...]  # name, end of its vertices, end of its polygons

    def ranges(self) -> tuple[np.ndarray, np.ndarray]:
        """[R, 2] of vertices and of polygons."""
        ends = np.array([(v, p) for _, v, p in self.regions])
        starts = np.vstack([[0, 0], ends[:-1]])
        return np.stack([starts[:, 0], ends[:, 0]], 1), np.stack([starts[:, 1], ends[:, 1]], 1)


LIGHT = Layout(
    26719,
    26384,
    100,
    53,
    (
        ('face', 9409, 9230),
        ('head_and_neck', 11248, 11144),
        ('mouth_socket', 13294, 13226),
        ('eye_socket_left', 13678, 13630),
        ('eye_socket_right', 14062, 14034),
        ('gums_and_tongue', 17039, 17006),
        ('teeth', 21451, 21496),
        ('eyeball_left', 23021, 23094),
        ('eyeball_right', 24591, 24692),
        ('lacrimal_fluid_left', 24795, 24855),
        ('lacrimal_fluid_right', 24999, 25018),
        ('eye_blend_left', 25023, 25033),
        ('eye_blend_right', 25047, 25048),
        ('eye_occlusion_left', 25199, 25176),
        ('eye_occlusion_right', 25351, 25304),
        ('eyelashes_left', 26035, 25844),
        ('eyelashes_right', 26719, 26384),
    ),
)


def is_folder(path: Path) -> bool:
    """Whether a folder is the distribution's."""
    return (path / NEUTRAL).is_file()


def read_folder(path: Path, layout: Layout = LIGHT) -> RawFile:
    """All shapes of the folder, under the names of the packed form.

    Raises:
        UserError: files are missing, damaged, or of another version of the model.
    """
    digest, size = hashlib.sha256(), 0
    if not is_folder(path):
        raise UserError(f'{path}: is a folder without {NEUTRAL}; give a file, or the folder of ICT-FaceKit')

    def text(file: Path) -> str:
        nonlocal size
        content = _text(file)
        digest.update(file.name.encode('utf-8', 'surrogateescape') + b'\0' + content)
        size += len(content)
        return content.decode('utf-8', 'replace')

    neutral = vertices_of(text(path / NEUTRAL), path / NEUTRAL)
    if len(neutral) != layout.vertices:
        raise UserError(
            f'{path}: the mesh has {len(neutral)} vertices, the light model {layout.vertices}; '
            'other versions are not supported'
        )
    polygons = polygons_of(text(path / NEUTRAL), path / NEUTRAL, len(neutral))
    if len(polygons) != layout.polygons:
        raise UserError(f'{path / NEUTRAL}: has {len(polygons)} polygons, the light model {layout.polygons}')
    try:
        table = json.loads(text(path / TABLE))
        landmarks = np.array(table['idx_to_landmark_verts'], np.int64)
        expressions = [str(name) for name in table['expressions']]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(f'{path / TABLE}: is not the table of ICT-FaceKit ({error})') from error
    if landmarks.shape != (68,) or landmarks.min() < 0 or landmarks.max() >= len(neutral):
        raise UserError(f'{path / TABLE}: idx_to_landmark_verts are not 68 vertices of the mesh')
    if len(expressions) != layout.expressions or any(Path(name).name != name for name in expressions):
        raise UserError(
            f'{path / TABLE}: names {len(expressions)} expressions, the light model has {layout.expressions}'
        )

    def deltas(names: list[str]) -> np.ndarray:
        out = np.zeros((len(names), *neutral.shape), np.float32)
        for i, name in enumerate(names):
            shape = vertices_of(text(path / f'{name}.obj'), path / f'{name}.obj')
            if shape.shape != neutral.shape:
                raise UserError(f'{path / name}.obj: has {len(shape)} vertices, the neutral mesh {len(neutral)}')
            out[i] = shape - neutral
        return out

    extra = [name for name in EXTRA if (path / f'{name}.obj').is_file()]
    faces, owner = fan(polygons)
    vertex_range, polygon_range = layout.ranges()
    tensors = {
        'vertices': neutral.astype(np.float32),
        'faces': faces,
        'landmarks68': landmarks,
        'identity_deltas': deltas([f'identity{i:03d}' for i in range(layout.identities)]),
        'expression_deltas': deltas(expressions),
        'extra_deltas': deltas(extra),
        'region_vertex_range': vertex_range,
        'region_polygon_range': polygon_range,
        'region_face_range': np.searchsorted(owner, polygon_range),
        'polygon_of_face': owner,
        'expression_names': np.array(expressions),
        'extra_names': np.array(extra, str),
        'region_names': np.array([name for name, _, _ in layout.regions]),
    }
    return RawFile(path, 'ict-folder', tensors, dict(tensors), sha256=digest.hexdigest(), size=size)


def _text(path: Path) -> bytes:
    path = input_file(path)
    if path.stat().st_size > _LIMIT:
        raise UserError(f'{path}: has {path.stat().st_size} bytes, far more than a mesh of this model; get it again')
    return path.read_bytes()


def vertices_of(text: str, path: Path) -> np.ndarray:
    """[V, 3] float64 of an OBJ file. Raises ``UserError`` if it is damaged."""
    rows = [line[2:] for line in text.splitlines() if line.startswith('v ')]
    try:
        numbers = np.array(' '.join(rows).split(), np.float64)
        points = numbers.reshape(len(rows), -1)[:, :3] if rows else numbers.reshape(0, 3)
    except ValueError as error:
        raise UserError(f'{path}: its vertices are no numbers; the file is damaged') from error
    if points.shape[1] != 3 or not len(points) or not np.isfinite(points).all():
        raise UserError(f'{path}: has no complete vertices; the file is damaged')
    return points


def polygons_of(text: str, path: Path, vertices: int) -> list[list[int]]:
    """0-based corners of the polygons of an OBJ file. Raises ``UserError`` if it is damaged."""
    out = []
    for line in text.splitlines():
        if line.startswith('f '):
            try:
                corners = [int(corner.split('/')[0]) - 1 for corner in line[2:].split()]
            except ValueError as error:
                raise UserError(f'{path}: a polygon is damaged: {line[:40]!r}') from error
            if len(corners) < 3 or min(corners) < 0 or max(corners) >= vertices:
                raise UserError(f'{path}: a polygon refers to vertices that do not exist: {line[:40]!r}')
            out.append(corners)
    return out


def fan(polygons: list[list[int]]) -> tuple[np.ndarray, np.ndarray]:
    """Triangles [F, 3] of polygons, as a fan from the first corner, and the polygon [F] of each."""
    faces = [(p[0], p[i], p[i + 1]) for p in polygons for i in range(1, len(p) - 1)]
    owner = [k for k, p in enumerate(polygons) for _ in range(1, len(p) - 1)]
    return np.array(faces, np.int64).reshape(-1, 3), np.array(owner, np.int64)
