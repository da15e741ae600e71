"""Version 2 of the procedural people: glasses, hats, skin, hair strands, patterns, key light and shadow.

``traits`` says who looks how, ``accessories`` makes the geometry, ``noise`` the textures, ``skin``, ``hair`` and
``clothes`` paint samples, ``light`` bakes occlusion and casts shadows, ``draw`` puts a picture together.
"""

from avatar_jax.procedural.looks.traits import VERSIONS, Glasses, Hat, KeyLight, Looks, draw_key_light, draw_looks

__all__ = ['VERSIONS', 'Glasses', 'Hat', 'KeyLight', 'Looks', 'draw_key_light', 'draw_looks']
