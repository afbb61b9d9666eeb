"""Do the same for many measured runs, in several processes where asked.

Processes are forked: catalogues are not sent to them, they are inherited.
"""

import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

from sim.catalog import Catalog
from sim.simulate import Progress

RunT = TypeVar("RunT")
FoundT = TypeVar("FoundT")

_CHUNK = 4
"""Runs that a process takes at a time: few, as some take a hundred times as long as others."""
_WORK: list[tuple[Callable[[Any, Catalog], Any], Sequence[Any], Catalog]] = []
"""What forked processes see of their parent."""


def over_runs(
    work: Callable[[RunT, Catalog], FoundT],
    runs: Sequence[RunT],
    catalog: Catalog,
    jobs: int = 1,
    progress: Progress | None = None,
) -> Iterator[FoundT]:
    """Give what some work finds for each run, in the order of the runs.

    Parameters
    ----------
    work : callable
        Of a run and the catalogue.
    runs : sequence
    catalog : Catalog
    jobs : int
        Processes; one does without a process of its own.
    progress : callable, optional
        Called after each run with how many are done.
    """
    for done, found in enumerate(_each(work, runs, catalog, jobs), start=1):
        if progress is not None:
            progress(done, len(runs))
        yield found


def _each(
    work: Callable[[RunT, Catalog], FoundT], runs: Sequence[RunT], catalog: Catalog, jobs: int
) -> Iterator[FoundT]:
    if jobs == 1:
        for run in runs:
            yield work(run, catalog)
        return
    _WORK[:] = [(work, runs, catalog)]
    try:
        with multiprocessing.get_context("fork").Pool(jobs) as pool:
            yield from pool.imap(_at, range(len(runs)), _CHUNK)
    finally:
        _WORK.clear()


def _at(index: int) -> Any:
    work, runs, catalog = _WORK[0]
    return work(runs[index], catalog)
