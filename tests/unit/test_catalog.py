"""The catalogue: what we ship is sound, and users can add to it and replace parts of it."""

import pickle
import re
from pathlib import Path

import pytest

import sim.catalog
from sim.catalog import KINDS, Catalog, _check_calibration, open_catalog
from sim.efficiency import Calibration
from sim.errors import InputError, InternalError

ROOT = Path(sim.catalog.__file__).parents[1]
CATALOG = open_catalog()


@pytest.fixture(autouse=True)
def _no_folders_of_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RACKCAST_CATALOG", raising=False)


def copy(source: str, target: Path, *changes: tuple[str, str]) -> Path:
    """Write a changed copy of a shipped file; each change must change something."""
    text = (ROOT / source).read_text(encoding="utf-8")
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(text, encoding="utf-8")
    return target


# --- What we ship.


def test_every_shipped_file_is_valid() -> None:
    open_catalog().validate_all()


def test_every_shipped_data_file_is_in_the_catalogue() -> None:
    """A folder that no kind covers would be data that nobody reads."""
    shipped = {
        path
        for folder in ("hardware", "workloads", "scenarios")
        for path in (ROOT / folder).rglob("*")
        if path.is_file() and path.suffix != ".md"
    }
    covered = {CATALOG.path(kind, name) for kind in KINDS for name in CATALOG.names(kind)}
    assert shipped == covered


# What a capacity planner expects to find, by the name of the market.
WANTED_ACCELERATORS = [
    "a100_sxm",
    "h100_sxm",
    "h100_pcie",
    "h800_sxm",
    "h200_sxm",
    "gh200",
    "b200_sxm",
    "b300_sxm",
    "gb200",
    "gb300",
    "vera_rubin",
    "l40s",
    "mi300x",
    "mi325x",
    "mi350x",
    "mi355x",
    "tpu_v4",
    "tpu_v5e",
    "tpu_v5p",
    "tpu_v6e",
    "tpu_v7",
    "trainium1",
    "trainium2",
    "trainium3",
    "inferentia2",
    "wse2",
    "wse3",
    "groq_lpu",
    "asic_3nm_fp8",
    "mi250",
    "gaudi2",
    "gaudi3",
    "intel_max_1550",
    "arc_pro_b60",
    "rtx_pro_6000",
    "rtx_4090",
    "sn40l",
    "jetson_thor",
]
WANTED_SYSTEMS = [
    "gb200_nvl72",
    "gb300_nvl72",
    "vera_rubin_nvl72",
    "vera_rubin_nvl144",
    "trn2_ultraserver",
    "tpu_v5p_64",
    "cs3_x1",
]


def test_the_market_is_in_the_catalogue() -> None:
    assert set(WANTED_ACCELERATORS) <= set(CATALOG.names("accelerators"))
    assert set(WANTED_SYSTEMS) <= set(CATALOG.names("systems"))


def test_every_accelerator_can_be_had_in_some_system() -> None:
    sold = {CATALOG.system(name).accelerator for name in CATALOG.names("systems")}
    assert sold == set(CATALOG.names("accelerators"))


@pytest.mark.parametrize("system_id", CATALOG.names("systems"))
def test_power_of_a_system_is_consistent(system_id: str) -> None:
    system = CATALOG.system(system_id)
    power = CATALOG.accelerator(system.accelerator).power
    assert 0 < power.idle_w.value < power.tdp_w.value
    full_w = system.chips * power.tdp_w.value + system.host_power_w.value
    assert system.host_power_w.value > 0
    assert full_w <= system.provisioned_power_w.value


@pytest.mark.parametrize("accelerator_id", CATALOG.names("accelerators"))
def test_peaks_grow_as_formats_shrink(accelerator_id: str) -> None:
    peaks = {
        dtype: figure.value
        for dtype, figure in CATALOG.accelerator(accelerator_id).peak_flop_per_s.items()
    }
    widest_first = ("fp32", "bf16", "fp8", "nvfp4")
    known = [peaks[dtype] for dtype in widest_first if dtype in peaks]
    assert known == sorted(known)
    if "fp16" in peaks and "bf16" in peaks:
        assert peaks["fp16"] == peaks["bf16"]


@pytest.mark.parametrize("accelerator_id", ["h100_sxm", "h200_sxm", "b200_sxm", "gb300"])
def test_tensor_cores_do_twice_the_arithmetic_on_half_the_bits(accelerator_id: str) -> None:
    peaks = {
        dtype: figure.value
        for dtype, figure in CATALOG.accelerator(accelerator_id).peak_flop_per_s.items()
    }
    assert peaks["fp8"] / peaks["bf16"] == pytest.approx(2, rel=0.001)  # datasheets round down
    if "nvfp4" in peaks:
        assert peaks["nvfp4"] >= 2 * peaks["fp8"]
        assert peaks["mxfp4"] == peaks["nvfp4"]


@pytest.mark.parametrize(
    ("accelerator_id", "nvidia_smi_mib"),
    # Memory totals printed by nvidia-smi, each seen on several machines.
    [("h100_sxm", 81_559), ("h200_sxm", 143_771), ("b200_sxm", 183_359), ("gb300", 284_208)],
)
def test_capacity_is_what_a_program_can_allocate(accelerator_id: str, nvidia_smi_mib: int) -> None:
    """The driver keeps between a half and one per cent of what nvidia-smi reports."""
    capacity = CATALOG.accelerator(accelerator_id).local_memory.capacity_bytes.value
    assert 0.99 * nvidia_smi_mib * 2**20 < capacity < nvidia_smi_mib * 2**20


@pytest.mark.parametrize("kind", ["accelerators", "systems", "prices", "models"])
def test_every_figure_names_a_source(kind: str) -> None:
    def sources(data: object) -> list[str]:
        if isinstance(data, dict):
            own = [data["source"]] if "source" in data else []
            return own + [text for value in data.values() for text in sources(value)]
        return []

    for name in CATALOG.names(kind):  # type: ignore[arg-type]
        found = sources(CATALOG.located(kind, name).data)  # type: ignore[arg-type]
        assert found, name
        for text in found:
            assert len(text) > 15, (name, text)


# --- Finding entries.


def test_an_entry_is_read_once() -> None:
    assert CATALOG.model("llama_3_1_8b") is CATALOG.model("llama_3_1_8b")


def test_an_unknown_id_suggests_the_nearest_and_says_how_to_list_all() -> None:
    with pytest.raises(InputError) as caught:
        CATALOG.system("h100_smx_x8")
    message = str(caught.value)
    assert "unknown system 'h100_smx_x8'" in message
    assert "did you mean h100_sxm_x8, " in message
    assert f"'rackcast list systems' shows all {len(CATALOG.names('systems'))}" in message
    assert "gb300_nvl72" not in message
    with pytest.raises(InputError, match="There are: llama3_h100, research_a100, vllm_cloud"):
        CATALOG.reliability("mine")


def test_unknown_ids_of_every_kind_are_input_errors() -> None:
    for kind in KINDS:
        with pytest.raises(InputError, match="unknown"):
            CATALOG.path(kind, "no_such_thing")


def test_a_chip_without_calibration_has_none(tmp_path: Path) -> None:
    copy("hardware/accelerators/h100_sxm.yaml", tmp_path / "hardware/accelerators/h150.yaml")
    assert open_catalog([tmp_path]).calibration("h150") is None


def test_calibration_of_an_unknown_chip_is_an_error() -> None:
    with pytest.raises(InputError, match="unknown accelerator 'h150'"):
        CATALOG.calibration("h150")


def test_a_catalogue_travels_between_processes() -> None:
    here = open_catalog()
    chip = here.accelerator("h100_sxm")
    there: Catalog = pickle.loads(pickle.dumps(here))  # noqa: S301 - our own bytes
    assert there == here
    assert there.accelerator("h100_sxm") == chip


# --- Folders of the user.


def test_a_user_folder_adds_and_replaces(tmp_path: Path) -> None:
    folder = tmp_path / "hardware" / "accelerators"
    copy("hardware/accelerators/h100_sxm.yaml", folder / "h150.yaml", ("3.35 TB/s", "3.5 TB/s"))
    copy("hardware/accelerators/h200_sxm.yaml", folder / "h200_sxm.yaml", ("4.8 TB/s", "5 TB/s"))
    catalog = open_catalog([tmp_path])
    assert catalog.accelerator("h150").local_memory.bandwidth_bytes_per_s.value == 3.5e12
    assert catalog.accelerator("h200_sxm").local_memory.bandwidth_bytes_per_s.value == 5e12
    assert catalog.accelerator("h100_sxm").local_memory.bandwidth_bytes_per_s.value == 3.35e12
    assert set(catalog.names("accelerators")) == set(CATALOG.names("accelerators")) | {"h150"}


def test_later_folders_win_and_the_option_beats_the_variable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, name = "hardware/accelerators/h100_sxm.yaml", "hardware/accelerators/h100_sxm.yaml"
    folders = [tmp_path / str(number) for number in range(4)]
    for number, folder in enumerate(folders):
        copy(source, folder / name, ("700 W", f"{number + 1} W"))
    monkeypatch.setenv("RACKCAST_CATALOG", f"{folders[0]}:{folders[1]}")
    assert open_catalog().accelerator("h100_sxm").power.tdp_w.value == 2
    assert open_catalog(folders[2:]).accelerator("h100_sxm").power.tdp_w.value == 4
    assert open_catalog(folders[3:1:-1]).accelerator("h100_sxm").power.tdp_w.value == 3


def test_a_missing_user_folder_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    missing = tmp_path / "missing"
    with pytest.raises(InputError, match=f"--catalog: .*{re.escape(str(missing))}"):
        open_catalog([missing])
    monkeypatch.setenv("RACKCAST_CATALOG", str(missing))
    with pytest.raises(InputError, match="RACKCAST_CATALOG"):
        open_catalog()


def test_scenarios_in_subfolders_keep_the_folder_in_their_id(tmp_path: Path) -> None:
    path = tmp_path / "scenarios" / "mine" / "chat.yaml"
    path.parent.mkdir(parents=True)
    path.write_text("name: chat\n", encoding="utf-8")
    catalog = open_catalog([tmp_path])
    assert catalog.path("scenarios", "mine/chat") == path
    assert catalog.located("scenarios", "mine/chat").data == {"name": "chat"}


def test_the_catalogue_is_found_inside_the_wheel(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "site-packages" / "sim"
    inside = copy(
        "hardware/accelerators/h100_sxm.yaml",
        package / "_data" / "hardware" / "accelerators" / "h100_sxm.yaml",
    )
    monkeypatch.setattr(sim.catalog, "__file__", str(package / "catalog.py"))
    assert open_catalog().path("accelerators", "h100_sxm") == inside


def test_an_installation_without_data_is_our_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sim.catalog, "__file__", str(tmp_path / "sim" / "catalog.py"))
    with pytest.raises(InternalError, match="missing"):
        open_catalog()


# --- Validation finds what does not fit together.


def problems(folder: Path) -> list[str]:
    with pytest.raises(InputError) as caught:
        open_catalog([folder]).validate_all()
    return str(caught.value).splitlines()


def test_all_problems_of_all_files_at_once(tmp_path: Path) -> None:
    copy(
        "hardware/accelerators/h100_sxm.yaml",
        tmp_path / "hardware/accelerators/x.yaml",
        ("family:", "famly:"),
    )
    copy(
        "workloads/models/llama_3_1_8b.yaml",
        tmp_path / "workloads/models/y.yaml",
        ("layers: 32", "layers: many"),
    )
    found = problems(tmp_path)
    assert any("accelerators/x.yaml" in line and "famly" in line for line in found)
    assert any("models/y.yaml" in line and "layers" in line for line in found)


def test_a_system_needs_its_accelerator_and_whole_domains(tmp_path: Path) -> None:
    copy(
        "hardware/systems/h100_sxm_x8.yaml",
        tmp_path / "hardware/systems/mine.yaml",
        ("accelerator: h100_sxm", "accelerator: h100_smx"),
        ("domain_chips: 8", "domain_chips: 3"),
    )
    unknown, domains = problems(tmp_path)
    assert "mine.yaml: unknown accelerator 'h100_smx'; did you mean h100_sxm, " in unknown
    assert "no whole number of domains" in domains


def test_a_price_book_names_what_exists(tmp_path: Path) -> None:
    copy(
        "hardware/prices/us_2026_11.yaml",
        tmp_path / "hardware/prices/mine.yaml",
        ("  h200_sxm:\n", "  h201_sxm:\n"),
        ("  b200_sxm_x8:\n", "  b200_sxm_x9:\n"),
    )
    found = problems(tmp_path)
    assert len(found) == 2
    assert "unknown accelerator 'h201_sxm'" in found[0]
    assert "unknown system 'b200_sxm_x9'" in found[1]


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({}, None),
        ({"accelerator": "h200_sxm"}, "accelerator is 'h200_sxm' but the file is called h100_sxm"),
        ({"peak_flop_per_s": {"bf16": 1e15}}, "fitted against 1000000000000000.0 bf16 flop/s"),
        ({"peak_flop_per_s": {"nvfp4": 1e15}}, "but the accelerator has None"),
        (
            {"bandwidth_bytes_per_s": 3e12},
            "fitted against 3000000000000.0 bytes/s, not 3350000000000.0",
        ),
    ],
)
def test_a_calibration_counts_from_the_peaks_of_its_chip(
    changes: dict[str, object], problem: str | None
) -> None:
    fields = {
        "accelerator": "h100_sxm",
        "peak_flop_per_s": {"bf16": 989e12},
        "bandwidth_bytes_per_s": 3.35e12,
    }
    calibration = Calibration.model_construct(**(fields | changes))  # type: ignore[arg-type]
    found = list(_check_calibration(CATALOG, "h100_sxm", calibration))
    assert len(found) == (problem is not None)
    assert problem is None or problem in found[0]
