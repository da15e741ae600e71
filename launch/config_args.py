"""``--config file.py:variant --config.field=value`` for the commands (``avatar_jax.configure`` reads the files).

Names are looked up in the current folder first, then among the files that ship with the project (``configs/``), so
``configs/NAME.py``, ``NAME.py`` and ``NAME`` work from anywhere. Unknown fields and wrong types fail with a suggestion.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from avatar_jax import configure
from avatar_jax.errors import UserError

if TYPE_CHECKING:
    import ml_collections

    from avatar_jax.methods.base import Training


def add_config_argument(parser: argparse.ArgumentParser, default: str | None = None) -> None:
    """Adds ``--config`` to a subcommand; ``--config.field=value`` options are then collected in ``args.overrides``."""
    from avatar_jax.methods.base import an_example

    parser.add_argument(
        '--config',
        metavar='FILE[:VARIANT]',
        default=default,
        required=default is None,
        help=f'config file, e.g. {an_example()}:tiny'
        + (f' (default: {default})' if default else '')
        + '; single fields are set with --config.FIELD=VALUE',
    )
    parser.set_defaults(overrides=())


def shipped_configs() -> dict[str, Path]:
    """Config files of the installed project, by name."""
    import configs

    folders = [Path(folder) for folder in configs.__path__]
    files = [f for folder in folders for f in sorted(folder.glob('*.py'))]
    return {f.stem: f for f in files if not f.stem.startswith('_')}


def config_path(name: str) -> Path:
    """The file behind a config name. Raises ``UserError`` if there is none; suggests the closest shipped one."""
    return configure.config_file(name, shipped_configs())


def load_config(spec: str, overrides: Sequence[str] = ()) -> ml_collections.ConfigDict:
    """``configure.read_config_file``, which also knows the files that ship with the project by name."""
    return configure.read_config_file(spec, overrides, shipped_configs())


def load_run(spec: str, overrides: Sequence[str] = ()) -> tuple[Training, Any]:
    """The training that a config file belongs to, and its run's configuration.

    Raises:
        UserError: as ``load_config``; or the file names no method, or one that is not known, or has fields that its
            training has not.
    """
    from avatar_jax.methods.base import names, training

    values = load_config(spec, overrides).to_dict()
    if 'method' not in values:
        raise UserError(
            f"--config {spec}: does not say whose training it is; add config.method = '{names()[0]}' (there are: "
            f'{", ".join(names())})'
        )
    found = training(values.pop('method'), values.pop('training', ''))
    try:
        return found, found.config(values)
    except configure.UnknownField as error:  # of the file: options were compared with it
        raise UserError(f'--config {spec}: {error}') from error
