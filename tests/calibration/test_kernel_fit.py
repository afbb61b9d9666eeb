"""Kernel data to laws: what counts as work, that a fit finds a known law, and how good ours are."""

import os
from functools import lru_cache
from itertools import chain, takewhile
from pathlib import Path
from typing import cast

import numpy as np
import pandas as pd
import pytest

from sim.calibration import collectives, fit, heldout, kernel_laws, kernels, problems, report
from sim.calibration.kernels import Peaks
from sim.calibration.problems import Problem
from sim.calibration.regression import Array, Errors, Knob, columns, regress
from sim.calibration.subjects import (
    catalogue_peaks,
    read_subjects,
    shipped_subjects,
    study_of,
)
from sim.catalog import open_catalog
from sim.efficiency import Calibration, DecodeAttentionLaw, GemmLaw, GroupedGemmLaw
from sim.errors import InputError
from sim.schema import load_yaml, validate

ROOT = Path(__file__).parents[2]
SHARED = Path(os.environ.get("RACKCAST_SHARED", ROOT.parent / "shared"))
MEASURED = SHARED / "measured"

needs_measurements = pytest.mark.skipif(
    not (MEASURED / "comms.csv").is_file(),
    reason=f"measured kernels are not part of the project; none at {MEASURED} (RACKCAST_SHARED)",
)

CATALOG = open_catalog()
TABLE = shipped_subjects()
PEAKS = Peaks(flop_per_s={"bf16": 100e12, "fp8": 200e12}, bandwidth_bytes_per_s=1e12, tdp_w=700.0)


def write(folder: Path, operation: str, header: str, *rows: str) -> Path:
    kernels_folder = folder / "kernels"
    kernels_folder.mkdir(exist_ok=True)
    lines = [f"hardware,framework,version,kernel_source,{header},latency_us"]
    lines += [f"X1,vllm,1.0,best,{row}" for row in rows]
    (kernels_folder / f"aic_{operation}_x.csv").write_text("\n".join(lines), encoding="utf-8")
    return folder


class TestWork:
    def test_dense_product(self, tmp_path: Path) -> None:
        data = write(tmp_path, "gemm", "gemm_dtype,m,n,k", "fp8,10,2000,1000,7")
        row = kernels.gemm(data, "X1", PEAKS).iloc[0]
        # 2 * 10 * 2000 * 1000 flop = 40 MFLOP at 200 TFLOP/s.
        assert row["compute_s"] == pytest.approx(0.2e-6)
        # 2 MB of weights, 10 kB in, 40 kB out in bf16 at 1 TB/s.
        assert row["memory_s"] == pytest.approx(2.05e-6)
        # 10,000 activations read at 2 bytes and written at 1.
        assert row["conversion_s"] == pytest.approx(0.03e-6)
        assert row["time_s"] == pytest.approx(7e-6)

    def test_bf16_is_not_converted(self, tmp_path: Path) -> None:
        data = write(tmp_path, "gemm", "gemm_dtype,m,n,k", "bfloat16,10,2000,1000,7")
        assert kernels.gemm(data, "X1", PEAKS).iloc[0]["conversion_s"] == 0.0

    def test_experts_dealt_like_cards(self, tmp_path: Path) -> None:
        header = (
            "moe_dtype,num_tokens,hidden_size,inter_size,topk,num_experts,"
            "moe_tp_size,moe_ep_size,distribution"
        )
        data = write(
            tmp_path,
            "moe",
            header,
            "bfloat16,16,1000,500,2,64,1,1,balanced,50",
            "bfloat16,1,1000,500,2,64,1,8,balanced,50",
        )
        many, one = kernels.grouped_gemm(data, "X1", PEAKS).to_dict("records")
        # 32 picks of 6 * 1000 * 500 flop, at 100 TFLOP/s.
        assert many["compute_s"] == pytest.approx(32 * 3e6 / 100e12)
        # 32 experts of 3 MB; and per pick 4 kB of hidden vectors and 3 kB beside the activation.
        assert many["memory_s"] == pytest.approx((32 * 3e6 + 32 * 7e3) / 1e12)
        assert many["token_s"] == pytest.approx(16 * 4e3 / 1e12)
        # A quarter of a pick per rank; a rank that gets any gets one.
        assert one["pick_s"] == pytest.approx(4e3 / 1e12)

    def test_decode_reads_no_more_than_its_window(self, tmp_path: Path) -> None:
        header = (
            "attn_dtype,kv_cache_dtype,batch_size,kv_len,num_heads,num_key_value_heads,"
            "head_dim,window_size"
        )
        data = write(
            tmp_path,
            "attention_decode",
            header,
            "bfloat16,fp8,4,1000,16,2,100,0,9",
            "bfloat16,fp8,4,1000,16,2,100,128,9",
            "bfloat16,fp8,4,100,16,0,100,128,9",
        )
        full, windowed, short = kernels.decode_attention(data, "X1", PEAKS).to_dict("records")
        # 4 sequences, 1000 positions, keys and values, 2 heads of 100 bytes.
        assert full["memory_s"] == pytest.approx(4 * 1000 * 2 * 200 / 1e12)
        assert full["rows"] == 8
        assert windowed["memory_s"] == pytest.approx(full["memory_s"] * 0.128)
        # No KV heads in the file: as many as query heads.
        assert short["memory_s"] == pytest.approx(4 * 100 * 2 * 1600 / 1e12)

    def test_prefill_counts_the_pairs_of_a_triangle_or_a_band(self, tmp_path: Path) -> None:
        header = (
            "attn_dtype,kv_cache_dtype,batch_size,isl,num_heads,num_key_value_heads,"
            "head_dim,window_size"
        )
        data = write(
            tmp_path,
            "attention_prefill",
            header,
            "bfloat16,bfloat16,1,4,1,1,1,0,9",
            "bfloat16,bfloat16,1,4,1,1,1,2,9",
        )
        full, windowed = kernels.prefill_attention(data, "X1", PEAKS).to_dict("records")
        # Queries see 1 + 2 + 3 + 4 keys; in a window of two, 1 + 2 + 2 + 2.
        assert full["flop"] == 4 * 10
        assert windowed["flop"] == 4 * 7

    def test_latent_decode_reads_one_cache_for_all_heads(self, tmp_path: Path) -> None:
        header = "mla_dtype,kv_cache_dtype,batch_size,kv_len,num_heads,tp_size"
        data = write(tmp_path, "mla_decode", header, "bfloat16,bfloat16,2,100,16,8,9")
        row = kernels.mla_decode(data, "X1", PEAKS).iloc[0]
        assert row["memory_s"] == pytest.approx(200 * 576 * 2 / 1e12)
        assert row["compute_s"] == pytest.approx(200 * 16 * 2 * 1088 / 100e12)

    def test_latent_decode_counts_whole_tiles_of_16_heads(self, tmp_path: Path) -> None:
        header = "mla_dtype,kv_cache_dtype,batch_size,kv_len,num_heads,tp_size"
        data = write(tmp_path, "mla_decode", header, "bfloat16,bfloat16,2,100,20,8,9")
        row = kernels.mla_decode(data, "X1", PEAKS).iloc[0]
        assert (row["rows"], row["tiles"]) == (2, 2)
        assert row["compute_s"] == pytest.approx(200 * 32 * 2 * 1088 / 100e12)

    def test_a_format_without_arithmetic_is_widened(self, tmp_path: Path) -> None:
        peaks = Peaks(flop_per_s={"bf16": 100e12}, bandwidth_bytes_per_s=1e12, tdp_w=300.0)
        data = write(tmp_path, "gemm", "gemm_dtype,m,n,k", "fp8,10,2000,1000,7")
        row = kernels.gemm(data, "X1", peaks).iloc[0]
        # 40 MFLOP at the 100 TFLOP/s of bf16; weights of one byte, inputs and outputs of two.
        assert row["compute_s"] == pytest.approx(0.4e-6)
        assert row["memory_s"] == pytest.approx((2e6 + 2 * 10 * 1000 + 2 * 10 * 2000) / 1e12)
        assert row["conversion_s"] == 0.0

    def test_a_skewed_router_touches_fewer_experts(self, tmp_path: Path) -> None:
        header = (
            "moe_dtype,num_tokens,hidden_size,inter_size,topk,num_experts,moe_tp_size,"
            "moe_ep_size,distribution"
        )
        data = write(
            tmp_path,
            "moe",
            header,
            "bfloat16,2,100,50,1,2,1,1,balanced,9",
            "bfloat16,2,100,50,1,2,1,1,power_law_1.0,9",
        )
        dealt, skewed = kernels.grouped_gemm(data, "X1", PEAKS)["memory_s"]
        # Chances 2/3 and 1/3: two tokens touch 2 - (1/3)^2 - (2/3)^2 = 13/9 of two experts.
        expert_s = 3 * 100 * 50 * 2 / 1e12
        assert dealt - skewed == pytest.approx((2 - 13 / 9) * expert_s)

    def test_a_cached_prefix_adds_its_pairs(self, tmp_path: Path) -> None:
        folder = tmp_path / "kernels"
        folder.mkdir()
        header = "hardware,model,dtype,tp,prefill_chunk,kv_prefill,n_decode,kv_decode,time_us"
        row = "X1,meta-llama/Llama-3.1-8B,bf16,1,4,10,0,0,9"
        (folder / "llmservingsim_v1_attention.csv").write_text(f"{header}\n{row}", "utf-8")
        found = kernels.prefill_attention(tmp_path, "X1", PEAKS).iloc[0]
        # Four queries see 10 cached keys and 1 + 2 + 3 + 4 new ones; 32 heads of 128.
        assert found["flop"] == 4 * (4 * 10 + 10) * 32 * 128

    def test_an_unknown_chip_is_named(self, tmp_path: Path) -> None:
        data = write(tmp_path, "gemm", "gemm_dtype,m,n,k", "fp8,10,2000,1000,7")
        with pytest.raises(InputError, match="no rows of gemm on X2"):
            kernels.gemm(data, "X2", PEAKS)


class TestRegression:
    def test_finds_the_law_that_made_the_times_despite_outliers(self) -> None:
        truth = GemmLaw(
            floor_s=4e-6,
            compute_efficiency=0.7,
            memory_efficiency=0.8,
            depth_s=1e-9,
            sharpness=2.0,
            conversion_slowdown=3.0,
            tile_depth=300.0,
        )
        generator = np.random.default_rng(1)
        m, n, k = (
            2.0 ** generator.integers(low, high, 400) for low, high in [(0, 15), (9, 16), (9, 15)]
        )
        rows = pd.DataFrame(
            {
                "compute_s": 2 * m * n * k / 1e15,
                "memory_s": (n * k + m * k + 2 * m * n) / 3e12,
                "depth": k,
                "conversion_s": 3 * m * k / 3e12,
            }
        )

        def forecast(law: GemmLaw, rows: pd.DataFrame) -> Array:
            return law.seconds(**columns(rows, "compute_s", "memory_s", "depth", "conversion_s"))

        rows["time_s"] = forecast(truth, rows)
        rows.loc[::20, "time_s"] *= 5.0
        knobs = {
            "floor_s": Knob(1e-5, 1e-7, 1e-3),
            "compute_efficiency": Knob(0.5, 0.01, 1.0),
            "memory_efficiency": Knob(0.5, 0.01, 1.0),
            "depth_s": Knob(5e-10, 1e-13, 1e-8),
            "sharpness": Knob(3.0, 1.0, 8.0),
            "conversion_slowdown": Knob(1.0, 1e-3, 1e3),
            "tile_depth": Knob(100.0, 1.0, 1e4),
        }
        found = regress(GemmLaw, knobs, forecast, rows)
        assert found.model_dump(exclude_none=True) == pytest.approx(
            truth.model_dump(exclude_none=True), rel=0.05
        )

    def test_collective_lines_find_both_algorithms(self) -> None:
        size = np.geomspace(256, 1e9, 23)
        time_s = np.minimum(3e-6 + 3e-11 * size, 2e-5 + 4e-12 * size)
        law = collectives.fit_lines(size, time_s)
        assert law.seconds(size) == pytest.approx(time_s, rel=0.02)

    def test_a_shard_slower_than_the_layer_is_left_out(self) -> None:
        shape = {"hidden_size": 1, "inter_size": 1, "topk": 1, "num_experts": 1, "num_tokens": 8}
        rows = pd.DataFrame(
            [
                shape | {"moe_tp_size": tp, "moe_ep_size": 1, "time_s": time_s}
                for tp, time_s in [(1, 1.0), (2, 0.6), (4, 1.3)]
            ]
        )
        kept, dropped = kernel_laws._without_broken_shards(
            rows, ["hidden_size", "inter_size", "topk", "num_experts"]
        )
        assert (kept["moe_tp_size"].tolist(), dropped) == ([1, 2], 1)


REFITTED = ("h200_sxm", "rtx_4090")
"""Chips that are fitted anew: one of each size."""


@lru_cache(maxsize=len(REFITTED))
def refitted(accelerator: str) -> Calibration:
    power = TABLE.of(accelerator).power or accelerator
    peaks = {name: catalogue_peaks(name, CATALOG) for name in (accelerator, power)}
    return fit.fit_accelerator(MEASURED, accelerator, peaks, TABLE)


QUICK = ("a100_sxm", "rtx_pro_6000", "arc_pro_b60", "h800_sxm", "h20_sxm", "rtx_4090")
"""Chips whose rows are held out here, of all number formats; a second or two each. The others' turn
is the command behind reports/kernels.md."""


@needs_measurements
@pytest.mark.shared_data
class TestMeasured:
    @pytest.mark.parametrize("accelerator", REFITTED)
    def test_the_committed_file_is_what_the_data_give(self, accelerator: str) -> None:
        path = ROOT / f"hardware/calibrations/{accelerator}.yaml"
        committed = dict(fit.fits(validate(Calibration, load_yaml(path))))
        again = dict(fit.fits(refitted(accelerator)))
        assert set(again) == set(committed)
        for name, fitted in committed.items():
            assert again[name].rows == fitted.rows
            assert again[name].median_ape == pytest.approx(fitted.median_ape, abs=0.001), name

    def test_what_was_timed_by_its_launch_is_excluded_with_a_reason(self) -> None:
        found = refitted("h200_sxm")
        assert "launch-bound" in found.excluded["gemm vllm fp8_block"]
        assert "fp8_block" not in found.kernels["vllm"].gemm
        assert "fp8_block" in found.kernels["trtllm"].gemm

    def test_an_unmeasured_accelerator_is_refused(self) -> None:
        with pytest.raises(InputError, match="no measurements of tpu_v6e; there are a100_sxm"):
            fit.fit_accelerator(MEASURED, "tpu_v6e", {}, TABLE)

    @pytest.mark.parametrize("accelerator", QUICK)
    def test_laws_hold_on_rows_that_they_have_not_seen(self, accelerator: str) -> None:
        """By operator and number format, every row held out once; exceptions are named below."""
        study = study_of(MEASURED, TABLE.of(accelerator), catalogue_peaks(accelerator, CATALOG))
        found = list(heldout.pooled(list(heldout.qualities(accelerator, study))))
        assert {each.family for each in found} >= {"gemm", "decode_attention"}
        page = {tuple(row[:3]): row for row in TestReport.table(*POOLED_COLUMNS)}
        for each in found:
            limit = ABOVE_THE_LIMIT.get(each[:3], LIMITS[each.family])
            assert each.median_ape < limit, each
            told = float(page[each[:3]][5].rstrip("%")) / 100
            assert told == pytest.approx(each.median_ape, abs=0.002), each

    def test_a_sibling_is_forecast_by_its_elder(self) -> None:
        """H200 is an H100 with other memory: every ratio of a prior is 1."""
        h100, h200 = (
            study_of(MEASURED, TABLE.of(name), catalogue_peaks(name, CATALOG))
            for name in ("h100_sxm", "h200_sxm")
        )
        laws: dict[tuple[str, str, str], object] = {
            (group.engine, group.family, group.name): group.problem.fit(group.rows)
            for group in kernel_laws.groups(h100)
        }
        rows = list(kernel_laws.groups(h200))
        found = {
            carried.family: carried
            for carried in heldout.transfers("h100_sxm", laws, "h200_sxm", rows)
        }
        assert set(found) == set(heldout.LIMITS)
        for carried in found.values():
            assert carried.errors["median_ape"] < 0.12, carried

    def test_every_source_is_read(self) -> None:
        """Each subject has products and decode attention, from whoever measured it."""
        for name, subject in TABLE.subjects.items():
            peaks = catalogue_peaks(name, CATALOG)
            products = kernels.gemm(MEASURED, subject.chip, peaks)
            attention = kernels.decode_attention(MEASURED, subject.chip, peaks)
            for frame in (products, attention):
                light_s = frame[["compute_s", "memory_s"]].to_numpy(dtype=float)
                assert np.isfinite(light_s).all(), name
            # Nothing beats the arithmetic of the datasheet; boost clocks may touch it.
            assert (products["compute_s"] / products["time_s"]).max() < 1.05, name


# What simple laws reach; a worse median after a change of law, data or method is a regression.
# Exceptions are named, with what is known of them in reports/kernels.md.
LIMITS = {
    "gemm": 0.10,
    "grouped_gemm": 0.15,
    "decode_attention": 0.10,
    "prefill_attention": 0.15,
    "mla_decode": 0.10,
    "mla_prefill": 0.15,
}
ABOVE_THE_LIMIT = {
    # Steps of small batches as the context is split; 32 heads take longer than 64.
    ("b200_sxm", "mla_decode", "fp8"): 0.11,
    ("b300_sxm", "mla_decode", "fp8"): 0.12,
    # Kernels change with the length: 8,192 tokens can take half the time of 4,096.
    ("arc_pro_b60", "decode_attention", "kv fp8"): 0.15,
    # A cached token takes longer with 16 sequences than with 1 and with 256.
    ("h20_sxm", "mla_decode", "bf16"): 0.14,
}
"""By chip, operator and number format: what is above the limit of the operator, and how far."""
KNOWN_WORSE = {
    # Time bends in the total context (slower than straight between 10 and 100 us).
    ("h100_sxm", "trtllm decode_attention kv bf16 d=64"): 0.13,
    ("h200_sxm", "trtllm decode_attention kv bf16 d=64"): 0.18,
    ("h200_sxm", "trtllm decode_attention kv bf16 d=128"): 0.13,
    ("a100_sxm", "sglang decode_attention kv bf16 d=128"): 0.14,
    # A window of 128 takes longer the longer the context is.
    ("h100_sxm", "trtllm decode_attention kv bf16 d=64 window"): 0.32,
    ("h200_sxm", "trtllm decode_attention kv bf16 d=64 window"): 0.32,
    ("l40s", "trtllm decode_attention kv bf16 d=64 window"): 0.21,
    ("rtx_pro_6000", "trtllm decode_attention kv bf16 d=64 window"): 0.24,
    ("l40s", "trtllm prefill_attention bf16/kv bf16 d=64 window"): 0.22,
    ("l40s", "trtllm prefill_attention bf16/kv fp8 d=64 window"): 0.21,
    # Not known.
    ("arc_pro_b60", "vllm decode_attention kv bf16 d=64"): 0.11,
    # Kernels change with the length.
    ("arc_pro_b60", "vllm decode_attention kv fp8 d=64"): 0.16,
    ("arc_pro_b60", "vllm decode_attention kv fp8 d=128"): 0.17,
    # Steps of small batches as the context is split; 32 heads take longer than 64.
    ("b200_sxm", "trtllm mla_decode fp8"): 0.11,
    ("b300_sxm", "trtllm mla_decode fp8"): 0.12,
    ("h20_sxm", "sglang mla_decode bf16"): 0.11,
}


@pytest.mark.parametrize("accelerator", sorted(TABLE.subjects))
def test_residuals_of_the_committed_laws(accelerator: str) -> None:
    path = ROOT / f"hardware/calibrations/{accelerator}.yaml"
    reports = dict(fit.fits(validate(Calibration, load_yaml(path))))
    for name, fitted in reports.items():
        family = name.split()[1] if " " in name else name
        if family in LIMITS:
            limit = KNOWN_WORSE.get((accelerator, name), LIMITS[family])
            assert fitted.median_ape <= limit, f"{name}: {fitted.median_ape}"


POOLED_COLUMNS = (
    "chip",
    "operator",
    "format",
    "laws",
    "rows",
    "median",
    "p90",
    "limit",
    "holds",
)


class TestReport:
    """The committed page says what the committed laws are."""

    PAGE = (ROOT / "reports/kernels.md").read_text(encoding="utf-8")

    @classmethod
    def table(cls, *heading: str) -> list[list[str]]:
        """Return the rows of the table with this heading."""
        lines = cls.PAGE.splitlines()
        start = lines.index("| " + " | ".join(heading) + " |") + 2
        rows = takewhile(lambda line: line.startswith("|"), lines[start:])
        return [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]

    def test_all_laws_are_in_it_with_their_errors(self) -> None:
        told = {
            (chip, law): tuple(figures) for chip, law, *figures in self.table(*report.LAW_COLUMNS)
        }
        kept = {
            (chip, name): fitted
            for chip in TABLE.subjects
            for name, fitted in fit.fits(
                validate(Calibration, load_yaml(ROOT / f"hardware/calibrations/{chip}.yaml"))
            )
            if len(name.split()) > 1 and name.split()[1] in LIMITS
        }
        assert set(told) == set(kept)
        for key, fitted in kept.items():
            rows, median, p90, *_ = told[key]
            figures = (str(fitted.rows), f"{fitted.median_ape:.1%}", f"{fitted.p90_ape:.1%}")
            assert (rows, median, p90) == figures, key

    def test_what_is_above_the_limit_is_what_is_known_to_be(self) -> None:
        told = self.table(*POOLED_COLUMNS)
        laws = self.table(*report.LAW_COLUMNS)
        assert sum(int(row[3]) for row in told) == len(laws)
        assert sum(int(row[4]) for row in told) == sum(int(row[2]) for row in laws)
        assert {tuple(row[:3]) for row in told if row[8] == "no"} == set(ABOVE_THE_LIMIT)
        assert set(report.POOLED_MISSES) == set(ABOVE_THE_LIMIT)
        for row in told:
            above = float(row[5].rstrip("%")) / 100 >= LIMITS[row[1]]
            assert above == (row[8] == "no"), row

    def test_single_laws_above_the_limit_are_those_listed(self) -> None:
        listed = self.table("chip", "law", "rows", "median held out", "what is known")
        laws = self.table(*report.LAW_COLUMNS)
        above = {tuple(row[:2]) for row in laws if row[5].endswith("(above)")}
        assert {tuple(row[:2]) for row in listed} == above
        for row in laws:
            excess = float(row[5].split("%")[0]) / 100 - LIMITS[row[1].split()[1]]
            # The page rounds to tenths of a percent.
            assert (excess > 0.0) == row[5].endswith("(above)") or abs(excess) < 6e-4, row

    @pytest.mark.parametrize(("key", "reason"), report.MISSES)
    def test_every_known_reason_is_one_of_a_law_above_the_limit(
        self, key: str, reason: str
    ) -> None:
        listed = self.table("chip", "law", "rows", "median held out", "what is known")
        assert [row for row in listed if key in f"{row[0]} {row[1]}" and row[4] == reason]

    def test_collectives_above_the_limit_are_those_known(self) -> None:
        told = self.table(
            "network", "operation", "laws", "rows held out", "median", "p90", "limit", "holds"
        )
        late = {(row[0], row[1]) for row in told if row[7] == "no"}
        assert late == set(report.COLLECTIVE_MISSES)
        assert {row[6] for row in told} == {"15%"}


class TestSubjects:
    def test_a_table_names_only_what_it_has(self, tmp_path: Path) -> None:
        text = """
            sources: {me: {about: my own rows, collected: '2026-11-21'}}
            preference: {vllm: [vllm]}
            subjects: {x1: {chip: X1, sources: [me, you], power: x2}}
        """
        path = tmp_path / "subjects.yaml"
        path.write_text(text, encoding="utf-8")
        with pytest.raises(InputError, match="x1: unknown you, x2"):
            read_subjects(path)

    def test_the_shipped_table_says_who_measured(self) -> None:
        assert "AIConfigurator" in TABLE.about(TABLE.of("a100_sxm"))
        assert "DeepGEMM" in TABLE.about(TABLE.of("h800_sxm"))
        assert "AIConfigurator" not in TABLE.about(TABLE.of("rtx_4090"))

    def test_every_committed_calibration_has_a_subject(self) -> None:
        assert set(TABLE.subjects) == set(CATALOG.names("calibrations"))


class TestStudy:
    def test_operands_that_stay_in_the_cache_are_left_out(self) -> None:
        """1 TB/s and a cache of 100 MB: below 150 MB nothing is known of the memory."""
        rows = pd.DataFrame({"memory_s": [1e-6, 100e-6, 200e-6, 100e-6], "compute_s": 1e-9})
        rows.loc[3, "compute_s"] = 200e-6  # bound by arithmetic
        study = kernel_laws.Study(Path(), "X1", PEAKS, cache_bytes=100e6)
        assert study.streamed(rows).index.tolist() == [0, 2, 3]
        assert len(kernel_laws.Study(Path(), "X1", PEAKS).streamed(rows)) == 4

    def test_a_window_takes_its_memory_from_whole_contexts(self) -> None:
        """128 positions of all rows show a cost per row; what memory costs they do not show."""
        whole = DecodeAttentionLaw(
            floor_s=5e-6,
            memory_efficiency=0.8,
            compute_efficiency=1.0,
            sharpness=8.0,
            idle_rows=2.0,
            row_s=0.0,
        )
        rows = pd.DataFrame({"rows": [8.0, 64.0, 512.0, 4096.0]})
        rows["memory_s"] = rows["rows"] * 128 * 256 / 1e12
        rows["compute_s"] = 0.0
        rows["tiles"] = 1.0
        truth = whole.model_copy(update={"floor_s": 8e-6, "row_s": 4e-9})
        rows["time_s"] = truth.seconds(
            rows=rows["rows"].to_numpy(),
            memory_s=rows["memory_s"].to_numpy(),
            compute_s=rows["compute_s"].to_numpy(),
        )
        found = problems.with_memory_of(whole, problems.DECODE).fit(rows)
        assert found.model_dump() == pytest.approx(truth.model_dump(), rel=0.01)

    def test_bare_products_of_experts_are_not_a_whole_layer(self) -> None:
        """Rows of products alone give a law of the layer: 10 us more, and three moves a pick."""
        bare = GroupedGemmLaw(
            floor_s=18e-6,
            compute_efficiency=0.7,
            memory_efficiency=0.8,
            sharpness=2.0,
            pick_slowdown=0.0,
            token_slowdown=0.0,
        )
        light = 10.0 ** np.linspace(-7, -3, 40)
        rows = pd.DataFrame(
            {"compute_s": light, "memory_s": light[::-1] * 0.5, "local_experts": 1.0}
        )
        rows["time_s"] = bare.seconds(
            **columns(rows, "compute_s", "memory_s"), pick_s=0.0, token_s=0.0, local_experts=1.0
        )
        problem = problems.without_routing(problems.GROUPED_GEMM)
        found = problem.fit(rows)
        assert found.floor_s == pytest.approx(28e-6, rel=1e-2)
        assert (found.pick_slowdown, found.token_slowdown) == (3.0, 0.0)
        assert problem.forecast(found, rows) == pytest.approx(rows["time_s"].to_numpy(), rel=1e-2)

    def test_a_window_that_is_masked_is_told_by_its_times(self) -> None:
        """Rows whose times follow all pairs, and rows whose times follow those of the window."""
        length = 2.0 ** np.arange(7, 15)
        window = np.minimum(length, 128.0)
        rows = pd.DataFrame(
            {
                "flop": 4e3 * (window * (window + 1) / 2 + (length - window) * window),
                "whole_flop": 4e3 * length * (length + 1) / 2,
                "token_s": length * 1e-9,
            }
        )
        for flop, masked in (("flop", False), ("whole_flop", True)):
            timed = rows.assign(time_s=1e-5 + rows[flop] / 50e12 + rows["token_s"])
            assert kernel_laws._computes_whole(timed, PEAKS) is masked

    def test_a_rank_that_computes_all_tokens_is_no_shard(self) -> None:
        shape = {"hidden_size": 1, "inter_size": 1, "topk": 1, "num_experts": 8, "num_tokens": 8}
        sizes = [(1, 1, 1.0), (1, 4, 0.95), (1, 8, 1.0), (2, 1, 0.5)]
        rows = pd.DataFrame(
            [
                shape | {"moe_tp_size": tp, "moe_ep_size": ep, "time_s": time_s}
                for tp, ep, time_s in sizes
            ]
        )
        kept, dropped = kernel_laws._without_whole_shards(rows)
        assert (kept["moe_tp_size"].tolist(), dropped) == ([1, 2], 2)
        rows["time_s"] /= rows["moe_ep_size"]
        assert kernel_laws._without_whole_shards(rows)[1] == 0

    def test_every_row_is_held_out_once(self) -> None:
        rows = pd.DataFrame({"m": range(52)})
        parts = list(heldout.folds(rows, "x1", "gemm"))
        out = [rows["m"][held_out].tolist() for _, held_out in parts]
        assert sorted(len(each) for each in out) == [10, 10, 10, 11, 11]
        assert sorted(chain.from_iterable(out)) == list(range(52))
        for (kept, _), each in zip(parts, out, strict=True):
            assert sorted([*kept["m"], *each]) == list(range(52))
        again, other = (
            [rows["m"][held_out].tolist() for _, held_out in heldout.folds(rows, chip, "gemm")]
            for chip in ("x1", "x2")
        )
        assert again == out
        assert other != out

    def test_a_law_that_forecasts_a_row_held_out_has_not_seen_it(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A law that knows its rows by heart and says twice the time of any other."""

        class ByHeart:
            def fit(self, rows: pd.DataFrame) -> set[int]:
                return set(rows["m"])

            def forecast(self, law: set[int], rows: pd.DataFrame) -> Array:
                return np.where(rows["m"].isin(law), 1.0, 2.0)

        rows = pd.DataFrame({"m": range(52), "time_s": 1.0})
        group = kernel_laws.Group[GemmLaw](
            "vllm", "gemm", "fp8", rows, cast("Problem[GemmLaw]", ByHeart()), (), None, {}
        )
        monkeypatch.setattr(heldout, "groups", lambda _: [group])
        (found,) = heldout.qualities("x1", kernel_laws.Study(Path(), "X1", PEAKS))
        assert found.errors.tolist() == [1.0] * 52
        assert found.fitted["p90_ape"] == 0.0
        assert heldout.laws_of([found]) == {("vllm", "gemm", "fp8"): set(range(52))}

    def test_pooled_rows_count_alike(self) -> None:
        """Errors 1 and 3 % of one law and 2, 6 and 8 % of another: 3 % in the middle."""
        nothing = Errors(median_ape=0.0, p90_ape=0.0, bias=0.0)

        def quality(engine: str, *errors: float) -> heldout.Quality:
            names = ("x1", engine, "gemm", "fp8", "fp8")
            return heldout.Quality(*names, len(errors), nothing, nothing, np.array(errors), None)

        found = list(
            heldout.pooled([quality("vllm", 0.01, 0.03), quality("trtllm", 0.02, 0.06, 0.08)])
        )
        assert [(each.laws, each.rows, each.median_ape, each.reached) for each in found] == [
            (2, 5, 0.03, True)
        ]
