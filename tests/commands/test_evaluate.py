"""`mobilevit evaluate`."""

import json
import shutil

import pytest
import torch

from mobilevit.__main__ import main
from mobilevit.checkpoints.create import load
from mobilevit.commands.evaluate import evaluate
from mobilevit.data.errors import DataError
from mobilevit.data.images import open_image
from mobilevit.data.options import DataOptions
from mobilevit.data.preprocessing import preprocess


def data(root, **options):
    return DataOptions(root=str(root), **{"workers": 0, **options})


def expected(model, images):
    """Top-1 by hand: every image alone, the network as it was saved."""
    right = 0
    files = sorted(images.rglob("*.png"))
    for file in files:
        with torch.inference_mode():
            logits = model(preprocess(open_image(file), model.config.preprocessing)[None])
        right += model.config.classes[int(logits.argmax())] == file.parent.name
    return right / len(files)


def test_figures_are_those_of_single_images_by_name(colours, images):
    """The model's order of classes is not the folders', and it has one more."""
    result = evaluate(colours, data=data(images))
    metrics = result.metrics
    assert metrics.classes == ("red", "green", "blue", "grey")
    assert metrics.images == 21
    assert metrics.top1 == pytest.approx(expected(load(colours), images))
    assert [row.images for row in metrics.per_class] == [7, 7, 7, 0]


def test_several_sizes_at_once_from_the_command_line(colours, images, tmp_path, capsys):
    out = tmp_path / "new" / "figures.json"
    words = ["evaluate", str(colours), "--data.root", str(images), "--sizes", "32,48,40"]
    assert main([*words, "--data.workers", "1", "--out", str(out)]) == 0
    text = capsys.readouterr().out
    assert all(f"{size} px" in text for size in (32, 48, 40))
    assert "label / prediction" in text
    figures = json.loads(out.read_text())["sizes"]
    assert list(figures) == ["32", "48", "40"]
    assert figures["32"]["top1"] == pytest.approx(evaluate(colours, data=data(images)).metrics.top1)
    assert sum(map(sum, figures["48"]["confusion"])) == 21


def test_the_held_out_part_is_evaluated_where_there_is_one(colours, images, tmp_path):
    shutil.copytree(images, tmp_path / "set" / "train")
    shutil.copytree(images / "red", tmp_path / "set" / "val" / "red")
    assert evaluate(colours, data=data(tmp_path / "set")).metrics.images == 7


def test_a_network_in_hand_is_evaluated_and_left_as_it_was(colours, images):
    model = load(colours)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    result = evaluate(model.train(), data=data(images))
    assert result.metrics.top1 == evaluate(colours, data=data(images)).metrics.top1
    assert model.training
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


def test_unknown_classes_and_bad_files_are_named(colours, images, capsys):
    (images / "yellow").mkdir()
    shutil.copy(images / "red" / "0.png", images / "yellow" / "0.png")
    with pytest.raises(DataError, match=r"yellow.*known are: red, green, blue, grey"):
        evaluate(colours, data=data(images))
    shutil.rmtree(images / "yellow")
    (images / "red" / "bad.png").write_bytes(b"")
    assert main(["evaluate", str(colours), "--data.root", str(images)]) == 1
    assert "bad.png: empty file" in capsys.readouterr().err
    assert evaluate(colours, data=data(images, on_bad="skip")).metrics.images == 21


def test_unknown_class_names_are_requested(shared, images, capsys):
    weights = shared / "data" / "weights" / "timm_mobilevit_xxs_corn_leaf.pth"
    assert main(["evaluate", str(weights), "--data.root", str(images)]) == 1
    assert "does not name its 5 classes; state the names with --classes" in (
        capsys.readouterr().err
    )


def test_corn_leaves_get_the_published_answers(shared):
    """151 of 160, from weights of another library and their class names by option."""
    result = evaluate(
        shared / "data" / "weights" / "timm_mobilevit_xxs_corn_leaf.pth",
        data=data(shared / "data" / "corn_leaf"),
        classes="Blight,Common_Rust,Gray_Leaf_Spot,Healthy,Other",
    )
    assert sum(row.correct for row in result.metrics.per_class) == 151
    assert result.metrics.images == 160


def test_preprocessing_can_be_overridden(colours, images):
    swapped = evaluate(colours, data=data(images), preprocessing={"channel_order": "bgr"})
    assert swapped.metrics.loss != evaluate(colours, data=data(images)).metrics.loss
