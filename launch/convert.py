"""Brings weights that were published elsewhere into this project, or takes them back.

  avatar-jax convert FILE --to DIR            imports a file; what it is, is found out from its content
  avatar-jax convert --verify RECORD.npz DIR  compares what was imported into DIR with recorded outputs
  avatar-jax convert --export safetensors FILE --to DIR
                                              writes an imported file under the original names and layouts

Nothing in a file is ever run. An entry that is missing, or that nothing is known about, is an error.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from avatar_jax.errors import UserError
from avatar_jax.io.names import shown


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options."""
    add = parser.add_argument
    text = 'file to import (or folder of ICT-FaceKit); with --verify or --export see above'
    add('source', metavar='FILE', help=text)
    add('--to', metavar='DIR', help='folder for the weight files and the report')
    add('--as', dest='kind', metavar='KIND', help='kind of the file, if its content does not tell')
    text = 'start of the tensor names of the network to take, if the file has several'
    add('--prefix', metavar='TEXT', help=text)
    text = 'ignore unexpected entries whose names match this shell pattern; may be repeated'
    add('--allow', metavar='PATTERN', action='append', default=[], help=text)
    add('--verify', metavar='RECORD.npz', help='compare with recorded outputs of the original program')
    add('--export', metavar='FORMAT', help="'safetensors': original names and layouts")
    add('--all', action='store_true', help='list all entries of the file, not only the first ones')


def run(args: argparse.Namespace) -> int:
    """Carries out the command; the exit status."""
    if args.verify is None and args.export is None:
        return _import(args)
    if args.verify is not None and args.export is not None:
        raise UserError(f'--export {args.export}: does not go with --verify; leave one of them out')
    for option, value in {'as': args.kind, 'prefix': args.prefix, 'allow': args.allow, 'all': args.all}.items():
        if value:
            raise UserError(f'--{option}: works only when a file is imported; leave it out')
    return _export(args) if args.verify is None else _verify(args)


def _import(args: argparse.Namespace) -> int:
    from avatar_jax.convert.convert import convert
    from avatar_jax.methods.foreign_files import all_kinds

    need_folder(args)
    done = convert(
        args.source,
        args.to,
        all_kinds(),
        kind=args.kind,
        prefix=args.prefix,
        allow=args.allow,
        on_step=lambda text: print(shown(text), file=sys.stderr),
    )
    print('\n'.join(done.report.lines(args.all)))
    for path, method in done.files.items():
        print(f'{path}: {method}')
    print(f'{done.report_path}: every entry')
    return 0


def _export(args: argparse.Namespace) -> int:
    from avatar_jax.convert.export import export
    from avatar_jax.methods.foreign_files import all_kinds

    need_folder(args)
    if args.export != 'safetensors':
        raise UserError(f'--export {args.export}: unknown; use safetensors')
    if Path(args.source).is_dir():
        raise UserError(f'{args.source}: is a folder; give one of the weight files in it')
    print(export(args.source, args.to, all_kinds()))
    return 0


def _verify(args: argparse.Namespace) -> int:
    from avatar_jax.convert.verify import verify
    from avatar_jax.methods.foreign_files import all_kinds

    if args.to is not None:
        raise UserError('--to: nothing is written by --verify; leave it out')
    comparison = verify(args.verify, args.source, all_kinds())
    print('\n'.join(comparison.lines()))
    return 0 if comparison.passed else 1


def need_folder(args: argparse.Namespace) -> None:
    """Raises ``UserError`` unless there is a place for the results."""
    if args.to is None:
        raise UserError('--to: give a folder for the results')
