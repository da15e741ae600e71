"""The frozen networks that commands use when the user names none."""

from __future__ import annotations

from avatar_jax.losses.perception import PerceptionBank

STAND_INS = 'head_nets'


def default_bank(resolution: int) -> PerceptionBank:
    """The shipped stand-ins for pictures of procedural heads, if the package has them.

    Args:
      resolution: side of the model's pictures. Above 256 pixels a model is not one of procedural heads of this
        project's sizes, and a stand-in would judge pictures of a kind that it never saw: the bank is empty then.
    """
    from avatar_jax.io.weights import shipped, shipped_names

    if resolution > 256 or STAND_INS not in shipped_names():
        return PerceptionBank()
    return PerceptionBank.load({STAND_INS: shipped(STAND_INS)})
