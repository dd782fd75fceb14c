"""What holds for every layout of others: recognised, written, read back, or refused."""

from __future__ import annotations

import importlib.util
import json
import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from mobilevit.checkpoints import authors, timm, transformers
from mobilevit.checkpoints.adapter import PROCESSOR
from mobilevit.checkpoints.create import create_model, load
from mobilevit.checkpoints.keymap import CheckpointError, Layout, shorten
from mobilevit.checkpoints.read import ADAPTERS, recognise
from mobilevit.checkpoints.write import write
from mobilevit.data.class_names import VOC_CLASSES, imagenet_classes
from mobilevit.models.config import Preprocessing
from mobilevit.models.mobilevit import MobileViTBlock
from mobilevit.models.registry import build
from tests.checkpoints.networks import edit, equal, randomized
from tests.numerics import assert_close, tensors_of

LAYOUTS = [layout for adapter in ADAPTERS.values() for layout in adapter.layouts]
LATER = {"output_stride": 8, "channels": 512, "aux": True, "align_corners": True}
"""DeepLabv3 on v1 in the authors' later code."""
SHORT_512 = Preprocessing(resize_mode="shortest_edge", resize=512, crop=512)
NETWORKS: dict[str, dict[str, Any]] = {
    "mobilevit_xxs": {},
    "mobilevitv2_050": {},
    "ssdlite_mobilevit_xxs": {},
    "deeplabv3_mobilevit_xxs": {},
    "deeplabv3_mobilevitv2_050": {},
    "pspnet_mobilevitv2_050": {},
}


def layout_id(layout: Layout) -> str:
    return "-".join(
        [
            layout.name,
            layout.head,
            layout.block.__name__,
            *layout.ignored,
            layout.preprocessing.channel_order,
        ]
    )


def theirs(layout: Layout) -> dict[str, Tensor]:
    """Tensors of a network in this layout, without their values."""
    variant = "mobilevit_xxs" if layout.block is MobileViTBlock else "mobilevitv2_050"
    options: dict[str, Any] = {}
    if layout.head == "deeplabv3_":
        has_aux = any(row.ours.startswith("aux.") for row in layout.rows)
        options = {"aux": has_aux}
    with torch.device("meta"):
        tensors = layout.from_ours(build(layout.head + variant, **options).state_dict())
    return tensors | {f"{prefix}low": torch.zeros(()) for prefix in layout.ignored}


@pytest.mark.parametrize("layout", LAYOUTS, ids=layout_id)
def test_every_layout_is_recognised_and_knows_its_names(layout: Layout) -> None:
    tensors = theirs(layout)
    assert recognise(tensors, Path("w.pt")).layout is layout
    if layout.prefix and not layout.head:  # a backbone alone has no prefix
        bare = {
            key.removeprefix(layout.prefix): value
            for key, value in tensors.items()
            if key.startswith(layout.prefix)
        }
        found = recognise(bare, Path("w.pt"))
        assert found.layout is layout and found.tensors.keys() == tensors.keys() - {
            "classifier.weight",
            "classifier.bias",
        }
    unknown = {"layer_9.weight": torch.zeros(1), "ema.decay": torch.zeros(1)}
    with pytest.raises(CheckpointError, match=r"2 tensors .* layout: layer_9.weight, ema.decay"):
        layout.to_ours(unknown)
    with pytest.raises(CheckpointError, match=r"no place for layer_9\.weight"):
        layout.from_ours(unknown)


@pytest.mark.parametrize(
    ("name", "layout"),
    [(f"mobilevit_{size}", authors.V1) for size in ("xxs", "xs", "s")]
    + [(f"mobilevitv2_{width}", authors.V2) for width in ("050", "100", "200")],
)
def test_authors_keys_and_shapes(name: str, layout: Layout, shared: Path) -> None:
    """Exactly the tensors of the original checkpoint."""
    expected = json.loads((shared / "reference" / f"{name}.keys.json").read_text())
    with torch.device("meta"):
        tensors = layout.from_ours(build(name).state_dict())
    assert sorted([key, list(tensor.shape)] for key, tensor in tensors.items()) == sorted(expected)


@pytest.fixture(params=["safetensors", "bin"])
def sharded(request, tmp_path: Path) -> Path:
    """A folder of transformers whose weights are in several files."""
    write(create_model("mobilevit_xxs", num_classes=3), tmp_path, to="transformers")
    tensors = load_file(tmp_path / "model.safetensors")
    (tmp_path / "model.safetensors").unlink()
    stem = "model" if request.param == "safetensors" else "pytorch_model"
    names = [f"{stem}-{number:05d}-of-00003.{request.param}" for number in (1, 2, 3)]
    weight_map = {key: names[index % 3] for index, key in enumerate(tensors)}
    for name in names:
        part = {key: x for key, x in tensors.items() if weight_map[key] == name}
        (save_file if request.param == "safetensors" else torch.save)(part, tmp_path / name)
    index = {"metadata": {"total_size": 1}, "weight_map": weight_map}
    (tmp_path / f"{stem}.{request.param}.index.json").write_text(json.dumps(index))
    return tmp_path


def test_weights_in_several_files_are_read(sharded: Path) -> None:
    config = load(sharded).config
    assert (config.model, config.num_classes) == ("mobilevit_xxs", 3)
    assert config.preprocessing.assumed == ()
    next(sharded.glob("*-00002-of-00003.*")).unlink()
    with pytest.raises(FileNotFoundError, match=r"-00002-of-00003"):
        load(sharded)
    index = next(sharded.glob("*.index.json"))
    index.write_text("[]")
    with pytest.raises(CheckpointError, match=r"is no index of files"):
        load(sharded)


def test_a_part_without_its_others_is_an_error() -> None:
    ours = {"backbone.stage3.1.transformer.0.attention.qkv.bias": torch.arange(6.0)}
    tensors = transformers.V1.from_ours(ours)
    assert [tensor.tolist() for tensor in tensors.values()] == [[0, 1], [2, 3], [4, 5]]
    del tensors["mobilevit.encoder.layer.2.transformer.layer.0.attention.attention.key.bias"]
    with pytest.raises(CheckpointError, match=r"attention\.qkv\.bias is without its key"):
        transformers.V1.to_ours(tensors)


def test_slots_take_the_same_number_on_both_sides() -> None:
    """`stages.{s-1}` of timm counts from nought."""
    key = "backbone.stage4.0.project.conv.weight"
    assert list(timm.V1.from_ours({key: torch.zeros(1)})) == ["stages.3.0.conv3_1x1.conv.weight"]
    assert list(authors.V1.from_ours({key: torch.zeros(1)})) == [
        "layer_4.0.block.red_1x1.block.conv.weight"
    ]


def test_long_lists_are_shortened() -> None:
    assert shorten(list("abc"), 3) == "a, b, c"
    assert shorten(list("abcd"), 3) == "a, b, c and 1 more"


@pytest.fixture(scope="module", params=NETWORKS)
def model(request):
    torch.manual_seed(0)
    return randomized(create_model(request.param, classes=["ant", "bée", "猫"]))


TARGETS = (
    ("folder", "out"),
    ("authors", "out.pt"),
    ("timm", "out"),
    ("timm", "out.safetensors"),
    ("transformers", "out"),
)


@pytest.mark.parametrize("order", ["rgb", "bgr"])
@pytest.mark.parametrize(("to", "out"), TARGETS)
def test_writing_and_reading_back_is_exact(model, tmp_path, to, out, order):
    size = {} if model.config.task == "segmentation" else {"resize": 288, "crop": 256}
    if model.config.task == "detection":
        size = {"resize": 320, "crop": 320}
    preprocessing = replace(
        model.config.preprocessing, channel_order=order, interpolation="bilinear", **size
    )
    model.config = replace(model.config, preprocessing=preprocessing)
    heads = {layout.head for layout in ADAPTERS[to].layouts} if to != "folder" else {...}
    head = model.name.removesuffix("mobilevit_xxs").removesuffix("mobilevitv2_050")
    if heads != {...} and head not in heads:
        with pytest.raises(CheckpointError, match=f"{to} has no {head.rstrip('_')} networks"):
            write(model, tmp_path / out, to=to)
        assert not list(tmp_path.iterdir())
        return
    notes = write(model, tmp_path / out, to=to)
    again = load(tmp_path / out)
    reversed_ = again.config.preprocessing.channel_order != order
    assert reversed_ == any("channel order" in note for note in notes)
    drops_aux = to == "transformers" and getattr(model, "aux", None) is not None
    for key, tensor in model.state_dict().items():
        if drops_aux and key.startswith("aux."):
            continue
        expected = tensor.flip(1) if reversed_ and key == "backbone.stem.conv.weight" else tensor
        assert torch.equal(again.state_dict()[key], expected), key
    assert again.config.model == model.config.model
    assert again.config.options == ({"aux": False} if drops_aux else model.config.options)
    assert drops_aux == any("auxiliary head" in note for note in notes)
    if out == "out":  # a folder states everything
        assert again.config.classes == model.config.classes
        found = replace(again.config.preprocessing, assumed=(), channel_order=order)
        assert found == replace(preprocessing, assumed=())
    else:
        assert any("names of its 3 classes" in note for note in notes)
    images = torch.rand(1, 3, 64, 96)
    inputs = images.flip(1) if reversed_ else images
    with torch.inference_mode():
        for value, expected in zip(
            tensors_of(again(inputs)), tensors_of(model(images)), strict=True
        ):
            assert_close(value, expected)


@pytest.mark.parametrize(
    ("to", "out", "name", "options", "message"),
    [
        ("authors", "o.pt", "mobilevit_xxs", {"patch_sizes": (8, 4, 2)}, "with patch_sizes cannot"),
        ("timm", "o", "mobilevit_xxs", {"heads": 2}, "with heads cannot be written"),
        ("transformers", "o", "mobilevit_xxs", {"patch_sizes": (8, 4, 2)}, "number for patch_size"),
        ("transformers", "o", "mobilevit_xxs", {"fusion": False}, "no place for fusion"),
        ("transformers", "o", "mobilevit_xxs", {"ffn_dropout": 0.1}, "no place for ffn_dropout"),
        ("authors", "folder", "mobilevit_xxs", {}, r"must end in \.pt"),
        ("transformers", "o.pt", "mobilevit_xxs", {}, "is a folder, so it cannot be the file"),
        ("authors", "o.pt", "deeplabv3_mobilevit_xxs", {"rates": (3, 6, 9)}, "with rates cannot"),
        ("authors", "o.pt", "deeplabv3_mobilevit_xxs", {"output_stride": 8}, "with output_stride"),
        (
            *("authors", "o.pt", "deeplabv3_mobilevit_xxs"),
            *({**LATER, "output_stride": 16}, "with output_stride cannot"),
        ),
        ("authors", "o.pt", "deeplabv3_mobilevit_xxs", {"aux": True}, "no place for aux"),
        (
            *("authors", "o.pt", "pspnet_mobilevitv2_050"),
            *({"align_corners": False}, "with align_corners cannot"),
        ),
        (
            *("authors", "o.pt", "pspnet_mobilevitv2_050"),
            *({"heads": 4, "patch_sizes": (4, 4, 4)}, "with patch_sizes"),
        ),
    ],
)
def test_what_a_layout_cannot_state_is_refused(tmp_path, to, out, name, options, message):
    model = create_model(name, num_classes=3, **options)
    with pytest.raises(ValueError, match=message):
        write(model, tmp_path / out, to=to)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("to", "name", "options"),
    [
        (
            "transformers",
            "mobilevit_xxs",
            {
                "patch_sizes": [4, 4, 4],
                "heads": 2,
                "kernel_size": 5,
                "dropout": 0.3,
                "attention_dropout": 0.2,
                "classifier_dropout": 0.4,
            },
        ),
        ("transformers", "mobilevitv2_050", {"attention_dropout": 0.2, "ffn_dropout": 0.3}),
        (
            "transformers",
            "deeplabv3_mobilevit_xxs",
            {
                "output_stride": 8,
                "rates": [3, 6, 9],
                "channels": 64,
                "aspp_dropout": 0.2,
                "classifier_dropout": 0.3,
                "dropout": 0.4,
                "align_corners": True,
            },
        ),
        ("folder", "deeplabv3_mobilevit_xxs", {"rates": [1, 2, 3], "aux": True}),
        ("authors", "deeplabv3_mobilevitv2_050", {"channels": 64}),
        ("authors", "deeplabv3_mobilevitv2_050", {"aux": False}),
    ],
)
def test_options_that_a_layout_states_or_shows_come_back(tmp_path, to, name, options):
    out = tmp_path / ("o.pt" if to == "authors" else "o")
    write(create_model(name, num_classes=2, **options), out, to=to)
    assert load(out).config.options == options


def test_dropouts_are_lost_in_the_authors_files(tmp_path):
    model = create_model("deeplabv3_mobilevitv2_050", num_classes=3, aspp_dropout=0.3)
    write(model, tmp_path / "o.pt", to="authors")
    assert load(tmp_path / "o.pt").config.options == {}


def test_mean_and_std_need_a_layout_that_states_them(tmp_path):
    model = create_model("mobilevit_xxs", num_classes=2, preprocessing={"mean": (0.5, 0.5, 0.5)})
    with pytest.raises(CheckpointError, match="mean and std"):
        write(model, tmp_path / "transformers", to="transformers")
    notes = write(model, tmp_path / "authors.pt", to="authors")
    assert "mean (0.5, 0.5, 0.5), where readers assume (0.0, 0.0, 0.0)" in notes
    write(model, tmp_path / "timm", to="timm")
    assert load(tmp_path / "timm").config.preprocessing.mean == (0.5, 0.5, 0.5)


def test_only_transformers_can_state_that_images_are_stretched(tmp_path):
    stretch = {"resize_mode": "stretch", "resize": 200, "crop": 200}
    model = create_model("mobilevit_xxs", num_classes=2, preprocessing=stretch)
    write(model, tmp_path / "out", to="transformers")
    assert load(tmp_path / "out").config.preprocessing == model.config.preprocessing
    with pytest.raises(CheckpointError, match="no place for resize_mode stretch"):
        write(model, tmp_path / "timm", to="timm")


@pytest.mark.parametrize("to", ["timm", "transformers"])
def test_a_network_without_class_names_stays_so(tmp_path, to):
    write(create_model("mobilevitv2_050", num_classes=2), tmp_path, to=to)
    assert load(tmp_path).config.classes is None


def test_heads_of_imagenet_21k_keep_their_size(tmp_path):
    write(create_model("mobilevitv2_050", num_classes=10450), tmp_path / "o.pt", to="authors")
    model = load(tmp_path / "o.pt")
    assert model.config.num_classes == len(model.head.bias) == 10450


@pytest.fixture
def file(shared: Path, tmp_path: Path) -> Callable[[str], tuple[Path, dict[str, Tensor]]]:
    """Write a stored reference as the authors' file; give its path and tensors."""
    spec = importlib.util.spec_from_file_location("fill", shared / "reference" / "fill.py")
    fill: Any = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(fill)

    def make(name: str) -> tuple[Path, dict[str, Tensor]]:
        tensors = {key: torch.as_tensor(array) for key, array in fill.state_dict(name).items()}
        torch.save(tensors, tmp_path / "weights.pt")
        return tmp_path / "weights.pt", tensors

    return make


@pytest.mark.parametrize(
    ("name", "options", "preprocessing"),
    [
        (
            "deeplabv3_mobilevit_xxs_2021",
            {},
            replace(
                SHORT_512, channel_order="bgr", resize_mode="stretch", assumed=("channel_order",)
            ),
        ),
        ("deeplabv3_mobilevit_xxs", LATER, SHORT_512),
        ("deeplabv3_mobilevit_s", LATER, SHORT_512),
        *(
            (name, {}, replace(SHORT_512, interpolation="bicubic", assumed=("channel_order",)))
            for name in ("deeplabv3_mobilevitv2_050", "pspnet_mobilevitv2_050")
        ),
    ],
)
def test_authors_segmenters_are_read_and_written_back_bit_for_bit(
    name, options, preprocessing, file, tmp_path, caplog
):
    path, tensors = file(name)
    with caplog.at_level(logging.INFO):
        model = load(path)
    assert model.name == name.removesuffix("_2021")
    assert model.config.options == options
    assert model.config.preprocessing == preprocessing
    assert (model.config.num_classes, model.config.task) == (21, "segmentation")
    stride = model.backbone.feature_info[-1].stride
    assert f"does not state its output stride: {stride} is assumed" in caplog.text
    write(model, tmp_path / "again.pt", to="authors")
    assert equal(torch.load(tmp_path / "again.pt", weights_only=True), tensors)


def test_a_published_name_states_what_its_file_does_not(
    file, server, tmp_path, monkeypatch, caplog
):
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path / "hub"))
    monkeypatch.setenv("MOBILEVIT_MIRROR", server.address)
    path = "/cvnets-v2/segmentation/pascalvoc/deeplabv3-mobilevitv1.pt"
    server.files[path] = file("deeplabv3_mobilevit_s")[0].read_bytes()
    with caplog.at_level(logging.INFO):
        model = load("deeplabv3_mobilevit_s.apple_voc_os8")
    assert "does not state" not in caplog.text
    assert model.config.options == LATER
    assert model.config.classes == VOC_CLASSES
    assert model.config.preprocessing == SHORT_512


@pytest.mark.parametrize("name", ["deeplabv3_mobilevitv2_050", "pspnet_mobilevit_xs"])
def test_150_classes_are_assumed_to_be_ade20ks(name, tmp_path):
    options = {"output_stride": 8}
    write(create_model(name, num_classes=150, **options), tmp_path / "ade.pt", to="authors")
    assert load(tmp_path / "ade.pt").config.options == options
    with pytest.raises(CheckpointError, match="with output_stride cannot be written"):
        write(create_model(name, num_classes=150), tmp_path / "other.pt", to="authors")


@pytest.mark.parametrize(
    ("name", "options"), [("deeplabv3_mobilevit_xxs", LATER), ("mobilevit_xxs", {})]
)
def test_scalars_of_range_augment_mean_rgb_and_are_skipped(tmp_path, name, options):
    model = create_model(name, num_classes=150, **options)
    write(model, tmp_path / "w.pt", to="authors")
    tensors = torch.load(tmp_path / "w.pt", weights_only=True)
    torch.save({**tensors, "neural_augmentor.noise._low": torch.zeros(())}, tmp_path / "w.pt")
    again = load(tmp_path / "w.pt")
    assert again.config.options == options
    assert again.config.preprocessing.channel_order == "rgb"


@pytest.mark.parametrize(("resize", "crop"), [(288, 256), (180, 160), (256, 256), (439, 384)])
def test_timms_crop_pct_gives_back_the_same_size(tmp_path, resize, crop):
    sizes = {"resize": resize, "crop": crop}
    write(create_model("mobilevit_xxs", num_classes=2, preprocessing=sizes), tmp_path, to="timm")
    preprocessing = load(tmp_path).config.preprocessing
    assert (preprocessing.resize, preprocessing.crop) == (resize, crop)
    assert preprocessing.assumed == ()


def test_a_tag_that_ends_on_imagenet_gives_its_names(tmp_path):
    write(create_model("mobilevitv2_050", num_classes=1000), tmp_path, to="timm")
    values = json.loads((tmp_path / "config.json").read_text())["pretrained_cfg"]
    for tag, classes in (
        ("cvnets_in1k", imagenet_classes()),
        ("cvnets_in22k_ft_in1k_384", imagenet_classes()),
        ("mine", None),
    ):
        edit(tmp_path, pretrained_cfg={**values, "tag": tag})
        assert load(tmp_path).config.classes == classes


@pytest.mark.parametrize(
    ("name", "file_name", "change", "message"),
    [
        ("mobilevit_xxs", "config.json", {"hidden_act": "relu"}, "hidden_act is relu; only silu"),
        ("mobilevit_xxs", "config.json", {"layer_norm_eps": 1e-6}, "layer_norm_eps"),
        ("mobilevit_xxs", "config.json", {"id2label": {"0": "a", "2": "b"}}, "no entry '1'"),
        ("mobilevit_xxs", "config.json", {"patch_size": [2, 4]}, r"patches of \[2, 4\] are not sq"),
        ("mobilevit_xxs", PROCESSOR, {"do_center_crop": False}, "do_center_crop = False"),
        ("mobilevit_xxs", PROCESSOR, {"do_normalize": True}, "do_normalize = True"),
        ("mobilevit_xxs", PROCESSOR, {"size": {"height": 9, "width": 9}}, "size = "),
        ("mobilevit_xxs", PROCESSOR, {"crop_size": {"height": 9, "width": 8}}, "crop_size = "),
        ("mobilevit_xxs", PROCESSOR, {"resample": 0}, "resample = 0"),
        ("mobilevit_xxs", PROCESSOR, {"rescale_factor": 1.0}, "rescale_factor"),
        ("mobilevit_xxs", PROCESSOR, {"crop_size": 999}, "crop must lie"),
        ("deeplabv3_mobilevit_xxs", PROCESSOR, {"size": {"height": 9, "width": 8}}, "size = "),
        ("deeplabv3_mobilevit_xxs", PROCESSOR, {"size": {"shortest_edge": 8}}, "at least 32"),
    ],
)
def test_what_transformers_folders_cannot_ask_for_is_named(
    tmp_path, name, file_name, change, message
):
    write(create_model(name, num_classes=2), tmp_path, to="transformers")
    edit(tmp_path, file_name, **change)
    with pytest.raises(CheckpointError, match=message):
        load(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_args": {"act_layer": "relu"}}, "model_args act_layer are not supported"),
        ({"pretrained_cfg": {"input_size": [3, 256, 320]}}, "256 x 320 is not square"),
        ({"pretrained_cfg": {"crop_mode": "squash"}}, "crop_mode squash is not supported"),
        ({"pretrained_cfg": {"interpolation": "nearest"}}, "interpolation must be"),
    ],
)
def test_what_timms_folders_cannot_ask_for_is_named(tmp_path, change, message):
    write(create_model("mobilevit_xxs", num_classes=2), tmp_path, to="timm")
    edit(tmp_path, **change)
    with pytest.raises(CheckpointError, match=message):
        load(tmp_path)


def test_older_and_silent_folders_are_read(tmp_path):
    model = create_model("mobilevit_xxs", num_classes=2)
    write(model, tmp_path, to="transformers")
    edit(tmp_path, PROCESSOR, size=300, crop_size=280, resample=...)
    found = load(tmp_path).config.preprocessing
    assert (found.resize, found.crop, found.assumed) == (300, 280, ("interpolation",))
    (tmp_path / PROCESSOR).unlink()
    found = load(tmp_path).config.preprocessing
    assert found.channel_order == "bgr"
    assert found.assumed == ("channel_order", "resize", "crop", "interpolation")
    backbone = {
        key.removeprefix("mobilevit."): value
        for key, value in transformers.V1.from_ours(model.state_dict()).items()
        if not key.startswith("classifier")
    }
    torch.save(backbone, tmp_path / "pytorch_model.bin")
    (tmp_path / "model.safetensors").unlink()
    loaded = create_model("mobilevit_xxs", weights=tmp_path, features_only=True)
    assert torch.equal(loaded.stem.conv.weight, model.backbone.stem.conv.weight)


@pytest.mark.parametrize("to", ["transformers", "timm"])
def test_stated_preprocessing_replaces_what_would_be_refused(tmp_path, to):
    """As the sizes of transformers' default processor, whose crop is larger than the image."""
    write(create_model("mobilevit_xxs", num_classes=2), tmp_path, to=to)
    if to == "transformers":
        edit(tmp_path, PROCESSOR, size={"shortest_edge": 224}, crop_size=256)
    else:
        edit(tmp_path, pretrained_cfg={"input_size": [3, 256, 256], "crop_pct": 1.2})
    with pytest.raises(CheckpointError, match=r"crop must lie in 1\.\.resize"):
        load(tmp_path)
    for model in (
        load(tmp_path, preprocessing={"resize": 288}),
        create_model("mobilevit_xxs", weights=tmp_path, preprocessing={"resize": 288}),
    ):
        found = model.config.preprocessing
        assert (found.resize, found.crop) == (288, 256)
        assert "resize" not in found.assumed
    with pytest.raises(ValueError, match="no chanel_order"):
        load(tmp_path, preprocessing={"chanel_order": "bgr"})


def test_duplicate_names_get_numbers(tmp_path):
    write(create_model("mobilevit_xxs", num_classes=3), tmp_path, to="transformers")
    edit(tmp_path, id2label={"0": "crane", "1": "tench", "2": "crane"})
    assert load(tmp_path).config.classes == ("crane [0]", "tench", "crane [2]")


def test_a_segmenters_crop_is_ignored(tmp_path, caplog):
    """The published folders of v1 ask for one, in the format of 2022 and in today's."""
    write(create_model("deeplabv3_mobilevit_xxs", num_classes=2), tmp_path, to="transformers")
    expected = replace(SHORT_512, resize=544, crop=544, channel_order="bgr")
    for change in (
        {
            "size": {"shortest_edge": 544},
            "crop_size": {"height": 512, "width": 512},
            "do_flip_channel_order": True,
        },
        {"size": 544, "crop_size": 512, "do_flip_channel_order": ..., "do_flip_channels": True},
    ):
        edit(tmp_path, PROCESSOR, do_center_crop=True, **change)
        caplog.clear()
        with caplog.at_level(logging.INFO):
            assert load(tmp_path).config.preprocessing == expected
        assert "crops images at the centre; here they are not cropped" in caplog.text
    (tmp_path / PROCESSOR).unlink()
    found = load(tmp_path).config.preprocessing
    assert (found.resize_mode, found.crop, found.channel_order) == ("stretch", 512, "bgr")
    assert found.assumed == ("channel_order", "resize_mode", "resize", "crop", "interpolation")
    (tmp_path / "config.json").unlink()
    assert load(tmp_path / "model.safetensors").config.options == {}


def test_masks_of_ade20k_count_from_one(tmp_path):
    for count in (150, 21):
        model = create_model("deeplabv3_mobilevitv2_050", num_classes=count)
        write(model, tmp_path, to="transformers")
        values = json.loads((tmp_path / PROCESSOR).read_text())
        assert values["do_reduce_labels"] == (count == 150)


@pytest.mark.parametrize(
    ("name", "options", "notes"),
    [
        ("mobilevitv2_050", {"output_stride": 16}, ["dilation"]),
        ("mobilevitv2_050", {}, []),
        ("mobilevit_xxs", {"output_stride": 8}, []),
        ("deeplabv3_mobilevit_xxs", {}, ["multiples of 32"]),
        (
            "deeplabv3_mobilevitv2_050",
            {},
            ["auxiliary head", "aligned corners", "multiples of 32", "dilation"],
        ),
    ],
)
def test_what_transformers_does_otherwise_is_noted(tmp_path, name, options, notes):
    found = write(create_model(name, num_classes=2, **options), tmp_path, to="transformers")
    assert len(found) == len(notes)
    assert all(note in text for note, text in zip(notes, found, strict=True))
