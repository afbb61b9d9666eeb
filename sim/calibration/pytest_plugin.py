"""Measured runs as test items: ``pytest --measured-runs runs.csv``.

pytest finds this module by its entry point and imports it in every session of whoever has both
installed. So it loads pytest alone; the simulator comes in when the option is given.
"""

from pathlib import Path

import pytest

OPTION = "--measured-runs"
NAME = "rackcast-measured-runs"


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options."""
    group = parser.getgroup("measured runs", "forecasts of Rackcast beside measured runs")
    group.addoption(
        OPTION,
        action="append",
        metavar="PATH",
        help="File of measured serving runs (CSV) or folder of such files; each run is a test.",
    )
    group.addoption(
        "--measured-tolerance",
        default="",
        metavar="QUANTITY=FRACTION,...",
        help="Largest error of a forecast: tpot=0.15,ttft=0.3,throughput=none (shown, not judged).",
    )
    group.addoption(
        "--measured-expectations",
        type=Path,
        metavar="FILE",
        help="Tolerances of some of the runs, each with its reason (YAML).",
    )
    group.addoption(
        "--measured-by",
        action="append",
        default=[],
        metavar="COLUMN",
        help="Sum up the errors by this column too: hardware, model, engine, preset...",
    )
    group.addoption(
        "--measured-baseline",
        type=Path,
        metavar="FILE",
        help="Fail if a median error is worse than in this file (YAML).",
    )
    group.addoption(
        "--measured-write-baseline",
        type=Path,
        metavar="FILE",
        help="Write the median errors to this file.",
    )
    group.addoption(
        "--measured-slack",
        type=float,
        metavar="FRACTION",
        help="How much worse than its baseline a median may be; default: as the baseline says.",
    )
    group.addoption(
        "--measured-seed", type=int, default=1, metavar="N", help="Of the simulated traffic."
    )


def pytest_configure(config: pytest.Config) -> None:
    """Read the runs if there are any to read; do nothing at all otherwise."""
    given = config.getoption("measured_runs")
    if not given:
        return
    # The simulator is slow to import: a session without measured runs does not wait for it.
    from sim.calibration.pytest_items import MeasuredRuns  # noqa: PLC0415
    from sim.errors import InputError  # noqa: PLC0415

    config.addinivalue_line("markers", "measured_run: a measured run beside its forecast")
    try:
        plugin = MeasuredRuns(config, given)
    except InputError as error:
        raise pytest.UsageError(str(error)) from error
    config.pluginmanager.register(plugin, NAME)
