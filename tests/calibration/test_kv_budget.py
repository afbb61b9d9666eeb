"""The KV cache that we forecast beside what vLLM logged at start-up on H100.

Sources, figures cited as facts:

- planner: llm-d-incubation/llm-d-planner, accuracy/accuracy_report.md and
  accuracy/results/v0.19.0/logs (April 2026): vLLM 0.19.0 on H100 80GB, 79.19 GiB visible,
  gpu_memory_utilization 0.95, 8192 tokens and 1024 sequences by default;
- vllm#10511: vllm-project/vllm pull request 10511, comment of 2024-12-14: vLLM 0.6.5 on H100,
  79.22 GiB visible, gpu_memory_utilization 0.9, 8192 tokens and 256 sequences by default.
"""

from typing import NamedTuple

import pytest

from sim.catalog import open_catalog
from sim.cost.memory import (
    EngineShare,
    MemoryUse,
    activation_bytes,
    engine_bytes,
    memory_use,
)
from sim.model import GroupedQueryAttention, MixtureOfExperts, Model
from sim.parallelism import Parallelism
from sim.precision import Precision
from sim.units import GIB, Dtype

CATALOG = open_catalog()
H100 = CATALOG.accelerator("h100_sxm")
DEFAULTS = EngineShare(0.95, 0.0, max_num_batched_tokens=8192, max_num_seqs=1024)


class Logged(NamedTuple):
    """One start-up of vLLM; GiB per chip."""

    model: str
    tp: int
    weights: Dtype
    kv_cache: Dtype
    weights_gib: float
    activations_gib: float
    outside_gib: float
    """``non-torch`` in the log."""
    kv_gib: float
    kv_tokens: int | None


PLANNER = (
    Logged("llama_3_1_8b", 1, "bf16", "bf16", 14.99, 1.89, 0.25, 58.11, 476_016),
    Logged("llama_3_1_8b", 1, "bf16", "fp8", 14.99, 1.89, 0.25, 58.11, 952_032),
    Logged("llama_3_1_8b", 1, "fp8", "bf16", 8.49, 1.89, 0.25, 64.61, None),
    Logged("llama_3_1_70b", 2, "fp8", "bf16", 33.88, 1.96, 2.10, 37.28, 15_269 * 16),
    Logged("llama_3_1_70b", 4, "fp8", "bf16", 16.96, 1.97, 2.21, 54.09, 44_312 * 16),
)


def forecast(run: Logged, share: EngineShare = DEFAULTS) -> MemoryUse:
    parallelism = Parallelism(tp=run.tp)
    whole = EngineShare(
        share.memory_fraction,
        engine_bytes(parallelism),
        share.max_num_batched_tokens,
        share.max_num_seqs,
    )
    precision = Precision(weights=run.weights, kv_cache=run.kv_cache)
    return memory_use(CATALOG.model(run.model), parallelism, precision, H100, whole)


@pytest.mark.parametrize("run", PLANNER, ids=str)
class TestCurrentVllm:
    def test_the_log_adds_up(self, run: Logged) -> None:
        """Budget less weights, activations and the rest is what the log calls KV cache memory."""
        parts = run.weights_gib + run.activations_gib + run.outside_gib
        assert 0.95 * 79.19 - parts == pytest.approx(run.kv_gib, abs=0.03)

    def test_weights(self, run: Logged) -> None:
        # norms, biases, scales and the rotary table are left out: below half a percent
        logged = pytest.approx(run.weights_gib * GIB, rel=0.005)
        assert forecast(run).weights_bytes == logged

    def test_activations(self, run: Logged) -> None:
        logged = pytest.approx(run.activations_gib * GIB, rel=0.03)
        assert forecast(run).activations_bytes == logged

    def test_kv_cache(self, run: Logged) -> None:
        # 1 %: 0.1 GiB of capacity that CUDA hides, 0.1 GiB of buffers, rounding of the log
        assert forecast(run).kv_bytes == pytest.approx(run.kv_gib * GIB, rel=0.01)

    def test_kv_tokens(self, run: Logged) -> None:
        if run.kv_tokens is None:
            pytest.skip("the log gives GiB only")
        tokens = 16 * forecast(run).kv_blocks(16)
        assert tokens == pytest.approx(run.kv_tokens, rel=0.01)


def test_an_older_version() -> None:
    """vLLM 0.6.5 profiled 1.26 GiB of activations and 1.79 GiB outside PyTorch on one chip."""
    run = Logged("llama_3_1_8b", 1, "bf16", "bf16", 14.96, 1.26, 1.79, 53.29, None)
    older = EngineShare(0.9, 0.0, max_num_batched_tokens=8192, max_num_seqs=256)
    # 5 %: versions differ by one or two GiB in what they keep for themselves
    assert forecast(run, older).kv_bytes == pytest.approx(run.kv_gib * GIB, rel=0.05)


class Shape(NamedTuple):
    """What the peak of activations depends on."""

    hidden: int
    inner: int
    vocabulary: int
    experts_per_token: int = 0

    def model(self) -> Model:
        """Build a model of this width; its depth and heads do not matter here."""
        return Model(
            name="Shape",
            family="of the log",
            source="config.json of the model",
            layers=1,
            hidden=self.hidden,
            attention=(
                GroupedQueryAttention(kind="gqa", layers=1, heads=8, kv_heads=8, head_dim=64),
            ),
            mlp_intermediate=self.inner,
            moe=(
                MixtureOfExperts(
                    layers=1,
                    intermediate=self.inner,
                    experts=64,
                    experts_per_token=self.experts_per_token,
                )
                if self.experts_per_token
                else None
            ),
            vocabulary=self.vocabulary,
            max_positions=8192,
        )


# peak activations in GiB, from the root cause analysis of the planner's report
DENSE = {
    "CodeLlama 7B": (Shape(4096, 11008, 32016), 1, 0.77),
    "Gemma 2 2B": (Shape(2304, 9216, 256_000), 1, 3.62),
    "Gemma 2 27B": (Shape(4608, 36864, 256_000), 1, 3.66),
    "Granite 3.1 2B": (Shape(2048, 8192, 49_155), 1, 0.75),
    "Granite 3.1 8B": (Shape(4096, 12800, 49_155), 1, 0.85),
    "Phi-4": (Shape(5120, 17920, 100_352), 1, 1.52),
    "Qwen2.5 7B": (Shape(3584, 18944, 152_064), 1, 2.21),
    "Qwen2.5 72B": (Shape(8192, 29568, 152_064), 2, 2.29),
    "Qwen3 8B": (Shape(4096, 12288, 151_936), 1, 2.21),
    "Llama 3.1 8B over four": (Shape(4096, 14336, 128_256), 4, 1.89),
}
MIXTURES = {
    "Mixtral 8x7B": (Shape(4096, 14336, 32_000, 2), 2, 1.21),
    "Qwen3 30B-A3B": (Shape(2048, 768, 151_936, 8), 1, 2.68),
    "Qwen1.5 MoE": (Shape(2048, 1408, 151_936, 4), 1, 2.47),
    "DeepSeek-V2-Lite": (Shape(2048, 1408, 102_400, 6), 1, 1.93),
    "gpt-oss-20b": (Shape(2880, 2880, 201_088, 4), 2, 2.87),
}


@pytest.mark.parametrize(
    ("shape", "tp", "logged_gib", "tolerance"),
    [
        pytest.param(*figures, tolerance, id=name)
        for group, tolerance in ((DENSE, 0.04), (MIXTURES, 0.10))
        for name, figures in group.items()
    ],
)
def test_activations_of_other_models(
    shape: Shape, tp: int, logged_gib: float, tolerance: float
) -> None:
    """One number is fitted for all of them: the copies of the logits that the sampler holds."""
    peak = activation_bytes(shape.model(), Parallelism(tp=tp), DEFAULTS)
    assert peak == pytest.approx(logged_gib * GIB, rel=tolerance)
