"""The optional files that this project can use but does not contain: what for, under which licence, from where.

Nothing is downloaded here. ``find`` looks whether a file, or what was imported from it, is here; those that a package
carries can be fetched when asked for (``io.parcels``), and lie in the user's cache then.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path

from avatar_jax.errors import UserError
from avatar_jax.io.parcels import PARCELS, cache_folder, fetched

VARIABLE = 'AVATAR_ASSETS'
_DEPTH = 3
_MAX_FILES = 20_000


@dataclass(frozen=True)
class Asset:
    """An optional file.

    Attributes:
        name: short.
        purpose: what becomes possible with it.
        licence: in a few words; the file's own terms decide.
        source: where users obtain it, in words.
        files: usual names (shell patterns); a name that ends in ``/`` is a folder, recognised by the file in it.
        methods: what the weight files that ``avatar-jax convert`` makes of it are of.
        parameters: how many numbers the networks have, if that is fixed: a float32 file has at least four times as many
            bytes.
        sha256: start of the SHA-256 of the usual file, where it is known.
    """

    name: str
    purpose: str
    licence: str
    source: str
    files: tuple[str, ...]
    methods: tuple[str, ...] = ()
    parameters: int | None = None
    sha256: str = ''

    @property
    def size(self) -> str:
        """Expected size in words; '' if it is not known."""
        return f'>= {4 * self.parameters / 1e6:.0f} MB' if self.parameters else ''


_TORCHVISION = 'BSD-3-Clause code, ImageNet terms for the data'
ASSETS = (
    Asset(
        'vgg19',
        'perceptual and style losses',
        _TORCHVISION,
        'the model page of torchvision',
        ('vgg19-*.pth',),
        ('perception/vgg19',),
        20_024_384,
        'dcbb9e9d',
    ),
    Asset(
        'vgg16',
        'LPIPS (vgg)',
        _TORCHVISION,
        'the model page of torchvision',
        ('vgg16-*.pth',),
        ('perception/vgg16',),
        14_714_688,
        '397923af',
    ),
    Asset(
        'alexnet',
        'LPIPS (alex)',
        _TORCHVISION,
        'the model page of torchvision',
        ('alexnet-*.pth',),
        ('perception/alexnet',),
        2_469_696,
        '7be5be79',
    ),
    Asset(
        'lpips',
        'channel weights of LPIPS, version 0.1',
        'BSD-2-Clause',
        'the PerceptualSimilarity project',
        ('alex.pth', 'vgg.pth', 'squeeze.pth'),
        ('perception/lpips_alex', 'perception/lpips_vgg', 'perception/lpips_squeeze'),
    ),
    Asset(
        'arcface18',
        'identity loss and CSIM (two-dimensional ArcFace of 18 layers)',
        'see the project that gives it out',
        'the GFPGAN project',
        ('arcface_resnet18.pth',),
        ('perception/arcface18', 'perception/arcface18_se'),
        25_627_081,
    ),
    Asset(
        'iresnet',
        'face recognition (insightface)',
        'non-commercial research',
        'the model zoo of insightface (arcface_torch)',
        ('backbone.pth', 'ms1mv3_arcface_r*.pth', 'glint360k_cosface_r*.pth'),
        tuple(f'perception/iresnet{d}' for d in (18, 34, 50, 100)),
        24_000_000,
    ),
    Asset(
        'irse50',
        'face recognition (pSp and e4e family)',
        'see the project that gives it out',
        'the pixel2style2pixel and encoder4editing projects',
        ('model_ir_se50.pth', 'model_ir50.pth'),
        ('perception/irse50', 'perception/ir50'),
        43_574_976,
    ),
    Asset(
        'inception',
        'FID as published numbers have it',
        'Apache-2.0',
        'the pytorch-fid project',
        ('pt_inception-2015-12-05-*.pth',),
        ('perception/inception',),
        21_785_568,
    ),
    Asset(
        'deep3d',
        'face coefficients of photographs (regressor)',
        'MIT code; see its project for the weights',
        'the Deep3DFaceRecon (PyTorch) project',
        ('epoch_20.pth',),
        ('deep3d_recon',),
        24_034_625,
    ),
    Asset(
        'bfm',
        'the face model of the coefficient regressor',
        'Basel Face Model licence: academic, personal, no redistribution',
        'the Basel Face Model 2009 of the University of Basel; expression basis from the Deep3DFaceRecon project',
        ('BFM_model_front.mat', '01_MorphableModel.mat', 'Exp_Pca.bin'),
        ('bfm2009_front',),
        8_000_000,
    ),
    Asset(
        'flame',
        'head model with neck, jaw and eyes',
        'FLAME licence: non-commercial (2023: CC BY 4.0)',
        'the FLAME project of the Max Planck Institute for Intelligent Systems',
        (
            'generic_model.pkl',
            'flame2023.pkl',
            'FLAME.pth',
            'landmark_embedding.npy',
            'mediapipe_landmark_embedding.npz',
        ),
        ('flame',),
        6_600_000,
    ),
    Asset(
        'ict',
        'freely licensed head model of named blend shapes',
        'MIT',
        'the ICT-FaceKit project of USC',
        ('generic_neutral_mesh.obj', 'ict_facekit.npz'),
        ('ict_facekit',),
    ),
    Asset(
        'face-landmarker',
        'landmarks, gaze and expressions of real faces (478 points, 52 numbers)',
        PARCELS['face-landmarker'].licence,
        'avatar-jax assets --get face-landmarker, or the MediaPipe project',
        ('face_landmarker*.task',),
        sha256=PARCELS['face-landmarker'].sha256[:12],
    ),
    Asset(
        'selfie-segmentation',
        'cutting a person out of a photograph (soft mask)',
        PARCELS['selfie-segmentation'].licence,
        'avatar-jax assets --get selfie-segmentation (npm), or the MediaPipe project',
        ('selfie_segmentation*.tflite',),
        sha256=PARCELS['selfie-segmentation'].sha256[:12],
    ),
    Asset(
        'face-recognition',
        'identity loss and CSIM of real faces (dlib)',
        PARCELS['face-recognition'].licence,
        'avatar-jax assets --get face-recognition, or the dlib project',
        ('dlib_face_recognition_resnet_model_v1.dat',),
        ('perception/dlib_face',),
        5_614_592,
        PARCELS['face-recognition'].sha256[:12],
    ),
)


@dataclass
class Present:
    """What is here of an asset: the original files, and weight files imported from them."""

    asset: Asset
    originals: list[Path] = field(default_factory=list)
    imported: list[Path] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)


def folders() -> list[Path]:
    """Where optional files are looked for: those of ``$AVATAR_ASSETS`` (several as in ``$PATH``), ``./assets``, and the
    folder of fetched ones.

    Raises:
        UserError: the variable names something that is no folder.
    """
    found = []
    for part in os.environ.get(VARIABLE, '').split(os.pathsep):
        if part:
            if not Path(part).is_dir():
                raise UserError(f'{VARIABLE}={part}: no such folder; correct or unset the variable')
            found.append(Path(part))
    return [*found, *(place for place in (Path('assets'), cache_folder()) if place.is_dir())]


def located(name: str) -> Path | None:
    """The file of an asset that a package carries, of the pinned SHA-256: in the cache, or in one of ``folders()``."""
    parcel = PARCELS[name]
    here = fetched(parcel)
    if here is not None:
        return here
    from avatar_jax.io.inputs import file_sha256

    for place in folders():
        for path in _files(place):
            if path.name == parcel.file and path.stat().st_size == parcel.size and file_sha256(path) == parcel.sha256:
                return path
    return None


def find(places: Iterable[Path] | None = None, check: bool = False, assets: Sequence[Asset] = ASSETS) -> list[Present]:
    """Which assets are in the folders, or folders in them.

    Args:
        places: folders; None takes ``folders()``.
        check: compute the SHA-256 of files for which one is known.
        assets: what to look for; ``methods.base.all_assets`` gives those of the methods too.
    """
    files = [f for place in (folders() if places is None else places) for f in _files(place)]
    methods = {f: m for f in files if f.suffix == '.safetensors' and (m := _method(f))}
    out = []
    for asset in assets:
        present = Present(asset)
        present.originals = sorted(
            {f for f in files for p in asset.files if f not in methods and fnmatchcase(f.name, p)}
        )
        present.imported = sorted(f for f, m in methods.items() if m in asset.methods)
        for path in present.originals:
            present.remarks += _remarks(asset, path, check)
        out.append(present)
    return out


def _files(folder: Path, depth: int = _DEPTH) -> list[Path]:
    out: list[Path] = []
    try:
        entries = sorted(folder.iterdir())
    except OSError:
        return out
    for entry in entries:
        if entry.is_dir() and depth > 1 and not entry.name.startswith('.'):
            out += _files(entry, depth - 1)
        elif entry.is_file():
            out.append(entry)
        if len(out) > _MAX_FILES:
            break
    return out


def _method(path: Path) -> str | None:
    """What an imported weight file holds, from its header alone."""
    from avatar_jax.io.tensor_files import Damaged, read_metadata  # needs numpy, which --help does not

    try:
        return json.loads(read_metadata(path)['avatar_jax'])['method']
    except (OSError, Damaged, ValueError, KeyError, TypeError, RecursionError):
        return None


def _remarks(asset: Asset, path: Path, check: bool) -> list[str]:
    from avatar_jax.io.inputs import file_sha256

    out = []
    size = path.stat().st_size
    if asset.parameters and path.suffix in ('.pkl', '.pth', '.pt', '.mat') and size < 2 * asset.parameters:
        out.append(f'{path.name}: has only {size} bytes, probably an incomplete download')
    if check and asset.sha256 and not file_sha256(path).startswith(asset.sha256):
        out.append(f'{path.name}: its SHA-256 does not start with {asset.sha256}')
    return out


def table(found: Sequence[Present], verbose: bool = False) -> list[str]:
    """Lines for people; ``verbose`` adds licence, source, usual names, size and SHA-256."""
    width = max(len(p.asset.name) for p in found)
    lines = []
    for p in found:
        state = 'imported' if p.imported else 'here, not imported' if p.originals else '-'
        lines.append(f'{p.asset.name:{width}}  {state:18}  {p.asset.purpose}')
        if verbose:
            a, indent = p.asset, ' ' * (width + 2)
            expected = ', '.join(filter(None, (a.size, f'SHA-256 {a.sha256}...' if a.sha256 else '')))
            lines += [
                f'{indent}licence: {a.licence}',
                f'{indent}from: {a.source}',
                f'{indent}files: {", ".join(a.files)}',
            ]
            lines += [f'{indent}expected: {expected}'] if expected else []
        if verbose or p.remarks:
            lines += [f'{" " * (width + 2)}{path}' for path in (*p.originals, *p.imported)]
        lines += [f'{" " * (width + 2)}! {remark}' for remark in p.remarks]
    return lines
