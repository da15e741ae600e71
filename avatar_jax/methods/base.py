"""What a method declares about itself, and where methods are found.

A method is one folder in ``avatar_jax/methods`` with a module ``method.py`` that has a ``METHOD``, or an object that a
package of yours names in the entry-point group ``avatar_jax.methods``. Commands, notebooks, evaluation and benchmark
use what a ``Method`` declares and know no method by name. docs/architecture.md tells how to add one.

This module and every ``method.py`` are imported for ``--help``: they need no jax. What computes is named by ``later``.
"""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache, wraps
from importlib import metadata
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from avatar_jax.errors import UserError
from avatar_jax.options import flag
from avatar_jax.options import option as option

if TYPE_CHECKING:
    import numpy as np

    from avatar_jax.configure import Dataclass
    from avatar_jax.inversion.saving import Course
    from avatar_jax.io.assets import Asset
    from avatar_jax.losses.perception import PerceptionBank
    from avatar_jax.types import Avatar, Config, Portrait

GROUP = 'avatar_jax.methods'
DEFAULT = 'otavatar'  # of the commands, if neither --method nor weights nor an avatar name one
KINDS = ('portrait', 'portraits', 'video')


def later(place: str) -> Callable:
    """The function, class or class method ``'module:name'``, imported when it is first called."""
    module, _, name = place.partition(':')

    def call(*args: Any, **options: Any) -> object:
        return attrgetter(name)(importlib.import_module(module))(*args, **options)

    call.place = place
    return call


def later_value(place: str) -> Callable:
    """A function that gives the object ``'module:name'``, imported when it is first asked for."""
    module, _, name = place.partition(':')

    def value() -> object:
        return attrgetter(name)(importlib.import_module(module))

    value.place = place
    return value


def never(*args: Any, **options: Any) -> bool:
    """False, for what a method says of every configuration."""
    return False


# ------------------------------------------------------------------------------------------------ what goes in and out


@dataclass(frozen=True)
class Source:
    """What one avatar is made of.

    Attributes:
        portraits: one portrait, several of the same person, or all frames of a video in order. Those of a video are
            a sequence that reads frames when they are asked for, so that minutes need no more memory than seconds.
        kind: 'portrait', 'portraits' or 'video'; '': 'portrait' or 'portraits', by their number.
        name: of the avatar's folder.
        fps: frames per second of a video.
        sound: file with the sound of a video, whose first frame is at ``start`` seconds; '' if there is none.
        times: [T] moments of a video's frames, seconds on the clock of its sound; None: evenly from ``start`` on.
        notes: what was done when it was read, or left out; a method that takes videos passes them on in ``Built``.
        work: folder in which a long ``build`` keeps its state and pictures, to go on when it was interrupted; '': none.
    """

    portraits: Sequence[Portrait]
    kind: str = ''
    name: str = 'portrait'
    fps: float = 25.0
    sound: str = ''
    start: float = 0.0
    times: Sequence[float] | None = None
    notes: tuple[str, ...] = ()
    work: str = ''

    def __post_init__(self):
        if len(self.portraits) == 0:
            raise UserError('portraits: none given; an avatar needs at least one picture')
        if self.kind == '':
            object.__setattr__(self, 'kind', 'portrait' if len(self.portraits) == 1 else 'portraits')
        if self.times is not None and len(self.times) != len(self.portraits):
            raise UserError(f'source: {len(self.times)} times of {len(self.portraits)} frames; give one for each')
        if self.kind not in KINDS:
            raise UserError(f'source: kind {self.kind!r}; use one of {", ".join(KINDS)}')


@dataclass
class Built:
    """An avatar and how it came about.

    Attributes:
        avatar: the avatar.
        scores: name -> number, of the finished avatar, e.g. ``psnr`` (dB) to the first portrait.
        curves: name -> values, one for each step of an optimisation.
        report: further plain values for the avatar's ``report.json``: what was done, not what was asked for.
        notes: sentences for the user, e.g. that the portraits seem to show different people.
        views: [3,S,S,3] pictures from ``render.side_labels``, if they were rendered already; for the picture in the
            avatar's folder.
        course: how the loss of an inversion fell, to compare starts of it.
    """

    avatar: Avatar
    scores: dict[str, float] = field(default_factory=dict)
    curves: dict[str, np.ndarray] = field(default_factory=dict)
    report: dict[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    views: np.ndarray | None = None
    course: Course | None = None


@dataclass(frozen=True)
class NoOptions:
    """The options of a ``build`` that has none."""


# -------------------------------------------------------------------------------------------------------- declarations


@dataclass(frozen=True)
class Training:
    """One way to train a method's networks: ``avatar-jax train``, ``bench --train``, ``ablate``.

    Attributes:
        config: plain values -> the run's configuration, a frozen dataclass (``train.runner.RunConfig``).
        start: (configuration, streams, quiet) -> ``train.runner.Run``: state, step, data, export. ``streams`` is the
            module ``data_pipelines.streams``, by which batches are read.
        program: configuration -> ``train.program.Program``: the step with random data, for measuring and counting.
        example: a config file of this training, for messages.
    """

    config: Callable
    start: Callable
    program: Callable
    example: str = ''


@dataclass(frozen=True)
class Forward:
    """How a ``build`` is a forward pass of the pictures alone: nothing is searched or fitted (``invert --fast``).

    Attributes:
        options: of ``build`` that leave out the rest; empty: it is never anything else.
        needs: names of options without which there is no such pass, e.g. the file of an encoder.
    """

    options: Mapping[str, Any] = field(default_factory=dict)
    needs: tuple[str, ...] = ()


@dataclass(frozen=True)
class Bench:
    """The stages that ``avatar-jax bench`` measures.

    Attributes:
        presets: names of sizes; the first is the default.
        stages: names, in the order in which they are measured.
        config: (preset, dtype or None, rays at a time or None) -> the model's configuration; raises ``UserError``.
        build: (configuration, batch size) -> an object whose ``stage(name)`` returns a function, its arguments, and the
            numbers of the arguments that may be donated (overwritten).
        note: one line for comparison, e.g. what the paper reports.
        compared: pairs of stages, or of several of them joined by '+', of which the first is told as a share of the
            second.
    """

    presets: tuple[str, ...]
    stages: tuple[str, ...]
    config: Callable
    build: Callable
    note: str = ''
    compared: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Row:
    """A row of a table.

    Attributes:
        variant: name of the variant that is trained.
        key: which of its results the row shows, see ``Table.protocol``.
        paper: score -> the paper's figure.
    """

    variant: str
    key: str = ''
    paper: Mapping[str, float] = field(default_factory=dict)


class Claim(NamedTuple):
    """What a paper's table says of two of its rows.

    Attributes:
        better, worse: names of the rows. scores: in which it is so; empty: in all scores of the table.
        equal: they are the same, within the spread of the seeds.
    """

    better: str
    worse: str
    scores: tuple[str, ...] = ()
    equal: bool = False


@dataclass(frozen=True)
class Table:
    """A table of the method's paper, for ``avatar-jax ablate``: variants are trained and compared.

    Attributes:
        title: of the report, e.g. 'GPAvatar, Table 3'.
        rows: name -> row.
        claims: what the paper concludes: a ``Claim``, or the (better, worse) of one.
        scores: name of a score -> whether higher is better.
        run: (variant, size, seed, steps or None, folder for shared pictures) -> ``FILE:VARIANT`` of the config to
            train, and its overrides; or a list of such pairs, trained one after the other: each but the first goes on
            from the weights of the one before (``--config.init``).
        protocol: how a trained model is scored: 'portraits' (``eval.portraits``), or (model, people) -> {key: {score:
            number}}.
        builds: with the protocol 'portraits', key -> options with which avatars of one portrait are built; empty: keys
            are numbers of portraits.
        sizes: of networks and data; the first is the default.
        note: what to know about the scores.
    """

    title: str
    rows: Mapping[str, Row]
    claims: tuple[tuple[str, str] | Claim, ...]
    scores: Mapping[str, bool]
    run: Callable
    protocol: str | Callable
    builds: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    sizes: tuple[str, ...] = ('tiny', 'full')
    note: str = ''

    @property
    def variants(self) -> tuple[str, ...]:
        """What has to be trained, each once."""
        return tuple(dict.fromkeys(row.variant for row in self.rows.values()))


@dataclass(frozen=True)
class Method:
    """What a method is. One without avatars needs only ``name``, ``title`` and ``trainings``.

    Attributes:
        name: for files, options and folders. title: the paper's spelling.
        weights: name of the weight file in the package that is used if none is given; '': there is none. It may belong
            to another method if ``load_prior`` takes it.
        config: plain values -> the model's configuration, a frozen dataclass with ``img_resolution``, ``basis``,
            ``label_mode`` and ``to_dict()``.
        load: path -> (variables, configuration, SHA-256, provenance).
        load_prior: the same for weights of another method of which a part is enough to build on, e.g. a generator;
            None: only the method's own weights can be used.
        save: (path, variables, configuration, provenance, storage) -> SHA-256.
        init: (configuration, key) -> fresh variables. abstract: configuration -> their shapes.
        sources: kinds of ``Source`` that ``build`` takes. most: portraits of one person; 0: any number.
        one_each: where it takes several portraits: pictures given together are of one person each, unless ``invert
            --one-person`` says that they show one; without it they always do.
        build: (model, source, options, bank=..., key=..., on_step=...) -> ``Built``. ``bank``: networks of the losses
            (``losses.perception.PerceptionBank``). ``key``: for random draws, or None. ``on_step(done, **numbers)`` is
            called after every few steps.
        build_many: (model, sources, options, ...) -> a ``Built`` for each, computed side by side; None builds one after
            the other.
        build_options: dataclass of ``option`` fields.
        forward: how ``build`` is a forward pass alone; None: it always searches or trains.
        draws: (configuration, options) -> whether ``build`` draws anything by its ``key``; None: always.
        steps: (model, options) -> number of steps of a ``build``; None: one.
        signals: names of the signals that drive a frame (``driving.signals``), e.g. 'expression', 'windows'; or, where
            models of the method are driven differently, configuration -> names (see ``signals_of``).
        own_signals: name -> ``driving.signals.Signal``, of signals that only this method has; or a function that gives
            them (``later_value``).
        own_config: whether an avatar is driven with the configuration that is stored in it, and not the model's: of
            methods that learn networks for each person (``Model.of``).
        ways: configuration -> {name: configuration} of the ways in which avatars of it can be driven, the first is that
            of the configuration itself; None: there is one.
        prepare: (variables, configuration, identity) -> what is computed once for all frames; None: nothing.
        frame: (variables, configuration, identity, prepared, signals, labels, keys, sr) -> ``Frames``: N frames side by
            side, from signals [N, ...], camera labels [N,25], keys [N] or None; ``sr`` False leaves super-resolution
            out. A pure function.
        interpolate: (identity, identity, amount) -> the identity between two people; ``prepare`` must not depend on the
            identity then. None: avatars cannot be mixed.
        networks: (configuration, bank) -> {loss: network in words}: what the losses of ``build`` look through.
        looks_through: (configuration, bank) -> names of the bank's networks that ``build`` uses; a network that was
            given and is not among them is refused. None: of a method with ``networks`` nothing is checked; of others
            every network is refused.
        trainings: name -> ``Training``; the first is the default.
        generator: path -> (variables, ``models.triplane.GeneratorConfig``, digest) of a weight file or run that holds a
            generator: what ``avatar-jax metrics`` scores.
        evaluation_options: of ``build`` in an evaluation or the demonstration, where they differ from its defaults.
        bench: its stages, for ``avatar-jax bench``.
        foreign: () -> tuple of ``convert.base.ForeignFile``, one for each kind of file that other programs wrote.
        assets: optional files (``io.assets.Asset``). tables: name -> ``Table``.
    """

    name: str
    title: str
    weights: str = ''
    config: Callable | None = None
    load: Callable | None = None
    load_prior: Callable | None = None
    save: Callable | None = None
    init: Callable | None = None
    abstract: Callable | None = None
    sources: tuple[str, ...] = ()
    most: int = 0
    one_each: bool = False
    build: Callable | None = None
    build_many: Callable | None = None
    build_options: type = NoOptions
    forward: Forward | None = None
    draws: Callable | None = None
    steps: Callable | None = None
    signals: tuple[str, ...] | Callable[[Any], tuple[str, ...]] = ()
    own_signals: Mapping[str, Any] | Callable[[], Mapping[str, Any]] = field(default_factory=dict)
    own_config: bool = False
    ways: Callable[[Any], Mapping[str, Any]] | None = None
    prepare: Callable | None = None
    frame: Callable | None = None
    interpolate: Callable | None = None
    networks: Callable | None = None
    looks_through: Callable | None = None
    trainings: Mapping[str, Training] = field(default_factory=dict)
    generator: Callable | None = None
    evaluation_options: Mapping[str, Any] = field(default_factory=dict)
    bench: Bench | None = None
    foreign: Callable[[], tuple] | None = None
    assets: tuple = ()
    tables: Mapping[str, Table] = field(default_factory=dict)

    @property
    def has_avatars(self) -> bool:
        """Whether it makes avatars and drives them."""
        return self.build is not None and self.frame is not None

    @property
    def takes_portraits(self) -> bool:
        """Whether it makes one avatar of several portraits of a person."""
        return 'portraits' in self.sources

    @property
    def joins_portraits(self) -> bool:
        """Whether pictures that are given together become one avatar, without being said to show one person."""
        return self.takes_portraits and not self.one_each

    def signals_of(self, config: Config) -> tuple[str, ...]:
        """Names of the signals that drive models of this configuration."""
        return tuple(self.signals(config)) if callable(self.signals) else self.signals

    def used_networks(self, config: Config, bank: PerceptionBank) -> tuple[str, ...] | None:
        """The bank's networks that ``build`` looks through; None where the method does not tell."""
        if self.looks_through is not None:
            return self.looks_through(config, bank)
        return () if self.networks is None else None

    def options(self, values: Mapping[str, Any] | None = None) -> Dataclass:
        """``build_options`` with ``values``. Raises ``UserError`` for names that it does not have."""
        from avatar_jax.configure import from_plain

        return from_plain(self.build_options, values or {})

    def forward_options(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """The options ``given``, and those with which ``build`` is a forward pass alone.

        Raises:
            UserError: it has none, needs an option that is not given, or an option asks for something else.
        """
        own = self.forward
        missing = () if own is None else tuple(f'{flag(name)} FILE' for name in own.needs if not given.get(name))
        if own is None or missing:
            able = ', '.join(m.name for m in methods() if m.has_avatars and m.forward and not m.forward.needs)
            needs = f' without {" and ".join(missing)}; add that, or' if missing else ';'
            raise UserError(f'--fast: {self.title} has no forward pass{needs} choose another --method ({able})')
        for name, value in own.options.items():
            if given.get(name, value) != value:
                raise UserError(
                    f'--fast: {flag(name)} {given[name]} is more than a forward pass; leave one of them out'
                )
        return {**own.options, **given}


# ------------------------------------------------------------------------------------------------------------ discovery


@lru_cache(maxsize=1)
def _places() -> dict[str, Any]:
    """Name -> where its ``METHOD`` is: a module of this package, or an entry point."""
    folder = Path(__file__).parent
    found: dict[str, Any] = {
        p.parent.name: f'avatar_jax.methods.{p.parent.name}.method' for p in sorted(folder.glob('*/method.py'))
    }
    for point in metadata.entry_points(group=GROUP):
        found.setdefault(point.name, point)
    return found


def _cached_by_places(function: Callable) -> Callable:
    """Remembers results until ``forget`` is called."""
    cached = lru_cache(maxsize=None)(function)
    _caches.append(cached)
    return wraps(function)(lambda *args: cached(*args))


_caches: list[Any] = [_places]


def forget() -> None:
    """Looks for methods anew; for packages that were installed while the program runs."""
    for cached in _caches:
        cached.cache_clear()


def names() -> tuple[str, ...]:
    """All methods, those of this package first."""
    return tuple(_places())


@_cached_by_places
def method(name: str) -> Method:
    """The method of that name.

    Raises:
        UserError: there is none (suggests the nearest name), or its package cannot be imported.
    """
    places = _places()
    if name not in places:
        close = difflib.get_close_matches(name, places, 1)
        hint = f"did you mean '{close[0]}'?" if close else f'there are: {", ".join(places)}'
        raise UserError(f"method '{name}': not known; {hint}")
    place = places[name]
    try:
        found = importlib.import_module(place).METHOD if isinstance(place, str) else place.load()
    except Exception as error:
        if isinstance(place, str):
            raise
        raise UserError(
            f"method '{name}': {place.value} cannot be used ({type(error).__name__}: {error}); mend or remove the "
            'package that declares it'
        ) from error
    if not isinstance(found, Method):
        raise UserError(f"method '{name}': {place.value} is not an avatar_jax.methods.base.Method")
    return found


def methods() -> tuple[Method, ...]:
    """All methods that can be imported; one of a broken package is left out (``method`` says what is wrong)."""
    found = []
    for name in names():
        try:
            found.append(method(name))
        except UserError:
            if isinstance(_places()[name], str):
                raise
    return tuple(found)


def method_with_avatars(name: str) -> Method:
    """A method that makes avatars. Raises ``UserError`` for one that does not."""
    found = method(name)
    if not found.has_avatars:
        able = ', '.join(m.name for m in methods() if m.has_avatars)
        raise UserError(f"method '{name}': has no avatars, only trainings; use one of {able}")
    return found


def training(method_name: str, name: str = '') -> Training:
    """A training of a method; the first one where no name is given. Raises ``UserError`` if there is none."""
    owner = method(method_name)
    if not owner.trainings:
        raise UserError(f"method '{method_name}': has no training")
    if not name:
        return next(iter(owner.trainings.values()))
    if name not in owner.trainings:
        raise UserError(f"training '{name}': {method_name} has {', '.join(owner.trainings)}")
    return owner.trainings[name]


def all_assets() -> tuple[Asset, ...]:
    """The optional files of all methods and of what they share."""
    from avatar_jax.io.assets import ASSETS

    return (*(asset for m in methods() for asset in m.assets), *ASSETS)


def an_example() -> str:
    """A config file that shows a training, for messages and defaults: that of the default method."""
    return training(DEFAULT).example
