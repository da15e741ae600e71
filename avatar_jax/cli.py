"""The ``avatar-jax`` command: finds the subcommand's module in ``launch/``, reads its options, reports errors.

Exit status: 0 done; 2 something that the user can mend, said in one line; 130 interrupted; 143 terminated; 1 a bug,
with a traceback. ``AVATAR_DEBUG=1`` shows the traceback of user errors, too.
"""

from __future__ import annotations

import argparse
import difflib
import errno
import importlib
import os
import re
import signal
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

import avatar_jax
from avatar_jax.errors import UserError
from avatar_jax.io.names import prepare_streams, shown

# subcommand -> (module with add_arguments and run, one line of help)
COMMANDS = {
    'demo': ('launch.demo', 'the whole path: invert an unseen head and animate it, from the shipped weights'),
    'invert': ('launch.invert', 'make avatars from portraits'),
    'animate': ('launch.animate', 'make a video of an avatar from a motion'),
    'track': ('launch.track', 'turn photographs and videos into crops, camera labels, coefficients and motion'),
    'evaluate': ('launch.evaluate', 'measure quality on heads that were never seen in training'),
    'train': ('launch.train', 'train the networks of a method'),
    'metrics': ('launch.generator_metrics', 'score a generator: FID, KID, precision, recall, identity, depth, pose'),
    'convert': ('launch.convert', 'import published weights, verify an import, or export'),
    'assets': ('launch.assets', 'show which optional files exist, and which are here'),
    'ablate': ('launch.ablate', "train and compare the variants of a paper's table"),
    'bench': ('launch.benchmark', 'measure speed and memory'),
}
# Modules that come with an extra of the package.
_EXTRAS = {
    'tensorflow_datasets': 'data',
    'grain': 'data',
    'array_record': 'data',
    'skimage': 'mesh',
    'tensorboardX': 'log',
    'lmdb': 'lmdb',
}


class Terminated(BaseException):
    """SIGTERM: unwinds like Ctrl-C, so that temporary files are removed."""


# What stands for the value of an option in a help text, by the option's type.
_VALUES = {int: 'N', float: 'F', Path: 'PATH', None: 'TEXT'}


class Parser(argparse.ArgumentParser):
    """Argument parser whose errors are one line, with a suggestion for typos."""

    def __init__(self, **options: Any):
        super().__init__(allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter, **options)

    def add_argument(self, *names: str, **options: Any) -> argparse.Action:
        """As argparse's; a value is called N, F, PATH or TEXT in the help, where nothing else is said."""
        takes_value = options.get('action', 'store') in ('store', 'append', 'extend')
        if takes_value and names and names[0].startswith('-') and not options.get('choices'):
            options.setdefault('metavar', _VALUES.get(options.get('type'), 'TEXT'))
        return super().add_argument(*names, **options)

    def error(self, message: str) -> NoReturn:
        """Raises ``UserError`` with argparse's message in this project's form."""
        message = re.sub(r'^argument ([^:]*): ', r'\1: ', message)
        raise UserError(f'{message}; see {self.prog} --help')

    def unknown(self, arguments: Sequence[str]) -> NoReturn:
        """Raises ``UserError`` for arguments that no option takes."""
        first = arguments[0].split('=')[0]
        if not first.startswith('-'):
            raise UserError(f'{arguments[0]}: unexpected argument; see {self.prog} --help')
        close = difflib.get_close_matches(first, self._option_string_actions, 1)
        hint = f'did you mean {close[0]}?' if close else f'see {self.prog} --help'
        raise UserError(f'{first}: unknown option; {hint}')


def _overview() -> str:
    width = max(map(len, COMMANDS))
    lines = [f'  {name:{width}}  {text}' for name, (_, text) in COMMANDS.items()]
    return 'commands:\n' + '\n'.join(lines) + '\n\n`avatar-jax COMMAND --help` lists the options of a command.'


def _top() -> Parser:
    parser = Parser(
        prog='avatar-jax',
        usage='avatar-jax [-h] [--version] COMMAND ...',
        description='3D talking-head avatars from portraits.',
        epilog=_overview(),
    )
    parser.add_argument('--version', action='version', version=f'avatar-jax {avatar_jax.__version__}')
    return parser


def _run(argv: Sequence[str]) -> int:
    top = _top()
    if not argv or argv[0].startswith('-'):
        _, rest = top.parse_known_args(argv)  # --help and --version end here
        if rest:
            top.unknown(rest)
        top.print_help(sys.stderr)
        return 2
    command, *rest = argv
    if command not in COMMANDS:
        close = difflib.get_close_matches(command, COMMANDS, 1)
        hint = f"did you mean '{close[0]}'?" if close else f'choose one of {", ".join(COMMANDS)}'
        raise UserError(f'{command}: unknown command; {hint}')
    module_name, text = COMMANDS[command]
    module = importlib.import_module(module_name)
    parser = Parser(prog=f'avatar-jax {command}', description=module.__doc__ or text)
    module.add_arguments(parser)
    args, unknown = parser.parse_known_args(rest)
    if hasattr(args, 'overrides'):
        args.overrides, unknown = _overrides(unknown)
    if unknown:
        parser.unknown(unknown)
    from avatar_jax import compiled_programs  # needs numpy, which --help does not

    compiled_programs.keep()
    return module.run(args) or 0


def _overrides(arguments: Sequence[str]) -> tuple[tuple[str, ...], list[str]]:
    """Separates ``--config.field=value`` and ``--config.field value`` from arguments that are simply unknown."""
    overrides, unknown, items = [], [], list(arguments)
    while items:
        item = items.pop(0)
        if not item.startswith('--config.'):
            unknown.append(item)
            continue
        overrides.append(item)
        if '=' not in item and items and not items[0].startswith('--'):
            overrides.append(items.pop(0))
    return tuple(overrides), unknown


def _explain(error: BaseException) -> str | None:
    """One line for an error that the user can mend; None for a bug."""
    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, ModuleNotFoundError) and (error.name or '').split('.')[0] in _EXTRAS:
        name = error.name.split('.')[0]
        return f"{name} is not installed; install it with: pip install 'avatar-jax[{_EXTRAS[name]}]'"
    if isinstance(error, OSError) and error.filename:
        name = os.fsdecode(error.filename)
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS):
            from avatar_jax.io.atomic import write_error

            return str(write_error(name, error))
        if error.errno in (errno.ENOENT, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG):
            return f'{name}: {error.strerror.lower()}; check the path'  # met while reading or writing, who knows
        return None
    text = str(error)
    if 'No space left on device' in text or 'Disk quota exceeded' in text:  # wrapped by storage libraries
        return 'no space left on the disk; free some space or choose another folder'
    if isinstance(error, MemoryError):
        return 'not enough memory; use a smaller batch, picture or chunk size'
    if type(error).__name__ in ('XlaRuntimeError', 'JaxRuntimeError') and 'RESOURCE_EXHAUSTED' in text:
        return 'not enough device memory; use a smaller batch, picture or chunk size'
    return None


def _terminate(number: int, frame: FrameType | None) -> NoReturn:
    raise Terminated


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit status.

    Args:
        argv: arguments without the program name; ``sys.argv`` by default.
    """
    argv = sys.argv[1:] if argv is None else argv
    prepare_streams()
    try:
        previous = signal.signal(signal.SIGTERM, _terminate)
    except ValueError:  # not the main thread: the caller owns the signals
        previous = None
    try:
        return _run(list(argv))
    except KeyboardInterrupt:
        print('\navatar-jax: interrupted', file=sys.stderr)
        return 130
    except Terminated:
        print('\navatar-jax: terminated', file=sys.stderr)
        return 143
    except BrokenPipeError:  # the reader of stdout has gone, e.g. `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except Exception as error:
        line = _explain(error)
        if line is None or os.environ.get('AVATAR_DEBUG', '') not in ('', '0'):
            traceback.print_exc()
        if line is None:
            print('avatar-jax: this is a bug in avatar_jax; please report it with the lines above', file=sys.stderr)
            return 1
        print(f'avatar-jax: error: {shown(line)}', file=sys.stderr)
        return 2
    finally:
        if previous is not None:
            signal.signal(signal.SIGTERM, previous)


if __name__ == '__main__':
    sys.exit(main())
