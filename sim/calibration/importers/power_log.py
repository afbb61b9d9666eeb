"""Logs of accelerators' power: nvidia-smi, DCGM or NVML as CSV, with a time in each line.

``nvidia-smi --query-gpu=timestamp,index,power.draw --format=csv -lms 500`` writes ``2026/03/18
10:00:00.250, 0, 412.34 W`` in the time of the machine (NVIDIA, ``nvidia-smi --help-query-gpu``);
DCGM names the column ``DCGM_FI_DEV_POWER_USAGE`` and counts watts (dcgm-exporter, default
counters); ``nvmlDeviceGetPowerUsage`` counts milliwatts (NVML API reference), so a column of those
must be called ``power_mw``.
"""

import csv
import io
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from sim.calibration.importers.clock import Window, since_1970_s
from sim.calibration.importers.result_file import open_result
from sim.errors import InputError
from sim.units import HOUR_S, KILO, MILLISECOND_S

_POWER = re.compile(r"(?i)power")
_NOT_DRAWN = re.compile(r"(?i)limit|cap|max|min|state|management")
_TIME = re.compile(r"(?i)^(time|timestamp|date|epoch)")
_DEVICE = re.compile(r"(?i)^(index|gpu|gpu_id|gpu_index|device|card|minor_number|uuid|gpu_uuid)$")
_HOST = re.compile(r"(?i)^(host|hostname|node|instance)$")
_READING = re.compile(r"(?P<value>-?[\d.]+(?:e[+-]?\d+)?)\s*(?P<unit>m?W|kW)?")
_SCALE = {"W": 1.0, "mW": MILLISECOND_S, "kW": KILO}
MOST_W = 10 * KILO
"""No accelerator draws more: what reads so is in milliwatts."""
WIDEST_GAP_S = 10.0
"""Longest time without a reading that is bridged by a straight line."""


class PowerLog:
    """Readings of the power of each accelerator over time."""

    def __init__(self, path: Path, readings: Mapping[str, list[tuple[float, float]]]) -> None:
        self.path = path
        self._devices = {
            name: np.array(sorted(dict(found).items())) for name, found in readings.items()
        }

    @property
    def devices(self) -> int:
        """How many accelerators there are."""
        return len(self._devices)

    def mean_w(self, window: Window | None) -> float:
        """Return the mean power of all accelerators together, by time.

        Between readings the power changes along a straight line; without a window the whole log
        counts.

        Raises
        ------
        InputError
            A log does not cover the window, or has a gap in it.
        """
        return sum(self._mean_w(name, window) for name in self._devices)

    def _mean_w(self, name: str, window: Window | None) -> float:
        times, watts = self._devices[name].T
        if window is None:
            window = Window(float(times[0]), float(times[-1]))
        self._check(name, times, window)
        inside = (times > window.start_s) & (times < window.end_s)
        at = np.concatenate([[window.start_s], times[inside], [window.end_s]])
        if at[-1] == at[0]:
            return float(watts.mean())
        drawn = np.interp(at, times, watts)
        energy_j = float(np.sum((drawn[1:] + drawn[:-1]) / 2 * np.diff(at)))
        return energy_j / float(at[-1] - at[0])

    def _check(
        self, name: str, times: "np.ndarray[tuple[int], np.dtype[np.float64]]", window: Window
    ) -> None:
        outside_s = max(times[0] - window.start_s, window.end_s - times[-1])
        if outside_s > WIDEST_GAP_S:
            hours = abs(times[0] - window.start_s) / HOUR_S
            raise InputError(
                f"{self.path}: device {name}: the run is not covered, {outside_s:.0f} s of it lie "
                f"outside of the log (the log starts {hours:.1f} h from the run): give the log of "
                "this run; if its clock is of another zone, set TZ to that zone"
            )
        kept = times[(times >= window.start_s) & (times <= window.end_s)]
        edges = np.concatenate([[window.start_s], kept, [window.end_s]])
        gap_s = float(np.diff(edges).max())
        if gap_s > WIDEST_GAP_S:
            raise InputError(
                f"{self.path}: device {name}: no reading for {gap_s:.0f} s of the run; sample at "
                "least every few seconds"
            )


def is_power_log(header: tuple[str, ...]) -> bool:
    """Tell a log of power by the names of its columns."""
    return _places(header) is not None


def read_power_log(path: Path) -> PowerLog:
    """Read a log of power.

    Raises
    ------
    InputError
        It cannot be read, a column is missing, or a time or a reading is none.
    """
    file = open_result(path)
    header = file.header
    places = _places(header)
    if places is None:
        raise InputError(
            f"{path}:1: needs a line of names with a time and a power, such as 'timestamp, index, "
            "power.draw [W]' of nvidia-smi --query-gpu=timestamp,index,power.draw --format=csv -l 1"
        )
    readings: dict[str, list[tuple[float, float]]] = {}
    for device, time_s, watts in _rows(path, file.text, header, places):
        readings.setdefault(device, []).append((time_s, watts))
    if not readings:
        raise InputError(f"{path}: has no reading of power below its names; sample it again")
    for device, found in readings.items():
        if np.mean([watts for _, watts in found]) > MOST_W:
            raise InputError(
                f"{path}: device {device} draws {found[0][1]:g} W by this log: are these "
                "milliwatts? Rename the column power_mw"
            )
    return PowerLog(path, readings)


class _Places(NamedTuple):
    """Where in a line what stands."""

    time: int
    power: int
    device: tuple[int, ...]
    """What an accelerator is named by."""


def _places(header: tuple[str, ...]) -> _Places | None:
    """Find the columns of a log of power by their names; none: it is no such log."""
    time_at, power_at = _first(header, _TIME), _drawn(header)
    if time_at is None or power_at is None:
        return None
    named = (_first(header, _HOST), _first(header, _DEVICE))
    return _Places(time_at, power_at, tuple(n for n in named if n is not None))


def _rows(
    path: Path, text: str, header: tuple[str, ...], places: _Places
) -> Iterator[tuple[str, float, float]]:
    """Yield device, time and watts of each line that has a reading."""
    time_at, power_at, device_at = places
    scale = _scale(header[power_at])
    lines = csv.reader(io.StringIO(text), skipinitialspace=True)
    for number, cells in enumerate(lines, start=1):
        if number == 1 or not cells or cells[0].strip() == header[0]:
            continue  # names come again where a log was appended to
        where = f"{path}:{number}"
        if len(cells) <= max(time_at, power_at, *device_at):
            raise InputError(
                f"{where}: has {len(cells)} cells, the first line {len(header)}: cut off"
            )
        reading = cells[power_at].strip()
        if reading.strip("[]").upper() in ("N/A", "NOT SUPPORTED", ""):
            continue
        device = " ".join(cells[n].strip() for n in device_at)
        yield device, _time_s(where, header[time_at], cells[time_at]), _watts(where, reading, scale)


def _first(header: tuple[str, ...], names: re.Pattern[str]) -> int | None:
    return next((n for n, name in enumerate(header) if names.match(name)), None)


def _drawn(header: tuple[str, ...]) -> int | None:
    """Find the column of the power drawn; the plain reading before averages of the driver."""
    found = [
        n for n, name in enumerate(header) if _POWER.search(name) and not _NOT_DRAWN.search(name)
    ]
    return min(found, key=lambda n: len(header[n])) if found else None


def _scale(name: str) -> float:
    """Return the watts of one unit of a column, by the unit in its name; watts if it has none."""
    lower = name.lower()
    if lower.endswith(("_mw", "[mw]", "(mw)")):
        return _SCALE["mW"]
    return _SCALE["kW"] if lower.endswith(("_kw", "[kw]", "(kw)")) else 1.0


def _watts(where: str, text: str, scale: float) -> float:
    match = _READING.fullmatch(text)
    if match is None or float(match["value"]) < 0:
        raise InputError(f"{where}: {text!r} is no power; write 412.3 or 412.3 W")
    unit = match["unit"]
    return float(match["value"]) * (_SCALE[unit] if unit else scale)


def _time_s(where: str, name: str, text: str) -> float:
    try:
        return since_1970_s(text)
    except InputError as error:
        raise InputError(f"{where}: {name}: {error}") from None
