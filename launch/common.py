"""Options that several commands have, and how they speak to the person who asked."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable

from avatar_jax.io.names import shown
from avatar_jax.methods.base import DEFAULT, Method, methods


def say(text: str) -> None:
    """A sentence for the person who asked, on stderr."""
    print(shown(f'avatar-jax: {text}'), file=sys.stderr)


def add_model(parser: argparse.ArgumentParser, about: Callable[[Method], str] = lambda owner: '') -> None:
    """--method and --weights of commands that make avatars; the help lists the methods, each with what is ``about``
    it."""
    able = ', '.join(m.name + about(m) for m in methods() if m.has_avatars)
    parser.add_argument('--method', metavar='NAME', help=f'{able}; default: that of --weights, else {DEFAULT}')
    text = 'weight file, or the name of one in the package (default: the one of the method)'
    parser.add_argument('--weights', metavar='FILE|NAME', help=text)


def add_perception(parser: argparse.ArgumentParser, text: str) -> None:
    """--perception NAME=FILE ..., which may be repeated."""
    more = {'nargs': '+', 'action': 'extend', 'default': [], 'metavar': 'NAME=FILE'}
    parser.add_argument('--perception', help=f'{text}; a network that nothing uses is refused', **more)
