"""A scenario that runs in milliseconds, as text, ways to change it, and its forecast."""

from collections.abc import Callable, Sequence
from pathlib import Path

from sim.catalog import Catalog, open_catalog
from sim.forecast import forecast
from sim.report.data import RunTables
from sim.scenario import load_scenario
from sim.simulate import CaseRun, Progress

ONE_CASE = """\
name: small
question: Does a small scenario run?
system: h100_sxm_x8
model: llama_3_1_70b
parallelism: {tp: 8}
precision: {weights: fp8, kv_cache: fp8}
engine: {name: vllm, max_num_seqs: 64}
workload:
  kind: open_loop
  lengths: {kind: fixed, input_tokens: 100, output_tokens: 10}
  arrivals: {kind: poisson, rate_requests_per_s: 2}
  requests: 20
slo: {ttft_s: 1 s, tpot_s: 100 ms}
prices: {book: us_2026_11}
"""
"""Fourteen lines: what is appended stands from line 15."""

FOUR_CASES = (
    ONE_CASE
    + """\
cases:
  - {name: H100, system: h100_sxm_x8}
  - {name: H200, system: h200_sxm_x8}
  - {name: B200, system: b200_sxm_x8}
  - name: H100, two halves
    parallelism: {tp: 4}
    engine: {max_num_seqs: 128}
"""
)

CLOSED_LOOP = """\
    workload:
      kind: closed_loop
      lengths: {kind: fixed, input_tokens: 100, output_tokens: 10}
      requests: 30
      concurrency: 3
"""
"""The workload of a case of its own."""


def write(folder: Path, text: str, *changes: tuple[str, str], name: str = "small.yaml") -> Path:
    """Write a scenario; each change must change something."""
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def forecast_of(
    path: Path,
    settings: Sequence[tuple[str, str]] = (),
    catalog: Catalog | None = None,
    *,
    every_step: bool = False,
    keep: Callable[[CaseRun], None] | None = None,
) -> RunTables:
    """Forecast the scenario of a file, and show nobody how far it is."""
    return forecast(
        load_scenario(path, settings),
        catalog or open_catalog(),
        silent,
        every_step=every_step,
        manifest={"scenario_path": str(path)},
        keep=keep,
    )


def silent(_: str) -> Progress:
    """Give a listener that takes no note of progress."""
    return lambda _done, _total: None
