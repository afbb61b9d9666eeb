"""What is fitted for each kind of law: its coefficients, where they may lie, and its inputs."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Generic, TypeVar

import numpy as np
import pandas as pd

from sim.calibration.corrections import helpful_correction
from sim.calibration.regression import Array, Knob, columns, regress, times
from sim.efficiency import DecodeAttentionLaw, GemmLaw, GroupedGemmLaw, PrefillAttentionLaw
from sim.schema import StrictModel
from sim.units import MICROSECOND_S

LawT = TypeVar("LawT", bound=StrictModel)

LONG_CALL_S = 50 * MICROSECOND_S
"""Decode attention of longer calls weighs more in its fit, up to `LONG_CALL_WEIGHT`."""
LONG_CALL_WEIGHT = 4.0

_EFFICIENCY = Knob(0.7, 0.01, 1.0)
_FLOOR = Knob(5e-6, 1e-7, 1e-3)
_SHARPNESS = Knob(2.0, 1.0, 8.0)
_SLOWDOWN = Knob(1.0, 1e-3, 1e3, zero_at_low=True)


@dataclass(frozen=True)
class Problem(Generic[LawT]):
    """How one kind of law is fitted to rows."""

    law_type: type[LawT]
    knobs: Mapping[str, Knob]
    forecast: Callable[[LawT, pd.DataFrame], Array]
    fixed: Mapping[str, float] = field(default_factory=dict)
    weights: Callable[[pd.DataFrame], Array | float] = lambda _: 1.0
    unmeasured: Mapping[str, float] = field(default_factory=dict)
    """Coefficients that no row shows: left out of the fit, and these values in the law."""
    size: str | None = None
    """Column of the size by which the closed form is corrected, where that helps."""

    def fit(self, rows: pd.DataFrame) -> LawT:
        """Find the law of some rows."""
        fixed = dict(self.fixed) | dict.fromkeys(self.unmeasured, 0.0)
        law = regress(self.law_type, self.knobs, self.forecast, rows, fixed, self.weights(rows))
        if self.size is None:
            return law.model_copy(update=dict(self.unmeasured))
        floor_s = law.model_dump()["floor_s"]
        work_s = self.forecast(law, rows) - floor_s
        found = helpful_correction(
            floor_s, work_s, columns(rows, self.size)[self.size], times(rows)
        )
        return law.model_copy(update={"correction": found})


def _gemm_times(law: GemmLaw, rows: pd.DataFrame) -> Array:
    return law.seconds(**columns(rows, "compute_s", "memory_s", "depth", "conversion_s"))


def _grouped_gemm_times(law: GroupedGemmLaw, rows: pd.DataFrame) -> Array:
    return law.seconds(
        **columns(rows, "compute_s", "memory_s", "pick_s", "token_s", "local_experts")
    )


def _bare_gemm_times(law: GroupedGemmLaw, rows: pd.DataFrame) -> Array:
    """Time of the products alone, whatever the law adds for gather, activation and scatter."""
    nothing = np.zeros(len(rows))
    whole_s: Array = law.seconds(
        **columns(rows, "compute_s", "memory_s", "local_experts"), pick_s=nothing, token_s=nothing
    )
    products_s: Array = whole_s - UNMEASURED_FLOOR_S
    return products_s


def _decode_times(law: DecodeAttentionLaw, rows: pd.DataFrame) -> Array:
    return law.seconds(**columns(rows, "rows", "memory_s", "compute_s", "tiles"))


def _prefill_times(law: PrefillAttentionLaw, rows: pd.DataFrame) -> Array:
    return law.seconds(**columns(rows, "compute_s", "token_s"))


def _by_time(rows: pd.DataFrame) -> Array:
    """Weigh long calls more: some kernels bend where the law is straight, and long calls count."""
    weights: Array = np.clip(times(rows) / LONG_CALL_S, None, LONG_CALL_WEIGHT) ** 0.25
    return weights


GEMM = Problem(
    GemmLaw,
    {
        "floor_s": _FLOOR,
        "compute_efficiency": _EFFICIENCY,
        "memory_efficiency": _EFFICIENCY,
        "depth_s": Knob(5e-10, 1e-13, 1e-8, zero_at_low=True),
        "sharpness": _SHARPNESS,
        "conversion_slowdown": _SLOWDOWN,
        "tile_depth": Knob(100.0, 1.0, 1e4, zero_at_low=True),
    },
    _gemm_times,
    size="depth",
)
GROUPED_GEMM = Problem(
    GroupedGemmLaw,
    {
        "floor_s": Knob(2e-5, 1e-7, 1e-3),
        "compute_efficiency": _EFFICIENCY,
        "memory_efficiency": _EFFICIENCY,
        "sharpness": _SHARPNESS,
        "pick_slowdown": _SLOWDOWN,
        "token_slowdown": _SLOWDOWN,
    },
    _grouped_gemm_times,
    size="local_experts",
)
DECODE = Problem(
    DecodeAttentionLaw,
    {
        "floor_s": _FLOOR,
        "memory_efficiency": _EFFICIENCY,
        "compute_efficiency": _EFFICIENCY,
        "sharpness": _SHARPNESS,
        "idle_rows": Knob(4.0, 1e-2, 1e3, zero_at_low=True),
        "row_s": Knob(3e-9, 1e-12, 1e-6, zero_at_low=True),
    },
    _decode_times,
    weights=_by_time,
)
PREFILL = Problem(
    PrefillAttentionLaw,
    {
        "floor_s": Knob(1e-5, 1e-7, 1e-3),
        "compute_efficiency": _EFFICIENCY,
        "token_slowdown": _SLOWDOWN,
    },
    _prefill_times,
)


def plain_prefill(rows: pd.DataFrame) -> PrefillAttentionLaw:
    """Fit prefill attention to rows."""
    return PREFILL.fit(rows)


def without_conversion(problem: Problem[GemmLaw]) -> Problem[GemmLaw]:
    """Fit a format that reads activations in bf16: there is nothing to convert."""
    knobs = {name: knob for name, knob in problem.knobs.items() if name != "conversion_slowdown"}
    return replace(problem, knobs=knobs, fixed={"conversion_slowdown": 0.0})


def with_memory_of(
    law: DecodeAttentionLaw, problem: Problem[DecodeAttentionLaw]
) -> Problem[DecodeAttentionLaw]:
    """Fit a window of one size: its time does not show what depends on the size of a window.

    Memory and arithmetic stay those of whole contexts; floor and cost of a row are fitted. So the
    law may be read at other windows.
    """
    shown = ("floor_s", "row_s")
    fixed = {name: value for name, value in law.model_dump().items() if name not in shown}
    return replace(problem, knobs={name: problem.knobs[name] for name in shown}, fixed=fixed)


UNMEASURED_PICKS = 3.0
"""Gather, activation and scatter around bare products: each moves the vector of a pick once."""
UNMEASURED_FLOOR_S = 10 * MICROSECOND_S
"""What their calls cost however few tokens there are: a whole layer of TensorRT-LLM on H100 takes
28 us at least (FP8 with block scales), the bare products of DeepGEMM on H800, the same die, 18."""


def without_routing(problem: Problem[GroupedGemmLaw]) -> Problem[GroupedGemmLaw]:
    """Fit bare products of experts; what surrounds them was not timed and is assumed."""
    kept = {name: problem.knobs[name] for name in problem.knobs if "slowdown" not in name}
    start_s, low_s, high_s, _ = kept["floor_s"]
    kept["floor_s"] = Knob(
        start_s + UNMEASURED_FLOOR_S, low_s + UNMEASURED_FLOOR_S, high_s + UNMEASURED_FLOOR_S
    )
    return replace(
        problem,
        knobs=kept,
        forecast=_bare_gemm_times,
        unmeasured={"pick_slowdown": UNMEASURED_PICKS, "token_slowdown": 0.0},
        size=None,
    )
