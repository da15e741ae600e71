"""``Method.build_options`` as options of a command that takes any method; needs no jax."""

from __future__ import annotations

import argparse
from typing import Any

from avatar_jax.errors import UserError
from avatar_jax.methods.base import Method, methods
from avatar_jax.options import METAVARS, converted, flag, help_of, kind_of, option_fields


def add_build_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options of all methods, each once; which method has it is said in its help."""
    owners: dict[str, list[Method]] = {}
    for owner in methods():
        for name in option_fields(owner.build_options) if owner.has_avatars else ():
            owners.setdefault(name, []).append(owner)
    group = parser.add_argument_group('options of the methods')
    for name, having in owners.items():
        texts: dict[str, list[str]] = {}
        for owner in having:
            texts.setdefault(help_of(option_fields(owner.build_options)[name]), []).append(owner.name)
        help_text = '; '.join(f'{", ".join(names)}: {text}' for text, names in texts.items())
        kind, about = kind_of(having[0].build_options, name), option_fields(having[0].build_options)[name].metadata
        choices = [c for owner in having for c in option_fields(owner.build_options)[name].metadata.get('choices', ())]
        by_kind = '|'.join(dict.fromkeys(choices)) or METAVARS.get(kind, 'TEXT')
        more: dict[str, Any] = {'metavar': about.get('metavar', by_kind)}
        if kind is bool:
            more = {'nargs': '?', 'const': 'true', 'metavar': 'yes|no'}
        elif kind is tuple:
            more['nargs'] = '+'
        group.add_argument(flag(name), dest=f'build_{name}', help=help_text.replace('%', '%%'), **more)


def makes(owner: Method) -> str:
    """What a method makes of pictures, for a help text that lists methods."""
    if owner.sources == ('video',):
        return ' (an avatar of each video)'
    if owner.joins_portraits:
        return ' (one avatar of all portraits)'
    return ' (an avatar of each portrait' + (', or with --one-person one of all)' if owner.takes_portraits else ')')


def check_portraits(owner: Method, count: int, what: str) -> None:
    """Raises ``UserError``, which begins with ``what``, for more portraits of one person than a method takes."""
    if count > 1 and not owner.takes_portraits:
        able = ', '.join(m.name for m in methods() if m.takes_portraits)
        raise UserError(f'{what}: {owner.name} rebuilds a person from one picture; use --method {able}')
    if owner.most and count > owner.most:
        raise UserError(
            f'{what}: {owner.title} takes at most {owner.most} portraits of one person, not {count}; leave some out'
        )


def whether_joined(owner: Method, count: int, one_person: bool, share: str | None) -> bool:
    """Whether ``count`` pictures of a command become one avatar, as the method does or ``--one-person`` asks.

    Raises:
        UserError: the method cannot, takes fewer, or there is a ``--share`` of what is one avatar.
    """
    if one_person:
        check_portraits(owner, max(count, 2), '--one-person')
    joined = owner.joins_portraits or one_person
    if joined and share is not None:
        raise UserError(f'--share {share}: one avatar of all pictures is made; leave it out')
    return joined


def given_options(args: argparse.Namespace, owner: Method) -> dict[str, Any]:
    """The options that were given, as values for ``Model.build``; with ``--fast`` (of ``invert``) also those of a
    forward pass alone.

    Raises:
        UserError: an option that the method does not have, or a value of a wrong kind; no forward pass.
    """
    prefix, fields = 'build_', option_fields(owner.build_options)
    given = {k.removeprefix(prefix): v for k, v in vars(args).items() if k.startswith(prefix) and v is not None}
    values = {}
    for name, text in given.items():
        if name not in fields:
            has = ', '.join(map(flag, fields))
            raise UserError(
                f'{flag(name)}: {owner.title} has no such option; leave it out'
                + (f' (it has {has})' if has else ' (it has none)')
            )
        values[name] = converted(text, kind_of(owner.build_options, name), flag(name), fields[name].metadata)
    if getattr(args, 'fast', False):
        values = owner.forward_options(values)
    owner.options(values)  # the checks of the dataclass
    return values
