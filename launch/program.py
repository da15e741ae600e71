"""The frame of a program that is no subcommand of ``avatar-jax`` but is started as ``python -m launch.NAME``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence

from avatar_jax.checks import OPTION, Check
from avatar_jax.cli import Parser
from avatar_jax.errors import UserError


def main(
    doc: str,
    add_arguments: Callable[[argparse.ArgumentParser], None],
    run: Callable[[argparse.Namespace], int | None],
    argv: Sequence[str] | None = None,
) -> int:
    """Reads the options and runs; a ``UserError`` becomes one line and status 2.

    Args:
        doc: text of ``--help``. add_arguments, run: as of a subcommand.
        argv: arguments without the program's name; ``sys.argv`` by default.
    """
    started = sys.modules['__main__'].__spec__
    parser = Parser(prog=f'python -m {started.name}' if started else None, description=doc)
    try:
        add_arguments(parser)
        args, unknown = parser.parse_known_args(argv)
        if unknown:
            parser.unknown(unknown)
        return run(args) or 0
    except UserError as error:
        print(f'error: {error}', file=sys.stderr)
        return 2


def at_least(args: argparse.Namespace, **least: int) -> None:
    """Raises ``UserError`` for the first option that is below its least value."""
    for name, value in least.items():
        Check(args, OPTION).at_least(value, name)
