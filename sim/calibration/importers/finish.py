"""From a draft to a row: what the user and a power log add, the checks, and what is still missing.

A closed loop is consistent if its output tokens per second are about ``concurrency`` x ``osl`` /
(``ttft`` + ``tpot`` x (``osl`` - 1)): by Little's law, each of the clients receives ``osl`` tokens
in the time of one request.
"""

from collections.abc import Mapping, Sequence

from sim.calibration.importers.draft import FROM_FILE, UNTOLD, Draft
from sim.calibration.importers.power_log import PowerLog
from sim.calibration.run_format import COLUMNS, column
from sim.errors import InputError
from sim.units import MILLISECOND_S

TOLERANCE = 0.25
"""Share by which a closed loop may be off its formula: its ends are not steady."""
MIXED_UP = 100.0
"""A factor that no run is off by: there a unit is another than its column's."""
SET_BY_US = frozenset({"row_id", "source_key"})

_NEEDED = (
    "hardware",
    "num_chips",
    "tp",
    "model",
    "weight_dtype",
    "engine",
    "scenario",
    "isl",
    "osl",
)
"""What a run has to tell for its forecast to be of that run."""
_LOADS = {"concurrency": "concurrency", "server": "request_rate_qps"}
_MEASURED = ("tpot_p50_ms", "tpot_mean_ms", "ttft_p50_ms", "ttft_mean_ms", "output_tokens_per_s")
_EXAMPLES = {
    "hardware": "H200-SXM-141GB",
    "num_chips": "8",
    "tp": "8",
    "model": "meta-llama/Llama-3.1-70B-Instruct",
    "weight_dtype": "fp8",
    "engine": "'vLLM 0.11.0'",
    "scenario": "concurrency",
    "isl": "1024",
    "osl": "256",
    "concurrency": "64",
    "request_rate_qps": "4.5",
    "output_tokens_per_s": "1850",
}


def read_settings(pairs: Sequence[tuple[str, str]]) -> dict[str, str]:
    """Check what the user sets.

    Raises
    ------
    InputError
        There is no such column, it is not for the user to set, or the value is none.
    """
    settings: dict[str, str] = {}
    for name, text in pairs:
        try:
            value = column(name).read(text)
        except InputError as error:
            raise InputError(f"--set {name}={text}: {error}") from None
        if name in SET_BY_US:
            raise InputError(f"--set {name}={text}: {name} follows from the file; leave it out")
        settings[name] = value
    return settings


def finished(
    draft: Draft, settings: Mapping[str, str], power: PowerLog | None = None
) -> dict[str, str]:
    """Make a row of a draft, with every column of the format.

    Raises
    ------
    InputError
        Figures contradict one another, or the power log does not fit the run.
    """
    for name, value in settings.items():
        told = draft.values.get(name)
        if told is not None and told != value and name != "notes":
            draft.remarks.append(f"{name} is set by the user, the file says {told}")
        draft.put(name, value, "the user")
    if power is not None:
        _add_power(draft, power)
    _check_closed_loop(draft)
    flawed = bool(draft.flaws or missing(draft.values))
    record = {
        "source": draft.where,
        "row_id": draft.row_id,
        "source_key": draft.format,
        "quality": "C" if flawed else "B",
        "split": "context" if flawed else "calibration",
    }
    row = record | draft.values | {"notes": _notes(draft)}
    return {name: row.get(name, "") for name in COLUMNS}


def missing(row: Mapping[str, str]) -> list[str]:
    """List the columns that the run still has to tell."""
    found = [name for name in _NEEDED if not row.get(name)]
    load = _LOADS.get(row.get("scenario", ""))
    if load and not row.get(load):
        found.append(load)
    if not any(row.get(name) for name in _MEASURED):
        found.append("output_tokens_per_s")
    return found


def needs(row: Mapping[str, str]) -> str:
    """Say what a row still lacks, and what supplies it; empty if nothing.

    >>> told = {"hardware": "GB200", "num_chips": "4", "tp": "4", "model": "m", "isl": "9"}
    >>> told |= {"osl": "9", "engine": "vLLM 0.11", "weight_dtype": "fp8", "tpot_p50_ms": "9"}
    >>> needs(told | {"scenario": "server"})
    'missing: request_rate_qps (--set request_rate_qps=4.5)'
    """
    needed = [f"{name} (--set {name}={_EXAMPLES[name]})" for name in missing(row)]
    return f"missing: {', '.join(needed)}" if needed else ""


def wishes(row: Mapping[str, str]) -> str:
    """Say what else would make a row better, and what supplies it; empty if nothing."""
    useful = [] if row.get("kv_dtype") else ["kv_dtype, else assumed (--set kv_dtype=fp8)"]
    if UNTOLD in row.get("engine", ""):
        useful.append("the engine's release (--set engine='vLLM 0.11.0')")
    if not row.get("power_w"):
        useful.append("power_w (--power-log FILE)")
    return f"would help: {', '.join(useful)}" if useful else ""


def _add_power(draft: Draft, power: PowerLog) -> None:
    chips = draft.figure("num_chips")
    if chips is not None and chips != power.devices:
        raise InputError(
            f"{power.path}: has {power.devices} devices, and the run {chips:.0f} accelerators: "
            "keep the lines of those that served the load, or correct --set num_chips"
        )
    draft.put("power_w", power.mean_w(draft.window), f"the power log {power.path.name}")
    over = "the time of the run" if draft.window else "the whole log: the file does not tell when"
    draft.remarks.append(f"power is the sum over {power.devices} devices, its mean over {over}")


def _check_closed_loop(draft: Draft) -> None:
    """Note a closed loop whose figures contradict one another; refuse mixed-up units."""
    throughput = draft.figure("output_tokens_per_s")
    clients, osl = draft.figure("concurrency"), draft.figure("osl")
    ttft_ms = draft.figure("ttft_mean_ms") or draft.figure("ttft_p50_ms")
    tpot_ms = draft.figure("tpot_mean_ms") or draft.figure("tpot_p50_ms")
    closed = draft.values.get("scenario") == "concurrency"
    if not closed or not throughput or not clients or not osl or not ttft_ms or not tpot_ms:
        return
    expected = clients * osl / ((ttft_ms + tpot_ms * max(osl - 1, 0.0)) * MILLISECOND_S)
    ratio = throughput / expected
    if not 1 / MIXED_UP < ratio < MIXED_UP:
        raise InputError(
            f"{draft.where}: {throughput:g} output tokens/s against {expected:g} by concurrency, "
            "osl, ttft and tpot: a figure is in another unit; correct the file, or the --set"
        )
    if abs(ratio - 1) > TOLERANCE:
        draft.flaws.append(
            f"closed-loop check: output tokens/s are {ratio:.2f} times concurrency x osl / (ttft + "
            "tpot x (osl - 1))"
        )


def _notes(draft: Draft) -> str:
    """Tell what the file is, where each figure came from, and what is odd about the run."""
    by_origin: dict[str, list[str]] = {}
    for name, origin in draft.origins.items():
        if name != "notes" and origin != FROM_FILE:
            by_origin.setdefault(origin, []).append(name)
    told = [f"{', '.join(names)} from {origin}" for origin, names in by_origin.items()]
    given = [draft.values["notes"]] if draft.values.get("notes") else []
    origins = [*told, "everything else from the file"]
    return "; ".join([draft.title, *origins, *draft.flaws, *draft.remarks, *given])
