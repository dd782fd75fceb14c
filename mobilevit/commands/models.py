"""The command `mobilevit models`: what each network costs, known before it runs; whose weights.

Networks are built on torch's meta device, where a tensor has a shape and no data, so that even the
largest at 1024 px takes a moment and next to no memory.
"""

from __future__ import annotations

import copy
import textwrap
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from mobilevit.checkpoints.pretrained import BASE, MIRROR, PUBLISHED, Published
from mobilevit.commands.memory import HEAD, STAGES, peak_activations
from mobilevit.models.mobilevit import Backbone, MobileViTBlock, MobileViTv2Block, round_up
from mobilevit.models.registry import VARIANTS, architecture, build, list_models
from mobilevit.utils.tables import markdown

MACS = (
    "MACs: multiplications, each with its addition, in convolutions, linear layers and attention "
    "products (v1: queries by keys, weights by values; v2: scores by keys). Not counted: biases, "
    "norms, activations, softmax, other elementwise products, resizing, pooling."
)
"""What a multiply-accumulate is: the one definition behind every such number."""

PEAK = (
    "Peak: bytes of all float32 tensors alive at once while PyTorch runs one image, the image "
    "included, in the form for inference (batch norm folded into convolutions, activations in "
    "place). Not counted: weights, and work space inside an operator. 1 MB = 10^6 bytes. v1's "
    "attention is one operator; a runtime that splits it holds 4 x heads x P x N^2 bytes or more."
)
"""What peak activation memory is: the one definition behind every such number."""

KINDS = {
    torch.ops.aten.convolution: "convolution",
    torch.ops.aten.mm: "linear",
    torch.ops.aten.addmm: "linear",
    torch.ops.aten.bmm: "attention",
}
"""Operators that count -> the kind of product that they are in these networks."""

FIGURES = ("parameters", "conv", "linear", "attention", "MACs", "peak")
"""Heads of the columns that `Cost.figures` fills."""


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What a network, or a part of it, costs for one image."""

    parameters: int
    convolution: int
    """Multiply-accumulates in convolutions, as `MACS` defines them; so the next two."""
    linear: int
    attention: int
    peak_bytes: int
    """Most bytes alive at once while this runs; `PEAK` is the definition."""

    @property
    def macs(self) -> int:
        """All multiply-accumulates."""
        return self.convolution + self.linear + self.attention

    def figures(self) -> tuple[str, ...]:
        """One text for each of `FIGURES`: multiply-accumulates in millions, bytes in MB."""
        counts = (self.convolution, self.linear, self.attention, self.macs, self.peak_bytes)
        return f"{self.parameters:,}", *map(_millions, counts)


@dataclass(frozen=True, kw_only=True)
class Tokens:
    """What the transformer of one MobileViT block works on, in the paper's letters."""

    layers: int
    """L."""
    pixels: int
    """P, pixels of a patch; attention runs among the patches, for each of these apart."""
    patches: int
    """N = HW / P, once the map's sides are rounded up to whole patches."""
    dim: int
    """d, channels of a token."""
    separable: bool
    """v2: each token meets one vector that sums up all N. In v1 each meets all N."""

    def __str__(self) -> str:
        """How many attention products these need: a formula with its numbers."""
        pairs = f"{self.patches}" if self.separable else f"2 x {self.patches}^2"
        return f"{self.layers} x {pairs} x {self.pixels} x {self.dim}"


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A stage of the backbone, or the head."""

    name: str
    shape: tuple[int, ...]
    """Channels, height and width of the map that it gives; of the head, its logits' shape."""
    stride: int | None
    """How many image pixels a map pixel stands for along a side; None for the head."""
    tokens: Tokens | None
    """None where there is no MobileViT block."""
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
        """The whole network's."""
        return _total(self.stages)

    def __str__(self) -> str:
        """Stages and total, the definitions, and how attention grows with the image."""
        rows: list[Sequence[str]] = []
        growth: list[Sequence[str]] = []
        for stage, double in zip(self.stages, self.doubled, strict=True):
            tokens = ""
            if stage.tokens:
                tokens = f"{stage.tokens.pixels} x {stage.tokens.patches}"
                here, there = stage.cost.attention, double.cost.attention
                products = f"{stage.tokens} = {_millions(here)}"
                products_there = f"{double.tokens} = {_millions(there)}"
                growth.append((stage.name, products, products_there, f"x {there / here:.1f}"))
            shape = " x ".join(map(str, stage.shape))
            rows.append((stage.name, shape, f"{stage.stride or ''}", tokens, *stage.cost.figures()))
        rows.append(("total", "", "", "", *self.cost.figures()))
        here, there = (cost.macs - cost.attention for cost in (self.cost, _total(self.doubled)))
        growth.append(("all else", _millions(here), _millions(there), f"x {there / here:.1f}"))
        law = (
            "L x 2 N^2 x P x d, or O(N^2 P d): with the square of the image's area"
            if architecture(self.name).block is MobileViTBlock
            else "L x N x P x d, or O(N P d): with the image's area, like all else"
        )
        return _text(
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
    """Variant -> what it costs."""

    def __str__(self) -> str:
        """One row for each variant, and the definitions."""
        rows = [(name, *cost.figures()) for name, cost in self.costs.items()]
        title = f"All variants at {self.size} x {self.size} px; MACs in millions, peak in MB"
        return _text(title, markdown(("model", *FIGURES), rows), MACS, PEAK)


@dataclass(frozen=True, kw_only=True)
class PublishedTable:
    """The checkpoints that the authors published; `str()` gives a table in plain text."""

    entries: tuple[Published, ...]

    def __str__(self) -> str:
        """One row for each, and how to use them."""
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
        licences = " or ".join(sorted({entry.licence for entry in self.entries}))
        return _text(
            "Weights that the authors of MobileViT published, with their own figures",
            markdown((*heads, "source"), rows, left=(0, 1, 2, len(heads))),
            f"Sources lie under {BASE}, or where the environment variable {MIRROR} says.",
            f"Licence: {licences}; it holds for these weights and what descends from them.",
            "A name that loads can stand wherever a model or weights are asked for.",
        )


def describe(
    *,
    pretrained: bool = False,
    model: str | None = None,
    size: int = 256,
    patch_sizes: tuple[int, int, int] | None = None,
    output_stride: int | None = None,
    num_classes: int | None = None,
) -> ModelTable | ModelSummary | PublishedTable:
    """Say what networks cost: parameters, multiply-accumulates, peak activation memory.

    Args:
        pretrained: list the published checkpoints instead; with `model`, those of this name.
        model: a model name, to see its stages; without it, a table of all variants' classifiers.
        size: image height and width in pixels, at least 32.
        patch_sizes: patch side in the last three stages; without it, (2, 2, 2).
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
    measure = partial(
        _measure,
        num_classes=num_classes,
        patch_sizes=(2, 2, 2) if patch_sizes is None else patch_sizes,
        output_stride=output_stride,
    )
    if model is None:
        costs = {name: _total(measure(name, size)) for name in VARIANTS}
        return ModelTable(size=size, costs=costs)
    stages, doubled = measure(model, size), measure(model, 2 * size)
    return ModelSummary(name=model, size=size, stages=stages, doubled=doubled)


def _measure(name: str, size: int, *, num_classes: int | None, **options: Any) -> tuple[Stage, ...]:
    """All stages of one network, with `build`'s options, at one image size."""
    with torch.device("meta"):
        network = build(name, num_classes=num_classes, **options).eval()
        backbone = build(name, features_only=True, **options).eval()
        images = torch.empty(1, 3, size, size)
    assert isinstance(backbone, Backbone)
    assert not isinstance(network, Backbone)
    # Not in inference mode, where attention would reach the counter as one unknown operator.
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        said = network(images)
    flops, peaks = counter.get_flop_counts(), peak_activations(network, images)
    with torch.no_grad():
        shapes = [tuple(x.shape[1:]) for x in backbone(images)]

    stages: list[Stage] = []
    kind = type(network).__name__
    for (stage, paths), shape, info in zip(
        STAGES.items(), shapes, backbone.feature_info, strict=True
    ):
        parts = [network.get_submodule(path) for path in paths]
        cost = Cost(
            parameters=sum(weight.numel() for part in parts for weight in part.parameters()),
            **_macs(*(flops.get(f"{kind}.{path}", {}) for path in paths)),
            peak_bytes=peaks[stage],
        )
        tokens = _tokens(parts[-1], shape)
        stages.append(Stage(name=stage, shape=shape, stride=info.stride, tokens=tokens, cost=cost))
    whole, before = _macs(flops["Global"]), _total(stages)
    head = Cost(
        parameters=sum(weight.numel() for weight in network.parameters()) - before.parameters,
        **{kind: count - getattr(before, kind) for kind, count in whole.items()},
        peak_bytes=peaks[HEAD],
    )
    shape = tuple(said.logits.shape[1:]) if hasattr(said, "logits") else tuple(said.shape[1:])
    stages.append(Stage(name=HEAD, shape=shape, stride=None, tokens=None, cost=head))
    return tuple(stages)


def count_macs(network: nn.Module, size: int) -> int:
    """Multiply-accumulates of a network for one image of `size` x `size` pixels; see `MACS`."""
    # On the meta device attention is the two products that it is, and nothing is computed.
    network = copy.deepcopy(network).to("meta").requires_grad_(False)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        network(torch.empty(1, 3, size, size, device="meta"))
    return counter.get_total_flops() // 2


def _macs(*flops: Mapping[Any, int]) -> dict[str, int]:
    """Multiply-accumulates by kind, of counts by operator."""
    macs: Counter[str] = Counter()
    for counts in flops:
        for operator, count in counts.items():
            macs[KINDS[operator]] += count // 2  # a FLOP is a multiplication or an addition
    return {kind: macs[kind] for kind in KINDS.values()}


def _tokens(stage: nn.Module, shape: tuple[int, ...]) -> Tokens | None:
    """What the stage's MobileViT block, if it has one, makes of a map `(C, H, W)`."""
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


def _total(stages: Iterable[Stage]) -> Cost:
    """Sums of the stages' costs; the peak is the largest of theirs."""
    costs = [stage.cost for stage in stages]
    return Cost(
        parameters=sum(cost.parameters for cost in costs),
        convolution=sum(cost.convolution for cost in costs),
        linear=sum(cost.linear for cost in costs),
        attention=sum(cost.attention for cost in costs),
        peak_bytes=max(cost.peak_bytes for cost in costs),
    )


def _millions(count: int) -> str:
    return f"{count / 1e6:,.1f}"


def _text(*parts: str) -> str:
    """Tables as they are, and paragraphs filled, with empty lines between them."""
    wrapped = (part if part.startswith("|") else textwrap.fill(part, 100) for part in parts)
    return "\n\n".join(wrapped)
