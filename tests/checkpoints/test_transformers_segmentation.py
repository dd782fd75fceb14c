"""Networks for segmentation in folders of transformers, read, written and compared with theirs."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F
from transformers import (
    AutoImageProcessor,
    AutoModelForSemanticSegmentation,
    MobileViTConfig,
    MobileViTForSemanticSegmentation,
    MobileViTV2Config,
    MobileViTV2ForSemanticSegmentation,
)

from mobilevit.checkpoints import transformers
from mobilevit.checkpoints.create import create_model, load
from mobilevit.checkpoints.keymap import CheckpointError
from mobilevit.checkpoints.write import write
from mobilevit.data.preprocessing import preprocess
from mobilevit.models.config import ModelConfig, Preprocessing
from mobilevit.models.registry import HEADS, build


def varied(model: torch.nn.Module) -> torch.nn.Module:
    """The network in evaluation mode, with no initial ones and zeros, which hide mistakes."""
    with torch.no_grad():
        for key, tensor in model.state_dict().items():
            if tensor.ndim == 1 and tensor.is_floating_point():
                positive = key.endswith(("weight", "running_var"))
                tensor.uniform_(0.5, 1.5) if positive else tensor.normal_(std=0.1)
    return model.eval()


@pytest.fixture(scope="module", params=["deeplabv3_mobilevit_xxs", "deeplabv3_mobilevitv2_050"])
def model(request):
    torch.manual_seed(0)
    return varied(create_model(request.param, classes=["sky", "road", "tree"]))


def theirs_like(name: str, **options) -> Any:
    """A random network of transformers as our configuration describes it."""
    config = ModelConfig(
        model=name,
        num_classes=5,
        task="segmentation",
        options=options,
        preprocessing=HEADS["deeplabv3_"].preprocessing,
    )
    described = transformers.write_config(config)["config.json"]
    torch.manual_seed(0)
    if name.startswith("deeplabv3_mobilevit_"):
        return varied(MobileViTForSemanticSegmentation(MobileViTConfig(**described)))
    return varied(MobileViTV2ForSemanticSegmentation(MobileViTV2Config(**described)))


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
def test_transformers_weights_give_transformers_logits(name, options, sizes):
    theirs = theirs_like(name, **options)
    layout = transformers.DEEPLAB_V1 if "mobilevit_" in name else transformers.DEEPLAB_V2
    tensors = layout.to_ours(theirs.state_dict())
    back = layout.from_ours(tensors)
    assert back.keys() == theirs.state_dict().keys()
    assert all(torch.equal(back[key], value) for key, value in theirs.state_dict().items())
    ours = build(name, num_classes=5, aux=False, **options).eval()
    ours.load_state_dict(tensors)
    dilated = [
        block.local_conv.conv
        for block in (stage[-1] for stage in ours.backbone.stages[2:])
        if block.local_conv.conv.dilation != (1, 1)
    ]
    assert bool(dilated) == ("v2" in name and options.get("output_stride") != 32)
    for conv in dilated:  # transformers' v2 has no holes in these; the authors' has
        conv.dilation = conv.padding = (1, 1)
    for size in sizes:
        images = torch.rand(1, 3, *size)
        with torch.inference_mode():
            small = theirs(images).logits
            expected = F.interpolate(small, size, mode="bilinear", align_corners=ours.align_corners)
            assert (ours(images) - expected).abs().max() < 1e-4 * expected.abs().max(), size


@pytest.mark.parametrize("order", ["rgb", "bgr"])
@pytest.mark.parametrize("mode", ["stretch", "shortest_edge"])
def test_a_folder_opens_in_transformers_and_comes_back(model, tmp_path, mode, order):
    rule = Preprocessing(
        resize_mode=mode, resize=160, crop=160, channel_order=order, interpolation="bicubic"
    )
    model.config = replace(model.config, preprocessing=rule)
    notes = write(model, tmp_path, to="transformers")
    assert any("auxiliary head" in note for note in notes) == (model.aux is not None)
    assert any("aligned corners" in note for note in notes) == model.align_corners
    assert any("dilation" in note for note in notes) == ("v2" in model.name)
    theirs = AutoModelForSemanticSegmentation.from_pretrained(tmp_path).eval()
    assert theirs.config.id2label == {0: "sky", 1: "road", 2: "tree"}
    photo = Image.fromarray(np.random.default_rng(0).integers(0, 256, (200, 300, 3), np.uint8))
    processor = AutoImageProcessor.from_pretrained(tmp_path)
    values = processor(photo.resize((300, 200)), return_tensors="pt").pixel_values
    if mode == "stretch":
        assert values.shape == (1, 3, 160, 160)
        assert (values[0] - preprocess(photo, rule)).abs().max() < 3 / 255
    else:  # their sides are not rounded down
        assert values.shape == (1, 3, 160, 240) and preprocess(photo, rule).shape == (3, 160, 224)
    if "v2" not in model.name:
        with torch.inference_mode():
            mine = model(values)
            expected = F.interpolate(theirs(values).logits, values.shape[-2:], mode="bilinear")
        assert (mine - expected).abs().max() < 1e-4 * expected.abs().max()
    again = load(tmp_path)
    expected_options = {} if model.aux is None else {"aux": False}
    assert again.config.options == expected_options
    assert again.config.classes == ("sky", "road", "tree")
    assert again.config.preprocessing == rule
    kept = {k: v for k, v in model.state_dict().items() if not k.startswith("aux.")}
    assert again.state_dict().keys() == kept.keys()
    assert all(torch.equal(again.state_dict()[key], tensor) for key, tensor in kept.items())


def test_options_that_transformers_has_go_with_it(tmp_path):
    options = {
        "output_stride": 8,
        "rates": [3, 6, 9],
        "channels": 64,
        "aspp_dropout": 0.2,
        "classifier_dropout": 0.3,
        "dropout": 0.4,
        "align_corners": True,
    }
    model = create_model("deeplabv3_mobilevit_xxs", num_classes=2, **options)
    write(model, tmp_path, to="transformers")
    assert load(tmp_path).config.options == options


def test_missing_dilation_is_said_of_every_v2_that_has_some(tmp_path):
    """A classifier of v2 at an output stride of 16 has it too."""
    for name, options, said in (
        ("mobilevitv2_050", {"output_stride": 16}, True),
        ("mobilevitv2_050", {}, False),
        ("mobilevit_xxs", {"output_stride": 8}, False),
    ):
        notes = write(create_model(name, num_classes=2, **options), tmp_path, to="transformers")
        assert any("dilation" in note for note in notes) == said


def edited(folder: Path, name: str, **changes: object) -> None:
    path = folder / name
    values = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: v for key, v in values.items() if v is not ...}))


def test_masks_of_ade20k_count_from_one(tmp_path):
    for count in (150, 21):
        model = create_model("deeplabv3_mobilevitv2_050", num_classes=count)
        write(model, tmp_path, to="transformers")
        values = json.loads((tmp_path / "preprocessor_config.json").read_text())
        assert values["do_reduce_labels"] == (count == 150)


def test_a_centre_that_would_be_cut_out_stays_in_the_image(tmp_path, caplog):
    """As the published folders of v1 say it, in the form of 2022 and in today's."""
    write(create_model("deeplabv3_mobilevit_xxs", num_classes=2), tmp_path, to="transformers")
    expected = Preprocessing(resize_mode="shortest_edge", resize=544, crop=544, channel_order="bgr")
    forms = (
        {"size": {"shortest_edge": 544}, "crop_size": {"height": 512, "width": 512}},
        {"size": 544, "crop_size": 512, "do_flip_channel_order": ..., "do_flip_channels": True},
    )
    for form in forms:
        edited(tmp_path, "preprocessor_config.json", do_center_crop=True, **form)
        if "do_flip_channels" not in form:
            edited(tmp_path, "preprocessor_config.json", do_flip_channel_order=True)
        caplog.clear()
        with caplog.at_level(logging.INFO):
            assert load(tmp_path).config.preprocessing == expected
        assert "crops images at the centre; here they are not cropped" in caplog.text
    (tmp_path / "preprocessor_config.json").unlink()
    rule = load(tmp_path).config.preprocessing
    assert (rule.resize_mode, rule.crop, rule.channel_order) == ("stretch", 512, "bgr")
    assert rule.assumed == ("channel_order", "resize_mode", "resize", "crop", "interpolation")


def test_a_folder_without_config_is_taken_as_the_authors_made_it(tmp_path):
    model = create_model("deeplabv3_mobilevit_xxs", num_classes=2)
    write(model, tmp_path, to="transformers")
    (tmp_path / "config.json").unlink()
    again = load(tmp_path / "model.safetensors")
    assert again.config.options == {}


@pytest.mark.parametrize(
    ("task", "change", "message"),
    [
        ("deeplabv3_", {"size": {"height": 9, "width": 8}}, "size = "),
        ("deeplabv3_", {"size": {"shortest_edge": 8}}, "one number of at least 32"),
        ("", {"do_center_crop": False}, "do_center_crop = False"),
    ],
)
def test_what_we_can_not_do_in_their_folders_is_named(tmp_path, task, change, message):
    write(create_model(f"{task}mobilevit_xxs", num_classes=2), tmp_path, to="transformers")
    edited(tmp_path, "preprocessor_config.json", **change)
    with pytest.raises(CheckpointError, match=message):
        load(tmp_path)


def test_a_classifier_of_squashed_images_keeps_that_in_transformers_alone(tmp_path):
    model = create_model("mobilevit_xxs", num_classes=2)
    rule = Preprocessing(resize_mode="stretch", resize=200, crop=200)
    model.config = replace(model.config, preprocessing=rule)
    write(model, tmp_path / "out", to="transformers")
    assert load(tmp_path / "out").config.preprocessing == rule
    with pytest.raises(CheckpointError, match="no place for resize_mode stretch"):
        write(model, tmp_path / "timm", to="timm")
    short = Preprocessing(resize_mode="shortest_edge", resize=200, crop=200)
    with pytest.raises(ValueError, match="in classification it must be crop or stretch"):
        replace(model.config, preprocessing=short)
