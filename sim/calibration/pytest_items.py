"""Measured runs as items of a pytest session: collected from their files, forecast, summed up."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, NoReturn

import pytest

from sim.calibration.error_baseline import SLACK, Baseline, Errors, load_baseline
from sim.calibration.measured_files import read_files
from sim.calibration.runs import MeasuredRun, Skipped
from sim.calibration.tolerances import USUAL, load_rules, parse_tolerances
from sim.calibration.verdicts import NotForecast, RunRecord, compared, failure, record_of
from sim.catalog import open_catalog

FORECAST = "rackcast"
SKIPPED = "rackcast skipped"
"""User properties of an item, for the table and for JUnit XML: the record of its run, or why there
is none."""


class MeasuredRuns:
    """One session's measured runs: what is asked of them, and what became of them."""

    def __init__(self, config: pytest.Config, given: list[str]) -> None:
        option = config.getoption
        tolerance = option("measured_tolerance")
        usual = parse_tolerances(tolerance) if tolerance else USUAL
        self.config = config
        self.seed: int = option("measured_seed")
        self.catalog = open_catalog()
        directory = config.invocation_params.dir
        paths = [Path(os.path.abspath(directory / path)) for path in given]  # noqa: PTH100 - as pytest does: links stay
        self.files = read_files(paths, self.catalog)
        runs = self.files.forecastable
        self.rules = load_rules(option("measured_expectations"), usual, runs)
        self.by = [part for each in option("measured_by") for part in each.split(",")]
        self.files.check_columns(self.by)
        baseline = option("measured_baseline")
        self.baseline: Baseline | None = (
            None if baseline is None else load_baseline(baseline, self.files.columns)
        )
        self.records: dict[str, RunRecord] = {}
        """Of the runs that were forecast, by their items."""
        self.skipped: dict[str, str] = {}
        """Why the others were not."""
        self.complaints: list[str] = []
        self._add_arguments()

    def _add_arguments(self) -> None:
        """Collect the files as if they had been named as arguments; alone if nothing else was."""
        config = self.config
        named = config.args_source == pytest.Config.ArgsSource.ARGS
        arguments = list(config.args) if named else []
        directory = config.invocation_params.dir
        places = [
            Path(os.path.abspath(directory / each.partition("::")[0]))  # noqa: PTH100 - likewise
            for each in arguments
        ]
        arguments += [
            str(file)
            for file in self.files.runs
            if not any(file.is_relative_to(place) for place in places)
        ]
        config.args[:] = arguments
        config.args_source = pytest.Config.ArgsSource.ARGS

    def pytest_report_header(self) -> list[str]:
        """Say what is tested."""
        return self.files.summary()

    def pytest_collect_file(
        self, file_path: Path, parent: pytest.Collector
    ) -> MeasuredRunsFile | None:
        """Collect the files that were named."""
        if file_path not in self.files.runs:
            return None
        found: MeasuredRunsFile = MeasuredRunsFile.from_parent(parent, path=file_path)
        found.plugin = self
        return found

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Keep what became of a run; with pytest-xdist it comes from another process."""
        properties: list[tuple[str, Any]] = report.user_properties
        if report.when == "call":
            for name, value in properties:
                if name == FORECAST:
                    self.records[report.nodeid] = value
                elif name == SKIPPED:
                    self.skipped[report.nodeid] = value

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """Compare with the baseline, and write the next one."""
        on_worker = hasattr(self.config, "workerinput")
        if on_worker or self.config.option.collectonly or not self.tested:
            return
        self.complaints = list(self._finish())
        if self.complaints and session.exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def _finish(self) -> Iterator[str]:
        """Write the baseline that is asked for, and yield all that is wrong."""
        path: Path | None = self.config.getoption("measured_write_baseline")
        done, there = self.tested, self.files.count
        if done < there:
            if self.baseline is not None:
                yield f"not compared with the baseline: {done} of {there} runs were tested"
            if path is not None:
                yield f"{path} is not written: {done} of {there} runs were tested"
            return
        if self.baseline is not None:
            yield from self.baseline.worse(self.errors(), self.config.getoption("measured_slack"))
        if path is not None:
            yield from self._write(path)

    def _write(self, path: Path) -> Iterator[str]:
        errors, slack = self.errors(), self.config.getoption("measured_slack")
        if errors.rows.empty:
            yield f"{path} is not written: no run was forecast"
            return
        day = datetime.now(UTC).date().isoformat()
        made = Baseline.of(
            errors, self.by, SLACK if slack is None else slack, version("rackcast"), day
        )
        try:
            path.write_text(made.text(), encoding="utf-8")
        except OSError as error:
            yield f"{path} cannot be written: {error.strerror}"

    @property
    def tested(self) -> int:
        """How many runs something became of."""
        return len(self.records) + len(self.skipped)

    def errors(self) -> Errors:
        """Return the errors of all runs that were forecast."""
        return Errors(self.records.values())

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """Print the errors, the runs that were left out, and what is worse than the baseline."""
        if not self.tested:
            return
        terminalreporter.section("measured runs")
        for line in self._table():
            terminalreporter.line(line)
        for complaint in self.complaints:
            terminalreporter.line(f"FAILED {complaint}", red=True)

    def _table(self) -> Iterable[str]:
        forecast = len(self.records)
        yield f"coverage: {forecast} of {self.tested} runs forecast ({forecast / self.tested:.0%})"
        reasons = Counter(self.skipped.values())
        for reason, count in sorted(reasons.items(), key=lambda item: (-item[1], item[0])):
            yield f"  {count:5d} skipped: {reason}"
        if forecast:
            yield ""
            yield self.errors().table(self.by)
            yield ""


class MeasuredRunsFile(pytest.File):
    """A file of measured runs."""

    plugin: MeasuredRuns

    def collect(self) -> Iterator[MeasuredRunItem]:
        """Yield its runs, in its order."""
        for run in self.plugin.files.runs[self.path]:
            item: MeasuredRunItem = MeasuredRunItem.from_parent(self, name=run.row_id, run=run)
            yield item


class MeasuredRunItem(pytest.Item):
    """One measured run; it fails where its forecast is off by more than its tolerance."""

    parent: MeasuredRunsFile

    def __init__(self, *, run: MeasuredRun | Skipped, **options: Any) -> None:
        super().__init__(**options)
        self.run = run
        keys = run.keys.values() if isinstance(run, MeasuredRun) else (run.hardware,)
        self.extra_keyword_matches |= {key for key in keys if key}
        self.add_marker("measured_run")

    def runtest(self) -> None:
        """Forecast the run and compare."""
        plugin, run = self.parent.plugin, self.run
        if not isinstance(run, MeasuredRun):
            self._skip(run.reason)
        limits = plugin.rules.limits(run)
        try:
            found = compared(run, limits, plugin.catalog, plugin.seed)
        except NotForecast as error:
            self._skip(str(error))
        self.user_properties.append((FORECAST, record_of(run, found)))
        if not all(each.is_near for each in found):
            shown = os.path.relpath(self.path, self.config.invocation_params.dir)
            pytest.fail(failure(run, found, limits, plugin.catalog, shown), pytrace=False)

    def _skip(self, reason: str) -> NoReturn:
        self.user_properties.append((SKIPPED, reason))
        pytest.skip(reason)

    def reportinfo(self) -> tuple[Path, None, str]:
        """Name the run in reports."""
        return self.path, None, f"measured run {self.name}"
