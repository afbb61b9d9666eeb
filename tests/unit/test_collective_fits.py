"""Measured collectives to laws: which rows count, and that a fit finds a law it was made from."""

import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from sim.calibration.collective_rows import read_rows
from sim.calibration.collectives import fit_collectives, fit_exchanges, held_out
from sim.errors import InputError

ROOT = Path(__file__).parents[2]
MEASURED = Path(os.environ.get("RACKCAST_SHARED", ROOT.parent / "shared")) / "measured"

HEADER = "op,hardware,n_chips,bytes,dtype,time_us,implementation,notes,source"
SIZES = [2.0**power for power in range(9, 30)]


def write(folder: Path, *rows: str) -> Path:
    (folder / "comms.csv").write_text("\n".join([HEADER, *rows]), encoding="utf-8")
    return folder


def sweep(library: str, *, chips: int = 8, op: str = "all_reduce", notes: str = "") -> list[str]:
    """Rows of 5 us + 10 ps a byte or 20 us + 1 ps a byte, whichever is less."""
    return [
        f"{op},X1,{chips},{size},half,{min(5 + 1e-5 * size, 20 + 1e-6 * size)},{library},{notes},s"
        for size in SIZES
    ]


class TestRows:
    def test_which_ranks_share_a_host(self, tmp_path: Path) -> None:
        torch = "NCCL via torch.distributed (Vidur profiler)"
        inside, apart, pair = (f"devices/node {count}; median" for count in (2, 1, 8))
        exchange = "nodes=4 tokens/rank=16 hidden=7168 topk=8 experts=256; GPUs/node assumed 8"
        data = write(
            tmp_path,
            f"send_recv,A100-SXM (DGX),2,1000,fp16,7,{torch},{inside},s",
            f"send_recv,A100-SXM (DGX),2,1000,fp16,7,{torch},{apart},s",
            f"all_reduce,A100-SXM (DGX),16,1000,fp16,7,{torch},{pair},s",
            f"moe_dispatch_normal,X1,32,1000,fp8,7,DeepEP normal (v) sms=24,{exchange},s",
            "moe_dispatch_low_latency,X1,8,1000,fp8,7,DeepEP V1 low-latency pure RDMA,"
            '"128 tokens/rank, hidden 7168, top-8",s',
            "all_gather,X1,8,1000,half,7,nccl 2,,s",
            "all_gather,X1,8,1000,half,0,nccl 2,,s",  # not timed
        )
        rows = read_rows(data)
        assert rows["ranks_per_host"].tolist() == [0, 1, 8, 8, 8, 0]
        assert rows["fabric"].tolist()[:3] == ["A100-SXM"] * 3
        assert rows["tokens"].tolist()[3:5] == [16.0, 128.0]
        assert rows["picks"].tolist()[3:5] == [128.0, 1024.0]
        assert rows["time_s"].tolist() == pytest.approx([7e-6] * 6)

    def test_no_data(self, tmp_path: Path) -> None:
        with pytest.raises(InputError, match=r"comms\.csv: no such file"):
            read_rows(tmp_path)


class TestCollectives:
    def test_a_law_is_found_again(self, tmp_path: Path) -> None:
        laws = fit_collectives(
            write(tmp_path, *sweep("nccl 2.1"), *sweep("nccl 2.1", chips=2)), "X1"
        )
        assert set(laws["all_reduce"]["nccl"]) == {2, 8}
        law = laws["all_reduce"]["nccl"][8]
        expected = [min(5e-6 + 1e-11 * size, 20e-6 + 1e-12 * size) for size in SIZES]
        assert law.law.seconds(np.array(SIZES)) == pytest.approx(expected, rel=0.02)
        assert law.fit is not None
        assert law.fit.rows == len(SIZES)
        assert law.message_bytes == 0.0

    def test_eager_kernels_and_other_operations_are_left_out(self, tmp_path: Path) -> None:
        rows = [
            *sweep("vllm 1 custom all-reduce (vLLM_custom_eager)"),
            *sweep("nccl 2", op="other"),
        ]
        assert fit_collectives(write(tmp_path, *rows), "X1") == {}

    def test_hosts_are_a_library_of_their_own(self, tmp_path: Path) -> None:
        torch = "NCCL via torch.distributed (Vidur profiler)"
        rows = sweep(torch, chips=16, notes="devices/node 8; median")
        rows += sweep(torch, chips=8, notes="devices/node 4; median")  # half-filled hosts
        rows += sweep(torch, chips=2, op="send_recv", notes="devices/node 2; median")
        rows += sweep(torch, chips=2, op="send_recv", notes="devices/node 1; median")
        laws = fit_collectives(write(tmp_path, *rows), "X1")
        assert {name: list(by_chips) for name, by_chips in laws["all_reduce"].items()} == {
            "nccl_hosts": [16]
        }
        assert list(laws["send"]) == ["nccl", "nccl_hosts"]

    def test_a_rack_measured_on_four_chips_is_widened(self, tmp_path: Path) -> None:
        """Eight of the sister take twice as long as four, so do eight of the rack; beyond that
        bytes grow as (n - 1) / n and nothing is faster than eight."""
        rows = [row.replace("X1", "GB200") for row in sweep("nccl 2", chips=4)]
        rows += [row.replace("X1", "B200-SXM") for row in sweep("nccl 2", chips=4)]
        doubled = pd.DataFrame([row.split(",") for row in sweep("nccl 2")])
        doubled[5] = (doubled[5].astype(float) * 2).astype(str)
        rows += [",".join(row).replace("X1", "B200-SXM") for row in doubled.to_numpy().tolist()]
        laws = fit_collectives(write(tmp_path, *rows), "GB200")["all_reduce"]["nccl"]
        four, eight, rack = (laws[chips].law.seconds(1e8) for chips in (4, 8, 72))
        assert eight == pytest.approx(2 * four, rel=0.05)
        assert rack / eight == pytest.approx((71 / 72) / (7 / 8), rel=0.05)
        assert all(laws[chips].extrapolated for chips in (8, 16, 32, 64, 72))


def exchanges(folder: Path) -> Path:
    """30 us, 1 ps a byte and 2 ns a pick, which are 2000 bytes of it."""
    rows = []
    for hidden in (2048, 4096, 7168):
        for tokens in (1, 16, 256, 4096, 65536):
            picks = tokens * 8
            time_us = 30 + 1e-6 * picks * hidden + 2e-3 * picks
            note = f"nodes=1 tokens/rank={tokens} hidden={hidden} topk=8 experts=256"
            rows.append(
                f"moe_dispatch_normal,X1,8,{picks * hidden},fp8,{time_us},"
                f"DeepEP normal (v) sms=24,{note},s"
            )
    return write(folder, *rows)


class TestExchanges:
    def test_the_cost_of_a_message_is_found_again(self, tmp_path: Path) -> None:
        law = fit_exchanges(exchanges(tmp_path), "X1")["dispatch"]["deepep_normal"][8]
        assert law.message_bytes == pytest.approx(2000, rel=0.05)
        assert law.fit is not None
        assert law.fit.p90_ape < 0.02

    def test_planning_belongs_to_the_dispatch_of_two_sided_kernels(self, tmp_path: Path) -> None:
        def rows(op: str, library: str, time_us: float) -> list[str]:
            return [
                f"{op},X1,8,{tokens * 100},nvfp4,{time_us},{library},"
                f"tokens/rank={tokens} hidden=100 topk=1 experts=256,s"
                for tokens in range(1, 12)
            ]

        two, one = "trtllm 1 NVLinkTwoSided", "trtllm 1 NVLinkOneSided"
        data = write(
            tmp_path,
            *rows("moe_alltoall_prepare", two, 20.0),
            *rows("moe_alltoall_dispatch", two, 30.0),
            *rows("moe_alltoall_dispatch", one, 40.0),
        )
        laws = fit_exchanges(data, "X1")["dispatch"]
        found = {name: float(laws[name][8].law.seconds(600.0)) for name in laws}
        assert found == pytest.approx(
            {"trtllm_nvlink": 50e-6, "trtllm_nvlink_one_sided": 40e-6}, rel=0.01
        )

    def test_more_hosts_than_were_swept(self, tmp_path: Path) -> None:
        """The law of 64 chips, slower by what 128 chips of another kind need more: 2."""
        note = "nodes=8 tokens/rank=128 hidden=7168 topk=8 experts=256"
        name = "DeepEP low-latency (v)"
        rows = sweep(name, chips=64, op="moe_dispatch_low_latency", notes=note)
        rows += [
            f"moe_dispatch_low_latency,H800,{chips},1000,fp8,{time_us},"
            "DeepEP V1 low-latency pure RDMA,,s"
            for chips, time_us in ((64, 100), (128, 200))
        ]
        laws = fit_exchanges(write(tmp_path, *rows), "X1")["dispatch"]["deepep_low_latency_hosts"]
        assert set(laws) == {64, 128}
        wide, wider = (float(laws[chips].law.seconds(1e6)) for chips in (64, 128))
        assert wider == pytest.approx(2 * wide, rel=1e-3)
        assert laws[128].extrapolated is not None
        assert laws[128].fit is None


class TestHeldOut:
    def test_a_law_forecasts_sizes_it_has_not_seen(self, tmp_path: Path) -> None:
        errors = held_out(exchanges(tmp_path))
        assert errors["operation"].tolist() == ["dispatch"]
        assert errors["held_rows"].tolist() == [3]
        assert errors["median_ape"].iloc[0] < 0.03

    def test_rows_kept_back_are_not_fitted(self, tmp_path: Path) -> None:
        """Noise without a law cannot be forecast, however well it is fitted."""
        noise = np.random.default_rng(1).uniform(10, 1000, len(SIZES))
        rows = [
            f"all_gather,X1,8,{size},half,{time_us},nccl 2,,s"
            for size, time_us in zip(SIZES, noise, strict=True)
        ]
        assert held_out(write(tmp_path, *rows))["median_ape"].iloc[0] > 0.1

    @pytest.mark.shared_data
    @pytest.mark.skipif(
        not (MEASURED / "comms.csv").is_file(),
        reason=f"measured collectives are not part of the project; none at {MEASURED}",
    )
    def test_measured_hosts_within_15_percent(self) -> None:
        errors = held_out(MEASURED, fabrics=["H100-SXM", "B200-SXM"])
        medians = errors.groupby(["fabric", "operation"])["median_ape"].median()
        assert len(medians) == 13  # seven operations, no send on B200
        assert medians.max() < 0.15
