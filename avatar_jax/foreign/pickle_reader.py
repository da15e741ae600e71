"""A reader for the pickle format that runs nothing.

A pickle is a program for a small stack machine. Three of its instructions can call anything that Python can import,
which is why loading a foreign pickle in the usual way runs whatever its author wanted. This machine has the same
instructions but no way to import or to call: a name stays a name, and what to do where the program wants to call one
is decided by a ``Constructors`` object from an explicit list (``avatar_jax.foreign.constructors``). Everything else is
refused with its name.

All protocols (0 to 5) are understood. Extension codes, out-of-band buffers and textual persistent ids, which have no
place in files of weights, are refused. Large byte strings stay views of the file. The cost of a pickle is bounded: the
number of instructions, the size of integers and texts, and what may serve as a key (see ``avatar_jax.foreign.limits``);
no instruction recurses. The result may still contain itself or share containers so often that walking it would not
end; ``avatar_jax.foreign.tree`` checks that.
"""

from __future__ import annotations

import pickletools
from typing import Any

from avatar_jax.foreign.limits import Damaged, Refused
from avatar_jax.foreign.pickle_instructions import INSTRUCTIONS, STOP
from avatar_jax.foreign.pickle_machine import Machine
from avatar_jax.foreign.pickle_values import Value

_NAMES = {ord(op.code): op.name for op in pickletools.opcodes}


class PickleReader(Machine):
    """Reads one pickle."""

    def run(self) -> Value:
        """Carries out the program and gives its value; ``position`` is then the first byte after the pickle.

        Raises:
            Damaged: it is not a pickle or ends too early.
            Refused: it wants something that weights have no need of.
        """
        data, end, operations = self.data, self.end, INSTRUCTIONS
        for count in range(self.budget.opcodes_left()):
            position = self.position
            if position >= end:
                raise Damaged('ends in the middle of a pickle')
            code = data[position]
            self.position = position + 1
            if code == STOP:
                self.budget.opcodes(count + 1)
                return self._result()
            operation = operations[code]
            if operation is None:
                raise _no_such_instruction(code, position)
            operation(self)
        raise Refused('has far more pickle instructions than weights need')

    def _result(self) -> Any:
        value = self.pop()
        if self.stack:
            raise Damaged('a pickle ends with values left over')
        return value


def _no_such_instruction(code: int, position: int) -> Exception:
    if code in _NAMES:
        return Refused(f'uses the pickle instruction {_NAMES[code]}, which files of weights have no need of')
    return Damaged(f'is not a pickle: byte {position} is no instruction (0x{code:02x})')
