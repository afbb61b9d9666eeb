"""Add rows to a file of measured runs, so that either all of them are in it or none is."""

import csv
import io
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from sim.calibration.run_format import COLUMNS
from sim.errors import InputError

Row = Mapping[str, str]
_ORIGIN = frozenset({"source"})
"""Columns that may differ between two imports of one run."""


@dataclass(frozen=True)
class Added:
    """What became of the rows."""

    new: tuple[str, ...]
    """Names of rows that were added."""
    replaced: tuple[str, ...]
    present: tuple[str, ...]
    """Names of rows that were there already, as they are."""

    def __str__(self) -> str:
        """Count them."""
        return (
            f"{len(self.new)} runs added, {len(self.replaced)} replaced, "
            f"{len(self.present)} there already"
        )


def as_csv(rows: Sequence[Row], names: Sequence[str] = tuple(COLUMNS)) -> str:
    """Write rows as a CSV with a line of names."""
    return _line(names) + "".join(_line([row.get(name, "") for name in names]) for row in rows)


def add_rows(
    path: Path,
    rows: Sequence[Row],
    *,
    replace: bool = False,
) -> Added:
    """Add rows to a file, or begin it.

    The new content is written beside the file and moved onto it when it is whole; other rows stay
    byte by byte unless columns have to be added.

    Parameters
    ----------
    path : Path
    rows : sequence
    replace : bool
        Let a row take the place of another one of its name.

    Raises
    ------
    InputError
        The file is none of measured runs, a row of that name is there and differs, or the file
        cannot be written.
    """
    old = _read(path)
    names, held = _parsed(path, old)
    by_id = {row["row_id"]: row for row in held}
    fresh: dict[str, Row] = {}
    present, replaced = [], []
    for row in rows:
        name = row["row_id"]
        other = fresh.get(name) or by_id.get(name)
        if other is None:
            fresh[name] = row
        elif _same(other, row):
            present.append(name)
        elif replace:
            fresh[name] = row
            replaced.append(name)
        else:
            raise InputError(_differing(path, other, row))
    if fresh:
        text = _merged(old, names, held, fresh, replaced)
        _move_onto(path, text, old)
    new = tuple(name for name in fresh if name not in replaced)
    return Added(new, tuple(replaced), tuple(present))


def _read(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8")
    except FileNotFoundError:
        return ""
    except OSError as error:
        raise InputError(f"--out {path}: cannot be read: {error.strerror or error}") from None
    except UnicodeDecodeError:
        raise InputError(f"--out {path}: is not text in UTF-8; name another file") from None


def _parsed(path: Path, text: str) -> tuple[list[str], list[dict[str, str]]]:
    """Return the names of the columns and the rows, which have a cell for each."""
    if not text.strip():
        return list(COLUMNS), []
    lines = csv.reader(io.StringIO(text.removeprefix("\ufeff")))
    names = next(lines)
    if "row_id" not in names:
        raise InputError(f"--out {path}:1: has no column row_id: is it a file of measured runs?")
    rows = []
    for cells in lines:
        if not cells:
            continue
        if len(cells) != len(names):
            raise InputError(
                f"--out {path}:{lines.line_num}: has {len(cells)} cells, the first line "
                f"{len(names)}; correct that row first"
            )
        rows.append(dict(zip(names, cells, strict=True)))
    return names, rows


def _same(one: Row, other: Row) -> bool:
    return all(one.get(name, "") == other.get(name, "") for name in set(COLUMNS) - _ORIGIN)


def _differing(path: Path, there: Row, row: Row) -> str:
    differs = [
        f"{name} ({there.get(name) or 'empty'} there, {row.get(name) or 'empty'} now)"
        for name in COLUMNS
        if name not in _ORIGIN | {"notes"} and there.get(name, "") != row.get(name, "")
    ]
    return (
        f"{path}: run {row['row_id']} ({row['source']}) is there already and differs in "
        f"{', '.join(differs) or 'its notes'}; give --replace to take the new one, or another --out"
    )


def _merged(
    old: str,
    names: Sequence[str],
    held: Sequence[Row],
    fresh: Mapping[str, Row],
    replaced: Sequence[str],
) -> str:
    """Return the whole new text; the old one in front of it as it is, where that is possible."""
    used = {name for row in fresh.values() for name, cell in row.items() if cell}
    if not replaced and used <= set(names) and old.strip():
        end = "\r\n" if "\r\n" in old else "\n"
        lines = "".join(_line([row.get(name, "") for name in names]) for row in fresh.values())
        return old + ("" if old.endswith("\n") else end) + lines.replace("\n", end)
    wider = [*names, *(name for name in COLUMNS if name not in names)]
    kept = [fresh.get(row["row_id"], row) for row in held]
    known = {row["row_id"] for row in held}
    return as_csv([*kept, *(row for name, row in fresh.items() if name not in known)], wider)


def _line(cells: Sequence[str]) -> str:
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerow(cells)
    return buffer.getvalue()


def _move_onto(path: Path, text: str, old: str) -> None:
    """Put the text in the place of the file, once it is safely written."""
    try:
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".csv")
    except OSError as error:
        raise InputError(f"--out {path}: cannot be written: {error.strerror or error}") from None
    draft = Path(name)
    try:
        with os.fdopen(handle, "w", encoding="utf-8", newline="") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        draft.chmod(path.stat().st_mode if path.exists() else 0o644)
        if _read(path) != old:
            raise InputError(f"--out {path}: was changed by somebody else meanwhile; run it again")
        draft.replace(path)
    except OSError as error:
        raise InputError(f"--out {path}: cannot be written: {error.strerror or error}") from None
    finally:
        draft.unlink(missing_ok=True)
