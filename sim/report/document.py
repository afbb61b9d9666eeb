"""The content of ``summary.json``, for the file and for the terminal."""

import math
from typing import Any

import pandas as pd

from sim.report.data import CLAIM_COLUMNS, PROVENANCE_COLUMNS, RunTables, ordered, ordered_summary

SCHEMA_VERSION = 1
"""Rises when a reader of the old document would be misled."""


def summary_document(tables: RunTables) -> dict[str, object]:
    """Return the content of ``summary.json``; what is not defined is None."""
    provenance = ordered(tables.provenance, PROVENANCE_COLUMNS)
    claims = tables.claims
    told = {} if claims is None else {"claims": _records(ordered(claims, CLAIM_COLUMNS))}
    return {
        "schema_version": SCHEMA_VERSION,
        "scenario": tables.scenario,
        "question": tables.question,
        "seed": int(tables.seed),
        "version": tables.version,
        "notes": list(tables.notes),
        "provenance": _records(provenance),
        **told,
        "rows": _records(ordered_summary(tables.summary)),
    }


def _records(frame: pd.DataFrame) -> list[dict[str, object]]:
    return [
        {str(column): _plain(value) for column, value in row.items()}
        for row in frame.astype(object).to_dict("records")
    ]


def _plain(value: Any) -> object:
    """Turn a cell into what JSON knows: no NumPy types, None for what is not defined."""
    if pd.isna(value):
        return None
    item = getattr(value, "item", None)
    plain = item() if callable(item) else value
    return None if isinstance(plain, float) and not math.isfinite(plain) else plain
