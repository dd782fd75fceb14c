"""Rewritten networks: the same outputs, in operations that the runtimes have."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from mobilevit.exports.backends.executorch.xnnpack import DECOMPOSITIONS, xnnpack_graph
from mobilevit.exports.backends.litert.rewrite import GatedConv, RootMeanSquare, litert_graph
from mobilevit.exports.float16 import halve
from mobilevit.exports.quantize import EqualizedConv
from mobilevit.exports.rewrite import TokenNorm, inference_graph
from mobilevit.exports.spec import ExportError
from mobilevit.models.fuse import fuse
from mobilevit.models.layers import ConvNormAct, SeparableSelfAttention
from mobilevit.models.mobilevit import MobileViTv2Block
from mobilevit.models.registry import build, list_models
from tests.numerics import assert_close


def busy(name: str, **options: object) -> nn.Module:
    """A network, in evaluation mode, in which every parameter and statistic matters."""
    torch.manual_seed(0)
    model = build(name, num_classes=7, **options).eval()
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_(0, 0.2)
                module.running_var.uniform_(0.5, 1.5)
            if isinstance(module, nn.LayerNorm | nn.GroupNorm):
                module.weight.uniform_(0.5, 1.5)
            if isinstance(getattr(module, "bias", None), Tensor):
                module.bias.normal_(0, 0.1)
    return model


def joined(outputs: Tensor | tuple[Tensor, ...]) -> Tensor:
    return outputs if isinstance(outputs, Tensor) else torch.cat(outputs, dim=-1)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("mobilevit_xxs", {}),
        ("mobilevit_xxs", {"fusion": False, "patch_sizes": (4, 2, 2), "heads": 2}),
        ("mobilevitv2_050", {}),
        ("mobilevitv2_050", {"patch_sizes": (4, 2, 2), "output_stride": 8}),
        ("ssdlite_mobilevit_xxs", {}),
        ("deeplabv3_mobilevit_xxs", {}),
        ("pspnet_mobilevitv2_050", {}),
    ],
)
def test_outputs_are_the_same(name: str, options: dict[str, object]) -> None:
    model = busy(name, **options)
    graph, fused = inference_graph(model), fuse(model)
    with torch.inference_mode():
        for size in ((64, 64), (56, 56), (72, 104)):
            x = torch.rand(2, 3, *size)
            assert_close(joined(graph(x)), joined(fused(x)))


@pytest.mark.parametrize("name", ["mobilevit_xxs", "mobilevitv2_050"])
@pytest.mark.parametrize("size", [256, 224])
def test_outputs_are_the_same_at_the_sizes_of_the_papers(name: str, size: int) -> None:
    model = busy(name)
    x = torch.rand(1, 3, size, size)
    with torch.inference_mode():
        assert_close(inference_graph(model)(x), fuse(model)(x))


def operations(module: nn.Module, x: Tensor) -> tuple[set[str], int]:
    """Names of a network's operations, and the largest number of axes of its tensors."""
    graph = torch.export.export(module, (x,)).graph
    nodes = [node for node in graph.nodes if node.op == "call_function"]
    results = [node.meta.get("val") for node in nodes]
    rank = max(result.ndim for result in results if isinstance(result, Tensor))
    return {str(node.target) for node in nodes}, rank


@pytest.mark.parametrize("name", ["mobilevit_xxs", "mobilevitv2_050"])
def test_no_tensor_has_more_than_four_axes(name: str) -> None:
    model, x = busy(name), torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        names, rank = operations(inference_graph(model), x)
        _, before = operations(fuse(model), x)
    assert rank == 4 and before == 6  # before: so the tensors are seen
    assert not any(re.search("upsample|attention|split", name) for name in names), names


def test_the_original_is_unchanged() -> None:
    model = busy("mobilevitv2_050").train()
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    inference_graph(model)
    assert model.training
    after = model.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[key], before[key]) for key in before)


def test_unknown_blocks_are_refused() -> None:
    class Other(MobileViTv2Block):
        pass

    model = build("mobilevitv2_050", num_classes=2)
    model.backbone.stage3[1].__class__ = Other
    with pytest.raises(ExportError, match=r"Other cannot be exported: .*REWRITES has no rewrite"):
        inference_graph(model)


@pytest.mark.parametrize("rewrite", [xnnpack_graph, litert_graph])
@pytest.mark.parametrize("name", ["mobilevit_xxs", "mobilevitv2_050"])
def test_layer_norms_are_replaced(name: str, rewrite: Callable[..., nn.Module]) -> None:
    graph = inference_graph(busy(name))
    before = {key: tensor.clone() for key, tensor in graph.state_dict().items()}
    changed = rewrite(graph)
    assert not any(isinstance(module, TokenNorm) for module in changed.modules())
    count = sum(isinstance(module, RootMeanSquare) for module in changed.modules())
    assert count == (21 if name == "mobilevit_xxs" else 0)
    x = torch.rand(2, 3, 72, 104)
    with torch.inference_mode():
        assert_close(changed(x), graph(x))
    assert all(torch.equal(graph.state_dict()[key], before[key]) for key in before)


@pytest.mark.parametrize("name", ["mobilevit_xxs", "mobilevitv2_050", "ssdlite_mobilevit_xxs"])
def test_operations_that_xnnpack_lacks_are_decomposed(name: str) -> None:
    graph, x = inference_graph(busy(name)), torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        program = torch.export.export(xnnpack_graph(graph), (x,))
        program = program.run_decompositions(dict(DECOMPOSITIONS))
        assert_close(joined(program.module()(x)), joined(graph(x)))
    names = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
    lacking = ("layer_norm", "instance_norm", "batch_norm", "matmul", "split", "expand")
    assert not [name for name in names if any(part in name for part in lacking)]


def test_gates_have_the_scales() -> None:
    torch.manual_seed(0)
    layer = ConvNormAct(3, 5)
    layer.conv = nn.Conv2d(3, 5, 1)  # as `fuse` leaves it
    equalized = EqualizedConv(layer, torch.tensor([0.5, 1, 2, 8, 40]))
    holder = nn.Sequential(equalized).eval()
    changed = litert_graph(holder)
    assert isinstance(changed[0], GatedConv)  # type: ignore[index]
    x = torch.randn(2, 3, 6, 7)
    with torch.inference_mode():
        assert_close(changed(x), holder(x))


@pytest.mark.parametrize("rewrite", [lambda graph: graph, xnnpack_graph, litert_graph])
def test_separable_attention_does_not_overflow_in_half_precision(
    rewrite: Callable[..., nn.Module],
) -> None:
    """Products of values and context, 1e6 here, are beyond float16."""
    graph = inference_graph(loud("mobilevitv2_050"))
    x = torch.rand(2, 3, 64, 64)
    with torch.inference_mode():
        expected = rewrite(graph)(x)
        halve(graph)
        found = rewrite(graph)(x)
    assert_close(found, expected, tolerance=0.01)


def loud(name: str) -> nn.Module:
    """A network in which keys and values of attention are around 1e3, but not its outputs."""
    model = busy(name)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, SeparableSelfAttention):
                module.qkv.weight[1:] *= 500
                module.out.weight *= 1e-3
    return model


SMALLEST = ("mobilevit_xxs", "mobilevitv2_050")
"""Variants of both papers; others differ in width only."""


@pytest.mark.parametrize("name", [one for one in list_models() if one.endswith(SMALLEST)])
def test_networks_are_exported_for_any_batch_and_size(name: str) -> None:
    """By `torch.export`; the sides of other images need not be multiples of a patch."""
    model = build(name, num_classes=3).eval()
    dynamic = torch.export.Dim.DYNAMIC
    sides = {} if model.fixed_size else {2: dynamic, 3: dynamic}
    with torch.no_grad():
        example = torch.rand(2, 3, 96, 160)  # no side of a map of patches is 1
        program = torch.export.export(model, (example,), dynamic_shapes=({0: dynamic, **sides},))
        for shape in ((3, 3, 96, 160), (1, 3, 130, 95) if sides else (1, 3, 96, 160)):
            x = torch.rand(shape)
            assert_close(joined(program.module()(x)), joined(model(x)))
