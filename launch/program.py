"""The frame of a program that is no subcommand of ``avatar-jax`` but is started as ``python -m launch.NAME``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence

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
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    try:
        add_arguments(parser)
        return run(parser.parse_args(argv)) or 0
    except UserError as error:
        print(f'error: {error}', file=sys.stderr)
        return 2


def at_least(args: argparse.Namespace, **least: int) -> None:
    """Raises ``UserError`` for the first option that is below its least value."""
    for name, value in least.items():
        if getattr(args, name) < value:
            raise UserError(f'--{name.replace("_", "-")} {getattr(args, name)}: must be at least {value}')
