"""Rows and cells of a file of measured runs."""

import csv
from collections.abc import Iterator, Mapping, Sequence
from math import inf
from pathlib import Path
from typing import Literal, NamedTuple

from sim.errors import InputError

Row = Mapping[str, str]
"""One run as its file tells it; what is not told is empty or left out."""

Load = Literal["closed", "open", "at_once"]
"""How requests came: from so many clients, each waiting for its answer; freely; or all at once."""
FEW_CLIENTS, MANY_CLIENTS = 8, 64
"""Where closed loops are told apart by how many clients they have, for tables of errors."""


class NumberedRow(NamedTuple):
    """A row and where it stands."""

    line: int
    cells: dict[str, str]


def header_of(path: Path) -> tuple[str, ...]:
    """Return the names of the columns; none of an empty file.

    Raises
    ------
    InputError
        The file cannot be read, or is no text.
    """
    return tuple(name.strip() for name in next(_lines(path), (0, ()))[1])


def read_rows(path: Path) -> Iterator[NumberedRow]:
    """Read the rows of a CSV by the names in its first line; cells that are left out are empty.

    Raises
    ------
    InputError
        The file is no CSV, two columns have one name, or a row has more cells than there are
        columns; the message names the line.
    """
    header, lines = header_of(path), _lines(path)
    next(lines, None)
    twice = next((name for name in header if name and header.count(name) > 1), None)
    if twice is not None:
        raise InputError(f"{path}:1: column {twice} stands twice; remove or rename one")
    for line, cells in lines:
        if any(cells[len(header) :]):
            raise InputError(
                f"{path}:{line}: has {len(cells)} cells for {len(header)} columns; put a text with "
                "a comma into double quotes"
            )
        told = (*cells, *[""] * (len(header) - len(cells)))
        yield NumberedRow(line, dict(zip(header, told, strict=False)))


def _lines(path: Path) -> Iterator[tuple[int, Sequence[str]]]:
    """Yield the lines of a CSV that are not empty, each with its number."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, strict=True)
            begun = 1
            for cells in reader:
                if any(cells):
                    yield begun, tuple(cells)
                begun = reader.line_num + 1
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise InputError(
            f"{path}: cannot be read as CSV: it is no text in UTF-8; save it so"
        ) from error
    except csv.Error as error:
        raise InputError(
            f"{path}:{begun}: cannot be read as CSV: {error}; is a double quote left open?"
        ) from error


def figure(row: Row, column: str) -> float:
    """Read a positive number.

    Raises
    ------
    InputError
        It is none; the message names the column and the value.
    """
    text = row[column]
    try:
        value = float(text)
    except ValueError:
        raise InputError(f"{column}: {text!r} is not a number") from None
    if not 0 < value < inf:
        raise InputError(f"{column}: {text} must be greater than 0; leave unknown figures empty")
    return value


def count(row: Row, column: str) -> int:
    """Read a number of things, at least one; means of several are cut to whole ones.

    Raises
    ------
    InputError
        It is none; the message names the column and the value.
    """
    value = figure(row, column)
    if value < 1:
        raise InputError(f"{column}: {row[column]} must be at least 1")
    return int(value)


def clients(row: Row) -> int:
    """Count the clients of a closed loop: one that sends a single stream, or so many as told."""
    if row.get("scenario") == "singlestream" and not row.get("concurrency"):
        return 1
    return count(row, "concurrency")


def load_of(row: Row) -> Load | None:
    """Tell how requests came, if the run is of a kind that is simulated.

    >>> load_of({"scenario": "offline"}), load_of({"scenario": "server", "request_rate_qps": "2"})
    ('at_once', 'open')
    """
    scenario = row.get("scenario")
    if scenario == "singlestream" or (scenario == "concurrency" and row.get("concurrency")):
        return "closed"
    if scenario in ("server", "interactive") and row.get("request_rate_qps"):
        return "open"
    if scenario == "offline":
        return "at_once"
    return None


def load_name(load: Load, clients: int = 0) -> str:
    """Name how requests came, as tables of errors are made by it.

    Parameters
    ----------
    load : str
    clients : int
        Of a closed loop.

    >>> load_name("at_once"), load_name("closed", 8), load_name("closed", 9)
    ('at once', 'closed, 1 to 8 clients', 'closed, 9 to 64 clients')
    """
    if load != "closed":
        return load.replace("_", " ")
    if clients > MANY_CLIENTS:
        return f"closed, more than {MANY_CLIENTS} clients"
    few = clients <= FEW_CLIENTS
    ends = (1, FEW_CLIENTS) if few else (FEW_CLIENTS + 1, MANY_CLIENTS)
    return f"closed, {ends[0]} to {ends[1]} clients"
