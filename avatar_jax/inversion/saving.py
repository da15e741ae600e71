"""What a better start saves: steps and seconds until an inversion has come to the loss of the other one."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np


@dataclass(frozen=True)
class Course:
    """How the loss of one person's inversion fell.

    Attributes:
        loss: [n] before each step, of the same terms in all of them; NaN where no step was made.
        seconds: [n] that each step took, without compilation; of people side by side: of all of them.
        before: seconds that were spent before the first step, on the code to start from.
    """

    loss: np.ndarray
    seconds: np.ndarray
    before: float = 0.0

    def steps_to(self, loss: float) -> int | None:
        """Steps until the loss is no larger than ``loss``; None if it never is."""
        with np.errstate(invalid='ignore'):
            reached = np.flatnonzero(self.loss <= loss)
        return int(reached[0]) if len(reached) else None

    def seconds_to(self, steps: int) -> float:
        """Seconds of the first ``steps`` steps, with those before them."""
        return self.before + float(self.seconds[:steps].sum())

    def report(self) -> dict[str, float]:
        """Plain values: steps that were made, their seconds without compilation, those before them."""
        made = int(np.isfinite(self.loss).sum())
        seconds = float(self.seconds[np.isfinite(self.loss)].sum())
        return {'steps': made, 'seconds': seconds, 'seconds_before': self.before}

    @property
    def lowest(self) -> float:
        """The lowest loss that it came to."""
        return float(np.nanmin(self.loss))


@dataclass
class StepClock:
    """Seconds of steps that are made some at a time. The first call of each program compiles it: it counts as the
    median of the others.
    """

    calls: list[tuple[object, int, float]] = field(default_factory=list)

    def add(self, program: object, steps: int, seconds: float) -> None:
        """A call of a program made ``steps`` steps."""
        self.calls.append((program, steps, seconds))

    @property
    def total(self) -> float:
        """Seconds of all calls, with compilation."""
        return sum(seconds for _, _, seconds in self.calls)

    def per_step(self) -> np.ndarray:
        """[n] seconds of each step."""
        out, seen = [], set()
        for program, steps, seconds in self.calls:
            others = [s / n for p, n, s in self.calls if p == program][1:]
            first = program not in seen
            seen.add(program)
            out.append(np.full(steps, np.median(others) if first and others else seconds / steps))
        return np.concatenate(out) if out else np.zeros(0)


def saving(usual: Course, better: Course) -> dict[str, float]:
    """What ``better`` saves until the lowest loss that ``usual`` comes to.

    Returns:
        ``steps`` and ``seconds`` saved, ``steps_usual``, ``steps_better``, ``seconds_usual``, ``seconds_better``, and
        ``reached``: 1 if it came to that loss, else 0; the others that need it are NaN then.
    """
    target = usual.lowest
    of_usual, of_better = usual.steps_to(target), better.steps_to(target)
    missing = of_better is None
    found = {
        'reached': float(not missing),
        'steps_usual': float(of_usual),
        'seconds_usual': usual.seconds_to(of_usual),
        'steps_better': np.nan if missing else float(of_better),
        'seconds_better': np.nan if missing else better.seconds_to(of_better),
        'loss_first_usual': float(usual.loss[0]),
        'loss_first_better': float(better.loss[0]),
        'loss_last_usual': target,
        'loss_last_better': better.lowest,
    }
    for name in ('steps', 'seconds'):
        found[name] = found[f'{name}_usual'] - found[f'{name}_better']
    return found
