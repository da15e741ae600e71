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
    parser.add_argument(
        'source', metavar='FILE', help='file to import (or folder of ICT-FaceKit); with --verify or --export see above'
    )
    parser.add_argument('--to', metavar='DIR', help='folder for the weight files and the report')
    parser.add_argument('--as', dest='kind', metavar='KIND', help='kind of the file, if its content does not tell')
    parser.add_argument(
        '--prefix', metavar='TEXT', help='start of the tensor names of the network to take, if the file has several'
    )
    parser.add_argument(
        '--allow',
        metavar='PATTERN',
        action='append',
        default=[],
        help='ignore unexpected entries whose names match this shell pattern; may be repeated',
    )
    parser.add_argument('--verify', metavar='RECORD.npz', help='compare with recorded outputs of the original program')
    parser.add_argument('--export', metavar='FORMAT', help="'safetensors': original names and layouts")
    parser.add_argument('--all', action='store_true', help='list all entries of the file, not only the first ones')


def run(args: argparse.Namespace) -> int:
    """Carries out the command; the exit status."""
    if args.verify is not None and args.export is not None:
        raise UserError('--verify and --export: give one of them')
    importing = args.verify is None and args.export is None
    if not importing:
        for option, value in (
            ('--as', args.kind),
            ('--prefix', args.prefix),
            ('--allow', args.allow),
            ('--all', args.all),
        ):
            if value:
                raise UserError(f'{option}: works only when a file is imported; leave it out')
    if args.verify is not None:
        if args.to is not None:
            raise UserError('--to: nothing is written by --verify; leave it out')
        return _verify(args)
    if args.to is None:
        raise UserError('--to: give a folder for the results')
    if args.export is not None:
        return _export(args)
    return _import(args)


def _import(args: argparse.Namespace) -> int:
    from avatar_jax.convert.convert import convert
    from avatar_jax.methods.foreign_files import all_kinds

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

    if args.export != 'safetensors':
        raise UserError(f'--export {args.export}: unknown; use safetensors')
    if Path(args.source).is_dir():
        raise UserError(f'{args.source}: is a folder; give one of the weight files in it')
    print(export(args.source, args.to, all_kinds()))
    return 0


def _verify(args: argparse.Namespace) -> int:
    from avatar_jax.convert.verify import verify
    from avatar_jax.methods.foreign_files import all_kinds

    comparison = verify(args.verify, args.source, all_kinds())
    print('\n'.join(comparison.lines()))
    return 0 if comparison.passed else 1
