"""Int8: equalize channel ranges, rank layers by their error, and keep the fewest in float.

An inverted residual widens its map, and a few of the wide channels reach a hundred times as far as
the others: one range for all channels leaves most of them a handful of steps. What lies between
the block's two 1x1 convolutions works on single channels. So each channel is divided by its own
scale after the first convolution, and the depthwise weights, which have a range per channel anyway,
are multiplied by it.
"""

import copy
import logging
from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mobilevit.exports.rewrite import Stages
from mobilevit.exports.spec import ExportError
from mobilevit.exports.wrap import PreparedModel
from mobilevit.models.layers import ConvNormAct, InvertedResidual
from mobilevit.utils.quantization import fake_quantize, fake_quantize_weight

log = logging.getLogger(__name__)

SILU_DEPTH = 3.0
"""How far below zero a channel's values count ahead of SiLU, which maps lower ones to almost 0."""
EQUALIZED_RANGE = (-2.0, 1.0)
"""Of an equalized channel ahead of SiLU; lower values make no difference after it."""
RANKING_IMAGES = 16
"""Most calibration images that layers are ranked on."""

Range = tuple[Tensor, Tensor]


class EqualizedConv(nn.Module):
    """A convolution and SiLU, with each output channel divided by its own scale."""

    scale: Tensor

    def __init__(self, trained: ConvNormAct, scale: Tensor) -> None:
        """Take over a fused convolution; `scale` holds the divisors, `[C]`."""
        super().__init__()
        self.conv = trained.conv
        assert isinstance(self.conv, nn.Conv2d) and self.conv.bias is not None
        with torch.no_grad():
            self.conv.weight /= scale.view(-1, 1, 1, 1)
            self.conv.bias /= scale
        self.register_buffer("scale", scale.view(1, -1, 1, 1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """`[B, C_in, H, W]` -> `[B, C, H, W]`."""
        y = self.conv(x)
        return y * torch.sigmoid(y * self.scale)


def quantizable_layers(module: nn.Module) -> dict[str, nn.Conv2d | nn.Linear]:
    """The layers that can be quantized, by their names in the module."""
    modules = module.named_modules()
    return {name: one for name, one in modules if isinstance(one, nn.Conv2d | nn.Linear)}


def layers_to_quantize(prepared: PreparedModel) -> frozenset[str]:
    """Names of all quantizable layers except `ExportSpec.float_layers`, which must exist."""
    layers = frozenset(quantizable_layers(prepared.module))
    unknown = prepared.spec.float_layers - layers
    if unknown:
        raise ExportError(
            f"float_layers: there are no layers {', '.join(sorted(unknown))}; there are: "
            f"{', '.join(sorted(layers))}"
        )
    return layers - prepared.spec.float_layers


def narrow_layers(module: nn.Module, min_channels: int) -> frozenset[str]:
    """Layers of the stem and of inverted residuals that take fewer channels than `min_channels`."""
    found: set[str] = set()
    for name, part in module.named_modules():
        if isinstance(part, InvertedResidual) and part.expand.conv.in_channels < min_channels:
            found.update(f"{name}.{layer}" for layer in quantizable_layers(part))
        elif isinstance(part, Stages) and part.stem.conv.in_channels < min_channels:
            found.add(f"{name}.stem.conv")
    return frozenset(found)


def equalize_channels(prepared: PreparedModel) -> PreparedModel:
    """Copy a float32 network with equalized channel ranges where layers are quantized.

    The outputs are the same within float rounding, and layers keep their names.
    """
    module = copy.deepcopy(prepared.module)
    quantized = layers_to_quantize(prepared)
    blocks = {
        name: block
        for name, block in module.named_modules()
        if isinstance(block, InvertedResidual)
        and block.expand.act is F.silu
        and not quantized.isdisjoint((f"{name}.expand.conv", f"{name}.depthwise.conv"))
    }
    reaches: dict[str, Tensor] = {}

    def observe(name: str, x: Tensor, y: Tensor) -> None:
        low, high = y.amin((0, 2, 3)), y.amax((0, 2, 3))
        reach = torch.maximum(high, low.neg().clamp(max=SILU_DEPTH))
        reaches[name] = torch.maximum(reach, reaches.get(name, reach))

    # The convolutions, since the activations work in place.
    convs = {name: block.expand.conv for name, block in blocks.items()}
    with torch.inference_mode(), _observed(convs, observe):
        for image in prepared.calibration():
            module(image)
    for name, block in blocks.items():
        # Multiples of a step, up to 255: the scales of a block share one 8-bit range.
        step = reaches[name].max().clamp(min=1e-3) / 255
        scale = (reaches[name] / step).ceil().clamp(min=1).clone() * step
        block.expand = EqualizedConv(block.expand, scale)  # type: ignore[assignment]
        with torch.no_grad():
            block.depthwise.conv.weight *= scale.view(-1, 1, 1, 1)
    return replace(prepared, module=module)


@contextmanager
def _observed(
    layers: Mapping[str, nn.Module], observe: Callable[[str, Tensor, Tensor], None]
) -> Iterator[None]:
    """Call `observe` with a layer's name, input and output whenever it runs."""
    with ExitStack() as hooks:
        for name, layer in layers.items():
            hook = layer.register_forward_hook(
                lambda _layer, inputs, y, name=name: observe(name, inputs[0], y)
            )
            hooks.enter_context(hook)
        yield


def rank_layers(prepared: PreparedModel) -> list[str]:
    """Order the layers to quantize by the error if only that layer is in int8, largest first.

    As in a quantized file, a layer's weights have a range per output channel, its input and output
    one range each, observed on the calibration images. A layer's error is the mean square of the
    change in the logits (and in a detector's offsets), as a share of their variance.
    """
    images = prepared.calibration()
    module, quantized = prepared.module, layers_to_quantize(prepared)
    layers = {
        name: layer for name, layer in quantizable_layers(module).items() if name in quantized
    }
    with torch.inference_mode():
        ranges = _observe_ranges(module, layers, images)
        images = images[:: -(-len(images) // RANKING_IMAGES)]
        if len({image.shape for image in images}) == 1:
            images = [torch.cat(images)]
        expected = _logits(module, images)
        errors = {}
        for name, layer in layers.items():
            with _fake_quantized(layer, *ranges[name]):
                found = _logits(module, images)
            errors[name] = sum(
                float((other - truth).square().mean() / truth.var().clamp(min=1e-12))
                for truth, other in zip(expected, found, strict=True)
            )
    return sorted(errors, key=lambda name: errors[name], reverse=True)


def _logits(module: Any, images: Sequence[Tensor]) -> list[Tensor]:
    """A network's outputs ahead of its post-processing: each for all images, as one vector."""
    outputs = [module.logits(image) for image in images]
    parts = [(one,) if isinstance(one, Tensor) else one for one in outputs]
    return [torch.cat([part.flatten() for part in same]) for same in zip(*parts, strict=True)]


def _observe_ranges(
    module: nn.Module, layers: dict[str, nn.Conv2d | nn.Linear], images: Sequence[Tensor]
) -> dict[str, tuple[Range, Range]]:
    ranges: dict[str, tuple[Range, Range]] = {}
    zero = torch.tensor(0.0)

    def observe(name: str, x: Tensor, y: Tensor) -> None:
        old = ranges.get(name, ((zero, zero), (zero, zero)))
        before, after = (
            (torch.minimum(low, values.min()), torch.maximum(high, values.max()))
            for (low, high), values in zip(old, (x, y), strict=True)
        )
        ranges[name] = before, after

    with _observed(layers, observe):
        _logits(module, images)
    for name, part in module.named_modules():
        if isinstance(part, EqualizedConv):
            low, high = map(torch.tensor, EQUALIZED_RANGE)
            ranges[f"{name}.conv"] = ranges[f"{name}.conv"][0], (low, high)
    return ranges


@contextmanager
def _fake_quantized(layer: nn.Conv2d | nn.Linear, inputs: Range, outputs: Range) -> Iterator[None]:
    """Round a layer's weights, inputs and outputs to int8."""
    weight = layer.weight
    layer.weight = nn.Parameter(fake_quantize_weight(weight), requires_grad=False)
    before = layer.register_forward_pre_hook(lambda _layer, x: (fake_quantize(x[0], *inputs),))
    after = layer.register_forward_hook(lambda _layer, _x, y: fake_quantize(y, *outputs))
    try:
        with before, after:
            yield
    finally:
        layer.weight = weight


@dataclass(frozen=True)
class Trial:
    """A quantized file that was tried."""

    float_layers: int
    drop: float
    """In points of accuracy."""

    def __str__(self) -> str:
        return f"{self.float_layers} in float: drop {self.drop:.3g}"


def fewest_float_layers(
    ranked: Sequence[str], drop: Callable[[frozenset[str]], float], *, max_drop: float
) -> tuple[frozenset[str], list[Trial]]:
    """Find how few of the worst layers must stay in float.

    None is tried first, then the worst one, two, four and so on, up to all; then the numbers
    between the last failure and the first success by bisection. The result is the smallest number
    if more layers in float never lose more.

    Args:
        ranked: names of layers, the worst first.
        drop: writes a file with these layers in float, and returns its loss.
        max_drop: the largest loss, in the unit of `drop`.

    Returns:
        The layers, and all that was tried, in that order.
    """
    trials: list[Trial] = []

    def passes(count: int) -> bool:
        lost = drop(frozenset(ranked[:count]))
        trials.append(Trial(count, lost))
        log.info("%s", trials[-1])
        return lost <= max_drop

    powers = (2**power for power in range(len(ranked).bit_length()))
    counts = sorted({0, *powers, len(ranked)} & set(range(len(ranked) + 1)))
    index = next((index for index, count in enumerate(counts) if passes(count)), None)
    if index is None:
        raise ExportError(
            f"even with all {len(ranked)} layers in float the file loses {trials[-1].drop:.3g}, "
            f"more than {max_drop:g}: the loss does not come from int8"
        )
    between = range(counts[index - 1] + 1 if index else 0, counts[index])
    count = between.start + bisect_left(between, True, key=passes)
    return frozenset(ranked[:count]), trials
