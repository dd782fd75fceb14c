"""MobileViT's layers: maps are `[B, C, H, W]`, channels-last in memory, tokens `[..., N, d]`."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.jit import is_tracing  # type: ignore[attr-defined]
from torch.nn import functional as F

Activation = Callable[..., Tensor]
"""A function of `torch.nn.functional` with an `inplace` argument, such as `silu` or `relu`."""


class ConvNormAct(nn.Module):
    """Convolution, batch norm and activation; stride 2 maps a side of n to ceil(n / 2).

    `inplace`, which `fuse` sets, lets the activation overwrite its input: faster, but forward hooks
    then see values that are overwritten later.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        kernel_size: int = 1,
        stride: int = 1,
        dilation: int = 1,
        groups: int = 1,
        act: Activation | None = F.silu,
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(
            in_channels,
            out_channels,
            kernel_size,
            stride=stride,
            padding=(kernel_size - 1) // 2 * dilation,
            dilation=dilation,
            groups=groups,
            bias=False,
        )
        self.norm: nn.Module = nn.BatchNorm2d(out_channels)
        self.act = act
        self.inplace = False

    def forward(self, x: Tensor) -> Tensor:
        """`[B, C_in, H, W]` -> `[B, C_out, H', W']`."""
        x = self.norm(self.conv(x))
        # Never over a value that autograd needs.
        return x if self.act is None else self.act(x, inplace=self.inplace and not x.requires_grad)


class InvertedResidual(nn.Module):
    """MobileNetV2's block ("MV2" in the paper's Table 4): widen, filter per channel, narrow."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        stride: int,
        expansion: int,
        dilation: int = 1,
    ) -> None:
        super().__init__()
        hidden = make_divisible(in_channels * expansion, 8)
        self.expand = ConvNormAct(in_channels, hidden)
        self.depthwise = ConvNormAct(
            hidden, hidden, kernel_size=3, stride=stride, dilation=dilation, groups=hidden
        )
        self.project = ConvNormAct(hidden, out_channels, act=None)
        self.shortcut = stride == 1 and in_channels == out_channels

    def forward(self, x: Tensor) -> Tensor:
        """`[B, C_in, H, W]` -> `[B, C_out, H / stride, W / stride]`, sides rounded up."""
        y = self.project(self.depthwise(self.expand(x)))
        return x + y if self.shortcut else y


class PointwiseConv(nn.Linear):
    """A 1x1 convolution stored as a linear layer over the last axis.

    The authors' MobileViTv2 applies 1x1 convolutions to `[B, d, P, N]`; on tokens `[B, P, N, d]`
    they are matrix multiplications. The type is separate because such layers are initialised like
    convolutions, and other layouts store them with two more axes.
    """

    def forward(self, x: Tensor) -> Tensor:
        """`[..., d]` -> `[..., d']`; float32 input is not rounded to float16 weights."""
        if x.dtype == torch.float32 and self.weight.dtype == torch.float16:
            return F.linear(x, self.weight.float(), self.bias.float())
        return super().forward(x)


class SelfAttention(nn.Module):
    """Multi-head self-attention over N tokens, cost O(N^2 d), with dropout on the weights."""

    def __init__(self, dim: int, *, heads: int, dropout: float = 0.0) -> None:
        super().__init__()
        if dim % heads:
            raise ValueError(f"{heads} attention heads do not divide a width of {dim} channels")
        self.heads = heads
        self.dropout = dropout
        self.qkv = nn.Linear(dim, 3 * dim)
        self.out = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """`[B, N, d]` -> `[B, N, d]`."""
        q, k, v = (
            part.unflatten(-1, (self.heads, -1)).transpose(1, 2)  # [B, heads, N, d / heads]
            for part in self.qkv(x).chunk(3, dim=-1)
        )
        dropout = self.dropout if self.training else 0.0
        y = F.scaled_dot_product_attention(q, k, v, dropout_p=dropout)
        return self.out(y.transpose(1, 2).flatten(2))


class SeparableSelfAttention(nn.Module):
    """MobileViTv2's attention, cost O(N d): N scores weigh the keys into one context vector."""

    def __init__(self, dim: int, *, dropout: float = 0.0) -> None:
        super().__init__()
        self.dim = dim
        self.dropout = dropout
        self.qkv = PointwiseConv(dim, 1 + 2 * dim)
        self.out = PointwiseConv(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """`[B, P, N, d]` -> `[B, P, N, d]`; attention runs along N."""
        query, key, value = self.qkv(x).split([1, self.dim, self.dim], dim=-1)
        if value.dtype != torch.float16:
            return self._attend(query, key, value)
        # The products of values and context overflow float16.
        with torch.autocast(x.device.type, enabled=False):
            return self._attend(query.float(), key.float(), value.float()).to(x.dtype)

    def _attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        scores = F.dropout(query.softmax(dim=2), self.dropout, self.training)  # [B, P, N, 1]
        context = scores.transpose(2, 3) @ key  # [B, P, 1, d]
        return self.out(F.relu(value) * context)


class Dropout(nn.Dropout):
    """Dropout that costs a third of torch's time on a CPU, where drawing its mask dominates.

    An element takes 16 random bits from torch's global generator, so p is exact to 1 / 65536; the
    backward pass keeps one byte of each, not four. Compiled or traced it is torch's own.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Any shape; as it comes in evaluation mode."""
        drawn = self.training and 0 < self.p < 1 and x.device.type == "cpu"
        if not drawn or torch.compiler.is_compiling() or is_tracing():
            return super().forward(x)
        dropped = max(1, min(round(self.p * 2**16), 2**16 - 1))
        words = x.new_empty((x.numel() + 3) // 4, dtype=torch.int64).random_(-(2**63), None)
        bits = words.view(torch.int16)[: x.numel()].view(x.shape)
        return x.mul(bits >= dropped - 2**15).mul_(1 / (1 - dropped / 2**16))


class FeedForward(nn.Module):
    """Two linear layers, with SiLU and dropout between them, applied to each token."""

    def __init__(
        self, dim: int, hidden: int, *, dropout: float = 0.0, linear: type[nn.Linear] = nn.Linear
    ) -> None:
        super().__init__()
        self.expand = linear(dim, hidden)
        self.dropout = Dropout(dropout)
        self.project = linear(hidden, dim)
        self.inplace = False

    def forward(self, x: Tensor) -> Tensor:
        """`[..., d]` -> `[..., d]`."""
        x = self.expand(x)
        return self.project(self.dropout(F.silu(x, inplace=self.inplace and not x.requires_grad)))


class SampleNorm(nn.GroupNorm):
    """MobileViTv2's "LayerNorm2d", a group norm of one group, not a norm over each token."""

    def __init__(self, dim: int) -> None:
        super().__init__(1, dim)

    def forward(self, x: Tensor) -> Tensor:
        """`[B, P, N, d]` -> `[B, P, N, d]`."""
        if x.is_cuda:
            return self.without_copies(x)
        # The permuted view is a channels-last map [B, d, P, N]; nothing is copied.
        return super().forward(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)

    def without_copies(self, x: Tensor) -> Tensor:
        """The same for CUDA, whose group norm copies channels-last maps; slower on a CPU."""
        # One group is all values of a sample, whichever axis counts as the channels: here P.
        return torch.addcmul(self.bias, F.group_norm(x, 1, eps=self.eps), self.weight)


class TransformerLayer(nn.Module):
    """Pre-norm transformer layer: attention, then feed-forward, each added to its input."""

    def __init__(
        self,
        attention_norm: nn.Module,
        attention: nn.Module,
        feed_forward_norm: nn.Module,
        feed_forward: nn.Module,
        *,
        dropout: float,
    ) -> None:
        super().__init__()
        self.attention_norm = attention_norm
        self.attention = attention
        self.feed_forward_norm = feed_forward_norm
        self.feed_forward = feed_forward
        self.dropout = Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """`[..., N, d]` -> `[..., N, d]`."""
        x = x + self.dropout(self.attention(self.attention_norm(x)))
        return x + self.dropout(self.feed_forward(self.feed_forward_norm(x)))


def make_divisible(value: float, divisor: int, minimum: int | None = None) -> int:
    """Round to a multiple of `divisor`, at least `minimum`, never more than 10% below `value`."""
    rounded = max(minimum or divisor, int(value + divisor / 2) // divisor * divisor)
    return rounded + divisor if rounded < 0.9 * value else rounded


def initialise(model: nn.Module, *, linear_std: float = 0.02) -> None:
    """Initialise weights as the paper's 2021 code did, from torch's global generator.

    Convolutions are normal with variance 2 / fan_out, where even a depthwise convolution's fan_out
    counts all output channels. Linear layers are normal with standard deviation `linear_std`, 0.02
    in classification. Biases are 0, and norms start as the identity.
    """
    for module in model.modules():
        if isinstance(module, nn.Conv2d | PointwiseConv):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(module, nn.Linear):
            nn.init.trunc_normal_(module.weight, std=linear_std)  # the cut at +-2 is far away
        elif isinstance(module, nn.BatchNorm2d | nn.LayerNorm | nn.GroupNorm):
            nn.init.ones_(module.weight)
        else:
            continue
        if module.bias is not None:
            nn.init.zeros_(module.bias)
