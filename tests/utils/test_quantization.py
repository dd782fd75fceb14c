"""The arithmetic of int8."""

import numpy as np
import pytest
import torch
from torch.nn.utils.fusion import fuse_conv_bn_weights

from mobilevit.utils.quantization import fake_quantize, fake_quantize_weight


def by_hand(values, low, high):
    """256 steps between two ends, in float64."""
    values, low, high = (np.asarray(one, np.float64) for one in (values, low, high))
    scale = (high - low) / 255
    zero = np.rint(-low / scale)
    return (np.clip(np.rint(values / scale) + zero, 0, 255) - zero) * scale


@pytest.mark.parametrize("shape", [(5, 3, 3, 3), (7, 1, 3, 3), (6, 11)])
def test_weights_have_a_symmetric_range_for_each_output_channel(shape):
    torch.manual_seed(0)
    weight = torch.randn(shape) * torch.logspace(-3, 2, shape[0]).view(-1, *[1] * (len(shape) - 1))
    weight[1] = 0
    exact = weight.double().flatten(1).numpy()
    scale = np.abs(exact).max(1, keepdims=True) / 127
    expected = np.rint(exact / np.where(scale == 0, 1, scale)) * scale
    found = fake_quantize_weight(weight).flatten(1).double().numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-12)
    assert all(len(np.unique(row)) <= 255 for row in found)


def test_rounding_of_weights_and_folding_of_batch_norm_change_places():
    """Whatever the sign and size of what batch norm multiplies by."""
    torch.manual_seed(0)
    weight = torch.randn(8, 4, 3, 3)
    scale = torch.tensor([-3.0, 2.0, -0.01, 100.0, 1.0, -1.0, 0.0, 0.3])
    rest = (None, torch.randn(8), torch.rand(8) + 0.1, 1e-5, scale, torch.randn(8))

    def folded(values):
        return fuse_conv_bn_weights(values, *rest)[0]

    ours, theirs = folded(fake_quantize_weight(weight)), fake_quantize_weight(folded(weight))
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("low", "high"), [(-1.3, 4.2), (0.0, 1.0), (-2.0, 0.0), (0.0, 0.0)])
def test_values_have_one_range_and_keep_zero(low, high):
    values = torch.linspace(-6, 6, 1001)
    found = fake_quantize(values, torch.tensor(low), torch.tensor(high))
    if high > low:
        np.testing.assert_allclose(found, by_hand(values, low, high), atol=1e-5)
    assert len(found.unique()) <= 256
    assert fake_quantize(torch.zeros(1), torch.tensor(low), torch.tensor(high)) == 0


def test_channels_of_a_map_can_have_their_own():
    values = torch.randn(2, 3, 4, 5)
    low, high = torch.tensor([-1.2, -0.1, -5.0]), torch.tensor([1.0, 0.2, 4.0])
    ends = (one.view(-1, 1, 1).numpy() for one in (low, high))
    np.testing.assert_allclose(fake_quantize(values, low, high), by_hand(values, *ends), atol=1e-5)


def test_gradients_pass_but_not_where_values_are_cut_off():
    values = torch.tensor([-3.0, -0.5, 0.123, 0.9, 7.0], requires_grad=True)
    fake_quantize(values, torch.tensor(-1.0), torch.tensor(1.0)).sum().backward()
    assert values.grad.tolist() == [0, 1, 1, 1, 0]
    weight = torch.randn(3, 4, requires_grad=True)
    fake_quantize_weight(weight).sum().backward()
    assert torch.equal(weight.grad, torch.ones(3, 4))
