"""The options of a training run: a recipe, as dataclasses."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from mobilevit.data.decode import Decode
from mobilevit.data.sampler import BatchRule
from mobilevit.data.shards.order import POOL
from mobilevit.models.config import class_names
from mobilevit.models.registry import Task


@dataclass(frozen=True, kw_only=True)
class DataOptions:
    """Where the images are."""

    root: str
    """Classification: a folder with train/ and val/, or with one folder per class; with `name`,
    where that data set lies or is downloaded to; or shards, tables or a set of the Hub, see
    docs/scale.md. Detection: a folder of COCO, Pascal VOC or YOLO, a
    COCO file or a data.yaml. Segmentation: folders of images and masks, or a known data set."""
    name: str | None = None
    """A data set of torchvision: imagenette, cifar10, flowers102, pets, ..."""
    format: str = "auto"
    """Detection and segmentation: coco, voc, ..., where a folder could be read in several ways."""
    classes: str | None = None
    """Segmentation: names of the masks' values, with commas between or in a file, one a line."""
    ignore: int = 255
    """Segmentation: the value of pixels without a class, which loss and figures pass over."""
    split: str | None = None
    """Detection, for evaluation: which split to evaluate, such as test; by default the one beside
    train."""
    index: str | None = None
    """Shards: where their index is, if it does not lie beside them."""
    pool: int = POOL
    """Shards: samples of each process, read ahead, among which the next batches are drawn."""
    val_fraction: float = 0.2
    """Share of each class that is held out, where the folder has no val/; of shards, share of the
    shards."""
    on_bad: Literal["error", "skip"] = "error"
    """What to do about files that cannot be read: stop and name them, or leave them out."""
    check: bool = True
    """Whether to look at the files before training."""
    decode: Decode = "fast"
    """How training decodes images: JPEGs no further than a crop needs ("fast"; docs/input.md says
    how close pixels stay), or as they are evaluated on ("exact"). Evaluating is always exact."""
    workers: int | None = None
    """Processes that decode; by default from the number of cores."""

    def __post_init__(self) -> None:
        """Refuse what is out of range, and what would be ignored.

        Raises:
            ValueError: such an option.
        """
        _within("data.ignore", self.ignore, 0, 65535)
        _within("data.val_fraction", self.val_fraction, 0, 1, inclusive=False)
        _at_least("data.workers", self.workers, 0)
        _at_least("data.pool", self.pool, 0)
        if self.name is not None and self.index is not None:
            raise ValueError("data.index is for shards, not for what data.name opens")
        if self.name is not None and (self.val_fraction, self.on_bad) != (0.2, "error"):
            raise ValueError(
                "data.val_fraction and data.on_bad are for folders of images: a data set that "
                "is opened by data.name has its own splits"
            )

    def refuse_foreign(self, task: Task) -> None:
        """See that no option is given that means nothing to a task.

        Raises:
            ValueError: there is one.
        """
        usual = DataOptions(root=self.root)
        meant = {
            "name": ("classification",),
            "index": ("classification",),
            "pool": ("classification",),
            "format": ("detection", "segmentation"),
            "classes": ("segmentation",),
            "ignore": ("segmentation",),
            "split": ("detection",),
            "check": ("classification", "detection"),
        }
        for option, tasks in meant.items():
            if task not in tasks and getattr(self, option) != getattr(usual, option):
                raise ValueError(f"data.{option} is for {' and '.join(tasks)}, not for {task}")

    @property
    def class_names(self) -> tuple[str, ...] | None:
        """`classes` as names."""
        return class_names(self.classes)


@dataclass(frozen=True, kw_only=True)
class SamplerOptions:
    """How images are batched."""

    mode: Literal["multiscale", "standard"] = "multiscale"
    """Sizes that change from step to step, or one size."""
    min_size: int | None = None
    """Smallest size in pixels; by default 0.625 of the base size, as the paper's 160 of 256."""
    max_size: int | None = None
    """Largest size; by default 1.25 of the base size, as the paper's 320 of 256."""
    scales: int = 5
    """Sizes between the two, ahead of rounding."""
    multiple: int = 32
    """What sizes are rounded to."""
    batch_rule: BatchRule = "area"
    """How the batch follows the size; see `MultiScaleSchedule`."""

    def __post_init__(self) -> None:
        """Refuse what is out of range.

        Raises:
            ValueError: such an option.
        """
        for name in ("min_size", "max_size", "scales", "multiple"):
            _at_least(f"sampler.{name}", getattr(self, name), 1)


@dataclass(frozen=True, kw_only=True)
class OptimOptions:
    """The optimiser and its learning rate."""

    name: Literal["adamw", "sgd"] = "adamw"
    """AdamW, or stochastic gradient descent with momentum."""
    lr: float | None = None
    """Peak learning rate; by default 0.002 for new weights, 0.001 for given ones, in detection
    0.001, in segmentation 0.001 and 0.0005. They suit AdamW: SGD must be given its own."""
    momentum: float = 0.9
    """Of SGD; AdamW has none."""
    final_lr: float = 0.1
    """Where the cosine ends, as a share of the peak; 1, with no warmup, is a fixed rate."""
    warmup: float = 0.05
    """Share of all steps in which the rate rises linearly, at most 3000 steps."""
    head_lr: float | None = None
    """The head's learning rate, as a multiple of the backbone's; by default 10 in segmentation, as
    the paper's, else 1."""
    weight_decay: float = 0.01
    """On all parameters, as the authors' v1 recipe."""
    decay_norms: bool = True
    """Whether the decay is on norms and biases too; the authors' v2 recipe leaves them out."""
    clip: float | None = 1.0
    """Largest norm of the gradient; null: any. The paper has none, in batches of 1024; in small
    batches of changing size single large gradients spoil a run, see docs/training.md."""
    accumulate: int = 1
    """Batches whose gradients are averaged before a step."""

    def __post_init__(self) -> None:
        """Refuse what is out of range.

        Raises:
            ValueError: such an option.
        """
        _at_least("optim.accumulate", self.accumulate, 1)
        if self.name not in ("adamw", "sgd"):
            raise ValueError(f"optim.name must be adamw or sgd, not {self.name!r}")
        if not 0 <= self.momentum < 1:
            raise ValueError(f"optim.momentum must be at least 0 and below 1, not {self.momentum}")
        if self.name == "adamw" and self.momentum != 0.9:
            raise ValueError("optim.momentum is for optim.name sgd; AdamW has none")
        if self.name == "sgd" and self.lr is None:
            raise ValueError(
                "optim.name sgd needs optim.lr: the default rates suit AdamW. The authors of "
                "MobileViTv2 fine-tune at 0.001 to 0.01"
            )
        _within("optim.final_lr", self.final_lr, 0, 1)
        _within("optim.warmup", self.warmup, 0, 1)
        for name in ("lr", "head_lr", "clip"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise ValueError(f"optim.{name} must be above 0, not {value}")
        if not 0 <= self.weight_decay < math.inf:
            raise ValueError(f"optim.weight_decay must be at least 0, not {self.weight_decay}")


@dataclass(frozen=True, kw_only=True)
class DistillOptions:
    """A teacher, whose answers the network learns (classification)."""

    teacher: str | None = None
    """Whatever `load` reads: a model folder, a published name, ...; or torchvision:NAME, such as
    torchvision:resnet101, with its published weights; torchvision:NAME=FILE takes those of a
    file. It must know all classes, by these names."""
    weight: float = 1.0
    """Share of the teacher's loss, 0 to 1; the rest is the labels'. The authors: 1."""
    temperature: float = 1.0
    """What both networks' logits are divided by for the teacher's loss. The authors: 1."""

    def __post_init__(self) -> None:
        """Refuse what is out of range, and what would be ignored.

        Raises:
            ValueError: such an option.
        """
        _within("distill.weight", self.weight, 0, 1)
        if not 0 < self.temperature < math.inf:
            raise ValueError(f"distill.temperature must be above 0, not {self.temperature}")
        if self.teacher is None and (self.weight, self.temperature) != (1.0, 1.0):
            raise ValueError("distill.weight and distill.temperature are for a distill.teacher")


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


def _within(name: str, value: float, low: float, high: float, *, inclusive: bool = True) -> None:
    if not (low <= value <= high if inclusive else low < value < high):
        raise ValueError(f"{name} must be between {low:g} and {high:g}, not {value}")


def _at_least(name: str, value: int | None, least: int) -> None:
    if value is not None and value < least:
        raise ValueError(f"{name} must be at least {least}, not {value}")
