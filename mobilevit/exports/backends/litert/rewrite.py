"""The form of a network that LiteRT runs in the fewest operations.

Compared with `mobilevit.exports.rewrite`, the outputs are the same within float rounding, and

* v1's norms only divide by the root of the mean square. What they subtract is zero already: the
  weights of all layers that write to the tokens are centred. Scale and shift are in the next layer;
* queries, keys and values come from a layer each, so nothing is cut apart;
* v2's keys are made of one token, the mean of all by their scores: the layer for keys is linear and
  the scores sum to 1, so the mean of the keys is the key of the mean;
* the last mean over a map is taken of rows of channels, which is how LiteRT keeps a map.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mobilevit.exports import rewrite as plain
from mobilevit.exports.centred import absorb, centre
from mobilevit.exports.quantize import Equalised


class RootMeanSquare(nn.Module):
    """`nn.LayerNorm` of rows whose mean is zero, without scale and shift."""

    def __init__(self, eps: float) -> None:
        """`eps`: added to the mean square."""
        super().__init__()
        self.eps = eps

    def forward(self, x: Tensor, samples: int = 1) -> Tensor:
        """`[M, d]` -> `[M, d]`; `samples` is for norms that need it."""
        return x * torch.rsqrt((x * x).mean(dim=1, keepdim=True) + self.eps)


class SampleNorm(nn.Module):
    """`mobilevit.exports.rewrite.BareSampleNorm` in the fewest operations."""

    def __init__(self, eps: float) -> None:
        """`eps`: added to the variance."""
        super().__init__()
        self.eps = eps

    def forward(self, x: Tensor, samples: int) -> Tensor:
        """`[samples * M, d]`, normalised over all of a sample's M rows together."""
        whole = x.reshape(samples, -1)
        centred = whole - whole.mean(dim=1, keepdim=True)
        variance = (centred * centred).mean(dim=1, keepdim=True)
        return (centred * torch.rsqrt(variance + self.eps)).view_as(x)


class Attention(nn.Module):
    """`mobilevit.exports.rewrite.Attention` with a layer each for queries, keys and values."""

    def __init__(self, joined: plain.Attention) -> None:
        """Take the weights."""
        super().__init__()
        self.heads, self.width = joined.heads, joined.width
        dim = self.heads * self.width
        query, key, value = _split(joined.qkv, [dim, dim, dim])
        self.qkv = nn.ModuleDict({"query": query, "key": key, "value": value})
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
    """`mobilevit.exports.rewrite.SeparableAttention` with keys of one token."""

    def __init__(self, joined: plain.SeparableAttention) -> None:
        """Take the weights."""
        super().__init__()
        self.dim = joined.dim
        query, key, value = _split(joined.qkv, [1, self.dim, self.dim])
        self.qkv = nn.ModuleDict({"query": query, "key": key, "value": value})
        self.out = joined.out

    def forward(self, x: Tensor, tokens: int) -> Tensor:
        """`[G * N, d]` -> `[G * N, d]`, N = `tokens`."""
        scores = self.qkv["query"](x).reshape(-1, 1, tokens).softmax(dim=-1)  # [G, 1, N]
        mean = torch.bmm(scores, x.reshape(-1, tokens, self.dim))  # [G, 1, d]
        context = self.qkv["key"](mean.reshape(-1, self.dim))  # [G, d]
        y = F.relu(self.qkv["value"](x)).reshape(-1, tokens, self.dim) * context[:, None]
        return self.out(y.reshape(-1, self.dim))


class Layer(nn.Module):
    """`mobilevit.exports.rewrite.Layer` of these parts."""

    def __init__(self, joined: plain.Layer) -> None:
        """Take the parts; those of v1 get other weights."""
        super().__init__()
        first, second = joined.norms
        if isinstance(first, nn.LayerNorm):
            assert isinstance(second, nn.LayerNorm)
            for writing in (joined.attention.out, joined.project):
                centre(writing)
            absorb(first, joined.attention.qkv)
            absorb(second, joined.expand)
        self.norms = nn.ModuleList(_norm(norm) for norm in joined.norms)
        self.attention: Attention | SeparableAttention
        if isinstance(joined.attention, plain.Attention):
            self.attention = Attention(joined.attention)
        else:
            self.attention = SeparableAttention(joined.attention)
        self.expand, self.project = joined.expand, joined.project

    def forward(self, x: Tensor, tokens: int, samples: int) -> Tensor:
        """`[G * N, d]` -> `[G * N, d]`, N = `tokens`, of `samples` images."""
        first, second = self.norms
        x = x + self.attention(first(x, samples), tokens)
        return x + self.project(F.silu(self.expand(second(x, samples))))


class Gated(nn.Module):
    """`mobilevit.exports.quantize.Equalised`, its scales as weights of a convolution.

    Eight bits hold those of a convolution with a range for each channel, other factors with one.
    """

    def __init__(self, joined: Equalised) -> None:
        """Take the convolution and the scales `[1, C, 1, 1]`."""
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
    """`mobilevit.exports.rewrite.ExportClassifier`, whose mean is of rows of channels."""

    def __init__(self, joined: plain.ExportClassifier) -> None:
        """Take the parts."""
        super().__init__()
        self.backbone, self.expand, self.head = joined.backbone, joined.expand, joined.head

    def forward(self, images: Tensor) -> Tensor:
        """Map images `[B, 3, H, W]` to logits `[B, K]`."""
        y = self.expand(self.backbone(images)[-1]).permute(0, 2, 3, 1)  # [B, H, W, C]
        return self.head(y.flatten(1, 2).mean(dim=1))


@torch.no_grad()
def litert_form(module: nn.Module) -> nn.Module:
    """Copy a prepared module for LiteRT.

    The outputs are the same within float rounding. Layers keep their names; what was one layer for
    queries, keys and values is now three within that name.

    Args:
        module: a `Whole` or `Raw`, or any other network, of which only the parts that are known
            here change.
    """
    module = copy.deepcopy(module)
    for part in module.modules():
        if isinstance(part, plain.Block | plain.Blockv2):
            if isinstance(part, plain.Block) and isinstance(part.norm, nn.LayerNorm):
                centre(part.local_project)
                absorb(part.norm, part.global_project)
            part.norm = _norm(part.norm)  # type: ignore[assignment]
            part.layers = nn.ModuleList(
                Layer(layer)  # type: ignore[arg-type]
                for layer in part.layers
            )
        for name, inner in part.named_children():
            if isinstance(inner, plain.ExportClassifier):
                setattr(part, name, Classifier(inner))
            elif isinstance(inner, Equalised):
                setattr(part, name, Gated(inner))
    return module.eval().requires_grad_(False)


def _norm(joined: nn.Module) -> nn.Module:
    """The norm in these operations; of a layer norm, the rest is to be absorbed."""
    if isinstance(joined, nn.LayerNorm):
        return RootMeanSquare(joined.eps)
    assert isinstance(joined, plain.BareSampleNorm)
    return SampleNorm(joined.eps)


def _split(joined: nn.Linear, sizes: list[int]) -> list[nn.Linear]:
    """One layer's outputs as several layers."""
    weights = joined.weight.split(sizes)
    biases = joined.bias.split(sizes)
    return [
        _linear(weight.clone(), bias.clone()) for weight, bias in zip(weights, biases, strict=True)
    ]


def _linear(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
    layer.weight = nn.Parameter(weight, requires_grad=False)
    if bias is not None:
        layer.bias = nn.Parameter(bias, requires_grad=False)
    return layer
