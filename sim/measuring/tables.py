"""CSV files that grow by a row at a time, so that nothing is lost when a measurement stops."""

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path

from sim.errors import InputError

Cell = str | int | float | None
Row = Mapping[str, Cell]
DIGITS = 6
"""Significant digits of measured figures."""


class Table:
    """One file of rows, each recognised by its key.

    Parameters
    ----------
    path
        The file; its folder is made when the first row is written.
    columns
        In their order in the file.
    key
        Columns that tell a row from the others.
    """

    def __init__(self, path: Path, columns: Sequence[str], key: Sequence[str]) -> None:
        self.path, self.columns, self.key = path, tuple(columns), tuple(key)
        self._done: set[tuple[str, ...]] = set()

    def open(self, *, resume: bool) -> None:
        """Read what is there already, or write the heading.

        Parameters
        ----------
        resume
            Rows that are there count as done; without, there must be none.

        Raises
        ------
        InputError
            There are rows and ``resume`` is off, or the file has other columns.
        """
        text = self.path.read_bytes().decode("utf-8") if self.path.is_file() else ""
        whole = text[: text.rfind("\n") + 1]  # a row that was cut off is measured again
        if not whole:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.path.write_text(_line(self.columns), encoding="utf-8", newline="\n")
            return
        if whole != text:
            self.path.write_bytes(whole.encode("utf-8"))
        rows = list(csv.DictReader(io.StringIO(whole, newline="")))
        found = whole.partition("\n")[0].strip()
        if found != _line(self.columns).strip():
            raise InputError(
                f"{self.path}:1: has other columns than are written today ({found}); "
                "take another --out"
            )
        if rows and not resume:
            raise InputError(
                f"{self.path}: has {len(rows)} rows already; --resume goes on with them, "
                "another --out starts anew"
            )
        self._done = {tuple(row[name] for name in self.key) for row in rows}

    def has(self, row: Row) -> bool:
        """Tell whether a row with this key is there."""
        return self._key(row) in self._done

    def append(self, row: Row) -> None:
        """Write a row at the end of the file; what it does not have stays empty."""
        unknown = sorted(set(row) - set(self.columns))
        if unknown:
            raise ValueError(f"{self.path.name} has no columns {', '.join(unknown)}")
        with self.path.open("a", encoding="utf-8", newline="") as file:
            file.write(_line([_text(row.get(name)) for name in self.columns]))
        self._done.add(self._key(row))

    def __len__(self) -> int:
        return len(self._done)

    def _key(self, row: Row) -> tuple[str, ...]:
        return tuple(_text(row[name]) for name in self.key)


def _line(cells: Sequence[str]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow(cells)
    return text.getvalue()


def _text(cell: Cell) -> str:
    if cell is None:
        return ""
    return f"{cell:.{DIGITS}g}" if isinstance(cell, float) else str(cell)
