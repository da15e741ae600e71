"""Networks that the dlib library saved (``serialize``): of a chain of layers, those that hold numbers.

The format has no table: layers follow one another from input to output, each as its name, its numbers, its settings.
Whole numbers are a byte with their length (and, at 128, the sign) and so many bytes; tensors have a version, four
sizes, and float32 numbers. Layers are found by their names; what the tensors hold must agree with the settings behind
them.
Names are made here in their order: ``conv0.weight`` [O,I,h,w], ``conv0.bias``, ``affine0.weight``, ``affine0.bias``,
``fc.weight`` [out,in].
"""

from __future__ import annotations

import re

import numpy as np

from avatar_jax.foreign.limits import Budget, Damaged, shown

MAGIC = b'\x01\x01\x01\x0dloss_metric_2'
_LAYER = re.compile(rb'\x01\x05con_4\x01\x02|\x01\x07affine_\x01\x02|\x01\x04fc_2')
_MAX_LAYERS = 1000


def is_dlib(data: memoryview) -> bool:
    """Whether a file is a network of dlib that was trained as a metric, the only kind that is known."""
    head = bytes(data[:64])
    return head.startswith(MAGIC) or (len(head) > 4 and head[2:].startswith(MAGIC[2:]))


class _Numbers:
    """Reads whole numbers and tensors one after the other."""

    def __init__(self, data: memoryview, place: int):
        self.data, self.place = data, place

    def whole(self) -> int:
        if self.place >= len(self.data):
            raise Damaged('ends within a layer')
        control = self.data[self.place]
        size = control & 0x0F
        if not 1 <= size <= 8 or self.place + 1 + size > len(self.data):
            raise Damaged('has a number of impossible length')
        value = int.from_bytes(self.data[self.place + 1 : self.place + 1 + size], 'little')
        self.place += 1 + size
        return -value if control & 0x80 else value

    def tensor(self, budget: Budget) -> np.ndarray:
        """[sizes] of the four sizes behind a version."""
        sizes = [self.whole() for _ in range(4)]
        count = int(np.prod([max(n, 0) for n in sizes], dtype=object))
        if min(sizes) < 1 or count * 4 > len(self.data) - self.place:
            raise Damaged(f'a tensor of the sizes {shown(sizes)} is longer than the file')
        budget.tensor(4 * count, 'its tensors')
        found = np.frombuffer(self.data, '<f4', count, self.place)
        self.place += 4 * count
        return found.reshape(sizes)


def read_dlib(data: memoryview, budget: Budget) -> dict[str, np.ndarray]:
    """The tensors by name, views of the file.

    Raises:
        Damaged: see ``avatar_jax.foreign.limits``.
    """
    out: dict[str, np.ndarray] = {}
    counts = {'conv': 0, 'affine': 0, 'fc': 0}
    place = 0
    while match := _LAYER.search(data, place):
        numbers = _Numbers(data, match.end())
        if match[0].startswith(b'\x01\x04'):  # sizes, and the tensor's version, stand in front
            for _ in range(3):
                numbers.whole()
        values = numbers.tensor(budget)
        if match[0].startswith(b'\x01\x05'):
            _conv(f'conv{counts["conv"]}', values.reshape(-1), numbers, out)
            counts['conv'] += 1
        elif match[0].startswith(b'\x01\x07'):
            name, flat = f'affine{counts["affine"]}', values.reshape(-1)
            if len(flat) % 2:
                raise Damaged(f'{name} has no scale for each shift')
            out[f'{name}.weight'], out[f'{name}.bias'] = flat[: len(flat) // 2], flat[len(flat) // 2 :]
            counts['affine'] += 1
        else:
            if counts['fc']:
                raise Damaged('has more than one layer of the kind fc')
            out['fc.weight'] = values.reshape(len(values), -1).T
            counts['fc'] += 1
        place = numbers.place
        if sum(counts.values()) > _MAX_LAYERS:
            raise Damaged('has more layers than a network can have')
    if not out:
        raise Damaged('has no layers')
    return out


def _conv(name: str, flat: np.ndarray, numbers: _Numbers, out: dict[str, np.ndarray]) -> None:
    """Splits kernel and bias by the settings: number of kernels, height, width."""
    kernels, height, width = (numbers.whole() for _ in range(3))
    area = kernels * height * width
    if min(kernels, height, width) < 1 or len(flat) < kernels or (len(flat) - kernels) % area:
        raise Damaged(f'{name} has {len(flat)} numbers for {kernels} kernels of {height}x{width}')
    out[f'{name}.weight'] = flat[: len(flat) - kernels].reshape(kernels, -1, height, width)
    out[f'{name}.bias'] = flat[len(flat) - kernels :]
