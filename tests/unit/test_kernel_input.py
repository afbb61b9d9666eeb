"""Files of measured kernels with wrong cells: told with their line, and nothing is written."""

from functools import cache
from pathlib import Path

import pytest
from typer.testing import CliRunner

from sim.calibration import kernels, sources
from sim.calibration.collective_rows import read_rows
from sim.calibration.collectives import fit_collectives
from sim.calibration.fit import fit_file
from sim.calibration.kernels import Peaks
from sim.calibration.measured_tables import read_table
from sim.calibration.subjects import read_subjects
from sim.catalog import Catalog, open_catalog
from sim.cli import app
from sim.efficiency import Calibration
from sim.errors import InputError, InternalError

CHIP = "NVIDIA H200"
PEAKS = Peaks({"bf16": 1e15, "fp8": 2e15}, 4e12, 700.0)
GEMM = "hardware,framework,version,kernel_source,gemm_dtype,m,n,k,latency_us"
MOE = (
    "hardware,framework,version,kernel_source,moe_dtype,num_tokens,hidden_size,inter_size,topk,"
    "num_experts,moe_tp_size,moe_ep_size,distribution,latency_us"
)
COMMS = "op,hardware,n_chips,bytes,dtype,time_us,implementation,notes,source"
POWER = "hardware,framework,version,op,dtype,shape,latency_us,power_w,power_limit_w"
SUBJECTS = """
sources: {own: {about: my rows, collected: '2026-01-01'}}
preference: {vllm: [vllm, native]}
subjects:
  h200_sxm: {chip: NVIDIA H200, sources: [own], POWER}
"""


@cache
def catalog() -> Catalog:
    return open_catalog()


def gemm_rows(chip: str = CHIP) -> list[str]:
    """Products bound by memory at 3.2 TB/s, and by arithmetic at 0.8 Pflop/s, after 3 us."""
    rows = []
    for m in (1, 16, 128, 1024, 4096, 16384):
        for n in (4096, 8192):
            work_us = max(2 * m * n * 4096 / 0.8e15, 2 * n * 4096 / 3.2e12) * 1e6
            rows.append(f"{chip},native,2.0,cublas,bfloat16,{m},{n},4096,{3 + work_us:.5g}")
    return rows


def write(folder: Path, name: str, *rows: str) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{row}\n" for row in rows), encoding="utf-8")
    return path


def measured(folder: Path, power: str = "power_lent_by: h200_sxm") -> Path:
    """Make a folder that can be fitted, as `rackcast measure` lays it out."""
    write(folder, "comms.csv", COMMS)
    write(folder, "kernels/measured_gemm.csv", GEMM, *gemm_rows())
    write(folder, "kernels/measured_attention_decode.csv", DECODE)
    (folder / "subjects.yaml").write_text(SUBJECTS.replace("POWER", power), encoding="utf-8")
    return folder


DECODE = (
    "hardware,framework,version,kernel_source,attn_dtype,kv_cache_dtype,batch_size,kv_len,"
    "num_heads,num_key_value_heads,head_dim,window_size,latency_us"
)


def fitted(folder: Path, out: Path, **options: str) -> tuple[Path, Calibration]:
    table = read_subjects(folder / "subjects.yaml")
    return fit_file(folder, "h200_sxm", catalog(), table, out, **options)


def gemm_of(folder: Path) -> None:
    kernels.gemm(folder, CHIP, PEAKS)


def power_of(folder: Path) -> None:
    kernels.power(folder, CHIP, PEAKS)


class TestCells:
    @pytest.mark.parametrize(
        ("column", "cell", "message"),
        [
            ("latency_us", "abc", r":3: latency_us: 'abc' is not a finite number; correct the row"),
            ("latency_us", "-5", r":3: latency_us: '-5' must be greater than 0"),
            ("latency_us", "0", r":3: latency_us: '0' must be greater than 0"),
            ("latency_us", "", r":3: latency_us: the cell is empty; it must be a number"),
            ("latency_us", "inf", r":3: latency_us: 'inf' is not a finite number"),
            ("m", "many", r":3: m: 'many' is not a finite number"),
            ("n", "-4096", r":3: n: '-4096' must be greater than 0"),
            ("gemm_dtype", "", r":3: gemm_dtype: the cell is empty; it must hold a name"),
            ("hardware", "", r":3: hardware: the cell is empty; it must hold a name"),
            ("framework", "vlm", r":3: framework: 'vlm' is no engine .*\(trtllm, vllm, sglang"),
        ],
    )
    def test_a_wrong_cell(self, tmp_path: Path, column: str, cell: str, message: str) -> None:
        rows = [row.split(",") for row in gemm_rows()]
        rows[1][GEMM.split(",").index(column)] = cell
        path = write(tmp_path, "kernels/measured_gemm.csv", GEMM, *map(",".join, rows))
        with pytest.raises(InputError, match=message) as told:
            gemm_of(tmp_path)
        assert str(told.value).startswith(f"{path}:3: ")

    def test_how_many_rows_are_wrong(self, tmp_path: Path) -> None:
        rows = [row.rpartition(",")[0] + ",abc" for row in gemm_rows()]
        write(tmp_path, "kernels/aic_gemm_mine.csv", GEMM, *rows)
        with pytest.raises(InputError, match=r"\(12 such rows\); correct the row or take it out"):
            gemm_of(tmp_path)

    def test_lines_count_with_blank_ones(self, tmp_path: Path) -> None:
        wrong = gemm_rows()[0].rpartition(",")[0] + ",abc"
        write(tmp_path, "kernels/measured_gemm.csv", GEMM, gemm_rows()[0], "", wrong, "")
        with pytest.raises(InputError, match=r"measured_gemm\.csv:4: latency_us: 'abc'"):
            gemm_of(tmp_path)

    def test_zero_where_it_says_something(self, tmp_path: Path) -> None:
        """No window, and as many KV heads as query heads; but no head of no elements."""
        row = f"{CHIP},vllm,1,fa,bfloat16,bfloat16,4,1024,32,0,128,0,20"
        write(tmp_path, "kernels/measured_attention_decode.csv", DECODE, row)
        rows = kernels.decode_attention(tmp_path, CHIP, PEAKS)
        assert rows["kv_heads"].tolist() == [32]
        wrong = row.replace(",0,128,0,", ",0,0,0,")
        write(tmp_path, "kernels/measured_attention_decode.csv", DECODE, wrong)
        with pytest.raises(InputError, match=r":2: head_dim: '0' must be greater than 0"):
            kernels.decode_attention(tmp_path, CHIP, PEAKS)
        write(
            tmp_path,
            "kernels/measured_attention_decode.csv",
            DECODE,
            row.replace(",0,128,0,", ",0,128,-1,"),
        )
        with pytest.raises(InputError, match=r":2: window_size: '-1' must not be negative"):
            kernels.decode_attention(tmp_path, CHIP, PEAKS)


class TestFiles:
    def test_a_missing_column(self, tmp_path: Path) -> None:
        renamed = GEMM.replace("latency_us", "latency_ms")
        write(tmp_path, "kernels/measured_gemm.csv", renamed, *gemm_rows())
        with pytest.raises(
            InputError, match=r"\.csv:1: no column latency_us; did you mean latency_ms.*has hard"
        ):
            gemm_of(tmp_path)

    def test_an_empty_file(self, tmp_path: Path) -> None:
        write(tmp_path, "kernels/measured_gemm.csv")
        with pytest.raises(
            InputError, match=r"gemm\.csv:1: is empty; it needs a header and rows of gemm"
        ):
            gemm_of(tmp_path)

    def test_a_row_that_is_too_long(self, tmp_path: Path) -> None:
        write(tmp_path, "kernels/measured_gemm.csv", GEMM, gemm_rows()[0], gemm_rows()[0] + ",7")
        with pytest.raises(InputError, match=r"gemm\.csv: cannot be read as CSV: .*line 3"):
            gemm_of(tmp_path)

    def test_a_header_alone(self, tmp_path: Path) -> None:
        """`rackcast measure` begins every file; a file of another source is there for its rows."""
        write(tmp_path, "kernels/measured_gemm.csv", GEMM)
        with pytest.raises(kernels.NotMeasuredError, match=r"no rows of gemm on NVIDIA H200"):
            gemm_of(tmp_path)
        write(tmp_path, "kernels/aic_gemm_mine.csv", GEMM)
        with pytest.raises(InputError, match=r"aic_gemm_mine\.csv:1: has a header and no rows"):
            gemm_of(tmp_path)

    def test_names_of_numbers_stay_text(self, tmp_path: Path) -> None:
        path = write(tmp_path, "rows.csv", GEMM, gemm_rows("5090")[0].replace("native", "1.10"))
        frame = read_table(path, "kernels").frame
        assert frame.loc[2, ["hardware", "framework", "version"]].tolist() == [
            "5090",
            "1.10",
            "2.0",
        ]

    @pytest.mark.parametrize(
        ("name", "header", "row", "message"),
        [
            (
                "infersim_gemm.csv",
                "hardware,kind,m,n,k,latency_us",
                f"{CHIP},deepgemm_fp8_gemm,16,4096,2048,abc",
                r"infersim_gemm\.csv:2: latency_us: 'abc'",
            ),
            (
                "deepgemm_h800.csv",
                "kind,hardware,m_per_group,n,k,time_us_derived",
                f"Normal,{CHIP},64,4096,2048,-9",
                r"deepgemm_h800\.csv:2: time_us_derived: '-9' must be greater",
            ),
            (
                "llmservingsim_v1_layers.csv",
                "hardware,model,tp,layer,tokens",
                f"{CHIP},meta-llama/Llama-3.1-8B,1,o_proj,64",
                r"llmservingsim_v1_layers\.csv:1: no column time_us",
            ),
        ],
    )
    def test_other_sources(
        self, tmp_path: Path, name: str, header: str, row: str, message: str
    ) -> None:
        write(tmp_path, f"kernels/{name}", header, row)
        with pytest.raises(InputError, match=message):
            gemm_of(tmp_path)

    def test_heads_that_are_no_sizes(self, tmp_path: Path) -> None:
        header = "hardware,op,shape,kv_dtype,batch_size,seq_len_or_kv_len,latency_us"
        row = f"{CHIP},mha_decode,many,bf16,1,1024,9"
        write(tmp_path, "kernels/infersim_attention.csv", header, row)
        with pytest.raises(InputError, match=r":2: shape: 'many' is no list of sizes such as"):
            list(sources.read(tmp_path / "kernels", "attention_decode", CHIP))

    def test_a_column_that_may_be_empty_is_missing(self, tmp_path: Path) -> None:
        header = "hardware,op,shape,batch_size,seq_len_or_kv_len,latency_us"
        write(tmp_path, "kernels/infersim_attention.csv", header, f"{CHIP},mla_decode,128-64,1,9,9")
        with pytest.raises(InputError, match=r"infersim_attention\.csv:1: no column kv_dtype"):
            list(sources.read(tmp_path / "kernels", "mla_decode", CHIP))

    def test_experts_of_an_unknown_router(self, tmp_path: Path) -> None:
        row = f"{CHIP},vllm,1,x,bfloat16,1,4096,1024,2,8,1,1,DEALT,30"
        path = write(tmp_path, "kernels/measured_moe.csv", MOE, row.replace("DEALT", "balanced"))
        assert len(kernels.grouped_gemm(tmp_path, CHIP, PEAKS)) == 1
        path.write_text("\n".join([MOE, row.replace("DEALT", "power_law_1.0.1")]))
        with pytest.raises(InputError, match=r":2: distribution: 'power_law_1\.0\.1' is neither"):
            kernels.grouped_gemm(tmp_path, CHIP, PEAKS)


class TestCollectives:
    @pytest.mark.parametrize(
        ("column", "cell", "message"),
        [
            ("time_us", "abc", r"comms\.csv:2: time_us: 'abc' is not a finite number"),
            ("time_us", "-5", r"comms\.csv:2: time_us: '-5' must not be negative"),
            ("time_us", "", r"comms\.csv:2: time_us: the cell is empty; it must be a number"),
            ("bytes", "abc", r"comms\.csv:2: bytes: 'abc' is not a finite number"),
            ("bytes", "", r"comms\.csv:2: bytes: the cell is empty; it must be a number"),
            ("n_chips", "1", r"comms\.csv:2: n_chips: '1' must be whole, 2 or more"),
            ("n_chips", "2.5", r"comms\.csv:2: n_chips: '2\.5' must be whole, 2 or more"),
            (
                "implementation",
                "",
                r"comms\.csv:2: implementation: the cell is empty; it must hold a name",
            ),
        ],
    )
    def test_a_wrong_cell(self, tmp_path: Path, column: str, cell: str, message: str) -> None:
        row = f"all_gather,{CHIP},8,1024,half,7,nccl 2,,s".split(",")
        row[COMMS.split(",").index(column)] = cell
        write(tmp_path, "comms.csv", COMMS, ",".join(row))
        with pytest.raises(InputError, match=message):
            read_rows(tmp_path)

    def test_a_missing_column(self, tmp_path: Path) -> None:
        write(tmp_path, "comms.csv", COMMS.replace("time_us", "time_ms"))
        with pytest.raises(InputError, match=r"comms\.csv:1: no column time_us; did you mean"):
            read_rows(tmp_path)

    def test_an_empty_file_and_a_header_alone(self, tmp_path: Path) -> None:
        write(tmp_path, "comms.csv")
        with pytest.raises(InputError, match=r"comms\.csv:1: is empty"):
            read_rows(tmp_path)
        write(tmp_path, "comms.csv", COMMS)
        assert read_rows(tmp_path).empty
        assert fit_collectives(tmp_path, CHIP) == {}

    def test_a_plan_of_an_exchange_has_no_payload(self, tmp_path: Path) -> None:
        note = "tokens/rank=16 hidden=7168 topk=8 experts=256"
        row = f"moe_alltoall_prepare,GB200,4,,fp8,7,trtllm 1 NVLinkTwoSided,{note},s"
        write(tmp_path, "comms.csv", COMMS, row)
        assert read_rows(tmp_path)["bytes"].isna().tolist() == [True]

    def test_a_rack_without_its_sister(self, tmp_path: Path) -> None:
        """Four chips of a rack stay four where nothing shows what eight take."""
        rows = [
            f"all_gather,GB200,4,{2**power},half,{5 + 1e-5 * 2**power},nccl 2,,s"
            for power in range(9, 30)
        ]
        write(tmp_path, "comms.csv", COMMS, *rows)
        assert list(fit_collectives(tmp_path, "GB200")["all_gather"]["nccl"]) == [4]


class TestPower:
    ROW = f"{CHIP},native,2.0,gemm,bfloat16,m=4096 n=4096 k=4096,200,500,700"

    def test_none_was_measured(self, tmp_path: Path) -> None:
        path = write(tmp_path, "kernels/aic_power.csv", POWER)
        with pytest.raises(InputError, match=r"on NVIDIA H200; there is power of no chip\. To tak"):
            power_of(tmp_path)
        path.unlink()
        with pytest.raises(InputError, match=r"aic_power\.csv: no such file.*'power_lent_by: h200"):
            power_of(tmp_path)
        write(tmp_path, "kernels/aic_power.csv", POWER, self.ROW.replace(CHIP, "B200-SXM"))
        with pytest.raises(InputError, match=r"there is power of B200-SXM\."):
            power_of(tmp_path)

    @pytest.mark.parametrize(
        ("old", "new", "message"),
        [
            (",200,", ",abc,", r"power\.csv:2: latency_us: 'abc' is not a finite number"),
            (",500,", ",-1,", r"power\.csv:2: power_w: '-1' must be greater than 0"),
            ("m=4096", "m=0", r"power\.csv:2: shape: 'm=0 .* is no product such as m=16 n="),
        ],
    )
    def test_a_wrong_cell(self, tmp_path: Path, old: str, new: str, message: str) -> None:
        write(tmp_path, "kernels/measured_power.csv", POWER, self.ROW.replace(old, new))
        with pytest.raises(InputError, match=message):
            power_of(tmp_path)

    def test_a_sensor_that_told_nothing(self, tmp_path: Path) -> None:
        untold = self.ROW.replace(",500,", ",,")
        write(tmp_path, "kernels/measured_power.csv", POWER, untold, self.ROW)
        rows = kernels.power(tmp_path, CHIP, PEAKS)
        assert rows["load_fraction"].tolist() == pytest.approx([500 / 700])

    def test_no_product_of_a_known_format(self, tmp_path: Path) -> None:
        folder = measured(tmp_path / "rows", power="power: h200_sxm")
        row = self.ROW.replace("bfloat16", "float32")
        write(folder, "kernels/measured_power.csv", POWER, row)
        with pytest.raises(InputError, match=r"no product on h200_sxm is in a number format"):
            fitted(folder, tmp_path)


class TestNothingMeasured:
    def refused(self, folder: Path, message: str) -> None:
        out = folder / "out"
        with pytest.raises(InputError, match=message):
            fitted(folder, out)
        assert not out.exists()

    def test_a_folder_that_can_be_fitted(self, tmp_path: Path) -> None:
        _, found = fitted(measured(tmp_path), tmp_path / "out")
        assert found.kernels["native"].gemm["bf16"].fit.rows == len(gemm_rows())

    def test_no_files(self, tmp_path: Path) -> None:
        folder = measured(tmp_path)
        for path in (folder / "kernels").iterdir():
            path.unlink()
        self.refused(folder, r"nothing that was measured on 'NVIDIA H200' .*; there are no rows")

    def test_another_chip(self, tmp_path: Path) -> None:
        folder = measured(tmp_path)
        write(folder, "kernels/measured_gemm.csv", GEMM, *gemm_rows("NVIDIA H200 NVL"))
        message = r"on 'NVIDIA H200' was found; there are rows of 'NVIDIA H200 NVL'; did you mean"
        self.refused(folder, message)

    def test_collectives_alone(self, tmp_path: Path) -> None:
        folder = measured(tmp_path)
        write(folder, "kernels/measured_gemm.csv", GEMM)
        write(folder, "comms.csv", COMMS, f"all_gather,{CHIP},8,1024,half,7,nccl 2,,s")
        self.refused(folder, r"comms\.csv has 1 rows of it, which alone are no calibration")

    def test_too_few_rows(self, tmp_path: Path) -> None:
        folder = measured(tmp_path)
        write(folder, "kernels/measured_gemm.csv", GEMM, *gemm_rows()[:3])
        message = r"gives no law: gemm native bf16: only 3 rows; a law needs 10 rows of an engine"
        self.refused(folder, message)

    def test_a_format_that_is_not_fitted(self, tmp_path: Path) -> None:
        folder = measured(tmp_path)
        rows = [row.replace("bfloat16", "float32") for row in gemm_rows()]
        write(folder, "kernels/measured_gemm.csv", GEMM, *rows)
        self.refused(folder, r"gives no law: none of it is in a number format that is fitted; a l")

    def test_no_folder(self, tmp_path: Path) -> None:
        folder = measured(tmp_path / "rows")
        table = read_subjects(folder / "subjects.yaml")
        with pytest.raises(InputError, match=r"nowhere: no such folder; it has comms\.csv"):
            fit_file(tmp_path / "nowhere", "h200_sxm", catalog(), table, tmp_path / "out")

    def test_the_command_line(self, tmp_path: Path) -> None:
        folder, out = measured(tmp_path / "rows"), tmp_path / "out"
        write(folder, "kernels/measured_gemm.csv", GEMM)
        command = ["calibrate", "--kernels", str(folder), "--accelerator", "h200_sxm"]
        result = CliRunner().invoke(app, [*command, "--out", str(out)])
        assert isinstance(result.exception, InputError)
        assert not out.exists()


class TestWritten:
    @pytest.mark.parametrize(
        ("options", "line"),
        [
            (
                {},
                "# Made by: python -m sim.calibration.fit DATA_DIR --accelerator h200_sxm "
                "--out hardware/calibrations",
            ),
            (
                {"command": "rackcast calibrate --kernels ROWS --accelerator {accelerator}"},
                "# Made by: rackcast calibrate --kernels ROWS --accelerator h200_sxm",
            ),
        ],
    )
    def test_the_header_says_what_made_it(
        self, tmp_path: Path, options: dict[str, str], line: str
    ) -> None:
        path, _ = fitted(measured(tmp_path), tmp_path / "out", **options)
        assert line in path.read_text(encoding="utf-8").splitlines()

    def test_nothing_that_a_catalogue_cannot_read(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def broken(_found: Calibration, _command: str) -> str:
            return "date: today\n"

        monkeypatch.setattr("sim.calibration.fit.to_yaml", broken)
        with pytest.raises(InternalError, match=r"h200_sxm\.yaml:1: .*\(not written\)"):
            fitted(measured(tmp_path), tmp_path / "out")
        assert not (tmp_path / "out").exists()
