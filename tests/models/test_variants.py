from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from mobilevit.checkpoints import authors
from mobilevit.models.fuse import fuse
from mobilevit.models.layers import ConvNormAct, PointwiseConv, SelfAttention
from mobilevit.models.registry import (
    HEADS,
    VARIANTS,
    architecture,
    build,
    list_models,
    split_name,
    task_of,
)

PARAMETERS = {
    "mobilevit_xxs": 1_272_024,
    "mobilevit_xs": 2_317_848,
    "mobilevit_s": 5_578_632,
    "mobilevitv2_050": 1_370_593,
    "mobilevitv2_075": 2_866_009,
    "mobilevitv2_100": 4_901_841,
    "mobilevitv2_125": 7_478_089,
    "mobilevitv2_150": 10_594_753,
    "mobilevitv2_175": 14_251_833,
    "mobilevitv2_200": 18_449_329,
}
ENCODER_PARAMETERS = {
    "mobilevit_xxs": 924_784,
    "mobilevit_xs": 1_895_216,
    "mobilevit_s": 4_833_952,
}
REFERENCES = (
    "mobilevit_xxs",
    "mobilevit_xs",
    "mobilevit_s",
    "mobilevit_s_2021",
    "mobilevitv2_050",
    "mobilevitv2_100",
    "mobilevitv2_200",
)


def count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def test_every_variant_is_listed_once() -> None:
    assert list(VARIANTS) == list(PARAMETERS)
    assert list_models() == [head + name for head in HEADS for name in VARIANTS]


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameters_of_classifier(name: str) -> None:
    with torch.device("meta"):
        assert count(build(name)) == PARAMETERS[name]


@pytest.mark.parametrize("name", ENCODER_PARAMETERS)
def test_parameters_of_encoder(name: str) -> None:
    with torch.device("meta"):
        assert count(build(name, features_only=True)) == ENCODER_PARAMETERS[name]


@pytest.mark.parametrize("fused", [False, True], ids=["unfused", "fused"])
@pytest.mark.parametrize("name", REFERENCES)
def test_equals_the_authors(name: str, fused: bool, reference) -> None:
    """Every stored output, relative to its standard deviation."""
    theirs = reference(name)
    layout = authors.V1 if name.startswith("mobilevit_") else authors.V2
    model = build(name.removesuffix("_2021")).eval()
    model.load_state_dict(layout.to_ours(theirs.tensors))
    if fused:
        model = fuse(model)
    model.backbone.out_indices = (0, 1, 2, 3, 4)  # the classifier takes the last of them
    seen = 0
    with torch.inference_mode():
        for key, expected in theirs.outputs.items():
            if key.startswith("logits_"):
                size = tuple(int(side) for side in key.removeprefix("logits_").split("x"))
                result = model(theirs.image(*size, len(expected)))
            elif key == "feature_out_l5_exp":
                result = model.expand(model.backbone(theirs.image(96, 64))[-1])
            else:
                stage = int(key.removeprefix("feature_out_l")) - 1
                result = model.backbone(theirs.image(96, 64))[stage]
            assert result.shape == expected.shape, key
            error = np.abs(result.numpy() - expected).max() / expected.std()
            assert error < 1e-4, key
            seen += 1
    assert seen == (2 if name.endswith("_2021") else 10)


@pytest.mark.parametrize(
    "name", ["mobilevit_xxs", "mobilevit_xs", "mobilevit_s", "mobilevitv2_100"]
)
def test_black_image(name: str) -> None:
    model = build(name, num_classes=7).eval()
    with torch.inference_mode():
        logits = model(torch.zeros(1, 3, 256, 256))
    assert logits.shape == (1, 7)
    assert logits.isfinite().all()


def test_initial_weights_are_those_of_the_paper() -> None:
    torch.manual_seed(0)
    model = build("mobilevit_s")
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d):
            fan_out = module.out_channels * math.prod(module.kernel_size)  # grouped or not
            expected = math.sqrt(2 / fan_out)
        elif isinstance(module, nn.Linear):
            expected = 0.02
        elif isinstance(module, nn.BatchNorm2d | nn.LayerNorm):
            assert (module.weight == 1).all(), name
            expected = None
        else:
            continue
        if module.bias is not None:
            assert (module.bias == 0).all(), name
        if expected is not None:
            spread = 5 / math.sqrt(2 * module.weight.numel())  # five standard errors
            assert module.weight.std().item() == pytest.approx(expected, rel=spread), name
            assert abs(module.weight.mean().item()) < 0.1 * expected + expected * spread, name


def test_initial_weights_of_v2_pointwise_layers_are_those_of_convolutions() -> None:
    torch.manual_seed(0)
    layers = [m for m in build("mobilevitv2_100").modules() if isinstance(m, PointwiseConv)]
    assert len(layers) == 4 * (2 + 4 + 3)
    for layer in layers:
        expected = math.sqrt(2 / layer.out_features)
        assert layer.weight.std().item() == pytest.approx(expected, rel=0.05)
        assert (layer.bias == 0).all()


def test_a_seed_fixes_the_weights() -> None:
    weights = []
    for _ in range(2):
        torch.manual_seed(3)
        weights.append(build("mobilevit_xxs").state_dict())
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])


def test_options_are_remembered_where_they_differ() -> None:
    model = build("mobilevit_xxs", num_classes=5, patch_sizes=(8, 4, 2), fusion=False, heads=4)
    assert model.name == "mobilevit_xxs"
    assert model.config.options == {"patch_sizes": [8, 4, 2], "fusion": False}


def test_options_that_are_the_networks_own_are_not_remembered() -> None:
    with torch.device("meta"):
        model = build("mobilevit_xxs", dropout=0.05, classifier_dropout=0.1, output_stride=32)
        other = build("mobilevitv2_050", dropout=0.05, classifier_dropout=0.1, output_stride=16)
    assert model.config.options == {}
    assert other.config.options == {"dropout": 0.05, "classifier_dropout": 0.1, "output_stride": 16}


def test_patch_sizes_change_the_outputs_alone() -> None:
    small = build("mobilevit_xxs").eval()
    large = build("mobilevit_xxs", patch_sizes=(8, 4, 2)).eval()
    large.load_state_dict(small.state_dict())
    x = torch.rand(1, 3, 64, 64)
    assert not torch.allclose(small(x), large(x), atol=1e-4)


@pytest.mark.parametrize("size", [(64, 64), (72, 40), (33, 57)])
def test_large_patches_take_any_size(size: tuple[int, int]) -> None:
    model = build("mobilevit_xxs", patch_sizes=(8, 4, 2), features_only=True).eval()
    shapes = [tuple(y.shape[-2:]) for y in model(torch.rand(1, 3, *size))]
    assert shapes == model.feature_sizes(*size)


def test_heads_of_each_stage() -> None:
    model = build("mobilevit_xxs", heads=(1, 2, 8))
    heads = [m.heads for m in model.modules() if isinstance(m, SelfAttention)]
    assert heads == [1] * 2 + [2] * 4 + [8] * 3
    other = build("mobilevit_xxs").eval()
    other.load_state_dict(model.state_dict())
    x = torch.rand(1, 3, 64, 64)
    assert not torch.equal(model.eval()(x), other(x))


def test_fusion_can_be_left_out() -> None:
    model = build("mobilevit_xxs", fusion=False)
    # Each fusion convolves the 2C joined channels to C, and has a batch norm.
    assert PARAMETERS["mobilevit_xxs"] - count(model) == sum(
        18 * channels**2 + 2 * channels for channels in (48, 64, 80)
    )
    assert model.eval()(torch.rand(1, 3, 64, 64)).shape == (1, 1000)


@pytest.mark.parametrize("name", ["mobilevit_xxs", "mobilevitv2_050"])
@pytest.mark.parametrize("kernel_size", [1, 5])
def test_kernel_size_is_that_of_the_blocks(name: str, kernel_size: int) -> None:
    model = build(name, kernel_size=kernel_size, features_only=True)
    for stage in model.stages[2:]:
        block = stage[-1]
        local = [block.local_conv, getattr(block, "fusion", block.local_conv)]
        assert {layer.conv.kernel_size for layer in local} == {(kernel_size, kernel_size)}
    assert model.stem.conv.kernel_size == (3, 3)
    shapes = [tuple(y.shape[-2:]) for y in model.eval()(torch.rand(1, 3, 64, 64))]
    assert shapes == model.feature_sizes(64, 64)


@pytest.mark.parametrize("option", ["dropout", "attention_dropout", "ffn_dropout"])
@pytest.mark.parametrize("name", ["mobilevit_xxs", "mobilevitv2_050"])
def test_each_dropout_is_random_in_training_alone(name: str, option: str) -> None:
    none = {"dropout": 0.0, "attention_dropout": 0.0, "ffn_dropout": 0.0, "classifier_dropout": 0.0}
    model = build(name, **{**none, option: 0.5})
    for module in model.modules():  # batch statistics are not what is tested
        if isinstance(module, ConvNormAct):
            module.eval()
    x = torch.rand(1, 3, 64, 64)
    assert not torch.equal(model(x), model(x))
    model.eval()
    assert torch.equal(model(x), model(x))


def test_classifier_dropout() -> None:
    model = build("mobilevitv2_050", classifier_dropout=0.5).eval()
    model.dropout.train()
    x = torch.rand(1, 3, 64, 64)
    assert not torch.equal(model(x), model(x))


@pytest.mark.parametrize(
    ("name", "dropout", "classifier_dropout"),
    [
        ("mobilevit_xxs", 0.05, 0.1),
        ("mobilevit_xs", 0.1, 0.1),
        ("mobilevit_s", 0.1, 0.1),
        ("mobilevitv2_100", 0.0, 0.0),
    ],
)
def test_dropouts_are_the_authors(name: str, dropout: float, classifier_dropout: float) -> None:
    with torch.device("meta"):
        model = build(name)
    assert model.dropout.p == classifier_dropout
    layers = [layer for stage in model.backbone.stages[2:] for layer in stage[-1].transformer]
    assert {layer.dropout.p for layer in layers} == {dropout}


def test_channels_of_an_image() -> None:
    assert build("mobilevit_xxs", in_channels=5)(torch.rand(2, 5, 64, 64)).shape == (2, 1000)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("mobilevit_xxs", {"num_classes": 0}, "num_classes must be at least 1, not 0"),
        ("mobilevit_xxs", {"output_stride": 4}, "output_stride must be 8, 16 or 32, not 4"),
        ("mobilevit_xxs", {"patch_sizes": (2, 2)}, "patch_sizes needs three numbers"),
        ("mobilevit_xxs", {"patch_sizes": (2, 0, 2)}, r"at least 1, not \(2, 0, 2\)"),
        ("mobilevit_xxs", {"heads": 5}, "5 attention heads do not divide a width of 64"),
        ("mobilevit_xxs", {"heads": (4, 4)}, "heads needs three numbers"),
        ("mobilevit_xxs", {"kernel_size": 4}, "kernel_size must be odd, not 4"),
        ("mobilevitv2_050", {"heads": 2}, "mobilevitv2_050 has no option"),
        ("mobilevitv2_050", {"fusion": False}, "mobilevitv2_050 has no option"),
        ("mobilevit_xxs", {"features_only": True, "out_indices": (5,)}, "stages from 0 to 4"),
        ("mobilevit_xxs", {"features_only": True, "out_indices": ()}, "stages from 0 to 4"),
        ("mobilevit_xss", {}, "no model named 'mobilevit_xss'; did you mean mobilevit_"),
        ("resnet50", {}, "no model named 'resnet50'; known: mobilevit_xxs, "),
    ],
)
def test_bad_options_are_named(name: str, options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(name, **options)


@pytest.mark.parametrize(
    ("name", "head", "task"),
    [
        ("mobilevit_xs", "", "classification"),
        ("ssdlite_mobilevitv2_050", "ssdlite_", "detection"),
        ("deeplabv3_mobilevit_xxs", "deeplabv3_", "segmentation"),
        ("pspnet_mobilevitv2_200", "pspnet_", "segmentation"),
    ],
)
def test_names_say_head_variant_and_task(name: str, head: str, task: str) -> None:
    assert split_name(name) == (HEADS[head], name.removeprefix(head))
    assert task_of(name) == task


def test_unknown_option_is_refused() -> None:
    with pytest.raises(TypeError, match="drop_out"):
        build("mobilevit_xxs", drop_out=0.1)


def test_architecture_follows_the_width() -> None:
    arch = architecture("mobilevitv2_175")
    assert (arch.stem, arch.channels) == (56, (112, 224, 448, 672, 896))
    assert arch.dims == (224, 336, 448)
