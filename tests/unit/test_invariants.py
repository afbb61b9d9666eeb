"""The page of invariants names tests that exist."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOLDERS = {"P": "property", "T": "theory", "U": "unit"}
NAMED = re.findall(
    r"`([PTU])/(\w+\.py)::(\w+)`", (ROOT / "docs" / "invariants.md").read_text(encoding="utf-8")
)


@pytest.mark.parametrize(("folder", "file", "test"), NAMED)
def test_an_invariant_names_its_test(folder: str, file: str, test: str) -> None:
    source = (ROOT / "tests" / FOLDERS[folder] / file).read_text(encoding="utf-8")
    assert re.search(rf"^ *def {test}\(", source, re.MULTILINE)


def test_every_row_names_a_test() -> None:
    lines = (ROOT / "docs" / "invariants.md").read_text(encoding="utf-8").splitlines()
    rows = [line for line in lines if line.startswith("| ") and not line.startswith("| invariant")]
    assert len(rows) == len(NAMED) > 20
