"""The file of another program that holds the toy method's number: what ``avatar-jax convert`` has to know of it."""

import numpy as np

from avatar_jax.convert.base import ForeignFile, NewWeights, has, match, places
from tests.toy_method import ModelConfig

TEMPLATE = {'params': {'gain': np.zeros(3, np.float32)}}


def find(tensors):
    return places(tensors, 'gain', lambda flat: has(flat, gain=(3,)))


def plan(source, report):
    flat = match(source.flat(), TEMPLATE, report, source.places[''], 'toy')
    return [NewWeights('toy.safetensors', 'toy', ModelConfig().to_dict(), flat)]


FOREIGN = (ForeignFile('toy', 'a gain', 'toy', find, plan),)
