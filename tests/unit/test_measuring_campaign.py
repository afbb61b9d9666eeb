"""Whole measurements on a machine of known speed: order, resuming, limits, and the way to a fit."""

import csv
from dataclasses import replace

import numpy as np
import pytest
import yaml
from measuring_fakes import (
    DECODE,
    GEMM,
    PEAK_BYTES_PER_S,
    PEAK_FLOP_PER_S,
    FakeClock,
    FakeDevice,
    fake_bench,
)
from typer.testing import CliRunner

from sim.calibration.fit import fit_accelerator, to_yaml
from sim.calibration.kernel_laws import Study, fit_kernels
from sim.calibration.kernels import Peaks
from sim.calibration.subjects import lent_power, read_subjects
from sim.catalog import open_catalog
from sim.cli import app
from sim.errors import InputError
from sim.measuring import families
from sim.measuring.bench import Point, Written
from sim.measuring.campaign import (
    MeasurementInterruptedError,
    in_random_order,
    run_campaign,
    tables,
)
from sim.measuring.environment import keep
from sim.measuring.session import chosen_families, kind_of
from sim.measuring.subject import subjects_text, write_cut_model

PEAKS = Peaks({"bf16": PEAK_FLOP_PER_S}, PEAK_BYTES_PER_S, 500.0)
GRID = families.grid_of("cuda", quick=True)
BF16 = ("bfloat16",)


@pytest.fixture(scope="module")
def catalog():
    return open_catalog()


def opened(folder, *, resume=False):
    found = tables(folder)
    for table in found.values():
        table.open(resume=resume)
    return found


def rows_of(table):
    with table.path.open(newline="") as file:
        return list(csv.DictReader(file))


def measured_on(folder, device):
    into = opened(folder)
    points = {
        "gemm": in_random_order(families.products(GRID, BF16), "gemm"),
        "attention": in_random_order(families.attention(GRID, BF16), "attention"),
        "memory": in_random_order(families.traffic(GRID), "memory"),
    }
    return run_campaign(points, fake_bench(device), into), into


def counting(count, made, cost_s=0.0, clock=None, table="memory"):
    """Points that note that they were measured."""

    def point(number):
        def run(bench):
            made.append(number)
            if clock is not None:
                clock.now_s += cost_s
            row = {"op": "copy", "bytes": number, **bench.labels()}
            return [Written(table, row)]

        return Point(table, {"op": "copy", "bytes": number}, run)

    return [point(number) for number in range(count)]


# --- From rows to laws.


def test_the_law_of_the_machine_is_found_again(tmp_path):
    """With noise of 1 % in every block, forecasts of the fitted laws are within 3 % of the true."""
    device = FakeDevice(noise=0.01)
    outcome, _ = measured_on(tmp_path, device)
    found = fit_kernels(Study(tmp_path, device.name, PEAKS)).engines["native"]
    gemm = found.gemm["bf16"].law
    assert gemm.compute_efficiency == pytest.approx(GEMM.compute_efficiency, rel=0.05)
    assert gemm.memory_efficiency == pytest.approx(GEMM.memory_efficiency, rel=0.05)
    for work_s, bytes_s in ((1e-3, 1e-5), (1e-6, 1e-3), (1e-4, 1e-4)):
        load = {"compute_s": work_s, "memory_s": bytes_s, "depth": 4096.0, "conversion_s": 0.0}
        assert gemm.seconds(**load) == pytest.approx(GEMM.seconds(**load), rel=0.03)
    decode = found.decode_attention[0].law
    load = {"rows": 128.0, "memory_s": 1e-3, "compute_s": 1e-5, "tiles": 1.0}
    assert decode.seconds(**load) == pytest.approx(DECODE.seconds(**load), rel=0.03)
    # Prefill runs out of memory on this machine: said, and the others are measured.
    assert outcome.skipped
    assert all("attention_prefill" in reason for reason in outcome.skipped)
    assert all(reason.endswith("Tried to allocate") for reason in outcome.skipped)


def test_rows_become_a_calibration(tmp_path, catalog):
    device = FakeDevice()
    measured_on(tmp_path, device)
    subjects = tmp_path / "subjects.yaml"
    subjects.write_text(subjects_text(device, "fake_chip", "torch 0.0", powered=False))
    table = read_subjects(subjects)
    power = lent_power(table.of("fake_chip"), catalog)
    found = fit_accelerator(tmp_path, "fake_chip", {"fake_chip": PEAKS}, table, power)
    assert found.power.inherited_from == "h200_sxm"
    assert found.preference["vllm"] == ("vllm", "native")
    assert found.kernels["native"].gemm["bf16"].fit.median_ape < 0.01
    written = yaml.safe_load(to_yaml(found, "a command"))
    assert written["kernels"]["native"]["gemm"]["bf16"]["fit"]["rows"] >= 10


def test_the_command_makes_a_catalogue_of_them(tmp_path):
    """By what ``rackcast measure`` wrote beside the rows; serving runs may follow another day."""
    device, out = FakeDevice(), tmp_path / "ours"
    measured_on(tmp_path, device)
    subjects = tmp_path / "subjects.yaml"
    subjects.write_text(subjects_text(device, "h100_sxm", "torch 0.0", powered=False))
    command = ["calibrate", "--kernels", str(tmp_path), "--out", str(out)]
    result = CliRunner().invoke(app, [*command, "--accelerator", "h100_sxm"])
    path = out / "hardware" / "calibrations" / "h100_sxm.yaml"
    assert (result.exit_code, result.stdout) == (0, f"wrote {path}\n")
    assert "bf16" in result.stderr
    found = open_catalog([out]).calibration("h100_sxm")
    assert found is not None
    assert list(found.kernels) == ["native"]


def test_a_fit_needs_measurements_and_the_name_of_their_chip(tmp_path):
    kernels = ["--kernels", str(tmp_path)]
    for options, said in (
        ([], "needs measured runs (CSV), --kernels FOLDER, or both"),
        (kernels, "which chip was measured? Say --accelerator ID: a100_sxm"),
        (["runs.csv", "--accelerator", "h100_sxm"], "of no use without --kernels"),
        ([*kernels, "--system", "h100_sxm_x8"], "of no use without measured runs"),
    ):
        result = CliRunner().invoke(app, ["calibrate", *options])
        assert result.exit_code != 0
        assert said in str(result.exception)


def test_the_power_of_the_machine_is_found_again(tmp_path):
    """A board of 700 W that draws 30 % of it, 40 % more for all arithmetic, 20 % for all memory."""
    device = FakeDevice()
    bench = fake_bench(device)

    class Board:
        limit_w = 700.0

        def energy_j(self):
            return None

        def power_w(self):
            compute, memory = bench.operators.utilization
            return 700.0 * (0.3 + 0.4 * compute + 0.2 * memory)

    device.sensor = Board()
    into = opened(tmp_path)
    points = {
        "gemm": list(families.products(GRID, BF16)),
        "power": list(families.power(GRID, BF16, steady_s=0.01)),
    }
    run_campaign(points, bench, into)
    path = tmp_path / "subjects.yaml"
    path.write_text(subjects_text(device, "fake_chip", "torch 0.0", powered=True))
    table = read_subjects(path)
    found = fit_accelerator(tmp_path, "fake_chip", {"fake_chip": PEAKS}, table).power
    assert found.inherited_from is None
    assert found.law.active_fraction == pytest.approx(0.3, abs=0.01)
    assert found.law.compute_weight == pytest.approx(0.4, abs=0.02)
    assert found.law.memory_weight == pytest.approx(0.2, abs=0.02)


def test_power_that_nobody_lends(tmp_path, catalog):
    path = tmp_path / "subjects.yaml"
    text = subjects_text(FakeDevice(), "fake_chip", "torch 0.0", powered=False)
    path.write_text(text.replace("h200_sxm", "tpu_v6e"))
    with pytest.raises(InputError, match="power_lent_by: tpu_v6e has no calibration"):
        lent_power(read_subjects(path).of("fake_chip"), catalog)
    path.write_text(text.replace("power_lent_by", "power").replace("h200_sxm", "fake_chip"))
    assert lent_power(read_subjects(path).of("fake_chip"), catalog) is None


def test_power_that_is_neither_measured_nor_lent(tmp_path):
    measured_on(tmp_path, FakeDevice())
    path = tmp_path / "subjects.yaml"
    text = subjects_text(FakeDevice(), "fake_chip", "torch 0.0", powered=False)
    path.write_text(text.replace("    power_lent_by: h200_sxm\n", ""))
    with pytest.raises(InputError, match="fake_chip: whose power was measured"):
        fit_accelerator(tmp_path, "fake_chip", {"fake_chip": PEAKS}, read_subjects(path))


def test_rates_of_memory(tmp_path):
    """A call of 1 us and n bytes at 1 TB/s moves n / (1e-6 + n / 1e12) bytes per second."""
    _, into = measured_on(tmp_path, FakeDevice())
    for row in rows_of(into["memory"]):
        size = float(row["bytes"])
        expected = size / (1e-6 + size / 1e12)
        assert float(row["bytes_per_s"]) == pytest.approx(expected, rel=1e-4)


# --- Order.


def test_order_is_random_but_the_same_each_time():
    points = counting(50, [])
    order = [point.key["bytes"] for point in in_random_order(points, "memory")]
    assert sorted(order) == list(range(50))
    assert order != list(range(50))
    assert order == [point.key["bytes"] for point in in_random_order(points, "memory")]
    # Size and place are not related: 4 standard errors of a rank correlation of 50.
    assert abs(np.corrcoef(order, range(50))[0, 1]) < 4 / np.sqrt(50)


def test_groups_stay_together():
    points = [replace(each, group=str(n % 3)) for n, each in enumerate(counting(30, []))]
    groups = [each.group for each in in_random_order(points, "memory")]
    assert groups == ["0"] * 10 + ["1"] * 10 + ["2"] * 10


# --- Stopping and going on.


def test_what_is_there_is_not_measured_again(tmp_path):
    made = []
    points = counting(6, made)
    bench = fake_bench(FakeDevice())
    run_campaign({"memory": points[:4]}, bench, opened(tmp_path))
    into = opened(tmp_path, resume=True)
    outcome = run_campaign({"memory": points}, bench, into)
    assert (outcome.there, outcome.measured) == (4, 2)
    assert made == [0, 1, 2, 3, 4, 5]
    assert len(rows_of(into["memory"])) == 6


def test_an_interrupt_keeps_what_was_measured(tmp_path):
    made = []
    points = counting(5, made)

    def interrupt(_):
        raise KeyboardInterrupt

    points[3] = replace(points[3], run=interrupt)
    with pytest.raises(MeasurementInterruptedError, match="3 points measured and kept") as caught:
        run_campaign({"memory": points}, fake_bench(FakeDevice()), opened(tmp_path))
    assert caught.value.exit_code == 130
    assert len(rows_of(tables(tmp_path)["memory"])) == 3


def test_everything_is_closed_at_the_end(tmp_path):
    closed = []

    class Opened:
        def close(self):
            closed.append(True)

    bench = fake_bench(FakeDevice())
    assert bench.resource("a", Opened) is bench.resource("a", Opened)
    run_campaign({"memory": counting(1, [])}, bench, opened(tmp_path))
    assert closed == [True]


def test_a_budget_is_shared_among_families(tmp_path):
    """100 s for gemm (3 shares) and memory (1): 75 s hold 8 points of 10 s, begun before 75 s;
    memory then has the 20 s that are left, and begins at 80 and 90."""
    clock, early, late = FakeClock(), [], []
    points = {
        "gemm": counting(50, early, 10.0, clock),
        "memory": [replace(p, key=p.key | {"op": "read"}) for p in counting(50, late, 10.0, clock)],
    }
    into = opened(tmp_path)
    outcome = run_campaign(points, fake_bench(FakeDevice()), into, 100.0, clock=clock)
    assert (len(early), len(late)) == (8, 2)
    assert outcome.left == 90


def test_a_point_that_needs_too_much_memory_is_skipped(tmp_path):
    made = []
    points = [replace(each, needed_bytes=9e9) for each in counting(1, made)]
    bench = fake_bench(FakeDevice(free=1e10))
    outcome = run_campaign({"memory": points}, bench, opened(tmp_path))
    assert made == []
    assert outcome.skipped == ["memory op=copy bytes=0: needs 9e+09 bytes, 1e+10 are free"]


# --- Around it.


def test_power_of_products(tmp_path):
    class Board:
        limit_w = 700.0

        def energy_j(self):
            return None

        def power_w(self):
            return 420.0

    into = opened(tmp_path)
    points = list(families.power(GRID, BF16, steady_s=0.01))
    run_campaign({"power": points[:2]}, fake_bench(FakeDevice(sensor=Board())), into)
    row = rows_of(into["power"])[0]
    assert (row["power_w"], row["power_limit_w"]) == ("420", "700")
    assert row["shape"].startswith("m=1 n=")


def test_rows_of_two_machines_are_not_mixed(tmp_path):
    path = tmp_path / "environment.json"
    keep({"device": "a", "torch": "2.0"}, path)
    keep({"device": "a", "torch": "2.0"}, path)
    with pytest.raises(InputError, match="these rows are of device 'a', this machine has 'b'"):
        keep({"device": "b", "torch": "2.0"}, path)


def test_a_cut_model_is_an_entry_of_the_catalogue(tmp_path, catalog):
    model = catalog.model("llama_3_1_8b")
    write_cut_model(model, "llama_3_1_8b", 2, tmp_path)
    cut = open_catalog([tmp_path]).model("llama_3_1_8b_2_layers")
    layer = (model.linear_parameters) // model.layers
    assert cut.linear_parameters == 2 * layer
    assert cut.vocabulary_parameters == model.vocabulary_parameters


def test_names_of_options():
    assert chosen_families([])[0] == "gemm"
    with pytest.raises(InputError, match="--only gem; did you mean gemm"):
        chosen_families(["gem"])
    assert kind_of("cpu") == "cpu"
    assert kind_of(None) is None
    with pytest.raises(InputError, match="--device tpu"):
        kind_of("tpu")
