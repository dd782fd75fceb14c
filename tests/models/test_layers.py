from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from mobilevit.models.layers import (
    ConvNormAct,
    Dropout,
    InvertedResidual,
    SampleNorm,
    SelfAttention,
    SeparableSelfAttention,
    make_divisible,
)
from tests.numerics import assert_close


@pytest.mark.parametrize("kernel_size", [1, 3, 5])
@pytest.mark.parametrize("dilation", [1, 2])
def test_convolution_keeps_the_size(kernel_size: int, dilation: int) -> None:
    layer = ConvNormAct(2, 4, kernel_size=kernel_size, dilation=dilation)
    assert layer(torch.rand(2, 2, 9, 6)).shape == (2, 4, 9, 6)


def test_strided_convolution_rounds_up() -> None:
    assert ConvNormAct(2, 4, kernel_size=3, stride=2)(torch.rand(2, 2, 9, 6)).shape[2:] == (5, 3)


def test_activation_leaves_the_input_alone() -> None:
    layer = ConvNormAct(4, 4).eval().requires_grad_(False)
    layer.conv, layer.norm = torch.nn.Conv2d(4, 4, 1, groups=4, bias=False), torch.nn.Identity()
    x = torch.randn(1, 4, 3, 3)
    before = x.clone()
    layer(x)
    assert torch.equal(x, before)


@pytest.mark.parametrize(("stride", "out_channels"), [(1, 8), (1, 16), (2, 8)])
def test_shortcut_only_between_equal_shapes(stride: int, out_channels: int) -> None:
    block = InvertedResidual(8, out_channels, stride=stride, expansion=2).eval()
    block.project.norm.weight.data.zero_()  # nothing but a shortcut is left
    x = torch.rand(1, 8, 6, 6)
    expected = x if (stride, out_channels) == (1, 8) else 0 * block(x)
    assert torch.equal(block(x), expected)


@given(st.integers(1, 4), st.integers(1, 9), st.sampled_from([1, 2, 4]))
def test_attention_is_that_of_the_textbook(batch: int, tokens: int, heads: int) -> None:
    torch.manual_seed(0)
    dim = 8
    attention = SelfAttention(dim, heads=heads).double().eval()
    x = torch.rand(batch, tokens, dim, dtype=torch.float64)
    parts = attention.qkv(x).reshape(batch, tokens, 3, heads, dim // heads)
    q, k, v = parts.permute(2, 0, 3, 1, 4)
    weights = (q @ k.mT / math.sqrt(dim // heads)).softmax(dim=-1)
    expected = attention.out((weights @ v).permute(0, 2, 1, 3).reshape(batch, tokens, dim))
    torch.testing.assert_close(attention(x), expected)


def test_separable_attention_is_that_of_the_paper() -> None:
    torch.manual_seed(0)
    attention = SeparableSelfAttention(6).double().eval()
    x = torch.rand(2, 4, 5, 6, dtype=torch.float64)
    query, key, value = attention.qkv(x).split([1, 6, 6], dim=-1)
    scores = query.exp() / query.exp().sum(dim=2, keepdim=True)
    context = (scores * key).sum(dim=2, keepdim=True)
    torch.testing.assert_close(attention(x), attention.out(value.clamp(min=0) * context))


def test_sample_norm_takes_channels_and_positions_together() -> None:
    torch.manual_seed(0)
    norm = SampleNorm(6)
    torch.nn.init.normal_(norm.weight)
    torch.nn.init.normal_(norm.bias)
    x = torch.rand(2, 4, 5, 6)
    expected = F.layer_norm(x, x.shape[1:]) * norm.weight + norm.bias
    torch.testing.assert_close(norm(x), expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(norm.without_copies(x), expected, atol=1e-5, rtol=1e-5)


@given(st.floats(1, 2000), st.sampled_from([8, 16]))
def test_make_divisible(value: float, divisor: int) -> None:
    result = make_divisible(value, divisor)
    assert result % divisor == 0
    assert result >= max(divisor, 0.9 * value)
    assert result <= max(divisor, value + divisor)
    assert make_divisible(value, divisor, 64) >= 64


@pytest.mark.parametrize("autocast", [False, True])
def test_separable_attention_does_not_overflow_in_half_precision(autocast: bool) -> None:
    """Products of values and context, 1e6 here, are beyond float16."""
    torch.manual_seed(0)
    attention = SeparableSelfAttention(16).eval().requires_grad_(False)
    attention.qkv.weight *= 1000
    attention.out.weight *= 1e-3
    x = torch.randn(2, 4, 9, 16)
    expected = attention(x)
    if autocast:
        with torch.autocast("cpu", torch.float16):
            found = attention(x)
    else:
        found = attention.half()(x.half())
        assert found.dtype == torch.float16
    assert_close(found, expected, tolerance=0.01)


@pytest.mark.parametrize("p", [0.05, 0.1, 0.5])
def test_dropout_keeps_the_mean_and_masks_gradients(p: float) -> None:
    dropout = Dropout(p)
    x = torch.rand(64, 33, 100).add_(0.5).requires_grad_()
    y = dropout(x)
    (gradient,) = torch.autograd.grad(y.sum(), x)
    torch.testing.assert_close(y, x * gradient)
    assert (y == 0).float().mean().item() == pytest.approx(p, abs=4e-3)
    torch.testing.assert_close(gradient.amax(), torch.tensor(1 / (1 - p)), rtol=1e-3, atol=0)
    assert y.mean().item() == pytest.approx(x.mean().item(), rel=0.02)
    assert not torch.equal(y, dropout(x))
    torch.testing.assert_close(dropout.eval()(x), x)


@pytest.mark.parametrize("p", [0.0, 1.0])
def test_dropout_of_nothing_and_of_everything(p: float) -> None:
    x = torch.ones(3, 5)
    torch.testing.assert_close(Dropout(p)(x), (1 - p) * x)


@pytest.mark.filterwarnings("ignore:.*torch.jit.trace:FutureWarning")
def test_dropout_draws_from_torchs_generator_and_works_under_transforms() -> None:
    dropout, x = Dropout(0.5), torch.ones(4, 1001)
    found = []
    for _ in range(2):
        torch.manual_seed(3)
        found.append(dropout(x))
    assert torch.equal(*found)
    rows = torch.vmap(dropout, randomness="different")(x)
    assert not torch.equal(rows[0], rows[1])
    traced = torch.jit.trace(dropout, x, check_trace=False)
    assert 0 < (traced(x) == 0).float().mean() < 1
