"""How an engine runs a step beside its kernels: padded sizes, time of the host, drafts.

The defaults change nothing: steps of any size, a host that is never waited for beyond the fitted
overhead (`sim.overhead`), one token for each sequence that decodes.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from sim.cost.work import StepShape
from sim.errors import InputError

if TYPE_CHECKING:
    from sim.cost.timer import StepTimer

Count = Any
"""A number of tokens, or an array with one for each of many steps."""


@dataclass(frozen=True)
class Padding:
    """Sizes that steps are padded to: captured graphs, or buckets of compiled programs.

    A step is padded to the next size of its kind; a step beyond the largest graph runs as it is,
    and one beyond the largest bucket cannot run at all. vLLM captures graphs for 1, 2, 4 and
    multiples of 8 tokens up to 512 and runs steps with prompts through them too; TensorRT-LLM
    captures decode steps alone; JAX and Neuron compile every size.
    """

    decode_sizes: tuple[int, ...] = ()
    """Tokens of steps that only decode, rising; none: any size."""
    prefill_sizes: tuple[int, ...] = ()
    """Tokens of steps with prompts, their decoding sequences included."""
    static: bool = False
    """Whether attention has padded shapes too: padding then costs what sequences and prompt tokens
    of mean context cost. Kernels of GPUs skip what is padding."""
    strict: bool = False
    """Whether nothing runs beyond the largest size."""
    eager_layer_s: float = 0.0
    """Time of the host, per layer, of a step that is larger than every graph and is launched
    kernel by kernel."""

    def __post_init__(self) -> None:
        """Refuse sizes that are not positive and rising."""
        for sizes in (self.decode_sizes, self.prefill_sizes):
            if list(sizes) != sorted(set(sizes)) or (sizes and sizes[0] < 1):
                raise InputError(
                    f"padded sizes {list(sizes)} must be positive and rise", key="engine"
                )

    @property
    def active(self) -> bool:
        """Whether any step is padded."""
        return bool(self.decode_sizes or self.prefill_sizes)

    def filling(self, decode_tokens: Count, prefill_tokens: Count) -> Count:
        """Count the tokens that fill a step up to the next size; none beyond the largest.

        >>> padding = Padding(decode_sizes=(1, 2, 4, 8), prefill_sizes=(16, 32))
        >>> [padding.filling(n, 0) for n in (0, 2, 3, 5, 9)], padding.filling(5, 12)
        ([0, 0, 1, 3, 0], 15)
        """
        if not self.active:
            return 0
        total, prompts = np.asarray(decode_tokens + prefill_tokens), np.asarray(prefill_tokens)
        extra: Count = np.where(
            prompts > 0, _missing(self.prefill_sizes, total), _missing(self.decode_sizes, total)
        )
        return extra if extra.ndim else extra.item()

    def eager(self, decode_tokens: Count, prefill_tokens: Count) -> Count:
        """Tell whether a step is launched kernel by kernel: its kind has graphs, all smaller.

        >>> Padding(decode_sizes=(1, 2)).eager(3, 0), Padding(decode_sizes=(1, 2)).eager(3, 5)
        (True, False)
        """
        total, prompts = np.asarray(decode_tokens + prefill_tokens), np.asarray(prefill_tokens)
        beyond = [
            (total > sizes[-1]) if sizes else np.zeros_like(total, dtype=bool)
            for sizes in (self.prefill_sizes, self.decode_sizes)
        ]
        found: Count = np.where(prompts > 0, beyond[0], beyond[1])
        return found if found.ndim else bool(found)

    def check(self, decode_tokens: int, prefill_tokens: int) -> None:
        """Refuse limits of an engine for which nothing is compiled.

        Parameters
        ----------
        decode_tokens : int
            Most tokens of a step that only decodes.
        prefill_tokens : int
            Most tokens of a step with prompts.

        Raises
        ------
        InputError
            A strict bucket is too small.
        """
        if not self.strict:
            return
        for what, most, sizes in (
            ("decode", decode_tokens, self.decode_sizes),
            ("prefill", prefill_tokens, self.prefill_sizes),
        ):
            if sizes and most > sizes[-1]:
                raise InputError(
                    f"a {what} step may have {most} tokens but the largest bucket has "
                    f"{sizes[-1]}: add a bucket of {most} tokens, or lower the limit of the engine",
                    key=f"engine.{what}_buckets",
                )


def _missing(sizes: tuple[int, ...], total: Count) -> Count:
    """Tokens up to the next size; none beyond the largest, and none in an empty step."""
    if not sizes:
        return np.zeros_like(total)
    known = np.asarray(sizes)
    place = np.minimum(np.searchsorted(known, total), known.size - 1)
    return np.where((total > 0) & (total <= known[-1]), known[place] - total, 0)


NO_PADDING = Padding()
"""Steps of any size."""


@dataclass(frozen=True)
class HostTime:
    """Time of the host between steps, beside the fitted overhead of the engine."""

    step_s: float = 0.0
    """Per step: scheduling, inputs, sampling."""
    sequence_s: float = 0.0
    """Per sequence of an attention rank."""
    overlapped: bool = False
    """Whether the host prepares the next step while the chip is busy with this one: a step then
    takes as long as the slower of the two, and otherwise as long as both."""

    @property
    def active(self) -> bool:
        """Whether it is ever felt."""
        return self.step_s > 0.0 or self.sequence_s > 0.0

    def seconds(self, sequences: Count) -> Count:
        """Time of one step with so many sequences on the fullest attention rank.

        >>> round(HostTime(step_s=1e-3, sequence_s=1e-5).seconds(50), 9)
        0.0015
        """
        return self.step_s + self.sequence_s * sequences


NO_HOST_TIME = HostTime()
"""A host that nobody waits for."""


@dataclass(frozen=True)
class Speculation:
    """Drafts that the model verifies, and who makes them.

    In every step each decoding sequence brings ``1 + draft_tokens`` tokens through the model. Then
    the drafter makes the next drafts in as many passes, one after the other; its first pass takes
    in what the step has computed, prompts included, and the others one token per sequence.
    """

    draft_tokens: int
    """Drafts per sequence and step, 1 or more."""
    drafter: "StepTimer | None" = None
    """Prices a pass of the drafter, and the host's part in it; none: the host looks the drafts up
    in the text (n-grams), which costs `HostTime` alone."""
    reads_verified: bool = True
    """Whether the drafter's first pass has all verified tokens of a sequence (EAGLE and MTP, which
    need the model's hidden vectors), and not only the newest one (a draft model)."""
    verify_tokens: int | None = None
    """Tokens that a step verifies per sequence, where drafts branch into a tree; one more than
    ``draft_tokens``, its depth, unless given."""

    def __post_init__(self) -> None:
        """Refuse speculation without drafts."""
        if self.draft_tokens < 1:
            raise InputError(f"draft_tokens is {self.draft_tokens}: give at least 1")

    @property
    def queries(self) -> int:
        """Tokens that a sequence brings through the model."""
        return self.verify_tokens or 1 + self.draft_tokens

    @property
    def first_queries(self) -> int:
        """Tokens that a sequence brings through the drafter's first pass."""
        return 1 + self.draft_tokens if self.reads_verified else 1


@dataclass(frozen=True)
class Execution:
    """Everything of this module together."""

    padding: Padding = NO_PADDING
    host: HostTime = NO_HOST_TIME
    speculation: Speculation | None = None
    eager_prompts: bool = False
    """Whether the kernels of steps with prompts are launched one by one: such a step takes no less
    time than the host needs for that (`sim.overhead.EngineOverhead.launch_s`)."""

    @property
    def queries(self) -> int:
        """Tokens that a decoding sequence brings through the model."""
        return 1 if self.speculation is None else self.speculation.queries


PLAIN = Execution()
"""None of it."""


def decoding(shape: StepShape) -> StepShape:
    """Leave the prompts of a step out."""
    none = np.zeros_like(np.asarray(shape.prefill_tokens))
    return StepShape(
        shape.decode_sequences,
        shape.decode_context_tokens,
        shape.decode_window_tokens,
        prefill_sequences=none if none.ndim else 0,
        prefill_tokens=none if none.ndim else 0,
    )


def padded(padding: Padding, rank: StepShape) -> StepShape:
    """Fill the step of one attention rank up to the next size.

    Compiled shapes have more sequences of the mean context, or longer prompts: the padding of a
    step with prompts is dealt to them evenly and stands behind their last tokens.
    """
    extra = padding.filling(rank.decode_tokens, rank.prefill_tokens)
    if not padding.static or not padding.active:
        return rank._replace(padding_tokens=extra)
    decode, prefill = np.asarray(rank.decode_sequences), np.asarray(rank.prefill_tokens)
    behind = np.where(prefill > 0, extra, 0)
    beside = np.ceil(np.where(prefill > 0, 0, extra) / rank.queries)
    prompts = np.maximum(rank.prefill_sequences, 1)
    last = (rank.prefill_context_tokens + prefill) / prompts
    wider, longer = 1 + beside / np.maximum(decode, 1), 1 + behind / np.maximum(prefill, 1)
    return rank._replace(
        decode_sequences=decode + beside,
        decode_context_tokens=rank.decode_context_tokens * wider,
        decode_window_tokens=rank.decode_window_tokens * wider,
        prefill_tokens=prefill + behind,
        prefill_pairs=rank.prefill_pairs + behind * (last + (behind / prompts + 1) / 2),
        prefill_window_pairs=rank.prefill_window_pairs * longer,
    )
