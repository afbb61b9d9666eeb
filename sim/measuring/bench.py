"""What a measurement is made of: points to measure, and the bench they are measured on."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from sim.measuring.device import Device
from sim.measuring.operators import Operators, Prepared
from sim.measuring.tables import Cell
from sim.measuring.timing import Patience, Timing, measured
from sim.units import MICROSECOND_S

FRAMEWORK = "native"
"""Engine under which these kernels are filed: ``native``, as for chips whose vendor ships one."""


class Written(NamedTuple):
    """A row and the table it goes to."""

    table: str
    row: Mapping[str, Cell]


@dataclass
class Bench:
    """A device with its operators, and what is kept open between points."""

    device: Device
    operators: Operators
    patience: Patience
    version: str
    """Of PyTorch, for the column ``version``."""
    _open: dict[str, Any] = field(default_factory=dict)

    def resource(self, name: str, opener: Callable[[], Any]) -> Any:
        """Return what was opened under a name, or open it; one at a time is kept."""
        if name not in self._open:
            self.release()
            self._open[name] = opener()
        return self._open[name]

    def release(self) -> None:
        """Close everything that is open, and give the operands back."""
        self.operators.clear()
        while self._open:
            _, each = self._open.popitem()
            close = getattr(each, "close", None)
            if close is not None:
                close()

    def labels(self) -> dict[str, Cell]:
        """Who measured what, as the files of kernels tell it."""
        return {"hardware": self.device.name, "framework": FRAMEWORK, "version": self.version}

    def timed(self, prepared: Prepared) -> dict[str, Cell]:
        """Time calls and tell it in the columns of a file of kernels."""
        found = measured(self.device.runner(prepared.calls), self.patience)
        how = ", CUDA graph" if self.device.graphs else ""
        return {**self.labels(), "kernel_source": prepared.kernel_source + how, **told(found)}


def told(timing: Timing) -> dict[str, Cell]:
    """Write a timing as columns."""
    return {
        "latency_us": timing.median_s / MICROSECOND_S,
        "spread_fraction": timing.spread_fraction,
        "blocks": timing.blocks,
        "calls": timing.calls,
    }


@dataclass(frozen=True)
class Point:
    """One thing to measure."""

    table: str
    """The table that its row goes to."""
    key: Mapping[str, Cell]
    """What tells its row from the others of the table."""
    run: Callable[[Bench], Sequence[Written]]
    """Measures it; its own row comes last, so that a point that was cut off is measured again."""
    needed_bytes: float = 0.0
    """Memory that it needs at least."""
    group: str = ""
    """Points of one group follow one another: they share what is slow to open."""

    def __str__(self) -> str:
        return " ".join(f"{name}={value}" for name, value in self.key.items())
