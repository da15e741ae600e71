"""A morphable head made for this project: shape, expression, texture, hair, clothes, light; and its renderer."""

from avatar_jax.procedural.expressions import EXPRESSION_DIM, EXPRESSION_NAMES
from avatar_jax.procedural.identity import (
    IDENTITY_DIM,
    STYLE_DIM,
    sample_identity,
    split_identity,
)
from avatar_jax.procedural.model import ProceduralHead, to_world
from avatar_jax.procedural.render import HeadImage, default_gamma, render_head

__all__ = [
    'EXPRESSION_DIM',
    'EXPRESSION_NAMES',
    'IDENTITY_DIM',
    'STYLE_DIM',
    'HeadImage',
    'ProceduralHead',
    'default_gamma',
    'render_head',
    'sample_identity',
    'split_identity',
    'to_world',
]
