"""Strategies of test-time compute and benchmarks for them, as a terminal lists them."""

from functools import partial

from sim.catalog import Catalog
from sim.quality.benchmark import Laws
from sim.report.listing_columns import Column, Listing, text
from sim.workload.strategies.entry import read_entry
from sim.workload.tasks import benchmark_of, needs_answers


def strategies(catalog: Catalog) -> Listing:
    """List strategies with the models that a case must have for them."""
    lookup = partial(catalog.located, "strategies")
    rows = []
    for entry_id in catalog.names("strategies"):
        entry = read_entry(lookup(entry_id), lookup)
        rows.append(
            {
                "id": entry_id,
                "kind": entry.strategy.kind,
                "other_models": sorted(entry.strategy.models),
                "needs_benchmark": needs_answers(entry.strategy),
                "description": entry.description,
                "source": entry.source.strip(),
            }
        )
    columns = (
        text("id"),
        text("kind"),
        Column("other models", lambda row: ", ".join(row["other_models"]), folds=True),
        Column("benchmark", lambda row: "needed" if row["needs_benchmark"] else ""),
        text("description", folds=True),
    )
    caption = (
        "Other models: those that it calls beside the main one; a case has them in `other_models`, "
        "each under its name. Benchmark needed: it goes by how good answers are, so that a "
        "workload has to name one."
    )
    return Listing(columns, tuple(rows), caption=caption)


def benchmarks(catalog: Catalog) -> Listing:
    """List benchmarks with what is known of the answers to them."""
    rows = []
    for entry_id in catalog.names("quality"):
        found = benchmark_of(entry_id, catalog)
        rows.append(
            {
                "id": entry_id,
                "benchmark": found.benchmark,
                "model": found.model,
                "accuracy_fraction": found.laws.difficulty.mean,
                "laws": _known(found.laws),
                "description": found.description,
            }
        )
    columns = (
        text("id"),
        text("benchmark"),
        text("model"),
        Column("accuracy %", lambda row: f"{100 * row['accuracy_fraction']:.1f}", right=True),
        Column("and", lambda row: ", ".join(row["laws"]), folds=True),
    )
    caption = (
        "Accuracy: expected, of one direct answer; votes and coverage follow from how it spreads "
        "over questions. And: what else is known. Effort: of longer answers; revision, search, "
        "gate: of those kinds of strategy; other words: verifiers (`judges_like`), and further "
        "models by the names that strategies call them by."
    )
    return Listing(columns, tuple(rows), caption=caption)


def _known(laws: Laws) -> list[str]:
    """Name the laws of a benchmark that not all have, and the models that it knows."""
    kinds = ("effort", "revision", "search", "gate")
    has = [kind for kind in kinds if getattr(laws, kind) is not None]
    return [*has, *laws.verifiers, *laws.models]
