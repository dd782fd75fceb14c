"""The inference graph: the same outputs, in operations that every runtime has."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from mobilevit.exports.rewrite import inference_graph
from mobilevit.exports.spec import ExportError
from mobilevit.models.fuse import fuse
from mobilevit.models.mobilevit import MobileViTv2Block
from mobilevit.models.registry import build
from tests.numerics import assert_close


def busy(name: str, **options: object) -> nn.Module:
    """A network, in evaluation mode, in which every parameter and statistic matters."""
    torch.manual_seed(0)
    model = build(name, num_classes=7, **options).eval()  # type: ignore[arg-type]
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


@pytest.mark.parametrize("dynamic_size", [False, True])
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
def test_outputs_stay(name: str, options: dict[str, object], dynamic_size: bool) -> None:
    model = busy(name, **options)
    graph, fused = inference_graph(model, dynamic_size=dynamic_size), fuse(model)
    with torch.inference_mode():
        for size in ((64, 64), (56, 56), (72, 104)):
            x = torch.rand(2, 3, *size)
            expected, found = joined(fused(x)), joined(graph(x))
            assert_close(found, expected)


@pytest.mark.parametrize("name", ["mobilevit_xxs", "mobilevitv2_050"])
@pytest.mark.parametrize("size", [256, 224])
def test_outputs_stay_at_the_sizes_of_the_papers(name: str, size: int) -> None:
    model = busy(name)
    x = torch.rand(1, 3, size, size)
    with torch.inference_mode():
        assert_close(inference_graph(model)(x), fuse(model)(x))


def operations(module: nn.Module, x: Tensor) -> tuple[set[str], int]:
    """Names of a network's operations, and the most axes that a tensor in it has."""
    graph = torch.export.export(module, (x,)).graph
    nodes = [node for node in graph.nodes if node.op == "call_function"]
    results = [node.meta.get("val") for node in nodes]
    most = max(result.ndim for result in results if isinstance(result, Tensor))
    return {str(node.target) for node in nodes}, most


@pytest.mark.parametrize("name", ["mobilevit_xxs", "mobilevitv2_050"])
def test_graph_has_four_axes_and_no_attention_operation(name: str) -> None:
    model, x = busy(name), torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        names, most = operations(inference_graph(model), x)
        _, before = operations(fuse(model), x)
    assert most == 4 and before == 6  # before: so the tensors are seen
    assert not any("upsample" in name or "attention" in name for name in names), names


def test_original_is_left_as_it_was() -> None:
    model = busy("mobilevitv2_050").train()
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    inference_graph(model)
    assert model.training
    after = model.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[key], before[key]) for key in before)


def test_unknown_blocks_are_refused() -> None:
    class Renamed(MobileViTv2Block):
        pass

    model = build("mobilevitv2_050", num_classes=2)
    model.backbone.stage3[1].__class__ = Renamed
    with pytest.raises(ExportError, match=r"Renamed cannot be exported: .*REWRITES has no rewrite"):
        inference_graph(model)
