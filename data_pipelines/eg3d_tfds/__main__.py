"""Builds a data set from a folder or zip of your own.

    python -m data_pipelines.eg3d_tfds --path FOLDER --data-dir DIR

The folder holds square pictures of one size and ``dataset.json`` (docs/data.md). Every label is checked first: 25
numbers, a right-handed orthonormal rotation stored as camera-to-world row by row, axes as OpenCV has them, a plausible
distance, normalised intrinsics. What is wrong is said with the picture's name. Prints the folder for
``data.source=built``.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from avatar_jax.errors import UserError


def build(
    path: str | Path,
    data_dir: str | Path = 'data',
    validation: int = 0,
    mirror: str = 'off',
    radius: tuple[float, float] | None = None,
    progress: bool = True,
) -> Path:
    """Builds (or finds) the data set and returns its folder.

    Args:
        path: folder or zip in EG3D's form.
        data_dir: TFDS root; the data set goes into ``labelled_pictures/<name>/<version>`` below it.
        validation: number of pictures, the first ones, that become the split 'validation'.
        mirror: 'off' or 'images+labels' (stores every picture's mirror image, too).
        radius: plausible distances of the cameras from the origin; None: 1 to 6.
    Raises:
        UserError: labels or pictures that cannot be used, or a folder that cannot be written.
    """
    import tensorflow_datasets as tfds

    from data_pipelines.eg3d_images import RADIUS_RANGE, Eg3dImages
    from data_pipelines.eg3d_tfds.builder import LabelledPictures, PicturesConfig

    source = Eg3dImages(path, mirror=mirror, radius=radius or RADIUS_RANGE)
    if not 0 <= validation < len(source):
        raise UserError(f'--validation {validation}: must be less than the {len(source)} pictures of {path}')
    tfds.disable_progress_bar()
    origin = source.fingerprint()
    config = PicturesConfig(
        name=f'{Path(path).stem.lower()}-{origin[:8]}-{validation}',
        resolution=source.resolution,
        origin=origin,
        validation=validation,
    )
    try:
        builder = LabelledPictures(data_dir=Path(data_dir), config=config)
        builder.source, builder.show_progress = source, progress
        builder.download_and_prepare(file_format='array_record')
    except (OSError, RuntimeError) as e:
        if isinstance(e, RuntimeError) and 'No space left' not in str(e):
            cause = e.__cause__
            if isinstance(cause, UserError):
                raise cause from e
            raise
        raise UserError(
            f'{data_dir}: cannot write the data set ({e}); free some space or choose another --data-dir'
        ) from e
    return Path(builder.data_path)


def main(argv: list[str] | None = None) -> int:
    """Command line; returns the exit status."""
    from absl import logging

    parser = argparse.ArgumentParser(prog='python -m data_pipelines.eg3d_tfds', description=__doc__.splitlines()[0])
    parser.add_argument('--path', required=True, metavar='PATH', help='folder or zip with pictures and dataset.json')
    parser.add_argument('--data-dir', default='data', metavar='DIR', help='where TFDS keeps data sets (default: data)')
    parser.add_argument(
        '--validation',
        type=int,
        default=0,
        metavar='N',
        help='the first N pictures become the split validation (default: 0)',
    )
    parser.add_argument(
        '--mirror',
        default='off',
        choices=('off', 'images+labels'),
        help='images+labels: also store the mirror image of every picture (default: off)',
    )
    parser.add_argument(
        '--radius',
        type=float,
        nargs=2,
        metavar=('MIN', 'MAX'),
        help='camera distances that are accepted (default: 1 6)',
    )
    args = parser.parse_args(argv)
    logging.set_verbosity(logging.ERROR)
    try:
        radius = tuple(args.radius) if args.radius else None
        print(build(args.path, args.data_dir, args.validation, args.mirror, radius))
    except UserError as e:
        print(f'error: {e}', file=sys.stderr)
        return 2
    return 0


if __name__ == '__main__':
    sys.exit(main())
