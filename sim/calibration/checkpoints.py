"""What the weights of published checkpoints are, where the name of a format does not tell."""

from collections.abc import Mapping
from typing import NamedTuple

from sim.efficiency import Engine
from sim.precision import Precision
from sim.units import Dtype


class Checkpoint(NamedTuple):
    """What "fp4" means for one model."""

    weights: Dtype
    source: str


FOUR_BITS: Mapping[str, Checkpoint] = {
    "gpt_oss_120b": Checkpoint(
        "mxfp4", "openai/gpt-oss-120b model card: experts in MXFP4, all else in 16 bits"
    ),
    "gpt_oss_20b": Checkpoint(
        "mxfp4", "openai/gpt-oss-20b model card: experts in MXFP4, all else in 16 bits"
    ),
}
"""Checkpoints in four bits that are not NVFP4."""
NARROW_INPUTS: frozenset[str] = frozenset({"blackwell"})
"""Chip families on which engines turn the inputs of MXFP4 experts to FP8
(``VLLM_USE_FLASHINFER_MOE_MXFP4_MXFP8=1`` in SemiAnalysisAI/InferenceX
``benchmarks/gptoss_fp4_b200_docker.sh``; ``moe_config.backend: TRTLLM`` beside it). Hopper has no
arithmetic for scales of blocks of 32: its kernels widen the weights to 16 bits."""


def precision_of(
    model: str, engine: Engine, family: str, weights: Dtype, kv_cache: Dtype
) -> Precision:
    """Give the formats of a served checkpoint.

    Parameters
    ----------
    model : str
        Id in the catalogue.
    engine : str
    family : str
        Of the chip.
    weights, kv_cache : str
        As the run tells them.

    >>> precision_of("gpt_oss_120b", "vllm", "blackwell", "nvfp4", "fp8").activations
    'fp8'
    """
    if weights != "nvfp4" or model not in FOUR_BITS:
        return Precision(weights=weights, kv_cache=kv_cache)
    narrow: Dtype | None = "fp8" if family in NARROW_INPUTS and engine != "sglang" else None
    return Precision(weights=FOUR_BITS[model].weights, activations=narrow, kv_cache=kv_cache)
