"""Find the importer of a result file by what the file holds."""

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from sim.calibration.importers.aiperf import AIPERF
from sim.calibration.importers.draft import Draft, Format
from sim.calibration.importers.genai_perf import GENAI_PERF
from sim.calibration.importers.guidellm import GUIDELLM
from sim.calibration.importers.inferencex import INFERENCEX
from sim.calibration.importers.mlperf import MLPERF
from sim.calibration.importers.per_request import REQUESTS
from sim.calibration.importers.power_log import is_power_log
from sim.calibration.importers.result_file import ResultFile, open_result
from sim.calibration.importers.sglang_bench import SGLANG
from sim.calibration.importers.vllm_bench import VLLM
from sim.calibration.run_format import COLUMNS
from sim.errors import InputError
from sim.schema import did_you_mean

AUTO = "auto"

FORMATS: Mapping[str, Format] = MappingProxyType(
    {
        each.name: each
        for each in (
            SGLANG,
            VLLM,
            INFERENCEX,
            GUIDELLM,
            AIPERF,
            GENAI_PERF,
            MLPERF,
            REQUESTS,
        )
    }
)
"""Importers by name; a file belongs to the first that recognises it."""


def read_drafts(path: Path, name: str = AUTO) -> list[Draft]:
    """Read the runs of a result file.

    Parameters
    ----------
    path : Path
    name : str
        Of a format, or ``auto``.

    Raises
    ------
    InputError
        There is no such format, no format fits, or the file is broken.
    """
    if name != AUTO and name not in FORMATS:
        hint = did_you_mean(name, FORMATS)
        raise InputError(f"--format {name}: there is none{hint}; use auto, {', '.join(FORMATS)}")
    file = open_result(path)
    found = _recognised(file) if name == AUTO else FORMATS[name]
    return found.read(file)


def _recognised(file: ResultFile) -> Format:
    for each in FORMATS.values():
        if each.recognises(file):
            return each
    if not file.is_parquet and not file.is_json:
        if is_power_log(file.header):
            raise InputError(f"{file.path}: is a log of power; give it as --power-log {file.path}")
        if set(file.header) >= {"row_id", "hardware", "engine"} & set(COLUMNS):
            raise InputError(
                f"{file.path}: is a file of measured runs already; give it to rackcast validate"
            )
    titles = ", ".join(f"{each.name} ({each.title})" for each in FORMATS.values())
    raise InputError(
        f"{file.path}: is no result file that is known; known are {titles}. Name one with --format "
        "to see what is missing"
    )
