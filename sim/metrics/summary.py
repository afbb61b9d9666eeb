"""One row of the summary for each case, and one for each of its pools and tenants."""

from collections.abc import Iterator, Sequence, Set

import numpy as np
import numpy.typing as npt
import pandas as pd

from sim.economics import total_usd, usd_per_hour
from sim.metrics.accounts import Accounts
from sim.metrics.requests import (
    OUTCOMES,
    Window,
    answers_inside,
    count_outcome,
    meets_slo,
    statistics,
)
from sim.routing_policy import Slo
from sim.service import Service
from sim.units import HOUR_S

Floats = npt.NDArray[np.float64]

QUANTILES = ("p50", "p95", "p99")

LOSS_CAUSES = ("timed_out", "failure", "shed", "cancelled")
"""How attempts end that may have cost work; all others together are named other."""


def summary_row(service: Service, requests: pd.DataFrame, books: Accounts) -> dict[str, object]:
    """One row of the summary: what a case does and what it costs."""
    case, window = service.case, books.window
    span = window.duration_s
    counted = counted_requests(requests, window)
    completed = counted[counted["outcome"] == "completed"]
    met = int(meets_slo(completed, case.slo.ttft_s, case.slo.tpot_s).sum())
    output_rate = books.output_tokens / span
    total_rate = (books.output_tokens + books.input_tokens) / span
    tpot = completed["tpot_s"].dropna()
    cost, done = books.token_cost, count_outcome(requests, "completed")
    return {
        "case": case.name,
        "system": " + ".join(dict.fromkeys(pool.case.system for pool in service.pools)),
        "model": case.model,
        "chips": service.chips,
        "replicas": service.replicas,
        "offered_requests_per_s": len(counted) / span,
        "completed_requests": done,
        "failed_requests": len(requests) - done - count_outcome(requests, "cancelled"),
        "duration_s": span,
        "output_tokens_per_s": output_rate,
        "output_tokens_per_s_per_chip": _per_chip(output_rate, books),
        "total_tokens_per_s_per_chip": _per_chip(total_rate, books),
        **statistics("ttft_s", completed["ttft_s"], ("mean", *QUANTILES)),
        **statistics("tpot_s", tpot, ("mean", *QUANTILES)),
        **statistics("e2e_s", completed["e2e_s"], ("p50", "p99")),
        **_stages(completed),
        "interactivity_tokens_per_s": 1.0 / float(tpot.median()) if len(tpot) else np.nan,
        "slo_attainment_fraction": _share_of_wanted(met, counted),
        "goodput_requests_per_s": met / span,
        "utilization_fraction": books.utilization_fraction,
        "mfu_fraction": books.mfu_fraction,
        "mbu_fraction": books.mbu_fraction,
        "power_w_mean": books.power_w,
        "energy_j_per_output_token": books.power_w * span / books.output_tokens
        if books.output_tokens
        else np.nan,
        "usd_per_hour": usd_per_hour(books.bill),
        "usd_per_mtok_input": _or_nan(cost.usd_per_mtok_input),
        "usd_per_mtok_output": _or_nan(cost.usd_per_mtok_output),
        "usd_per_mtok_total": _or_nan(cost.usd_per_mtok_total),
        **_losses(requests, books),
    }


def _stages(completed: pd.DataFrame) -> dict[str, float]:
    """Tell how long requests were with encoders and between pools; most have no time there."""
    which = ("mean", "p50", "p95")
    return {
        name: value
        for stage in ("encode_s", "handover_wait_s")
        for name, value in statistics(stage, completed[stage], which).items()
    }


def _per_chip(rate: float, books: Accounts) -> float:
    """Divide by the chips that were there; not defined if there were none."""
    return rate / books.chips_paid if books.chips_paid else np.nan


def _losses(requests: pd.DataFrame, books: Accounts) -> dict[str, object]:
    """Tell what was saved by caches, and what was lost on the way."""
    lost, usd = books.lost, total_usd(books.bill)
    by_cause = {f"{name}_lost_tokens": lost.tokens_by_cause.get(name, 0) for name in LOSS_CAUSES}
    failed = {f"{name}_requests": count_outcome(requests, name) for name in OUTCOMES[1:]}
    return {
        "cached_input_fraction": books.cached_input_fraction,
        "preemptions": int(requests["preemptions"].sum()),
        **failed,
        "kv_transfer_bytes": books.kv_transfer_bytes,
        "embedding_transfer_bytes": books.embedding_transfer_bytes,
        "recomputed_tokens": int(requests["recomputed_tokens"].sum()),
        "lost_input_tokens": lost.input_tokens,
        "lost_output_tokens": lost.output_tokens,
        **by_cause,
        "other_lost_tokens": lost.input_tokens + lost.output_tokens - sum(by_cause.values()),
        "lost_work_fraction": lost.usd / usd if usd > 0 else 0.0,
        "lost_work_usd_per_hour": lost.usd / books.window.duration_s * HOUR_S,
    }


def pool_rows(service: Service, books: Accounts) -> Iterator[dict[str, object]]:
    """One row for each pool: what it consists of, how full it is, what it costs."""
    per_hour = HOUR_S / books.window.duration_s
    for pool, part in zip(service.pools, books.pools, strict=True):
        yield {
            "pool": pool.role,
            "system": pool.case.system,
            "chips": pool.chips,
            "replicas": pool.replicas,
            "chips_per_replica": pool.chips_per_replica,
            "replicas_mean": part.replicas_paid,
            "utilization_fraction": part.utilization_fraction,
            "kv_used_fraction": part.kv_used_fraction,
            "running_requests": part.running_requests,
            "waiting_requests": part.waiting_requests,
            "chip_power_w": part.chip_power_w,
            "usd_per_hour": part.usd * per_hour,
        }


def tenant_rows(
    requests: pd.DataFrame,
    books: Accounts,
    slos: Sequence[Slo],
    models: "pd.Series[str] | None" = None,
) -> Iterator[dict[str, object]]:
    """One row for each tenant: what its requests met with, and its share of the cost.

    Input tokens that had to be computed share the cost of prompts, output tokens that of answers;
    tokens count when they fall into the window. Each model is paid for by those who call it.

    Parameters
    ----------
    requests : DataFrame
        Its column ``tenant`` is categorical.
    books : Accounts
    slos : sequence of Slo
        Of each tenant, in the order of the categories.
    models : Series of str, optional
        The model that each request is for, by the role of its pool; that of the case, which has no
        name, unless given.
    """
    window, tenants = books.window, requests["tenant"].cat
    usd = _usd_of_tenants(requests, books, models)
    total = books.token_cost.input_usd + books.token_cost.output_usd
    counted = counted_requests(requests, window)
    for index, (tenant, slo) in enumerate(zip(tenants.categories, slos, strict=True)):
        mine = counted[counted["tenant"] == tenant]
        yield {
            "tenant": tenant,
            **_service_of(mine, slo, window),
            "usd_per_hour": usd[index] / window.duration_s * HOUR_S,
            "share_fraction": usd[index] / total if total > 0 else 0.0,
        }


def _usd_of_tenants(
    requests: pd.DataFrame, books: Accounts, models: "pd.Series[str] | None"
) -> Floats:
    """Share out the bill, model by model; what nobody used is paid for like all the rest."""
    tokens = _prompts_in(requests, books.window), answers_inside(requests, books.window)
    tenants = requests["tenant"].cat
    codes, count = tenants.codes.to_numpy(), len(tenants.categories)
    cost = books.token_cost
    costs, called = {"": (cost.input_usd, cost.output_usd)}, np.full(len(requests), "")
    if models is not None:
        costs, called = _cost_by_model(books, set(models)), models.to_numpy(dtype=str)
    usd, unused = np.zeros(count), 0.0
    for model, both in costs.items():
        mine = called == model
        for of_it, part in zip(both, tokens, strict=True):
            had = np.bincount(codes[mine], weights=part[mine], minlength=count).astype(float)
            if had.sum() > 0 or len(costs) == 1:
                usd += of_it * _shares(had)
            else:
                unused += of_it
    return usd + unused * _shares(usd)


def _cost_by_model(books: Accounts, called: Set[str]) -> dict[str, tuple[float, float]]:
    """Give what prompts and what answers of each model cost, by the role of its pool."""
    found: dict[str, tuple[float, float]] = {"": (0.0, 0.0)}
    for pool in books.pools:
        model = pool.role if pool.role in called else ""
        prompts, answers = found.get(model, (0.0, 0.0))
        share = pool.usd * pool.prefill_share
        found[model] = (prompts + share, answers + pool.usd - share)
    return found


def _service_of(mine: pd.DataFrame, slo: Slo, window: Window) -> dict[str, object]:
    """Count requests, latencies and goodput of one tenant in the window."""
    completed = mine[mine["outcome"] == "completed"]
    met = int(meets_slo(completed, slo.ttft_s, slo.tpot_s).sum())
    prompts = float(mine["input_tokens"].sum())
    return {
        "requests": len(mine),
        **{f"{name}_requests": count_outcome(mine, name) for name in OUTCOMES},
        "input_tokens": int(prompts),
        "output_tokens": int(completed["output_tokens"].sum()),
        "cached_input_fraction": float(mine["cached_tokens"].sum()) / prompts if prompts else 0.0,
        **statistics("ttft_s", completed["ttft_s"], QUANTILES),
        **statistics("tpot_s", completed["tpot_s"].dropna(), QUANTILES),
        **statistics("e2e_s", completed["e2e_s"], QUANTILES),
        "slo_attainment_fraction": _share_of_wanted(met, mine),
        "goodput_requests_per_s": met / window.duration_s,
    }


def _share_of_wanted(met: int, requests: pd.DataFrame) -> float:
    """Divide by the requests whose answers were wanted to the end: cancelled ones miss nothing."""
    wanted = len(requests) - count_outcome(requests, "cancelled")
    return met / wanted if wanted else np.nan


def counted_requests(requests: pd.DataFrame, window: Window) -> pd.DataFrame:
    """Give the requests that arrived in the window."""
    return requests[requests["arrival_s"].between(window.start_s, window.end_s)]


def _prompts_in(requests: pd.DataFrame, window: Window) -> Floats:
    """Prompt tokens of each request that were computed for a first token in the window."""
    inside = requests["first_token_s"].between(window.start_s, window.end_s, inclusive="right")
    computed = requests["input_tokens"] - requests["cached_tokens"]
    return np.where(inside, computed, 0).astype(float)


def _shares(amounts: Floats) -> Floats:
    """Share of each in the sum; equal ones if there is none, so that nothing stays unpaid."""
    total = amounts.sum()
    return amounts / total if total > 0 else np.full(amounts.size, 1.0 / amounts.size)


def _or_nan(value: float | None) -> float:
    """Write what is not defined as tables do."""
    return np.nan if value is None else value
