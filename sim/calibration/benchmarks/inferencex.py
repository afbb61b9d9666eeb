"""InferenceX, the public benchmark of SemiAnalysis (formerly InferenceMAX).

Its scripts (SemiAnalysisAI/InferenceX ``benchmarks/*.sh``) say how engines are started and what
is asked of them: ``--request-rate=inf --max-concurrency=$CONC --num-prompts=$(( $CONC * 10 ))``,
lengths drawn from 80 to 100 % of the nominal ones, prefix caching off.
"""

import math

from sim.calibration.benchmarks.plain import Benchmark
from sim.calibration.rows import Row, count
from sim.efficiency import Engine
from sim.workload.lengths import LengthLaw, UniformRangeLengths

RANDOM_LOW_FRACTION = 0.8
"""Lengths of random requests are drawn from 80 to 100 % of the nominal ones."""
_ORIGIN = "origin IX"


class InferenceX(Benchmark):
    """All clients start at once, so a tenth of the requests wait for the prompts of all.

    Its published times are means and not medians: times to first token grow by the same
    milliseconds per client on every engine and for answers of any length, as the mean over such a
    start does; the median of it hardly grows.
    """

    means = True
    rounds = 10

    def made(self, row: Row) -> bool:
        """Tell it by the notes."""
        return _ORIGIN in row.get("notes", "")

    def settings(self, row: Row, engine: Engine, replicas: int) -> dict[str, object]:
        """Start vLLM with asynchronous scheduling, whatever its release, and a place per client."""
        found = super().settings(row, engine, replicas)
        if engine != "vllm":
            return found
        places = math.ceil(count(row, "concurrency") / replicas)
        return found | {"max_num_seqs": places, "steps_ahead": 1, "host_overlapped": True}

    def lengths(self, row: Row) -> LengthLaw:
        """Draw them from a range below the nominal ones."""
        return UniformRangeLengths(
            kind="uniform_range",
            input_tokens=count(row, "isl"),
            output_tokens=count(row, "osl"),
            low_fraction=RANDOM_LOW_FRACTION,
        )
