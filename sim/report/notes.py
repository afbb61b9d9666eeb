"""The notes of a run, each said once, with all that it is about before it."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from sim.report.data import RunTables

ALL_CASES = "all cases"
"""What stands for every case of a run of several."""


class Remark(NamedTuple):
    """A note, and the cases and pools that it is about."""

    about: str
    """Cases, with their pools in brackets where it is not about all of them; empty: the run."""
    words: str

    def __str__(self) -> str:
        """Write both."""
        return f"{self.about}: {self.words}" if self.about else self.words


def remarks(tables: RunTables) -> Iterator[Remark]:
    """Give the notes of a run, those of several cases or pools that say the same as one."""
    pools: dict[str, list[str]] = {case: [] for case in tables.cases}
    for row in tables.pools.to_dict("records"):
        pools[str(row["case"])].append(str(row["pool"]))
    return merged(tables.notes, pools)


def merged(notes: Iterable[str], pools: Mapping[str, Sequence[str]]) -> Iterator[Remark]:
    """Give each note once, in the order of their first.

    Parameters
    ----------
    notes : iterable of str
        Each begins with the name of a case (``apart:``) or a pool (``apart, decode:``), or is
        about the run.
    pools : mapping
        Names of the pools of each case.
    """
    subjects = {case: (case, "") for case in pools}
    subjects |= {f"{case}, {pool}": (case, pool) for case, each in pools.items() for pool in each}
    found: dict[str, list[tuple[str, str]]] = {}
    for note in notes:
        names = [name for name in subjects if note.startswith(f"{name}: ")]
        name = max(names, key=len, default="")
        words = note.removeprefix(f"{name}: ") if name else note
        found.setdefault(words, [])
        if name:
            found[words].append(subjects[name])
    for words, about in found.items():
        yield Remark(_about(about, pools), words)


def _about(subjects: Iterable[tuple[str, str]], pools: Mapping[str, Sequence[str]]) -> str:
    """Name cases and pools, in the order of the run.

    Names of cases may have commas, so that semicolons stand between them.

    >>> pools = {"one": ["serve"], "two": ["prefill", "decode"], "three": ["prefill", "decode"]}
    >>> _about([("two", "prefill"), ("two", "decode"), ("three", "decode")], pools)
    'two; three (decode)'
    >>> _about([("one", ""), ("two", "prefill"), ("two", "decode"), ("three", "")], pools)
    'all cases'
    """
    named: dict[str, set[str]] = {}
    for case, pool in subjects:
        named.setdefault(case, set()).update([pool] if pool else pools[case])
    whole = {case for case in named if named[case] >= set(pools[case])}
    if len(pools) > 1 and whole == set(pools):
        return ALL_CASES
    return "; ".join(
        case
        if case in whole
        else f"{case} ({', '.join(p for p in pools[case] if p in named[case])})"
        for case in pools
        if case in named
    )
