"""The inference graph in the fewest LiteRT operations.

The outputs are those of `mobilevit.exports.rewrite` within float rounding. The differences are:

* v1's norms become a division by the root mean square; see `center_tokens`;
* products of attention have three axes;
* the last mean over a map is taken over rows of channels, LiteRT's memory layout of a map.
"""

import copy
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from mobilevit.exports import rewrite as graphs
from mobilevit.exports.quantize import EqualizedConv


class RootMeanSquare(graphs.BareNorm):
    """`TokenNorm` of rows whose mean is zero."""

    def forward(self, x: Tensor, samples: int) -> Tensor:
        values = x.float()  # the squares of large values overflow float16
        scale = torch.rsqrt((values * values).mean(dim=1, keepdim=True) + self.eps)
        return (values * scale).to(x.dtype)


class SampleNorm(graphs.BareNorm):
    """`BareSampleNorm` in the fewest operations."""

    def forward(self, x: Tensor, samples: int) -> Tensor:
        values = x.float().reshape(samples, -1)
        centered = values - values.mean(dim=1, keepdim=True)
        variance = (centered * centered).mean(dim=1, keepdim=True)
        return (centered * torch.rsqrt(variance + self.eps)).view_as(x).to(x.dtype)


class Attention(nn.Module):
    """`rewrite.Attention` whose products have three axes."""

    def __init__(self, attention: graphs.Attention) -> None:
        super().__init__()
        self.width, self.qkv, self.out = attention.width, attention.qkv, attention.out

    def forward(self, x: Tensor, tokens: int, samples: int) -> Tensor:
        """`[B * N * P, d]` -> `[B * N * P, d]`, B = `samples`, N = `tokens`."""
        q, k, v = (layer(x).reshape(samples, tokens, -1, self.width) for layer in self.qkv.values())
        q, v = (part.transpose(1, 2).reshape(-1, tokens, self.width) for part in (q, v))
        k = k.permute(0, 2, 3, 1).reshape(-1, self.width, tokens)  # [B * P * heads, d / heads, N]
        y = torch.bmm(torch.bmm(q, k).softmax(dim=-1), v)  # [B * P * heads, N, d / heads]
        y = y.reshape(samples, -1, tokens, self.width).transpose(1, 2)
        return self.out(y.reshape(x.shape))


class GatedConv(nn.Module):
    """`EqualizedConv` whose scales are the weights of a depthwise convolution.

    In int8 those have a range per channel, other factors one range for all.
    """

    def __init__(self, joined: EqualizedConv) -> None:
        super().__init__()
        self.conv = joined.conv
        channels = joined.scale.shape[1]
        self.gate = nn.Conv2d(channels, channels, 1, groups=channels, bias=False)
        self.gate.weight = nn.Parameter(joined.scale.view(-1, 1, 1, 1), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        """`[B, C_in, H, W]` -> `[B, C, H, W]`."""
        y = self.conv(x)
        return y * torch.sigmoid(self.gate(y))


class Classifier(nn.Module):
    """`Classifier` whose mean is taken over rows of channels."""

    def __init__(self, joined: graphs.Classifier) -> None:
        super().__init__()
        self.backbone, self.expand, self.head = joined.backbone, joined.expand, joined.head

    def forward(self, images: Tensor) -> Tensor:
        """`[B, 3, H, W]` -> logits `[B, K]`."""
        y = self.expand(self.backbone(images)[-1]).permute(0, 2, 3, 1)  # [B, H, W, C]
        return self.head(y.flatten(1, 2).mean(dim=1))


REWRITES: Mapping[type[nn.Module], Callable[[Any], nn.Module]] = {
    graphs.TokenNorm: RootMeanSquare,
    graphs.BareSampleNorm: SampleNorm,
    graphs.Attention: Attention,
    graphs.Classifier: Classifier,
    EqualizedConv: GatedConv,
}
"""Parts of an inference graph that take fewer LiteRT operations in another form."""


@torch.no_grad()
def litert_graph(
    module: nn.Module,
    rewrites: Mapping[type[nn.Module], Callable[[Any], nn.Module]] = REWRITES,
) -> nn.Module:
    """Copy a prepared module for LiteRT, with the same outputs within float rounding.

    Layers keep their names.
    """
    holder = nn.ModuleDict({"module": copy.deepcopy(module)})
    graphs.center_tokens(holder)
    for part in list(holder.modules()):
        for name, child in part.named_children():
            if type(child) in rewrites:
                setattr(part, name, rewrites[type(child)](child))
    return holder["module"].eval().requires_grad_(False)
