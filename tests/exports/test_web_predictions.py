"""What a page predicts: images are prepared, and predictions compared, as in Python."""

from __future__ import annotations

import base64
import json
import shutil
from dataclasses import asdict
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import mobilevit
from mobilevit.data.images import open_image
from mobilevit.data.preprocessing import frame_image
from mobilevit.exports.backends.registry import open_exported
from mobilevit.exports.backends.web.backend import MODEL, expected_prediction
from mobilevit.models.config import Preprocessing
from tests.exports.web import GIVEN, load, opened, served
from tests.numerics import assert_probabilities_close

pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")
pytestmark = pytest.mark.browser

TASKS = ("classification", "detection", "segmentation")

MAX_LEVELS = 2
"""Of 255: how far a browser's pixels can be from Pillow's."""


@pytest.fixture(scope="module")
def wild(images: list[Image.Image], tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Twenty images of many sizes and kinds."""
    folder = tmp_path_factory.mktemp("wild")
    temple, flower, _ = images
    sizes = [
        (640, 427),
        (427, 640),
        (64, 64),
        (65, 72),
        (300, 72),
        (31, 400),
        (20, 20),
        (1600, 900),
    ]
    sizes += [(73, 72), (72, 145), (1200, 40), (333, 222)]
    made = []
    for number, size in enumerate(sizes):
        photo = (temple, flower)[number % 2].resize(size)
        made.append(folder / f"{number}.jpg")
        photo.save(
            made[-1], quality=60 + 3 * number, subsampling=number % 3, progressive=number > 6
        )
    for orientation in (3, 6, 8):
        exif = Image.Exif()
        exif[0x0112] = orientation
        made.append(folder / f"turned-{orientation}.jpg")
        temple.crop((0, 0, 400, 300)).save(made[-1], exif=exif)
    see_through = temple.convert("RGBA")
    see_through.putalpha(Image.linear_gradient("L").resize(temple.size))
    others = {
        "grey.jpg": temple.convert("L"),
        "palette.png": flower.quantize(64),
        "see-through.png": see_through,
        "flower.webp": flower,
        "flower.gif": flower.quantize(255),
    }
    for name, image in others.items():
        made.append(folder / name)
        image.save(made[-1], lossless=True)
    assert len(made) == 20
    return made


@pytest.mark.parametrize("task", TASKS)
def test_predictions_are_pythons_without_network(
    chromium: Any, made_page: Any, wild: list[Path], screenshots: Path, task: str
) -> None:
    made = made_page(task)
    with served(made.folder) as address, opened(chromium, address) as page:
        load(page)
        assert "WebAssembly with SIMD, " in page.inner_text("#state")
        assert "✓ Agrees with PyTorch" in page.inner_text("#check")
        assert page.evaluate(GIVEN + "return held.bench.check.levels }") == 0
        assert page.evaluate("crossOriginIsolated") is True
        page.context.set_offline(True)
        requests: list[str] = []
        page.on("request", lambda request: requests.append(request.url))
        assert_predictions(page, task, made, wild)
        page.click("#sample")
        page.wait_for_selector("#canvas[aria-label^='the test image: ']")
        assert requests == []
        page.screenshot(path=screenshots / f"{task}.png", full_page=True)
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


REAL = {
    "classification": "imagenette/val/**/*.*",
    "detection": "bccd/**/*.jpg",
    "segmentation": "camvid/val/images/*",
}
"""Photographs of the shared data."""


@pytest.mark.parametrize("task", TASKS)
def test_predictions_of_photographs_are_pythons(
    chromium: Any, made_page: Any, shared: Path, task: str
) -> None:
    files = sorted((shared / "data").glob(REAL[task]))
    files = files[:: len(files) // 20][:20]
    assert len(files) == 20
    made = made_page(task)
    with served(made.folder) as address, opened(chromium, address) as page:
        load(page)
        page.context.set_offline(True)
        assert assert_predictions(page, task, made, files) == 0  # to the last bit of every pixel


def assert_predictions(page: Any, task: str, made: Any, files: list[Path]) -> int:
    """Files that are given to a page have Python's answers; how many levels its pixels differ."""
    runner = open_exported(made.folder / MODEL)
    rule = runner.metadata.config.preprocessing
    predictions = mobilevit.predict(made.network, *files, score=0.01)
    most = 0
    for file, prediction in zip(files, predictions, strict=True):
        page.set_input_files("#file", file)
        page.wait_for_selector(f"#canvas[aria-label^='{file.name}: ']")
        assert page.is_hidden("#error")
        found = page.evaluate(
            GIVEN + "const { frame, prediction } = held.result;"
            "return { ...frame, pixels: frame.pixels.toBase64(), prediction } }"
        )
        pixels = np.frombuffer(base64.b64decode(found["pixels"]), np.uint8)
        pixels = pixels.reshape(found["height"], found["width"], 3)
        frame = np.asarray(frame_image(open_image(file), rule))
        assert frame.shape == pixels.shape
        levels = int(np.abs(frame.astype(int) - pixels).max())
        # Browsers may decode JPEG, and what is see-through, a little otherwise than Pillow.
        assert levels <= MAX_LEVELS, file
        most = max(most, levels)
        # What a level does to an answer is the network's affair: Python is given the same pixels.
        expected = expected_prediction(runner, made.network, Image.fromarray(pixels))
        script = "return (await import('/app/check.js')).compare(held.result.prediction, given) }"
        compared = page.evaluate(GIVEN + script, expected)
        # On a narrow strip this random segmenter's own float32 is 7e-4 from float64: a pixel of it
        # may be as likely of one class as of another.
        close = task == "segmentation" and compared["agreement"] > 0.9999
        assert compared["difference"] < 1e-3 or close, (file, compared)
        assert_same(task, found["prediction"], prediction)
    return most


def assert_same(task: str, found: Any, prediction: Any) -> None:
    """The page's prediction is that of `mobilevit.predict`."""
    if task == "classification":
        shares = {one["label"]: one["share"] for one in found["classes"]}
        expected = prediction.probabilities
        assert_probabilities_close([shares[i] for i in range(5)], expected)
    elif task == "detection":
        height, width = prediction.found.boxes.canvas_size
        first, (box, *_) = found["boxes"][0], prediction.boxes
        assert first["score"] == pytest.approx(box.score, abs=1e-3)
        corners = np.array(box.corners) / [width, height, width, height]
        others = [one["corners"] for one in found["boxes"] if one["score"] > box.score - 1e-3]
        assert np.abs(np.array(others) - corners).max(1).min() < 1e-3
    else:
        mask = found["mask"]
        assert sum(one["share"] for one in mask["shares"]) == pytest.approx(1)
        # The page keeps the mask at the model's size, predict stretches it to the image's.
        shares = {one.name: one.share for one in prediction.shares}
        for one in mask["shares"]:
            assert one["share"] == pytest.approx(shares.get(f"ant {one['label']}", 0), abs=0.05)


def test_images_are_framed_as_in_python(chromium: Any, made_page: Any) -> None:
    rules = [
        Preprocessing(resize_mode="crop", resize=37, crop=32),
        Preprocessing(resize_mode="crop", resize=37, crop=32, interpolation="bicubic"),
        Preprocessing(resize_mode="stretch", resize=32, crop=32, interpolation="bicubic"),
        Preprocessing(resize_mode="shortest_edge", resize=40, crop=40),
    ]
    draw = np.random.default_rng(0)
    script = """
        const { frameImage } = await import('/app/framing.js');
        const { decodeImage } = await import('/app/images.js');
        const blob = await (await fetch(given.image)).blob();
        const info = { ...held.info, preprocessing: given.rule };
        const { pixels, width, height } = frameImage(await decodeImage(blob, 'noise'), info);
        return { pixels: Array.from(pixels), width, height } }"""
    with served(made_page("classification").folder) as address, opened(chromium, address) as page:
        for width, height in (
            (41, 37),
            (38, 37),
            (300, 200),
            (9, 20),
            (7, 130),
            (150, 4),
            (70, 600),
        ):
            noise = Image.fromarray(draw.integers(0, 256, (height, width, 3), np.uint8))
            file = BytesIO()
            noise.save(file, "PNG")
            image = f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
            for rule in rules:
                found = page.evaluate(GIVEN + script, {"image": image, "rule": asdict(rule)})
                expected = np.asarray(frame_image(noise, rule))
                assert (found["height"], found["width"]) == expected.shape[:2]
                assert found["pixels"] == expected.ravel().tolist(), (width, height, rule)


def test_wrong_predictions_are_reported(chromium: Any, made_page: Any, tmp_path: Path) -> None:
    folder = tmp_path / "page"
    shutil.copytree(made_page("classification").folder, folder)
    file = folder / "test" / "prediction.json"
    answer = json.loads(file.read_text())
    answer["probabilities"][0] += 0.002
    file.write_text(json.dumps(answer))
    with served(folder) as address, opened(chromium, address) as page:
        load(page)
        assert "✗ Disagrees with PyTorch" in page.inner_text("#check")
        assert "largest difference 0.0020 (tolerance 0.001)" in page.inner_text("#check")
        red, green, blue = page.evaluate(
            "getComputedStyle(document.querySelector('#check')).color.match(/[0-9]+/g).map(Number)"
        )
        assert red > 2 * max(green, blue)


def test_boxes_and_masks_are_compared_as_in_python(chromium: Any, made_page: Any) -> None:
    box = [1, 0.8, 0.1, 0.1, 0.5, 0.5]
    boxes = {"overlap": 0.5, "floors": [0.01, 0.01], "found": [box], "candidates": [box]}
    mask = {"height": 1, "width": 4, "runs": [0, 3, 1, 1], "limit": 0.01, "close": [[0, 1, 0.002]]}

    def of_boxes(*found: list[float], full: bool = False) -> Any:
        rows = [{"label": k, "score": score, "corners": list(c)} for k, score, *c in found]
        prediction = {"task": "detection", "boxes": rows, "full": full}
        return run({"prediction": prediction, "expected": {"tolerance": 1e-3, "boxes": boxes}})[
            "difference"
        ]

    def of_mask(*labels: int) -> Any:
        prediction = {"task": "segmentation", "mask": {"width": 4, "height": 1, "labels": labels}}
        return run({"prediction": prediction, "expected": {"tolerance": 1e-3, "mask": mask}})

    with served(made_page("classification").folder) as address, opened(chromium, address) as page:
        script = (
            "return (await import('/app/check.js')).compare(given.prediction, given.expected) }"
        )
        run = partial(page.evaluate, GIVEN + script)
        assert of_boxes(box) == 0
        assert of_boxes([1, 0.79, *box[2:]]) == pytest.approx(0.8)  # missing as well: unlikely
        assert of_boxes(box, [1, 0.8, 0.11, 0.1, 0.5, 0.5]) == pytest.approx(0.01)
        assert of_boxes(box, [0, 0.8, *box[2:]]) == 1  # no candidate of this class
        assert of_boxes() == pytest.approx(0.8)
        assert of_mask(0, 0, 0, 1) == {"difference": 0, "agreement": 1}
        assert of_mask(1, 0, 0, 1) == {"difference": 0.002, "agreement": 0.75}
        assert of_mask(0, 1, 0, 1)["difference"] == 1
