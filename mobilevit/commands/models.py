"""The command `mobilevit models`: what networks cost, and the published weights.

Networks are built on torch's meta device, where a tensor has a shape but no data, so that even the
largest at 1024 px takes a moment and hardly any memory.
"""

from __future__ import annotations

import copy
import textwrap
import weakref
from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import dataclass, fields
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from mobilevit.checkpoints.pretrained import BASE, LICENCE, MIRROR, PUBLISHED, Published
from mobilevit.models.fuse import fuse
from mobilevit.models.mobilevit import MobileViTBlock, MobileViTv2Block, round_up
from mobilevit.models.registry import VARIANTS, Network, build, list_models, split_name
from mobilevit.utils.tables import markdown

MACS = (
    "MACs: multiplications, each with its addition, in convolutions, linear layers and attention "
    "products (v1: queries by keys, weights by values; v2: scores by keys). Not counted: biases, "
    "norms, activations, softmax, other elementwise products, resizing, pooling."
)
"""The definition of multiply-accumulates wherever they are reported."""
PEAK = (
    "Peak: bytes of all float32 tensors alive at once while PyTorch runs one image, the image "
    "included, with batch norms folded into convolutions and activations in place. Not counted: "
    "weights, and work space inside an operator. 1 MB = 10^6 bytes. v1's attention is one "
    "operator; a runtime that splits it holds 4 x heads x P x N^2 bytes or more."
)
"""The definition of peak activation memory."""
HEAD = "head"
PARTS = {"stem": "stem, stage1", "stage1": "stem, stage1"} | {
    name: name for name in ("stage2", "stage3", "stage4", "stage5")
}
"""Module of the backbone -> the row of a summary that it belongs to; all else is the head."""
FIGURES = ("parameters", "conv", "linear", "attention", "MACs", "peak")
"""Heads of the columns that `Cost.figures` fills."""


@dataclass(frozen=True, kw_only=True)
class Cost:
    """The cost of a network, or of a part of it, for one image."""

    parameters: int
    convolution: int
    """Multiply-accumulates in convolutions, see `MACS`."""
    linear: int
    attention: int
    peak_bytes: int
    """Most bytes alive at once while this runs, see `PEAK`."""

    @property
    def macs(self) -> int:
        return self.convolution + self.linear + self.attention

    def figures(self) -> tuple[str, ...]:
        """One text for each of `FIGURES`: multiply-accumulates in millions, bytes in MB."""
        counts = (self.convolution, self.linear, self.attention, self.macs, self.peak_bytes)
        return f"{self.parameters:,}", *map(_millions, counts)

    @classmethod
    def total(cls, costs: Collection[Cost]) -> Cost:
        """The sums of several costs, and the largest of their peaks."""
        sums = {one.name: sum(getattr(cost, one.name) for cost in costs) for one in fields(cls)}
        return cls(**sums | {"peak_bytes": max(cost.peak_bytes for cost in costs)})


@dataclass(frozen=True, kw_only=True)
class Tokens:
    """The tokens of a MobileViT block's transformer, in the papers' letters."""

    layers: int
    """L."""
    pixels: int
    """P, pixels of a patch; attention is among the patches, for each of these pixels separately."""
    patches: int
    """N = HW / P, with the map's sides rounded up to full patches."""
    dim: int
    """d, channels of a token."""
    separable: bool
    """v2: each token meets one vector that sums up all N. In v1 each meets all N."""

    def __str__(self) -> str:
        """The number of attention products as a formula."""
        pairs = f"{self.patches}" if self.separable else f"2 x {self.patches}^2"
        return f"{self.layers} x {pairs} x {self.pixels} x {self.dim}"


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A stage of the backbone, or the head."""

    name: str
    shape: tuple[int, ...]
    """Channels, height and width of its output; of the head, the shape of its logits."""
    stride: int | None
    """Image pixels for each pixel of the output along a side; None for the head."""
    tokens: Tokens | None
    """None without a MobileViT block."""
    cost: Cost


@dataclass(frozen=True, kw_only=True)
class ModelSummary:
    """One network, stage by stage, at one image size; `str()` gives tables in plain text."""

    name: str
    size: int
    """Image height and width in pixels."""
    stages: tuple[Stage, ...]
    doubled: tuple[Stage, ...]
    """The same stages at twice the height and width: how costs grow."""

    @property
    def cost(self) -> Cost:
        return Cost.total([stage.cost for stage in self.stages])

    def __str__(self) -> str:
        rows, growth = [], []
        for stage, double in zip(self.stages, self.doubled, strict=True):
            patches = ""
            if stage.tokens:
                patches = f"{stage.tokens.pixels} x {stage.tokens.patches}"
                here, there = stage.cost.attention, double.cost.attention
                products = f"{stage.tokens} = {_millions(here)}"
                products_there = f"{double.tokens} = {_millions(there)}"
                growth.append((stage.name, products, products_there, f"x {there / here:.1f}"))
            shape = " x ".join(map(str, stage.shape))
            stride = f"{stage.stride or ''}"
            rows.append((stage.name, shape, stride, patches, *stage.cost.figures()))
        rows.append(("total", "", "", "", *self.cost.figures()))
        double_cost = Cost.total([stage.cost for stage in self.doubled])
        here, there = (cost.macs - cost.attention for cost in (self.cost, double_cost))
        growth.append(("all else", _millions(here), _millions(there), f"x {there / here:.1f}"))
        law = (
            "L x 2 N^2 x P x d, or O(N^2 P d): with the square of the image's area"
            if VARIANTS[split_name(self.name)[1]].block is MobileViTBlock
            else "L x N x P x d, or O(N P d): with the image's area, like all else"
        )
        return _join(
            f"{self.name} at {self.size} x {self.size} px; MACs in millions, peak in MB",
            markdown(("", "C x H x W", "stride", "P x N", *FIGURES), rows),
            MACS,
            PEAK,
            "Attention: L layers of width d among the N = HW / P patches of a map, once for each "
            f"of the P pixels of a patch. Its products grow as {law}.",
            markdown(("MACs", f"at {self.size} px", f"at {2 * self.size} px", "growth"), growth),
        )


@dataclass(frozen=True, kw_only=True)
class ModelTable:
    """All variants at one image size; `str()` gives a table in plain text."""

    size: int
    """Image height and width in pixels."""
    costs: dict[str, Cost]
    """By variant."""

    def __str__(self) -> str:
        rows = [(name, *cost.figures()) for name, cost in self.costs.items()]
        title = f"All variants at {self.size} x {self.size} px; MACs in millions, peak in MB"
        return _join(title, markdown(("model", *FIGURES), rows), MACS, PEAK)


@dataclass(frozen=True, kw_only=True)
class PublishedTable:
    """The checkpoints that the authors published; `str()` gives a table in plain text."""

    entries: tuple[Published, ...]

    def __str__(self) -> str:
        known = list_models()
        rows = [
            (
                entry.name,
                entry.task,
                entry.data,
                f"{entry.metric} {entry.value:g}",
                f"{entry.size or ''}",
                "" if entry.parameters is None else f"{entry.parameters:g}",
                "yes" if entry.model in known and entry.preprocessing else "no",
                entry.url.removeprefix(BASE),
            )
            for entry in self.entries
        ]
        heads = ("name", "task", "trained on", "as published, %", "px", "M parameters", "loads")
        return _join(
            "Weights that the authors of MobileViT published, with their own figures",
            markdown((*heads, "source"), rows, left=(0, 1, 2, len(heads))),
            f"Sources are relative to {BASE}, or to the environment variable {MIRROR}.",
            f"Licence: {LICENCE}; it applies to these weights and to what is derived from them.",
            "A name that loads is accepted wherever a command takes a model or weights.",
        )


def describe(
    *,
    pretrained: bool = False,
    model: str | None = None,
    size: int = 256,
    patch_sizes: tuple[int, int, int] = (2, 2, 2),
    output_stride: int | None = None,
    num_classes: int | None = None,
) -> ModelTable | ModelSummary | PublishedTable:
    """Report what networks cost: parameters, multiply-accumulates, peak activation memory.

    >>> describe(model="mobilevit_xxs").cost.macs
    407364096

    Args:
        pretrained: list the published checkpoints instead; with `model`, those of this name.
        model: a model name, to see its stages; without it, a table of all variants' classifiers.
        size: image height and width in pixels, at least 32.
        patch_sizes: patch side in the last three stages.
        output_stride: 8, 16 or 32, the coarsest stride; by default 16 in segmentation, else 32.
        num_classes: by default ImageNet's 1000, COCO's 80 or VOC's 21.

    Raises:
        ValueError: an unknown model, or an option out of its range.
    """
    if pretrained:
        entries = tuple(e for e in PUBLISHED.values() if model is None or e.model == model)
        if not entries:
            raise ValueError(f"no published checkpoint is of a model named {model!r}")
        return PublishedTable(entries=entries)
    if size < 32:
        raise ValueError(f"size must be at least 32 (pixels of an image's side), not {size}")

    options = {
        "num_classes": num_classes,
        "patch_sizes": patch_sizes,
        "output_stride": output_stride,
    }
    if model is None:
        costs = {
            name: Cost.total([one.cost for one in _stages(name, size, options)])
            for name in VARIANTS
        }
        return ModelTable(size=size, costs=costs)
    stages, doubled = (_stages(model, side, options) for side in (size, 2 * size))
    return ModelSummary(name=model, size=size, stages=stages, doubled=doubled)


def count_macs(network: Network, size: int) -> int:
    """Multiply-accumulates of a network for one image of `size` x `size` pixels; see `MACS`."""
    images = torch.empty(1, 3, size, size, device="meta")
    return Cost.total(measure(copy.deepcopy(network).to("meta"), images).values()).macs


def _stages(name: str, size: int, options: dict[str, Any]) -> tuple[Stage, ...]:
    with torch.device("meta"):
        network: Any = build(name, **options).eval()
        images = torch.empty(1, 3, size, size)
        backbone: Any = build(name, features_only=True, **options | {"num_classes": None})
        outputs = network(images)
    costs = measure(network, images)
    stages = []
    for info, sides in zip(backbone.feature_info, backbone.feature_sizes(size, size), strict=True):
        shape, part = (info.channels, *sides), PARTS[info.name]
        tokens = _tokens(backbone.get_submodule(info.name), shape)
        stages.append(
            Stage(name=part, shape=shape, stride=info.stride, tokens=tokens, cost=costs[part])
        )
    logits = outputs if isinstance(outputs, Tensor) else outputs[0]
    shape = tuple(logits.shape[1:])
    return *stages, Stage(name=HEAD, shape=shape, stride=None, tokens=None, cost=costs[HEAD])


def _tokens(stage: nn.Module, shape: tuple[int, ...]) -> Tokens | None:
    """The tokens that the stage's MobileViT block, if it has one, makes of a map `(C, H, W)`."""
    for block in stage.children():
        if isinstance(block, MobileViTBlock | MobileViTv2Block):
            height, width = (round_up(side, block.patch) for side in shape[1:])
            return Tokens(
                layers=len(block.transformer),
                pixels=block.patch**2,
                patches=height * width // block.patch**2,
                dim=block.local_project.out_channels,
                separable=isinstance(block, MobileViTv2Block),
            )
    return None


class CostCounter(TorchDispatchMode):
    """Entered together with inference mode, counts products and the bytes of living tensors."""

    def __init__(self, alive: int) -> None:
        super().__init__()
        self.alive = alive
        self.peaks: dict[str, int] = {}
        self.products: Counter[tuple[str, str]] = Counter()
        """By part of the network and field of `Cost`."""
        self.begin("")

    def begin(self, part: str, *_: object) -> None:
        """Attribute what follows to `part`; the other arguments are those of a module's hook."""
        self.part = part
        self.peaks.setdefault(part, self.alive)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func is ATEN.scaled_dot_product_attention.default and result.is_meta:
            # Real kernels lay their output out as the query, so that heads join without a copy.
            result = torch.empty_like(args[0])
        if func in PRODUCTS:
            field, count = PRODUCTS[func]
            self.products[self.part, field] += count(result, *args)
        given, returned = _storages((args, kwargs)), _storages(result)
        for key in returned.keys() - given.keys():  # excludes views and results in place
            size = returned[key].nbytes()
            self.alive += size
            weakref.finalize(returned[key], self._free, size)
        self.peaks[self.part] = max(self.peaks[self.part], self.alive)
        return result

    def _free(self, size: int) -> None:
        self.alive -= size


ATEN = torch.ops.aten
PRODUCTS: dict[Any, tuple[str, Callable[..., int]]] = {
    ATEN.conv2d.default: ("convolution", lambda y, x, weight, *_: y.numel() * weight[0].numel()),
    ATEN.linear.default: ("linear", lambda y, x, *_: y.numel() * x.shape[-1]),
    ATEN.matmul.default: ("attention", lambda y, scores, keys: y.numel() * keys.shape[-2]),
    ATEN.scaled_dot_product_attention.default: (
        "attention",
        lambda y, queries, keys, *_: 2 * y.numel() * keys.shape[-2],
    ),
}
"""Operation in inference mode -> the field of `Cost` that its products count for, and their number
from its result and its arguments."""


def _storages(tree: object) -> dict[int, torch.UntypedStorage]:
    """The storages of the tensors in nested arguments or results, by identity."""
    storages = [leaf.untyped_storage() for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]
    return {id(storage): storage for storage in storages}


def measure(network: Network, images: Tensor) -> dict[str, Cost]:
    """The cost of each of `PARTS` and of the `HEAD`, as `MACS` and `PEAK` define it.

    Meta tensors take no memory; on other devices the network is run, with the same result.
    """
    parameters: Counter[str] = Counter()
    for name, weight in network.named_parameters():
        module, _, _ = name.removeprefix("backbone.").partition(".")
        parameters[PARTS.get(module, HEAD)] += weight.numel()
    fused, counter = fuse(network), CostCounter(images.nbytes)
    for module, part in PARTS.items():
        hook = partial(counter.begin, part)
        fused.backbone.get_submodule(module).register_forward_pre_hook(hook)
    fused.backbone.register_forward_hook(partial(counter.begin, HEAD))
    with torch.inference_mode(), counter:
        fused(images)
    return {
        part: Cost(
            parameters=parameters[part],
            peak_bytes=counter.peaks[part],
            convolution=counter.products[part, "convolution"],
            linear=counter.products[part, "linear"],
            attention=counter.products[part, "attention"],
        )
        for part in (*dict.fromkeys(PARTS.values()), HEAD)
    }


def _millions(count: int) -> str:
    return f"{count / 1e6:,.1f}"


def _join(*parts: str) -> str:
    """Tables unchanged and paragraphs wrapped, with empty lines between them."""
    return "\n\n".join(part if part.startswith("|") else textwrap.fill(part, 100) for part in parts)
