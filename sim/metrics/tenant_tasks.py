"""Summaries of tasks by tenant, and of those of all tenants together."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd

from sim.metrics.baselines import load_of
from sim.metrics.programs import task_summary
from sim.routing_policy import Slo
from sim.workload.judging import Accuracy
from sim.workload.kinds import ProgramsWorkload
from sim.workload.tasks import strategy_name

_SOLVED = ("usd_per_solved_task", "usd_per_solved_task_standard_error")
_OF_ANSWERS = ("accuracy_fraction", "accuracy_standard_error", *_SOLVED)


@dataclass(frozen=True)
class TaskRows:
    """What the tasks that count came to."""

    together: dict[str, object]
    """For the summary of the case."""
    by_tenant: dict[str, dict[str, object]]
    """For the rows of the tenants that ask questions."""
    unanswered: dict[str, int]
    """By tenant: calls that left without an answer, cancelled ones apart."""


@dataclass(frozen=True)
class Askers:
    """Tenants that ask questions."""

    workloads: Mapping[str, ProgramsWorkload]
    """What each asks, by its name."""
    accuracy: Mapping[str, Accuracy]
    """How good answers are, of those whose questions are known."""
    slos: Mapping[str, Slo]
    """What the tasks of each must meet."""

    def rows(self, counted: pd.DataFrame, calls: pd.DataFrame, slo: Slo) -> TaskRows:
        """Sum up tasks.

        Parameters
        ----------
        counted : DataFrame
            Tasks that count, with their ``tenant``.
        calls : DataFrame
            Of these tasks and of others.
        slo : Slo
            What the tasks of all tenants together must meet.
        """
        lost = calls.loc[~calls["outcome"].isin(("completed", "cancelled")), "task"]
        by_tenant: dict[str, dict[str, object]] = {}
        unanswered: dict[str, int] = {}
        together: dict[str, object] = {}
        for tenant, workload in self.workloads.items():
            mine = counted[counted["tenant"] == tenant]
            unanswered[tenant] = int(lost.isin(mine["task"]).sum())
            known = self.accuracy.get(tenant)
            named: dict[str, object] = {
                "strategy": strategy_name(workload.strategy),
                "benchmark": "" if known is None else known.benchmark,
                "load": load_of(workload),
            }
            # what questions would have come to with all their calls is not what these came to
            known = None if unanswered[tenant] else known
            by_tenant[tenant] = named | task_summary(mine, self.slos[tenant], known)
            together = named | task_summary(mine, slo, known)
        if len(by_tenant) > 1:
            together = self._together(counted, by_tenant, slo)
        return TaskRows(together, by_tenant, unanswered)

    def _together(
        self, counted: pd.DataFrame, rows: Mapping[str, Mapping[str, object]], slo: Slo
    ) -> dict[str, object]:
        """Sum up the tasks of several tenants: accuracy is that of these tasks alone."""
        named = {
            name: " + ".join(dict.fromkeys(str(row[name]) for row in rows.values() if row[name]))
            for name in ("strategy", "benchmark", "load")
        }
        found: dict[str, object] = {**named, **task_summary(counted, slo)}
        if set(self.accuracy) < set(self.workloads):  # of some nobody knows how good they are
            found |= dict.fromkeys(_OF_ANSWERS, np.nan)
        return found
