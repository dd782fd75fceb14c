"""The same weights in timm and transformers give the same outputs."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_sample_images
from timm import create_model as create_timm
from timm.data import create_transform, resolve_model_data_config
from torch import nn
from torch.nn import functional as F
from transformers import (
    AutoImageProcessor,
    AutoModelForImageClassification,
    AutoModelForSemanticSegmentation,
    MobileViTConfig,
    MobileViTForImageClassification,
    MobileViTForSemanticSegmentation,
    MobileViTV2Config,
    MobileViTV2ForImageClassification,
    MobileViTV2ForSemanticSegmentation,
)

from mobilevit.checkpoints import timm, transformers
from mobilevit.checkpoints.create import create_model, load
from mobilevit.checkpoints.keymap import Layout
from mobilevit.checkpoints.write import write
from mobilevit.data.preprocessing import preprocess
from mobilevit.models.config import ModelConfig, Preprocessing
from mobilevit.models.registry import HEADS, VARIANTS, build
from tests.checkpoints.networks import equal, randomized
from tests.numerics import assert_close, assert_probabilities_close

pytestmark = pytest.mark.slow

SQUARES = [(256, 256), (224, 224), (160, 250)]


def ours_with(theirs: nn.Module, name: str, layout: Layout, **options: Any) -> nn.Module:
    """Our network with the weights of another library's, which go back unchanged."""
    tensors = layout.to_ours(theirs.state_dict())
    assert equal(layout.from_ours(tensors), theirs.state_dict())
    ours = build(name, **options).eval()
    ours.load_state_dict(tensors)
    return ours


@pytest.mark.parametrize("name", list(VARIANTS))
def test_timm_weights_give_timm_logits(name: str) -> None:
    torch.manual_seed(0)
    theirs = randomized(create_timm(name))
    ours = ours_with(theirs, name, timm.V2 if "v2" in name else timm.V1)
    for size in SQUARES:
        images = torch.rand(1, 3, *size)
        with torch.inference_mode():
            assert_close(ours(images), theirs(images), 1e-4)


@pytest.mark.parametrize("name", list(VARIANTS))
def test_transformers_weights_give_transformers_logits(name: str) -> None:
    content = transformers.write_config(ModelConfig(model=name, num_classes=1000))["config.json"]
    torch.manual_seed(0)
    if "v2" in name:
        # 224 px has maps of 7 x 7 and 160 x 250 px of 5 x 8, which transformers cuts to whole
        # patches and fills up with zeros; the authors, timm and we resize them
        layout, sizes = transformers.V2, [(256, 256), (192, 320)]
        theirs: Any = MobileViTV2ForImageClassification(MobileViTV2Config(**content))
    else:
        layout, sizes = transformers.V1, SQUARES
        theirs = MobileViTForImageClassification(MobileViTConfig(**content))
    ours = ours_with(randomized(theirs), name, layout)
    for size in sizes:
        images = torch.rand(1, 3, *size)
        with torch.inference_mode():
            assert_close(ours(images), theirs(images).logits, 1e-4)


@pytest.mark.parametrize(
    ("name", "options", "sizes"),
    [
        ("deeplabv3_mobilevit_xxs", {}, [(64, 96), (250, 161)]),
        ("deeplabv3_mobilevit_xs", {"output_stride": 8, "channels": 512}, [(64, 96), (250, 161)]),
        ("deeplabv3_mobilevit_s", {"output_stride": 32, "rates": [1, 2, 3]}, [(96, 64)]),
        ("deeplabv3_mobilevitv2_050", {"output_stride": 32}, [(64, 128)]),
        ("deeplabv3_mobilevitv2_050", {}, [(64, 96)]),
        ("deeplabv3_mobilevitv2_100", {"output_stride": 8}, [(64, 96)]),
    ],
)
def test_transformers_segmenters_give_transformers_logits(name, options, sizes):
    config = ModelConfig(
        model=name,
        num_classes=5,
        task="segmentation",
        options=options,
        preprocessing=HEADS["deeplabv3_"].preprocessing,
    )
    content = transformers.write_config(config)["config.json"]
    torch.manual_seed(0)
    if "v2" in name:
        layout: Layout = transformers.DEEPLAB_V2
        theirs: Any = MobileViTV2ForSemanticSegmentation(MobileViTV2Config(**content))
    else:
        layout = transformers.DEEPLAB_V1
        theirs = MobileViTForSemanticSegmentation(MobileViTConfig(**content))
    ours = ours_with(randomized(theirs), name, layout, num_classes=5, aux=False, **options)
    dilated = [
        block.local_conv.conv
        for block in (stage[-1] for stage in ours.backbone.stages[2:])
        if block.local_conv.conv.dilation != (1, 1)
    ]
    assert bool(dilated) == ("v2" in name and options.get("output_stride") != 32)
    for conv in dilated:  # transformers' v2 does not dilate these, the authors' does
        conv.dilation = conv.padding = (1, 1)
    for size in sizes:
        images = torch.rand(1, 3, *size)
        with torch.inference_mode():
            small = theirs(images).logits
            expected = F.interpolate(small, size, mode="bilinear", align_corners=ours.align_corners)
            assert_close(ours(images), expected, 1e-4)


@pytest.fixture(scope="module")
def photo() -> Image.Image:
    """A real photo that a dependency ships, 640 x 427 pixels."""
    return Image.fromarray(load_sample_images().images[1])


@pytest.fixture(scope="module", params=["mobilevit_xxs", "mobilevitv2_050"])
def classifier(request):
    """A network whose predictions differ between photos."""
    torch.manual_seed(0)
    model = randomized(create_model(request.param, classes=["ant", "bée", "猫"]))
    with torch.no_grad():
        model.head.weight.mul_(20)
    return model


def probabilities(model, photo: Image.Image) -> np.ndarray:
    with torch.inference_mode():
        return model(preprocess(photo, model.config.preprocessing)[None]).softmax(1)[0].numpy()


@pytest.mark.parametrize("order", ["rgb", "bgr"])
def test_transformers_predicts_the_same_for_a_photo(classifier, photo, tmp_path, order):
    # at 224 px transformers' v2 is wrong
    crop = 192 if classifier.name.startswith("mobilevitv2") else 224
    preprocessing = Preprocessing(
        channel_order=order, interpolation="bicubic", resize=250, crop=crop
    )
    classifier.config = replace(classifier.config, preprocessing=preprocessing)
    write(classifier, tmp_path, to="transformers")
    theirs = AutoModelForImageClassification.from_pretrained(tmp_path).eval()
    processor = AutoImageProcessor.from_pretrained(tmp_path)
    with torch.inference_mode():
        values = processor(photo, return_tensors="pt").pixel_values
        logits = theirs(values).logits
        assert_close(logits, classifier(values), 1e-4)
    # its resizing works on tensors, ours on images: pixels differ by a step of 1/255
    assert (values[0] - preprocess(photo, preprocessing)).abs().max() < 2.5 / 255
    expected = probabilities(classifier, photo)
    assert_probabilities_close(logits.softmax(1)[0], expected, 1e-2)
    label = theirs.config.id2label[int(logits.argmax())]
    assert label == classifier.config.classes[expected.argmax()]


@pytest.mark.parametrize("order", ["rgb", "bgr"])
def test_timm_predicts_the_same_for_a_photo(classifier, photo, tmp_path, order):
    preprocessing = Preprocessing(
        channel_order=order, interpolation="bicubic", resize=250, crop=224
    )
    classifier.config = replace(classifier.config, preprocessing=preprocessing)
    write(classifier, tmp_path / "out", to="timm")
    expected = probabilities(classifier, photo)
    by_path = create_timm(
        classifier.name, num_classes=3, checkpoint_path=tmp_path / "out" / "model.safetensors"
    ).eval()
    by_folder = create_timm(f"local-dir:{tmp_path / 'out'}", pretrained=True).eval()
    transform = create_transform(**resolve_model_data_config(by_folder))
    with torch.inference_mode():
        for theirs in (by_path, by_folder):
            logits = theirs(transform(photo)[None])
            assert_probabilities_close(logits.softmax(1)[0], expected)
    assert by_folder.pretrained_cfg["label_names"] == list(classifier.config.classes)


def test_other_options_give_the_same_logits_in_transformers(tmp_path):
    options = {"patch_sizes": [4, 4, 4], "heads": 2, "kernel_size": 5}
    model = create_model("mobilevit_xxs", num_classes=2, **options).eval()
    write(model, tmp_path, to="transformers")
    theirs = AutoModelForImageClassification.from_pretrained(tmp_path).eval()
    images = torch.rand(1, 3, 128, 128)
    with torch.inference_mode():
        assert_close(theirs(images).logits, model(images), 1e-4)


@pytest.mark.parametrize("order", ["rgb", "bgr"])
@pytest.mark.parametrize("mode", ["stretch", "shortest_edge"])
@pytest.mark.parametrize("name", ["deeplabv3_mobilevit_xxs", "deeplabv3_mobilevitv2_050"])
def test_a_segmenters_folder_opens_in_transformers(name, tmp_path, mode, order):
    torch.manual_seed(0)
    model = randomized(create_model(name, classes=["sky", "road", "tree"]))
    preprocessing = Preprocessing(
        resize_mode=mode, resize=160, crop=160, channel_order=order, interpolation="bicubic"
    )
    model.config = replace(model.config, preprocessing=preprocessing)
    write(model, tmp_path, to="transformers")
    assert load(tmp_path).config.preprocessing == preprocessing
    theirs = AutoModelForSemanticSegmentation.from_pretrained(tmp_path).eval()
    assert theirs.config.id2label == {0: "sky", 1: "road", 2: "tree"}
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (200, 300, 3), np.uint8))
    values = AutoImageProcessor.from_pretrained(tmp_path)(noise, return_tensors="pt").pixel_values
    pixels = preprocess(noise, preprocessing)
    if mode == "stretch":
        assert values.shape == (1, 3, 160, 160)
        assert (values[0] - pixels).abs().max() < 3 / 255
    else:  # their sides are not rounded down
        assert values.shape == (1, 3, 160, 240) and pixels.shape == (3, 160, 224)
    if "v2" not in name:
        with torch.inference_mode():
            expected = F.interpolate(theirs(values).logits, values.shape[-2:], mode="bilinear")
            assert_close(model(values), expected, 1e-4)
