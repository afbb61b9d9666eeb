"""A chip with round figures and laws without surprises, so that times come out by hand.

1 TB/s of memory, 100 TFLOP/s in bf16 and 200 in FP8. Kernels reach half the bandwidth and half the
peak, bounds add up, and every call has a floor of 1 us (experts 10 us).
"""

from collections.abc import Mapping

from small_systems import switched, system

from sim.cost.comms import Network
from sim.cost.kernels import KernelShelf
from sim.cost.memory import NO_DETOUR, Detour
from sim.cost.operators import Operator
from sim.cost.shares import Shares
from sim.cost.timer import Placement, StepTimer
from sim.efficiency import (
    Calibration,
    Collective,
    CollectiveLaw,
    CollectiveLine,
    DecodeAttentionKernel,
    DecodeAttentionLaw,
    Engine,
    EngineKernels,
    Fit,
    GemmKernel,
    GemmLaw,
    GroupedGemmKernel,
    GroupedGemmLaw,
    PowerFit,
    PowerLaw,
    PrefillAttentionKernel,
    PrefillAttentionLaw,
)
from sim.figures import Figure
from sim.hardware import Accelerator, MemoryTier, Power
from sim.overhead import NO_OVERHEAD, EngineOverhead
from sim.parallelism import Parallelism

WHOLE = Shares(Parallelism(tp=2), chunk_tokens=64)
"""Two chips that cut every layer."""
FIT = Fit(rows=1, median_ape=0.0, p90_ape=0.0, bias=0.0, ranges={}, source="by hand")
BANDWIDTH = 1e12
BF16_PEAK, FP8_PEAK = 100e12, 200e12


def figure(value: float) -> Figure[float]:
    return Figure[float](value=value, source="by hand", confidence="estimate")


CHIP = Accelerator(
    name="Pocket chip",
    vendor="nobody",
    family="pocket",
    memory=(
        MemoryTier(
            kind="HBM", capacity_bytes=figure(100e9), bandwidth_bytes_per_s=figure(BANDWIDTH)
        ),
    ),
    peak_flop_per_s={"bf16": figure(BF16_PEAK), "fp8": figure(FP8_PEAK)},
    power=Power(tdp_w=figure(1000.0), idle_w=figure(100.0)),
)

GEMM_LAW = GemmLaw(
    floor_s=1e-6,
    compute_efficiency=0.5,
    memory_efficiency=0.5,
    depth_s=0.0,
    sharpness=1.0,
    conversion_slowdown=1.0,
)
EXPERT_LAW = GroupedGemmLaw(
    floor_s=1e-5,
    compute_efficiency=0.5,
    memory_efficiency=0.5,
    sharpness=1.0,
    pick_slowdown=1.0,
    token_slowdown=1.0,
)
DECODE_LAW = DecodeAttentionLaw(
    floor_s=1e-6,
    memory_efficiency=0.5,
    compute_efficiency=0.5,
    sharpness=1.0,
    idle_rows=0.0,
    row_s=0.0,
)
PREFILL_LAW = PrefillAttentionLaw(floor_s=1e-6, compute_efficiency=0.5, token_slowdown=1.0)


def line(start_s: float, seconds_per_byte: float, **about: str) -> Collective:
    """Build a collective of one straight line."""
    lines = (CollectiveLine(start_s=start_s, seconds_per_byte=seconds_per_byte),)
    return Collective(law=CollectiveLaw(lines=lines), **about)


VLLM = EngineKernels(
    gemm={
        "bf16": GemmKernel(
            compute_dtype="bf16",
            weight_dtype="bf16",
            activation_dtype="bf16",
            law=GEMM_LAW.model_copy(update={"conversion_slowdown": 0.0}),
            fit=FIT,
        ),
        "fp8": GemmKernel(
            compute_dtype="fp8",
            weight_dtype="fp8",
            activation_dtype="fp8",
            law=GEMM_LAW,
            fit=FIT,
        ),
    },
    grouped_gemm={
        "fp8_block": GroupedGemmKernel(
            compute_dtype="fp8",
            weight_dtype="fp8",
            activation_dtype="fp8",
            law=EXPERT_LAW,
            fit=FIT,
            skew_slowdown={},
        ),
        "mxfp4_bf16": GroupedGemmKernel(
            compute_dtype="bf16",
            weight_dtype="mxfp4",
            activation_dtype="bf16",
            law=EXPERT_LAW,
            fit=FIT,
            skew_slowdown={},
        ),
    },
    decode_attention=(
        DecodeAttentionKernel(
            kv_dtype="fp8", head_dim=100, compute_dtype="fp8", law=DECODE_LAW, fit=FIT
        ),
    ),
    prefill_attention=(
        PrefillAttentionKernel(
            attention_dtype="bf16",
            kv_dtype="fp8",
            head_dim=100,
            compute_dtype="bf16",
            law=PREFILL_LAW,
            fit=FIT,
        ),
    ),
)
TRTLLM = EngineKernels(
    grouped_gemm={
        "mxfp4_fp8": GroupedGemmKernel(
            compute_dtype="fp8",
            weight_dtype="mxfp4",
            activation_dtype="fp8",
            law=EXPERT_LAW,
            fit=FIT,
            skew_slowdown={},
        ),
    },
)


def calibration(**changes: Mapping[str, object]) -> Calibration:
    """Build a calibration of the pocket chip, with some blocks of its own."""
    whole = Calibration(
        accelerator="pocket",
        about="by hand",
        date="2026-01-01",
        method="by hand",
        peak_flop_per_s={"bf16": BF16_PEAK, "fp8": FP8_PEAK},
        bandwidth_bytes_per_s=BANDWIDTH,
        kernels={"vllm": VLLM, "trtllm": TRTLLM},
        preference={
            "vllm": ("vllm", "trtllm"),
            "trtllm": ("trtllm", "vllm"),
            "sglang": ("sglang", "vllm", "trtllm"),
        },
        collectives={"all_reduce": {"nccl": {2: line(1e-5, 1e-11)}}},
        expert_exchange={},
        power=PowerFit(
            law=PowerLaw(active_fraction=0.2, compute_weight=0.6, memory_weight=0.4), fit=FIT
        ),
        excluded={},
    )
    return whole.model_copy(update=changes)


def timer(
    *operators: Operator,
    overhead: EngineOverhead = NO_OVERHEAD,
    engine: Engine = "vllm",
    shares: Shares = WHOLE,
    detour: Detour = NO_DETOUR,
    kernels: EngineKernels | None = None,
) -> StepTimer:
    """Build the timer of some operators on the pocket chip, with kernels of one's own if given."""
    measured = calibration() if kernels is None else calibration(kernels={engine: kernels})
    return StepTimer(
        operators,
        CHIP,
        KernelShelf(CHIP, "pocket", measured, None, engine, "by hand"),
        Network(system(switched(8)), "pocket", measured, engine),
        overhead,
        Placement(shares, detour),
    )
