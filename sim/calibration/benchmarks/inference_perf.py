"""The generator of inference-perf for prompts with a shared prefix."""

import re

from sim.calibration.benchmarks.plain import Benchmark
from sim.calibration.rows import Row, count, load_of
from sim.workload.sharing import SharedPrefixes
from sim.workload.single import ConstantTokens

_RECURRING = re.compile(r"shared[-_]prefix multi-turn")
_PROMPTS = re.compile(r"(\d+) system prompts x (\d+) users")
RECURRING_PROMPTS = 45
"""Prompts of runs that do not tell how many."""


class InferencePerf(Benchmark):
    """One question per user is drawn at the start and sent again and again.

    See kubernetes-sigs/inference-perf ``inference_perf/datagen/shared_prefix_datagen.py``. After
    the first round all of a prompt but its last block is in the prefix cache. As measured, the
    time to first token is then three steps.
    """

    def made(self, row: Row) -> bool:
        """Tell it by the notes."""
        return bool(_RECURRING.search(row.get("notes", ""))) and load_of(row) == "open"

    def sharing(self, row: Row) -> SharedPrefixes:
        """Let all prompts recur."""
        told = _PROMPTS.search(row.get("notes", ""))
        return SharedPrefixes(
            prefixes=int(told[1]) * int(told[2]) if told else RECURRING_PROMPTS,
            tokens=ConstantTokens(kind="constant", tokens=count(row, "isl")),
            popularity=0.0,
        )
