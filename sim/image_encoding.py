"""Who encodes the images of prompts: an encode pool, or each replica before it takes them in."""

from dataclasses import dataclass, replace

from sim.cost.encoder import (
    embedding_bytes,
    encoder_activation_bytes,
    encoder_memory,
    encoder_operators,
    encoder_weight_bytes,
)
from sim.cost.memory import MemoryUse, engine_share
from sim.cost.operators import Handover, Operator
from sim.encoder import ImageEncoder
from sim.errors import InfeasibleError, InputError
from sim.hardware import Accelerator, System
from sim.model import Model
from sim.scenario import Case
from sim.workload.kinds import images_per_request


@dataclass(frozen=True)
class ImageEncoding:
    """The image encoder of a replica, cut over the tensor ranks of its case."""

    case: Case
    encoder: ImageEncoder
    images_per_prompt: int = 1

    @property
    def operators(self) -> tuple[Operator, ...]:
        """Of one step."""
        return encoder_operators(self.encoder, self.case.parallelism.tp, self.images_per_prompt)

    def beside(self, memory: MemoryUse) -> MemoryUse:
        """Divide the memory of a chip that the encoder lies on beside the language model.

        It runs before the language model in every step, so that the larger activations count.
        """
        tp, share = self.case.parallelism.tp, engine_share(self.case.engine, self.case.parallelism)
        activations = encoder_activation_bytes(self.encoder, tp, share)
        return replace(
            memory,
            weights_bytes=memory.weights_bytes + encoder_weight_bytes(self.encoder, tp),
            activations_bytes=max(memory.activations_bytes, activations),
        )

    def alone(self, accelerator: Accelerator) -> MemoryUse:
        """Divide the memory of a chip of an encode pool.

        Raises
        ------
        InfeasibleError
            It is too small.
        """
        share = engine_share(self.case.engine, self.case.parallelism)
        memory = encoder_memory(self.encoder, self.case.parallelism.tp, accelerator, share)
        if memory.kv_blocks(self.case.engine.block_tokens) < 1:
            raise InfeasibleError(
                f"the image encoder leaves no room for embeddings on {accelerator.name}: a smaller "
                f"engine.max_num_batched_tokens (it is {self.case.engine.max_num_batched_tokens}), "
                "or a larger parallelism.tp",
                key=["engine.max_num_batched_tokens", "parallelism.tp"],
            )
        return memory

    def handover(self, bytes_per_s: float, latency_s: float, source: str) -> Handover:
        """Give the way of embeddings to the replicas that take them in.

        The batch that made them sends them at its end, and the next one waits for that.
        """
        size = embedding_bytes(self.encoder)
        return Handover("embedding_handover", size, bytes_per_s, latency_s, source)


def encoding_of(case: Case, model: Model) -> ImageEncoding | None:
    """Find the encoder for the images of a case; none where no image comes, or nobody knows it.

    Raises
    ------
    InputError
        Its requests have different numbers of images, which an encoder that sees whole images
        cannot be priced for.
    InfeasibleError
        The tensor ranks of the case do not divide its heads.
    """
    counts = images_per_request(case.workload)
    if model.encoder is None or not counts:
        return None
    encoder, tp = model.encoder, case.parallelism.tp
    if len(counts) > 1 and encoder.sees_whole_images:
        said = " and ".join(str(count) for count in sorted(counts))
        raise InputError(
            f"requests come with {said} images, but the encoder of {model.name} can be priced for "
            "one such number: give all parts of the workload the same images.per_request",
            key="workload",
        )
    if encoder.heads % tp:
        raise InfeasibleError(
            f"the {encoder.heads} heads of the image encoder cannot be cut over tp = {tp} ranks: "
            f"choose a divisor of {encoder.heads}",
            key="parallelism.tp",
        )
    return ImageEncoding(case, encoder, max(counts))


def encoding_of_pool(case: Case, model: Model, system: System) -> ImageEncoding:
    """Find what the replicas of an encode pool do.

    Raises
    ------
    InputError
        The model has no encoder that is known, or no prompt of the workload has images.
    InfeasibleError
        A split that an encoder cannot have.
    """
    if model.encoder is None:
        raise InputError(
            f"{model.name} has no image encoder: name a model whose file has one, or leave the "
            "encode pool out",
            key="model",
        )
    split = case.parallelism
    if split.chips != split.tp or split.tp > system.domain_chips:
        raise InfeasibleError(
            f"an image encoder is cut over tensor ranks of one scale-up domain "
            f"({system.domain_chips} chips) and nothing else, not over {split.chips} chips with tp "
            f"= {split.tp}: give the encode pool a parallelism with tp alone",
            key="parallelism",
        )
    encoding = encoding_of(case, model)
    if encoding is None:
        raise InputError(
            "no request has images: give the workload images, or leave the encode pool out",
            key="workload",
        )
    return encoding
