"""Strategies of test-time compute, as a terminal lists them."""

from functools import partial

from sim.catalog import Catalog
from sim.report.listing_columns import Column, Listing, text
from sim.workload.strategies.entry import read_entry
from sim.workload.tasks import needs_answers


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
