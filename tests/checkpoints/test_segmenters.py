"""Networks for segmentation: the authors' files read and written, backbones and heads exchanged."""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from mobilevit.checkpoints import authors, transformers
from mobilevit.checkpoints.create import create_model, load
from mobilevit.checkpoints.folder import save
from mobilevit.checkpoints.keymap import CheckpointError
from mobilevit.checkpoints.read import ADAPTERS, recognise
from mobilevit.checkpoints.write import write
from mobilevit.data.class_names import VOC_CLASSES, class_names
from mobilevit.models.config import Preprocessing
from mobilevit.models.mobilevit import MobileViTBlock
from mobilevit.models.registry import build

SHORTEST_512 = Preprocessing(resize_mode="shortest_edge", resize=512, crop=512)
LATER = {"output_stride": 8, "channels": 512, "aux": True, "align_corners": True}
REFERENCES = {
    "deeplabv3_mobilevit_xxs_2021": {},
    "deeplabv3_mobilevit_xxs": LATER,
    "deeplabv3_mobilevit_s": LATER,
    "deeplabv3_mobilevitv2_050": {},
    "pspnet_mobilevitv2_050": {},
}
"""Name -> the options that differ from the network's own."""
LAYOUTS = [layout for adapter in ADAPTERS.values() for layout in adapter.layouts]


@pytest.fixture
def file(shared: Path, tmp_path: Path) -> Callable[[str], tuple[Path, dict[str, Tensor]]]:
    """Write a stored reference as the authors' file; give its path and tensors."""
    spec = importlib.util.spec_from_file_location("fill", shared / "reference" / "fill.py")
    fill: Any = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(fill)

    def make(name: str) -> tuple[Path, dict[str, Tensor]]:
        tensors = {key: torch.as_tensor(array) for key, array in fill.state_dict(name).items()}
        torch.save(tensors, tmp_path / "some.pt")
        return tmp_path / "some.pt", tensors

    return make


@pytest.mark.parametrize("name", REFERENCES)
def test_authors_files_are_read_whole_and_written_back_bit_for_bit(name, file, tmp_path, caplog):
    path, tensors = file(name)
    with caplog.at_level(logging.INFO):
        model = load(path)
    assert model.name == name.removesuffix("_2021")
    assert model.config.options == REFERENCES[name]
    assert (model.config.num_classes, model.config.task) == (21, "segmentation")
    stride = model.backbone.feature_info[-1].stride
    assert f"does not state its output stride: {stride} is assumed" in caplog.text
    assert ("rates (12, 24, 36)" in caplog.text) == (model.config.options == LATER)
    assert ("rates (6, 12, 18)" in caplog.text) == (name.startswith("deep") and stride == 16)
    write(model, tmp_path / "again.pt", to="authors")
    again = torch.load(tmp_path / "again.pt", weights_only=True)
    assert again.keys() == tensors.keys()
    for key, tensor in tensors.items():
        assert again[key].shape == tensor.shape and torch.equal(again[key], tensor), key


def test_a_published_name_says_what_its_file_does_not(file, server, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path / "hub"))
    monkeypatch.setenv("MOBILEVIT_MIRROR", server.address)
    path = "/cvnets-v2/segmentation/pascalvoc/deeplabv3-mobilevitv1.pt"
    server.files[path] = file("deeplabv3_mobilevit_s")[0].read_bytes()
    with caplog.at_level(logging.INFO):
        model = load("deeplabv3_mobilevit_s.apple_voc_os8")
    assert "does not state" not in caplog.text
    assert model.config.options == LATER
    assert model.config.classes == VOC_CLASSES
    assert model.config.preprocessing == Preprocessing(
        resize_mode="shortest_edge", resize=512, crop=512
    )


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (
            "deeplabv3_mobilevit_xxs_2021",
            Preprocessing(channel_order="bgr", resize_mode="stretch", resize=512, crop=512),
        ),
        (
            "deeplabv3_mobilevit_xxs",
            SHORTEST_512,
        ),
        (
            "pspnet_mobilevitv2_050",
            Preprocessing(
                resize_mode="shortest_edge",
                resize=512,
                crop=512,
                interpolation="bicubic",
                assumed=("channel_order",),
            ),
        ),
    ],
)
def test_preprocessing_is_that_of_the_files_generation(name, expected, file):
    assert load(file(name)[0]).config.preprocessing == expected


@pytest.mark.parametrize("name", ["deeplabv3_mobilevitv2_050", "pspnet_mobilevit_xs"])
def test_150_classes_are_taken_for_ade20k(name, tmp_path):
    options = {"output_stride": 8}
    write(create_model(name, num_classes=150, **options), tmp_path / "ade.pt", to="authors")
    assert load(tmp_path / "ade.pt").config.options == options
    with pytest.raises(CheckpointError, match="with output_stride cannot be written"):
        write(create_model(name, num_classes=150), tmp_path / "other.pt", to="authors")


def test_scalars_of_range_augment_are_left_out(tmp_path):
    model = create_model("deeplabv3_mobilevit_xxs", num_classes=150, **LATER)
    write(model, tmp_path / "w.pt", to="authors")
    tensors = torch.load(tmp_path / "w.pt", weights_only=True)
    torch.save({**tensors, "neural_augmentor.noise._low": torch.zeros(())}, tmp_path / "w.pt")
    again = load(tmp_path / "w.pt")
    assert again.config.options == LATER
    assert again.config.preprocessing.channel_order == "rgb"


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: f"{layout.name}-{layout.network}")
def test_the_first_layout_that_matches_is_the_right_one(layout):
    variant = "mobilevit_xxs" if layout.block is MobileViTBlock else "mobilevitv2_050"
    options = {}
    if layout is authors.DEEPLAB_V1:
        options = LATER
    elif layout.head == "deeplabv3_" and layout in transformers.ADAPTER.layouts:
        options = {"aux": False}
    with torch.device("meta"):
        tensors = layout.from_ours(build(layout.head + variant, **options).state_dict())
    marks = layout.ignored if layout.marks[-1:] == layout.ignored else ()
    tensors |= {f"{mark}low": torch.zeros(()) for mark in marks}
    assert recognise(tensors, Path("w.pt"))[1] is layout


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("deeplabv3_mobilevit_xxs", {"rates": (3, 6, 9)}, "with rates cannot"),
        ("deeplabv3_mobilevit_xxs", {"output_stride": 8}, "with output_stride cannot"),
        ("deeplabv3_mobilevit_xxs", {**LATER, "output_stride": 16}, "with output_stride cannot"),
        ("deeplabv3_mobilevit_xxs", {"aux": True}, "no place for aux"),
        ("pspnet_mobilevitv2_050", {"align_corners": False}, "align_corners False cannot"),
        ("pspnet_mobilevitv2_050", {"heads": 4, "patch_sizes": (4, 4, 4)}, "with patch_sizes"),
    ],
)
def test_what_the_authors_reader_would_not_know_is_refused(tmp_path, name, options, message):
    model = create_model(name, num_classes=3, **options)
    with pytest.raises(CheckpointError, match=message):
        write(model, tmp_path / "o.pt", to="authors")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("options", [{"channels": 64}, {"aux": False}, {"aspp_dropout": 0.3}])
def test_what_shapes_show_is_written_and_read(tmp_path, options):
    model = create_model("deeplabv3_mobilevitv2_050", num_classes=3, **options)
    write(model, tmp_path / "o.pt", to="authors")
    shown = {key: value for key, value in options.items() if key != "aspp_dropout"}
    assert load(tmp_path / "o.pt").config.options == shown


@pytest.mark.parametrize("to", ["timm", "transformers"])
def test_sources_without_such_networks_say_so(tmp_path, to):
    with pytest.raises(CheckpointError, match=f"{to} has no pspnet networks"):
        write(create_model("pspnet_mobilevitv2_050", num_classes=2), tmp_path / "o", to=to)


def test_a_model_folder_keeps_everything(tmp_path):
    model = create_model("deeplabv3_mobilevit_xxs", classes=["a", "b"], rates=(1, 2, 3), aux=True)
    save(model, tmp_path)
    again = load(tmp_path)
    assert again.config == model.config
    assert again.config.options == {"rates": [1, 2, 3], "aux": True}
    assert again.config.preprocessing == Preprocessing(
        resize_mode="shortest_edge", resize=512, crop=512
    )
    assert all(
        torch.equal(again.state_dict()[key], tensor) for key, tensor in model.state_dict().items()
    )


def test_a_classifiers_weights_become_the_backbone(tmp_path, caplog):
    classifier = create_model(
        "mobilevit_xxs", num_classes=9, output_stride=8, patch_sizes=(4, 4, 2)
    )
    save(classifier, tmp_path)
    with caplog.at_level(logging.WARNING):
        model = create_model("deeplabv3_mobilevit_xxs", num_classes=4, weights=tmp_path)
    assert model.config.options == {"patch_sizes": [4, 4, 2]}  # strides belong to the task
    assert "all of context, predict" in caplog.text
    assert model.config.preprocessing.resize_mode == "shortest_edge"
    for key, tensor in classifier.backbone.state_dict().items():
        assert torch.equal(model.backbone.state_dict()[key], tensor), key
    back = tmp_path / "back"
    save(create_model("deeplabv3_mobilevit_xxs", num_classes=4, channels=64, aux=True), back)
    again = create_model("mobilevit_xxs", num_classes=3, weights=back)
    assert again.config.options == {}
    other = create_model("pspnet_mobilevit_xxs", num_classes=4, weights=back)
    assert other.config.options == {}


def test_other_classes_give_new_classifiers_of_positions(tmp_path, caplog):
    model = create_model("pspnet_mobilevitv2_050", num_classes=21)
    save(model, tmp_path)
    again = create_model("pspnet_mobilevitv2_050", num_classes=3, weights=tmp_path)
    changed = [
        key
        for key, tensor in again.state_dict().items()
        if not torch.equal(tensor, model.state_dict()[key])
    ]
    assert changed == ["predict.weight", "predict.bias", "aux.predict.weight", "aux.predict.bias"]
    assert all(key in caplog.text for key in changed)
    with pytest.raises(CheckpointError, match=r"predict.* are for 21 classes, not 20; is one of"):
        create_model("pspnet_mobilevitv2_050", num_classes=20, weights=tmp_path, new_head=False)
    assert create_model("pspnet_mobilevitv2_050").config.num_classes == 21


def test_an_auxiliary_head_can_be_left_out_and_added(tmp_path, caplog):
    model = create_model("deeplabv3_mobilevitv2_050", num_classes=3)
    save(model, tmp_path / "with")
    without = create_model("deeplabv3_mobilevitv2_050", weights=tmp_path / "with", aux=False)
    assert not caplog.text
    assert without.config.options == {"aux": False}
    assert torch.equal(without.predict.weight, model.predict.weight)
    save(without, tmp_path / "without")
    assert load(tmp_path / "without").aux is None
    added = create_model("deeplabv3_mobilevitv2_050", weights=tmp_path / "without", aux=True)
    assert "aux.conv.conv.weight" in caplog.text and "predict.weight" in caplog.text
    assert torch.equal(added.predict.weight, model.predict.weight)


def test_names_of_voc_are_built_in():
    model = create_model("deeplabv3_mobilevit_xxs", classes=class_names("voc"))
    assert model.config.classes == VOC_CLASSES
    assert model.config.num_classes == len(model.predict.bias) == 21
