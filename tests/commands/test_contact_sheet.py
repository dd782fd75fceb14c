"""Predictions as a contact sheet: `mobilevit predict --html`."""

from __future__ import annotations

import json
import re
import urllib.parse
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import tv_tensors

import mobilevit
from mobilevit.__main__ import main
from mobilevit.commands.contact_sheet import write_contact_sheet
from mobilevit.data.sources import ImageInputs
from mobilevit.models.config import Preprocessing
from mobilevit.tasks.classification.results import (
    ClassificationPrediction,
    ClassificationPredictions,
)
from mobilevit.tasks.detection.postprocess import Detections
from mobilevit.tasks.detection.results import DetectionPrediction, DetectionPredictions
from mobilevit.tasks.segmentation.results import (
    SegmentationPrediction,
    SegmentationPredictions,
    encode_mask,
    palette_of,
)
from mobilevit.tasks.visualize import OPACITY

CLASSES = ("cat", "dog", "cow")


def data_of(file: Path) -> Any:
    """What a page knows."""
    found = re.search(r'<script id="data"[^>]*>(.*?)</script>', file.read_text(), re.DOTALL)
    assert found is not None
    return json.loads(found[1])


def gallery(
    file: Path, predictions: Any, images: list[Any], title: str = "What a test sees"
) -> dict[str, Any]:
    num_images = ImageInputs(images, Preprocessing(), file.parent)
    write_contact_sheet(file, predictions, num_images, title=title)
    return data_of(file)


def test_predict_writes_a_page(
    colours: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = images / "red" / "3b.jpg"
    broken.write_text("no image")
    page = tmp_path / "sheets" / "red & blue.html"
    for _ in range(2):  # a second time it is replaced
        assert main(["predict", str(colours), str(images), "--html", str(page)]) == 1
        assert "3b.jpg" in capsys.readouterr().out
    assert sorted(one.name for one in page.parent.iterdir()) == [page.name, "red & blue_files"]
    data = data_of(page)
    found = mobilevit.predict(str(colours), str(images))
    assert data["task"] == "classification" and len(data["items"]) == len(found) == 22
    for row, item in zip(data["items"], found, strict=True):
        assert row["file"] == item.source
        image = page.parent / urllib.parse.unquote(row["link"])
        assert image.resolve() == Path(item.source).resolve()
        if item.error is not None:
            assert row["error"] == item.error and "small" not in row and row["scores"] == []
            continue
        scores = [(data["classes"][label], share) for label, share in row["scores"]]
        expected = [(name, pytest.approx(share, abs=1e-4)) for name, share in item.top(5)]
        assert scores == expected
        with Image.open(page.parent / urllib.parse.unquote(row["small"])) as small:
            assert small.size == (50, 40)
    assert f"<title>What {colours} sees</title>" in page.read_text()


def test_places_that_are_refused(colours: Path, images: Path, tmp_path: Path) -> None:
    (tmp_path / "folder.html").mkdir()
    kept = tmp_path / "mine_files" / "holiday.jpg"
    kept.parent.mkdir()
    kept.write_bytes(b"dear to me")
    (tmp_path / "taken_files").write_text("a file")
    for name, message in (
        ("sheet.txt", r"such as sheet\.html"),
        ("sheet", r"such as sheet\.html"),
        ("folder.html", "is a folder"),
        ("mine.html", r"holiday\.jpg is not one"),
        ("taken.html", "another name"),
    ):
        with pytest.raises(ValueError, match=message):
            # Before the model is looked for.
            mobilevit.predict("no such model", str(images), html=str(tmp_path / name))
    assert kept.read_bytes() == b"dear to me"


def test_boxes_and_masks_are_drawn(tmp_path: Path) -> None:
    grey = Image.new("RGB", (512, 256), (128, 128, 128))
    corners = torch.tensor([[128.0, 64.0, 256.0, 192.0]])
    boxes: Any = tv_tensors.BoundingBoxes(corners, format="XYXY", canvas_size=(256, 512))
    found = Detections(boxes, torch.tensor([0.875]), torch.tensor([1]))
    item = DetectionPrediction(source="a", classes=CLASSES, detections=found)
    answers = DetectionPredictions(items=(item,), classes=CLASSES, category_ids=(1, 2, 3))
    data = gallery(tmp_path / "boxes.html", answers, [grey])
    assert data["task"] == "detection" and data["items"][0]["scores"] == [[1, 0.875]]
    assert "link" not in data["items"][0]  # it is no file
    small = np.asarray(Image.open(tmp_path / "boxes_files" / "1.jpg")).astype(int)
    assert small.shape == (128, 256, 3)
    coloured = np.abs(small - 128).max(-1) > 40
    assert coloured[32:96, 63:66].any(1).all() and coloured[32:96, 126:130].any(1).all()
    assert not coloured[45:90, 75:120].any() and not coloured[:, 140:].any()

    mask = np.zeros((256, 512), np.uint8)
    mask[:, 384:] = 2
    of_mask = SegmentationPrediction(source="a", classes=CLASSES, png=encode_mask(mask))
    data = gallery(
        tmp_path / "masks.html", SegmentationPredictions(items=(of_mask,), classes=CLASSES), [grey]
    )
    assert data["task"] == "segmentation" and data["items"][0]["scores"] == [[0, 0.75], [2, 0.25]]
    small = np.asarray(Image.open(tmp_path / "masks_files" / "1.jpg")).astype(float)
    for columns, label in ((slice(10, 180), 0), (slice(205, 250), 2)):
        colour = np.array(palette_of(CLASSES)[label])
        expected = (1 - OPACITY) * 128 + OPACITY * colour
        np.testing.assert_allclose(small[:, columns].mean((0, 1)), expected, atol=4)


def answers(count: int) -> ClassificationPredictions:
    """Every third image shows a cat, a dog, a cow; ever more surely. The last is not read."""
    items = []
    for place in range(count - 1):
        share = np.float32(0.4 + 0.6 * place / count)
        shares = np.full(3, (1 - share) / 2, np.float32)
        shares[place % 3] = share
        items.append(
            ClassificationPrediction(
                source=f"p/{place}.jpg", classes=CLASSES, logits=np.log(shares)
            )
        )
    return ClassificationPredictions(
        items=(*items, ClassificationPrediction(source="p/bad.jpg", error="not an image"))
    )


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page of 3,000 images."""
    file = tmp_path_factory.mktemp("large") / "sheet.html"
    draw = np.random.default_rng(0)
    images = [Image.fromarray(draw.integers(0, 256, (96, 128, 3), np.uint8)) for _ in range(9)]
    gallery(file, answers(3000), [images[place % 9] for place in range(3000)])
    return file


@contextmanager
def opened(chromium: Any, file: Path, hash: str = "", **options: Any) -> Iterator[Any]:
    """A page that is open as a file; it may have no errors, and ask for files alone."""
    context = chromium().new_context(**options)
    errors: list[Any] = []
    try:
        page = context.new_page()
        page.on("pageerror", lambda error: errors.append(error))
        page.on("console", lambda one: errors.append(one.text) if one.type == "error" else None)
        page.on("request", lambda one: None if one.url[:5] == "file:" else errors.append(one.url))
        page.goto(file.as_uri() + hash, wait_until="commit")
        yield page
    finally:
        context.close()
    assert errors == []


def names(page: Any) -> list[str]:
    """Files on the cards that exist, in their order."""
    # Cards are made when the browser has laid out the page: two frames later at most.
    page.evaluate("new Promise((done) => requestAnimationFrame(() => setTimeout(done, 50)))")
    return page.locator("#sheet .file").all_inner_texts()


def width_of_first(page: Any) -> int:
    """Pixels of the first image, once it is decoded."""
    script = "async (one) => { await one.decode(); return one.naturalWidth }"
    return page.locator("#sheet img").first.evaluate(script)


def test_thousands_open_at_once_and_are_filtered(chromium: Any, large: Path) -> None:
    chromium()  # it starts in its own time
    with opened(chromium, large, viewport={"width": 1200, "height": 800}) as page:
        page.wait_for_selector("#sheet img")
        assert page.inner_text("#count") == "3,000 of 3,000 images"
        assert len(names(page)) < 400  # only those near the window exist
        assert names(page)[:3] == ["0.jpg", "1.jpg", "2.jpg"]
        assert width_of_first(page) == 128
        assert "dog (1000)" in page.inner_text("#class")

        page.select_option("#class", label="dog (1000)")
        assert page.inner_text("#count") == "1,000 of 3,000 images"
        assert names(page)[:2] == ["1.jpg", "4.jpg"]
        page.fill("#from", "90")
        shown = sum(0.4 + 0.6 * place / 3000 >= 0.9 for place in range(1, 2999, 3))
        assert page.inner_text("#count") == f"{shown} of 3,000 images"
        page.fill("#to", "")  # no limit, not 0 %
        assert page.inner_text("#count") == f"{shown} of 3,000 images"
        page.select_option("#order", "sure")
        assert names(page)[0] == "2998.jpg"
        page.fill("#text", "P/29")
        assert all(name.startswith("29") for name in names(page))
        kept = page.evaluate("location.hash")
        count = page.inner_text("#count")
        page.click("button[type=reset]")
        page.wait_for_selector("#count:has-text('3,000 of 3,000')")
        assert page.evaluate("location.hash") in ("", "#")

        page.select_option("#class", label="not read (1)")
        assert names(page) == ["bad.jpg"]
        assert "not an image" in page.inner_text("#sheet")
        page.select_option("#class", "")
        page.evaluate("scrollTo(0, document.body.scrollHeight)")
        page.wait_for_selector("#sheet .file:has-text('bad.jpg')")
        page.fill("#text", "no such file")
        page.wait_for_selector("#count:has-text('0 of 3,000')")
    with opened(chromium, large, kept) as page:  # an address keeps the filters
        page.wait_for_selector(f"#count:has-text('{count}')")
        assert page.input_value("#from") == "90" and page.input_value("#order") == "sure"


def test_by_keyboard_on_a_phone(chromium: Any, large: Path) -> None:
    phone = {"viewport": {"width": 390, "height": 844}, "is_mobile": True, "has_touch": True}
    with opened(chromium, large, color_scheme="dark", **phone) as page:
        page.wait_for_selector("#sheet img")
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        for _ in range(12):
            page.keyboard.press("Tab")
            if page.evaluate("document.activeElement.matches('#sheet button')"):
                break
        page.keyboard.press("Enter")
        page.wait_for_selector("dialog[open]")
        assert "p/0.jpg (1 of 3,000)" in page.inner_text("#one-name")
        page.keyboard.press("ArrowRight")
        assert "p/1.jpg" in page.inner_text("#one-name")
        assert page.inner_text("#one-scores li >> nth=0").split("\n")[0] == "dog"
        page.keyboard.press("ArrowLeft")
        page.keyboard.press("ArrowLeft")  # there is none before the first
        assert "p/0.jpg" in page.inner_text("#one-name")
        assert page.is_disabled("#before") and page.is_enabled("#after")
        page.keyboard.press("Escape")
        page.wait_for_selector("dialog[open]", state="detached")
        assert page.evaluate("document.activeElement.matches('#sheet button')")
        background = page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert max(map(int, background.strip("rgb()").split(","))) < 60
        tree = page.locator("header").aria_snapshot()
        for name in ('combobox "Class"', 'searchbox "File name"', 'button "All"'):
            assert name in tree, name


def test_names_are_texts(chromium: Any, tmp_path: Path) -> None:
    classes = ("<b>{data}</b>", "</script><script>alert(1)</script>")
    shares = np.array([0.75, 0.25], np.float32)
    item = ClassificationPrediction(
        source="<img src=x>{script}.jpg", classes=classes, logits=np.log(shares)
    )
    file = tmp_path / "50 % #1?.html"
    image = Image.new("RGB", (40, 30))
    gallery(file, ClassificationPredictions(items=(item,)), [image], title="{style}<i>")
    with opened(chromium, file) as page:
        page.wait_for_selector("#sheet img")
        assert width_of_first(page) == 40
        assert page.inner_text("h1") == "{style}<i>"
        assert page.inner_text("#sheet .file") == item.source
        assert page.inner_text("#sheet .scores").split("\n")[0] == classes[0]
        page.click("#sheet button")
        assert classes[1] in page.inner_text("#one-scores")
