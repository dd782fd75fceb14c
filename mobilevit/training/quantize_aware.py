"""Quantization-aware training: fine-tuning with the rounding of int8 files.

torchao's `prepare_qat_pt2e` does not fit: it trains an exported graph of one size and one mode.
Lightning cannot switch it between training and validation, and no float model folder for all
formats can be saved from it.
"""

from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrize

from mobilevit.models.layers import ConvNormAct, InvertedResidual
from mobilevit.models.registry import Network, build
from mobilevit.utils.quantization import fake_quantize, fake_quantize_weight

MOMENTUM = 0.01
"""Weight of a batch in the moving averages of the ranges."""
SILU_DEPTH = 3.0
"""Where exports equalize channels, a channel's range before SiLU goes at most so far below 0."""


class FakeQuantize(nn.Module):
    """Round activations to int8, within ranges that follow those of training batches.

    In evaluation the ranges are fixed. Exports use the extremes over calibration images instead;
    augmentation makes extremes that no real image has.

    Args:
        channels: number of channels with a range each; 0: one range for all.
        equalized_silu: whether the values go into SiLU, and exports equalize their channels.
    """

    def __init__(self, channels: int = 0, *, equalized_silu: bool = False) -> None:
        super().__init__()
        self.channels, self.equalized_silu = channels, equalized_silu
        self.register_buffer("low", torch.zeros((channels,) if channels else ()))
        self.register_buffer("high", torch.zeros((channels,) if channels else ()))

    def forward(self, values: Tensor) -> Tensor:
        low, high = self.get_buffer("low"), self.get_buffer("high")
        values = values.float()  # mixed precision has fewer bits than the scale needs
        if self.training:
            self._observe(values.detach(), low, high)
        if self.equalized_silu:
            high = torch.maximum(high, low.neg().clamp(max=SILU_DEPTH))
            low = -2 * high
        return fake_quantize(values, low, high)

    @torch.no_grad()
    def _observe(self, values: Tensor, low: Tensor, high: Tensor) -> None:
        axes = (0, 2, 3) if self.channels else tuple(range(values.ndim))
        batch_low, batch_high = values.amin(axes).clamp(max=0), values.amax(axes).clamp(min=0)
        first = high == low  # nothing but zeros has been seen
        low.copy_(torch.where(first, batch_low, low.lerp(batch_low, MOMENTUM)))
        high.copy_(torch.where(first, batch_high, high.lerp(batch_high, MOMENTUM)))


class FakeQuantizeWeight(nn.Module):
    """The same for weights, as a parametrization: the float weights are trained."""

    def forward(self, weight: Tensor) -> Tensor:
        return fake_quantize_weight(weight)


def add_fake_quantization(model: nn.Module) -> None:
    """Make a network compute as its int8 files will, in place.

    Weights and inputs of convolutions and linear layers are rounded, and outputs of convolutions
    after their norm and before their activation, as in most formats. Norms, softmax, products of
    attention and outputs of linear layers stay float. Weights are rounded before batch norm is
    folded: folding multiplies each output channel by one number, which its range absorbs.

    Exports equalize the channels between an inverted residual's first two convolutions, so these
    have a range for each channel.
    """
    equalized = {
        layer
        for block in model.modules()
        if isinstance(block, InvertedResidual) and block.expand.act is F.silu
        for layer in (block.expand.norm, block.depthwise.conv)
    }
    blocks = [module for module in model.modules() if isinstance(module, ConvNormAct)]
    convolutions_with_norm = {block.conv for block in blocks}
    for block in blocks:
        channels = block.conv.out_channels if block.norm in equalized else 0
        _quantize_output(block.norm, FakeQuantize(channels, equalized_silu=channels > 0))
    for layer in list(model.modules()):
        if not isinstance(layer, nn.Conv2d | nn.Linear):
            continue
        channels = layer.in_channels if isinstance(layer, nn.Conv2d) and layer in equalized else 0
        layer.quantize_input = FakeQuantize(channels)
        layer.register_forward_pre_hook(_round_input)
        if isinstance(layer, nn.Conv2d) and layer not in convolutions_with_norm:
            _quantize_output(layer, FakeQuantize())
        parametrize.register_parametrization(layer, "weight", FakeQuantizeWeight())


def without_fake_quantization(model: Network) -> Network:
    """A float network with the same tensors; the network itself if it is float."""
    if not any(isinstance(module, FakeQuantize) for module in model.modules()):
        return model
    with torch.device("meta"):
        plain: Any = build(model.name, num_classes=model.config.num_classes, **model.config.options)
    plain.load_state_dict(float_tensors(model), assign=True)
    plain.config = model.config
    return cast(Network, plain.train(model.training))


def float_tensors(model: nn.Module) -> dict[str, Tensor]:
    """The state of a network with fake quantization under the names that it has without."""
    return {
        key.replace("parametrizations.weight.original", "weight"): value
        for key, value in model.state_dict().items()
        if ".quantize_" not in key
    }


def _quantize_output(layer: nn.Module, quantizer: FakeQuantize) -> None:
    layer.quantize_output = quantizer
    layer.register_forward_hook(_round_output)


# Functions of the module, not methods of the quantizers: a copy of the network then uses its own.
def _round_input(layer: nn.Module, inputs: tuple[Any, ...]) -> Any:
    return layer.get_submodule("quantize_input")(inputs[0])


def _round_output(layer: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Any:
    return layer.get_submodule("quantize_output")(output)
