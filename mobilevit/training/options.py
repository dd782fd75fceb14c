"""The options of a training run: a recipe, as dataclasses."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from mobilevit.data.multiscale import BatchRule


@dataclass(frozen=True, kw_only=True)
class DataOptions:
    """Where the pictures are."""

    root: str
    """A folder with train/ and val/, or with one folder per class; or with `name`, where that
    data set lies or is downloaded to."""
    name: str | None = None
    """A data set of torchvision: imagenette, cifar10, flowers102, pets, ..."""
    val_fraction: float = 0.2
    """Share of each class that is held out, where the folder has no val/."""
    on_bad: Literal["error", "skip"] = "error"
    """What to do about files that can not be read: stop and name them, or leave them out."""
    check: bool = True
    """Whether to look at the files before training."""
    workers: int | None = None
    """Processes that decode; by default from the number of cores."""


@dataclass(frozen=True, kw_only=True)
class SamplerOptions:
    """How pictures are batched."""

    kind: Literal["multiscale", "standard"] = "multiscale"
    """Sizes that change from step to step, or one size."""
    min_size: int | None = None
    """Smallest size in pixels; by default 0.625 of the base size, as the paper's 160 of 256."""
    max_size: int | None = None
    """Largest size; by default 1.25 of the base size, as the paper's 320 of 256."""
    scales: int = 5
    """Sizes between the two, ahead of rounding."""
    multiple: int = 32
    """What sizes are rounded to."""
    rule: BatchRule = "area"
    """How the batch follows the size; see `MultiScaleSchedule`."""


@dataclass(frozen=True, kw_only=True)
class OptimOptions:
    """AdamW and its learning rate."""

    lr: float | None = None
    """Peak learning rate; by default 0.002 for new weights, 0.001 for given ones."""
    final_lr: float = 0.1
    """Where the cosine ends, as a share of the peak."""
    warmup: float = 0.05
    """Share of all steps in which the rate rises linearly, at most 3000 steps."""
    head_lr: float = 1.0
    """Factor on the learning rate of the classifier's last layer."""
    weight_decay: float = 0.01
    """On all parameters, as the authors' v1 recipe."""
    decay_norms: bool = True
    """Whether the decay is on norms and biases too; the authors' v2 recipe leaves them out."""
    clip: float | None = None
    """Largest norm of the gradient."""
    accumulate: int = 1
    """Batches whose gradients are averaged before a step."""


@dataclass(frozen=True, kw_only=True)
class NetworkOptions:
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
