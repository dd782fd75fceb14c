"""Model folders, their configuration and their class names."""

import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from mobilevit.checkpoints.create import create_model, load
from mobilevit.checkpoints.folder import config_to_json, digest, save
from mobilevit.checkpoints.keymap import CheckpointError
from mobilevit.checkpoints.write import write
from mobilevit.data.class_names import VOC_CLASSES, class_names
from mobilevit.models.config import ModelConfig, Preprocessing
from mobilevit.models.fuse import fuse, is_fused


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    model = create_model("mobilevit_xxs", classes=["ant", "bée", "猫"], patch_sizes=(4, 2, 2))
    model.config = replace(
        model.config,
        preprocessing=Preprocessing(channel_order="bgr", resize=180, crop=160),
        metrics={"top1": 0.5},
    )
    return model.eval()


def test_a_model_folder_gives_back_the_network_and_its_configuration(model, tmp_path):
    assert save(model, tmp_path / "new" / "flowers") == tmp_path / "new" / "flowers"
    loaded = load(tmp_path / "new" / "flowers")
    assert loaded.config == model.config
    assert not loaded.training
    assert loaded.backbone.stage3[1].patch == 4
    for key, tensor in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[key], tensor), key
    images = torch.rand(2, 3, 70, 64)
    with torch.inference_mode():
        assert torch.equal(loaded(images), model(images))


def test_what_load_could_not_rebuild_is_not_saved(model, tmp_path):
    with pytest.raises(ValueError, match="fused network"):
        save(fuse(model), tmp_path)
    with pytest.raises(ValueError, match="backbone alone"):
        save(model.backbone, tmp_path)
    assert not list(tmp_path.iterdir())


def test_config_json_can_be_read_and_edited(model, tmp_path):
    save(model, tmp_path)
    values = json.loads((tmp_path / "config.json").read_text())
    assert values["model"] == "mobilevit_xxs"
    assert values["classes"] == ["ant", "bée", "猫"]
    assert values["options"] == {"patch_sizes": [4, 2, 2]}
    assert values["preprocessing"]["channel_order"] == "bgr"
    values["classes"][0] = "wasp"  # and may be edited
    (tmp_path / "config.json").write_text(json.dumps(values))
    assert load(tmp_path).config.classes == ("wasp", "bée", "猫")


@pytest.mark.parametrize("moment", ["before", "between", "within"])
def test_a_save_that_is_killed_leaves_the_old_model_or_the_new_one(
    model, tmp_path, monkeypatch, moment
):
    save(model, tmp_path)
    torch.manual_seed(1)
    other = create_model("mobilevit_xxs", classes=["x", "y"])
    calls = []

    def dying(source, target):
        calls.append(target)
        if (moment, len(calls)) in (("before", 1), ("between", 2)):
            raise KeyboardInterrupt
        os.rename(source, target)

    monkeypatch.setattr(os, "replace", dying)
    if moment == "within":

        def torn(path, content):
            with path.open("wb") as file:
                file.write(content[: len(content) // 2])
            raise KeyboardInterrupt

        monkeypatch.setattr(Path, "write_bytes", torn)
    with pytest.raises(KeyboardInterrupt):
        save(other, tmp_path)
    monkeypatch.undo()
    expected = other if moment == "between" else model
    loaded = load(tmp_path)
    assert loaded.config == expected.config
    assert digest(loaded.state_dict()) == digest(expected.state_dict())
    assert sorted(os.listdir(tmp_path)) == ["config.json", "model.safetensors"]


def test_weights_of_another_config_are_refused(model, tmp_path):
    save(model, tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    tensors["head.bias"] += 1
    text = config_to_json(model.config, weights=digest(model.state_dict()))
    save_file(tensors, tmp_path / "model.safetensors", metadata={"config": text})
    with pytest.raises(CheckpointError, match="damaged"):
        load(tmp_path)


def test_missing_and_other_folders_are_errors(tmp_path):
    with pytest.raises(FileNotFoundError, match="nothing"):
        load(tmp_path / "nothing.pt")
    with pytest.raises(CheckpointError, match="not a model folder"):
        load(tmp_path)


def test_the_weights_of_a_model_folder_carry_its_config(model, tmp_path):
    save(model, tmp_path)
    (tmp_path / "model.safetensors").rename(tmp_path / "moved.safetensors")
    assert load(tmp_path / "moved.safetensors").config == model.config


def test_a_run_folder_points_to_its_model(model, tmp_path):
    save(model, tmp_path / "run" / "model")
    with pytest.raises(CheckpointError, match=r"did you mean .*run/model"):
        load(tmp_path / "run")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": 99}, "later|does not know"),
        ({"colour": "red"}, "unexpected .* 'colour'"),
        ({"classes": ["a"]}, "1 class names for 3 outputs"),
        ({"model": "mobilevit_m"}, "no model named"),
        ({"preprocessing": {"crop": 999}}, "crop"),
    ],
)
def test_an_invalid_config_is_refused(model, tmp_path, change, message):
    save(model, tmp_path)
    values = json.loads((tmp_path / "config.json").read_text()) | change
    (tmp_path / "config.json").write_text(json.dumps(values))
    with pytest.raises(ValueError, match=message):
        load(tmp_path)


@pytest.mark.parametrize("content", [b"", b"{", b"\x80\x81", b"[1, 2]"])
@pytest.mark.parametrize("name", ["config.json", "preprocessor_config.json"])
def test_a_damaged_json_file_is_named(model, tmp_path, name, content):
    save(model, tmp_path)
    (tmp_path / name).write_bytes(content)
    with pytest.raises(CheckpointError, match=rf"/{name} is not (JSON:|a JSON object)"):
        load(tmp_path)


def test_class_names_one_too_many_mention_background():  # A25
    with pytest.raises(ValueError, match=r"1001 class names for 1000 outputs.*background"):
        ModelConfig(model="mobilevit_s", num_classes=1000, classes=tuple(map(str, range(1001))))
    with pytest.raises(ValueError, match="duplicate class names: b"):
        ModelConfig(model="mobilevit_s", num_classes=3, classes=("a", "b", "b"))


def test_class_names_are_stated_in_three_ways(tmp_path):
    (tmp_path / "names.txt").write_text("tench, Tinca\n gold fish \n\n", encoding="utf-8-sig")
    assert class_names(str(tmp_path / "names.txt")) == ("tench, Tinca", "gold fish")
    assert class_names("tench, gold fish") == class_names(["tench", "gold fish"])
    assert class_names(None) is None
    with pytest.raises(ValueError, match="no class names"):
        class_names(" , ")


def test_a_digest_depends_on_every_byte():
    tensors = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.tensor(1)}
    same = {"b": torch.tensor(1), "a": torch.arange(6.0).reshape(2, 3).T.contiguous().T}
    assert digest(tensors) == digest(same)
    for change in ({"a": np.zeros((2, 3))}, {"a": np.arange(6.0).reshape(3, 2)}, {"b": 2}):
        changed = tensors | {key: torch.tensor(value) for key, value in change.items()}
        assert digest(changed) != digest(tensors)


def test_a_resize_mode_that_the_task_cannot_use_is_refused(tmp_path):
    save(create_model("ssdlite_mobilevit_xxs", num_classes=2), tmp_path / "detector")
    with pytest.raises(ValueError, match="in detection it must be stretch"):
        load(tmp_path / "detector", preprocessing={"resize_mode": "crop"})
    save(create_model("mobilevit_xxs", num_classes=2), tmp_path / "classifier")
    with pytest.raises(ValueError, match="in classification it must be crop or stretch"):
        load(tmp_path / "classifier", preprocessing={"resize_mode": "shortest_edge", "resize": 256})


def test_long_lists_of_names_are_not_file_names():
    names = [f"a rather long name of a class {number}" for number in range(150)]
    assert class_names(",".join(names)) == tuple(names)
    assert len(class_names("coco")) == 80
    assert len(class_names("ade20k")) == 150
    assert class_names("voc") == VOC_CLASSES
    assert len(set(VOC_CLASSES)) == len(VOC_CLASSES) == 21
    assert (VOC_CLASSES[0], VOC_CLASSES[1], VOC_CLASSES[15]) == (
        *("background", "aeroplane", "person"),
    )
    names = class_names("imagenet1k")  # A25
    assert len(names) == len(set(names)) == 1000
    assert (names[0], names[-1]) == ("tench", "toilet tissue")


def test_category_ids_go_with_the_classes(tmp_path):  # A35
    model = create_model("ssdlite_mobilevit_xxs", classes=["ant", "bee"])
    model.config = replace(model.config, category_ids=(7, 90))
    save(model, tmp_path)
    assert load(tmp_path).config.category_ids == (7, 90)
    again = create_model("ssdlite_mobilevit_xxs", weights=tmp_path)
    assert again.config.category_ids == (7, 90)
    other = create_model("ssdlite_mobilevit_xxs", classes=["ant", "wasp"], weights=tmp_path)
    assert other.config.category_ids is None


def test_detectors_with_cocos_classes_get_its_numbers(tmp_path):
    write(create_model("ssdlite_mobilevit_xxs"), tmp_path / "w.pt", to="authors")
    config = load(tmp_path / "w.pt", classes=class_names("coco")).config
    assert config.category_ids[0] == 1
    assert config.category_ids[-1] == 90


@pytest.mark.parametrize(
    "name", ["mobilevit_xxs", "ssdlite_mobilevitv2_050", "pspnet_mobilevit_xxs"]
)
def test_batch_norms_of_several_processes_are_saved_and_fused(name, tmp_path):
    """As DistributedDataParallel trains them: SyncBatchNorm is no BatchNorm2d."""
    model = create_model(name, num_classes=3).eval()
    images = torch.rand(1, 3, 64, 64)
    with torch.inference_mode():
        expected = model(images)
        converted = torch.nn.SyncBatchNorm.convert_sync_batchnorm(model)
        assert not any(isinstance(one, torch.nn.BatchNorm2d) for one in converted.modules())
        loaded, fused = load(save(converted, tmp_path)), fuse(converted)
        assert is_fused(fused) and not is_fused(converted)
        for ours in (loaded(images), fused(images)):
            torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-4)
