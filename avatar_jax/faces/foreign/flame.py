"""FLAME: the model, with its landmark embeddings in the same file or beside it."""

from __future__ import annotations

from collections.abc import Mapping

import jax.numpy as jnp
import numpy as np

from avatar_jax.convert.base import ForeignFile, ForeignNetwork, NewWeights, under
from avatar_jax.convert.comparison import GEOMETRY, Verification
from avatar_jax.convert.report import Report
from avatar_jax.faces.flame import FLAME, METHOD, MODEL_KEYS, rodrigues
from avatar_jax.faces.foreign.arrays import Arrays, arrays_tree, beside, containing, original_arrays, record, stored

_EMBEDDINGS = {
    'landmark_embedding': tuple(
        f'{k}_{part}' for k in ('static_lmk', 'dynamic_lmk', 'full_lmk') for part in ('faces_idx', 'bary_coords')
    ),
    'mediapipe_landmark_embedding': ('lmk_face_idx', 'lmk_b_coords', 'landmark_indices'),
}
_UNUSED = {
    'J': 'the rest joints of the mean head, which J_regressor gives',
    'bs_style': 'a description',
    'bs_type': 'a description',
}


def _find(tensors: Mapping[str, np.ndarray]) -> list[str]:
    prefixes = containing('v_template', 'shapedirs', 'J_regressor', 'weights')(tensors)
    # Bodies and hands of the same family have other numbers of joints.
    return [p for p in prefixes if tensors[p + 'weights'].ndim == 2 and tensors[p + 'weights'].shape[1] == 5]


def _plan(source: ForeignNetwork, report: Report) -> list[NewWeights]:
    file, place = 'flame.safetensors', source.places['']
    arrays = source.flat()
    inside = [key for keys in _EMBEDDINGS.values() for key in keys]
    own = {k: v for k, v in arrays.items() if k not in inside}
    record(report, place, own, MODEL_KEYS, file, _UNUSED)
    kept = {k: own[k] for k in MODEL_KEYS if k in own}
    for name, keys in _EMBEDDINGS.items():
        kept |= _embedding(source, report, name, keys, file)
    kept = {k: stored(v) for k, v in kept.items()}
    if not report.missing:
        FLAME.from_arrays(kept, str(source.raw.path))  # raises if shapes do not fit
    return [NewWeights(file, METHOD, {}, kept, arrays_tree)]


def _embedding(source: ForeignNetwork, report: Report, name: str, keys: tuple[str, ...], file: str) -> Arrays:
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
        raw = beside(path, report)
        tensors, label = {k.rpartition('/')[2]: v for k, v in raw.tensors.items()}, f'{path.name}:'
        place = ''
    found = {k: v for k, v in under(tensors, place).items() if label or k in keys}
    record(report, label + place, found, keys, file, {})
    return {k: np.asarray(found[k]) for k in keys if k in found}


def _compare(run: Verification) -> None:
    golden, weights = run.golden, run.find(METHOD)
    arrays, recorded = weights.variables['arrays'], {k.rpartition('.')[2]: v for k, v in run.golden.param.items()}
    run.weights(arrays, {k: v for k, v in recorded.items() if k in arrays})
    model = FLAME.from_arrays(arrays, str(weights.path))
    inp = {k: jnp.asarray(v) for k, v in golden.inp.items()}
    head = model(inp['shape'], inp['expression'], inp['pose'])
    run.compare('vertices', head.vertices, GEOMETRY)
    run.compare('joints_rest', head.joints_rest, GEOMETRY)
    run.compare('joints_posed', head.joints, GEOMETRY)
    run.compare('dynamic_row', model.contour_rows(inp['pose']), 0.0)
    if model.contour is not None:
        run.compare('landmarks2d', model.landmarks2d(head.vertices, inp['pose']), GEOMETRY)
        run.compare('landmarks3d', model.landmarks3d(head.vertices), GEOMETRY)
    if model.mediapipe is not None:
        run.compare('landmarks_mediapipe', model.landmarks_mediapipe(head.vertices), GEOMETRY)
    if 'eye_pose' in inp:
        eyes = model(inp['shape'], inp['expression'], inp['pose'], inp['eye_pose'])
        run.compare('vertices_eye', eyes.vertices, GEOMETRY)
    if 'full_pose_general' in inp:
        general = model.posed(model.shaped(inp['shape'], inp['expression']), inp['full_pose_general'])
        run.compare('vertices_general', general.vertices, GEOMETRY)
        run.compare('joints_posed_general', general.joints, GEOMETRY)
    if 'rotvec' in inp:
        run.compare('rodrigues', rodrigues(inp['rotvec']), GEOMETRY)


FOREIGN = (
    ForeignFile(
        'flame',
        'FLAME (generic_model.pkl)',
        METHOD,
        _find,
        _plan,
        export=original_arrays,
        verify={'flame': _compare},
    ),
)
