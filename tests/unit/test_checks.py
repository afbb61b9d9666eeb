"""Files by their kind, and everything that is wrong with a scenario at once."""

from pathlib import Path

import pytest
from small_scenarios import CLOSED_LOOP, FOUR_CASES, ONE_CASE, write

from sim.catalog import KINDS, Catalog, Kind, open_catalog
from sim.checks import MODELS, check_catalog, check_file, resolve, schema_of
from sim.economics import Purchase, Rental
from sim.errors import InfeasibleError, InputError
from sim.scenario import Scenario, load_scenario

CATALOG = open_catalog()
WORDS: dict[Kind, str] = {
    "accelerators": "accelerator",
    "systems": "system",
    "calibrations": "calibration",
    "priors": "prior",
    "overheads": "overhead",
    "residuals": "residuals",
    "engines": "engine",
    "prices": "prices",
    "models": "model",
    "lengths": "lengths",
    "sessions": "sessions",
    "speculation": "speculation",
    "strategies": "strategy",
    "quality": "quality",
    "reliability": "reliability",
    "measured": "measured",
    "scenarios": "scenario",
}
FILES = [(kind, entry) for kind in KINDS for entry in CATALOG.names(kind)]


class TestKinds:
    @pytest.mark.parametrize(("kind", "entry"), FILES, ids=str)
    def test_by_the_folder(self, kind: Kind, entry: str) -> None:
        assert check_file(CATALOG.path(kind, entry), CATALOG) == WORDS[kind]

    @pytest.mark.parametrize("kind", KINDS)
    def test_by_what_is_in_it(self, kind: Kind, tmp_path: Path) -> None:
        """A copy on somebody's desk, far from the folders of a catalogue."""
        entry = CATALOG.names(kind)[0]
        text = CATALOG.path(kind, entry).read_text(encoding="utf-8")
        assert check_file(write(tmp_path, text), CATALOG) == WORDS[kind]

    def test_something_else(self, tmp_path: Path) -> None:
        with pytest.raises(
            InputError, match=r"small\.yaml: not a file of a known kind \(scenario,"
        ):
            check_file(write(tmp_path, "recipe: apple pie\n"), CATALOG)

    def test_a_mistake_has_its_line(self, tmp_path: Path) -> None:
        text = CATALOG.path("models", "llama_3_1_8b").read_text(encoding="utf-8")
        path = write(tmp_path, text + "colour: red\n")
        line = len(text.splitlines()) + 1
        with pytest.raises(InputError, match=rf"small\.yaml:{line}: colour: unknown key"):
            check_file(path, CATALOG)


class TestResolve:
    def scenario(self, folder: Path, *settings: tuple[str, str], text: str = ONE_CASE) -> Scenario:
        return load_scenario(write(folder, text), settings)

    def test_cases_come_in_order_with_their_terms(self, tmp_path: Path) -> None:
        settings = [("cases.1.prices", "{book: us_2026_11, mode: rent}")]
        found = resolve(self.scenario(tmp_path, *settings, text=FOUR_CASES), CATALOG)
        assert [case.service.pools[0].accelerator.name for case in found] == [
            CATALOG.accelerator(f"{chip}_sxm").name for chip in ("h100", "h200", "b200", "h100")
        ]
        kinds = [type(terms) for case in found for terms in case.terms]
        assert kinds == [Purchase, Rental, Purchase, Purchase]

    def test_a_shared_mistake_is_said_once(self, tmp_path: Path) -> None:
        with pytest.raises(InputError) as caught:
            resolve(self.scenario(tmp_path, ("model", "lama"), text=FOUR_CASES), CATALOG)
        assert len(str(caught.value).splitlines()) == 1

    def test_a_wrong_name_outranks_what_does_not_fit(self, tmp_path: Path) -> None:
        does_not_fit = ("cases.0.parallelism.tp", "16")
        with pytest.raises(InfeasibleError, match="case 'H100': 1 replica of 16 chips"):
            resolve(self.scenario(tmp_path, does_not_fit, text=FOUR_CASES), CATALOG)
        with pytest.raises(InputError) as caught:
            wrong = ("cases.3.system", "nowhere")
            resolve(self.scenario(tmp_path, does_not_fit, wrong, text=FOUR_CASES), CATALOG)
        first, second = str(caught.value).splitlines()
        assert first.startswith("--set cases.0.parallelism.tp: case 'H100': 1 replica of 16 chips")
        assert second.startswith("--set cases.3.system: case 'H100, two halves': unknown system")

    @pytest.mark.parametrize("workload", ["open", "closed"])
    def test_the_traffic_is_looked_up(self, tmp_path: Path, workload: str) -> None:
        own = {"open": "- name: a\n", "closed": "- name: a\n" + CLOSED_LOOP}[workload]
        settings = [("workload.lengths", "null"), ("workload.traffic", "azure_2023_conversation")]
        if workload == "closed":
            settings.append(("cases.0.workload.traffic", "azure_2023_conversation"))
        text = ONE_CASE + "cases:\n  " + own
        assert resolve(self.scenario(tmp_path, *settings, text=text), CATALOG)
        settings.append(("cases.0.workload.traffic", "azure_2033_conversation"))
        with pytest.raises(InputError, match="did you mean azure_2023_conversation"):
            resolve(self.scenario(tmp_path, *settings, text=text), CATALOG)


class TestCatalogue:
    def test_ours_is_sound(self) -> None:
        assert check_catalog(CATALOG) == len(FILES)

    def test_all_problems_of_all_files(self, tmp_path: Path) -> None:
        def own(kind: Kind, text: str, *changes: tuple[str, str]) -> Path:
            return write(tmp_path, text, *changes, name=f"{kind}.yaml")

        model = CATALOG.path("models", "llama_3_1_8b").read_text(encoding="utf-8")
        lengths = CATALOG.path("lengths", "azure_2023_conversation").read_text(encoding="utf-8")
        added = {
            "models": own("models", model, ("\nlayers:", "\nlayer:")),
            "lengths": own("lengths", lengths, ("\nlicence:", "\nlicense:")),
            "scenarios": own("scenarios", ONE_CASE, ("tp: 8", "tp: 16")),
        }
        files = {kind: dict(entries) for kind, entries in CATALOG.files.items()}
        for kind, path in added.items():
            files[kind]["mine"] = path
        with pytest.raises(InputError) as caught:
            check_catalog(Catalog(files))
        message = str(caught.value)
        for words in (
            "layer: unknown key",
            "license: unknown key",
            "scenarios.yaml:5: parallelism.tp: 1 replica of 16",
        ):
            assert words in message


class TestSchemas:
    @pytest.mark.parametrize("name", ["scenario", *MODELS])
    def test_keys_are_closed(self, name: str) -> None:
        schema = schema_of(name)
        assert schema["additionalProperties"] is False
        assert schema["properties"]

    def test_a_kind_that_is_not_there(self) -> None:
        with pytest.raises(
            InputError, match=r"no schema 'sistem'; did you mean system\? There are"
        ):
            schema_of("sistem")
