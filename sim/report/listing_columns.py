"""What a listing is made of: rows with SI numbers, and columns that say how to show them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from sim.report.formats import figure

Row = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Column:
    """One column of a listing."""

    heading: str
    """With the unit of the numbers as they are shown."""
    write: Callable[[Row], str]
    right: bool = False
    folds: bool = False
    """Whether a long text may take several lines."""


@dataclass(frozen=True, slots=True)
class Listing:
    """The entries of one kind."""

    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    group: str = ""
    """Key of what neighbouring rows have in common and is said once above them, if any."""
    caption: str = ""
    """What the columns leave open."""


def text(key: str, heading: str | None = None, *, folds: bool = False) -> Column:
    """Show a text, nothing where there is none."""
    heading = key if heading is None else heading
    return Column(heading, lambda row: str(row[key] or ""), folds=folds)


def number(key: str, heading: str | None = None, unit: float = 1.0) -> Column:
    """Show a number in a unit, nothing where there is none."""

    def write(row: Row) -> str:
        return "" if row[key] is None else figure(row[key] / unit)

    return Column(key if heading is None else heading, write, right=True)


def count(key: str, heading: str | None = None) -> Column:
    """Show a whole number."""
    return Column(key if heading is None else heading, lambda row: f"{row[key]:,}", right=True)
