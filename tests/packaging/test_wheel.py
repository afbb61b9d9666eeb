"""The wheel carries the code and the catalogue, nothing else, and works far from a checkout."""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
CARRIED = ("sim", "hardware", "workloads", "scenarios")
ELSEWHERE = Path(ROOT.anchor)

SMALL_SCENARIO = """
name: small
question: Does an installed Rackcast run?
system: h100_sxm_x8
model: llama_3_1_70b
parallelism: {tp: 8}
precision: {weights: fp8, kv_cache: fp8}
workload:
  kind: closed_loop
  lengths: {kind: fixed, input_tokens: 100, output_tokens: 10}
  requests: 8
  concurrency: 2
slo: {ttft_s: 1 s, tpot_s: 100 ms}
prices: {book: us_2026_11}
measure: {warmup_fraction: 0}
"""

RESULTS = (
    "summary.json",
    "summary.csv",
    "requests.parquet",
    "timeline.csv",
    "bill.csv",
    "manifest.json",
    "report.html",
)


def build(checkout: Path, folder: Path) -> Path:
    """Build the wheel of a checkout with the tools of this environment."""
    options = ["--wheel", "--no-isolation", "--outdir", folder, checkout]
    run([sys.executable, "-m", "build", *options], cwd=checkout)
    (wheel,) = folder.glob("*.whl")
    return wheel


def run(command: list[str | Path], cwd: Path = ELSEWHERE) -> str:
    """Run a command that must succeed and return what it wrote to stdout."""
    clean = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("PYTHON", "RACKCAST"))
    }
    result = subprocess.run(
        command, cwd=cwd, env=clean, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, f"{command}\n{result.stdout}\n{result.stderr}"
    return result.stdout


def files_in(wheel: Path) -> set[str]:
    """Return the files of a wheel, but for its metadata, by their place in the checkout."""
    names = zipfile.ZipFile(wheel).namelist()
    return {name.removeprefix("sim/_data/") for name in names if ".dist-info/" not in name}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the wheel of this checkout."""
    return build(ROOT, tmp_path_factory.mktemp("wheel"))


@dataclass(frozen=True)
class Installation:
    """An environment with the wheel in it."""

    folder: Path

    @property
    def python(self) -> Path:
        return self.folder / "bin" / "python"

    def rackcast(self, *arguments: str | Path) -> str:
        """Run the installed command from the root of the file system."""
        return run([self.folder / "bin" / "rackcast", *arguments])


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Installation:
    """Install the wheel into an environment of its own that borrows our dependencies.

    The borrowed folder joins the path by a ``.pth`` file, and Python does not read the ``.pth``
    files inside of a folder that joins so: the hook of the checkout's editable install stays out.
    """
    here = Installation(tmp_path_factory.mktemp("installed"))
    run([sys.executable, "-m", "venv", "--without-pip", here.folder])
    pip = [sys.executable, "-m", "pip", "--python", here.python]
    run([*pip, "install", "--quiet", "--no-deps", "--no-index", wheel])
    borrowed = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
    site = run([here.python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"])
    pth = Path(site.strip()) / "borrowed_dependencies.pth"
    pth.write_text("\n".join(sorted(borrowed)), encoding="utf-8")
    return here


# --- What is inside.


def test_wheel_is_the_tracked_files(wheel: Path):
    """Every file that git knows or would add, and no file that it ignores."""
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout: nothing to compare the wheel with")
    listing = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", *CARRIED]
    known = {name for name in run([*listing], cwd=ROOT).split("\0") if (ROOT / name).is_file()}
    assert files_in(wheel) == known


def test_catalogue_lies_inside_the_package(wheel: Path):
    """Nobody gets packages named hardware or workloads."""
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.split("/")[0] for name in names if ".dist-info/" not in name}
    assert tops == {"sim"}
    assert "sim/_data/hardware/accelerators/h100_sxm.yaml" in names
    assert "sim/py.typed" in names


def test_ignored_files_stay_out(tmp_path: Path):
    """Leftovers that git ignores do not ship, even beside files that do."""
    checkout = tmp_path / "checkout"
    kept = ("pyproject.toml", "README.md", "LICENSE", ".gitignore")
    for name in kept:
        (checkout / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, checkout / name)
    for name in CARRIED:
        shutil.copytree(ROOT / name, checkout / name)
    leftovers = ("scenarios/out/summary.json", "hardware/.DS_Store", "sim/cost/work.pyc")
    for name in leftovers:
        (checkout / name).parent.mkdir(exist_ok=True)
        (checkout / name).touch()
    shipped = files_in(build(checkout, tmp_path / "dist"))
    assert "sim/cost/work.py" in shipped
    assert not shipped & set(leftovers)


# --- What it does.


def test_checkout_is_out_of_sight(installed: Installation):
    place = run([installed.python, "-c", "import sim; print(sim.__file__)"])
    assert Path(place.strip()).is_relative_to(installed.folder)
    path = run([installed.python, "-c", "import sys; print(*sys.path, sep='\\n')"])
    assert str(ROOT) not in path.splitlines()


def test_catalogue_is_found(installed: Installation):
    assert "llama_3_1_70b" in installed.rackcast("list", "models")
    assert "h100_sxm_x8" in installed.rackcast("list", "systems")


def test_shipped_files_are_valid(installed: Installation):
    installed.rackcast("check")


def test_scenario_runs(installed: Installation, tmp_path: Path):
    scenario = tmp_path / "small.yaml"
    scenario.write_text(SMALL_SCENARIO, encoding="utf-8")
    installed.rackcast("run", scenario, "--out", tmp_path / "out")
    missing = [name for name in RESULTS if not (tmp_path / "out" / name).stat().st_size]
    assert not missing
    row = rows_of(tmp_path / "out" / "summary.json")
    assert (row["case"], row["completed_requests"], row["failed_requests"]) == ("small", 8, 0)


def rows_of(summary: Path) -> Mapping[str, object]:
    """Return the only row of a summary."""
    (row,) = json.loads(summary.read_text(encoding="utf-8"))["rows"]
    return row
