"""``trtllm-bench throughput``, as the tables of NVIDIA/TensorRT-LLM ``perf-overview.md`` ran it.

All requests are queued at the start, with equal lengths, and the rate counts all of them from the
first to the last: with as few requests as the page lists, batches that fill and drain are a good
part of the run. The tool derives the largest batch and the tokens of a step from the memory that it
expects to have (``tensorrt_llm/bench/build/tuning.py``).
"""

import math
from collections.abc import Mapping

from sim.calibration.benchmarks.plain import Benchmark
from sim.calibration.rows import Row, count, load_of
from sim.catalog import Catalog
from sim.efficiency import Engine
from sim.scenario import Case
from sim.units import DTYPE_BYTES, Dtype

_TOOL = "trtllm-bench"
_KV_AUTO = "KV auto"
_TENSORRT = "TensorRT engine"
"""How rows of releases before 0.19 tell that the model ran in a built engine, without graphs."""
KV_FRACTION = 0.95
"""Share of the free memory for keys and values, which the page takes in many cases."""
K_TOKENS = 1_024
K_SEQUENCES = 1_024
"""What is called 1K."""
REQUESTS: Mapping[tuple[int, int], int] = {
    (128, 128): 30_000,
    (128, 2048): 3_000,
    (128, 4096): 1_500,
    (500, 2000): 3_000,
    (1000, 1000): 3_000,
    (1000, 2000): 1_500,
    (K_TOKENS, K_TOKENS): 3_000,
    (K_TOKENS, 2048): 1_500,
    (K_TOKENS, 8192): 1_500,
    (K_TOKENS, 32768): 1_000,
    (2048, 128): 3_000,
    (2048, 2048): 1_500,
    (5000, 500): 1_500,
    (8192, K_TOKENS): 1_500,
    (20000, 2000): 1_000,
    (32768, K_TOKENS): 1_000,
}
"""Requests by their input and output tokens, as the page lists them; that of (1024, 2048) is taken
from its neighbours."""
GRAPH_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 384, 512, K_SEQUENCES, 2048, 4096, 8192)
"""Batches with a graph, which smaller ones are padded to (``cuda_graph_config`` on the page)."""
MOST_SEQUENCES = 4_096
MOST_TOKENS = 32_768
FEWEST_SEQUENCES = 64
FEWEST_TOKENS = 2_048
"""Bounds of what the tool derives."""
_SEQUENCE_STEPS = ((256, 32), (K_SEQUENCES, 128), (MOST_SEQUENCES, 256))
_TOKEN_STEPS = ((4_096, 256), (8_192, 512), (MOST_TOKENS, K_TOKENS))
"""Values below so much are rounded up to a multiple of so much."""


class TrtllmBench(Benchmark):
    """All requests at once, as many as the page lists for their lengths."""

    def made(self, row: Row) -> bool:
        """Tell it by the notes."""
        return load_of(row) == "at_once" and _TOOL in row.get("notes", "")

    def queued(self, row: Row) -> int:
        """Count the requests."""
        lengths = count(row, "isl"), count(row, "osl")
        return REQUESTS.get(lengths) or super().queued(row)

    def settings(self, row: Row, engine: Engine, replicas: int) -> dict[str, object]:
        """Capture the page's graphs where there are any, and take most of the free memory."""
        graphs = () if _TENSORRT in row["engine"] else GRAPH_SIZES
        found = super().settings(row, engine, replicas)
        return found | {"memory_fraction": KV_FRACTION, "graph_sizes": graphs}

    def kv_cache(self, row: Row, engine: Engine, weights: Dtype) -> Dtype:
        """Give the format that the notes tell: ``auto`` is that of the activations."""
        if _KV_AUTO in row.get("notes", ""):
            return "bf16"
        return super().kv_cache(row, engine, weights)

    def tuned(self, row: Row, case: Case, catalog: Catalog) -> Mapping[str, object]:
        """Derive the largest batch and the tokens of a step as the tool does."""
        sequences = cached_sequences(case, catalog, count(row, "isl") + count(row, "osl"))
        raw = min(sequences, MOST_SEQUENCES) / case.parallelism.pp
        tokens = min(raw * (1 + count(row, "isl") / count(row, "osl")), MOST_TOKENS)
        found: dict[str, object] = {
            "max_num_seqs": max(FEWEST_SEQUENCES, _rounded_up(raw, _SEQUENCE_STEPS)),
            "max_num_batched_tokens": max(FEWEST_TOKENS, _rounded_up(tokens, _TOKEN_STEPS)),
        }
        return found


def cached_sequences(case: Case, catalog: Catalog, tokens: int) -> float:
    """Guess how many sequences of so many tokens the memory beside the weights holds.

    The tool's guess, which is on the high side: it leaves nothing for activations and buffers.
    """
    model = catalog.model(case.model)
    chip = catalog.accelerator(catalog.system(case.system).accelerator)
    memory_bytes = chip.local_memory.capacity_bytes.value * case.parallelism.chips
    weight_bytes = model.total_parameters * DTYPE_BYTES[case.precision.weights]
    token_bytes = model.growing_kv_elements_per_token * DTYPE_BYTES[case.precision.kv_cache]
    free_bytes = max(memory_bytes - weight_bytes, 0.0) * KV_FRACTION
    return free_bytes / (token_bytes * tokens) if token_bytes else float(MOST_SEQUENCES)


def _rounded_up(value: float, steps: tuple[tuple[int, int], ...]) -> int:
    """Round up to a multiple that grows with the value.

    >>> [_rounded_up(value, _SEQUENCE_STEPS) for value in (70.0, 300.5, 1500.0, 4096.0)]
    [96, 384, 1536, 4096]
    """
    multiple = next((step for bound, step in steps if value < bound), steps[-1][1])
    return multiple * math.ceil(value / multiple)
