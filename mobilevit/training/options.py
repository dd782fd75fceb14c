"""The options of a training run: a recipe, as dataclasses."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from mobilevit.data.sampler import BatchRule
from mobilevit.utils.options import Count, Interval, NonNegative, Options, Positive, Share


@dataclass(frozen=True, kw_only=True)
class SamplerOptions(Options, name="sampler"):
    """How images are batched."""

    mode: Literal["multiscale", "standard"] = "multiscale"
    """Sizes that change from step to step, or one size."""
    min_size: Count | None = None
    """Smallest size in pixels; by default 0.625 of the base size, as the paper's 160 of 256."""
    max_size: Count | None = None
    """Largest size; by default 1.25 of the base size, as the paper's 320 of 256."""
    scales: Count = 5
    """Sizes between the two, ahead of rounding."""
    multiple: Count = 32
    """What sizes are rounded to."""
    batch_rule: BatchRule = "area"
    """How the batch follows the size; see `MultiScaleSchedule`."""


@dataclass(frozen=True, kw_only=True)
class OptimOptions(Options, name="optim"):
    """The optimiser and its learning rate."""

    name: Literal["adamw", "sgd"] = "adamw"
    """AdamW, or stochastic gradient descent with momentum."""
    lr: Positive | None = None
    """Peak learning rate; by default 0.002 for new weights, 0.001 for given ones, in detection
    0.001, in segmentation 0.001 and 0.0005. They suit AdamW: SGD must be given its own."""
    momentum: Annotated[float, Interval(0, 1)] = 0.9
    """Of SGD; AdamW has none."""
    final_lr: Share = 0.1
    """Where the cosine ends, as a share of the peak; 1, with no warmup, is a fixed rate."""
    warmup: Share = 0.05
    """Share of all steps in which the rate rises linearly, at most 3000 steps."""
    head_lr: Positive | None = None
    """The head's learning rate, as a multiple of the backbone's; by default 10 in segmentation, as
    the paper's, else 1."""
    weight_decay: NonNegative = 0.01
    """On all parameters, as the authors' v1 recipe."""
    decay_norms: bool = True
    """Whether the decay is on norms and biases too; the authors' v2 recipe leaves them out."""
    clip: Positive | None = 1.0
    """Largest norm of the gradient; null: any. The paper has none, in batches of 1024; in small
    batches of changing size single large gradients spoil a run, see docs/training.md."""
    accumulate: Count = 1
    """Batches whose gradients are averaged before a step."""

    def __post_init__(self) -> None:
        """Check the fields, and that they go together.

        Raises:
            ValueError: one is out of range, or is missing, or has no meaning here.
        """
        super().__post_init__()
        if self.name == "adamw" and self.momentum != 0.9:
            raise ValueError("optim.momentum is for optim.name sgd; AdamW has none")
        if self.name == "sgd" and self.lr is None:
            raise ValueError(
                "optim.name sgd needs optim.lr: the default rates suit AdamW. The authors of "
                "MobileViTv2 fine-tune at 0.001 to 0.01"
            )


@dataclass(frozen=True, kw_only=True)
class NetworkOptions(Options, name="network"):
    """Options of the network; None leaves the variant's own, or that of the given weights."""

    patch_sizes: tuple[int, int, int] | None = None
    """Patch sides in the last three stages; the paper's configuration A is 2,2,2 and B 8,4,2."""
    heads: int | None = None
    """Attention heads (v1)."""
    kernel_size: int | None = None
    """Side of the MobileViT blocks' convolutions."""
    fusion: bool | None = None
    """Whether a block's input is joined to its output (v1)."""
    dropout: float | None = None
    """On what attention and feed-forward layers add."""
    attention_dropout: float | None = None
    """On attention weights."""
    ffn_dropout: float | None = None
    """Inside feed-forward layers."""
    classifier_dropout: float | None = None
    """Before the classifier."""
    output_stride: int | None = None
    """Coarsest stride: 8, 16 or 32."""
    channels: int | None = None
    """Segmentation: width of the head."""
    rates: tuple[int, int, int] | None = None
    """DeepLabv3: dilations of its pyramid."""
    aspp_dropout: float | None = None
    """DeepLabv3: behind its pyramid."""
    aux: bool | None = None
    """Segmentation: whether training has a second head, on stage 4."""
    align_corners: bool | None = None
    """Segmentation: how logits are stretched to the image's size."""
