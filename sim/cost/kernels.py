"""Which fitted law stands for which operator: the serving engine's kernels on one chip."""

from collections.abc import Iterator, Mapping, Sequence
from typing import TypeVar

from sim.cost.work import DecodeAttention, DenseGemm, ExpertGemm, PrefillAttention
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
from sim.units import Dtype

GEMM_FORMATS: Mapping[Dtype, tuple[GemmFormat, ...]] = {
    "bf16": ("bf16",),
    "fp16": ("bf16",),
    "fp8": ("fp8", "fp8_block"),
    "nvfp4": ("nvfp4",),
    "mxfp4": ("mxfp4_bf16", "mxfp4_fp8"),
    "int4": ("int4_bf16",),
}
"""Measured formats that stand for a weight dtype, best first."""

DEQUANTISED: frozenset[Dtype] = frozenset({"int4", "mxfp4"})
"""Weight-only formats: the product itself is computed in 16 bits."""

Kernel = TypeVar(
    "Kernel", GemmKernel, GroupedGemmKernel, DecodeAttentionKernel, MlaPrefillKernel
)


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

    def peak_flop_per_s(self, dtype: str) -> float:
        """Datasheet peak of a dtype.

        Raises
        ------
        InputError
            When the chip does not have it.
        """
        peaks = {str(name): figure.value for name, figure in self._peaks().items()}
        if dtype not in peaks:
            known = ", ".join(sorted(peaks))
            raise InputError(f"{self.accelerator_id} does not compute in {dtype}; it has {known}")
        return peaks[dtype]

    def gemm(self, operator: DenseGemm) -> tuple[GemmKernel, str]:
        """Find the law of a dense matrix product and where it comes from."""
        formats = self._formats(operator.dtype)
        found = self._first((engine, kernels.gemm, formats) for engine, kernels in self._measured())
        return self._found(found, f"GEMM with {operator.dtype} weights")

    def grouped_gemm(self, operator: ExpertGemm) -> tuple[GroupedGemmKernel, str]:
        """Find the law of the routed experts and where it comes from."""
        formats = self._formats(operator.dtype)
        found = self._first(
            (engine, kernels.grouped_gemm, formats) for engine, kernels in self._measured()
        )
        return self._found(found, f"grouped GEMM with {operator.dtype} weights")

    def decode_attention(self, operator: DecodeAttention) -> tuple[DecodeAttentionKernel, str]:
        """Find the law of decode attention and where it comes from."""
        latent = operator.kind == "mla"
        found = self._first(
            (engine, kernels.mla_decode if latent else kernels.decode_attention, (operator.kv_dtype,))
            for engine, kernels in self._measured()
        )
        what = "latent decode attention" if latent else "decode attention"
        return self._found(found, f"{what} over a {operator.kv_dtype} KV cache")

    def prefill_attention(
        self, operator: PrefillAttention
    ) -> tuple[PrefillAttentionKernel | MlaPrefillKernel, str]:
        """Find the law of prefill attention and where it comes from."""
        if operator.kind == "mla":
            found = self._first(
                (engine, kernels.mla_prefill, (operator.kv_dtype,))
                for engine, kernels in self._measured()
            )
            return self._found(found, f"latent prefill attention, {operator.kv_dtype} KV cache")
        for engine, kernels in self._measured():
            for kernel in kernels.prefill_attention:
                wanted = (operator.dtype, operator.kv_dtype, operator.value_dim)
                if (kernel.attention_dtype, kernel.kv_dtype, kernel.head_dim) == wanted:
                    return kernel, _describe(engine, "prefill attention", kernel.fit)
        what = f"{operator.dtype} prefill attention over a {operator.kv_dtype} KV cache"
        raise self._missing(f"{what} with heads of {operator.value_dim}")

    def _formats(self, weights: Dtype) -> tuple[GemmFormat, ...]:
        """Measured formats that stand for a weight dtype; an error if the chip lacks it."""
        computed = "bf16" if weights in DEQUANTISED else weights
        self.peak_flop_per_s(computed)
        return GEMM_FORMATS.get(weights, ())

    def _peaks(self) -> Mapping[Dtype, object]:
        return self._accelerator.peak_flop_per_s

    def _measured(self) -> Iterator[tuple[Engine, EngineKernels]]:
        for engine in self._engines:
            if engine in self.calibration.kernels:
                yield engine, self.calibration.kernels[engine]

    @staticmethod
    def _first(
        candidates: Iterator[tuple[Engine, Mapping[str, Kernel], Sequence[str]]],
    ) -> tuple[Engine, str, Kernel] | None:
        for engine, kernels, names in candidates:
            for name in names:
                if name in kernels:
                    return engine, name, kernels[name]
        return None

    def _found(self, found: tuple[Engine, str, Kernel] | None, what: str) -> tuple[Kernel, str]:
        if found is None:
            raise self._missing(what)
        engine, name, kernel = found
        return kernel, _describe(engine, name, kernel.fit)

    def _missing(self, what: str) -> InputError:
        return InputError(
            f"no calibration of {what} on {self.accelerator_id} for {self._engines[0]}: "
            f"choose another precision, or add a law to hardware/calibrations/"
            f"{self.accelerator_id}.yaml"
        )


def _describe(engine: Engine, name: str, fit: Fit) -> str:
    return f"fitted: {engine} {name}, {fit.rows} rows, median error {fit.median_ape:.1%}"
