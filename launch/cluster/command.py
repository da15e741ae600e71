"""What the wrappers have in common: reading the command after ``--``, checking it, ending with one line."""

from __future__ import annotations

import argparse
import shlex
import subprocess
import sys
from collections.abc import Callable, Sequence

from avatar_jax.checks import OPTION, Check
from avatar_jax.errors import UserError
from avatar_jax.methods.base import an_example

PREEMPTED_STATUS = 75
OWN_FLAGS = ('--coordinator', '--num-processes', '--process-id')
TOGETHER = ('train', 'bench')


def parser_of(doc: str, program: str) -> argparse.ArgumentParser:
    """A parser with the options that all wrappers have."""
    parser = argparse.ArgumentParser(
        prog=f'python -m launch.cluster.{program}',
        description=doc,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument('--dry-run', action='store_true', help='print what would be run, and stop')
    return parser


def split_command(
    argv: Sequence[str], able: Sequence[str] = TOGETHER, own_flags: Sequence[str] = OWN_FLAGS
) -> tuple[list[str], list[str]]:
    """Options of the wrapper and the command after ``--``.

    Args:
        able: commands that the wrapper can run. own_flags: options that it sets itself.

    Raises:
        UserError: no command, one that cannot be spread over processes, or one that says itself how.
    """
    argv = list(argv)
    if '-h' in argv or '--help' in argv:
        return argv, []
    if '--' not in argv or argv[-1] == '--':
        raise UserError(f'give the command after --, e.g. -- train --config {an_example()} --out runs/a')
    place = argv.index('--')
    own, command = argv[:place], argv[place + 1 :]
    if command[0] == 'avatar-jax':
        command = command[1:]
    if not command or command[0] not in able:
        names = f'{", ".join(able[:-1])} and {able[-1]}'
        raise UserError(f'{" ".join(command[:1]) or "--"}: only {names} run in several processes')
    given = [flag for flag in own_flags if any(c == flag or c.startswith(flag + '=') for c in command)]
    if given:
        raise UserError(f'{given[0]}: is set by the wrapper; leave it out')
    if command[0] == 'train' and not any(c == '--out' or c.startswith('--out=') for c in command):
        raise UserError('train: give --out, a folder that all machines see')
    return own, command


def resuming(command: Sequence[str]) -> list[str]:
    """The command with ``--resume``, so that starting again goes on."""
    command = list(command)
    return command + ['--resume'] if command[0] == 'train' and '--resume' not in command else command


def shell(words: Sequence[str]) -> str:
    """Words as one line for a shell."""
    return ' '.join(shlex.quote(str(w)) for w in words)


def call(words: Sequence[str], text: str | None = None) -> int:
    """Runs a program of the cluster, with ``text`` as its input; returns its status.

    Raises:
        UserError: it is not installed here.
    """
    try:
        return subprocess.run(list(words), input=text, text=True, check=False).returncode
    except FileNotFoundError as error:
        raise UserError(f'{words[0]}: not found; run this where the cluster is used from, or add --dry-run') from error


def main(run: Callable[[Sequence[str]], int], argv: Sequence[str] | None = None) -> int:
    """Runs a wrapper; a ``UserError`` becomes one line and status 2."""
    try:
        return run(sys.argv[1:] if argv is None else argv)
    except UserError as error:
        print(f'error: {error}', file=sys.stderr)
        return 2


def at_least_one(**values: int) -> None:
    """Raises ``UserError`` for counts below one, by the option's name."""
    Check.values(OPTION, **values).at_least(1, *values)
