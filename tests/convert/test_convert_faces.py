"""Face models from their original files."""

import json

import numpy as np
import pytest

from avatar_jax.errors import UserError
from avatar_jax.faces.bfm import BFM, KEYS
from avatar_jax.faces.files import load_face_model
from avatar_jax.faces.flame import FLAME
from avatar_jax.faces.foreign import ict_folder
from avatar_jax.faces.ict import ICT
from avatar_jax.io.weights import load_weights
from tests.convert import writers as w
from tests.convert.known import convert, export, verify
from tests.parity import golden as g

savemat = pytest.importorskip('scipy.io').savemat


def flame_arrays(vertices=12, faces=6):
    rng = np.random.default_rng(4)
    weights = rng.random((vertices, 5))
    return {
        'v_template': rng.standard_normal((vertices, 3)),
        'shapedirs': rng.standard_normal((vertices, 3, 400)),
        'posedirs': rng.standard_normal((vertices, 3, 36)),
        'weights': weights / weights.sum(1, keepdims=True),
        'J_regressor': rng.random((5, vertices)),
        'f': rng.integers(0, vertices, (faces, 3)).astype(np.uint32),
        'kintree_table': np.array([[2**32 - 1, 0, 1, 1, 1], range(5)], np.uint32),
    }


def flame_pickle(arrays):
    """As FLAME writes it: Python 2, a sparse regressor, chumpy arrays."""
    value = {k: w.array(np.asarray(v), py2=True) for k, v in arrays.items() if k != 'J_regressor'}
    dense = np.asarray(arrays['J_regressor'])
    rows, columns = dense.shape
    state = {
        '_shape': dense.shape,
        'maxprint': 50,
        'data': w.array(dense.T.reshape(-1)),
        'indices': w.array(np.tile(np.arange(rows, dtype=np.int32), columns)),
        'indptr': w.array(np.arange(0, rows * columns + 1, rows, dtype=np.int32)),
    }
    value['J_regressor'] = w.New(w.Name('scipy.sparse.csc', 'csc_matrix'), state)
    value['shapedirs'] = w.New(w.Name('chumpy.ch', 'Ch'), {'x': value['shapedirs']})
    value |= {'J': w.array(np.zeros((5, 3))), 'bs_style': w.Py2(b'lbs'), 'bs_type': w.Py2(b'lrotmin')}
    return w.pickled(value)


def test_flame(tmp_path):
    arrays = flame_arrays()
    path = w.write(tmp_path, 'generic_model.pkl', flame_pickle(arrays))
    done = convert(path, tmp_path / 'a')
    assert done.kind == 'flame' and any('no landmark_embedding' in n for n in done.report.notes)
    model = load_face_model(tmp_path / 'a' / 'flame.safetensors')
    assert isinstance(model, FLAME) and model.parents == (-1, 0, 1, 1, 1)
    for field, key in (('template', 'v_template'), ('shape_basis', 'shapedirs'), ('joint_regressor', 'J_regressor')):
        assert np.array_equal(getattr(model, field), arrays[key].astype(np.float32)), key
    with pytest.raises(UserError, match='put landmark_embedding'):
        model.landmarks3d(model.template)

    rng = np.random.default_rng(1)
    shapes = {'static_lmk': (51,), 'dynamic_lmk': (79, 17), 'full_lmk': (1, 68)}
    table = {f'{k}_faces_idx': rng.integers(0, 6, s) for k, s in shapes.items()}
    table |= {f'{k}_bary_coords': rng.random((*s, 3)) for k, s in shapes.items()}
    w.write(tmp_path, 'landmark_embedding.npy', w.npy(np.array(table, dtype=object), allow_pickle=True))
    convert(path, tmp_path / 'b')
    model = load_face_model(tmp_path / 'b' / 'flame.safetensors')
    assert model.landmarks3d(model.template).shape == (68, 3) and model.contour.faces.shape == (79, 17)

    convert(export(tmp_path / 'b' / 'flame.safetensors', tmp_path / 'exported'), tmp_path / 'again')
    before, after = (load_weights(tmp_path / folder / 'flame.safetensors') for folder in ('b', 'again'))
    assert before.sha256 == after.sha256


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        ({'posedirs': np.zeros((12, 3, 9))}, 'posedirs has shape'),
        ({'f': np.full((6, 3), 99, np.uint32)}, 'vertices that do not exist'),
        ({'surprise': np.zeros(3)}, 'unexpected: surprise'),
    ],
)
def test_flame_that_does_not_fit(change, message, tmp_path):
    path = w.write(tmp_path, 'generic_model.pkl', flame_pickle(flame_arrays() | change))
    with pytest.raises(UserError, match=message):
        convert(path, tmp_path / 'out')
    assert not (tmp_path / 'out').exists()


def verified(folder, kind, content, name, tmp_path):
    """Imports a golden file's own parameters in their original form and verifies them with that very file."""
    path = next((p for p in g.golden_files(folder) if p.stem == kind), None)
    if path is None:
        pytest.skip(f'no {kind}')
    convert(w.write(tmp_path, name, content(g.load(path))), tmp_path / 'out')
    result = verify(path, tmp_path / 'out')
    assert result.passed and not {'vertices', 'shape', 'coeffs', 'ws_trans'} & set(result.skipped), result.lines()
    return path, result


@pytest.mark.slow
def test_flame_is_verified(tmp_path):
    def content(golden):
        arrays = {k.partition('.')[2]: v for k, v in golden.param.items()}
        inside = {
            k: v for k, v in arrays.items() if '_lmk' in k or k in ('lmk_face_idx', 'lmk_b_coords', 'landmark_indices')
        }
        w.write(
            tmp_path,
            'landmark_embedding.npy',
            w.npy(np.array({k: v for k, v in inside.items() if '_lmk_' in k}, dtype=object), allow_pickle=True),
        )
        np.savez(tmp_path / 'mediapipe_landmark_embedding.npz', **{k: v for k, v in inside.items() if '_lmk_' not in k})
        return flame_pickle({k: v for k, v in arrays.items() if k not in inside})

    _, result = verified('gpavatar', 'flame', content, 'generic_model.pkl', tmp_path)
    assert not result.skipped and len(result.params) >= 7


def mat_bytes(arrays, tmp_path):
    savemat(tmp_path / 'made.mat', arrays, do_compression=True)
    return (tmp_path / 'made.mat').read_bytes()


def test_bfm_is_verified(tmp_path):
    _, result = verified(
        'face_models', 'bfm', lambda golden: mat_bytes(golden.param, tmp_path), 'BFM_model_front.mat', tmp_path
    )
    assert {line.name for line in result.params} == set(KEYS)
    assert isinstance(load_face_model(tmp_path / 'out' / 'bfm2009_front.safetensors'), BFM)
    broken = {'idBase': np.zeros((9, 80)), 'exBase': np.zeros((9, 64)), 'meanshape': np.zeros((1, 9))}
    with pytest.raises(UserError, match='missing: texBase|missing: meantex|8 missing'):
        convert(w.write(tmp_path, 'b.mat', mat_bytes(broken, tmp_path)), tmp_path / 'new')


def test_raw_bfm(tmp_path):
    rng, (v, m, n) = np.random.default_rng(3), (30, 20, 10)
    savemat(
        tmp_path / '01_MorphableModel.mat',
        {
            **{f'{k}PC': rng.standard_normal((3 * v, 85)) for k in ('shape', 'tex')},
            **{f'{k}EV': rng.random((85, 1)) for k in ('shape', 'tex')},
            **{f'{k}MU': rng.standard_normal((3 * v, 1)) for k in ('shape', 'tex')},
            'tl': np.ones((4, 3)),
        },
    )
    path = tmp_path / '01_MorphableModel.mat'
    with pytest.raises(UserError, match='also needs Exp_Pca.bin'):
        convert(path, tmp_path / 'out')
    components = rng.standard_normal((70, 3 * m)).astype('<f4')
    (tmp_path / 'Exp_Pca.bin').write_bytes(
        np.int32(70).tobytes() + np.zeros(3 * m, '<f4').tobytes() + components.tobytes()
    )
    (tmp_path / 'std_exp.txt').write_text(' '.join(map(str, rng.random(70) * 1e5)))
    idx, trim = rng.integers(1, m + 1, n), rng.integers(1, v + 1, m)
    savemat(tmp_path / 'BFM_front_idx.mat', {'idx': idx[:, None]})
    savemat(tmp_path / 'BFM_exp_idx.mat', {'trimIndex': trim[:, None]})
    savemat(
        tmp_path / 'facemodel_info.mat',
        {
            'tri': np.ones((4, 3)),
            'point_buf': np.ones((n, 8)),
            'tri_mask2': np.ones((2, 3)),
            'frontmask2_idx': np.ones((5, 1)),
            'skinmask': np.ones((1, n)),
            'keypoints': np.ones((1, 68)),
        },
    )
    done = convert(path, tmp_path / 'out')
    assert sum('sha256' in note for note in done.report.notes) == 5 and 'tl' in done.report.unused
    model = load_face_model(tmp_path / 'out' / 'bfm2009_front.safetensors')
    import scipy.io

    mean = scipy.io.loadmat(path)['shapeMU'].reshape(-1, 3)[trim[idx - 1] - 1] / 1e5
    assert np.allclose(model.mean_shape, mean - mean.mean(0), atol=1e-9)


LAYOUT = ict_folder.Layout(6, 3, 2, 2, (*((f'r{k}', 6, 3) for k in range(1)), *((f'r{k}', 6, 3) for k in range(1, 10))))


def ict_files(folder):
    rng = np.random.default_rng(6)
    shapes = {
        n: rng.random((6, 3)).round(4)
        for n in ('generic_neutral_mesh', 'identity000', 'identity001', 'jawOpen', 'wink_L')
    }
    for name, points in shapes.items():
        lines = [
            '# mesh',
            *('v {} {} {}'.format(*p) for p in points),
            'f 1/1 2/2 3/3 4/4',
            'f 4 5 6',
            'f 1//2 2//2 6//2',
        ]
        (folder / f'{name}.obj').write_text('\n'.join(lines))
    table = {'expressions': ['jawOpen', 'wink_L'], 'idx_to_landmark_verts': [k % 6 for k in range(68)]}
    (folder / 'vertex_indices.json').write_text(json.dumps(table))
    return shapes


def test_ict_folder(tmp_path, monkeypatch):
    folder = tmp_path / 'ict'
    folder.mkdir()
    with pytest.raises(UserError, match='without generic_neutral_mesh.obj'):
        convert(folder, tmp_path / 'out')
    shapes = ict_files(folder)
    with pytest.raises(UserError, match='6 vertices, the light model 26719'):
        convert(folder, tmp_path / 'out')
    monkeypatch.setattr(ict_folder.read_folder, '__defaults__', (LAYOUT,))
    convert(folder, tmp_path / 'out')
    model = load_face_model(tmp_path / 'out' / 'ict_facekit.safetensors')
    assert isinstance(model, ICT) and model.expression_names == ('jawOpen', 'wink_L') and model.num_id == 2
    native = ICT.load(tmp_path / 'out' / 'ict_facekit.safetensors', frame='native')
    moved = native.vertices(np.float32([0, 1]), np.float32([1, 0]))
    assert np.allclose(moved, shapes['identity001'] + shapes['jawOpen'] - shapes['generic_neutral_mesh'], atol=1e-5)
    assert np.asarray(native.triangles)[:2].tolist() == [[0, 1, 2], [0, 2, 3]]
    (folder / 'jawOpen.obj').write_text('v 1 2 x')
    with pytest.raises(UserError, match='jawOpen.obj'):
        convert(folder, tmp_path / 'out')
