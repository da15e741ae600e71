"""BFM-2009: the front model, and the raw files that it is made of."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from avatar_jax.convert.base import ForeignFile, ForeignNetwork, NewWeights
from avatar_jax.convert.comparison import GEOMETRY, Verification
from avatar_jax.convert.report import Report
from avatar_jax.errors import UserError
from avatar_jax.faces.bfm import BFM, KEYS, METHOD, FaceCamera
from avatar_jax.faces.bfm_transfer import parse_expression_pca, transfer
from avatar_jax.faces.foreign.arrays import arrays_tree, beside, containing, entry, original_arrays, record, stored
from avatar_jax.io.inputs import file_sha256

FILE = f'{METHOD}.safetensors'
_MORPHABLE = ('shapePC', 'shapeEV', 'shapeMU', 'texPC', 'texEV', 'texMU')
_TOPOLOGY = ('tri', 'point_buf', 'tri_mask2', 'frontmask2_idx', 'skinmask', 'keypoints')
_RAW_FILES = ('Exp_Pca.bin', 'std_exp.txt', 'BFM_front_idx.mat', 'BFM_exp_idx.mat', 'facemodel_info.mat')


def _plan(source: ForeignNetwork, report: Report) -> list[NewWeights]:
    arrays = source.flat()
    record(report, source.places[''], arrays, KEYS, FILE, {'frontmask2': 'the same region as frontmask2_idx'})
    kept = {k: stored(arrays[k]) for k in KEYS if k in arrays}
    if not report.missing:
        BFM.from_arrays(kept, source=str(source.raw.path))  # raises if shapes do not fit
    return [NewWeights(FILE, METHOD, {}, kept, arrays_tree)]


def _plan_raw(source: ForeignNetwork, report: Report) -> list[NewWeights]:
    folder = source.raw.path.parent
    lacking = [name for name in _RAW_FILES if not (folder / name).is_file()]
    if lacking:
        raise UserError(f'{source.raw.path}: the front model also needs {", ".join(lacking)}; put them beside it')
    raw = source.flat()
    record(
        report,
        source.places[''],
        raw,
        _MORPHABLE,
        FILE,
        dict.fromkeys(('tl', 'segbin', 'segMM', 'segMB'), 'not part of the front model'),
    )
    read_beside = {name: beside(folder / name, report) for name in _RAW_FILES if name.endswith('.mat')}
    trim = entry(read_beside['BFM_exp_idx.mat'], 'trimIndex')
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
        arrays = transfer(raw, expression, deviations, entry(read_beside['BFM_front_idx.mat'], 'idx'), trim)
    except (ValueError, IndexError) as error:
        raise UserError(f'{source.raw.path}: does not fit the files beside it ({error})') from error
    info = read_beside['facemodel_info.mat']
    arrays |= {k: stored(entry(info, k)) for k in _TOPOLOGY}
    BFM.from_arrays(arrays, source=str(source.raw.path))
    return [NewWeights(FILE, METHOD, {}, arrays, arrays_tree)]


def _compare(run: Verification) -> None:
    golden, cfg = run.golden, run.golden.config
    weights = run.find(METHOD)
    run.weights(original_arrays(weights))
    model = BFM.from_arrays(weights.variables['arrays'], recenter=cfg.get('recenter', True), source=str(weights.path))
    usual = FaceCamera()
    camera = FaceCamera(
        cfg.get('focal', usual.focal),
        cfg.get('center', usual.center),
        cfg.get('camera_distance', usual.distance),
        tuple(cfg.get('init_lit', usual.initial_light)),
    )
    face = jax.jit(lambda m, c: m.reconstruct(c, camera))(model, jnp.asarray(golden.inp['coeffs']))
    run.compare('mean_shape_recentred', model.mean_shape, GEOMETRY)
    for name in (
        'shape',
        'rotation',
        'transformed',
        'vertex',
        'texture',
        'normal',
        'normal_rotated',
        'color',
        'projected',
        'landmark',
    ):
        run.compare(name, getattr(face, name), GEOMETRY)


FOREIGN = (
    ForeignFile(
        'bfm2009-front',
        'BFM-2009 front model (BFM_model_front.mat)',
        METHOD,
        containing('idBase', 'exBase', 'meanshape'),
        _plan,
        export=original_arrays,
        verify={'bfm': _compare},
    ),
    ForeignFile(
        'bfm2009',
        'raw Basel Face Model 2009 (01_MorphableModel.mat)',
        METHOD,
        containing(*_MORPHABLE),
        _plan_raw,
        export=None,  # the front model is a part of it
    ),
)
