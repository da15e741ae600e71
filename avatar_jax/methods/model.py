"""A loaded model of any method: build avatars, drive them; and the files of weights and avatars.

model = load_model('heads128')                  # a shipped file, or a path
built = model.build(portrait)                   # ``Built``: avatar, scores, curves, report
frames = model.frames(built.avatar, motion, labels)
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from avatar_jax.driving.signals import drive_of, drive_of_rows, still_parts, still_rows
from avatar_jax.errors import UserError
from avatar_jax.methods.base import DEFAULT, KINDS, Built, Method, Source, method, method_with_avatars
from avatar_jax.methods.options import check_portraits
from avatar_jax.methods.render import stream
from avatar_jax.parallel import as_arrays
from avatar_jax.types import Array, Avatar, Camera, Config, Drive, Frames, Motion, Portrait

if TYPE_CHECKING:
    from jaxtyping import Float

    from avatar_jax.configure import Dataclass
    from avatar_jax.losses.perception import PerceptionBank

AVATAR_FILE = 'avatar.safetensors'


@dataclass(frozen=True)
class Model:
    """Weights with all that is needed to use them.

    Attributes:
        method: whose they are. config: the model's configuration. variables: nested dict of arrays.
        sha256: identifies the weights. provenance: how they were made. path: the file.
    """

    method: Method
    config: Config
    variables: Mapping[str, Any] = field(repr=False)
    sha256: str = ''
    provenance: Mapping[str, Any] | None = None
    path: str = ''

    def build(
        self,
        source: Source | Portrait | Sequence[Portrait],
        *,
        bank: PerceptionBank | None = None,
        key: jax.Array | None = None,
        on_step: Callable[..., None] | None = None,
        **options: Any,
    ) -> Built:
        """An avatar of one person (slow the first time: compiles).

        Args:
            source: a portrait, several of the same person, or a ``Source`` (a video, for instance).
            bank: networks of the losses; None: the shipped stand-ins where they fit.
            key: for random draws; None: there are none.
            on_step: called with (steps done, numbers by name); ``steps`` tells their number.
            options: of the method, see its ``build_options``.

        Raises:
            UserError: the method cannot make an avatar of that, or has no such option.
        """
        source = as_source(source)
        check_source(self.method, source)
        return self.method.build(
            self, source, self.options(options), bank=self._bank(bank), key=key, on_step=on_step or _silent
        )

    def build_many(
        self,
        sources: Sequence[Source | Portrait | Sequence[Portrait]],
        *,
        bank: PerceptionBank | None = None,
        key: jax.Array | None = None,
        on_step: Callable[..., None] | None = None,
        **options: Any,
    ) -> list[Built]:
        """An avatar of each source, over all devices of the process; side by side on each where the method can."""
        sources = [as_source(s) for s in sources]
        for source in sources:
            check_source(self.method, source)
        chosen, bank, on_step = self.options(options), self._bank(bank), on_step or _silent
        if self.method.build_many is not None:
            return self.method.build_many(self, sources, chosen, bank=bank, key=key, on_step=on_step)
        each, done, lock = self.steps(**options), [0] * len(sources), threading.Lock()

        def one(i: int, model: Model, wanted: Callable[[], None] = _always) -> Built:
            def step(count: int, **numbers: Any) -> None:
                wanted()
                with lock:
                    done[i] = count
                    on_step(sum(done), **numbers)

            own = None if key is None else jax.random.fold_in(key, i)
            built = self.method.build(model, sources[i], chosen, bank=bank, key=own, on_step=step)
            done[i] = each
            return built

        devices = jax.local_devices()[: len(sources)]
        if len(devices) < 2:
            return [one(i, self) for i in range(len(sources))]
        return _on_devices(self, one, len(sources), devices)

    def options(self, values: Mapping[str, Any]) -> Dataclass:
        """The method's ``build_options`` with these values."""
        return self.method.options(values)

    def steps(self, **options: Any) -> int:
        """Number of steps of one ``build``."""
        return 1 if self.method.steps is None else self.method.steps(self, self.options(options))

    def drive(self, motion: Drive | Motion | np.ndarray) -> Drive:
        """The signals of a motion (or of rows [T,70], windows [T,27,70]); a ``Drive`` stays as it is."""
        if isinstance(motion, Drive):
            return motion
        if isinstance(motion, Motion):
            return drive_of(self.method, self.config, motion)
        return drive_of_rows(self.method, self.config, motion)

    def of(self, avatar: Avatar) -> Model:
        """The model as it is used with an avatar: with the avatar's own configuration where the method wants it."""
        return replace(self, config=avatar.config) if self.method.own_config and avatar.config is not None else self

    def stream(
        self, avatar: Avatar, drive: Drive | Motion | np.ndarray, labels: Float[Array, 'frames 25'], **options: Any
    ) -> Iterator[Frames]:
        """Frames of an avatar, some at a time; see ``methods.render.stream`` for the options."""
        check_weights(avatar, self)
        own = self.of(avatar)
        return stream(self.method, self.variables, own.config, avatar, own.drive(drive), labels, **options)

    def frames(
        self, avatar: Avatar, drive: Drive | Motion | np.ndarray, labels: Float[Array, 'frames 25'], **options: Any
    ) -> Frames:
        """All frames of an avatar as numpy arrays: rgb [T,H,W,3] in [-1,1], raw, depth, opacity.

        Args:
            drive: who drives it: a ``Motion``, a ``Drive``, or rows [T,70] or windows [T,27,70] of coefficients.
            labels: [T,25] cameras.
            options: see ``methods.render.stream``.

        Raises:
            UserError: the avatar belongs to other weights, or the motion to another basis.
        """
        parts = list(self.stream(avatar, drive, labels, **options))
        return jax.tree.map(lambda *x: np.concatenate(x), *parts)

    def still(self, portrait: Portrait, count: int = 1) -> Drive:
        """What keeps an avatar as the portrait is, ``count`` frames long; one that is driven by sound hears silence."""
        rows, others = np.repeat(still_rows(portrait), count, 0), still_parts(portrait, count)
        return drive_of_rows(self.method, self.config, rows, others=others)

    def _bank(self, bank: PerceptionBank | None) -> PerceptionBank:
        from avatar_jax.losses.networks import default_bank

        return default_bank(self.config.img_resolution) if bank is None else bank


def _always() -> None:
    """Nothing speaks against going on."""


def _on_devices(
    model: Model, one: Callable[[int, Model, Callable[[], None]], Built], count: int, devices: Sequence[jax.Device]
) -> list[Built]:
    """``one(i, model, wanted)`` for i up to ``count``: a thread for each device, with the model on it.

    ``wanted()`` raises once another one has failed.
    """
    stopped = threading.Event()

    def wanted() -> None:
        if stopped.is_set():
            raise RuntimeError('stopped: another avatar could not be made')

    def part(first: int) -> list[Built]:
        with jax.default_device(devices[first]):
            own = replace(model, variables=jax.device_put(model.variables, devices[first]))
            return [one(i, own, wanted) for i in range(first, count, len(devices))]

    with ThreadPoolExecutor(len(devices)) as pool:
        jobs = [pool.submit(part, k) for k in range(len(devices))]
        try:
            for job in as_completed(jobs):
                job.result()
        except BaseException:  # Ctrl-C, too: the others end with their next step
            stopped.set()
            raise
    found = [jobs[i % len(devices)].result()[i // len(devices)] for i in range(count)]
    return [replace(built, avatar=jax.device_put(built.avatar, devices[0])) for built in found]


def _silent(done: int, **numbers: Any) -> None:
    """Shows no progress."""


def as_source(source: Source | Portrait | Sequence[Portrait]) -> Source:
    """A ``Source`` of whatever pictures are given."""
    if isinstance(source, Source):
        return source
    return Source([source] if isinstance(source, Portrait) else source)


def check_source(owner: Method, source: Source) -> None:
    """Raises ``UserError`` for a kind of source, or a number of portraits, that a method does not take."""
    if source.kind in owner.sources:
        if source.kind == 'portraits':
            check_portraits(owner, len(source.portraits), source.name)
        return
    texts = dict(zip(KINDS, ('one portrait', 'several portraits of one person', 'a video'), strict=True))
    takes = ' or '.join(texts[k] for k in owner.sources)
    raise UserError(f'{source.name}: is {texts[source.kind]}; {owner.title} makes an avatar of {takes}')


# -------------------------------------------------------------------------------------------------------------- weights


def load_model(name: str | os.PathLike, wanted: Method | None = None) -> Model:
    """Reads a weight file: a path, or the name of one inside the package.

    Args:
        wanted: a method that is to use the weights: also if they are another's, where that is enough for it
            (``Method.load_prior``). None: the method whose weights they are.

    Raises:
        UserError: missing, damaged or foreign file; a method that is not known here.
    """
    from avatar_jax.io.weights import load_weights, weight_file

    path = weight_file(name)
    found = load_weights(path).method
    if wanted is not None and wanted.load_prior is not None and found != wanted.name:
        variables, config, sha256, provenance = wanted.load_prior(path)
        return Model(wanted, config, variables, sha256, provenance, str(path))
    owner = method(found)
    if owner.load is None:
        raise UserError(f'{path}: holds weights of {owner.name}, which cannot be used for avatars')
    variables, config, sha256, provenance = owner.load(path)
    return Model(owner, config, variables, sha256, provenance, str(path))


def choose_model(method_name: str | None, weights: str | os.PathLike | None) -> Model:
    """The model behind the options ``--method`` and ``--weights``, of which either may be missing.

    Raises:
        UserError: no such method; weights of another method; a method without weights in the package.
    """
    wanted = None if method_name is None else method_with_avatars(method_name)
    if weights is None:
        wanted = wanted or method(DEFAULT)
        if not wanted.weights:
            example = next((t.example for t in wanted.trainings.values() if t.example), f'configs/{wanted.name}.py')
            raise UserError(
                f'--method {wanted.name}: no weights for it are in the package; train some (avatar-jax train --config '
                f'{example}) or import published ones (avatar-jax convert), and give --weights FILE'
            )
        weights = wanted.weights
    model = load_model(weights, wanted)
    if wanted is not None and model.method.name != wanted.name:
        raise UserError(
            f"{weights}: holds weights of '{model.method.name}', but --method is {wanted.name}; give other weights or "
            'leave --method out'
        )
    return model


def check_weights(avatar: Avatar, model: Model) -> None:
    """Raises ``UserError`` when an avatar belongs to another method or to other weights."""
    if avatar.method and avatar.method != model.method.name:
        raise UserError(f"avatar: belongs to the method '{avatar.method}', these weights to '{model.method.name}'")
    if avatar.weights and model.sha256 and avatar.weights != model.sha256:
        raise UserError(
            f'avatar: was made with other weights ({avatar.weights[:12]}, these are {model.sha256[:12]}); '
            'give those weights or make the avatar again'
        )


# --------------------------------------------------------------------------------------------------------- avatar files


def save_avatar(folder: str | os.PathLike, avatar: Avatar, provenance: Mapping[str, Any] | None = None) -> Path:
    """Writes ``avatar.safetensors`` into a folder (made if missing); returns its path.

    The file holds the identity's arrays and the camera; its metadata the method, basis, source and the SHA-256 of the
    weights it belongs to, and where the avatar comes from (``provenance``, plain values).
    """
    from avatar_jax.configure import to_plain
    from avatar_jax.io.weights import save_weights

    path = Path(folder) / AVATAR_FILE
    variables = {'identity': jax.tree.map(np.asarray, avatar.identity)}
    if avatar.camera is not None:
        variables['camera'] = {'label': np.asarray(avatar.camera.label)}
    config = {
        'method': avatar.method,
        'basis': avatar.basis,
        'weights': avatar.weights,
        'source': avatar.source,
        'config': to_plain(avatar.config),
    }
    save_weights(path, variables, method='avatar', config=config, provenance=provenance or {})
    return path


def load_avatar(path: str | os.PathLike) -> Avatar:
    """Reads an avatar: the folder that ``save_avatar`` wrote to, or the file in it.

    Raises:
        UserError: nothing there, damaged, or not an avatar.
    """
    from avatar_jax.io.weights import load_weights

    path = Path(path)
    if path.is_dir():
        if not (path / AVATAR_FILE).is_file():
            inside = sorted(p.parent.name for p in path.glob(f'*/{AVATAR_FILE}'))
            hint = f'choose one of {", ".join(inside[:5])} in it' if inside else 'make one with avatar-jax invert'
            raise UserError(f'{path}: holds no avatar ({AVATAR_FILE}); {hint}')
        path = path / AVATAR_FILE
    weights = load_weights(path, method='avatar')
    about = weights.config
    owner = method_with_avatars(about['method'])
    camera = None
    if 'camera' in weights.variables:
        camera = Camera.from_label(np.asarray(weights.variables['camera']['label']))
    return Avatar(
        as_arrays(weights.variables['identity']),
        camera=camera,
        method=owner.name,
        config=None if about['config'] is None else owner.config(about['config']),
        basis=about['basis'],
        weights=about['weights'],
        source=about['source'],
    )
