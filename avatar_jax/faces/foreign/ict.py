"""ICT-FaceKit: its folder of OBJ files, or the packed arrays."""

from __future__ import annotations

from avatar_jax.convert.base import Folder, ForeignFile, ForeignNetwork, NewWeights
from avatar_jax.convert.report import Report
from avatar_jax.faces.foreign import ict_folder
from avatar_jax.faces.foreign.arrays import arrays_tree, containing, original_arrays, stored
from avatar_jax.faces.ict import METHOD


def _plan(source: ForeignNetwork, report: Report) -> list[NewWeights]:
    file = f'{METHOD}.safetensors'
    arrays, names = source.flat(), dict(source.hint.get('names', {}))
    for key in [k for k, v in arrays.items() if v.dtype.kind == 'U']:
        names[key] = [str(v) for v in arrays[key].reshape(-1)]
        report.mapped[source.places[''] + key] = f'{file}: names of the configuration'
        del arrays[key]
    lacking = [k for k in (*ict_folder.ARRAYS, *ict_folder.NAMES) if k not in arrays and k not in names]
    for key in arrays:
        report.mapped[source.places[''] + key] = f'{file}: arrays.{key}'
    report.missing += lacking
    return [NewWeights(file, METHOD, {'names': names}, {k: stored(v) for k, v in arrays.items()}, arrays_tree)]


FOREIGN = (
    ForeignFile(
        'ict',
        'ICT-FaceKit (its folder of OBJ files, or the packed arrays)',
        METHOD,
        containing('identity_deltas', 'expression_deltas', 'landmarks68', 'region_vertex_range'),
        _plan,
        export=original_arrays,
        folder=Folder('ICT-FaceKit', ict_folder.NEUTRAL, ict_folder.read_folder),
    ),
)
