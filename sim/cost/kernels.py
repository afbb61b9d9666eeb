"""Which fitted law stands for which operator: the serving engine's kernels on one chip.

A law is looked for in turns: first the operator's own format, then formats that may stand in for
it, the nearest first (`_stand_ins`). Each turn asks the chip's own calibration before the prior of
its family, and the engine itself before the engines whose kernels stand in for it. What was taken
instead of what is said in the source of the law.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeVar, get_args

from sim.cost.operators import DecodeAttention, DenseGemm, ExpertGemm, PrefillAttention
from sim.efficiency import (
    Calibration,
    DecodeAttentionKernel,
    Engine,
    EngineKernels,
    Fit,
    GemmKernel,
    GroupedGemmKernel,
    MlaDecodeKernel,
    MlaPrefillKernel,
    PrefillAttentionKernel,
)
from sim.errors import InputError
from sim.hardware import Accelerator
from sim.precision import FORMATS, WEIGHT_ONLY, GemmFormat, compute_dtype, input_dtype
from sim.priors import Prior
from sim.units import DTYPE_BYTES, Dtype

_DENSE: Mapping[Dtype, tuple[GemmFormat, ...]] = {
    "bf16": ("bf16",),
    "fp16": ("bf16",),
    "fp8": ("fp8", "fp8_block"),
    "int8": ("int8",),
    "nvfp4": ("nvfp4",),
    "int4": ("int4_bf16",),
    "mxfp4": ("mxfp4_fp8", "mxfp4_bf16"),
}
"""Measured formats of the weight dtype of a dense product, best first."""

_EXPERTS: Mapping[Dtype, tuple[GemmFormat, ...]] = {**_DENSE, "fp8": ("fp8_block", "fp8")}
"""The same for routed experts. FP8 checkpoints of mixture models carry a scale per block (DeepSeek,
Qwen3), and those kernels are what engines tune; MXFP4 experts take FP8 activations where the chip
has a kernel for that."""

_WEIGHT_ONLY: Mapping[Dtype, tuple[GemmFormat, ...]] = {
    "fp8": ("int8_bf16",),
    "int8": ("int8_bf16",),
    "int4": ("int4_bf16", "mxfp4_bf16"),
    "nvfp4": ("mxfp4_bf16", "int4_bf16"),
    "mxfp4": ("mxfp4_bf16", "int4_bf16"),
}
"""Formats of as many bytes whose weights are widened inside the kernel."""

Product = TypeVar("Product", GemmKernel, GroupedGemmKernel)
Latent = TypeVar("Latent", MlaDecodeKernel, MlaPrefillKernel)
Attention = TypeVar("Attention", DecodeAttentionKernel, PrefillAttentionKernel)


class _Turn(NamedTuple):
    """Formats to look for at once, and what to say when one of them is taken."""

    formats: tuple[GemmFormat, ...]
    note: str = ""
    compute: Dtype | None = None
    """What the product is computed in instead; none: what the kernel was measured in."""
    only: Dtype | None = None
    """What the kernel must have been measured in; none: whatever the chip has."""


@dataclass(frozen=True)
class _Shelf:
    """The laws of one calibration, or of a donor's, and how to cite them."""

    calibration: Calibration
    origin: str

    def of(self, engine: Engine) -> Iterator[tuple["_Shelf", Engine, EngineKernels]]:
        """Return the engine's own kernels, if there are any."""
        if engine in self.calibration.kernels:
            yield self, engine, self.calibration.kernels[engine]

    def others(self, engine: Engine) -> Iterator[tuple["_Shelf", Engine, EngineKernels]]:
        """Go through the kernels of other engines, in the order in which they stand in."""
        for name in self.calibration.preference.get(engine, get_args(Engine)):
            if name != engine:
                yield from self.of(name)

    def cite(self, engine: Engine, what: str, fit: Fit, note: str) -> str:
        """Say which law was taken, how good it is, and what it stands in for."""
        law = f"{engine} {what}, {fit.rows} rows, median error {fit.median_ape:.1%}"
        return f"{self.origin}{law}{f'; {note}' if note else ''}"


@dataclass(frozen=True)
class _Heads:
    """The heads of an attention operator, as far as they choose its kernel."""

    kv_dtype: Dtype
    head_dim: int
    windowed: bool

    @property
    def caches(self) -> tuple[Dtype, ...]:
        """Cache formats to look for: one's own, then the next wider that was measured."""
        if DTYPE_BYTES[self.kv_dtype] >= DTYPE_BYTES["bf16"]:
            return ("bf16",)
        return ("fp8", "bf16")

    def distance(
        self, kernel: DecodeAttentionKernel | PrefillAttentionKernel
    ) -> tuple[bool, float]:
        """How far a kernel is from these heads: its window first, then its head size."""
        apart = abs(math.log2(kernel.head_dim / self.head_dim))
        return kernel.windowed != self.windowed, apart

    def differences(self, kernel: DecodeAttentionKernel | PrefillAttentionKernel) -> str:
        """Say where a kernel is not the one that was asked for."""
        said = []
        if kernel.kv_dtype != self.kv_dtype:
            said.append(f"{kernel.kv_dtype} cache for {self.kv_dtype}")
        if kernel.head_dim != self.head_dim:
            said.append(f"heads of {kernel.head_dim} for {self.head_dim}")
        if self.windowed and not kernel.windowed:
            said.append("law of whole contexts for a window")
        return "; ".join(said)


class KernelShelf:
    """The laws of one engine's kernels on one accelerator.

    Parameters
    ----------
    accelerator : Accelerator
    accelerator_id : str
        For messages.
    calibration : Calibration, optional
        Its file of ``hardware/calibrations``; none if the chip was never measured.
    prior : Prior, optional
        What stands in for laws that were not measured on this chip.
    engine : Engine
        Whose kernels run; where one was not measured, the calibration's stand-ins are asked.
    overhead_source : str
        Where the engine's overhead comes from, for `StepTimer.explain`.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        accelerator_id: str,
        calibration: Calibration | None,
        prior: Prior | None,
        engine: Engine,
        overhead_source: str,
    ) -> None:
        self.accelerator_id = accelerator_id
        self.calibration = calibration
        self.overhead_source = overhead_source
        self._accelerator = accelerator
        self._engine: Engine = engine
        self._shelves = []
        self._same_die = (
            prior is not None
            and calibration is not None
            and calibration.same_die_as == prior.rule.donor
        )
        if calibration is not None:
            self._shelves.append(_Shelf(calibration, "fitted: "))
        if self._same_die and prior is not None:
            origin = f"assumed: laws of {prior.rule.donor}, same die: "
            self._shelves.append(_Shelf(prior.laws, origin))
        elif prior is not None:
            stand_in = prior.stand_in(accelerator, accelerator_id)
            self._shelves.append(_Shelf(stand_in, f"assumed: {stand_in.about}: "))

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
            raise InputError(
                f"{self.accelerator_id} does not compute in {dtype}; it has {known}: choose one of "
                "them",
                key="precision",
            )
        return peaks[dtype].value

    def gemm(self, operator: DenseGemm) -> tuple[GemmKernel, str]:
        """Find the law of a dense matrix product and where it comes from."""
        return self._product(operator, _DENSE, lambda kernels: kernels.gemm, "GEMM")

    def grouped_gemm(self, operator: ExpertGemm) -> tuple[GroupedGemmKernel, str]:
        """Find the law of the routed experts and where it comes from."""
        return self._product(
            operator, _EXPERTS, lambda kernels: kernels.grouped_gemm, "grouped GEMM"
        )

    def decode_attention(
        self, operator: DecodeAttention
    ) -> tuple[DecodeAttentionKernel | MlaDecodeKernel, str]:
        """Find the law of decode attention and where it comes from."""
        wanted = _Heads(operator.kv_dtype, operator.value_dim, windowed=operator.windowed)
        if operator.kind == "mla":
            return self._latent(wanted, lambda kernels: kernels.mla_decode, "latent decode")
        for kv_dtype in wanted.caches:
            for shelf, engine, kernels in self._everywhere():
                known = [each for each in kernels.decode_attention if each.kv_dtype == kv_dtype]
                kernel = self._nearest(known, wanted)
                if kernel is not None:
                    note = wanted.differences(kernel)
                    return kernel, shelf.cite(engine, "decode attention", kernel.fit, note)
        raise self._missing(f"decode attention over a {wanted.kv_dtype} KV cache")

    def prefill_attention(
        self, operator: PrefillAttention
    ) -> tuple[PrefillAttentionKernel | MlaPrefillKernel, str]:
        """Find the law of prefill attention and where it comes from."""
        wanted = _Heads(operator.kv_dtype, operator.value_dim, windowed=operator.windowed)
        if operator.kind == "mla":
            return self._latent(wanted, lambda kernels: kernels.mla_prefill, "latent prefill")
        asked = operator.dtype
        tried = dict.fromkeys((asked, self._computes(asked), "bf16"))
        for key in ((attention, cache) for attention in tried for cache in wanted.caches):
            for shelf, engine, kernels in self._everywhere():
                known = [
                    each
                    for each in kernels.prefill_attention
                    if (each.attention_dtype, each.kv_dtype) == key
                ]
                kernel = self._nearest(known, wanted)
                if kernel is not None:
                    said = (key[0] != asked) * f"{key[0]} for {asked}", wanted.differences(kernel)
                    note = "; ".join(filter(None, said))
                    return kernel, shelf.cite(engine, "prefill attention", kernel.fit, note)
        raise self._missing(f"{asked} prefill attention over a {wanted.kv_dtype} KV cache")

    def _product(
        self,
        operator: DenseGemm | ExpertGemm,
        formats: Mapping[Dtype, tuple[GemmFormat, ...]],
        family: Callable[[EngineKernels], Mapping[GemmFormat, Product]],
        what: str,
    ) -> tuple[Product, str]:
        """Find the law of a matrix product: the first turn that has one."""
        weights = operator.dtype
        reads = operator.activation_dtype or input_dtype(weights)
        for turn in self._turns(operator, formats):
            for shelf, engine, kernels in self._everywhere():
                for name in turn.formats:
                    kernel = family(kernels).get(name)
                    if kernel is None or not self._runs(name, kernel, turn):
                        continue
                    return _as_computed(kernel, weights, reads, turn), shelf.cite(
                        engine, name, kernel.fit, turn.note
                    )
        raise self._missing(f"{what} with {weights} weights")

    def _turns(
        self,
        operator: DenseGemm | ExpertGemm,
        formats: Mapping[Dtype, tuple[GemmFormat, ...]],
    ) -> Iterator[_Turn]:
        """List formats in which a product may be found, the nearest first."""
        weights, asked = operator.dtype, operator.activation_dtype
        reads = asked or input_dtype(weights)
        wide, native = self._computes("bf16"), self._computes(reads)
        own = formats.get(weights, ())
        if asked is not None:  # what the engine does, though only others' kernels were measured
            exact = tuple(name for name in own if FORMATS[name].activation == asked)
            if len(exact) < len(own) and asked == native:
                yield _Turn(exact)
        if DTYPE_BYTES[native] < DTYPE_BYTES[wide]:
            if reads not in WEIGHT_ONLY:
                yield _Turn(own)
            yield from _like(weights, native)
        elif weights not in _WEIGHT_ONLY or (asked is None and weights in WEIGHT_ONLY):
            yield _Turn(own)
        else:
            yield _Turn(own, only=wide)
        note = f"stands in for {weights}: weights widened to {wide} inside the kernel"
        yield _Turn(_WEIGHT_ONLY.get(weights, ()), note)
        yield _Turn(("bf16",), note, compute=wide)

    def _computes(self, dtype: Dtype) -> Dtype:
        """Say what this chip computes in where a format is asked for."""
        return compute_dtype(dtype, self._accelerator.peak_flop_per_s)

    def _runs(self, name: GemmFormat, kernel: GemmKernel | GroupedGemmKernel, turn: _Turn) -> bool:
        """Whether the chip has the arithmetic of a kernel, and it is the one that is wanted."""
        if turn.only is not None and kernel.compute_dtype != turn.only:
            return False
        if turn.compute is not None and kernel.compute_dtype != FORMATS[name].compute:
            return False  # Measured where its format was widened: it says nothing of another peak.
        return (turn.compute or kernel.compute_dtype) in self._accelerator.peak_flop_per_s

    def _nearest(self, kernels: Sequence[Attention], wanted: "_Heads") -> Attention | None:
        """Take the kernel of the nearest heads whose arithmetic the chip has."""
        known = self._accelerator.peak_flop_per_s
        runnable = [
            kernel
            for kernel in kernels
            if kernel.compute_dtype in known and (wanted.windowed or not kernel.windowed)
        ]
        return min(runnable, key=wanted.distance, default=None)

    def _latent(
        self,
        wanted: "_Heads",
        family: Callable[[EngineKernels], Mapping[Dtype, Latent]],
        what: str,
    ) -> tuple[Latent, str]:
        """Find a law of latent attention."""
        known = self._accelerator.peak_flop_per_s
        for cache in wanted.caches:
            for shelf, engine, kernels in self._everywhere():
                kernel = family(kernels).get(cache)
                if kernel is not None and kernel.compute_dtype in known:
                    note = (
                        "" if cache == wanted.kv_dtype else f"{cache} cache for {wanted.kv_dtype}"
                    )
                    return kernel, shelf.cite(engine, f"{what} attention", kernel.fit, note)
        raise self._missing(f"{what} attention over a {wanted.kv_dtype} KV cache")

    def _everywhere(self) -> Iterator[tuple[_Shelf, Engine, EngineKernels]]:
        """Go through all laws, the nearest first.

        The engine's own kernels on this chip; other engines' on this chip; then those of the
        prior's donor, the engine's own first. Where the donor has the same die, its kernels of the
        engine come second, as they are: kernels differ more from engine to engine than from
        sibling to sibling (reports/kernels.md, stand-ins).
        """
        turns = (_Shelf.of, _Shelf.others)
        if self._same_die:
            order = [(shelf, turn) for turn in turns for shelf in self._shelves]
        else:
            order = [(shelf, turn) for shelf in self._shelves for turn in turns]
        for shelf, turn in order:
            yield from turn(shelf, self._engine)

    def _missing(self, what: str) -> InputError:
        return InputError(
            f"no calibration of {what} on {self.accelerator_id} for {self._engine}, and nothing "
            f"that stands in: choose another precision, or add a law to hardware/calibrations/"
            f"{self.accelerator_id}.yaml or a prior of {self._accelerator.family} to "
            "hardware/priors",
            key="precision",
        )


def _like(weights: Dtype, native: Dtype) -> Iterator[_Turn]:
    """List formats of like arithmetic, whose law is read from the peak of another dtype."""
    twins: Mapping[Dtype, tuple[GemmFormat, ...]] = {
        "int8": ("fp8", "fp8_block"),
        "fp8": ("int8",),
        "mxfp4": ("nvfp4",),
        "fp32": ("bf16",),
    }
    if native in twins:
        note = f"stands in for {weights}, in units of this chip's {native} peak"
        yield _Turn(twins[native], note, native)


def _as_computed(kernel: Product, weights: Dtype, reads: Dtype, turn: _Turn) -> Product:
    """Return a kernel with the formats that the operator has and the chip computes in."""
    changes: dict[str, object] = {}
    if kernel.weight_dtype != weights:
        changes["weight_dtype"] = weights
    if turn.compute is not None:
        narrow = DTYPE_BYTES[turn.compute] < DTYPE_BYTES["bf16"]
        changes |= {
            "compute_dtype": turn.compute,
            "activation_dtype": reads if narrow else "bf16",
        }
    return kernel.model_copy(update=changes) if changes else kernel
