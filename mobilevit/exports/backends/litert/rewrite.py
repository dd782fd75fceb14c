"""The inference graph in the fewest LiteRT operations.

The outputs are those of `mobilevit.exports.rewrite` within float rounding. The differences are:

* v1's norms become a division by the root mean square; see `center_tokens`;
* queries, keys and values come from a layer each, so nothing has to be split;
* v2's keys are computed for one token, the mean of all by their scores: the key layer is linear and
  the scores sum to 1, so the mean of the keys is the key of the mean;
* the last mean over a map is taken over rows of channels, LiteRT's memory layout of a map.
"""

import copy
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

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
    """`rewrite.Attention` with a layer each for queries, keys and values."""

    def __init__(self, joined: graphs.Attention) -> None:
        super().__init__()
        self.heads, self.width = joined.heads, joined.width
        dim = self.heads * self.width
        self.qkv = _split(joined.qkv, query=dim, key=dim, value=dim)
        self.out = joined.out

    def forward(self, x: Tensor, tokens: int) -> Tensor:
        """`[G * N, d]` -> `[G * N, d]`, N = `tokens`."""
        q, k, v = (
            layer(x).reshape(-1, tokens, self.heads, self.width) for layer in self.qkv.values()
        )
        q, v = (part.transpose(1, 2).reshape(-1, tokens, self.width) for part in (q, v))
        k = k.permute(0, 2, 3, 1).reshape(-1, self.width, tokens)  # [G * heads, d / heads, N]
        y = torch.bmm(torch.bmm(q, k).softmax(dim=-1), v)  # [G * heads, N, d / heads]
        y = y.reshape(-1, self.heads, tokens, self.width).transpose(1, 2)
        return self.out(y.reshape(-1, self.heads * self.width))


class SeparableAttention(nn.Module):
    """`rewrite.SeparableAttention` with the key of one token."""

    def __init__(self, joined: graphs.SeparableAttention) -> None:
        super().__init__()
        self.dim = joined.dim
        self.qkv = _split(joined.qkv, query=1, key=self.dim, value=self.dim)
        self.out = joined.out

    def forward(self, x: Tensor, tokens: int) -> Tensor:
        """`[G * N, d]` -> `[G * N, d]`, N = `tokens`."""
        scores = self.qkv["query"](x).float().reshape(-1, 1, tokens).softmax(dim=-1)  # [G, 1, N]
        mean = torch.bmm(scores, x.float().reshape(-1, tokens, self.dim)).to(x.dtype)  # [G, 1, d]
        context = self.qkv["key"](mean.reshape(-1, self.dim)).float()  # [G, d]
        y = F.relu(self.qkv["value"](x).float()).reshape(-1, tokens, self.dim) * context[:, None]
        return self.out(y.reshape(-1, self.dim)).to(x.dtype)


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
    graphs.SeparableAttention: SeparableAttention,
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

    Layers keep their names; a layer for queries, keys and values becomes three within that name.
    """
    holder = nn.ModuleDict({"module": copy.deepcopy(module)})
    graphs.center_tokens(holder)
    for part in list(holder.modules()):
        for name, child in part.named_children():
            if type(child) in rewrites:
                setattr(part, name, rewrites[type(child)](child))
    return holder["module"].eval().requires_grad_(False)


def _split(joined: nn.Linear, **sizes: int) -> nn.ModuleDict:
    weights, biases = (part.split(list(sizes.values())) for part in (joined.weight, joined.bias))
    layers = nn.ModuleDict()
    for name, weight, bias in zip(sizes, weights, biases, strict=True):
        layer = layers[name] = nn.Linear(joined.in_features, len(bias), device="meta")
        layer.weight, layer.bias = nn.Parameter(weight.clone()), nn.Parameter(bias.clone())
    return layers
