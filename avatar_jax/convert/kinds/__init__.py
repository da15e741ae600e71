"""The kinds of files that can be converted."""

from avatar_jax.convert.kinds.base import Kind
from avatar_jax.convert.kinds.eg3d import EG3D
from avatar_jax.convert.kinds.faces import FACES
from avatar_jax.convert.kinds.gpavatar import GPAVATAR
from avatar_jax.convert.kinds.otavatar import OTAVATAR
from avatar_jax.convert.kinds.perception import PERCEPTION

KINDS: dict[str, Kind] = {kind.name: kind for kind in (*EG3D, *OTAVATAR, *GPAVATAR, *PERCEPTION, *FACES)}
"""Name for ``--as`` -> kind."""
