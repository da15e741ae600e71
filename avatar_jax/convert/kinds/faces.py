"""Face models: the front form of BFM-2009 and its raw files, FLAME, and the folder of ICT-FaceKit."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from avatar_jax.convert.kinds import ict_folder
from avatar_jax.convert.kinds.base import Kind, Plan, Source, under
from avatar_jax.convert.report import Report
from avatar_jax.errors import UserError
from avatar_jax.faces.bfm import BFM
from avatar_jax.faces.bfm import KEYS as BFM_KEYS
from avatar_jax.faces.bfm_transfer import parse_expression_pca, transfer
from avatar_jax.faces.flame import FLAME
from avatar_jax.faces.flame import METHOD as FLAME_METHOD
from avatar_jax.faces.flame import MODEL_KEYS as FLAME_KEYS
from avatar_jax.io.foreign import RawFile, read
from avatar_jax.io.inputs import file_sha256

BFM_METHOD, ICT_METHOD = 'bfm2009_front', 'ict_facekit'
_MORPHABLE = ('shapePC', 'shapeEV', 'shapeMU', 'texPC', 'texEV', 'texMU')
_TOPOLOGY = ('tri', 'point_buf', 'tri_mask2', 'frontmask2_idx', 'skinmask', 'keypoints')
_RAW_FILES = ('Exp_Pca.bin', 'std_exp.txt', 'BFM_front_idx.mat', 'BFM_exp_idx.mat', 'facemodel_info.mat')
_EMBEDDINGS = {
    'landmark_embedding': tuple(
        f'{k}_{part}' for k in ('static_lmk', 'dynamic_lmk', 'full_lmk') for part in ('faces_idx', 'bary_coords')
    ),
    'mediapipe_landmark_embedding': ('lmk_face_idx', 'lmk_b_coords', 'landmark_indices'),
}
Arrays = dict[str, np.ndarray]


def arrays_tree(flat: Arrays) -> dict[str, Any]:
    """Variables of a face model: the arrays under their original names."""
    return {'arrays': {k: np.ascontiguousarray(v) for k, v in flat.items()}}


def _stored(value: np.ndarray) -> np.ndarray:
    """Numbers as float32, indices as integers."""
    if value.dtype.kind == 'f':
        return value.astype(np.float32)
    return value.astype(np.int64) if value.dtype.kind in 'iu' else value


def _record(
    report: Report,
    place: str,
    arrays: Mapping[str, np.ndarray],
    keys: tuple[str, ...],
    file: str,
    unused: Mapping[str, str],
) -> None:
    for key in arrays:
        if key in keys:
            report.mapped[place + key] = f'{file}: arrays.{key}'
        elif key in unused:
            report.unused[place + key] = unused[key]
        else:
            report.unexpected[place + key] = ''
    report.missing += [place + key for key in keys if key not in arrays]


def _containing(*keys: str):
    def find(tensors: Mapping[str, np.ndarray]) -> list[str]:
        found = []
        for name in tensors:
            prefix = name.removesuffix(keys[0])
            if name.endswith(keys[0]) and (not prefix or prefix[-1] in './'):
                found += [prefix] if all(prefix + k in tensors for k in keys) else []
        return found

    return find


# ------------------------------------------------------------------------------------------------------------ BFM-2009


def _plan_bfm(source: Source, report: Report) -> list[Plan]:
    arrays, file = source.flat(), f'{BFM_METHOD}.safetensors'
    _record(report, source.places[''], arrays, BFM_KEYS, file, {'frontmask2': 'the same region as frontmask2_idx'})
    kept = {k: _stored(arrays[k]) for k in BFM_KEYS if k in arrays}
    if not report.missing:
        BFM.from_arrays(kept, source=str(source.raw.path))  # raises if shapes do not fit
    return [Plan(file, BFM_METHOD, {}, kept, arrays_tree)]


def _plan_bfm_raw(source: Source, report: Report) -> list[Plan]:
    folder, file = source.raw.path.parent, f'{BFM_METHOD}.safetensors'
    lacking = [name for name in _RAW_FILES if not (folder / name).is_file()]
    if lacking:
        raise UserError(f'{source.raw.path}: the front model also needs {", ".join(lacking)}; put them beside it')
    raw = source.flat()
    _record(
        report,
        source.places[''],
        raw,
        _MORPHABLE,
        file,
        dict.fromkeys(('tl', 'segbin', 'segMM', 'segMB'), 'not part of the front model'),
    )
    read_beside = {name: _beside(folder / name, report) for name in _RAW_FILES if name.endswith('.mat')}
    trim = _entry(read_beside['BFM_exp_idx.mat'], 'trimIndex')
    try:
        deviations = np.array((folder / 'std_exp.txt').read_text(encoding='utf-8').split(), np.float64)
    except (ValueError, OSError) as error:
        raise UserError(f'{folder / "std_exp.txt"}: is no list of numbers; get it again') from error
    report.notes.append(f'std_exp.txt, sha256 {file_sha256(folder / "std_exp.txt")}')
    report.notes.append(f'Exp_Pca.bin, sha256 {file_sha256(folder / "Exp_Pca.bin")}')
    expression = parse_expression_pca((folder / 'Exp_Pca.bin').read_bytes(), trim.size, str(folder / 'Exp_Pca.bin'))
    if report.missing:
        return []
    try:
        arrays = transfer(raw, expression, deviations, _entry(read_beside['BFM_front_idx.mat'], 'idx'), trim)
    except (ValueError, IndexError) as error:
        raise UserError(f'{source.raw.path}: does not fit the files beside it ({error})') from error
    info = read_beside['facemodel_info.mat']
    arrays |= {k: _stored(_entry(info, k)) for k in _TOPOLOGY}
    BFM.from_arrays(arrays, source=str(source.raw.path))
    return [Plan(file, BFM_METHOD, {}, arrays, arrays_tree)]


def _beside(path: Path, report: Report) -> RawFile:
    raw = read(path)
    report.notes.append(f'{path.name}, sha256 {raw.sha256}')
    return raw


def _entry(raw: RawFile, key: str) -> np.ndarray:
    if key not in raw.tensors:
        raise UserError(f'{raw.path}: missing {key}; the file is damaged or another one')
    return raw.tensors[key]


# --------------------------------------------------------------------------------------------------------------- FLAME


def _find_flame(tensors: Mapping[str, np.ndarray]) -> list[str]:
    prefixes = _containing('v_template', 'shapedirs', 'J_regressor', 'weights')(tensors)
    # Bodies and hands of the same family have other numbers of joints.
    return [p for p in prefixes if tensors[p + 'weights'].ndim == 2 and tensors[p + 'weights'].shape[1] == 5]


_FLAME_UNUSED = {
    'J': 'the rest joints of the mean head, which J_regressor gives',
    'bs_style': 'a description',
    'bs_type': 'a description',
}


def _plan_flame(source: Source, report: Report) -> list[Plan]:
    file, place = 'flame.safetensors', source.places['']
    arrays = source.flat()
    inside = [key for keys in _EMBEDDINGS.values() for key in keys]
    own = {k: v for k, v in arrays.items() if k not in inside}
    _record(report, place, own, FLAME_KEYS, file, _FLAME_UNUSED)
    kept = {k: own[k] for k in FLAME_KEYS if k in own}
    for name, keys in _EMBEDDINGS.items():
        kept |= _embedding(source, report, name, keys, file)
    kept = {k: _stored(v) for k, v in kept.items()}
    if not report.missing:
        FLAME.from_arrays(kept, str(source.raw.path))  # raises if shapes do not fit
    return [Plan(file, FLAME_METHOD, {}, kept, arrays_tree)]


def _embedding(source: Source, report: Report, name: str, keys: tuple[str, ...], file: str) -> Arrays:
    """A landmark embedding: in the file itself, or in one beside it."""
    tensors, label = source.raw.tensors, ''
    places = ['', source.places[''], 'lmk_embeddings/' if name[0] == 'l' else 'lmk_embeddings_mediapipe/']
    place = next((p for p in places if p + keys[0] in tensors), None)
    if place is None:
        path = next(
            (p for end in ('npy', 'npz', 'pkl') if (p := source.raw.path.parent / f'{name}.{end}').is_file()), None
        )
        if path is None:
            report.notes.append(f'no {name} beside the file: landmarks that need it are not available')
            return {}
        raw = _beside(path, report)
        tensors, label = {k.rpartition('/')[2]: v for k, v in raw.tensors.items()}, f'{path.name}:'
        place = ''
    found = {k: v for k, v in under(tensors, place).items() if label or k in keys}
    _record(report, label + place, found, keys, file, {})
    return {k: np.asarray(found[k]) for k in keys if k in found}


# ------------------------------------------------------------------------------------------------------- ICT-FaceKit


def _find_ict(tensors: Mapping[str, np.ndarray]) -> list[str]:
    keys = ('identity_deltas', 'expression_deltas', 'landmarks68', 'region_vertex_range')
    return _containing(*keys)(tensors)


def _plan_ict(source: Source, report: Report) -> list[Plan]:
    file = f'{ICT_METHOD}.safetensors'
    arrays, names = source.flat(), dict(source.hint.get('names', {}))
    for key in [k for k, v in arrays.items() if v.dtype.kind == 'U']:
        names[key] = [str(v) for v in arrays[key].reshape(-1)]
        report.mapped[source.places[''] + key] = f'{file}: names of the configuration'
        del arrays[key]
    lacking = [k for k in (*ict_folder.ARRAYS, *ict_folder.NAMES) if k not in arrays and k not in names]
    for key in arrays:
        report.mapped[source.places[''] + key] = f'{file}: arrays.{key}'
    report.missing += lacking
    return [Plan(file, ICT_METHOD, {'names': names}, {k: _stored(v) for k, v in arrays.items()}, arrays_tree)]


FACES = (
    Kind(
        'bfm2009-front',
        'BFM-2009 front model (BFM_model_front.mat)',
        _containing('idBase', 'exBase', 'meanshape'),
        _plan_bfm,
    ),
    Kind('bfm2009', 'raw Basel Face Model 2009 (01_MorphableModel.mat)', _containing(*_MORPHABLE), _plan_bfm_raw),
    Kind('flame', 'FLAME (generic_model.pkl)', _find_flame, _plan_flame),
    Kind('ict', 'ICT-FaceKit (its folder of OBJ files, or the packed arrays)', _find_ict, _plan_ict),
)
