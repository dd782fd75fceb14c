"""Int8: equalized channels, the layers that suffer, and how few must stay in float."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from mobilevit.data.options import DataOptions
from mobilevit.exports.backends.litert.quantize import belongs_to
from mobilevit.exports.backends.registry import BACKENDS
from mobilevit.exports.options import ExportOptions
from mobilevit.exports.quantize import (
    EqualizedConv,
    Trial,
    equalize_channels,
    fewest_float_layers,
    quantizable_layers,
    rank_layers,
)
from mobilevit.exports.spec import ExportError, ExportSpec
from mobilevit.exports.wrap import PreparedModel
from mobilevit.models.layers import ConvNormAct, InvertedResidual
from mobilevit.utils.quantization import fake_quantize, fake_quantize_weight, quantize_weight
from tests.exports.conftest import PACKAGES, distinctive
from tests.numerics import assert_close

LOUD = {f"network.backbone.stages.1.0.{name}.conv" for name in ("expand", "depthwise")}
"""Layers between which one channel is a thousand times as large as the others."""


@pytest.fixture(scope="module")
def prepared(images: list[Image.Image]) -> PreparedModel:
    """A network with a channel that reaches far, as in trained networks; not equalized."""
    model = distinctive("mobilevit_xxs")
    block = model.backbone.stages[1][0]
    assert isinstance(block, InvertedResidual)
    with torch.no_grad():
        block.expand.norm.weight[0] *= 1000
        block.depthwise.conv.weight[0] /= 1000
    spec = ExportSpec(quantize="int8", calibration=tuple(images))
    return BACKENDS["openvino"].prepare(model, spec)


def outputs(prepared: PreparedModel) -> torch.Tensor:
    with torch.inference_mode():
        return torch.cat([prepared.module(image) for image in prepared.calibration()])


def test_channels_are_equalized(prepared: PreparedModel) -> None:
    before = outputs(prepared)
    equalized = equalize_channels(prepared)
    blocks = [one for one in equalized.module.modules() if isinstance(one, EqualizedConv)]
    assert len(blocks) == 7 and max(float(one.scale.max()) for one in blocks) > 100
    assert_close(outputs(equalized), before)
    assert quantizable_layers(equalized.module).keys() == quantizable_layers(prepared.module).keys()
    assert torch.equal(outputs(prepared), before)  # the original is unchanged


def test_blocks_in_float_are_not_equalized(prepared: PreparedModel) -> None:
    spec = replace(prepared.spec, float_layers=frozenset(LOUD))
    equalized = equalize_channels(replace(prepared, spec=spec))
    kept = equalized.module.get_submodule("network.backbone.stages.1.0.expand")
    assert isinstance(kept, ConvNormAct)
    assert sum(isinstance(one, EqualizedConv) for one in equalized.module.modules()) == 6


def test_the_layers_that_suffer_are_found(prepared: PreparedModel) -> None:
    before = outputs(prepared)
    ranked = rank_layers(prepared)
    assert sorted(ranked) == sorted(quantizable_layers(prepared.module)) and len(ranked) == 90
    assert set(ranked[:2]) == LOUD
    assert set(rank_layers(equalize_channels(prepared))[:2]) != LOUD
    assert torch.equal(outputs(prepared), before)


def needing(count: int, tried: list[int]) -> Callable[[frozenset[str]], float]:
    """Of files that lose nothing once the `count` worst layers are in float."""

    def drop(float_layers: frozenset[str]) -> float:
        tried.append(len(float_layers))
        return 0.0 if {f"layer {index}" for index in range(count)} <= float_layers else 0.05

    return drop


@pytest.mark.parametrize("count", [0, 1, 2, 3, 7, 20, 59, 60])
def test_the_fewest_float_layers(count: int) -> None:
    ranked, tried = [f"layer {index}" for index in range(60)], []
    found, trials = fewest_float_layers(ranked, needing(count, tried), max_drop=0.01)
    assert found == frozenset(ranked[:count])
    assert [trial.float_layers for trial in trials] == tried and tried[0] == 0
    assert len(tried) == len(set(tried)) <= 2 + 2 * math.ceil(math.log2(60))
    assert any(one.float_layers == count and one.drop <= 0.01 for one in trials)
    assert str(Trial(3, 0.0125)) == "3 in float: drop 0.0125"


def test_where_float_is_not_enough() -> None:
    with pytest.raises(ExportError, match=r"even with all 3 layers in float the file loses 0\.05"):
        fewest_float_layers(["a", "b", "c"], lambda _layers: 0.05, max_drop=0.01)


def test_rounding_is_within_half_a_step() -> None:
    torch.manual_seed(0)
    weight = torch.randn(6, 4, 3, 3) * torch.tensor([1e-3, 0.1, 1, 5, 50, 0]).view(-1, 1, 1, 1)
    steps = weight.flatten(1).abs().amax(1) / 127
    values, scale = quantize_weight(weight)
    assert values.dtype == torch.int8 and values.abs().max() == 127
    restored = fake_quantize_weight(weight)
    assert_close(values.float() * scale.view(-1, 1, 1, 1), restored)
    assert ((restored - weight).flatten(1).abs().amax(1) <= steps / 2 * 1.001).all()
    turned, _ = quantize_weight(weight.movedim(0, 3), axis=3)
    assert torch.equal(turned.movedim(3, 0), values)
    low, high = torch.tensor(-1.0), torch.tensor(3.0)
    x = torch.linspace(-1, 3, 1000)
    assert (fake_quantize(x, low, high) - x).abs().max() <= 4 / 255 / 2 * 1.001
    assert fake_quantize(torch.zeros(1), low, high) == 0


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("a.qkv", True),
        ("a.qkv.query", True),
        ("b.expand.conv", True),
        ("b.expand.gate", True),
        ("a.qkvs", False),
        ("b.expand", False),
    ],
)
def test_parts_belong_to_their_layer(name: str, found: bool) -> None:
    assert belongs_to(name, {"a.qkv", "b.expand.conv"}) is found


@pytest.mark.slow
@pytest.mark.parametrize("backend", PACKAGES)
def test_int8_is_small_and_accurate(shared: Path, tmp_path: Path, backend: str) -> None:
    """Of weights trained on photographs: at most two of 80 more are wrong."""
    from mobilevit.commands.export import export

    for package in PACKAGES[backend]:
        pytest.importorskip(package)
    options: dict[str, Any] = {
        "quantize": "int8",
        "classes": "Blight,Common_Rust,Gray_Leaf_Spot,Healthy,Other",
        "preprocessing": {"resize": 288, "crop": 256},
        "data": DataOptions(root=str(shared / "data" / "corn_leaf")),
        "limit": 80,
        "max_drop": 2.6,
    }
    weights = shared / "data" / "weights" / "timm_mobilevit_xxs_corn_leaf.pth"
    out = str(tmp_path / f"leaf{BACKENDS[backend].suffix}")
    result = export(weights, ExportOptions(out=out, **options))
    assert result.accuracy is not None and result.fp32_size is not None
    assert result.accuracy.images == 80 and result.accuracy.pytorch > 0.9
    assert result.size < 0.4 * result.fp32_size
    assert result.verification.agreement >= 0.9
