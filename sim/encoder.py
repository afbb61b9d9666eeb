"""The image encoder of a multimodal model: a transformer over patches, and what follows it.

An image is cut into square patches. A few neighbouring patches are merged into one token of the
prompt, which a projector brings to the width of the language model. Norms, biases, positions and
class tokens (together below 0.3 % of the weights) are left out.
"""

from itertools import pairwise
from typing import Annotated, Self

from pydantic import Field, model_validator

from sim.figures import Figure
from sim.schema import StrictModel
from sim.units import PositiveInt

COLOURS = 3
"""Values of a pixel."""


class PatchLayers(StrictModel):
    """Layers in which every patch of a region sees every other one, before it and behind it."""

    layers: PositiveInt
    """Layers of this kind."""
    region_patches: PositiveInt | None = None
    """Patches of a region: of a window, or of a tile that an image is cut into; none: a region is
    the whole image."""


class ImageEncoder(StrictModel):
    """A vision transformer whose output becomes tokens of the prompt."""

    source: str
    """Where the shape was read."""
    hidden: PositiveInt
    heads: PositiveInt
    mlp_intermediate: PositiveInt
    """Inner width of the MLP."""
    gated_mlp: bool = False
    """Whether the MLP has a gate projection beside the up projection."""
    attention: Annotated[tuple[PatchLayers, ...], Field(min_length=1)]
    """All layers, in groups by what a patch sees."""
    patch_pixels: PositiveInt
    """Length of the side of a patch."""
    patch_frames: PositiveInt = 1
    """Frames of a video that a patch reaches over; a still image is repeated as often."""
    patches_per_token: PositiveInt = 1
    """Patches that are merged into one token of the prompt."""
    projector: Annotated[tuple[PositiveInt, ...], Field(min_length=2)]
    """Widths from the merged patches to the language model, a product between each two."""
    published_parameters: Figure[float] | None = None
    """All weights, to hold the shape against; its note says if the projector is not among them."""

    @model_validator(mode="after")
    def _widths_fit(self) -> Self:
        if self.hidden % self.heads:
            raise ValueError(f"hidden {self.hidden} is no multiple of the {self.heads} heads")
        merged = self.patches_per_token * self.hidden
        if self.projector[0] != merged:
            raise ValueError(
                f"projector begins with {self.projector[0]}, but {self.patches_per_token} merged "
                f"patches of {self.hidden} are {merged} wide"
            )
        return self

    @property
    def layers(self) -> int:
        """Layers of all groups."""
        return sum(group.layers for group in self.attention)

    @property
    def head_dim(self) -> int:
        """Width of a head."""
        return self.hidden // self.heads

    @property
    def mlp_matrices(self) -> int:
        """Projections of the MLP."""
        return 3 if self.gated_mlp else 2

    @property
    def patch_elements(self) -> int:
        """Values of a patch before it is embedded."""
        return COLOURS * self.patch_frames * self.patch_pixels**2

    @property
    def sees_whole_images(self) -> bool:
        """Whether the work of an image grows faster than its size."""
        return any(group.region_patches is None for group in self.attention)

    @property
    def projector_parameters(self) -> int:
        """Weights of the projector."""
        return sum(width * to for width, to in pairwise(self.projector))

    @property
    def parameters(self) -> int:
        """All weights: patch embedding, layers, projector.

        ViT-L/16 has 24 layers of 12 x 1024 x 1024 weights and embeds 3 x 16 x 16 values:

        >>> ImageEncoder(
        ...     source="arXiv:2010.11929", hidden=1024, heads=16, mlp_intermediate=4096,
        ...     attention=(PatchLayers(layers=24),), patch_pixels=16, projector=(1024, 1000),
        ... ).parameters == 24 * 12 * 1024**2 + 768 * 1024 + 1024 * 1000
        True
        """
        layer = 4 * self.hidden**2 + self.mlp_matrices * self.hidden * self.mlp_intermediate
        embedding = self.patch_elements * self.hidden
        return embedding + self.layers * layer + self.projector_parameters
