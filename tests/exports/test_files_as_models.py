"""Exported files in the place of model folders: the same answers and figures, or the reason."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import mobilevit
from mobilevit.__main__ import main
from mobilevit.checkpoints.folder import digest
from mobilevit.data.options import DataOptions
from mobilevit.exports.accuracy import Evaluator
from mobilevit.exports.backends.registry import BACKENDS, open_exported
from mobilevit.exports.runtime_model import FileNetwork
from mobilevit.exports.spec import ExportError, ExportSpec
from mobilevit.tasks import get_task
from mobilevit.tasks.base import InferenceOptions
from mobilevit.tasks.dataset import ImageBatch
from tests.exports.conftest import ANTS
from tests.numerics import assert_close, assert_probabilities_close

pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

# torch's exporter and onnxscript use what their own dependencies deprecate.
pytestmark = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::PendingDeprecationWarning"
)

ODD: dict[str, Any] = {"channel_order": "bgr", "mean": (0.1, 0.0, 0.05), "std": (0.9, 1.0, 1.1)}
"""Values of a kind that a forgotten step would show in."""
OWN: dict[str, dict[str, Any]] = {"masks": {"resize_mode": "stretch"}, "masks-size": {}}
"""How a file frames images, where the network keeps their shape."""
SHAPES = ((60, 80), (90, 70), (64, 64), (40, 100), (75, 75))
"""(height, width) of the images."""


@pytest.fixture(scope="module")
def ants(network: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Model folders `classes`, `boxes` and `masks`, and ONNX files made of them."""
    folder = tmp_path_factory.mktemp("ants")
    wanted: dict[str, tuple[str, dict[str, Any], dict[str, ExportSpec]]] = {
        "classes": (
            "mobilevit_xxs",
            {**ODD, "resize": 72},
            {
                "": ExportSpec(),
                "-half": ExportSpec(precision="fp16"),
                "-raw": ExportSpec(raw=True, dynamic="batch"),
            },
        ),
        "boxes": (
            "ssdlite_mobilevit_xxs",
            {},
            {"": ExportSpec(dynamic="batch"), "-raw": ExportSpec(raw=True)},
        ),
        "masks": (
            "deeplabv3_mobilevit_xxs",
            {},
            {"": ExportSpec(), "-size": ExportSpec(dynamic="size", raw=True)},
        ),
    }
    for name, (kind, preprocessing, requests) in wanted.items():
        model = network(kind, **preprocessing)
        mobilevit.save(model, folder / name)
        for ending, request in requests.items():
            BACKENDS["onnx"].write(model, request, folder / f"{name}{ending}.onnx")
    return folder


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set for all three tasks: five images of coarse noise in several shapes.

    `classes/ant N/N.png`; `boxes/images` and `boxes/labels`; `masks/images` and `masks/masks`.
    """
    root = tmp_path_factory.mktemp("images")
    draw = np.random.default_rng(0)
    for folder in ("boxes/images", "boxes/labels", "masks/images", "masks/masks"):
        (root / folder).mkdir(parents=True)
    for number, (height, width) in enumerate(SHAPES):
        coarse = Image.fromarray(draw.integers(0, 256, (5, 5, 3), np.uint8))
        image = coarse.resize((width, height), Image.Resampling.BICUBIC)
        (root / "classes" / f"ant {number}").mkdir(parents=True)
        for place in (f"classes/ant {number}", "boxes/images", "masks/images"):
            image.save(root / place / f"{number}.png")
        (root / "boxes" / "labels" / f"{number}.txt").write_text(f"{number} 0.5 0.5 0.6 0.7\n")
        mask = np.full((height, width), number, np.uint8)
        mask[: height // 2] = (number + 1) % 5
        Image.fromarray(mask).save(root / "masks" / "masks" / f"{number}.png")
    names = [f"ant {number}" for number in range(5)]
    (root / "boxes" / "data.yaml").write_text(f"val: images\nnames: {json.dumps(names)}\n")
    (root / "masks" / "classes.txt").write_text("\n".join(names))
    return root


def files_of(images: Path) -> list[Path]:
    return sorted((images / "boxes" / "images").glob("*.png"))


@pytest.mark.parametrize(
    ("file", "bound"),
    [("classes", 1e-3), ("classes-raw", 1e-3), ("classes-half", 1e-2)],
)
def test_probabilities_are_those_of_the_folder(
    ants: Path, images: Path, file: str, bound: float
) -> None:
    files = files_of(images)
    expected = mobilevit.predict(ants / "classes", *files)
    found = mobilevit.predict(ants / f"{file}.onnx", *files, threads=1)
    assert [one.source for one in found] == [str(photo) for photo in files]
    for one, other in zip(found, expected, strict=True):
        assert one.classes == other.classes
        np.testing.assert_allclose(one.probabilities, other.probabilities, rtol=0, atol=bound)
        assert [name for name, _ in one.top(5)] == [name for name, _ in other.top(5)]
    spread = np.ptp([one.probabilities for one in expected], axis=0).max()
    assert spread > 10 * bound  # images that are mixed up would show


@pytest.mark.parametrize("file", ["boxes", "boxes-raw"])
def test_boxes_are_those_of_the_folder(ants: Path, images: Path, file: str) -> None:
    files = files_of(images)
    expected = mobilevit.predict(ants / "boxes", *files, score=0.2)
    found = mobilevit.predict(ants / f"{file}.onnx", *files, score=0.2)
    assert sum(len(one.boxes) for one in expected) > 5
    for one, other, shape in zip(found, expected, SHAPES, strict=True):
        assert one.found.boxes.canvas_size == shape
        assert one.found.labels.tolist() == other.found.labels.tolist()
        assert_probabilities_close(one.found.scores, other.found.scores)
        assert_close(one.found.boxes, other.found.boxes, tolerance=1e-3)
    assert found.category_ids == expected.category_ids


@pytest.mark.parametrize("file", ["masks", "masks-size"])
def test_masks_are_those_of_the_folder(ants: Path, images: Path, file: str) -> None:
    files = files_of(images)
    expected = mobilevit.predict(ants / "masks", *files, preprocessing=OWN[file])
    found = mobilevit.predict(ants / f"{file}.onnx", *files)
    for one, other, shape in zip(found, expected, SHAPES, strict=True):
        assert one.mask.shape == shape and one.mask.dtype == np.uint8
        assert (one.mask == other.mask).mean() > 0.999
    assert len({name for one in found for name, _ in one.shares}) > 1


@pytest.mark.parametrize(
    "file", ["classes", "classes-raw", "boxes", "boxes-raw", "masks", "masks-size"]
)
def test_figures_are_those_of_the_folder(ants: Path, images: Path, file: str) -> None:
    name = file.partition("-")[0]
    data = DataOptions(root=str(images / name), workers=0)
    folder = mobilevit.evaluate(ants / name, data=data, preprocessing=OWN.get(file))
    expected = folder.to_json()["sizes"]["64"]
    evaluation = mobilevit.evaluate(ants / f"{file}.onnx", data=data)
    assert evaluation.model == str(ants / f"{file}.onnx")
    found = evaluation.to_json()["sizes"]["64"]
    assert found.keys() == expected.keys()
    figures = {
        "classes": ("images", "top1", "top5", "loss", "calibration_error"),
        "boxes": ("images", "boxes", "ap", "ap50", "ar100", "threshold"),
        "masks": ("images", "pixels", "miou", "pixel_accuracy"),
    }
    for figure in figures[name]:
        assert found[figure] == pytest.approx(expected[figure], abs=2e-3), figure


@pytest.mark.parametrize(("name", "measure"), [("boxes", "AP"), ("masks", "mean IoU")])
def test_both_are_evaluated_at_export(ants: Path, images: Path, name: str, measure: str) -> None:
    data = DataOptions(root=str(images / name), workers=0)
    evaluate = Evaluator(mobilevit.load(ants / name), data, dynamic=None, limit=4)
    accuracy = evaluate.accuracy(ants / f"{name}.onnx", BACKENDS["onnx"])
    assert (accuracy.measure, accuracy.images, accuracy.available) == (measure, 4, 5)
    assert accuracy.pytorch > 0 and accuracy.drop == pytest.approx(0, abs=0.1)
    assert (accuracy.own_shape is not None) == (name == "masks")
    assert [max(photo.size) for photo in evaluate.comparison_images()] == [64] * 4


def test_from_the_command_line(
    ants: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, photo = str(ants / "classes.onnx"), str(files_of(images)[0])
    assert main(["predict", file, photo, "--format", "csv", "--device", "cpu"]) == 0
    assert photo in capsys.readouterr().out
    file = str(ants / "masks-size.onnx")
    words = ["evaluate", file, "--data.root", str(images / "masks"), "--sizes", "64,96"]
    assert main([*words, "--data.workers", "1", "--threads", "2"]) == 0
    assert "96 px" in capsys.readouterr().out
    out = tmp_path / "drawn"
    assert main(["predict", str(ants / "masks.onnx"), photo, "--out", str(out)]) == 0
    assert len(list(out.iterdir())) == 4


def test_pixels_of_any_program(ants: Path, images: Path) -> None:
    """No resizing on either side: an image of the file's own size."""
    with Image.open(images / "boxes" / "images" / "2.png") as image:
        photo = image.convert("RGB").resize((72, 72))
    inner = np.asarray(photo)[None, 4:68, 4:68]  # the square that the rule cuts out
    expected = mobilevit.predict(ants / "classes", photo)[0].probabilities
    model = mobilevit.load(ants / "classes")
    for file, bound in (("classes", 1e-3), ("classes-half", 1e-2)):
        runner = open_exported(ants / f"{file}.onnx")
        (found,) = runner(inner)
        assert np.abs(found[0] - expected).max() <= bound
        assert np.argsort(-found[0])[:5].tolist() == np.argsort(-expected)[:5].tolist()
        texts = runner.session.get_modelmeta().custom_metadata_map
        rule = json.loads(texts["preprocessing"])
        assert rule["crop"] == 64 and rule["resize"] == 72 and "mean" not in rule
        assert texts["values"] == "v in 0 to 255: red, green, blue"
        assert json.loads(texts["classes"]) == [f"ant {number}" for number in range(5)]
        assert texts["weights_sha256"] == digest(model.state_dict())


@pytest.mark.parametrize(
    ("file", "options", "message"),
    [
        (
            "classes",
            {"preprocessing": {"crop": 32}},
            "preprocessing inside; to change crop, export",
        ),
        ("classes", {"classes": "a,b,c,d,e"}, "has class names"),
        ("classes", {"device": "cuda"}, "runs on the CPU"),
        (
            "boxes",
            {"postprocessing": "2021"},
            "postprocessing later inside, not 2021: export it with raw",
        ),
        ("boxes", {"score": 0.001}, "returns boxes from 0.01 on"),
        ("nothing", {}, "there is no file"),
    ],
)
def test_options_that_a_file_cannot_follow(
    ants: Path, images: Path, file: str, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ExportError, match=message):
        mobilevit.predict(ants / f"{file}.onnx", images, **options)
    if "score" not in options:
        data = DataOptions(root=str(images / "boxes"), workers=0)
        with pytest.raises(ExportError, match=message):
            mobilevit.evaluate(ants / f"{file}.onnx", data=data, **options)


def test_another_size_is_refused_its_own_is_not(ants: Path, images: Path) -> None:
    data = DataOptions(root=str(images / "classes"), workers=0)
    with pytest.raises(ExportError, match="only images of 64 x 64 pixels"):
        mobilevit.evaluate(ants / "classes.onnx", data=data, sizes=[64, 96])
    assert mobilevit.evaluate(ants / "classes.onnx", data=data, sizes=[64]).metrics.images == 5


def test_a_raw_detector_takes_either_rule(ants: Path, images: Path) -> None:
    photo = files_of(images)[0]
    options: dict[str, Any] = {"postprocessing": "2021", "score": 0.001}
    expected = mobilevit.predict(ants / "boxes", photo, **options)[0].boxes
    assert len(mobilevit.predict(ants / "boxes-raw.onnx", photo, **options)[0].boxes) == len(
        expected
    )


def test_classes_may_be_stated_where_the_file_has_none(
    network: Any, ants: Path, images: Path, tmp_path: Path
) -> None:
    import onnx

    file = onnx.load(ants / "classes.onnx")
    for text in file.metadata_props:
        if text.key == "config":
            text.value = json.dumps({**json.loads(text.value), "classes": None})
    onnx.save(file, tmp_path / "nameless.onnx")
    photo = files_of(images)[0]
    with pytest.raises(ValueError, match="does not name its 5 classes"):
        mobilevit.predict(tmp_path / "nameless.onnx", photo)
    found = mobilevit.predict(tmp_path / "nameless.onnx", photo, classes="a,b,c,d,e")
    assert found[0].classes == ("a", "b", "c", "d", "e")


def test_files_of_others_are_refused(
    ants: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import onnx

    content = (ants / "classes.onnx").read_bytes()
    foreign = onnx.load(ants / "classes.onnx")
    del foreign.metadata_props[:]
    onnx.save(foreign, tmp_path / "foreign.onnx")
    (tmp_path / "cut.onnx").write_bytes(content[: len(content) // 2])
    (tmp_path / "text.onnx").write_text("no graph")
    (tmp_path / "empty.onnx").touch()
    (tmp_path / "folder.onnx").mkdir()
    photo = str(files_of(images)[0])
    for name, message in (
        ("foreign", "was not written by `mobilevit export`"),
        ("cut", "damaged"),
        ("text", "damaged"),
        ("empty", "damaged"),
        ("folder", "damaged"),
        ("missing", "there is no file"),
    ):
        file = str(tmp_path / f"{name}.onnx")
        assert main(["predict", file, photo]) == 1
        error = capsys.readouterr().err
        assert file in error and message in error and "Traceback" not in error


def test_a_missing_runtime_is_named(
    ants: Path, images: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "onnxruntime", None)
    assert main(["predict", str(ants / "classes.onnx"), str(files_of(images)[0])]) == 1
    assert "pip install 'mobilevit[onnx]'" in capsys.readouterr().err


def test_raw_files_rank_logits_that_probabilities_cannot_tell_apart(network: Any) -> None:
    """The softmax of 150, 40 and 0 is 1, 0 and 0 in float32, which is all that other files give."""
    model, logits = network("mobilevit_xxs"), torch.tensor([[0.0, 0, 40, 150, 0]])

    class Runner:
        runtime = "none"

        def __init__(self, raw: bool) -> None:
            self.metadata = BACKENDS["onnx"].prepare(model, ExportSpec(raw=raw)).metadata

        def __call__(self, images: np.ndarray) -> tuple[np.ndarray, ...]:
            return ((logits if self.metadata.raw else logits.softmax(1)).numpy(),)

    for raw, names in ((True, ("ant 3", "ant 2")), (False, ("ant 3", "ant 0"))):
        file = FileNetwork(Runner(raw))
        batch = ImageBatch(torch.zeros(1, 3, 64, 64), [(64, 64)], [0])
        (result,) = get_task("classification").postprocess(
            file, file(batch.images), batch, InferenceOptions()
        )
        found = get_task("classification").prediction("x", ANTS, result, InferenceOptions())
        assert tuple(one.name for one in found.top(2)) == names
