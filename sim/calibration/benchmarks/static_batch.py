"""Static batches: equal prompts, all at once, answered to the end before the next ones come.

The rows are those of LLM-Inference-Bench (argonne-lcf/LLM-Inference-Bench; arXiv:2411.00136) and of
early tables of TensorRT-LLM. What the first one's scripts do:

* vLLM (``vLLM/*/benchmark_throughput.py``, ``benchmark_latency.py``): ``LLM.generate`` in the
  process, prompts of random token ids, ``ignore_eos``, engine settings as they come
  (``max_num_seqs`` 256, no chunked prefill), ``--dtype float16``, batches beforehand to warm up.
* TensorRT-LLM (``TensorRT-LLM/*/run.py``): ``ModelRunnerCpp.generate`` on an engine that was built
  for just this batch, after one such batch to warm up. Answers may end early: an end token is set.
* DeepSpeed-MII (``Deepspeed-MII/A100/pipeline.py``): ``mii.pipeline`` on prompts of one repeated
  word, with nothing run beforehand. Answers may end early.

Throughput is the tokens asked for over the time of the whole batch, so that the time of the batch
says nothing more.
"""

import re
from collections.abc import Mapping

from sim.calibration.benchmarks.plain import Benchmark
from sim.calibration.machines import TRTLLM_IN_CPP
from sim.calibration.rows import Row, count, load_of
from sim.catalog import Catalog
from sim.efficiency import Engine
from sim.parallelism import Parallelism
from sim.scenario import Case

_STATIC = "static batch"
_RELEASE = re.compile(r"\d+\.\d+")
_KIND = re.compile(r"parallelism type: ([^;]*)")
_RANKS = re.compile(r"(Tensor|TP|Pipeline|PP|EP)\D{0,4}(\d+)")
_AXES = {"Tensor": "tp", "TP": "tp", "Pipeline": "pp", "PP": "pp", "EP": "ep"}
LLM_MAX_NUM_SEQS = 256
"""Sequences at once of vLLM's ``LLM`` unless told (vllm-project/vllm v0.6 vllm/config.py)."""
MOST_UNCUT_TOKENS = 32_768
"""Longest context for which vLLM of that time does not cut prompts; a step holds one context."""
MOST_TOKENS = 8_192
"""Tokens of a step of the other engines (``max_num_tokens`` of ``trtllm-build``)."""
FEWEST_TOKENS = 512
"""Where the limit does not bind, so many are enough."""
MII_BATCH_TOKENS = 768
"""Tokens of a step of DeepSpeed-MII, ``max_ragged_batch_size`` (microsoft/DeepSpeed
deepspeed/inference/v2/ragged/manager_configs.py)."""


class StaticBatch(Benchmark):
    """As many requests as the batch has, at time 0, and none after them."""

    unstated_tp = "all_chips"

    def made(self, row: Row) -> bool:
        """Tell it by the notes."""
        return load_of(row) == "at_once" and _STATIC in row.get("notes", "")

    def settings(self, row: Row, engine: Engine, replicas: int) -> dict[str, object]:
        """Start the engine of the time as its script does."""
        found = super().settings(row, engine, replicas)
        batch = count(row, "concurrency")
        if engine == "trtllm":  # an engine that was built for this batch, without graphs
            built = {"max_num_seqs": batch, "graph_sizes": ()}
            return found | built | {"name": TRTLLM_IN_CPP}  # of 2024, whatever the day
        found["max_num_seqs"] = max(LLM_MAX_NUM_SEQS, batch)
        if engine == "vllm" and not _RELEASE.search(row["engine"]):
            found["name"] = "vllm_0_6"
        if _is_mii(row):
            found |= {
                "composition": "mixed",
                "chunked_prefill": True,
                "graph_sizes": (),
            }
        return found

    def tuned(self, row: Row, case: Case, catalog: Catalog) -> Mapping[str, object]:
        """Let a step of prompts hold one context of the model, as vLLM did before V1.

        No step holds more than the prompts of the batch, so the limit is no higher than those: the
        paces of a pool are computed for every number of tokens up to it.
        """
        limit = MOST_TOKENS
        if case.engine.name == "vllm_0_6":
            limit = min(catalog.model(case.model).max_positions, MOST_UNCUT_TOKENS)
        if _is_mii(row):
            limit = MII_BATCH_TOKENS
        prompts = count(row, "concurrency") * count(row, "isl")
        return {"max_num_batched_tokens": min(limit, max(prompts, FEWEST_TOKENS))}

    def split(self, row: Row, tp: int, chips: int) -> Parallelism:
        """Read the cut off the notes where the columns leave it out."""
        told = _KIND.search(row.get("notes", ""))
        if row.get("pp") or told is None:
            return super().split(row, tp, chips)
        ranks = {_AXES[name]: int(number) for name, number in _RANKS.findall(told[1])}
        if not ranks:  # one word: all chips are of that kind
            axis = _AXES.get(told[1].strip().split(" ")[0], "tp")
            ranks = {axis: chips}
        pp = ranks.get("pp", 1)
        return Parallelism(tp=chips // pp, pp=pp, ep=ranks.get("ep", 1))


def _is_mii(row: Row) -> bool:
    return "deepspeed" in row["engine"].lower()
