"""The page in a real browser: it fits a phone, complains about nothing and asks for nothing.

The page is put into a frame of a given width, in a harness that measures it when it has loaded and
writes what it found into its own text. The harness is tried on broken pages first.
"""

import html
import importlib.util
import json
import re
import shutil
import subprocess
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from sim.report.writer import write_run

CHROMIUM = next(
    (
        found
        for name in ("chromium", "chromium-browser", "google-chrome", "chrome")
        if (found := shutil.which(name))
    ),
    None,
)
pytestmark = pytest.mark.skipif(
    CHROMIUM is None, reason="no chromium or chrome found on the PATH to open the page with"
)

HARNESS = """<!DOCTYPE html><meta charset="utf-8"><body style="margin:0">
<iframe width="{width}" height="900" style="border:0" srcdoc="{page}"></iframe>
<pre></pre><script>
const frame = document.querySelector("iframe");
frame.addEventListener("load", () => setTimeout(() => {{
  const root = frame.contentDocument.documentElement;
  const boxes = [...root.querySelectorAll("h1, p, .card, figure, footer")];
  document.querySelector("pre").textContent = JSON.stringify({{
    inner_width: frame.contentWindow.innerWidth,
    scroll_width: root.scrollWidth,
    right: Math.max(...boxes.map(box => box.getBoundingClientRect().right)),
    resources: frame.contentWindow.performance.getEntriesByType("resource").map(r => r.name),
    drawings: [...root.querySelectorAll("svg")].map(svg => svg.getBoundingClientRect().width),
    background: frame.contentWindow.getComputedStyle(frame.contentDocument.body).backgroundColor,
    ink: frame.contentWindow.getComputedStyle(frame.contentDocument.body).color,
  }});
}}, 200));
</script>"""


def fixtures() -> ModuleType:
    """The made-up runs of the unit tests."""
    path = Path(__file__).parents[1] / "unit" / "report_fixtures.py"
    spec = importlib.util.spec_from_file_location("report_fixtures", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def opened(page: str, folder: Path, width: int, *flags: str) -> tuple[dict[str, Any], list[str]]:
    """Measures of a page in a frame, and what the console of the browser said."""
    assert CHROMIUM is not None
    harness = folder / "harness.html"
    harness.write_text(
        HARNESS.format(width=width, page=html.escape(page, quote=True)), encoding="utf-8"
    )
    done = subprocess.run(
        [
            CHROMIUM,
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-quic",
            "--disable-dev-shm-usage",
            "--no-first-run",
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-sync",
            "--host-resolver-rules=MAP * ~NOTFOUND",
            f"--user-data-dir={folder / 'profile'}",
            "--enable-logging=stderr",
            "--virtual-time-budget=20000",
            *flags,
            "--dump-dom",
            harness.as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    measured = re.search(r"<pre>(\{.*?\})</pre>", done.stdout, re.DOTALL)
    assert measured, "the page did not load in the harness"
    console = [line for line in done.stderr.splitlines() if ":CONSOLE" in line]
    return json.loads(html.unescape(measured.group(1))), console


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    runs = fixtures()
    folder = tmp_path_factory.mktemp("runs")
    tables = {
        "four": runs.four_cases(),
        "nothing": runs.nothing_completed(),
        "eight": runs.eight_cases(long_names=True),
        "hostile": runs.hostile(),
    }
    return {
        name: write_run(run, folder / name).read_text(encoding="utf-8")
        for name, run in tables.items()
    }


def test_the_harness_sees_a_page_that_is_too_wide(tmp_path: Path) -> None:
    measures, _ = opened('<h1 style="width:900px">wide</h1>', tmp_path, 390)
    assert measures["scroll_width"] >= 900


def test_the_harness_sees_requests_and_errors(tmp_path: Path) -> None:
    broken = '<p>x</p><img src="http://example.com/x.png"><script>missing()</script>'
    measures, console = opened(broken, tmp_path, 390)
    assert measures["resources"] == ["http://example.com/x.png"]
    assert any("missing is not defined" in line for line in console)


def test_the_policy_of_the_page_stops_what_slips_in(pages: dict[str, str], tmp_path: Path) -> None:
    slipped = '<img src="http://example.com/x.png"><script>document.title = "x"</script>'
    _, console = opened(pages["four"].replace("<main>", f"<main>{slipped}"), tmp_path, 390)
    assert sum("Content Security Policy" in line for line in console) >= 2


@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("run", ["four", "nothing", "eight", "hostile"])
def test_the_page_fits_and_is_quiet(
    run: str, width: int, pages: dict[str, str], tmp_path: Path
) -> None:
    measures, console = opened(pages[run], tmp_path, width)
    assert console == []
    assert measures["resources"] == []
    assert measures["scroll_width"] <= measures["inner_width"]
    assert measures["right"] <= measures["inner_width"]
    assert len(measures["drawings"]) == 6
    # Never so small that the type of a chart (10 points of 720) cannot be read.
    assert min(measures["drawings"]) >= 640


def test_the_page_follows_the_theme_of_the_reader(pages: dict[str, str], tmp_path: Path) -> None:
    light, _ = opened(pages["four"], tmp_path, 390, "--blink-settings=preferredColorScheme=1")
    dark, _ = opened(pages["four"], tmp_path, 390, "--blink-settings=preferredColorScheme=0")
    assert (light["background"], light["ink"]) == ("rgb(245, 246, 248)", "rgb(27, 32, 39)")
    assert (dark["background"], dark["ink"]) == ("rgb(12, 15, 19)", "rgb(233, 236, 239)")
