"""What the launch scripts of InferenceX start engines with, as `inferencex.yaml` tells.

A script sets numbers, or computes them from the clients and lengths of a run (`Amount`), and many
set something else for some of its runs (`Case`). What it sets later counts.
"""

from functools import lru_cache
from pathlib import Path
from typing import NamedTuple, Self

from pydantic import Field, model_validator

from sim.efficiency import Engine
from sim.schema import StrictModel, load_yaml, validate
from sim.speculation import SpeculationChoice, TokensPerStep, constant_acceptance
from sim.units import Dtype, Fraction, NonNegativeInt, PositiveInt


class Start(NamedTuple):
    """What a script is told when it starts an engine."""

    engine: Engine
    model: str
    """As the file of results names it, as all that follows."""
    hardware: str
    weights: str
    day: str
    """Such as ``2026-01-14``; parts of it will do."""
    chips: int
    """Of the engine: what scripts call TP, whatever they do with it."""
    experts_dealt: bool
    attention_dp: bool
    clients: int
    input_tokens: int
    output_tokens: int


class Amount(StrictModel):
    """A number that a script computes; parts of clients are cut to whole ones."""

    clients: float = 0.0
    """Times the clients."""
    prompt: NonNegativeInt = 0
    """Times the nominal prompt, tokens."""
    answer: NonNegativeInt = 0
    """Times the nominal answer, tokens."""
    more: NonNegativeInt = 0
    multiple_of: PositiveInt = 1
    """Rounded down to multiples of it."""
    at_least: PositiveInt = 1

    def of(self, start: Start) -> int:
        """Compute it.

        >>> start = Start("trtllm", "", "", "", "", 8, True, False, 64, 1024, 1024)
        >>> Amount(clients=1, prompt=1, more=127, multiple_of=64).of(start)  # 64 + 1024 + 127
        1152
        """
        sum_ = int(self.clients * start.clients) + self.more
        sum_ += self.prompt * start.input_tokens + self.answer * start.output_tokens
        return max(self.at_least, sum_ // self.multiple_of * self.multiple_of)


class Settings(StrictModel):
    """What a script sets, under the names of `sim.serving.ServingEngine`."""

    max_num_seqs: PositiveInt | Amount | None = None
    max_num_batched_tokens: PositiveInt | Amount | None = None
    graphs_up_to: PositiveInt | Amount | None = None
    """The largest batch that graphs are captured for; the engine chooses the sizes below it."""
    memory_fraction: Fraction | None = None
    block_tokens: PositiveInt | None = None
    chunked_prefill: bool | None = None
    prefix_caching: bool | None = None
    poll_interval_steps: PositiveInt | None = None
    batch_wait_steps: NonNegativeInt | None = None
    batch_wait_fraction: Fraction | None = None
    eager_prompts: bool | None = None
    steps_ahead: NonNegativeInt | None = None
    host_overlapped: bool | None = None

    def of(self, start: Start) -> dict[str, object]:
        """Give those that are set, computed."""
        given = {name: getattr(self, name) for name in self.model_fields_set}
        return {
            name: value.of(start) if isinstance(value, Amount) else value
            for name, value in given.items()
        }


class Split(StrictModel):
    """How a script cut the model, where that is not what the file of results tells."""

    experts_dealt: bool | None = None
    """Whether whole experts lie on the chips; as the results tell unless given."""
    attention_dp: bool | None = None
    """Whether the chips attend to sequences of their own; as the results tell unless given."""


class When(StrictModel):
    """What a script asks before it sets something."""

    input_tokens: PositiveInt | None = None
    output_tokens: PositiveInt | None = None
    chips_from: PositiveInt | None = None
    chips_below: PositiveInt | None = None
    clients_from: PositiveInt | None = None
    clients_below: PositiveInt | None = None
    attention_dp: bool | None = None
    experts_dealt: bool | None = None

    @model_validator(mode="after")
    def _asks_something(self) -> Self:
        if not self.model_fields_set:
            raise ValueError("say when it holds, or put it into the settings of the script")
        return self

    def holds(self, start: Start) -> bool:
        """Tell whether all of it is so."""
        equal = ("input_tokens", "output_tokens", "attention_dp", "experts_dealt")
        return (
            all(getattr(self, key) in (None, getattr(start, key)) for key in equal)
            and (self.chips_from or 0) <= start.chips
            and (self.chips_below is None or start.chips < self.chips_below)
            and (self.clients_from or 0) <= start.clients
            and (self.clients_below is None or start.clients < self.clients_below)
        )


class Part(StrictModel):
    """What a script does for all of its runs, or for some."""

    split: Split = Split()
    draft_tokens: PositiveInt | None = None
    """Drafted by the model's own layer per step; no drafts unless given."""
    settings: Settings = Settings()


class Case(Part):
    """What a script does for some of its runs, on top of the rest."""

    when: When


class Runs(StrictModel):
    """The runs of a script."""

    engine: Engine
    models: tuple[str, ...] = Field(min_length=1)
    hardware: str
    weights: str
    since: str
    """First day, month or year."""
    until: str | None = None
    """Last day, where the script is not that of all later runs."""

    def has(self, start: Start) -> bool:
        """Tell whether a run is one of them."""
        return (
            (self.engine, self.hardware, self.weights)
            == (start.engine, start.hardware, start.weights)
            and start.model in self.models
            and self.since <= start.day
            and (self.until is None or start.day <= self.until)
        )


class Setup(NamedTuple):
    """What a run was started with."""

    settings: dict[str, object]
    """Of `sim.serving.ServingEngine`."""
    experts_dealt: bool
    attention_dp: bool
    draft_tokens: int
    """Drafted per step; 0: none."""


class Launch(Part):
    """One launch script."""

    script: str
    """Its path in the repository."""
    commit: str = Field(pattern="^[0-9a-f]{40}$")
    """Under which this version was read."""
    repository: str | None = None
    """A fork that keeps the version; the benchmark's own unless given."""
    runs: Runs
    note: str | None = None
    """What a reader must know: what is not read in this script."""
    kv_cache: Dtype | None = None
    """Format of the cache; as usual unless told."""
    cases: tuple[Case, ...] = ()

    def setup(self, start: Start) -> Setup:
        """Give what a run was started with: of what is set twice, what is set later."""
        parts: list[Part] = [self, *(case for case in self.cases if case.when.holds(start))]
        settings: dict[str, object] = {}
        experts_dealt, attention_dp, drafts = start.experts_dealt, start.attention_dp, 0
        for part in parts:
            settings |= part.settings.of(start)
            drafts = part.draft_tokens or drafts
            if part.split.experts_dealt is not None:
                experts_dealt = part.split.experts_dealt
            if part.split.attention_dp is not None:
                attention_dp = part.split.attention_dp
        largest = settings.pop("graphs_up_to", None)
        if isinstance(largest, int):
            settings["graph_sizes"] = graph_sizes(start.engine, largest, drafting=drafts > 0)
        return Setup(settings, experts_dealt, attention_dp, drafts)


class Draft(StrictModel):
    """What becomes of drafts of one length."""

    draft_tokens: PositiveInt
    tokens_per_step: TokensPerStep
    source: str


class Launches(StrictModel):
    """All launch scripts (one YAML file)."""

    repository: str
    drafts: tuple[Draft, ...]
    launches: tuple[Launch, ...]

    @model_validator(mode="after")
    def _drafts_are_known(self) -> Self:
        known = {draft.draft_tokens for draft in self.drafts}
        for launch in self.launches:
            parts: tuple[Part, ...] = (launch, *launch.cases)
            asked = {part.draft_tokens for part in parts} - {None}
            if not asked <= known:
                raise ValueError(f"{launch.script}: drafts has nothing on {asked - known} tokens")
        return self

    def of(self, start: Start) -> Launch | None:
        """Find the script of a run: of those that fit, the latest version; none: none fits."""
        fitting = (launch for launch in self.launches if launch.runs.has(start))
        return max(fitting, key=lambda launch: launch.runs.since, default=None)

    def speculation(self, draft_tokens: int) -> SpeculationChoice:
        """Give drafts of the model's own layer, whose positions are taken to be accepted alike."""
        draft = next(one for one in self.drafts if one.draft_tokens == draft_tokens)
        alike = constant_acceptance(draft.tokens_per_step, draft_tokens)
        return SpeculationChoice(
            method="mtp",
            draft_tokens=draft_tokens,
            acceptance_per_position=(alike,) * draft_tokens,
        )


def graph_sizes(engine: Engine, largest: int, *, drafting: bool = False) -> tuple[int, ...]:
    """Give the batches that an engine captures graphs for when it is told the largest one.

    TensorRT-LLM (``CudaGraphConfig`` with ``enable_padding``) adds the largest one itself, vLLM
    (``cudagraph_capture_sizes``) and SGLang (``_generate_cuda_graph_batch_sizes``, other steps
    where it drafts) leave out what is above it.

    >>> graph_sizes("trtllm", 20), graph_sizes("sglang", 20), graph_sizes("vllm", 20)
    ((1, 2, 4, 8, 16, 20), (1, 2, 4, 8, 12, 16), (1, 2, 4, 8, 16))
    """
    if engine == "trtllm":
        doubled = (2**power for power in range(8, largest.bit_length()))
        sizes = {1, 2, 4, *range(8, 129, 8), *doubled, largest}
    elif engine == "sglang" and drafting:
        sizes = {*range(1, 9), *range(10, 33, 2), *range(40, 65, 4), *range(72, 257, 8)}
        sizes |= set(range(272, largest + 1, 16))
    elif engine == "sglang":
        sizes = {1, 2, 4, 8, 12, *range(16, 257, 8), *range(272, 512, 16)}
        sizes |= set(range(512, largest + 1, 32))
    else:
        sizes = {1, 2, 4, *range(8, 256, 8), *range(256, largest + 1, 16)}
    return tuple(sorted(size for size in sizes if size <= largest))


@lru_cache(maxsize=1)
def shipped_launches() -> Launches:
    """Read the file that lies beside this module."""
    return read_launches(Path(__file__).with_name("inferencex.yaml"))


def read_launches(path: Path) -> Launches:
    """Read a file of launch scripts.

    Raises
    ------
    InputError
        Something in it is wrong.
    """
    return validate(Launches, load_yaml(path))
