"""All frozen config dataclasses of the library and of the data pipelines, found by importing every module."""

import dataclasses
import importlib
import pkgutil
from functools import lru_cache

import avatar_jax
import data_pipelines

# A dataclass is a configuration if people set its fields: its name says so.
ENDINGS = ('Config', 'Options', 'Weights', 'Terms', 'Output', 'Importance', 'Plan', 'Request')


@lru_cache
def configs() -> dict[str, type]:
    """'avatar_jax.train.loop.LoopConfig' -> the class."""
    found = {}
    for package in (avatar_jax, data_pipelines):
        for module in pkgutil.walk_packages(package.__path__, package.__name__ + '.'):
            try:
                members = vars(importlib.import_module(module.name))
            except ModuleNotFoundError as error:
                if error.name != 'apache_beam':  # the one extra that modules need to be imported
                    raise
                continue
            for value in members.values():
                if (
                    isinstance(value, type)
                    and dataclasses.is_dataclass(value)
                    and value.__module__ == module.name
                    and value.__dataclass_params__.frozen
                    and value.__name__.endswith(ENDINGS)
                ):
                    found[f'{module.name}.{value.__name__}'] = value
    return found
