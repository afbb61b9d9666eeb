"""The command line: what it prints where, and the exit code each outcome ends with."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, fields
from importlib.metadata import version
from pathlib import Path
from typing import ClassVar

import pytest
from small_scenarios import CLOSED_LOOP, FOUR_CASES, ONE_CASE, write

import sim.calibration.validate
import sim.checks
import sim.forecast
from sim import cli
from sim.catalog import KINDS, open_catalog
from sim.report.explanation import ExplainedOperator, ExplainedStep

ROOT = Path(cli.__file__).parents[1]
MODELS = open_catalog().names("models")


@dataclass(frozen=True)
class Outcome:
    """What a command left behind."""

    code: int
    out: str
    err: str


Rackcast = Callable[..., Outcome]


@pytest.fixture(autouse=True)
def _no_folders_of_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RACKCAST_CATALOG", raising=False)


@pytest.fixture
def rackcast(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Rackcast:
    """Call the command as its console script does, in this process."""

    def call(*arguments: str | Path) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["rackcast", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            cli.main()
        written = capfd.readouterr()
        return Outcome(int(end.value.code or 0), written.out, written.err)

    return call


def in_a_process(*arguments: str | Path, **environment: str) -> Outcome:
    """Call the command in a process of its own."""
    command = [sys.executable, "-m", "sim.cli", *map(str, arguments)]
    done = subprocess.run(
        command,
        env=os.environ | environment,
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    return Outcome(done.returncode, done.stdout, done.stderr)


@pytest.fixture
def small(tmp_path: Path) -> Path:
    return write(tmp_path, FOUR_CASES)


class TestRun:
    def test_the_table_goes_to_stdout_and_notes_to_stderr(
        self, rackcast: Rackcast, small: Path
    ) -> None:
        done = rackcast("run", small)
        assert done.code == 0
        lines = done.out.splitlines()
        assert [name for name in ("H100", "H200", "B200") if f"\n{name} " not in done.out] == []
        assert max(len(line) for line in lines) <= 120
        assert done.err
        assert all(line.startswith("note: ") for line in done.err.splitlines())

    def test_quiet_leaves_stderr_empty(self, rackcast: Rackcast, small: Path) -> None:
        loud, quiet = rackcast("run", small), rackcast("run", small, "--quiet")
        assert (quiet.err, quiet.out) == ("", loud.out)

    def test_json_is_the_summary(self, rackcast: Rackcast, small: Path, tmp_path: Path) -> None:
        out = tmp_path / "out"
        done = rackcast("run", small, "--json", "--out", out)
        document = json.loads(done.out)
        assert [row["case"] for row in document["rows"]][:3] == ["H100", "H200", "B200"]
        assert all(row["completed_requests"] == 20 for row in document["rows"])
        written = json.loads((out / "summary.json").read_text(encoding="utf-8"))
        assert document == written
        assert f"report: {out / 'report.html'}" in done.err

    def test_without_out_nothing_is_written(
        self,
        rackcast: Rackcast,
        small: Path,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        here = tmp_path / "here"
        here.mkdir()
        monkeypatch.chdir(here)
        rackcast("run", small)
        assert list(here.iterdir()) == []
        assert list(tmp_path.iterdir()) == [here, small] or set(tmp_path.iterdir()) == {here, small}

    def test_every_step_gives_the_same(
        self, rackcast: Rackcast, small: Path, tmp_path: Path
    ) -> None:
        """Times are whole ticks and so equal. Sums are not quite: they add in another order,
        and a stretch across the end of the window spreads its tokens evenly over its time."""
        jumped = rackcast("run", small, "--quiet", "--out", tmp_path / "a")
        walked = rackcast("run", small, "--quiet", "--out", tmp_path / "b", "--every-step")
        table, _, _ = jumped.out.partition("report:")
        assert walked.out.startswith(table)
        assert len(table.splitlines()) == 13  # with lines of intervals below those of cases
        folders = tmp_path / "a", tmp_path / "b"
        requests = [(folder / "requests.parquet").read_bytes() for folder in folders]
        assert requests[0] == requests[1]
        summaries = [json.loads((folder / "summary.json").read_bytes()) for folder in folders]
        for one, other in zip(*(summary["rows"] for summary in summaries), strict=True):
            for column, value in one.items():
                if isinstance(value, float):
                    assert value == pytest.approx(other[column], rel=1e-6), column
                else:
                    assert value == other[column], column

    def test_settings_reach_the_run(self, rackcast: Rackcast, small: Path) -> None:
        done = rackcast("run", small, "--json", "--set", "workload.requests=7")
        assert {row["completed_requests"] for row in json.loads(done.out)["rows"]} == {7}

    def test_requests_that_cannot_be_served_are_not_passed_over(
        self, rackcast: Rackcast, small: Path
    ) -> None:
        # A prompt of 100 tokens and an answer of 10 are 110.
        served = rackcast("run", small, "--set", "engine.max_model_len=110")
        assert "longer than" not in served.err
        refused = rackcast("run", small, "--set", "engine.max_model_len=109")
        assert refused.code == 0
        assert (
            "note: all cases: 20 requests are longer than the KV cache or the model" in refused.err
        )


def test_equal_seeds_give_equal_bytes(rackcast: Rackcast, tmp_path: Path) -> None:
    """Again, and in a process with another order of its sets; another seed differs."""
    text = ONE_CASE + "cases:\n  - {name: open}\n  - name: closed\n" + CLOSED_LOOP
    scenario = write(tmp_path, text)
    names = ("summary.json", "summary.csv", "requests.parquet", "bill.csv", "timeline.csv")

    def files(folder: str) -> list[bytes]:
        return [(tmp_path / folder / name).read_bytes() for name in names]

    for folder, seed in (("a", 1), ("b", 1), ("seed 2", 2)):
        assert rackcast("run", scenario, "--seed", str(seed), "--out", tmp_path / folder).code == 0
    apart = in_a_process("run", scenario, "--out", tmp_path / "c", "--quiet", PYTHONHASHSEED="17")
    assert (apart.code, apart.err) == (0, "")
    assert files("a") == files("b") == files("c")
    for name, one, other in zip(names, files("a"), files("seed 2"), strict=True):
        # The bill of an open loop has the length of its window in it.
        assert one != other, name


class TestTrace:
    def test_it_is_json(self, rackcast: Rackcast, tmp_path: Path) -> None:
        out = tmp_path / "out"
        done = rackcast("run", write(tmp_path, ONE_CASE), "--out", out, "--trace")
        assert done.code == 0
        assert json.loads((out / "trace.json").read_bytes())["traceEvents"]

    def test_it_needs_a_folder(self, rackcast: Rackcast, small: Path) -> None:
        done = rackcast("run", small, "--trace")
        assert (done.code, done.out) == (2, "")
        assert done.err.startswith("rackcast: --trace needs --out")


class TestBadInput:
    """Exit code 2, one message on stderr, nothing on stdout."""

    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ("engine.max_num_seq=3", "--set engine.max_num_seq: unknown key; did you mean"),
            (
                "model=lama_3_1_70b",
                "--set model: unknown model 'lama_3_1_70b'; did you mean llama_3_1_70b",
            ),
            (
                "system=h10_sxm_x8",
                "--set system: unknown system 'h10_sxm_x8'; did you mean h100_sxm_x8",
            ),
            (
                "prices.book=us_2062_11",
                "--set prices.book: unknown price book 'us_2062_11'; did you mean",
            ),
            (
                "prices={book: us_2026_11, mode: rent, rent: spot}",
                "--set prices: prices.rent: there is no rent of h100_sxm",
            ),
            (
                "workload.traffic=azure_2023_chat",
                "--set workload.traffic: unknown lengths 'azure_2023_chat'; did you mean",
            ),
            ("precision.weights=fp9", "--set precision.weights: 'fp9' is not one of: fp32,"),
            (
                "workload={kind: trace}",
                "--set workload: workload.path: workload.path is not set: give the trace",
            ),
            (
                "workload={kind: trace, path: no.csv}",
                "--set workload: workload.path: no.csv: no such file",
            ),
            ("model", "'model' is not KEY=VALUE"),
            ("=4", "'=4' is not KEY=VALUE"),
            ("seed=-1", "--set seed: -1 is too small; it must be at least 0"),
        ],
    )
    def test_settings(
        self, rackcast: Rackcast, tmp_path: Path, settings: str, message: str
    ) -> None:
        path = write(tmp_path, ONE_CASE)
        done = rackcast("run", path, "--set", settings)
        assert (done.code, done.out) == (2, "")
        assert done.err.removeprefix("rackcast: ").startswith(message)
        assert len(done.err.splitlines()) == 1

    def test_all_cases_are_looked_up_before_one_runs(self, rackcast: Rackcast, small: Path) -> None:
        done = rackcast(
            *("run", small, "--set", "cases.2.system=b20", "--set", "cases.3.model=lama"),
            *("--set", "cases.0.parallelism.tp=3"),
        )
        assert (done.code, done.out) == (2, "")
        lines = done.err.removeprefix("rackcast: ").splitlines()
        assert [re.split("[;?]", re.sub("[.] .*", "", line))[0] for line in lines] == [
            "--set cases.0.parallelism.tp: case 'H100': 64 query heads cannot be cut over tp = 3 "
            "ranks",
            "--set cases.0.parallelism.tp: case 'H100': 8 KV heads and tp = 3: one must divide the "
            "other",
            "--set cases.2.system: case 'B200': unknown system 'b20'",
            "--set cases.3.model: case 'H100, two halves': unknown model 'lama'",
        ]

    def test_a_mistake_in_the_file_has_its_line(self, rackcast: Rackcast, tmp_path: Path) -> None:
        path = write(tmp_path, ONE_CASE, ("max_num_seqs: 64", "max_num_seq: 64"))
        done = rackcast("run", path)
        assert (done.code, done.out) == (2, "")
        expected = f"{path}:7: engine.max_num_seq: unknown key; did you mean max_num_seqs?"
        assert done.err == f"rackcast: {expected}\n"

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            ("name: [1", ":2: not valid YAML: "),
            ("", ":1: the document is empty"),
            ("- a\n- b\n", ":1: the document is a list; it must be a mapping (key: value)"),
            ("name: a\nname: b\n", ":2: name: repeated key; first at "),
        ],
    )
    def test_bad_yaml(self, rackcast: Rackcast, tmp_path: Path, content: str, message: str) -> None:
        path = write(tmp_path, content)
        done = rackcast("run", path)
        assert (done.code, done.out) == (2, "")
        assert done.err.startswith(f"rackcast: {path}{message}")

    def test_a_missing_file_and_a_folder(self, rackcast: Rackcast, tmp_path: Path) -> None:
        missing, folder = rackcast("run", tmp_path / "no.yaml"), rackcast("run", tmp_path)
        assert (missing.code, folder.code) == (2, 2)
        assert missing.err.endswith("no.yaml: cannot be read: No such file or directory\n")
        assert folder.err.endswith("cannot be read: Is a directory\n")

    def test_a_run_that_rejects_everything_still_gets_its_report(
        self, rackcast: Rackcast, small: Path, tmp_path: Path
    ) -> None:
        done = rackcast("run", small, "--set", "engine.max_model_len=2", "--out", tmp_path / "none")
        assert done.code == 0, done.err
        assert (tmp_path / "none" / "report.html").is_file()
        assert "longer than the KV cache or the model allows" in done.err

    def test_a_duration_in_which_nothing_arrives(self, rackcast: Rackcast, small: Path) -> None:
        workload = "{kind: open_loop, traffic: azure_2023_conversation, duration_s: 1 ms}"
        done = rackcast("run", small, "--set", f"workload={workload}", "--quiet")
        assert done.code == 2
        assert "no request arrives in 0.001 s; give a longer duration_s" in done.err

    def test_an_out_that_is_a_file(self, rackcast: Rackcast, small: Path) -> None:
        done = rackcast("run", small, "--out", small, "--quiet")
        assert done.code == 2
        assert "it is a file and not a folder" in done.err
        assert small.read_text(encoding="utf-8") == FOUR_CASES

    @pytest.mark.parametrize(
        "arguments",
        [
            [],
            ["run"],
            ["run", "a.yaml", "b.yaml"],
            ["run", "a.yaml", "--seed", "x"],
            ["run", "a.yaml", "--seed", "-1"],
            ["run", "a.yaml", "--frobnicate"],
            ["frobnicate"],
            ["explain", "a.yaml", "--batch", "0"],
            ["list", "models", "systems"],
            ["model", "export"],
            ["model", "import"],
        ],
        ids=" ".join,
    )
    def test_usage(self, rackcast: Rackcast, arguments: list[str]) -> None:
        done = rackcast(*arguments)
        assert (done.code, done.out) == (2, "")
        assert "Usage: rackcast" in done.err


class TestInfeasible:
    """Exit code 3: the numbers, and a way out."""

    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ("tp=16", "1 replica of 16 chips needs 16 chips, 1 x h100_sxm_x8 has 8: systems >= 2"),
            ("tp=3", "64 query heads cannot be cut over tp = 3 ranks"),
            ("tp=8, ep: 8", "ep is 8 but the model has no experts"),
        ],
    )
    def test_splits(self, rackcast: Rackcast, tmp_path: Path, settings: str, message: str) -> None:
        split = "{" + settings.replace("=", ": ") + "}"
        path = write(tmp_path, ONE_CASE)
        done = rackcast("run", path, "--set", f"parallelism={split}")
        assert (done.code, done.out) == (3, "")
        assert done.err.startswith("rackcast: --set parallelism: parallelism.")
        assert re.match(r"[a-z_]+: " + message, done.err.split("parallelism: parallelism.")[1])

    def test_a_model_that_does_not_fit(self, rackcast: Rackcast, tmp_path: Path) -> None:
        """671 GB of weights, 625 GiB, are more than 8 chips of 80 GiB at 90 % hold."""
        done = rackcast("run", write(tmp_path, ONE_CASE), "--set", "model=deepseek_r1")
        assert (done.code, done.out) == (3, "")
        found = re.search(
            r"--set model: DeepSeek-R1 needs (\d+) GiB of weights per replica.*, "
            r"8 x h100_sxm has (\d+) GiB usable: pp >= 2 with systems >= 2",
            done.err,
        )
        assert found, done.err
        needed, usable = map(int, found.groups())
        assert needed >= 671e9 / 2**30
        assert usable <= 8 * 80 * 0.9
        way_out = ("--set", "parallelism.pp=2", "--set", "systems=2", "--quiet")
        path = tmp_path / "small.yaml"
        assert rackcast("run", path, "--set", "model=deepseek_r1", *way_out).code == 0

    def test_the_way_out_is_one(self, rackcast: Rackcast, tmp_path: Path) -> None:
        path = write(tmp_path, ONE_CASE)
        settings = ["--set", "model=llama_3_1_405b", "--quiet", "--set"]
        refused = rackcast("run", path, *settings, "parallelism.tp=4")
        assert refused.code == 3
        way_out = re.search(r"usable: tp >= (\d+)", refused.err)
        assert way_out, refused.err
        assert rackcast("run", path, *settings, f"parallelism.tp={way_out[1]}").code == 0

    def test_too_many_replicas(self, rackcast: Rackcast, tmp_path: Path) -> None:
        """Three replicas of eight chips are 24 chips: three hosts."""
        path = write(tmp_path, ONE_CASE)
        refused = rackcast("run", path, "--set", "replicas=3")
        assert refused.code == 3
        assert refused.err == (
            "rackcast: --set replicas: 3 replicas of 8 chips need 24 chips, "
            "1 x h100_sxm_x8 has 8: "
            "systems >= 3 or replicas <= 1\n"
        )
        done = rackcast("run", path, "--set", "replicas=3", "--set", "systems=3", "--quiet")
        assert done.code == 0


class TestAccidents:
    def test_a_bug_of_ours(
        self, rackcast: Rackcast, small: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def broken(*_: object, **__: object) -> None:
            raise ZeroDivisionError("the bug")

        monkeypatch.setattr(sim.forecast, "forecast", broken)
        done = rackcast("run", small)
        assert (done.code, done.out) == (70, "")
        assert "ZeroDivisionError: the bug" in done.err
        assert done.err.endswith(
            "this is a bug of Rackcast; please report it with the lines above\n"
        )

    def test_an_interrupt(
        self,
        rackcast: Rackcast,
        small: Path,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        def interrupted(*_: object, **__: object) -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr(sim.forecast, "forecast", interrupted)
        done = rackcast("run", small, "--out", tmp_path / "out")
        assert (done.code, done.out) == (130, "")
        assert done.err == "rackcast: interrupted; nothing was written\n"
        assert not (tmp_path / "out").exists()


class TestProcess:
    def test_streams_and_codes(self, small: Path, rackcast: Rackcast) -> None:
        done = in_a_process("run", small)
        assert done == rackcast("run", small)
        refused = in_a_process("run", small, "--set", "parallelism.tp=16")
        assert (refused.code, refused.out) == (3, "")
        # The same sentence for the cases of each system, with their names.
        assert len(refused.err.splitlines()) == 3
        assert "cases 'H100' and 'H100, two halves': 1 replica of 16 chips" in refused.err

    def test_an_empty_place_far_from_the_checkout(self, tmp_path: Path) -> None:
        command = [sys.executable, "-m", "sim.cli", "list", "models", "--ids"]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
        assert done.stdout.split() == list(MODELS)
        assert done.stderr == ""


class TestCatalogue:
    def test_lists(self, rackcast: Rackcast) -> None:
        for kind in KINDS:
            ids = list(open_catalog().names(kind))
            assert rackcast("list", kind, "--ids") == Outcome(0, "\n".join([*ids, ""]), "")
            rows = json.loads(rackcast("list", kind, "--json").out)
            assert sorted(row["id"] for row in rows) == ids
            shown = rackcast("list", kind).out
            assert all(f" {entry} " in shown for entry in ids)

    def test_kinds(self, rackcast: Rackcast) -> None:
        assert rackcast("list", "--ids").out.split() == list(KINDS)
        rows = json.loads(rackcast("list", "--json").out)
        assert {row["kind"]: row["entries"] for row in rows} == {
            kind: len(open_catalog().names(kind)) for kind in KINDS
        }
        shown = rackcast("list").out
        assert all(f" {row['kind']} " in shown and row["about"] in shown for row in rows)

    def test_entries_of_ones_own_are_listed(self, rackcast: Rackcast, tmp_path: Path) -> None:
        folder = tmp_path / "workloads" / "models"
        folder.mkdir(parents=True)
        text = open_catalog().path("models", "llama_3_1_8b").read_text(encoding="utf-8")
        (folder / "mine.yaml").write_text(text, encoding="utf-8")
        rows = json.loads(rackcast("list", "models", "--json", "--catalog", tmp_path).out)
        known = {row["id"]: row for row in rows}
        assert known["mine"] == known["llama_3_1_8b"] | {"id": "mine"}

    def test_a_kind_that_is_not_there(self, rackcast: Rackcast) -> None:
        done = rackcast("list", "modles")
        assert (done.code, done.out) == (2, "")
        assert done.err.startswith("rackcast: there is no kind 'modles'; did you mean models? The")

    def test_a_price_of_ones_own(self, rackcast: Rackcast, tmp_path: Path) -> None:
        """A chip that rents at twice the price makes tokens twice as dear."""
        shipped = open_catalog().path("prices", "us_2026_11").read_text(encoding="utf-8")
        assert shipped.count("value: 3.20 USD/h") == 1
        folder = tmp_path / "mine" / "hardware" / "prices"
        folder.mkdir(parents=True)
        dear = shipped.replace("value: 3.20 USD/h", "value: 6.40 USD/h")
        (folder / "dear.yaml").write_text(dear, encoding="utf-8")
        scenario = write(tmp_path, ONE_CASE, ("us_2026_11}", "us_2026_11, mode: rent}"))
        known = ["run", scenario, "--json", "--catalog", tmp_path / "mine"]
        (usual,) = json.loads(rackcast(*known).out)["rows"]
        (double,) = json.loads(rackcast(*known, "--set", "prices.book=dear").out)["rows"]
        assert usual["usd_per_hour"] == pytest.approx(8 * 3.20)
        for column in ("usd_per_hour", "usd_per_mtok_input", "usd_per_mtok_output"):
            assert double[column] == pytest.approx(2 * usual[column])
        assert double["tpot_s_p99"] == usual["tpot_s_p99"]

    def test_a_chip_of_ones_own(self, rackcast: Rackcast, tmp_path: Path) -> None:
        """A copy of a chip under another name is as fast and draws as much.

        How sure that is differs: no run of a system of this name was measured.
        """
        catalog, mine = open_catalog(), tmp_path / "mine"
        for kind in ("accelerators", "calibrations", "systems"):
            old = "h100_sxm_x8" if kind == "systems" else "h100_sxm"
            new = "box" if kind == "systems" else "chip"
            text = catalog.path(kind, old).read_text(encoding="utf-8")
            folder = mine / "hardware" / kind
            folder.mkdir(parents=True)
            text = text.replace("accelerator: h100_sxm", "accelerator: chip")
            (folder / f"{new}.yaml").write_text(text, encoding="utf-8")
        prices = catalog.path("prices", "us_2026_11").read_text(encoding="utf-8")
        (mine / "hardware" / "prices").mkdir()
        for old, new in (("h100_sxm_x8:", "box:"), ("h100_sxm:", "chip:")):
            assert old in prices
            prices = prices.replace(f"  {old}", f"  {new}")
        (mine / "hardware" / "prices" / "mine.yaml").write_text(prices, encoding="utf-8")
        command = ["run", write(tmp_path, ONE_CASE), "--json", "--catalog", mine]
        renamed = rackcast(*command, "--set", "system=box", "--set", "prices.book=mine")
        assert renamed.code == 0, renamed.err
        (copy,) = json.loads(renamed.out)["rows"]
        (original,) = json.loads(rackcast(*command).out)["rows"]
        of_measured_runs = ("_lo", "_hi", "slo_probability", "error_group")
        same = {key: value for key, value in original.items() if not key.endswith(of_measured_runs)}
        assert {key: copy[key] for key in same} == same | {"system": "box"}

    def test_a_folder_that_is_not_there(self, rackcast: Rackcast, small: Path) -> None:
        done = rackcast("run", small, "--catalog", "nowhere")
        assert (done.code, done.err) == (2, "rackcast: --catalog: there is no folder nowhere\n")


class TestModelImport:
    CONFIG: ClassVar[dict[str, object]] = {
        "model_type": "llama",
        "num_hidden_layers": 2,
        "hidden_size": 512,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "intermediate_size": 1024,
        "vocab_size": 1000,
        "max_position_embeddings": 4096,
        "tie_word_embeddings": False,
    }

    def config(self, folder: Path, **more: object) -> Path:
        path = folder / "Tiny-1B" / "config.json"
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(self.CONFIG | more), encoding="utf-8")
        return path

    def test_the_entry_goes_to_stdout_and_doubts_to_stderr(
        self, rackcast: Rackcast, tmp_path: Path
    ) -> None:
        """An entry that can be used as it is; the folder gives the name."""
        done = rackcast("model", "import", self.config(tmp_path, memory_layers=3))
        assert done.code == 0
        assert "\nname: Tiny-1B\n" in done.out
        (doubt,) = done.err.splitlines()
        assert doubt.startswith("to check: memory_layers (3) was not understood")
        folder = tmp_path / "mine" / "workloads" / "models"
        folder.mkdir(parents=True)
        (folder / "tiny.yaml").write_text(done.out, encoding="utf-8")
        assert rackcast("check", folder / "tiny.yaml").out.endswith(": valid model\n")

    def test_a_file(self, rackcast: Rackcast, tmp_path: Path) -> None:
        out = tmp_path / "entry.yaml"
        options = ("--name", "Our 1B", "--source", "our registry", "--out", out)
        done = rackcast("model", "import", self.config(tmp_path), *options)
        assert done == Outcome(0, f"entry: {out}\n", "")
        written = out.read_text(encoding="utf-8")
        assert "name: Our 1B\n" in written
        assert "source: our registry\n" in written

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            ("{", "is not JSON: Expecting property name"),
            ("[]", "holds no JSON object"),
            ("{}", "num_hidden_layers is missing"),
            (b"\xff\xfe", "is not JSON: 'utf-8' codec"),
        ],
    )
    def test_files_that_are_no_config(
        self, rackcast: Rackcast, tmp_path: Path, content: str | bytes, message: str
    ) -> None:
        path = tmp_path / "config.json"
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        done = rackcast("model", "import", path)
        assert (done.code, done.out) == (2, "")
        assert done.err.startswith(f"rackcast: {path}: {message}")
        assert len(done.err.splitlines()) == 1

    def test_files_that_are_not_there(self, rackcast: Rackcast, tmp_path: Path) -> None:
        missing = rackcast("model", "import", tmp_path / "no.json")
        assert missing.err.endswith("no.json: cannot be read: No such file or directory\n")
        unwritable = rackcast(
            "model", "import", self.config(tmp_path), "--out", tmp_path / "no" / "entry.yaml"
        )
        assert (missing.code, unwritable.code, unwritable.out) == (2, 2, "")
        assert "cannot write" in unwritable.err


class TestCheck:
    def test_the_whole_catalogue(self, rackcast: Rackcast) -> None:
        count = sum(len(open_catalog().names(kind)) for kind in KINDS)
        assert rackcast("check") == Outcome(0, f"{count} files are valid\n", "")

    def test_files(self, rackcast: Rackcast, small: Path) -> None:
        prices = open_catalog().path("prices", "us_2026_11")
        done = rackcast("check", small, prices)
        assert done == Outcome(0, f"{small}: valid scenario\n{prices}: valid prices\n", "")

    def test_one_bad_file_does_not_hide_another(
        self, rackcast: Rackcast, small: Path, tmp_path: Path
    ) -> None:
        first = write(tmp_path, ONE_CASE, ("tp: 8", "tp: 0"), name="first.yaml")
        second = write(tmp_path, ONE_CASE, ("model: llama", "model: lama"), name="second.yaml")
        done = rackcast("check", first, small, second)
        assert (done.code, done.out) == (2, f"{small}: valid scenario\n")
        assert f"{first}:5: parallelism.tp: 0 is too small" in done.err
        assert f"{second}:4: model: unknown model 'lama_3_1_70b'" in done.err

    def test_what_does_not_fit_is_infeasible(self, rackcast: Rackcast, tmp_path: Path) -> None:
        scenario = write(tmp_path, ONE_CASE, ("tp: 8", "tp: 16"))
        assert rackcast("check", scenario).code == 3

    @pytest.mark.parametrize(
        ("old", "new"),
        [
            ("us_2026_11}", "us_2026_11, mode: rent, rent: spot}"),
            ("requests: 20", "requests: 20\n  traffic: azure_2024"),
            ("model: llama_3_1_70b", "model: llama_3_1_7b"),
            ("weights: fp8", "weights: fp9"),
        ],
    )
    def test_it_refuses_what_run_would(
        self, rackcast: Rackcast, tmp_path: Path, old: str, new: str
    ) -> None:
        scenario = write(tmp_path, ONE_CASE, (old, new))
        checked, run = rackcast("check", scenario), rackcast("run", scenario)
        assert (checked.code, run.code) == (2, 2)
        assert checked.err == run.err


class TestExplain:
    def test_json(self, rackcast: Rackcast, small: Path) -> None:
        done = rackcast("explain", small, "--json", "--case", "B200", "--batch", "4")
        prefill, decode = json.loads(done.out)
        assert (prefill["case"], decode["case"]) == ("B200", "B200")
        assert decode["step"] == "decode of 4 sequences, 1,024 keys each"
        assert sum(row["seconds"] for row in decode["operators"]) == pytest.approx(
            decode["seconds"]
        )

    def test_the_first_case_is_explained_unless_another_is_named(
        self, rackcast: Rackcast, small: Path
    ) -> None:
        done = rackcast("explain", small)
        assert (done.code, done.err) == (0, "")
        assert done.out.startswith("H100: prefill of 8,192 tokens")
        assert "attention_decode" in done.out

    def test_json_has_every_field(self, rackcast: Rackcast, small: Path) -> None:
        for step in json.loads(rackcast("explain", small, "--json").out):
            assert set(step) == {field.name for field in fields(ExplainedStep)}
            for row in step["operators"]:
                assert set(row) == {field.name for field in fields(ExplainedOperator)}

    def test_charts(self, rackcast: Rackcast, small: Path, tmp_path: Path) -> None:
        out = tmp_path / "steps"
        done = rackcast("explain", small, "--out", out)
        assert done.code == 0
        lines = [f"chart: {out / name}.png" for name in ("prefill", "decode")]
        assert done.out.splitlines()[-2:] == lines
        names = {"prefill.png", "prefill.svg", "decode.png", "decode.svg"}
        assert {path.name for path in out.iterdir()} == names
        quiet = rackcast("explain", small, "--out", out, "--json")
        assert len(json.loads(quiet.out)) == 2
        assert quiet.err.splitlines() == lines

    def test_a_file_is_no_folder_for_charts(self, rackcast: Rackcast, small: Path) -> None:
        done = rackcast("explain", small, "--out", small)
        assert (done.code, done.out) == (2, "")
        assert "it is a file and not a folder" in done.err

    def test_a_case_that_is_not_there(self, rackcast: Rackcast, small: Path) -> None:
        done = rackcast("explain", small, "--case", "H300")
        assert done == Outcome(
            2,
            "",
            "rackcast: there is no case 'H300'; there are: H100, H200, B200, H100, two halves\n",
        )


class TestSchema:
    def test_every_kind_has_one(self, rackcast: Rackcast) -> None:
        for name in ("scenario", *sim.checks.MODELS):
            schema = json.loads(rackcast("schema", name).out)
            assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"
            assert schema["additionalProperties"] is False

    def test_that_of_scenarios_is_the_first_choice(self, rackcast: Rackcast) -> None:
        assert rackcast("schema").out == rackcast("schema", "scenario").out

    def test_a_kind_that_is_not_there(self, rackcast: Rackcast) -> None:
        done = rackcast("schema", "modle")
        assert (done.code, done.out) == (2, "")
        assert done.err.startswith("rackcast: there is no schema 'modle'; did you mean model? The")


class TestValidate:
    HEADER = (
        "row_id,hardware,num_chips,tp,model,weight_dtype,engine,scenario,isl,osl,concurrency,"
        "tpot_mean_ms"
    )
    ROW = "r1,H100-SXM-80GB,8,8,Llama-3.1-70B,fp8,vllm,concurrency,100,20,4,{}"

    def file(self, folder: Path, *rows: str) -> Path:
        path = folder / "runs.csv"
        path.write_text("\n".join([self.HEADER, *rows]) + "\n", encoding="utf-8")
        return path

    def test_a_run_measured_at_half_the_forecast(self, rackcast: Rackcast, tmp_path: Path) -> None:
        """A forecast that is twice the measured value is off by 100 %."""
        first = json.loads(
            rackcast("validate", self.file(tmp_path, self.ROW.format(100)), "--json").out
        )
        forecast_ms = 100 * (1 + first["tpot"]["bias"])
        row = self.ROW.format(forecast_ms / 2)
        skipped = row.replace("r1,H100-SXM-80GB", "r2,Abacus")
        done = rackcast(
            *("validate", self.file(tmp_path, row, skipped), "--json", "--by", "tp", "--quiet")
        )
        assert done.err == ""
        document = json.loads(done.out)
        assert (document["runs"], document["covered"]) == (2, 1)
        assert document["skipped"] == {"no system for Abacus": 1}
        assert document["tpot"]["median_ape"] == pytest.approx(1.0)
        (by_tp,) = document["by"]["tp"]
        assert (by_tp["tp"], by_tp["quantity"]) == ("8", "tpot")

    def test_for_people(self, rackcast: Rackcast, tmp_path: Path) -> None:
        done = rackcast("validate", self.file(tmp_path, self.ROW.format(10)), "--by", "engine")
        assert done.out.startswith("1 runs forecast, 0 skipped\n")
        assert re.search(r"tpot +vllm +1 ", done.out)

    @pytest.mark.parametrize(
        ("row", "options", "message"),
        [
            (ROW.replace("H100-SXM-80GB", "Abacus"), [], "no run could be forecast: 1 x no system"),
            (ROW.format(10), ["--select", "tp=3"], "no run could be forecast: none is there"),
            (ROW.format(10), ["--select", "pt=3"], "runs have no column 'pt'; use source, "),
            (ROW.format(10), ["--select", "tp"], "'tp' is not KEY=VALUE"),
            (ROW.format(10), ["--by", "modle"], "runs have no column 'modle'; did you mean model?"),
            (ROW.format("fast"), [], "{}: run r1: tpot_mean_ms: 'fast' is not a number"),
            (ROW.format(0), [], "{}: run r1: tpot_mean_ms: 0 must be greater than 0;"),
            ("", [], "no run could be forecast: none is there"),
        ],
    )
    def test_mistakes(
        self, rackcast: Rackcast, tmp_path: Path, row: str, options: list[str], message: str
    ) -> None:
        path = self.file(tmp_path, row)
        done = rackcast("validate", path, *options)
        assert (done.code, done.out) == (2, "")
        assert done.err.startswith(f"rackcast: {message.format(path)}")

    def test_files_that_are_no_runs(self, rackcast: Rackcast, small: Path) -> None:
        missing = rackcast("validate", small.with_name("no.csv"))
        assert missing.code == 2
        assert missing.err.endswith("no.csv: cannot be read: No such file or directory\n")
        assert rackcast("validate", small).code == 2


def test_version(rackcast: Rackcast) -> None:
    assert rackcast("version") == Outcome(0, f"{version('rackcast')}\n", "")


def test_help_names_every_command(rackcast: Rackcast) -> None:
    done = rackcast("--help")
    assert (done.code, done.err) == (0, "")
    for command in ("run", "explain", "list", "model", "check", "schema", "validate", "version"):
        assert f"\n  {command} " in done.out
