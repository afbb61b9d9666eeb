"""What is wrong with a valid file: each problem with its line, key, value and a way out.

The line that a message should name ends with ``# here`` in the file of each test: nobody counts.
"""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
from small_scenarios import write

from sim import cli
from sim.catalog import open_catalog

SCENARIO = """\
name: small
question: Is what is wrong said where it is?
system: h100_sxm_x8
model: llama_3_1_70b
parallelism:
  tp: 8
precision: {weights: fp8, kv_cache: fp8}
engine:
  name: vllm
  max_num_seqs: 64
workload:
  kind: open_loop
  lengths: {kind: fixed, input_tokens: 100, output_tokens: 10}
  arrivals: {kind: poisson, rate_requests_per_s: 2}
  requests: 20
slo: {ttft_s: 1 s, tpot_s: 100 ms}
prices:
  book: us_2026_11
"""

SYSTEM, MODEL, TP = "system: h100_sxm_x8", "model: llama_3_1_70b", "tp: 8"
ENGINE, WORKLOAD = "  max_num_seqs: 64\n", "workload:\n"
TRAFFIC = SCENARIO[SCENARIO.index("  kind: open_loop") : SCENARIO.index("slo:")]
END = "  book: us_2026_11\n"
MARK = "# here"

BOOT = "boot: {rates: vllm_cloud_boot}\n"
CHIPS_FAIL = "chip: {mtbf_s: 1 h, repair_s: 1 min}"


def engine(*lines: str) -> tuple[str, str]:
    """Give the engine some settings more."""
    return ENGINE, ENGINE + "".join(f"  {line}\n" for line in lines)


def more(text: str) -> tuple[str, str]:
    """Give the scenario some keys more."""
    return END, END + text


def drafts(*lines: str) -> tuple[str, str]:
    return engine("speculation:", *(f"  {line}" for line in lines))


class Broken(NamedTuple):
    """A scenario that is wrong, and what has to be said of it."""

    changes: tuple[tuple[str, str], ...]
    key: str
    value: str
    way_out: str
    code: int = 2


TOGETHER = "pools:\n  prefill: {parallelism: {tp: 4}%s}\n  decode: {parallelism: {tp: 4}%s}\n"

BROKEN = {
    "system": Broken(
        ((SYSTEM, f"system: h100_sxmx8 {MARK}"),),
        "system",
        "unknown system 'h100_sxmx8'",
        "did you mean h100_sxm_x8",
    ),
    "nothing like a system": Broken(
        ((SYSTEM, f"system: xyz {MARK}"),),
        "system",
        "unknown system 'xyz'",
        "'rackcast list systems' shows all",
    ),
    "model": Broken(
        ((MODEL, f"model: llama_3_1_7b {MARK}"),),
        "model",
        "unknown model 'llama_3_1_7b'",
        "did you mean llama_3_1_70b",
    ),
    "engine": Broken(
        (("  name: vllm", f"  name: vlm {MARK}"),), "engine.name", "'vlm'", "did you mean vllm?"
    ),
    "price book": Broken(
        (("book: us_2026_11", f"book: us_2025 {MARK}"),), "prices.book", "'us_2025'", "us_2026_11"
    ),
    "traffic": Broken(
        (("  kind: open_loop\n", f"  kind: open_loop\n  traffic: azure {MARK}\n"),),
        "workload.traffic",
        "'azure'",
        "did you mean azure_2023_conversation?",
    ),
    "tensor ranks": Broken(
        ((TP, f"tp: 3 {MARK}"),), "parallelism.tp", "tp = 3", "legal: tp = 1, 2, 4, 8", 3
    ),
    "expert ranks": Broken(
        ((TP, f"{TP}\n  ep: 8 {MARK}"),), "parallelism.ep", "ep is 8", "legal: ep = 1", 3
    ),
    "a replica wider than its system": Broken(
        ((TP, f"tp: 16 {MARK}"),), "parallelism.tp", "16 chips", "systems >= 2", 3
    ),
    "replicas": Broken(
        (more(f"replicas: 9 {MARK}\n"),),
        "replicas",
        "9 replicas of 8 chips need 72",
        "systems >= 9 or replicas <= 1",
        3,
    ),
    "spares": Broken(
        # two replicas of four chips fill the host: five hosts, or no spares
        (
            (TP, "tp: 4"),
            more(f"{BOOT}replicas: 2\nfaults:\n  {CHIPS_FAIL}\n  spares: 8 {MARK}\n"),
        ),
        "faults.spares",
        "2 replicas and 8 spares of 4 chips need 40",
        "systems >= 5 or faults.spares <= 0",
        3,
    ),
    "replicas beside their spares": Broken(
        (
            (TP, "tp: 4"),
            more(f"{BOOT}replicas: 3 {MARK}\nfaults: {{{CHIPS_FAIL}, spares: 1}}\n"),
        ),
        "replicas",
        "3 replicas and 1 spare of 4 chips need 16",
        "systems >= 2 or replicas <= 1",
        3,
    ),
    "autoscaling": Broken(
        (
            more(
                f"{BOOT}autoscaling:\n  min_replicas: 1\n  max_replicas: 5 {MARK}\n"
                "  signal: waiting_requests\n  target: 4\n"
            ),
        ),
        "autoscaling.max_replicas",
        "5 replicas of 8 chips need 40",
        "systems >= 5 or autoscaling.max_replicas <= 1",
        3,
    ),
    "a start outside autoscaling": Broken(
        (
            (SYSTEM, f"{SYSTEM}\nsystems: 5"),
            more(
                f"{BOOT}replicas: 1 {MARK}\nautoscaling: {{min_replicas: 2, max_replicas: 5, "
                "signal: waiting_requests, target: 4}\n"
            ),
        ),
        "replicas",
        "replicas is 1",
        "start inside",
    ),
    "no boot": Broken(
        (more(f"faults: {MARK}\n  {CHIPS_FAIL}\n"),), "faults", "come and go", "give boot"
    ),
    "memory": Broken(
        ((MODEL, f"model: deepseek_r1 {MARK}"),),
        "model",
        "DeepSeek-R1",
        "pp >= 2 with systems >= 2",
        3,
    ),
    "offloading": Broken(
        (engine(f"offload_kv_bytes: 9 TiB {MARK}"),),
        "engine.offload_kv_bytes",
        "9216 GiB",
        "offload at most",
        3,
    ),
    "multi-token prediction": Broken(
        (
            drafts(
                f"method: mtp {MARK}",
                "draft_tokens: 1",
                "acceptance_per_position: [0.5]",
                "spread: 0.1",
            ),
        ),
        "engine.speculation.method",
        "mtp_layers is 0",
        "speculate with an EAGLE head, a draft model or n-grams",
    ),
    "acceptance": Broken(
        (drafts("method: mtp", "draft_tokens: 1", f"acceptance: mine {MARK}", "spread: 0.1"),),
        "engine.speculation.acceptance",
        "'mine'",
        "'rackcast list speculation' shows all",
    ),
    "task of an acceptance": Broken(
        (
            drafts(
                "method: ngram",
                "draft_tokens: 1",
                "acceptance: llama_3_1_8b_ngram",
                f"task: singing {MARK}",
                "spread: 0.1",
            ),
        ),
        "engine.speculation.task",
        "task 'singing'",
        "there are: ",
    ),
    "draft model": Broken(
        (
            drafts(
                "method: draft_model",
                f"draft_model: llama_3_1_8x {MARK}",
                "draft_tokens: 1",
                "acceptance_per_position: [0.5]",
                "spread: 0.1",
            ),
        ),
        "engine.speculation.draft_model",
        "'llama_3_1_8x'",
        "did you mean llama_3_1_8b",
    ),
    "pools that do not say how they share": Broken(
        (more(f"pools: {MARK}\n" + TOGETHER.removeprefix("pools:\n") % ("", "")),),
        "pools",
        "prefill and decode share 1 x h100_sxm_x8",
        "give all but one of them replicas",
    ),
    "pools that are too large": Broken(
        (
            more(
                "pools:\n  prefill:\n    parallelism: {tp: 4}\n"
                f"    replicas: 2 {MARK}\n  decode: {{parallelism: {{tp: 4}}, replicas: 1}}\n"
            ),
        ),
        "pools.prefill.replicas",
        "12 chips (prefill 8, decode 4)",
        "systems >= 2 or fewer replicas",
        3,
    ),
    "pools that leave no room for another": Broken(
        (
            more(
                "pools:\n  prefill:\n    parallelism: {tp: 8}\n"
                f"    replicas: 1 {MARK}\n  decode: {{parallelism: {{tp: 4}}}}\n"
            ),
        ),
        "pools.prefill.replicas",
        "a replica of the decode pool needs 4 chips",
        "systems >= 2 or fewer replicas",
        3,
    ),
    "the split of a pool": Broken(
        (
            more(
                "pools:\n  prefill:\n    replicas: 1\n    parallelism:\n"
                f"      tp: 3 {MARK}\n  decode: {{parallelism: {{tp: 4}}, replicas: 1}}\n"
            ),
        ),
        "pools.prefill.parallelism.tp",
        "tp = 3",
        "legal: tp = 1, 2, 4, 8",
        3,
    ),
    "a link that does not join the pools": Broken(
        (
            (SYSTEM, f"{SYSTEM}\nsystems: 2"),
            more(
                TOGETHER % (", replicas: 2", ", replicas: 2")
                + f"kv_transfer:\n  link: scale_up {MARK}\n"
            ),
        ),
        "kv_transfer.link",
        "scale_up",
        "set kv_transfer.link to scale_out",
    ),
    "an encode pool without an encoder": Broken(
        (
            (MODEL, f"{MODEL} {MARK}"),
            more(
                "pools:\n  encode: {parallelism: {tp: 1}, replicas: 1}\n"
                "  serve: {parallelism: {tp: 4}, replicas: 1}\n"
            ),
        ),
        "model",
        "Llama 3.1 70B has no image encoder",
        "leave the encode pool out",
    ),
    "swapping without room": Broken(
        (engine(f"preemption: swap {MARK}"),),
        "engine.preemption",
        "preemption: swap",
        "swap_bytes > 0, or set preemption: recompute",
    ),
    "settings of two problems": Broken(
        (engine("swap_bytes: 1 GiB", f"preemption: swap {MARK}", "admission: no_evict"),),
        "engine.preemption",
        "never preempts",
        "set preemption: recompute",
    ),
    "an engine for other chips": Broken(
        (engine(f"kernels: native {MARK}"),),
        "engine.kernels",
        "native does not run on chips of family hopper",
        "take vllm, sglang or trtllm",
    ),
    "a tier of less than a block": Broken(
        (
            engine(
                "kv_tiers:",
                "- name: ram",
                f"  capacity_bytes: 1 KiB {MARK}",
                "  read_bytes_per_s: 50 GB/s",
                "  write_bytes_per_s: 50 GB/s",
            ),
        ),
        "engine.kv_tiers.0.capacity_bytes",
        "1024 bytes of ram",
        "raise capacity_bytes",
    ),
    "rates of failure": Broken(
        (more(f"{BOOT}faults:\n  rates: llama_h100 {MARK}\n"),),
        "faults.rates",
        "'llama_h100'",
        "did you mean llama3_h100?",
    ),
    "a part without a rate": Broken(
        (more(f"{BOOT}faults:\n  parts: [chip, link] {MARK}\n  {CHIPS_FAIL}\n"),),
        "faults.parts",
        "names link",
        "give faults.link with mtbf_s and repair_s",
    ),
    "rates that do not boot": Broken(
        (more(f"boot:\n  rates: llama3_h100 {MARK}\nfaults: {{{CHIPS_FAIL}}}\n"),),
        "boot.rates",
        "llama3_h100 says nothing about booting",
        "name another file in boot.rates",
    ),
    "a store that is not there": Broken(
        (
            more(
                f"{BOOT}faults:\n  {CHIPS_FAIL}\n  lost: retry\n  max_attempts: 2\n"
                f"  retry_keeps: kv {MARK}\n"
            ),
        ),
        "faults.retry_keeps",
        "retry_keeps is kv",
        "set retry_keeps: answer",
    ),
    "tenants": Broken(
        (more(f"tenants:\n  gold: {{priority: 1}} {MARK}\n"),),
        "tenants.gold",
        "'gold'",
        "Its tenants: all",
    ),
    "rent of a chip that is not let": Broken(
        (
            (SYSTEM, "system: cs3_x1"),
            (TP, "tp: 1"),
            (MODEL, "model: llama_3_1_8b"),
            ("weights: fp8, kv_cache: fp8", "weights: bf16, kv_cache: bf16"),
            ("  name: vllm", "  name: cerebras"),
            (END, f"{END}  mode: rent {MARK}\n"),
        ),
        "prices.mode",
        "'wse3'",
        "set prices.mode: own",
    ),
    "a kind of rent": Broken(
        ((END, f"{END}  mode: rent\n  rent: spot {MARK}\n"),),
        "prices.rent",
        "'spot'",
        "contract, on_demand",
    ),
    "a system that is not sold": Broken(
        (
            (SYSTEM, "system: tpu_v6e_8"),
            ("weights: fp8, kv_cache: fp8", "weights: bf16, kv_cache: bf16"),
            ("  name: vllm", "  name: jetstream"),
            ("book: us_2026_11", f"book: us_2026_11 {MARK}"),
        ),
        "prices.book",
        "'tpu_v6e_8'",
        "set prices.mode: rent",
    ),
    "a trace that is not there": Broken(
        ((TRAFFIC, f"  kind: trace\n  path: tr/nowhere.csv {MARK}\n"),),
        "workload.path",
        "tr/nowhere.csv: no such file",
        "start from its folder",
    ),
    "a part of a mix": Broken(
        (
            (
                TRAFFIC,
                "  kind: mix\n  parts:\n    chat:\n      kind: trace\n"
                f"      path: nowhere.csv {MARK}\n",
            ),
        ),
        "workload.parts.chat.path",
        "nowhere.csv: no such file",
        "start from its folder",
    ),
    "a router": Broken(
        (more(f"router: least_busy {MARK}\n"),),
        "router",
        "'least_busy' is not one of",
        "round_robin, random, least_outstanding, power_of_two, prefix_aware, kv_aware, session",
    ),
    "a router that is no name": Broken(
        (more(f"router: 3 {MARK}\n"),), "router", "3 is not one of", "round_robin, random"
    ),
    "a key of another router": Broken(
        (more(f"router:\n  kind: round_robin\n  choices: 3 {MARK}\n"),),
        "router.choices",
        "unknown key",
        "allowed keys: stale_s, kind",
    ),
}

WHILE_RUNNING = {
    "a time in which nothing comes": Broken(
        (("requests: 20", f"duration_s: 1 ms {MARK}"),),
        "workload.duration_s",
        "in 0.001 s",
        "give a longer duration_s",
    ),
    "requests that never fit": Broken(
        (
            ("input_tokens: 100", "input_tokens: 10000000"),
            ("requests: 20", f"requests: 20\n  load_fraction: 0.5 {MARK}"),
        ),
        "workload.load_fraction",
        "no request of this traffic fits",
        "give shorter requests",
    ),
    "a trace that nobody gave": Broken(
        ((WORKLOAD + TRAFFIC, f"workload: {MARK}\n  kind: trace\n"),),
        "workload.path",
        "is not set",
        "--set workload.path=FILE",
    ),
}


@pytest.fixture
def rackcast(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, list[str]]]:
    """Call the command as its console script does; its code and the lines on stderr."""
    monkeypatch.delenv("RACKCAST_CATALOG", raising=False)

    def call(*arguments: str | Path) -> tuple[int, list[str]]:
        monkeypatch.setattr(sys, "argv", ["rackcast", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            cli.main()
        written = capfd.readouterr().err.removeprefix("rackcast: ")
        return int(end.value.code or 0), written.splitlines()

    return call


Rackcast = Callable[..., tuple[int, list[str]]]


def marked(path: Path) -> int:
    """Count the lines up to the one that is marked; there is one."""
    lines = path.read_text(encoding="utf-8").splitlines()
    (line,) = [number for number, text in enumerate(lines, 1) if text.endswith(MARK)]
    return line


def says(path: Path, broken: Broken, line: str) -> None:
    start = f"{path}:{marked(path)}: {broken.key}: "
    assert line.startswith(start), (line, start)
    assert broken.value in line
    assert broken.way_out in line


@pytest.mark.parametrize("command", ["check", "run"])
@pytest.mark.parametrize("name", BROKEN)
def test_it_is_said_where_it_is(
    rackcast: Rackcast, tmp_path: Path, name: str, command: str
) -> None:
    broken = BROKEN[name]
    path = write(tmp_path, SCENARIO, *broken.changes)
    code, lines = rackcast(command, path)
    assert code == broken.code
    says(path, broken, lines[0])


@pytest.mark.parametrize("name", WHILE_RUNNING)
def test_it_is_said_when_a_run_finds_it(rackcast: Rackcast, tmp_path: Path, name: str) -> None:
    broken = WHILE_RUNNING[name]
    path = write(tmp_path, SCENARIO, *broken.changes)
    code, lines = rackcast("run", path)
    assert code == broken.code
    says(path, broken, lines[0])


def test_what_is_wrong_inside_a_trace_names_both_files(rackcast: Rackcast, tmp_path: Path) -> None:
    (tmp_path / "tr.csv").write_text("when,what\n1,2\n", encoding="utf-8")
    path = write(tmp_path, SCENARIO, (TRAFFIC, f"  kind: trace\n  path: tr.csv {MARK}\n"))
    code, (line,) = rackcast("run", path)
    assert code == 2
    assert line.startswith(f"{path}:13: workload.path: {tmp_path / 'tr.csv'}:1: ")
    assert "arrival_s" in line
    assert marked(path) == 13


def test_what_is_wrong_inside_a_catalogue_entry_names_both_files(
    rackcast: Rackcast, tmp_path: Path
) -> None:
    """Each of its problems stands on a line of its own."""
    own = tmp_path / "hardware" / "systems"
    own.mkdir(parents=True)
    text = open_catalog().path("systems", "h100_sxm_x8").read_text(encoding="utf-8")
    entry = write(own, text, ("\nchips:", "\nchipz:"), name="h100_sxm_x8.yaml")
    path = write(tmp_path, SCENARIO)
    code, lines = rackcast("check", path, "--catalog", tmp_path)
    assert code == 2
    assert len(lines) == 2
    assert all(line.startswith(f"{path}:3: system: {entry}:") for line in lines)
    assert "chipz: unknown key" in "".join(lines)


def test_the_scenario_itself_is_sound(rackcast: Rackcast, tmp_path: Path) -> None:
    assert rackcast("check", write(tmp_path, SCENARIO)) == (0, [])


@pytest.mark.parametrize("router", ["least_outstanding", "{kind: round_robin, stale_s: 1 s}"])
def test_a_router_may_be_a_name_alone(rackcast: Rackcast, tmp_path: Path, router: str) -> None:
    assert rackcast("check", write(tmp_path, SCENARIO, more(f"router: {router}\n")))[0] == 0


class TestCases:
    """A file of several cases."""

    CASES = (
        "cases:\n  - name: a\n  - name: b\n    parallelism: {tp: 4}\n  - name: c\n"
        "    system: h200_sxm_x8\n"
    )

    def lines(self, rackcast: Rackcast, folder: Path, *changes: tuple[str, str]) -> list[str]:
        path = write(folder, SCENARIO + self.CASES, *changes)
        said = rackcast("check", path)[1]
        assert rackcast("run", path)[1] == said
        return [line.removeprefix(f"{path}:") for line in said]

    def test_what_all_of_them_have_is_said_once(self, rackcast: Rackcast, tmp_path: Path) -> None:
        (line,) = self.lines(rackcast, tmp_path, (MODEL, "model: lama_3_1_70b"))
        assert line.startswith("4: model: unknown model 'lama_3_1_70b'; did you mean")

    def test_what_some_have_names_them(self, rackcast: Rackcast, tmp_path: Path) -> None:
        (line,) = self.lines(rackcast, tmp_path, (SYSTEM, "system: h100"))
        assert line.startswith("3: system: cases 'a' and 'b': unknown system 'h100'")

    def test_each_has_its_own_line(self, rackcast: Rackcast, tmp_path: Path) -> None:
        system = ("system: h200_sxm_x8", "system: h200_sxmx8")
        own = ("{tp: 4}", "{tp: 4}\n    model: lama")
        first, second, third = self.lines(
            rackcast, tmp_path, system, own, ("us_2026_11\n", "us_2025\n")
        )
        assert first.startswith("18: prices.book: unknown price book 'us_2025'")
        assert second.startswith("23: model: case 'b': unknown model 'lama'")
        assert third.startswith("25: system: case 'c': unknown system 'h200_sxmx8'")

    def test_all_names_of_a_case_at_once(self, rackcast: Rackcast, tmp_path: Path) -> None:
        lines = self.lines(
            rackcast,
            tmp_path,
            (MODEL, "model: lama"),
            ("  name: vllm", "  name: vlm"),
            ("book: us_2026_11", "book: us_2025"),
        )
        assert [line.split(": ")[:2] for line in lines] == [
            ["4", "model"],
            ["9", "engine.name"],
            ["18", "prices.book"],
        ]

    def test_bad_input_outranks_what_cannot_be_done(
        self, rackcast: Rackcast, tmp_path: Path
    ) -> None:
        changes = (("{tp: 4}", "{tp: 16}"), ("system: h200_sxm_x8", "system: h200_sxmx8"))
        path = write(tmp_path, SCENARIO + self.CASES, *changes)
        code, lines = rackcast("check", path)
        assert code == 2
        assert [line.removeprefix(f"{path}:").split(": ")[:3] for line in lines] == [
            ["22", "parallelism.tp", "case 'b'"],
            ["24", "system", "case 'c'"],
        ]

    def test_a_setting_says_so(self, rackcast: Rackcast, tmp_path: Path) -> None:
        path = write(tmp_path, SCENARIO + self.CASES)
        _, lines = rackcast("run", path, "--set", "cases.2.system=h200_sxmx8")
        assert lines[0].startswith("--set cases.2.system: case 'c': unknown system 'h200_sxmx8'")

    def test_explain_says_where_too(self, rackcast: Rackcast, tmp_path: Path) -> None:
        path = write(tmp_path, SCENARIO + self.CASES, ("{tp: 4}", "{tp: 3}"))
        code, lines = rackcast("explain", path, "--case", "b")
        assert code == 3
        assert lines[0].startswith(f"{path}:22: parallelism.tp: case 'b': 64 query heads")


def test_pools_do_not_repeat_what_they_share(rackcast: Rackcast, tmp_path: Path) -> None:
    pools = more(TOGETHER % (", replicas: 1", ", replicas: 1"))
    path = write(tmp_path, SCENARIO, pools, (SYSTEM, "system: h100_sxmx8"))
    _, lines = rackcast("check", path)
    assert len(lines) == 1
    assert lines[0].startswith(f"{path}:3: system: unknown system")
