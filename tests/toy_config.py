"""A run of the toy method, as a config file of a stranger looks."""

from avatar_jax.configure import run_fields
from tests.toy_method import RunConfig


def get_config(variant: str = ''):
    return run_fields('toy', RunConfig())
