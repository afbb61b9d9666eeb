"""Cells of a file of measured runs."""

from collections.abc import Mapping
from math import inf
from typing import Literal

from sim.errors import InputError

Row = Mapping[str, str]
"""One run as its file tells it; what is not told is empty or left out."""

Load = Literal["closed", "open", "at_once"]
"""How requests came: from so many clients, each waiting for its answer; freely; or all at once."""


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
