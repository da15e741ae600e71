"""Weight files of a method: written and read with the shapes of its networks compared."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax

from avatar_jax.io.weights import check_tree, load_weights, save_weights
from avatar_jax.parallel import as_arrays
from avatar_jax.types import Config, PyTree

Shapes = Callable[[Any], dict[str, Any]]
"""configuration -> names and shapes of a model's variables"""


def traced_once(abstract: Shapes) -> Shapes:
    """``abstract`` with its answers kept: tracing networks takes a second, and each reading and writing asks for them.

    Each caller gets a tree of its own.
    """

    @functools.lru_cache(maxsize=8)
    def found(config: Config, wide: bool) -> dict[str, Any]:
        del wide  # what is traced in double precision is another tree
        return abstract(config)

    @functools.wraps(abstract)
    def kept(config: Config) -> dict[str, Any]:
        return jax.tree.map(lambda x: x, found(config, jax.config.jax_enable_x64))

    return kept


@dataclass(frozen=True)
class WeightFiles:
    """How the variables of a method are stored (``avatar_jax.io.weights``).

    Attributes:
        method: its name. config: plain values -> the model's configuration.
        abstract: configuration -> shapes of the variables that are stored.
    """

    method: str
    config: Callable[[Mapping[str, Any]], Config]
    abstract: Callable[[Any], PyTree]

    def save(
        self,
        path: str | os.PathLike,
        variables: Mapping[str, Any],
        config: Config,
        provenance: Mapping[str, Any],
        storage: str = 'float32',
    ) -> str:
        """Writes a weight file; returns its SHA-256.

        Raises:
            UserError: the variables do not fit the configuration, or the file cannot be written.
        """
        check_tree(path, variables, self.abstract(config))
        about = {'config': config.to_dict(), 'provenance': provenance, 'storage': storage}
        return save_weights(path, variables, method=self.method, **about)

    def load(self, path: str | os.PathLike) -> tuple[dict[str, Any], Any, str, dict[str, Any]]:
        """Reads a weight file: (variables, configuration, SHA-256, provenance).

        Raises:
            UserError: missing, damaged or foreign file, or weights that do not fit their configuration.
        """
        weights = load_weights(path, method=self.method)
        config = self.config(weights.config)
        check_tree(path, weights.variables, self.abstract(config))
        return as_arrays(weights.variables), config, weights.sha256, weights.provenance
