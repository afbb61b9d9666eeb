"""Images that a replica encodes itself, in the step that takes their tokens into the prompt.

Rules of vLLM v1 (``_try_schedule_encoder_inputs`` in ``vllm/v1/core/sched/scheduler.py``): the
images of a prompt are encoded in the step whose chunk reaches their tokens, before the language
model runs, and those whose tokens are in the prefix cache are not. Here images are the last part of
a prompt, behind the text that it may share with others, and one that a chunk cuts is encoded part
by part, which comes to the same work.
"""

from sim.cost.work import prefill_pairs
from sim.engine.lockstep import LockstepStretch
from sim.engine.stretch import Stretch
from sim.engine.ticks import Line, Pace


class EncodingPace:
    """A pace whose steps begin with the images of their prompts, which it counts.

    Attention ranks that keep step encode side by side; the one with most to do sets the time.

    Parameters
    ----------
    language : Pace
        Of the language model.
    encoder : Pace
        Of the encoder of one attention rank.
    """

    def __init__(self, language: Pace, encoder: Pace) -> None:
        self._language = language
        self._encoder = encoder

    def line(self, stretch: Stretch, steps_before: int = 0, /) -> Line:
        """Ticks of the steps of a stretch; images are there in single steps alone."""
        line = self._language.line(stretch, steps_before)
        if not stretch.chunks:
            return line
        ranks = stretch.ranks if isinstance(stretch, LockstepStretch) else [stretch]
        longest = 0
        for images in map(images_of, ranks):
            if images.chunks:
                longest = max(longest, self._encoder.line(images)[0])
                stretch.encode_tokens += images.prefill_tokens
                stretch.encode_pairs += images.prefill_pairs
        start, growth, valid_steps = line
        return start + longest, growth, valid_steps


def images_of(stretch: Stretch) -> Stretch:
    """Give the image tokens in the chunks of a step, as prompts of an encoder.

    Eight tokens of text and then four of an image, of which a chunk of ten brings two:

    >>> from sim.engine.requests import Request
    >>> request = Request(0, 0, input_tokens=12, output_tokens=1)
    >>> request.encode_tokens = 4
    >>> step = Stretch(0, 0, 0, 0, 0, 0)
    >>> step.chunks = [(request, 10)]
    >>> images = images_of(step)
    >>> images.prefill_tokens, images.prefill_pairs
    (2, 3)
    """
    images = Stretch(0, 0, 0, 0, 0, 0)
    for part, tokens in stretch.chunks:
        whole = part.stage_of or part
        if not whole.encode_tokens:
            continue
        first = whole.input_tokens - whole.encode_tokens
        done = part.computed_tokens
        before = max(0, done - first)
        fresh = min(done + tokens - first, whole.encode_tokens) - before
        if fresh > 0:
            images.chunks.append((part, fresh))
            images.prefill_tokens += fresh
            images.prefill_pairs += prefill_pairs(before, fresh)
    return images
