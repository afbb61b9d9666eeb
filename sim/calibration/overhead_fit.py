"""Fit the parameters of engines' overheads to how forecasts answer to them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import least_squares

from sim.calibration.responses import PARAMETERS, Array, Response
from sim.calibration.runs import Quantity

ROBUST_SCALE = 0.05
"""Relative error beyond which a figure pulls less: about the median error of what is fitted well,
so that runs which no law explains do not pull the others along."""
PRIOR_WEIGHT = 0.6
"""A pull of one spread weighs as much as one figure that is off by this share of the robust scale:
enough to settle what the runs do not tell apart, and nothing against a dozen runs."""
WEIGHTS: Mapping[Quantity, float] = {"tpot": 1.0, "ttft": 0.7, "throughput": 1.0}
"""Times to first token scatter more, and saturate."""
SATURATED_S = 2.0
"""Longer times to first token tell of queues and not of the engine."""
PRIOR = np.array([each.prior for each in PARAMETERS])
SPREAD = np.array([each.spread for each in PARAMETERS])
_MOST = np.array([each.most for each in PARAMETERS])
UNFIT: Mapping[str, str] = {
    "inferencex-experimental": "called work in progress by its own README; with four clients and "
    "prompts of 1,024 tokens on eight H200 a first token takes 477 ms and each other one 13.6 ms, "
    "where the same project's benchmark has 109 and 8.1 ms for this model six weeks later",
}
"""Sources of runs that are forecast like all others and fitted to by nobody."""
_FAMILY_SPREAD = 0.5
"""How far a chip family is from the engine's mean, in units of the prior's spread."""


@dataclass(frozen=True)
class Fitted:
    """Parameters in their scales, and how sure they are."""

    scaled: Array
    covariance: Array
    """Of the scaled parameters, by Laplace at the optimum: residual scatter included."""


def figures(found: Sequence[Response]) -> list[tuple[Response, Quantity]]:
    """List the figures that tell of the engine."""
    return [
        (response, quantity)
        for response in found
        for quantity in response.run.measured
        if response.run.source not in UNFIT and not _saturated(response, quantity)
    ]


def fitted_count(found: Sequence[Response]) -> int:
    """Count the runs that have a figure which tells of the engine."""
    return len({id(response) for response, _ in figures(found)})


def unanswered(found: Sequence[Response]) -> set[str]:
    """Name the parameters that no figure of some runs answers to."""
    slopes = [np.abs(response.slopes[quantity]) for response, quantity in figures(found)]
    most = np.max(slopes, axis=0) if slopes else np.zeros(len(PARAMETERS))
    return {each.field for each, slope in zip(PARAMETERS, most, strict=True) if slope == 0.0}


def _saturated(response: Response, quantity: Quantity) -> bool:
    if quantity != "ttft":
        return False
    return max(response.run.measured["ttft"], response.forecasts["ttft"]) > SATURATED_S


def fit(found: Sequence[Response], prior: Array = PRIOR, spread: Array = SPREAD) -> Fitted:
    """Fit one law to some runs: soft-L1 of log ratios, with a weak pull to a prior.

    Parameters
    ----------
    found : sequence of Response
    prior, spread : array
        In the scales of `PARAMETERS`.
    """
    rows = figures(found)
    weights = np.array([WEIGHTS[quantity] for _, quantity in rows])
    measured = np.array([response.run.measured[quantity] for response, quantity in rows])

    def residuals(scaled: Array) -> Array:
        forecast = np.array([response.at(quantity, scaled) for response, quantity in rows])
        pull = PRIOR_WEIGHT * ROBUST_SCALE * (scaled - prior) / spread
        return np.append(weights * np.log(forecast / measured), pull)

    start = np.clip(prior, 1e-6, _MOST - 1e-6)
    solved = least_squares(
        residuals, start, bounds=(0.0, _MOST), loss="soft_l1", f_scale=ROBUST_SCALE
    )
    return Fitted(solved.x, _covariance(np.asarray(solved.jac), solved.fun[: len(rows)]))


Priors = Mapping[str, Array]
"""What each chip family is pulled to, in the scales of `PARAMETERS`."""


def fit_families(
    groups: Mapping[str, Sequence[Response]], priors: Priors | None = None
) -> dict[str, Fitted]:
    """Fit one engine on several chip families, each pulled to what the engine is like on all.

    Parameters
    ----------
    groups : mapping
        Responses by family.
    priors : mapping, optional
        What families are pulled to instead, where it is known beforehand.
    """
    spread = _FAMILY_SPREAD * SPREAD
    known = dict(priors or {})
    unknown = {family: found for family, found in groups.items() if family not in known}
    if len(unknown) == 1:
        return {
            family: fit(found, known[family], spread) if family in known else fit(found)
            for family, found in groups.items()
        }
    if unknown:
        mean = fit([response for found in unknown.values() for response in found])
        known |= dict.fromkeys(unknown, mean.scaled)
    return {family: fit(found, known[family], spread) for family, found in groups.items()}


def _covariance(jacobian: Array, residual: Array) -> Array:
    """Give the inverse curvature, scaled by the scatter of what was fitted."""
    count = jacobian.shape[1]
    freedom = max(1, residual.size - count)
    scatter = float(np.sum(residual**2)) / freedom if residual.size else 1.0
    curvature = jacobian.T @ jacobian
    return np.asarray(max(scatter, 1e-6) * np.linalg.pinv(curvature), dtype=np.float64)
