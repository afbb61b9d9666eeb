"""JSON lines: one object per line, as several publishers of traces write them."""

import gzip
import json
import lzma
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from sim.errors import InputError
from sim.workload.readers.table import Table

_OPENERS: Mapping[str, Callable[..., Any]] = {".gz": gzip.open, ".xz": lzma.open}


def is_json_lines(path: Path) -> bool:
    """Tell by its name whether a file holds JSON lines; it may be compressed."""
    return any(suffix in {".jsonl", ".ndjson"} for suffix in path.suffixes[-2:])


def read_json_lines(path: Path) -> Table:
    """Return the objects of a file of JSON lines, one row each; row i is on line i + 1.

    Raises
    ------
    InputError
        The file is missing or empty, or a line is no JSON object.
    """
    if path.is_dir():
        raise InputError(f"{path}: is a folder; name a file of JSON lines in it")
    opener = _OPENERS.get(path.suffix, open)
    try:
        with opener(path, "rt", encoding="utf-8-sig") as file:
            lines = file.read().rstrip().split("\n")
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except (OSError, UnicodeDecodeError, lzma.LZMAError) as error:
        raise InputError(f"{path}: cannot be read as JSON lines: {error}") from error
    if lines == [""]:
        raise InputError(f"{path}: is empty; it needs one JSON object per request")
    return Table(path, pd.DataFrame.from_records(_objects(path, lines)), first_line=1)


def _objects(path: Path, lines: list[str]) -> list[dict[str, Any]]:
    objects = []
    for number, line in enumerate(lines, start=1):
        try:
            value = json.loads(line)
        except json.JSONDecodeError as error:
            raise InputError(f"{path}:{number}: not valid JSON: {error.msg}") from error
        if not isinstance(value, dict):
            raise InputError(f"{path}:{number}: not a JSON object such as {{...}}")
        objects.append(value)
    return objects
