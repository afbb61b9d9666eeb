"""What measured machines, engines and formats are called in the catalogue."""

import re
from collections.abc import Mapping
from math import isqrt

from sim.calibration.rows import Row, count
from sim.efficiency import Engine
from sim.errors import InputError
from sim.parallelism import Parallelism
from sim.schema import did_you_mean
from sim.units import DTYPE_BYTES, Dtype

SYSTEMS: Mapping[str, str] = {
    "A100-SXM-80GB": "a100_sxm_x8",
    "A100-80GB": "a100_sxm_x8",
    "A100-SXM-40GB": "a100_sxm_40gb_x8",
    "H100-SXM-80GB": "h100_sxm_x8",
    "H800-SXM": "h800_sxm_x8",
    "H20": "h20_sxm_x8",
    "H200-SXM-141GB": "h200_sxm_x8",
    "GH200": "gh200_x1",
    "B200-SXM-180GB": "b200_sxm_x8",
    "B300-SXM": "b300_sxm_x8",
    "GB200": "gb200_nvl72",
    "GB300": "gb300_nvl72",
    "MI250": "mi250_x4",
    "MI300X-192GB": "mi300x_x8",
    "Intel Max 1550 (PVC)": "intel_max_1550_x4",
    "SN40L": "sn40l_x16",
    "Inferentia2": "inf2_48xl",
    "Trainium1": "trn1_32xl",
    "Trainium2": "trn2_48xl",
    "TPU v5e": "tpu_v5e_8",
    "TPU v6e": "tpu_v6e_8",
}
"""Catalogue system that stands for a measured machine."""

_ATTENTION_DP = re.compile(r"attention DP=(\d+)")
"""How the notes of InferenceX runs tell of data-parallel attention."""
_NATIVE = ("neuron", "jetstream", "vllm tpu", "sambaflow")
"""Engines of chips that are not GPUs."""
_PLAINLY_NAMED: tuple[Engine, ...] = ("vllm", "sglang")
"""Engines that are called by one name."""
LIKE_VLLM = ("deepspeed-mii",)
"""Engines without kernels of their own in the catalogue, for which vLLM's stand in."""
DTYPES: Mapping[str, Dtype] = {
    "bf16": "bf16",
    "fp16": "bf16",
    "bfloat16": "bf16",
    "fp8": "fp8",
    "fp4": "nvfp4",
    "nvfp4": "nvfp4",
    "mxfp4": "mxfp4",
    "int8": "int8",
    "int8_sq": "int8",
    "full_prec": "bf16",
    "int4": "int4",
}

_VLLM_PRESETS: tuple[tuple[tuple[int, int], str], ...] = (
    ((0, 21), "vllm_0_21"),
    ((0, 14), "vllm"),
    ((0, 8), "vllm_0_11"),
    ((0, 0), "vllm_0_6"),
)
"""First release of vLLM that a preset stands for: steps of prompts and answers together (V1) came
with 0.8, scheduling ahead with 0.14, graphs that count as memory with 0.21."""
_VLLM_RELEASES: tuple[tuple[str, tuple[int, int]], ...] = (
    ("2026-01-20", (0, 14)),
    ("2025-03-18", (0, 8)),
    ("", (0, 0)),
)
"""Days on which those came out, for runs that tell their day and not their release."""
_VERSION = re.compile(r"(\d+)\.(\d+)")
TRTLLM_ON_PYTORCH = (0, 20)
"""First release of TensorRT-LLM whose published figures are of its PyTorch backend."""
TRTLLM_IN_CPP = "trtllm_0_14"
"""Preset of the releases before."""
UNSTATED_KV: Mapping[tuple[Engine, str], Dtype] = {("vllm", "H100-SXM-80GB"): "bf16"}
"""Cache format of runs that do not say, where the figures do. Of vLLM's InferenceX runs on H100 the
scripts of gpt-oss and MiniMax ask for nothing, which is the model's 16 bits; those of Llama ask for
8 bits in every version that is kept, but show the time per token of a 16-bit cache, and run
AIC02926 (tp 2, 64 clients, contexts to 9k) waits 30.8 s for its first token, as it does when 16-bit
keys fill the memory, not when 8-bit ones do (0.4 s)."""


def engine_of(row: Row) -> Engine | None:
    """Name the engine whose kernels ran; none: no engine of the catalogue."""
    name = row["engine"].lower()
    if "tensorrt" in name or "trtllm" in name:
        return "trtllm"
    if any(vendor in name for vendor in _NATIVE):
        return "native"
    if any(engine in name for engine in LIKE_VLLM):
        return "vllm"
    return next((engine for engine in _PLAINLY_NAMED if engine in name), None)


def why_no_engine(name: str) -> str:
    """Say that no engine is called so, and what engines are called."""
    if not name:
        return "engine is not given"
    words = (*_PLAINLY_NAMED, "tensorrt", "trtllm", *_NATIVE, *LIKE_VLLM)
    return f"no engine for {name}; known are {', '.join(words)}"


def why_no_weights(name: str) -> str:
    """Say that weights are in no known format, and which are known."""
    if not name:
        return "format of the weights is not given"
    hint = did_you_mean(name, DTYPES) or f"; known are {', '.join(DTYPES)}"
    return f"weights in {name}{hint}"


def check_cache(row: Row) -> None:
    """Refuse a format of the cache that is not known: another would be taken without a word.

    Raises
    ------
    InputError
        The message names the format and those that are known.
    """
    name = row.get("kv_dtype", "")
    if name and name not in DTYPES:
        hint = did_you_mean(name, DTYPES)
        raise InputError(
            f"kv_dtype: {name!r} is no known number format{hint}; use {', '.join(DTYPES)}, or "
            "leave it empty"
        )


def preset_of(kernels: Engine, engine: str, day: str = "") -> str:
    """Name the preset of ``hardware/engines`` for an engine and release as a run tells them.

    Parameters
    ----------
    kernels : str
        Whose kernels ran, from `engine_of`.
    engine : str
        Such as ``vllm 0.11.2`` or ``TensorRT-LLM v0.14``.
    day : str
        When the run was made or published, such as ``2026-03``: of vLLM without a release, the
        one of that time is taken; the newest if that is not known either.

    >>> preset_of("vllm", "vllm 0.11.2"), preset_of("vllm", "vLLM (not stated)", "2026-03")
    ('vllm_0_11', 'vllm')
    """
    told = _VERSION.search(engine)
    if kernels == "trtllm" and told and "TensorRT-LLM v" in engine:
        return "trtllm" if (int(told[1]), int(told[2])) >= TRTLLM_ON_PYTORCH else TRTLLM_IN_CPP
    if kernels != "vllm":
        return kernels
    if told:
        release = (int(told[1]), int(told[2]))
    else:
        release = next(first for since, first in _VLLM_RELEASES if (day or "9999") >= since)
    return next(name for first, name in _VLLM_PRESETS if release >= first)


def split_of(row: Row, tp: int, chips: int) -> Parallelism:
    """Tell how a run was cut: data-parallel attention is told in the notes alone.

    Its ranks and the tensor ranks inside them are all chips, and the experts are dealt to them.
    Where the notes tell more ranks than there are chips, they multiply the ranks of the experts'
    two cuts, each of which was recorded as all chips: 64 are 8 chips, whatever the other columns
    say.
    """
    pp = count(row, "pp") if row.get("pp") else 1
    ep = count(row, "ep") if row.get("ep") not in (None, "", "0") else 1
    noted = _ATTENTION_DP.search(row.get("notes", ""))
    ranks = int(noted.group(1)) if noted else 1
    if ranks > chips and isqrt(ranks) ** 2 == ranks:
        ranks = chips = isqrt(ranks)
    if ranks > 1 and chips % ranks == 0:
        return Parallelism(tp=chips // ranks, attention_dp=ranks, ep=chips if ep > 1 else 1)
    return Parallelism(tp=tp, pp=pp, ep=tp if tp % ep else ep)


def usual_kv_dtype(weights: Dtype) -> Dtype:
    """Name the cache format of a run that does not say: 8 bits beside quantised weights."""
    return "fp8" if DTYPE_BYTES[weights] <= DTYPE_BYTES["fp8"] else "bf16"
