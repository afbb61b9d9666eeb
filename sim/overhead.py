"""Host and launch time of serving engines, fitted to measured serving runs.

One file of ``hardware/overheads`` per engine. A chip family without a fit of its own takes the
mean of the fitted ones, and says so.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Self

import numpy as np
import numpy.typing as npt
from pydantic import model_validator

from sim.efficiency import Engine, Fit
from sim.errors import InputError
from sim.schema import StrictModel
from sim.units import Fraction, Seconds

Number = float | npt.NDArray[np.float64]


class EngineOverhead(StrictModel):
    """What a serving engine adds to its kernels' measured times, and what it saves on them."""

    step_s: Seconds
    """Per step: scheduling, input preparation, sampling, detokenisation."""
    layer_s: Seconds
    """Per layer: norms, rotary and residual kernels, gaps between kernels."""
    dealt_layer_s: Seconds = 0.0
    """Per layer whose experts are dealt to ranks, beside that: sorting tokens by rank, gathering
    what comes back, as far as the measured kernels and exchanges do not contain it."""
    sequence_s: Seconds
    """Per sequence of the batch."""
    floor_fraction: Fraction
    """Share of the kernels' measured floors that remains inside the engine: kernels that are
    measured alone pay for launch, prologue and quantisation, which engines overlap and fuse."""

    launch_s: Seconds = 0.0
    """Of the host, per kernel of a step with prompts that no graph holds: such a step takes no
    less than the launches of its kernels (`sim.serving.ServingEngine.eager_prompts`)."""
    frontend_s: Seconds
    """Per request, outside the engine: HTTP, tokenisation, hand-over, first chunk back."""

    def seconds(self, *, layers: Number, sequences: Number, dealt_layers: Number = 0.0) -> Number:
        """Return the added time of one step, seconds.

        >>> overhead = NO_OVERHEAD.model_copy(
        ...     update={"step_s": 1e-3, "layer_s": 1e-5, "sequence_s": 1e-6})
        >>> overhead.seconds(layers=80.0, sequences=200.0)
        0.002
        """
        in_layers = self.layer_s * layers + self.dealt_layer_s * dealt_layers
        return self.step_s + in_layers + self.sequence_s * sequences


NO_OVERHEAD = EngineOverhead(
    step_s=0.0,
    layer_s=0.0,
    sequence_s=0.0,
    floor_fraction=1.0,
    frontend_s=0.0,
)
"""An engine that adds nothing to its kernels."""


class FamilyOverhead(StrictModel):
    """The overhead of one engine on one chip family."""

    law: EngineOverhead
    standard_errors: Mapping[str, float] = {}
    """Of the fields of the law, by the curvature of the fit and the scatter of its residuals."""
    models: tuple[str, ...] = ()
    """Models of the runs that were fitted."""
    fit: Fit | None = None
    """Of the time per output token, or of the throughput where no run tells it; none where the law
    is assumed."""
    assumed: str | None = None
    """Why the law is what it is, where no run was fitted."""
    frontend_fit: Fit | None = None
    """Of the time to first token; none where no run with free arrivals was measured, and
    ``frontend_s`` is that of other engines."""

    @model_validator(mode="after")
    def _has_one_origin(self) -> Self:
        if (self.fit is None) == (self.assumed is None):
            raise ValueError("give either fit or assumed: where the law comes from")
        return self


class EngineOverheads(StrictModel):
    """The overheads of one engine (one file of ``hardware/overheads``)."""

    engine: Engine
    about: str
    date: str
    """Day of the fit."""
    method: str
    families: Mapping[str, FamilyOverhead]
    """By chip family."""

    def of_family(self, family: str) -> "ChosenOverhead":
        """Give the overhead on a chip family, and where it comes from.

        Raises
        ------
        InputError
            Nothing is known of the family, and no other family was fitted.
        """
        if family in self.families:
            known = self.families[family]
            if known.fit is None:
                source = f"assumed: {self.engine} on {family}: {known.assumed}"
                return ChosenOverhead(known.law, source, 0.0, frozenset())
            source = (
                f"fitted: {self.engine} on {family}, {known.fit.rows} runs, "
                f"median error of {known.fit.source.split(' of ')[0]} {known.fit.median_ape:.1%}"
            )
            return ChosenOverhead(
                known.law, source, _most_sequences([known]), frozenset(known.models)
            )
        fitted = {name: known for name, known in self.families.items() if known.fit is not None}
        if not fitted:
            raise InputError(
                f"engine {self.engine} does not run on chips of family {family}: it is known on "
                f"{', '.join(self.families)}; take vllm, sglang or trtllm",
                key=["engine.kernels", "engine.name"],
            )
        laws = [known.law.model_dump() for known in fitted.values()]
        mean = EngineOverhead(
            **{field: float(np.mean([law[field] for law in laws])) for field in laws[0]}
        )
        most = _most_sequences(fitted.values())
        models = frozenset(model for known in fitted.values() for model in known.models)
        return ChosenOverhead(mean, f"assumed: mean of {', '.join(fitted)}", most, models)

    def with_law(self, law: EngineOverhead) -> Self:
        """Return the same overheads with one law for every family, to try it out."""
        families = {
            family: known.model_copy(update={"law": law}) for family, known in self.families.items()
        }
        return self.model_copy(update={"families": families})


@dataclass(frozen=True)
class ChosenOverhead:
    """An overhead and its provenance."""

    law: EngineOverhead
    source: str
    max_sequences: float
    """Most sequences per replica among the runs of the fit."""
    models: frozenset[str]
    """Models of those runs; none where the overhead is assumed."""

    def limits(self, case: str, model: str) -> Iterator[str]:
        """Say aloud what the fit does not know; how many sequences ran, a run tells."""
        if not self.models:
            yield f"{case}: the engine's overhead is assumed; no serving run was fitted."
            return
        if model not in self.models:
            known = ", ".join(sorted(self.models))
            yield (
                f"{case}: the engine's overhead was fitted to {known}, not to {model}; measured "
                "runs of other models, mixtures of experts above all, are met clearly worse."
            )


def _most_sequences(families: Iterable[FamilyOverhead]) -> float:
    """Largest number of sequences per replica among the runs behind some fits; 0 if unknown."""
    unknown = (0.0, 0.0)
    fits = (known.fit for known in families if known.fit is not None)
    return max(fit.ranges.get("sequences_per_replica", unknown)[1] for fit in fits)
