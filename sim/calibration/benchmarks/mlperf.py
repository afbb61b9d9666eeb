"""MLPerf Inference: data sets instead of lengths, and a load generator with rules of its own.

LoadGen (mlcommons/inference ``loadgen``) sends all samples at once in the scenario Offline, and
single ones at random times of a given mean rate in Server and Interactive, for ten minutes and the
whole data set at least (``mlperf.conf``: ``min_duration``, ``min_query_count``). Lengths follow the
laws ``mlperf_*`` of ``workloads/lengths``, of which the means are published and the spreads are
assumed.
"""

import re
from collections.abc import Mapping
from typing import NamedTuple

from sim.calibration.benchmarks.plain import Benchmark
from sim.calibration.rows import Row, figure, load_of
from sim.efficiency import Engine
from sim.units import MINUTE_S, Dtype
from sim.workload.arrivals import BurstArrivals, PoissonArrivals
from sim.workload.kinds import OpenLoopWorkload


class DataSet(NamedTuple):
    """What a benchmark of the suite is asked."""

    law: str
    """Id of the law of lengths."""
    samples: int
    of_a_replica: int
    """What one replica answers in about ten minutes of Offline; assumed."""


DATA_SETS: Mapping[str, DataSet] = {
    "OpenOrca+GSM8K": DataSet("mlperf_mixtral", 15_000, 16_384),
    "OpenOrca": DataSet("mlperf_openorca", 24_576, 8_192),
    "LongBench": DataSet("mlperf_longdocs", 8_313, 512),
    "AIME": DataSet("mlperf_reasoning", 4_388, 2_048),
    "CNN": DataSet("mlperf_cnn_dailymail", 13_368, 16_384),
}
"""By the first words of the name that the notes give the data set, longer ones first."""
_TOLD = re.compile(r"dataset ([^(;]+)")
_SUITE = "MLPerf Inference"
_OPEN = "open datacenter"
_LIMITS = {
    "max_num_seqs": re.compile(r"gpu_batch_size (\d+)"),
    "max_num_batched_tokens": re.compile(r"max_num_tokens (\d+)"),
}
"""How the notes tell settings of TensorRT-LLM."""
SHORTEST_S = 10 * MINUTE_S
MOST_REQUESTS = 50_000
"""Longer runs are cut here, and of those with free arrivals the steady part counts."""
MAX_NUM_SEQS = 2_048
"""Sequences at once where nothing is told: submitters raise the limit until memory binds."""


class MlPerf(Benchmark):
    """A run of the suite whose lengths are not given."""

    unstated_tp = "fewest_that_hold_it"
    own_lengths = True

    def made(self, row: Row) -> bool:
        """Tell it by the notes, where they name a data set that is known."""
        unstated = not row["isl"] or not row["osl"]
        return unstated and _SUITE in row.get("notes", "") and data_set(row) is not None

    def settings(self, row: Row, engine: Engine, replicas: int) -> dict[str, object]:
        """Take the limits that the notes tell."""
        found = super().settings(row, engine, replicas) | {"max_num_seqs": MAX_NUM_SEQS}
        for name, words in _LIMITS.items():
            told = words.search(row.get("notes", ""))
            if told:
                found[name] = int(told[1])
        tokens = found.get("max_num_batched_tokens")
        if isinstance(tokens, int):  # each running sequence takes a token of a step
            found["max_num_seqs"] = min(int(str(found["max_num_seqs"])), tokens)
        return found

    def is_divided(self, row: Row) -> bool:
        """Tell that the samples of Offline are dealt out to the replicas beforehand."""
        return load_of(row) == "at_once"

    def kv_cache(self, row: Row, engine: Engine, weights: Dtype) -> Dtype:
        """Take 16 bits in the open division: its submitters ask vLLM and SGLang for none.

        See the commands of open/Krai/measurements in mlcommons/inference_results_v5.1.
        """
        if _OPEN in row.get("notes", "") and engine in ("vllm", "sglang"):
            return "bf16"
        return super().kv_cache(row, engine, weights)

    def queue(self, row: Row) -> OpenLoopWorkload:
        """Send one replica its share of what LoadGen sends in Offline."""
        asked = _data_set(row)
        return OpenLoopWorkload(
            kind="open_loop",
            traffic=asked.law,
            arrivals=BurstArrivals(),
            requests=asked.of_a_replica,
        )

    def open_loop(self, row: Row) -> OpenLoopWorkload:
        """Send single samples as LoadGen does in Server, at the rate that it was asked for."""
        asked = _data_set(row)
        rate = figure(row, "request_rate_qps")
        return OpenLoopWorkload(
            kind="open_loop",
            traffic=asked.law,
            arrivals=PoissonArrivals(rate_requests_per_s=rate),
            requests=min(max(asked.samples, round(rate * SHORTEST_S)), MOST_REQUESTS),
        )


def data_set(row: Row) -> DataSet | None:
    """Find the data set that the notes of a run name; none: they name none that is known.

    >>> data_set({"notes": "dataset OpenOrca (24576 samples, max in 1024 / max out 1024)"}).samples
    24576
    """
    told = _TOLD.search(row.get("notes", ""))
    if told is None:
        return None
    return next((found for name, found in DATA_SETS.items() if told[1].startswith(name)), None)


def _data_set(row: Row) -> DataSet:
    found = data_set(row)
    assert found is not None  # noqa: S101 - `made` has looked
    return found
