"""Makes the 35,709-vertex front model from the files of the Basel Face Model 2009 and its expression basis.

Run once by the holder of the model licence; the result is what ``BFM.load`` reads.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from avatar_jax.errors import UserError
from avatar_jax.faces.bfm import read_arrays
from avatar_jax.ops.coefficients import NUM_EXP, NUM_ID, NUM_TEX

MICROMETRES_PER_DECIMETRE = 1e5


def parse_expression_pca(content: bytes, vertices: int | None = None, source: str = 'Exp_Pca.bin') -> np.ndarray:
    """Expression components of ``Exp_Pca.bin``.

    Args:
        content: int32 count, then a mean of 3*vertices float32 (unused), then count x 3*vertices float32 components.
        vertices: vertex count; None derives it from the length.
        source: file name for messages.

    Returns:
        [3*vertices, count] float32.

    Raises:
        UserError: the length does not fit.
    """
    count = int(np.frombuffer(content[:4], '<i4')[0]) if len(content) >= 4 else 0
    numbers = (len(content) - 4) // 4
    length = 3 * vertices if vertices else (numbers // (count + 1) if count > 0 else 0)
    if count <= 0 or length <= 0 or numbers != length * (count + 1):
        raise UserError(f'{source}: the file is damaged ({len(content)} bytes, {count} components)')
    values = np.frombuffer(content, '<f4', offset=4)
    return values[length:].reshape(count, length).T


def transfer(
    morphable: dict, expression: np.ndarray, std_exp: np.ndarray, front_idx: np.ndarray, trim_index: np.ndarray
) -> dict[str, np.ndarray]:
    """The front model's geometry and albedo.

    Args:
        morphable: arrays of ``01_MorphableModel.mat`` (shapePC, shapeEV, shapeMU, texPC, texEV, texMU; micrometres).
        expression: [3*M, count] components (``parse_expression_pca``).
        std_exp: [count] standard deviations (``std_exp.txt``).
        front_idx: [N] 1-based vertices of the expression topology (``BFM_front_idx.mat``: idx).
        trim_index: [M] 1-based vertices of the shape model (``BFM_exp_idx.mat``: trimIndex).

    Returns:
        meanshape [1, 3N], meantex [1, 3N], idBase [3N, 80], exBase [3N, 64], texBase [3N, 80], float32, decimetres.
    """
    in_expression = np.asarray(front_idx).astype(np.int64).reshape(-1) - 1
    in_shape = np.asarray(trim_index).astype(np.int64).reshape(-1)[in_expression] - 1

    def scaled(components, deviations, keep):
        return np.asarray(components, np.float64)[:, :keep] * np.asarray(deviations, np.float64).reshape(-1)[:keep]

    def rows(base, ids):
        return base.reshape(-1, 3, base.shape[1])[ids].reshape(-1, base.shape[1]).astype(np.float32)

    def mean(values):
        return np.asarray(values, np.float64).reshape(-1, 3)[in_shape].reshape(1, -1)

    unit = MICROMETRES_PER_DECIMETRE
    return {
        'meanshape': (mean(morphable['shapeMU']) / unit).astype(np.float32),
        'meantex': mean(morphable['texMU']).astype(np.float32),
        'idBase': rows(scaled(morphable['shapePC'], morphable['shapeEV'], NUM_ID) / unit, in_shape),
        'exBase': rows(scaled(expression, std_exp, NUM_EXP) / unit, in_expression),
        'texBase': rows(scaled(morphable['texPC'], morphable['texEV'], NUM_TEX), in_shape),
    }


def transfer_files(folder: str | Path, out: str | Path) -> Path:
    """Reads the licensed files of ``folder`` and writes the front model as ``.npz``.

    ``folder`` holds 01_MorphableModel.mat, Exp_Pca.bin, std_exp.txt, BFM_front_idx.mat, BFM_exp_idx.mat and
    facemodel_info.mat (topology and masks).

    Returns:
        The path written, ready for ``BFM.load``.

    Raises:
        UserError: a file is missing or damaged.
    """
    folder, out = Path(folder), Path(out)
    binary, deviations = folder / 'Exp_Pca.bin', folder / 'std_exp.txt'
    for path in (binary, deviations):
        if not path.is_file():
            raise UserError(f'{path}: no such file; put the expression basis beside 01_MorphableModel.mat')
    morphable = read_arrays(folder / '01_MorphableModel.mat')
    trim = read_arrays(folder / 'BFM_exp_idx.mat')['trimIndex']
    arrays = transfer(
        morphable,
        parse_expression_pca(binary.read_bytes(), np.asarray(trim).size, str(binary)),
        np.loadtxt(deviations),
        read_arrays(folder / 'BFM_front_idx.mat')['idx'],
        trim,
    )
    info = read_arrays(folder / 'facemodel_info.mat')
    for key in ('tri', 'point_buf', 'tri_mask2', 'frontmask2_idx', 'skinmask', 'keypoints'):
        if key not in info:
            raise UserError(f'{folder / "facemodel_info.mat"}: missing {key}; the file is damaged')
        arrays[key] = info[key]
    out = out.with_suffix('.npz')
    partial = out.with_suffix('.partial.npz')
    np.savez(partial, **arrays)
    partial.replace(out)
    return out
