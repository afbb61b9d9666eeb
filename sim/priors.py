"""Laws for chips that nobody measured: those of a donor chip, in units of each chip's own peaks.

A law turns speed-of-light times into seconds, so it can be read on a chip with other peaks. What
differs then is how close kernels come to the peaks and what a call costs however small it is; a
file of ``hardware/priors`` says by how much, for each family of chips, and why. Rates that
somebody measured on the chip itself win over such a ratio.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar

from pydantic import Field

from sim.efficiency import (
    Calibration,
    DecodeAttentionLaw,
    EngineKernels,
    GemmKernel,
    GemmLaw,
    GroupedGemmLaw,
    PowerFit,
    PrefillAttentionLaw,
)
from sim.figures import Figure
from sim.hardware import Accelerator
from sim.schema import StrictModel
from sim.units import Dtype

Ratio = Annotated[float, Field(gt=0.0, le=10.0)]
FixedRatio = Annotated[float, Field(ge=0.0, le=10.0)]
Spread = Annotated[float, Field(gt=0.0, lt=1.0)]

Law = TypeVar("Law", GemmLaw, GroupedGemmLaw, DecodeAttentionLaw, PrefillAttentionLaw)


class FamilyPrior(StrictModel):
    """What stands in for measurements on the chips of one family (``hardware/priors``)."""

    family: str
    about: str
    """Why this donor."""
    donor: str
    """The accelerator whose laws stand in."""
    compute_ratio: Figure[Ratio]
    """Fraction of peak arithmetic that kernels reach, over that of the donor's."""
    memory_ratio: Figure[Ratio]
    """Fraction of peak memory bandwidth that kernels reach, over that of the donor's."""
    floor_ratio: Figure[FixedRatio]
    """Times that do not shrink with the work, over the donor's: floors of calls, the walk along
    the inner dimension, the cost of a row of attention, rows missing to fill the chip."""
    spread_fraction: Figure[Spread]
    """Typical relative error of a kernel's time under this prior."""


@dataclass(frozen=True)
class Ratios:
    """How one chip's kernels differ from the donor's."""

    compute: Mapping[Dtype, float]
    """By the format that a kernel computes in."""
    other_compute: float
    """For formats that nobody measured."""
    memory: float
    fixed: float

    def of(self, dtype: Dtype) -> float:
        """Return the ratio of arithmetic in a format."""
        return self.compute.get(dtype, self.other_compute)


@dataclass(frozen=True)
class Prior:
    """The prior of a family with everything it names looked up."""

    rule: FamilyPrior
    donor: Accelerator
    laws: Calibration
    """Of the donor."""

    def ratios(self, accelerator: Accelerator) -> Ratios:
        """Compare a chip with the donor: by rates measured on it, else by the family's ratios.

        A rate is compared with the donor's rate by the same kind of measurement where there is
        one, else with the donor's law. A format without a measured rate takes the ratio of a
        format of as many bytes, then that of bf16.
        """
        measured = {
            dtype: figure.value / accelerator.peak_flop_per_s[dtype].value / self._reached(dtype)
            for dtype, figure in accelerator.achieved.gemm_flop_per_s.items()
        }
        for dtype, twin in _TWINS.items():
            if dtype not in measured and twin in measured:
                measured[dtype] = measured[twin]
        read = accelerator.achieved.read_bytes_per_s
        memory = self.rule.memory_ratio.value
        if read is not None:
            peak = accelerator.local_memory.bandwidth_bytes_per_s.value
            memory = read.value / peak / self._read()
        return Ratios(
            measured,
            measured.get("bf16", self.rule.compute_ratio.value),
            memory,
            self.rule.floor_ratio.value,
        )

    def _reached(self, dtype: Dtype) -> float:
        """Fraction of its peak that the donor's best large product reaches in a format."""
        known = self.donor.achieved.gemm_flop_per_s
        for each in (dtype, _TWINS.get(dtype, dtype)):
            if each in known:
                return known[each].value / self.donor.peak_flop_per_s[each].value
        same = [kernel for kernel in self._gemms() if kernel.compute_dtype == dtype]
        return max(kernel.law.compute_efficiency for kernel in same or self._gemms())

    def _read(self) -> float:
        """Fraction of its peak bandwidth that the donor reads at."""
        read = self.donor.achieved.read_bytes_per_s
        if read is not None:
            return read.value / self.donor.local_memory.bandwidth_bytes_per_s.value
        return max(kernel.law.memory_efficiency for kernel in self._gemms())

    def _gemms(self) -> list[GemmKernel]:
        return [kernel for each in self.laws.kernels.values() for kernel in each.gemm.values()]

    def stand_in(self, accelerator: Accelerator, accelerator_id: str) -> Calibration:
        """Return what the calibration of a chip may look like: the donor's laws, scaled.

        Collectives are none of it: they belong to the network, not to the chip. Kernels may
        compute in formats that the chip lacks; whoever picks one must look.
        """
        ratios = self.ratios(accelerator)
        power = PowerFit(
            law=self.laws.power.law, fit=self.laws.power.fit, inherited_from=self.rule.donor
        )
        return self.laws.model_copy(
            update={
                "accelerator": accelerator_id,
                "about": self.describe(accelerator),
                "peak_flop_per_s": {
                    dtype: figure.value for dtype, figure in accelerator.peak_flop_per_s.items()
                },
                "bandwidth_bytes_per_s": accelerator.local_memory.bandwidth_bytes_per_s.value,
                "kernels": {
                    engine: _scaled_kernels(kernels, ratios)
                    for engine, kernels in self.laws.kernels.items()
                },
                "collectives": {},
                "expert_exchange": {},
                "power": power,
                "excluded": {},
            }
        )

    def describe(self, accelerator: Accelerator) -> str:
        """Say whose laws stand in and how they are scaled."""
        ratios = self.ratios(accelerator)
        return (
            f"laws of {self.rule.donor} in units of this chip's peaks (prior of "
            f"{self.rule.family}: efficiency of arithmetic x{ratios.of('bf16'):.2f}, of memory "
            f"x{ratios.memory:.2f}, fixed times x{ratios.fixed:.2f}; a kernel is typically off by "
            f"{self.rule.spread_fraction.value:.0%}, the errors quoted are the donor's)"
        )


_TWINS: Mapping[Dtype, Dtype] = {"fp8": "int8", "int8": "fp8", "mxfp4": "nvfp4", "nvfp4": "mxfp4"}
"""Formats of as many bytes, computed by like arithmetic."""


def _scaled_kernels(kernels: EngineKernels, ratios: Ratios) -> EngineKernels:
    """Scale every law of one engine."""
    return EngineKernels.model_construct(
        None,
        **{family: _scaled_family(getattr(kernels, family), ratios) for family in _FAMILIES},
    )


_FAMILIES = tuple(EngineKernels.model_fields)


def _scaled_family(family: Any, ratios: Ratios) -> Any:
    if isinstance(family, Mapping):
        return {name: _scaled_kernel(kernel, ratios) for name, kernel in family.items()}
    return tuple(_scaled_kernel(kernel, ratios) for kernel in family)


def _scaled_kernel(kernel: Any, ratios: Ratios) -> Any:
    return kernel.model_copy(update={"law": scaled(kernel.law, ratios, kernel.compute_dtype)})


def scaled(law: Law, ratios: Ratios, dtype: Dtype) -> Law:
    """Scale a law.

    Efficiencies are multiplied and stay at most 1; fixed times are multiplied; what a law adds in
    units of memory traffic (conversions, gather and scatter) grows as memory gets less efficient.

    Examples
    --------
    >>> law = PrefillAttentionLaw(floor_s=4e-6, compute_efficiency=0.6, token_slowdown=2.0)
    >>> scaled(law, Ratios({}, other_compute=0.5, memory=0.8, fixed=2.0), "bf16")
    PrefillAttentionLaw(floor_s=8e-06, compute_efficiency=0.3, token_slowdown=2.5)
    """
    rules = {
        "compute_efficiency": lambda value: min(value * ratios.of(dtype), 1.0),
        "memory_efficiency": lambda value: min(value * ratios.memory, 1.0),
        "floor_s": lambda value: value * ratios.fixed,
        "depth_s": lambda value: value * ratios.fixed,
        "row_s": lambda value: value * ratios.fixed,
        "idle_rows": lambda value: value * ratios.fixed,
        "conversion_slowdown": lambda value: value / ratios.memory,
        "tile_depth": lambda value: value * min(ratios.fixed, 1.0),
        "pick_slowdown": lambda value: value / ratios.memory,
        "token_slowdown": lambda value: value / ratios.memory,
    }
    fields = law.model_dump()
    changed = {name: rules[name](value) for name, value in fields.items() if name in rules}
    return law.model_copy(update=changed)
