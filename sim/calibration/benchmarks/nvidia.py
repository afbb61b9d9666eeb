"""NVIDIA's own runs in the samples of aiconfigurator."""

import math

from sim.calibration.benchmarks.inferencex import RANDOM_LOW_FRACTION
from sim.calibration.benchmarks.plain import Benchmark
from sim.calibration.rows import Row, clients, count, load_of
from sim.efficiency import Engine
from sim.workload.lengths import LengthLaw, UniformRangeLengths

_ORIGIN = "origin NV"


class NvidiaInternal(Benchmark):
    """Their lengths are told to be equal.

    Clients that start together would then stay in step for ever; but the first tokens came in a
    third of the time that all prompts at once take. So their lengths are spread as those of
    InferenceX, around the same means: an assumption.

    TensorRT-LLM was given a place less than there were clients, which nobody says, but the times to
    first token of 177 runs do: up to 32 clients they grow with the answer by the time that one
    client in turn waits for a whole answer, ``output_tokens * tpot / clients`` (on one H100 by
    0.93, 0.43 and 0.26 ms per token with 8, 16 and 32 clients, at 7.5 to 8.2 ms per token).
    """

    rounds = 10
    """As the client's rule of thumb has it; their runs of one H100 show the tenth of the requests
    that wait for the prompts of all: times to first token of 45 runs are met within 13 % in the
    median, within 30 % with 5 and 23 % without a common start."""

    def made(self, row: Row) -> bool:
        """Tell them by the notes."""
        return _ORIGIN in row.get("notes", "") and load_of(row) == "closed"

    def settings(self, row: Row, engine: Engine, replicas: int) -> dict[str, object]:
        """Give the places of the batch."""
        found = super().settings(row, engine, replicas)
        if engine == "trtllm":
            found["max_num_seqs"] = max(1, math.ceil(clients(row) / replicas) - 1)
        return found

    def lengths(self, row: Row) -> LengthLaw:
        """Spread them around what is told."""
        longest = 2 / (1 + RANDOM_LOW_FRACTION)
        return UniformRangeLengths(
            kind="uniform_range",
            input_tokens=round(count(row, "isl") * longest),
            output_tokens=round(count(row, "osl") * longest),
            low_fraction=RANDOM_LOW_FRACTION,
        )
