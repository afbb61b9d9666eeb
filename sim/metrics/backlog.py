"""Whether a system falls behind: more and more of what is asked of it waits.

Three things look alike in the number that is there. A system that fills up, as every answer takes
its time; one that happens to be asked more towards the end; and one that cannot keep up. Only in
the last does the number of those that *wait* grow by more than chance would make it.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd

from sim.metrics.requests import Window

Floats = npt.NDArray[np.float64]

LOOKS = 24
"""Moments at which is counted who waits: eight in each third of a window."""
GROWTH_FRACTION = 0.05
"""Of what arrives, that must be left waiting at the end."""
NOISE_ERRORS = 2.0
"""Standard errors of what chance leaves waiting, that it must exceed."""
ENOUGH_TO_TELL = 100
"""With fewer that arrive in the window, arriving faster than leaving is chance."""
LONG_WINDOW = 10.0
"""In a window of so many times what a task takes, those that wait are not just at its first calls;
in a shorter one they must wait for most of their time."""
STAYING = ("completed", "unfinished")
"""Outcomes of those who wait to the end; who gives up, or is turned away, does not pile up."""


@dataclass(frozen=True)
class Backlog:
    """What a system that falls behind is asked for and does."""

    arrive_per_s: float
    leave_per_s: float
    waiting: float
    """How many more wait at the end of the window than at its start."""


def backlog(asked: pd.DataFrame, calls: pd.DataFrame, window: Window) -> Backlog | None:
    """Say by how much a system falls behind in a window; None if it does not, or nobody can tell.

    What waits must grow from third to third of the window, by `GROWTH_FRACTION` of what arrives,
    and by more than chance: a queue that just keeps up moves by sqrt(n (c_a^2 + c_s^2)) while n
    arrive, where c are the coefficients of variation of the gaps and of the work (the diffusion
    of a queue in heavy traffic, Kingman 1962, doi:10.1111/j.2517-6161.1962.tb00465.x).

    Parameters
    ----------
    asked : DataFrame
        Tasks or requests: ``arrival_s``, ``done_s``, ``outcome``, ``input_tokens``,
        ``output_tokens``, ``measured``.
    calls : DataFrame
        Requests: ``arrival_s``, ``admit_s``, ``done_s``, ``decode_s``, ``handover_wait_s`` and
        ``asked``, the row of `asked` (from 0) that each is for.
    window : Window
    """
    came = asked[asked["measured"]]
    if len(came) < ENOUGH_TO_TELL or window.duration_s <= 0:
        return None
    stays = asked["outcome"].isin(STAYING).to_numpy()
    times = np.linspace(window.start_s, window.end_s, LOOKS + 1)
    waiting = np.array([_waiting(calls, stays, time) for time in times])
    grown = float(waiting[-1] - waiting[0])
    thirds = waiting[1:].reshape(3, -1).mean(axis=1)
    least = max(GROWTH_FRACTION * len(came), NOISE_ERRORS * _chance(came))
    if grown <= least or not thirds[0] < thirds[1] < thirds[2]:
        return None
    if not _can_be_told(asked[stays], calls[stays[calls["asked"].to_numpy()]], window):
        return None
    left = asked["done_s"].between(window.start_s, window.end_s).to_numpy()
    gone = (left & stays).sum() + (~came["outcome"].isin(STAYING)).sum()
    return Backlog(len(came) / window.duration_s, float(gone) / window.duration_s, grown)


def _waiting(calls: pd.DataFrame, stays: npt.NDArray[np.bool_], time_s: float) -> float:
    """Count who waits: of each task that is there the share of its calls that do."""
    here = ((calls["arrival_s"] <= time_s) & ~(calls["done_s"] <= time_s)).to_numpy()
    part = calls[here & stays[calls["asked"].to_numpy()]]
    goes_on_s = part["done_s"] - part["decode_s"]
    handed_over_s = goes_on_s - part["handover_wait_s"]
    waits = ~(part["admit_s"] <= time_s) | ((handed_over_s <= time_s) & (time_s < goes_on_s))
    return float(waits.groupby(part["asked"]).mean().sum())


def _chance(came: pd.DataFrame) -> float:
    """Give the standard deviation of what a queue that just keeps up gains as these arrive."""
    gaps = np.diff(np.sort(came["arrival_s"].to_numpy(float)))
    work = [came[f"{which}_tokens"].to_numpy(float) for which in ("input", "output")]
    varied = _squared_variation(gaps) + max(map(_squared_variation, work))
    return float(np.sqrt(len(came) * varied))


def _squared_variation(values: Floats) -> float:
    mean = float(values.mean()) if values.size else 0.0
    return float(values.var()) / mean**2 if mean > 0 else 0.0


def _can_be_told(asked: pd.DataFrame, calls: pd.DataFrame, window: Window) -> bool:
    """Whether the window is long, or calls wait for most of the time that they take.

    Parameters
    ----------
    asked, calls : DataFrame
        Those that stay to the end.
    window : Window
    """
    done = asked["outcome"] == "completed"
    takes_s = (asked["done_s"] - asked["arrival_s"])[done].median()
    if not takes_s * LONG_WINDOW >= window.duration_s:
        return True
    waits_s = (calls["admit_s"] - calls["arrival_s"] + calls["handover_wait_s"].fillna(0.0)).sum()
    return bool(waits_s > (calls["done_s"] - calls["arrival_s"]).sum() / 2)
