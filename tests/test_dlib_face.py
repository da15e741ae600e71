"""dlib's face recognition network: its files, its numbers against a plain computation, its cut-out."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from avatar_jax.convert.layout import torch_shapes
from avatar_jax.errors import UserError
from avatar_jax.io.foreign import read
from avatar_jax.losses.identity import FACE_NETWORKS, aligned_dlib, dlib_matrix
from avatar_jax.losses.perception import PerceptionBank, abstract_variables
from avatar_jax.models.perception.dlib_face import MEAN, SAME_PERSON, distance
from tests.convert.known import convert

STAGES = ((32, 3), (64, 4), (128, 3), (256, 3), (256, 1))


def whole(number: int) -> bytes:
    """As dlib writes whole numbers: length and sign, then the bytes."""
    size = max(1, (abs(number).bit_length() + 7) // 8)
    return bytes([size | (0x80 if number < 0 else 0)]) + abs(number).to_bytes(size, 'little')


def tensor(values) -> bytes:
    sizes = (*values.shape, *[1] * (4 - values.ndim))
    return whole(2) + b''.join(map(whole, sizes)) + values.astype('<f4').tobytes()


def named(name: str) -> bytes:
    return whole(len(name)) + name.encode()


def saved(flat) -> bytes:
    """A file of these tensors, by names as the reader gives them."""
    out = b'\1\1\1\x0dloss_metric_2' + bytes(8)
    for layer in (*(f'{kind}{k}' for k in range(29) for kind in ('conv', 'affine')), 'fc'):
        weight = flat[f'{layer}.weight']
        if layer == 'fc':
            out += named('fc_2') + whole(weight.shape[0]) + whole(weight.shape[1]) + tensor(weight.T)
            continue
        both = np.concatenate([weight.ravel(), flat[f'{layer}.bias']])
        out += named('con_4' if layer.startswith('conv') else 'affine_') + tensor(both)
        if layer.startswith('conv'):
            out += b''.join(map(whole, (weight.shape[0], *weight.shape[2:], 1, 1, 0, 0)))
        out += b'\1\0'
    return out


def random_weights():
    rng, flat = np.random.default_rng(0), {}
    for key, shape in sorted(torch_shapes(abstract_variables('dlib_face')).items()):
        fan = np.prod(shape[1:]) if len(shape) > 1 else 1
        flat[key] = (rng.normal(0, 0.7 * fan**-0.5, shape) + (key.startswith('affine') and 'weight' in key)).astype(
            'f4'
        )
    return flat


def conv(x, weight, bias, stride, padding):
    """[H,W,I] and [O,I,h,w]: one product for each place of the kernel."""
    x = np.pad(x, ((padding, padding), (padding, padding), (0, 0)))
    h, w = weight.shape[2:]
    rows, columns = ((n - k) // stride + 1 for n, k in zip(x.shape, (h, w)))
    out = np.zeros((rows, columns, len(weight)))
    for i in range(h):
        for j in range(w):
            part = x[i : i + (rows - 1) * stride + 1 : stride, j : j + (columns - 1) * stride + 1 : stride]
            out += part @ weight[:, :, i, j].T
    return out + bias


def plain(flat, face):
    """The network in numpy, layer by layer, of a face [150,150,3] uint8."""
    count = 0

    def unit(x, stride, padding):
        nonlocal count
        c, a = f'conv{count}', f'affine{count}'
        count += 1
        x = conv(x, flat[f'{c}.weight'].astype(float), flat[f'{c}.bias'], stride, padding)
        return x * flat[f'{a}.weight'] + flat[f'{a}.bias']

    x = np.maximum(unit((face - np.array(MEAN)) / 256, 2, 0), 0)
    side = (len(x) - 3) // 2 + 1
    x = np.stack([x[i : i + 2 * side - 1 : 2, j : j + 2 * side - 1 : 2] for i in range(3) for j in range(3)]).max(0)
    for stage, (_, blocks) in enumerate(STAGES):
        for block in range(blocks):
            halve = stage > 0 and block == 0
            y = unit(np.maximum(unit(x, 2 if halve else 1, 0 if halve else 1), 0), 1, 1)
            if halve:
                n = len(x) // 2
                x = np.stack([x[i : 2 * n : 2, j : 2 * n : 2] for i in (0, 1) for j in (0, 1)]).mean(0)
            total = np.zeros((max(len(x), len(y)), max(len(x), len(y)), y.shape[2]))
            total[: len(x), : len(x), : x.shape[2]] += x
            total[: len(y), : len(y)] += y
            x = np.maximum(total, 0)
    return flat['fc.weight'] @ x.mean((0, 1))


@pytest.fixture(scope='module')
def imported(tmp_path_factory):
    folder = tmp_path_factory.mktemp('dlib')
    flat = random_weights()
    (folder / 'net.dat').write_bytes(saved(flat))
    return flat, folder, convert(folder / 'net.dat', folder)


@pytest.mark.slow
def test_a_file_becomes_the_network_of_its_numbers(imported):
    flat, folder, done = imported
    assert done.kind == 'dlib_face' and len(done.report.mapped) == len(flat)
    bank = PerceptionBank.load({'dlib_face': folder / 'dlib_face.safetensors'})
    assert bank.identity_kind() == 'dlib_face' and bank.report()['identity'].startswith("dlib's face recognition")
    face = np.random.default_rng(1).integers(0, 256, (150, 150, 3)).astype(np.uint8)
    got = np.asarray(jax.jit(bank.embed('dlib_face'))(jnp.asarray(face[None], jnp.float32) / 127.5 - 1))[0]
    want = plain(flat, face.astype(float))
    np.testing.assert_allclose(got, want, atol=2e-4 * np.abs(want).max())
    assert float(distance(got, got)) < SAME_PERSON < float(distance(got, -got))


def test_damaged_files(imported, tmp_path):
    data = (imported[1] / 'net.dat').read_bytes()
    places = {
        'longer than the file': data[: len(data) // 2],
        'ends within a layer': data[: data.index(b'fc_2') + 4],
        'has no layers': data[:24],
        'numbers for': data.replace(whole(32) + whole(7) + whole(7), whole(31) + whole(7) + whole(7), 1),
        'impossible length': data.replace(b'con_4\1\2', b'con_4\1\2\x0f', 1),
    }
    for message, content in places.items():
        (tmp_path / 'a.dat').write_bytes(content)
        with pytest.raises(UserError, match=message):
            read(tmp_path / 'a.dat')


@pytest.mark.slow
def test_faces_are_cut_out_as_in_its_training():
    template = np.zeros((1, 68, 2), np.float32)
    five = np.array([[37.06, 46.37], [58.41, 47.91], [89.61, 47.90], [110.96, 46.35], [74.01, 87.78]])
    template[0, [36, 39, 42, 45, 33]] = five
    turn = np.array([[0.0, -2.0], [2.0, 0.0]])  # a quarter, and twice as large
    matrix = np.asarray(dlib_matrix(jnp.asarray(template @ turn.T + [300, 5])))[0]
    np.testing.assert_allclose((five @ turn.T + [300, 5]) @ matrix[:, :2].T + matrix[:, 2], five, atol=0.02)
    eyes = jnp.asarray([[[47.7, 47.1], [100.3, 47.1], [74, 70], [60, 100], [90, 100]]])
    np.testing.assert_allclose(dlib_matrix(eyes)[0], np.eye(2, 3), atol=0.2)
    image = jnp.ones((1, 40, 40, 3))
    cut = aligned_dlib(image, jnp.eye(2, 3)[None])
    assert cut.shape == (1, 150, 150, 3) and float(cut[0, 20, 20, 0]) == 1 and float(cut[0, 60, 60, 0]) == -1
    assert FACE_NETWORKS['dlib_face'].place is dlib_matrix
