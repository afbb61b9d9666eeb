"""A listing on a terminal: a line for each entry, the names of groups above them."""

from rich import box
from rich.console import Group, JustifyMethod, RenderableType
from rich.table import Table
from rich.text import Text

from sim.report.listing_columns import Listing

FOLDED_LETTERS = 14
"""Least width of a column whose texts may take several lines."""


def listing_table(found: Listing) -> RenderableType:
    """Lay out a listing; ids and numbers stay on one line."""
    table = Table(box=box.SIMPLE, collapse_padding=True, pad_edge=False)
    for column in found.columns:
        justify: JustifyMethod = "right" if column.right else "left"
        width = FOLDED_LETTERS if column.folds else None
        table.add_column(column.heading, justify=justify, no_wrap=not column.folds, min_width=width)
    headed = found.group and len({row[found.group] for row in found.rows}) > 1
    above = None
    for row in found.rows:
        if headed and row[found.group] != above:
            above = row[found.group]
            table.add_row(Text(above, style="bold"))
        table.add_row(*(column.write(row) for column in found.columns))
    return Group(table, Text(found.caption)) if found.caption else table
