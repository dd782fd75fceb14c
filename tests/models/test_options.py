"""The options of networks: what they change, how they are stored, and which are refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from mobilevit.models.layers import ConvNormAct
from mobilevit.models.registry import HEADS, VARIANTS, build, defaults, split_name

ONE_OF_EACH = [
    prefix + variant for prefix in HEADS for variant in ("mobilevit_xxs", "mobilevitv2_050")
]
LATER = {"output_stride": 8, "channels": 512, "aux": True, "align_corners": True}
"""DeepLabv3 on v1 in the authors' later code."""


def count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize(
    ("name", "option"),
    [
        (name, option)
        for name in ONE_OF_EACH
        for option in defaults(name) | dict.fromkeys(("attention_dropout", "ffn_dropout"))
        if "dropout" in option and "ssdlite" not in name
    ],
)
def test_each_dropout_is_random_in_training_alone(name: str, option: str) -> None:
    none = {key: 0.0 for key in defaults(name) if "dropout" in key}
    aux = {"aux": False} if split_name(name)[0].task == "segmentation" else {}
    model = build(name, **{**none, **aux, option: 0.5})
    for module in model.modules():  # batch statistics are not what is tested
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    images = torch.rand(1, 3, 64, 64)
    assert not torch.equal(model(images), model(images))
    model.eval()
    assert torch.equal(model(images), model(images))


@pytest.mark.parametrize(
    ("name", "dropout", "classifier_dropout"),
    [
        ("mobilevit_xxs", 0.05, 0.1),
        ("mobilevit_xs", 0.1, 0.1),
        ("mobilevit_s", 0.1, 0.1),
        ("mobilevitv2_100", 0.0, 0.0),
        ("deeplabv3_mobilevit_s", 0.1, 0.1),
        ("deeplabv3_mobilevitv2_100", 0.0, 0.1),
        ("pspnet_mobilevit_s", 0.1, 0.1),
    ],
)
def test_dropouts_are_the_authors(name: str, dropout: float, classifier_dropout: float) -> None:
    with torch.device("meta"):
        model = build(name)
    layers = [layer for stage in model.backbone.stages[2:] for layer in stage[-1].transformer]
    assert {layer.dropout.p for layer in layers} == {dropout}
    assert model.dropout.p == classifier_dropout
    assert isinstance(model.dropout, nn.Dropout2d) == ("_mobile" in name)
    if getattr(model, "aux", None) is not None:
        assert model.aux.dropout.p == 0.1
    if name.startswith("deeplabv3"):
        assert model.context.dropout.p == dropout


@pytest.mark.parametrize(
    ("name", "options", "stored"),
    [
        (
            "mobilevit_xxs",
            {"patch_sizes": (8, 4, 2), "fusion": False, "heads": 4},
            {"patch_sizes": [8, 4, 2], "fusion": False},
        ),
        ("mobilevit_xxs", {"dropout": 0.05, "classifier_dropout": 0.1, "output_stride": 32}, {}),
        *(
            ("mobilevitv2_050", options, options)
            for options in [{"dropout": 0.05, "classifier_dropout": 0.1, "output_stride": 16}]
        ),
        # these rates are those of stride 8
        ("deeplabv3_mobilevit_s", {"rates": (12, 24, 36), **LATER}, LATER),
        (
            "deeplabv3_mobilevitv2_050",
            {"aux": False, "rates": (6, 12, 18), "output_stride": 8},
            {"aux": False, "rates": [6, 12, 18], "output_stride": 8},
        ),
    ],
)
def test_options_are_stored_if_they_are_not_the_networks_own(
    name: str, options: dict[str, Any], stored: dict[str, Any]
) -> None:
    with torch.device("meta"):
        assert build(name, **options).config.options == stored


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("mobilevit_xxs", {"num_classes": 0}, "num_classes must be at least 1, not 0"),
        ("ssdlite_mobilevit_xxs", {"num_classes": 0}, "num_classes must be at least 1, not 0"),
        ("deeplabv3_mobilevit_xxs", {"num_classes": 0}, "num_classes must be at least 1, not 0"),
        ("mobilevit_xxs", {"output_stride": 4}, "output_stride must be 8, 16 or 32, not 4"),
        ("mobilevit_xxs", {"patch_sizes": (2, 2)}, "patch_sizes needs three numbers"),
        ("mobilevit_xxs", {"patch_sizes": (2, 0, 2)}, r"at least 1, not \(2, 0, 2\)"),
        ("mobilevit_xxs", {"heads": 5}, "5 attention heads do not divide a width of 64"),
        ("mobilevit_xxs", {"heads": (4, 4)}, "heads needs three numbers"),
        ("mobilevit_xxs", {"kernel_size": 4}, "kernel_size must be odd, not 4"),
        ("mobilevitv2_050", {"heads": 2}, "mobilevitv2_050 has no option heads"),
        ("mobilevitv2_050", {"fusion": False}, "mobilevitv2_050 has no option fusion"),
        ("mobilevit_xxs", {"features_only": True, "out_indices": (5,)}, "stages from 0 to 4"),
        ("mobilevit_xxs", {"features_only": True, "out_indices": ()}, "stages from 0 to 4"),
        ("deeplabv3_mobilevit_xxs", {"rates": (6, 12)}, r"rates needs three .* not \(6, 12\)"),
        ("deeplabv3_mobilevit_xxs", {"rates": (0, 1, 2)}, "rates needs three"),
        ("deeplabv3_mobilevit_xxs", {"channels": 0}, "channels must be at least 1, not 0"),
        (
            "pspnet_mobilevit_xxs",
            {"rates": (6, 12, 18)},
            "xxs has no option rates",
        ),
        ("pspnet_mobilevit_xxs", {"aspp_dropout": 0.1}, "has no option aspp_dropout"),
        ("mobilevit_xxs", {"channels": 256, "aux": True}, "has no option channels, aux"),
        ("ssdlite_mobilevit_xxs", {"classifier_dropout": 0.1}, "no option classifier_dropout"),
        ("mobilevit_xss", {}, "no model named 'mobilevit_xss'; did you mean mobilevit_"),
        ("ssdlite_mobilevit_x", {}, "did you mean ssdlite_mobilevit_xs"),
        ("deeplabv3_mobilevit_xss", {}, "did you mean deeplabv3_mobilevit_xs"),
        ("resnet50", {}, "no model named 'resnet50'; known: mobilevit_xxs, "),
    ],
)
def test_wrong_options_are_named(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(name, **options)


def test_a_misspelt_option_is_a_type_error() -> None:
    with pytest.raises(TypeError, match="drop_out"):
        build("mobilevit_xxs", drop_out=0.1)


def test_architecture_follows_the_width() -> None:
    arch = VARIANTS["mobilevitv2_175"]
    assert (arch.stem, arch.channels) == (56, (112, 224, 448, 672, 896))
    assert arch.dims == (224, 336, 448)


def test_channels_of_an_image() -> None:
    assert build("mobilevit_xxs", in_channels=5)(torch.rand(2, 5, 64, 64)).shape == (2, 1000)


def test_fusion_can_be_left_out() -> None:
    model, full = build("mobilevit_xxs", fusion=False), build("mobilevit_xxs")
    # Each fusion convolves the 2C joined channels to C, and has a batch norm.
    assert count(full) - count(model) == sum(
        18 * channels**2 + 2 * channels for channels in (48, 64, 80)
    )
    assert model.eval()(torch.rand(1, 3, 64, 64)).shape == (1, 1000)


@pytest.mark.parametrize("option", [{"patch_sizes": (8, 4, 2)}, {"heads": (1, 2, 8)}])
def test_patch_sizes_and_heads_change_the_outputs_alone(option: dict[str, Any]) -> None:
    model, other = build("mobilevit_xxs").eval(), build("mobilevit_xxs", **option).eval()
    other.load_state_dict(model.state_dict())
    images = torch.rand(1, 3, 64, 64)
    assert not torch.allclose(model(images), other(images), rtol=1e-3, atol=0)
    stages = [stage[-1] for stage in other.backbone.stages[2:]]
    if "heads" in option:
        heads = [layer.attention.heads for block in stages for layer in block.transformer]
        assert heads == [1] * 2 + [2] * 4 + [8] * 3
    else:
        assert [block.patch for block in stages] == [8, 4, 2]


@pytest.mark.parametrize("name", ["mobilevit_xxs", "mobilevitv2_050"])
@pytest.mark.parametrize("kernel_size", [1, 5])
def test_kernel_size_is_that_of_the_blocks(name: str, kernel_size: int) -> None:
    model = build(name, kernel_size=kernel_size, features_only=True)
    for stage in model.stages[2:]:
        block = stage[-1]
        local = [block.local_conv, getattr(block, "fusion", block.local_conv)]
        assert all(isinstance(layer, ConvNormAct) for layer in local)
        assert {layer.conv.kernel_size for layer in local} == {(kernel_size, kernel_size)}
    assert model.stem.conv.kernel_size == (3, 3)
    shapes = [tuple(y.shape[-2:]) for y in model.eval()(torch.rand(1, 3, 64, 64))]
    assert shapes == model.feature_sizes(64, 64)
