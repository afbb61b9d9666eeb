"""How far a forecast may be off a measured run: by quantity, and for some runs by expectation.

A file of expectations says where the forecasts are known to be worse, or have to be better, and
why::

    expectations:
      - select: {hardware: B200-SXM-180GB, engine: trtllm}
        tolerance: {ttft: 0.5}
        reason: The engine waits for full batches of prompts, which is not simulated.
      - select: {row_id: [AIC00001, AIC00002]}
        tolerance: {tpot: 0.3, throughput: null}
        reason: The batch was larger than the run says.

Of several entries for one run the last one counts, quantity by quantity.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from math import isfinite
from pathlib import Path
from types import MappingProxyType
from typing import Annotated

from pydantic import Field

from sim.calibration.runs import QUANTITIES, MeasuredRun, Quantity
from sim.errors import InputError, KeyPath
from sim.schema import Located, StrictModel, did_you_mean, load_yaml, problem_line, validate

Tolerances = Mapping[Quantity, float | None]
"""Largest allowed |forecast / measured - 1| by quantity; None: shown, not judged."""

USUAL: Tolerances = MappingProxyType({"tpot": 0.15, "ttft": 0.30, "throughput": 0.15})
"""Where nobody says otherwise. These are what a planner can live with, not what a fit reached."""

NOT_JUDGED = "none"
"""How the command line says that a quantity is not judged."""

Limit = Annotated[float, Field(gt=0)]


class Expectation(StrictModel):
    """What is expected of some runs, and why it is not what is expected of all."""

    select: Annotated[
        Mapping[str, str | int | Annotated[tuple[str | int, ...], Field(min_length=1)]],
        Field(min_length=1),
    ]
    """Which runs: ``row_id``, or a key of the runs such as ``hardware`` or ``engine``, and its
    value, or a list of values. A run has to have all keys."""
    tolerance: Annotated[Mapping[Quantity, Limit | None], Field(min_length=1)]
    """Largest error by quantity, a fraction; null: the quantity is shown and not judged."""
    reason: Annotated[str, Field(min_length=1)]
    """Why, for those who read the failure or wonder about its absence."""


class Expectations(StrictModel):
    """A file of expectations."""

    expectations: tuple[Expectation, ...]


@dataclass(frozen=True)
class Limits:
    """How far the forecast of one run may be off, and who says so."""

    tolerances: Tolerances
    reasons: tuple[str, ...] = ()
    """Of the entries that changed them, with their file and line."""


@dataclass(frozen=True)
class Rules:
    """The tolerances of all runs."""

    usual: Tolerances = field(default_factory=lambda: USUAL)
    expectations: tuple[Expectation, ...] = ()
    places: tuple[str, ...] = ()
    """File and line of each expectation."""

    def limits(self, run: MeasuredRun) -> Limits:
        """Return the tolerances of a run."""
        found, reasons = dict(self.usual), []
        for expectation, place in zip(self.expectations, self.places, strict=True):
            if _is_meant(expectation, keys_of(run)):
                found |= expectation.tolerance
                reasons.append(f"{place}: {expectation.reason}")
        return Limits(found, tuple(reasons))


def keys_of(run: MeasuredRun) -> dict[str, str]:
    """Return what a run is selected and grouped by, its own name among it."""
    return {**run.keys, "row_id": run.row_id}


def parse_tolerances(text: str, usual: Tolerances = USUAL) -> Tolerances:
    """Read tolerances as the command line gives them; those that it leaves out stay usual.

    Raises
    ------
    InputError
        A quantity is unknown or given twice, or a tolerance is no positive number.

    Examples
    --------
    >>> parse_tolerances("tpot=0.2, throughput=none")
    {'tpot': 0.2, 'ttft': 0.3, 'throughput': None}
    >>> parse_tolerances("tpto=0.2")
    Traceback (most recent call last):
    sim.errors.InputError: there is no quantity 'tpto'; did you mean tpot?; use tpot, ttft, throughput
    """  # noqa: E501 - the message stands as it is shown
    found: dict[Quantity, float | None] = {}
    for part in text.split(","):
        name, equals, value = (each.strip() for each in part.partition("="))
        if not equals:
            raise InputError(f"{part.strip()!r} is no tolerance; write tpot=0.15,ttft=0.3")
        quantity = _quantity(name)
        if quantity in found:
            raise InputError(f"the tolerance of {quantity} is given twice")
        found[quantity] = None if value == NOT_JUDGED else _limit(quantity, value)
    return {**usual, **found}


def _quantity(name: str) -> Quantity:
    for quantity in QUANTITIES:
        if quantity == name:
            return quantity
    hint = did_you_mean(name, QUANTITIES)
    raise InputError(f"there is no quantity {name!r}{hint}; use {', '.join(QUANTITIES)}")


def _limit(quantity: Quantity, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not (isfinite(value) and value > 0):
        raise InputError(
            f"{quantity}={text}: a tolerance is a fraction above 0, such as 0.15, or {NOT_JUDGED}"
        )
    return value


def load_rules(path: Path | None, usual: Tolerances, runs: Sequence[MeasuredRun]) -> Rules:
    """Read a file of expectations, and check that each is about some of the runs.

    Parameters
    ----------
    path : Path or None
        The file; None: there are no expectations.
    usual : mapping
        Tolerances of all other runs.
    runs : sequence of MeasuredRun
        All runs that can be forecast.

    Raises
    ------
    InputError
        The file is wrong, or selects by a key that runs lack or a value that none has.
    """
    if path is None:
        return Rules(usual)
    located = load_yaml(path)
    entries = validate(Expectations, located).expectations
    keys = [keys_of(run) for run in runs]
    problems = [
        problem
        for index, entry in enumerate(entries)
        for problem in _problems(entry, ("expectations", index), located, keys)
    ]
    if problems:
        raise InputError("\n".join(problems))
    places = tuple(
        str(located.position(("expectations", index))) for index, _ in enumerate(entries)
    )
    return Rules(usual, entries, places)


def _problems(
    entry: Expectation, path: KeyPath, located: Located, runs: Sequence[Mapping[str, str]]
) -> Iterable[str]:
    """Say which keys and values of a selection no run has, else that no run has them together."""
    wrong = []
    for key in entry.select:
        where = (*path, "select", key)
        known = {run[key] for run in runs if key in run}
        if not known:
            names = sorted({name for run in runs for name in run})
            said = f"runs have no key {key!r}{did_you_mean(key, names)}; use {', '.join(names)}"
            if not runs:
                said = "selects nothing: there is no run that can be forecast"
            wrong.append(problem_line(located.position(where), where, said))
        for value in sorted(_values(entry, key) - known) if known else ():
            said = f"no run has {key} {value!r}{did_you_mean(value, known)}"
            wrong.append(problem_line(located.position(where), where, said))
    if not wrong and not any(_is_meant(entry, run) for run in runs):
        where = (*path, "select")
        said = "matches no run: there are some with each value, none with all"
        wrong.append(problem_line(located.position(where), where, said))
    return wrong


def _values(entry: Expectation, key: str) -> set[str]:
    value = entry.select[key]
    return {str(each) for each in (value if isinstance(value, tuple) else (value,))}


def _is_meant(entry: Expectation, keys: Mapping[str, str]) -> bool:
    return all(keys.get(key) in _values(entry, key) for key in entry.select)
