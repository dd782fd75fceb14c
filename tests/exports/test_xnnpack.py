"""The form of networks for XNNPACK: the same outputs, in operations that it has."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from mobilevit.exports.backends.executorch.xnnpack import RootNorm, decompositions, with_root_norms
from mobilevit.exports.rewrite import inference_graph
from mobilevit.models.registry import build
from tests.numerics import assert_close


def busy(name: str) -> nn.Module:
    """A network in the form for export, in which every parameter and statistic matters."""
    torch.manual_seed(0)
    model = build(name, num_classes=7).eval()
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.LayerNorm | nn.GroupNorm):
                module.weight.uniform_(0.5, 1.5)
            if isinstance(getattr(module, "bias", None), Tensor):
                module.bias.normal_(0, 0.1)
    return inference_graph(model)  # type: ignore[arg-type]


def test_norms_without_mean_scale_and_shift() -> None:
    form = busy("mobilevit_xxs")
    before = {key: tensor.clone() for key, tensor in form.state_dict().items()}
    changed = with_root_norms(form)
    assert not any(isinstance(module, nn.LayerNorm) for module in changed.modules())
    assert sum(isinstance(module, RootNorm) for module in changed.modules()) == 21
    x = torch.rand(2, 3, 72, 104)
    with torch.inference_mode():
        assert_close(changed(x), form(x))
    assert all(torch.equal(form.state_dict()[key], before[key]) for key in before)


@pytest.mark.parametrize("name", ["mobilevit_xxs", "mobilevitv2_050", "ssdlite_mobilevit_xxs"])
def test_what_xnnpack_lacks_is_written_out(name: str) -> None:
    form, x = busy(name), torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        program = torch.export.export(form, (x,)).run_decompositions(decompositions(half=False))
        expected, found = form(x), program.module()(x)
    for one, other in zip(expected, found, strict=True):
        assert_close(other, one)
    names = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
    lacking = ("layer_norm", "instance_norm", "batch_norm", "split", "matmul", "expand")
    assert not [name for name in names if any(part in name for part in lacking)]
