"""DeepLabv3 and PSPNet: the authors' outputs, sizes, options, initial weights."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mobilevit.checkpoints import authors
from mobilevit.models.fuse import fuse
from mobilevit.models.layers import PointwiseConv
from mobilevit.models.registry import VARIANTS, build, defaults
from mobilevit.models.segmentation import PooledNorm, SegmentationLogits
from tests.numerics import assert_close

LATER = {"output_stride": 8, "channels": 512, "aux": True, "align_corners": True}
"""The authors' later form of DeepLabv3 on v1."""
REFERENCES = {
    "deeplabv3_mobilevit_xxs_2021": (authors.DEEPLAB_V1_2021, {}),
    "deeplabv3_mobilevit_xxs": (authors.DEEPLAB_V1, LATER),
    "deeplabv3_mobilevit_s": (authors.DEEPLAB_V1, LATER),
    "deeplabv3_mobilevitv2_050": (authors.DEEPLAB_V2, {}),
    "pspnet_mobilevitv2_050": (authors.PSP_V2, {}),
}
NAMES = ("deeplabv3_mobilevit_xxs", "deeplabv3_mobilevitv2_050", "pspnet_mobilevitv2_050")
PARAMETERS = {
    "deeplabv3_mobilevit_xxs": 1_854_853,
    "deeplabv3_mobilevit_xs": 2_944_069,
    "deeplabv3_mobilevit_s": 6_357_941,
}
MILLIONS = {  # with ADE20K's 150 classes and without the auxiliary head, as the authors print them
    "deeplabv3": {50: 6.3, 75: 9.6, 100: 13.4, 125: 17.7, 150: 22.6, 175: 28.1, 200: 34.0},
    "pspnet": {50: 3.6, 75: 6.2, 100: 9.4, 125: 13.2, 150: 17.6, 175: 22.5},
}


def count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize("fused", [False, True], ids=["unfused", "fused"])
@pytest.mark.parametrize("name", REFERENCES)
def test_equals_the_authors(name: str, fused: bool, reference) -> None:
    """Every stored output, relative to its standard deviation."""
    theirs = reference(name)
    layout, options = REFERENCES[name]
    model = build(name.removesuffix("_2021"), num_classes=21, **options).eval()
    model.load_state_dict(layout.to_ours(theirs.tensors))
    if fused:
        model = fuse(model)
    assert len(theirs.outputs) == 2
    with torch.inference_mode():
        for key, expected in theirs.outputs.items():
            height, width = (int(side) for side in key.removeprefix("logits_").split("x"))
            logits = model(theirs.image(height, width))
            assert logits.shape == expected.shape == (1, 21, height, width)
            assert np.abs(logits.numpy() - expected).max() / expected.std() < 1e-4, key


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameters_of_the_papers_form(name: str) -> None:
    with torch.device("meta"):
        assert count(build(name, num_classes=21)) == PARAMETERS[name]


def test_parameters_of_the_later_form() -> None:
    with torch.device("meta"):
        model = build("deeplabv3_mobilevit_s", num_classes=21, **LATER)
    assert (count(model), count(model.aux)) == (8_687_690, 150_421)


@pytest.mark.parametrize(
    ("name", "millions"),
    [
        (f"{head}_mobilevitv2_{width:03d}", value)
        for head, values in MILLIONS.items()
        for width, value in values.items()
    ],
)
def test_parameters_of_v2(name: str, millions: float) -> None:
    with torch.device("meta"):
        model = build(name, num_classes=150)
    assert round((count(model) - count(model.aux)) / 1e6, 1) == millions


@pytest.mark.parametrize("size", [(1, 1), (32, 32), (33, 57), (250, 96)])
@pytest.mark.parametrize("name", NAMES)
def test_logits_are_as_large_as_the_image(name: str, size: tuple[int, int], busy) -> None:
    model = busy(name, num_classes=5)
    images = torch.rand(2, 3, *size)
    with torch.inference_mode():
        logits = model(images)
        assert logits.shape == (2, 5, *size)
        assert logits.isfinite().all()
        # an image's logits do not depend on what else is in the batch
        assert (model(images[:1]) - logits[:1]).abs().max() < 1e-4 * logits.abs().max()


@pytest.mark.parametrize("stride", [8, 16, 32])
@pytest.mark.parametrize("name", NAMES)
def test_every_output_stride(name: str, stride: int, busy) -> None:
    model = busy(name, num_classes=3, output_stride=stride)
    assert model.backbone.feature_info[-1].stride == stride
    with torch.inference_mode():
        assert model(torch.rand(1, 3, 64, 96)).shape == (1, 3, 64, 96)


def test_rates_are_the_holes_and_double_at_stride_8() -> None:
    for options, expected in (
        ({}, [1, 6, 12, 18]),
        ({"output_stride": 8}, [1, 12, 24, 36]),
        ({"rates": (2, 3, 4)}, [1, 2, 3, 4]),
    ):
        model = build("deeplabv3_mobilevit_xxs", **options)
        assert [branch.conv.dilation[0] for branch in model.context.branches] == expected
        assert [branch.conv.padding[0] for branch in model.context.branches][1:] == expected[1:]


def test_corners_change_the_outputs_alone(busy) -> None:
    model, other = (
        busy("deeplabv3_mobilevit_xxs", num_classes=3, align_corners=corners)
        for corners in (False, True)
    )
    images = torch.rand(1, 3, 64, 64)
    small = model.predict(model.context(model.backbone(images)[-1]))
    for network, corners in ((model, False), (other, True)):
        expected = F.interpolate(small, (64, 64), mode="bilinear", align_corners=corners)
        torch.testing.assert_close(network(images), expected)
    assert not torch.allclose(model(images), other(images), atol=1e-3)


@pytest.mark.parametrize("name", NAMES)
def test_training_gives_auxiliary_logits_where_there_is_such_a_head(name: str) -> None:
    torch.manual_seed(0)
    images = torch.rand(2, 3, 64, 96)
    said = build(name, num_classes=4, aux=True)(images)
    assert isinstance(said, SegmentationLogits)
    assert said.logits.shape == said.aux.shape == (2, 4, 64, 96)
    plain = build(name, num_classes=4, aux=False)
    assert isinstance(plain(images), Tensor)
    assert plain.backbone.out_indices == (4,)
    evaluated = build(name, num_classes=4, aux=True).eval()
    assert isinstance(evaluated(images), Tensor)


@pytest.mark.parametrize("name", NAMES)
def test_one_image_trains(name: str) -> None:
    """The mean of one image is one value a channel, which has no variance."""
    torch.manual_seed(0)
    model = build(name, num_classes=3)
    said = model(torch.rand(1, 3, 64, 64))
    logits = said.logits if isinstance(said, SegmentationLogits) else said
    F.cross_entropy(logits, torch.zeros(1, 64, 64, dtype=torch.long)).backward()
    assert all(
        parameter.grad is None or parameter.grad.isfinite().all()
        for parameter in model.parameters()
    )


def test_a_pooled_norm_is_a_batch_norm_but_for_one_value() -> None:
    pooled, plain = PooledNorm(3), nn.BatchNorm2d(3)
    x = torch.rand(2, 3, 1, 1)
    torch.testing.assert_close(pooled(x), plain(x))
    torch.testing.assert_close(pooled.running_var, plain.running_var)
    before = pooled.running_mean.clone()
    torch.testing.assert_close(pooled(x[:1]), plain.eval()(x[:1]))
    assert torch.equal(pooled.running_mean, before)


@pytest.mark.parametrize(
    ("name", "option"),
    [
        ("deeplabv3_mobilevit_xxs", "aspp_dropout"),
        ("deeplabv3_mobilevit_xxs", "classifier_dropout"),
        ("pspnet_mobilevitv2_050", "classifier_dropout"),
    ],
)
def test_each_dropout_is_random_in_training_alone(name: str, option: str) -> None:
    none = dict.fromkeys(("dropout", "aspp_dropout", "classifier_dropout"), 0.0)
    if name.startswith("pspnet"):
        del none["aspp_dropout"]
    model = build(name, aux=False, **{**none, option: 0.5})
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    images = torch.rand(1, 3, 64, 64)
    assert not torch.equal(model(images), model(images))
    model.eval()
    assert torch.equal(model(images), model(images))


def test_dropouts_are_the_authors() -> None:
    with torch.device("meta"):
        paper = build("deeplabv3_mobilevit_s")
        later = build("deeplabv3_mobilevitv2_100")
        pyramid = build("pspnet_mobilevit_s")
    assert (paper.context.dropout.p, paper.dropout.p) == (0.1, 0.1)
    assert (later.context.dropout.p, later.dropout.p) == (0.0, 0.1)
    assert (pyramid.dropout.p, pyramid.aux.dropout.p) == (0.1, 0.1)
    assert isinstance(paper.dropout, nn.Dropout2d)


@pytest.mark.parametrize("name", ["deeplabv3_mobilevit_xs", "pspnet_mobilevitv2_050"])
def test_initial_weights_are_those_of_the_2021_code(name: str) -> None:
    torch.manual_seed(0)
    model = build(name)
    for key, module in model.named_modules():
        if isinstance(module, nn.Conv2d | PointwiseConv):
            fan_out = module.weight.shape[0] * math.prod(module.weight.shape[2:])
            expected = math.sqrt(2 / fan_out)
        elif isinstance(module, nn.Linear):
            expected = 0.01
        else:
            continue
        spread = 5 / math.sqrt(2 * module.weight.numel())  # five standard errors
        assert module.weight.std().item() == pytest.approx(expected, rel=spread), key
        assert module.bias is None or (module.bias == 0).all(), key


@pytest.mark.parametrize("head", ["deeplabv3_", "pspnet_"])
def test_every_variant_is_built_and_its_own_options_are_not_listed(head: str) -> None:
    for variant in VARIANTS:
        name = head + variant
        with torch.device("meta"):
            assert build(name).config.options == {}
            model = build(name, **defaults(name))
        assert model.config.options == {}
        assert (model.name, model.backbone.feature_info[-1].stride) == (name, 16)


def test_options_are_remembered_where_they_differ_from_the_networks_own() -> None:
    with torch.device("meta"):
        paper = build("deeplabv3_mobilevit_s", num_classes=21, rates=(12, 24, 36), **LATER)
        later = build("deeplabv3_mobilevitv2_050", aux=False, rates=[6, 12, 18], output_stride=8)
    assert paper.config.options == LATER  # these rates are those of stride 8
    assert later.config.options == {"aux": False, "rates": [6, 12, 18], "output_stride": 8}


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("deeplabv3_mobilevit_xxs", {"num_classes": 0}, "num_classes must be at least 1, not 0"),
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
        ("ssdlite_mobilevit_xxs", {"classifier_dropout": 0.1}, "has no option classifier_dropout"),
        ("deeplabv3_mobilevit_xss", {}, "did you mean deeplabv3_mobilevit_xs"),
    ],
)
def test_bad_options_are_named(name: str, options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(name, **options)


def test_features_only_gives_the_backbone_at_the_networks_stride() -> None:
    backbone = build("deeplabv3_mobilevit_xxs", features_only=True)
    assert [info.stride for info in backbone.feature_info] == [2, 4, 8, 16, 16]


@pytest.mark.parametrize("name", NAMES)
def test_a_network_is_exported_with_the_same_outputs(name: str, busy) -> None:
    model = busy(name, num_classes=3)
    images = torch.rand(1, 3, 64, 96)
    exported = torch.export.export(model, (images,)).module()
    assert_close(exported(images), model(images))
