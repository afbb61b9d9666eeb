"""A result file, read once, and the JSON records in it with the place each stands at."""

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from sim.errors import InputError

PARQUET_MAGIC = b"PAR1"
"""How a Parquet file begins and ends (Apache Parquet format, "File format")."""
AGAIN = "write or copy the file again"


@dataclass(frozen=True)
class Record:
    """One JSON object of a result file."""

    where: str
    """File and line, or file and index."""
    values: Mapping[str, Any]

    def has(self, *keys: str) -> bool:
        """Tell whether all these keys are there."""
        return all(key in self.values for key in keys)

    def find(self, path: str) -> Any:
        """Return the value at a dotted path, none where there is nothing.

        >>> Record("r.json", {"a": {"b": 1}}).find("a.b")
        1
        """
        value: Any = self.values
        for key in path.split("."):
            value = value.get(key) if isinstance(value, Mapping) else None
        return value

    def number(self, path: str) -> float | None:
        """Return the number at a dotted path; none where it is absent, null or NaN.

        Raises
        ------
        InputError
            Something else stands there.
        """
        value = self.find(path)
        if value is None:
            return None
        if not _is_number(value):
            raise self._is_not(path, "a number")
        try:
            number = float(value)
        except OverflowError:
            raise InputError(f"{self.where}: {path}: {_short(value)} is too large") from None
        return None if math.isnan(number) else number

    def needed(self, path: str) -> float:
        """Return a positive number that a run cannot do without.

        Raises
        ------
        InputError
            It is absent, or not positive.
        """
        value = self.number(path)
        if value is None:
            raise InputError(f"{self.where}: {path} is missing; is the file cut off? {AGAIN}")
        if value <= 0:
            raise InputError(f"{self.where}: {path} is {value:g}: no request was completed here")
        return value

    def text(self, path: str) -> str | None:
        """Return the text at a dotted path; none where it is absent or empty.

        Raises
        ------
        InputError
            Something else stands there.
        """
        value = self.find(path)
        if value is None or value == "":
            return None
        if not isinstance(value, str):
            raise self._is_not(path, "text")
        return value

    def numbers(self, path: str) -> list[float]:
        """Return the list of numbers at a dotted path; empty where there is none.

        Raises
        ------
        InputError
            Something else stands there.
        """
        value = self.find(path)
        if value is None:
            return []
        if not isinstance(value, list) or not all(map(_is_number, value)):
            raise InputError(f"{self.where}: {path} is not a list of numbers; {AGAIN}")
        return [float(each) for each in value]

    def _is_not(self, path: str, kind: str) -> InputError:
        """Say that what stands at a path is of another kind than it should be."""
        found = _short(self.find(path))
        return InputError(f"{self.where}: {path}: {found} is not {kind}; correct it in the file")

    @cached_property
    def identity(self) -> str:
        """The record as text that does not depend on its layout or place."""
        return json.dumps(self.values, sort_keys=True, separators=(",", ":"))


@dataclass(frozen=True)
class ResultFile:
    """A file as its bytes, and what can be made of them."""

    path: Path
    data: bytes

    @property
    def is_parquet(self) -> bool:
        """Whether it is a Parquet file."""
        return self.data.startswith(PARQUET_MAGIC)

    @cached_property
    def text(self) -> str:
        """The file as text.

        Raises
        ------
        InputError
            It is none.
        """
        try:
            return self.data.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise InputError(
                f"{self.path}: is neither text in UTF-8 nor Parquet (byte {error.start}); give the "
                "result file that the benchmark tool wrote"
            ) from None

    @cached_property
    def header(self) -> tuple[str, ...]:
        """The cells of the first line that is not empty, as if it were a CSV; none of Parquet."""
        if self.is_parquet:
            return ()
        first = next((line for line in self.text.splitlines() if line.strip()), "")
        return tuple(cell.strip().strip('"') for cell in first.split(","))

    @property
    def is_json(self) -> bool:
        """Whether it looks like JSON, or JSON by lines."""
        return not self.is_parquet and self.text.lstrip()[:1] in ("{", "[")

    @cached_property
    def records(self) -> tuple[Record, ...]:
        """The JSON objects of the file: one, those of a list, or one per line; none if no JSON.

        Raises
        ------
        InputError
            The JSON is broken, or holds something else than objects.
        """
        return tuple(self._records()) if self.is_json else ()

    def _records(self) -> Iterator[Record]:
        try:
            whole = json.loads(self.text)
        except ValueError as error:
            yield from self._lines(error)
            return
        if isinstance(whole, dict):
            yield Record(str(self.path), whole)
            return
        for index, each in enumerate(whole):
            yield self._object(each, f"{self.path}[{index}]")

    def _lines(self, error: ValueError) -> Iterator[Record]:
        """Read one object per line, where the first line is one; `error` is what the whole is."""
        lines = [
            (n, line) for n, line in enumerate(self.text.splitlines(), start=1) if line.strip()
        ]
        for number, line in lines:
            try:
                found = json.loads(line)
            except ValueError as broken:
                if number == lines[0][0]:
                    raise self._broken(error) from None
                raise InputError(
                    f"{self.path}:{number}: is not JSON ({_reason(broken)}): the line is cut "
                    f"off or two are mixed; remove it, or {AGAIN}"
                ) from None
            yield self._object(found, f"{self.path}:{number}")

    def _broken(self, error: ValueError) -> InputError:
        line = getattr(error, "lineno", 1)
        return InputError(
            f"{self.path}:{line}: is not JSON ({_reason(error)}): the file is cut off or damaged; "
            f"{AGAIN}"
        )

    def _object(self, value: object, where: str) -> Record:
        if not isinstance(value, dict):
            raise InputError(
                f"{where}: {_short(value)} is no JSON object; give a result file with one object "
                "per run"
            )
        return Record(where, value)


def open_result(path: Path) -> ResultFile:
    """Read a result file.

    Raises
    ------
    InputError
        It cannot be read, or is empty.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from None
    if not data.strip():
        raise InputError(f"{path}: is empty: the benchmark wrote no result; run it again")
    return ResultFile(path, data)


def _is_number(value: object) -> bool:
    """Tell a number of JSON; to Python true and false are numbers too."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def _reason(error: ValueError) -> str:
    return getattr(error, "msg", str(error))


def _short(value: object) -> str:
    text = json.dumps(value, default=str)
    return text if len(text) <= 40 else f"{text[:37]}..."
