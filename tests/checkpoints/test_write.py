"""Networks written for other libraries, and opened by them."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_sample_images
from timm import create_model as create_timm
from timm.data import create_transform, resolve_model_data_config
from transformers import AutoImageProcessor, AutoModelForImageClassification

from mobilevit.checkpoints.create import create_model, load
from mobilevit.checkpoints.keymap import CheckpointError
from mobilevit.checkpoints.write import write
from mobilevit.data.class_names import imagenet_classes
from mobilevit.data.preprocessing import preprocess
from tests.numerics import assert_close, assert_probabilities_close

NAMES = ("mobilevit_xxs", "mobilevitv2_050")
TARGETS = (
    ("folder", "out"),
    ("authors", "out.pt"),
    ("timm", "out"),
    ("timm", "out.safetensors"),
    ("transformers", "out"),
)


@pytest.fixture(scope="module")
def photo() -> Image.Image:
    """A real photo that a dependency ships, 640 x 427 pixels."""
    return Image.fromarray(load_sample_images().images[1])


@pytest.fixture(scope="module", params=NAMES)
def model(request):
    """A network whose every tensor says something, and whose answers differ from photo to photo."""
    torch.manual_seed(0)
    model = create_model(request.param, classes=["ant", "bée", "猫"]).eval()
    with torch.no_grad():
        for key, tensor in model.state_dict().items():
            if tensor.ndim == 1 and tensor.is_floating_point():
                positive = key.endswith(("weight", "running_var"))
                tensor.uniform_(0.5, 1.5) if positive else tensor.normal_(std=0.1)
        model.head.weight.mul_(20)
    return model


def with_rule(model, **changes):
    model.config = replace(
        model.config, preprocessing=replace(model.config.preprocessing, **changes)
    )
    return model


def answer(model, photo: Image.Image) -> np.ndarray:
    with torch.inference_mode():
        return model(preprocess(photo, model.config.preprocessing)[None]).softmax(1)[0].numpy()


@pytest.mark.parametrize("order", ["rgb", "bgr"])
@pytest.mark.parametrize(("to", "out"), TARGETS)
def test_writing_and_reading_back_is_exact(model, photo, tmp_path, to, out, order):
    with_rule(model, channel_order=order, interpolation="bilinear", resize=288, crop=256)
    notes = write(model, tmp_path / out, to=to)
    again = load(tmp_path / out)
    reversed_ = again.config.preprocessing.channel_order != order
    for key, tensor in model.state_dict().items():
        expected = tensor.flip(1) if reversed_ and key == "backbone.stem.conv.weight" else tensor
        assert torch.equal(again.state_dict()[key], expected), key
    assert reversed_ == any("channel order" in note for note in notes)
    assert again.config.model == model.config.model
    assert again.config.options == model.config.options
    if out == "out":  # a folder says all
        assert again.config.classes == model.config.classes
        rule = replace(again.config.preprocessing, assumed=(), channel_order=order)
        assert rule == replace(model.config.preprocessing, assumed=())
        assert all("channel order" in note for note in notes)
    else:
        assert any("names of its 3 classes" in note for note in notes)
        with_rule(again, interpolation="bilinear")
    difference = np.abs(answer(again, photo) - answer(model, photo)).max()
    assert difference < 1e-5


@pytest.mark.parametrize("order", ["rgb", "bgr"])
def test_transformers_gives_our_answer_on_a_photo(model, photo, tmp_path, order):
    with_rule(model, channel_order=order, interpolation="bicubic", resize=250, crop=224)
    if model.name.startswith("mobilevitv2"):  # at 224 px transformers' v2 is wrong
        with_rule(model, crop=192)
    write(model, tmp_path / "out", to="transformers")
    theirs = AutoModelForImageClassification.from_pretrained(tmp_path / "out").eval()
    processor = AutoImageProcessor.from_pretrained(tmp_path / "out")
    with torch.inference_mode():
        values = processor(photo, return_tensors="pt").pixel_values
        logits = theirs(values).logits
    expected = answer(model, photo)
    # its resizing works on tensors, ours on images: pixels differ by a step of 1/255
    assert (values[0] - preprocess(photo, model.config.preprocessing)).abs().max() < 2.5 / 255
    assert np.abs(logits.softmax(1)[0].numpy() - expected).max() < 1e-2
    assert theirs.config.id2label[int(logits.argmax())] == model.config.classes[expected.argmax()]
    exact = model(values)  # and the very same on the same pixels
    assert (logits - exact).abs().max() < 1e-4 * exact.abs().max()


@pytest.mark.parametrize("order", ["rgb", "bgr"])
def test_timm_gives_our_answer_on_a_photo(model, photo, tmp_path, order):
    with_rule(model, channel_order=order, interpolation="bicubic", resize=250, crop=224)
    write(model, tmp_path / "out", to="timm")
    expected = answer(model, photo)
    by_path = create_timm(
        model.name, num_classes=3, checkpoint_path=tmp_path / "out" / "model.safetensors"
    ).eval()
    by_folder = create_timm(f"local-dir:{tmp_path / 'out'}", pretrained=True).eval()
    transform = create_transform(**resolve_model_data_config(by_folder))
    with torch.inference_mode():
        for theirs in (by_path, by_folder):
            logits = theirs(transform(photo)[None])
            assert_probabilities_close(logits.softmax(1)[0].numpy(), expected)
    assert by_folder.pretrained_cfg["label_names"] == list(model.config.classes)


@pytest.mark.parametrize(("resize", "crop"), [(288, 256), (180, 160), (256, 256), (439, 384)])
def test_timms_share_gives_back_the_same_size(tmp_path, resize, crop):
    model = with_rule(create_model("mobilevit_xxs", num_classes=2), resize=resize, crop=crop)
    write(model, tmp_path, to="timm")
    rule = load(tmp_path).config.preprocessing
    assert (rule.resize, rule.crop) == (resize, crop)
    assert rule.assumed == ()


def test_options_that_transformers_has_go_with_it(tmp_path):
    options = {
        "patch_sizes": [4, 4, 4],
        "heads": 2,
        "kernel_size": 5,
        "dropout": 0.3,
        "attention_dropout": 0.2,
        "classifier_dropout": 0.4,
    }
    model = create_model("mobilevit_xxs", num_classes=2, **options).eval()
    write(model, tmp_path, to="transformers")
    assert load(tmp_path).config.options == options
    theirs = AutoModelForImageClassification.from_pretrained(tmp_path).eval()
    images = torch.rand(1, 3, 128, 128)
    with torch.inference_mode():
        assert_close(theirs(images).logits, model(images))


def test_a_network_without_names_stays_so(tmp_path):
    model = create_model("mobilevitv2_050", num_classes=2)
    write(model, tmp_path / "a", to="transformers")
    write(model, tmp_path / "b", to="timm")
    assert load(tmp_path / "a").config.classes is load(tmp_path / "b").config.classes is None


@pytest.mark.parametrize(
    ("to", "out", "options", "message"),
    [
        ("authors", "o.pt", {"patch_sizes": (8, 4, 2)}, "patch_sizes cannot be written"),
        ("timm", "o", {"heads": 2}, "heads cannot be written"),
        ("transformers", "o", {"patch_sizes": (8, 4, 2)}, r"one number for patch_sizes.*8, 4, 2"),
        ("transformers", "o", {"fusion": False}, "no place for fusion"),
        ("authors", "folder", {}, r"must end in \.pt"),
        ("transformers", "o.pt", {}, "is a folder, so it cannot be the file"),
    ],
)
def test_what_a_layout_can_not_say_is_refused(tmp_path, to, out, options, message):
    model = create_model("mobilevit_xxs", num_classes=2, **options)
    with pytest.raises(ValueError, match=message):
        write(model, tmp_path / out, to=to)
    assert not list(tmp_path.iterdir())


def test_mean_and_std_go_where_there_is_a_place_for_them(tmp_path):
    model = with_rule(create_model("mobilevit_xxs", num_classes=2), mean=(0.5, 0.5, 0.5))
    with pytest.raises(CheckpointError, match="mean and std"):
        write(model, tmp_path / "transformers", to="transformers")
    notes = write(model, tmp_path / "authors.pt", to="authors")
    assert "mean (0.5, 0.5, 0.5), where readers assume (0.0, 0.0, 0.0)" in notes
    write(model, tmp_path / "timm", to="timm")
    assert load(tmp_path / "timm").config.preprocessing.mean == (0.5, 0.5, 0.5)


def edited(folder, name, **changes):
    path = folder / name
    values = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: v for key, v in values.items() if v is not ...}))


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("config.json", {"hidden_act": "relu"}, "hidden_act is relu; only silu"),
        ("config.json", {"layer_norm_eps": 1e-6}, "layer_norm_eps"),
        ("config.json", {"id2label": {"0": "a", "2": "b"}}, "id2label has no entry '1'"),
        ("preprocessor_config.json", {"do_center_crop": False}, "do_center_crop = False"),
        ("preprocessor_config.json", {"do_normalize": True}, "do_normalize = True"),
        ("preprocessor_config.json", {"size": {"height": 9, "width": 9}}, "size = "),
        ("preprocessor_config.json", {"crop_size": {"height": 9, "width": 8}}, "crop_size = "),
        ("preprocessor_config.json", {"resample": 0}, "resample = 0"),
        ("preprocessor_config.json", {"rescale_factor": 1.0}, "rescale_factor"),
        ("preprocessor_config.json", {"crop_size": 999}, "crop must lie"),
    ],
)
def test_what_we_can_not_do_in_their_folders_is_named(tmp_path, name, change, message):
    write(create_model("mobilevit_xxs", num_classes=2), tmp_path, to="transformers")
    edited(tmp_path, name, **change)
    with pytest.raises(CheckpointError, match=message):
        load(tmp_path)


def test_older_and_silent_folders_are_read(tmp_path):
    model = create_model("mobilevit_xxs", num_classes=2)
    write(model, tmp_path, to="transformers")
    edited(tmp_path, "preprocessor_config.json", size=300, crop_size=280, resample=...)
    rule = load(tmp_path).config.preprocessing
    assert (rule.resize, rule.crop, rule.assumed) == (300, 280, ("interpolation",))
    (tmp_path / "preprocessor_config.json").unlink()
    rule = load(tmp_path).config.preprocessing
    assert rule.channel_order == "bgr"
    assert rule.assumed == ("channel_order", "resize", "crop", "interpolation")
    torch.save(
        {k.removeprefix("mobilevit."): v for k, v in load_tensors(tmp_path).items()},
        tmp_path / "pytorch_model.bin",
    )
    (tmp_path / "model.safetensors").unlink()
    backbone = create_model("mobilevit_xxs", weights=tmp_path, features_only=True)
    assert torch.equal(backbone.stem.conv.weight, model.backbone.stem.conv.weight)


def load_tensors(folder):
    from safetensors.torch import load_file

    tensors = load_file(folder / "model.safetensors")
    return {key: value for key, value in tensors.items() if not key.startswith("classifier")}


def test_names_given_twice_are_told_apart(tmp_path):
    write(create_model("mobilevit_xxs", num_classes=3), tmp_path, to="transformers")
    edited(tmp_path, "config.json", id2label={"0": "crane", "1": "tench", "2": "crane"})
    assert load(tmp_path).config.classes == ("crane [0]", "tench", "crane [2]")


def test_a_tag_that_ends_on_imagenet_gives_its_names(tmp_path):
    write(create_model("mobilevitv2_050", num_classes=1000), tmp_path, to="timm")
    values = json.loads((tmp_path / "config.json").read_text())
    for tag, classes in (
        ("cvnets_in1k", imagenet_classes()),
        ("cvnets_in22k_ft_in1k_384", imagenet_classes()),
        ("mine", None),
    ):
        values["pretrained_cfg"]["tag"] = tag
        (tmp_path / "config.json").write_text(json.dumps(values))
        assert load(tmp_path).config.classes == classes


def test_imagenet_has_a_thousand_names():  # A25
    names = imagenet_classes()
    assert len(names) == len(set(names)) == 1000
    assert (names[0], names[-1]) == ("tench", "toilet tissue")


def test_heads_of_imagenet_21k_keep_their_size(tmp_path):
    write(create_model("mobilevitv2_050", num_classes=10450), tmp_path / "o.pt", to="authors")
    model = load(tmp_path / "o.pt")
    assert model.config.num_classes == len(model.head.bias) == 10450
