"""Training programs as data, for measuring and counting: the step, its state, a made-up batch.

A method's ``Training.program`` makes one from a run's configuration.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from avatar_jax.types import PyTree


@dataclass(frozen=True)
class Program:
    """One training step in its variants.

    Attributes:
        name: of the method.
        variants: (share of the steps, name, ``step(state, batch, constants, axis_name)``); shares add up to 1.
        make_state, abstract_state: a fresh state, and its shapes.
        make_constants, abstract_constants: the step's constants, and their shapes (of the paper's networks).
        make_batch: rows -> numpy arrays [rows, ...].
        images_per_row: pictures of one row of the batch. batch: rows of a step in the configuration.
        bf16: whether most arithmetic is in bfloat16.
        unit: the least number of rows that a device can have.
    """

    name: str
    variants: tuple[tuple[float, str, Callable], ...]
    make_state: Callable[[], PyTree]
    abstract_state: Callable[[], PyTree]
    make_constants: Callable[[], PyTree]
    abstract_constants: Callable[[], PyTree]
    make_batch: Callable[[int], dict[str, Any]]
    images_per_row: int
    batch: int
    bf16: bool
    unit: int = 1
