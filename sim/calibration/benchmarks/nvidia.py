"""NVIDIA's own runs in the samples of aiconfigurator."""

from sim.calibration.benchmarks.inferencex import RANDOM_LOW_FRACTION
from sim.calibration.benchmarks.plain import Benchmark
from sim.calibration.rows import Row, count, load_of
from sim.workload.lengths import LengthLaw, UniformRangeLengths

_ORIGIN = "origin NV"


class NvidiaInternal(Benchmark):
    """Their lengths are told to be equal.

    Clients that start together would then stay in step for ever; but the first tokens came in a
    third of the time that all prompts at once take. So their lengths are spread as those of
    InferenceX, around the same means: an assumption.
    """

    def made(self, row: Row) -> bool:
        """Tell them by the notes."""
        return _ORIGIN in row.get("notes", "") and load_of(row) == "closed"

    def lengths(self, row: Row) -> LengthLaw:
        """Spread them around what is told."""
        longest = 2 / (1 + RANDOM_LOW_FRACTION)
        return UniformRangeLengths(
            kind="uniform_range",
            input_tokens=round(count(row, "isl") * longest),
            output_tokens=round(count(row, "osl") * longest),
            low_fraction=RANDOM_LOW_FRACTION,
        )
