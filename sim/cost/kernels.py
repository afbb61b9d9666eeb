"""Which fitted law stands for which operator: the serving engine's kernels on one chip."""

from collections.abc import Iterable, Iterator, Mapping
from typing import TypeVar

from sim.cost.operators import DecodeAttention, DenseGemm, ExpertGemm, PrefillAttention
from sim.efficiency import (
    Calibration,
    DecodeAttentionKernel,
    Engine,
    EngineKernels,
    Fit,
    GemmFormat,
    GemmKernel,
    GroupedGemmKernel,
    MlaPrefillKernel,
    PrefillAttentionKernel,
)
from sim.errors import InputError
from sim.hardware import Accelerator
from sim.precision import WEIGHT_ONLY
from sim.units import Dtype

GEMM_FORMATS: Mapping[Dtype, tuple[GemmFormat, ...]] = {
    "bf16": ("bf16",),
    "fp16": ("bf16",),
    "fp8": ("fp8", "fp8_block"),
    "nvfp4": ("nvfp4",),
    "int4": ("int4_bf16",),
}
"""Measured formats that stand for the weight dtype of a dense product, best first."""

EXPERT_FORMATS: Mapping[Dtype, tuple[GemmFormat, ...]] = {
    **GEMM_FORMATS,
    "fp8": ("fp8_block", "fp8"),
    "mxfp4": ("mxfp4_fp8", "mxfp4_bf16"),
}
"""The same for routed experts. FP8 checkpoints of mixture models carry a scale per block (DeepSeek,
Qwen3), and those kernels are what engines tune; MXFP4 experts take FP8 activations where the chip
has a kernel for that."""

Kernel = TypeVar("Kernel", GemmKernel, GroupedGemmKernel, DecodeAttentionKernel, MlaPrefillKernel)


class KernelShelf:
    """The laws of one engine's kernels on one accelerator.

    Parameters
    ----------
    accelerator : Accelerator
    accelerator_id : str
        For messages.
    calibration : Calibration
        Its file of ``hardware/calibrations``.
    engine : Engine
        Whose kernels run; where one was not measured, the calibration's stand-ins are asked.
    overhead_source : str
        Where the engine's overhead comes from, for `StepTimer.explain`.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        accelerator_id: str,
        calibration: Calibration,
        engine: Engine,
        overhead_source: str,
    ) -> None:
        self.accelerator_id = accelerator_id
        self.calibration = calibration
        self.overhead_source = overhead_source
        self._accelerator = accelerator
        self._engines = (engine, *(e for e in calibration.preference[engine] if e != engine))

    def peak_flop_per_s(self, dtype: Dtype) -> float:
        """Datasheet peak of a dtype.

        Raises
        ------
        InputError
            When the chip does not have it.
        """
        peaks = self._accelerator.peak_flop_per_s
        if dtype not in peaks:
            known = ", ".join(sorted(peaks))
            raise InputError(f"{self.accelerator_id} does not compute in {dtype}; it has {known}")
        return peaks[dtype].value

    def gemm(self, operator: DenseGemm) -> tuple[GemmKernel, str]:
        """Find the law of a dense matrix product and where it comes from."""
        formats = self._formats(GEMM_FORMATS, operator.dtype)
        candidates = (
            (engine, name, kernels.gemm.get(name))
            for engine, kernels in self._measured()
            for name in formats
        )
        return self._first(candidates, f"GEMM with {operator.dtype} weights")

    def grouped_gemm(self, operator: ExpertGemm) -> tuple[GroupedGemmKernel, str]:
        """Find the law of the routed experts and where it comes from."""
        formats = self._formats(EXPERT_FORMATS, operator.dtype)
        candidates = (
            (engine, name, kernels.grouped_gemm.get(name))
            for engine, kernels in self._measured()
            for name in formats
        )
        return self._first(candidates, f"grouped GEMM with {operator.dtype} weights")

    def decode_attention(self, operator: DecodeAttention) -> tuple[DecodeAttentionKernel, str]:
        """Find the law of decode attention and where it comes from."""
        latent = operator.kind == "mla"
        dtype = operator.kv_dtype
        what = "latent decode attention" if latent else "decode attention"
        candidates = (
            (engine, what, (kernels.mla_decode if latent else kernels.decode_attention).get(dtype))
            for engine, kernels in self._measured()
        )
        return self._first(candidates, f"{what} over a {dtype} KV cache")

    def prefill_attention(
        self, operator: PrefillAttention
    ) -> tuple[PrefillAttentionKernel | MlaPrefillKernel, str]:
        """Find the law of prefill attention and where it comes from."""
        if operator.kind == "mla":
            what = "latent prefill attention"
            candidates = (
                (engine, what, kernels.mla_prefill.get(operator.kv_dtype))
                for engine, kernels in self._measured()
            )
            return self._first(candidates, f"{what} over a {operator.kv_dtype} KV cache")
        wanted = (operator.dtype, operator.kv_dtype, operator.value_dim)
        for engine, kernels in self._measured():
            for kernel in kernels.prefill_attention:
                if (kernel.attention_dtype, kernel.kv_dtype, kernel.head_dim) == wanted:
                    return kernel, _describe(engine, "prefill attention", kernel.fit)
        raise self._missing(
            f"{operator.dtype} prefill attention over a {operator.kv_dtype} KV cache "
            f"with heads of {operator.value_dim}"
        )

    def _formats(
        self, known: Mapping[Dtype, tuple[GemmFormat, ...]], weights: Dtype
    ) -> tuple[GemmFormat, ...]:
        """Measured formats that stand for a weight dtype; an error if the chip lacks it."""
        self.peak_flop_per_s("bf16" if weights in WEIGHT_ONLY else weights)
        return known.get(weights, ())

    def _measured(self) -> Iterator[tuple[Engine, EngineKernels]]:
        for engine in self._engines:
            if engine in self.calibration.kernels:
                yield engine, self.calibration.kernels[engine]

    def _first(
        self, candidates: Iterable[tuple[Engine, str, Kernel | None]], what: str
    ) -> tuple[Kernel, str]:
        for engine, name, kernel in candidates:
            if kernel is not None:
                return kernel, _describe(engine, name, kernel.fit)
        raise self._missing(what)

    def _missing(self, what: str) -> InputError:
        return InputError(
            f"no calibration of {what} on {self.accelerator_id} for {self._engines[0]}: "
            f"choose another precision, or add a law to hardware/calibrations/"
            f"{self.accelerator_id}.yaml"
        )


def _describe(engine: Engine, name: str, fit: Fit) -> str:
    return f"fitted: {engine} {name}, {fit.rows} rows, median error {fit.median_ape:.1%}"
