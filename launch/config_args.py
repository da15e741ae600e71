"""``--config file.py:variant --config.field=value`` for the launchers, through ``ml_collections``.

A config file is Python with ``get_config(variant: str = '')`` that returns a ``ConfigDict``. Names are looked up in the
current folder first, then among the files that ship with the project (``configs/``), so ``configs/otavatar_heads.py``,
``otavatar_heads.py`` and ``otavatar_heads`` work from anywhere. Unknown fields and wrong types fail with a suggestion.
"""

from __future__ import annotations

import argparse
import difflib
import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

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
    """The file behind a config name.

    Raises:
        UserError: there is none; suggests the closest shipped one.
    """
    path = Path(name)
    if path.is_file():
        return path
    shipped = shipped_configs()
    if path.stem in shipped and str(path.parent) in ('.', 'configs'):
        return shipped[path.stem]
    close = difflib.get_close_matches(path.stem, shipped, 1)
    hint = f'did you mean configs/{close[0]}.py?' if close else f'there are: {", ".join(shipped) or "none"}'
    raise UserError(f'--config {name}: no such file; {hint}')


def load_config(spec: str, overrides: Sequence[str] = ()) -> ml_collections.ConfigDict:
    """Reads ``FILE[:VARIANT]`` and applies ``--config.FIELD=VALUE`` overrides.

    Args:
        spec: the value of ``--config``.
        overrides: e.g. ``['--config.train.steps=10', '--config.seed', '3']``.

    Returns:
        A locked ``ConfigDict``.

    Raises:
        UserError: no such file, unknown variant, unknown field, value of a wrong type.
    """
    from absl import flags
    from ml_collections import config_dict, config_flags

    name, _, variant = spec.partition('.py:') if '.py:' in spec else spec.partition(':')
    path = config_path(name + '.py' if '.py:' in spec else name)
    module_spec = importlib.util.spec_from_file_location(f'avatar_config_{path.stem}', path)
    if module_spec is None or module_spec.loader is None:
        raise UserError(f'--config {spec}: is not a Python file')
    module = importlib.util.module_from_spec(module_spec)
    try:
        module_spec.loader.exec_module(module)
        config = module.get_config(variant) if variant else module.get_config()
    except UserError:
        raise
    except Exception as error:
        raise UserError(f'--config {spec}: {type(error).__name__}: {_one_line(error)}') from error
    if not isinstance(config, config_dict.ConfigDict):
        raise UserError(f'--config {spec}: get_config returned {type(config).__name__}, not a ConfigDict')
    check_names(config, overrides)
    values = flags.FlagValues()
    argv = ['avatar-jax', *overrides]
    try:
        config_flags.DEFINE_config_dict('config', config, flag_values=values, sys_argv=argv)
        values(argv)
    except (flags.Error, AttributeError, KeyError, TypeError, ValueError) as error:
        raise UserError(f'{_at_fault(overrides, error)}: {_one_line(error)}') from error
    return values['config'].value


def load_run(spec: str, overrides: Sequence[str] = ()) -> tuple[Training, Any]:
    """The training that a config file belongs to, and its run's configuration.

    Raises:
        UserError: as ``load_config``; or the file names no method, or one that is not known.
    """
    from avatar_jax.methods.base import names, training

    values = load_config(spec, overrides).to_dict()
    if 'method' not in values:
        raise UserError(
            f"--config {spec}: does not say whose training it is; add config.method = '{names()[0]}' (there are: "
            f'{", ".join(names())})'
        )
    found = training(values.pop('method'), values.pop('training', ''))
    return found, found.config(values)


def check_names(config: ml_collections.ConfigDict, overrides: Sequence[str]) -> None:
    """Raises ``UserError`` for an override of a field that there is not; suggests the nearest."""
    from ml_collections import config_dict

    for option in overrides:
        if not option.startswith('--config.'):
            continue  # the value of the option before
        node, path = config, option.removeprefix('--config.').partition('=')[0].split('.')
        for depth, part in enumerate(path):
            where = '.'.join(path[:depth])
            if not isinstance(node, config_dict.ConfigDict):
                if isinstance(node, tuple | list):
                    break  # --config.perception[0]
                raise UserError(f'{option}: {where} is a single value; set it with --config.{where}=VALUE')
            name = part.partition('[')[0]
            if name not in node:
                close = difflib.get_close_matches(name, list(node), 1)
                hint = f"did you mean '{close[0]}'?" if close else f'there are: {", ".join(node)}'
                raise UserError(f"{option}: {f'{where} has ' if where else ''}no option '{name}'; {hint}")
            node = node[name]


def _one_line(error: BaseException) -> str:
    text = str(error.args[0] if isinstance(error, KeyError) and error.args else error)
    text = ' '.join(text.replace('\\n', ' ').replace("\\'", "'").strip('"\'').split())
    return text.replace("' Did you mean", ': did you mean')[:300] or type(error).__name__


def _at_fault(overrides: Sequence[str], error: BaseException) -> str:
    """The override that an error message is about, if it can be told."""
    text = str(error)
    for option in overrides:
        field = option.removeprefix('--config.').split('=')[0]
        if option.startswith('--config.') and any(part and part in text for part in (field, field.split('.')[-1])):
            return option
    return 'configuration'
