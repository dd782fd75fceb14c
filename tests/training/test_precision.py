"""bf16 on CPUs: chosen where it pays, and close to float32."""

from contextlib import ExitStack

import pytest
import torch
from torch.nn import functional as F

from mobilevit.models.registry import build
from mobilevit.training.precision import FastKernels, choose_precision, has_bf16
from tests.training.runs import colour_images, small


@pytest.mark.parametrize("size", [8, 9])
@pytest.mark.parametrize(("stride", "dilation"), [(1, 1), (2, 1), (1, 2)])
def test_a_depthwise_convolution_has_the_gradients_of_float32(size, stride, dilation):
    x = torch.randn(2, 6, size, size + 1).to(memory_format=torch.channels_last).requires_grad_()
    weight = torch.randn(6, 1, 3, 3, requires_grad=True)
    exact = F.conv2d(x, weight, None, stride, dilation, dilation, 6)
    gradient = torch.randn_like(exact)
    expected = exact, *torch.autograd.grad(exact, (x, weight), gradient)
    with torch.autocast("cpu", torch.bfloat16), FastKernels():
        y = F.conv2d(x, weight, None, (stride,) * 2, (dilation,) * 2, (dilation,) * 2, 6)
    found = y, *torch.autograd.grad(y, (x, weight), gradient.bfloat16())
    assert y.dtype == torch.bfloat16
    assert [one.dtype for one in found[1:]] == [torch.float32] * 2
    assert found[1].is_contiguous(memory_format=torch.channels_last)
    for one, other in zip(found, expected, strict=True):
        assert (one - other).norm() < 0.01 * other.norm()


def test_only_depthwise_convolutions_and_attention_are_replaced():
    x = torch.randn(1, 8, 5, 5)
    full, grouped = torch.randn(8, 8, 3, 3), torch.randn(8, 4, 3, 3)
    tokens = torch.randn(2, 2, 6, 4)
    with torch.autocast("cpu", torch.bfloat16):
        usual = F.conv2d(x, full), F.conv2d(x, grouped, groups=2), tokens @ tokens.mT
        with FastKernels():
            same = F.conv2d(x, full), F.conv2d(x, grouped, groups=2), tokens @ tokens.mT
            attention = F.scaled_dot_product_attention(tokens, tokens, tokens)
    assert all(map(torch.equal, usual, same))
    exact = F.scaled_dot_product_attention(tokens, tokens, tokens)
    assert torch.equal(attention, exact.bfloat16())


@pytest.mark.parametrize("name", ["mobilevit_xxs", "mobilevitv2_050", "deeplabv3_mobilevit_xxs"])
def test_networks_have_the_gradients_of_autocast(name):
    """Closer to float32 than torch's bf16 alone, or as close."""
    torch.manual_seed(0)
    network = build(name, num_classes=3).eval()  # running statistics: no dropout, no noise by batch
    images = torch.rand(2, 3, 64, 64)
    parameters = list(network.parameters())

    def gradient(*contexts):
        with ExitStack() as stack:
            for context in contexts:
                stack.enter_context(context)
            output = network(images)
        loss = output.float().square().mean()
        return torch.cat([one.flatten() for one in torch.autograd.grad(loss, parameters)])

    exact = gradient()
    usual = gradient(torch.autocast("cpu", torch.bfloat16))
    fast = gradient(torch.autocast("cpu", torch.bfloat16), FastKernels())
    error, bound = (fast - exact).norm(), (usual - exact).norm()
    assert 0 < error < 1.2 * bound + 0.01 * exact.norm()


def test_auto_follows_the_instructions_of_the_processor(monkeypatch):
    cpu = torch.device("cpu")
    for capabilities, precision in (
        ({"avx512_bf16": True}, "bf16"),
        ({"amx_bf16": True}, "bf16"),
        ({"bf16": True}, "bf16"),  # ARM
        ({"avx512_bf16": False, "avx2": True}, "fp32"),
    ):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda found=capabilities: found)
        assert choose_precision(cpu)[0] == precision
    assert choose_precision(torch.device("mps"))[0] == "fp32"


@pytest.mark.slow
def test_a_run_prints_the_precision_it_chose_and_why(tmp_path, capsys, monkeypatch):
    images = colour_images(tmp_path / "images", count=6)
    small(images, tmp_path / "auto", epochs=1, precision="auto")
    reason = choose_precision(torch.device("cpu"))[1]
    chosen = "bf16" if has_bf16() else "fp32"
    assert f"precision {chosen}: {reason}" in capsys.readouterr().out

    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx2": True})
    small(images, tmp_path / "bf16", epochs=1, precision="bf16")
    assert "warning: this CPU has no bf16 instructions" in capsys.readouterr().out
