"""The page of a model in a real browser, at a phone's size."""

from __future__ import annotations

import base64
import json
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import mobilevit
from mobilevit.commands.serve import server_of
from mobilevit.data.images import open_image
from mobilevit.data.preprocessing import frame_image
from mobilevit.exports.backends.registry import BACKENDS, open_exported
from mobilevit.exports.backends.web.backend import MODEL
from mobilevit.exports.backends.web.self_test import expected_prediction
from mobilevit.models.config import Preprocessing

pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

# torch's exporter and onnxscript use what their own dependencies deprecate.
pytestmark = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::PendingDeprecationWarning"
)

PHONE = {
    "viewport": {"width": 390, "height": 844},
    "device_scale_factor": 2,
    "is_mobile": True,
    "has_touch": True,
}
CAMERA = ("--use-fake-ui-for-media-stream", "--use-fake-device-for-media-stream")
SOFTWARE_GPU = (
    "--enable-unsafe-webgpu",
    "--enable-features=Vulkan",
    "--use-vulkan=swiftshader",
    "--use-webgpu-adapter=swiftshader",
)
TASKS = ("classification", "detection", "segmentation")

MOST_LEVELS = 2
"""Of 255: how far a browser's pixels may be from Pillow's."""

GIVEN = "async (given) => { const held = await (await import('/app/main.js')).ready; "
"""How a script begins that uses what the page holds."""


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """A folder by `mobilevit serve`'s server: gives its address."""
    with server_of(folder) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server.address
        finally:
            server.shutdown()
            thread.join()


@contextmanager
def opened(
    chromium: Callable[..., Any], address: str, *flags: str, **options: Any
) -> Iterator[Any]:
    """A page that is open; errors of its scripts fail the test."""
    context = chromium(*flags).new_context(**{**PHONE, **options})
    errors: list[Any] = []
    try:
        page = context.new_page()
        page.on("pageerror", lambda error: errors.append(error))
        page.goto(address)
        page.wait_for_selector("main:not([hidden])")
        yield page
    finally:
        context.close()
    assert errors == []


def load(page: Any, backend: str = "wasm") -> None:
    page.select_option("#backend", backend)
    page.click("#load-button")
    page.wait_for_selector("#check:not(:empty), #state.bad", timeout=120_000)


@pytest.fixture(scope="module")
def screenshots(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where images of pages go: MOBILEVIT_SCREENSHOTS, for people who want to look."""
    folder = os.environ.get("MOBILEVIT_SCREENSHOTS")
    path = Path(folder) if folder else tmp_path_factory.mktemp("screenshots")
    path.mkdir(parents=True, exist_ok=True)
    return path


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
def test_answers_are_pythons_without_network(
    chromium: Any, made_page: Any, wild: list[Path], screenshots: Path, task: str
) -> None:
    made = made_page(task)
    with served(made.folder) as address, opened(chromium, address) as page:
        load(page)
        assert "WebAssembly with SIMD, " in page.inner_text("#state")
        assert "✓ Says what PyTorch" in page.inner_text("#check")
        assert page.evaluate(GIVEN + "return held.bench.check.levels }") == 0
        assert page.evaluate("crossOriginIsolated") is True
        page.context.set_offline(True)
        requests: list[str] = []
        page.on("request", lambda request: requests.append(request.url))
        assert_answers(page, task, made, wild)
        page.click("#sample")
        page.wait_for_selector("#canvas[aria-label^='the test photo: ']")
        assert requests == []
        page.screenshot(path=screenshots / f"{task}.png", full_page=True)
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


REAL = {
    "classification": "imagenette/val/**/*.*",
    "detection": "bccd/**/*.jpg",
    "segmentation": "camvid/val/images/*",
}
"""Photographs belongs_to the shared data."""


@pytest.mark.parametrize("task", TASKS)
def test_answers_of_photographs_are_pythons(
    chromium: Any, made_page: Any, shared: Path, task: str
) -> None:
    files = sorted((shared / "data").glob(REAL[task]))
    files = files[:: len(files) // 20][:20]
    assert len(files) == 20
    made = made_page(task)
    with served(made.folder) as address, opened(chromium, address) as page:
        load(page)
        page.context.set_offline(True)
        assert assert_answers(page, task, made, files) == 0  # to the last bit of every pixel


def assert_answers(page: Any, task: str, made: Any, files: list[Path]) -> int:
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
            GIVEN + "const { frame, answer } = held.said;"
            "return { ...frame, pixels: frame.pixels.toBase64(), answer } }"
        )
        pixels = np.frombuffer(base64.b64decode(found["pixels"]), np.uint8)
        pixels = pixels.reshape(found["height"], found["width"], 3)
        frame = np.asarray(frame_image(open_image(file), rule))
        assert frame.shape == pixels.shape
        levels = int(np.abs(frame.astype(int) - pixels).max())
        # Browsers may decode JPEG, and what is see-through, a little otherwise than Pillow.
        assert levels <= MOST_LEVELS, file
        most = max(most, levels)
        # What a level does to an answer is the network's affair: Python is given the same pixels.
        expected = expected_prediction(runner, made.network, Image.fromarray(pixels))
        script = "return (await import('/app/check.js')).compare(held.said.answer, given) }"
        compared = page.evaluate(GIVEN + script, expected)
        # On a narrow strip this random segmenter's own float32 is 7e-4 from float64: a pixel of it
        # may be as likely of one class as of another.
        close = task == "segmentation" and compared["agreement"] > 0.9999
        assert compared["difference"] < 1e-3 or close, (file, compared)
        assert_same(task, found["answer"], prediction)
    return most


def assert_same(task: str, answer: Any, prediction: Any) -> None:
    """What the page says is what `mobilevit.predict` says."""
    if task == "classification":
        found = {one["label"]: one["share"] for one in answer["classes"]}
        expected = prediction.probabilities
        np.testing.assert_allclose([found[i] for i in range(5)], expected, rtol=0, atol=1e-3)
    elif task == "detection":
        height, width = prediction.found.boxes.canvas_size
        first, (box, *_) = answer["boxes"][0], prediction.boxes
        assert first["score"] == pytest.approx(box.score, abs=1e-3)
        corners = np.array(box.corners) / [width, height, width, height]
        others = [one["corners"] for one in answer["boxes"] if one["score"] > box.score - 1e-3]
        assert np.abs(np.array(others) - corners).max(1).min() < 1e-3
    else:
        mask = answer["mask"]
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
        const { framed } = await import('/app/framing.js');
        const { decoded } = await import('/app/images.js');
        const blob = await (await fetch(given.image)).blob();
        const facts = { ...held.facts, preprocessing: given.rule };
        const { pixels, width, height } = framed(await decoded(blob, 'noise'), facts);
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


def test_wrong_answers_are_told(chromium: Any, made_page: Any, tmp_path: Path) -> None:
    folder = tmp_path / "page"
    shutil.copytree(made_page("classification").folder, folder)
    file = folder / "test" / "answer.json"
    answer = json.loads(file.read_text())
    answer["probabilities"][0] += 0.002
    file.write_text(json.dumps(answer))
    with served(folder) as address, opened(chromium, address) as page:
        load(page)
        assert "✗ Does not say what PyTorch" in page.inner_text("#check")
        assert "0.0020 at most (bound 0.001)" in page.inner_text("#check")
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
        answer = {"task": "detection", "boxes": rows, "full": full}
        return run({"answer": answer, "expected": {"bound": 1e-3, "boxes": boxes}})["difference"]

    def of_mask(*labels: int) -> Any:
        answer = {"task": "segmentation", "mask": {"width": 4, "height": 1, "labels": labels}}
        return run({"answer": answer, "expected": {"bound": 1e-3, "mask": mask}})

    with served(made_page("classification").folder) as address, opened(chromium, address) as page:
        script = "return (await import('/app/check.js')).compare(given.answer, given.expected) }"
        run = partial(page.evaluate, GIVEN + script)
        assert of_boxes(box) == 0
        assert of_boxes([1, 0.79, *box[2:]]) == pytest.approx(0.8)  # missing as well: unlikely
        assert of_boxes(box, [1, 0.8, 0.11, 0.1, 0.5, 0.5]) == pytest.approx(0.01)
        assert of_boxes(box, [0, 0.8, *box[2:]]) == 1  # no candidate of this class
        assert of_boxes() == pytest.approx(0.8)
        assert of_mask(0, 0, 0, 1) == {"difference": 0, "agreement": 1}
        assert of_mask(1, 0, 0, 1) == {"difference": 0.002, "agreement": 0.75}
        assert of_mask(0, 1, 0, 1)["difference"] == 1


def test_camera(chromium: Any, made_page: Any, screenshots: Path) -> None:
    with (
        served(made_page("detection").folder) as address,
        opened(chromium, address, *CAMERA, permissions=["camera"]) as page,
    ):
        load(page)
        page.click("#camera")
        page.wait_for_selector("#canvas[aria-label^='the camera: ']")
        page.wait_for_selector("#timing:has-text('images a second')")
        assert page.get_attribute("#camera", "aria-pressed") == "true"
        page.screenshot(path=screenshots / "camera.png", full_page=True)
        page.click("#camera")
        assert page.get_attribute("#camera", "aria-pressed") == "false"
        assert page.evaluate("document.querySelector('#video').srcObject") is None
        page.click("#camera")  # a second time, then ended by a photo
        page.wait_for_selector("#camera[aria-pressed=true]")
        page.click("#sample")
        page.wait_for_selector("#canvas[aria-label^='the test photo: ']")
        assert page.get_attribute("#camera", "aria-pressed") == "false"
        for _ in range(5):  # stopped while an image is waited for, which is no error
            page.click("#camera")
            page.wait_for_selector("#canvas[aria-label^='the camera: ']")
            page.click("#camera")
            page.wait_for_timeout(150)
            assert page.is_hidden("#error"), page.inner_text("#error")


def test_a_camera_that_opens_too_late_is_turned_off(chromium: Any, made_page: Any) -> None:
    # By hand: the page's policy forbids what Playwright's waiting for a script needs.
    until = "async () => {{ while (!({})) await new Promise((done) => setTimeout(done, 20)); }}"
    late = """() => {
        const opened = navigator.mediaDevices.getUserMedia.bind(navigator.mediaDevices);
        navigator.mediaDevices.getUserMedia = async (asked) => {
          await new Promise((done) => { window.permit = done; });
          return (window.stream = await opened(asked));
        }; }"""
    with (
        served(made_page("detection").folder) as address,
        opened(chromium, address, *CAMERA, permissions=["camera"]) as page,
    ):
        load(page)
        page.evaluate(late)
        page.click("#camera")
        page.evaluate(until.format("window.permit"))
        page.click("#sample")  # while the browser asks for permission
        page.wait_for_selector("#canvas[aria-label^='the test photo: ']")
        page.evaluate("() => window.permit()")
        over = "window.stream?.getTracks().every((one) => one.readyState === 'ended')"
        page.evaluate(until.format(over))
        assert page.get_attribute("#camera", "aria-pressed") == "false"
        assert page.evaluate("document.querySelector('#video').srcObject") is None
        assert page.is_hidden("#error")


def test_camera_that_is_forbidden(chromium: Any, made_page: Any) -> None:
    with served(made_page("detection").folder) as address, opened(chromium, address) as page:
        load(page)
        page.click("#camera")
        page.wait_for_selector("#error:has-text('The camera cannot be used')")
        assert page.is_enabled("#camera")


def test_bad_files_get_a_message(chromium: Any, made_page: Any, tmp_path: Path) -> None:
    folder = made_page("classification").folder
    photo = (folder / "test" / "photo.png").read_bytes()
    bad = {"notes.txt": b"no image", "empty.png": b"", "torn.png": photo[:200]}
    with served(folder) as address, opened(chromium, address) as page:
        load(page)
        for name, content in bad.items():
            (tmp_path / name).write_bytes(content)
            page.set_input_files("#file", tmp_path / name)
            page.wait_for_selector(f"#error:has-text('{name}')")
        assert page.get_attribute("#error", "role") == "alert"
        page.evaluate("document.querySelector('#url').closest('details').open = true")
        for path, message in (("nothing.jpg", "404"), ("page.json", "is not an image")):
            page.fill("#url", address + path)
            page.press("#url", "Enter")
            page.wait_for_selector(f"#error:has-text('{message}')")
        page.fill("#url", address.replace("http", "ftp"))
        page.press("#url", "Enter")
        page.wait_for_selector("#error:has-text('choose it as a file')")
        page.fill("#url", address + "test/photo.png")
        page.press("#url", "Enter")
        page.wait_for_selector("#canvas[aria-label*='test/photo.png: ']")
        assert page.is_hidden("#error")


@pytest.mark.parametrize(
    ("event", "kind", "holder"),
    [
        ("drop", "DragEvent", "dataTransfer"),
        ("paste", "ClipboardEvent", "clipboardData"),
    ],
)
def test_dropped_and_pasted(
    chromium: Any, made_page: Any, event: str, kind: str, holder: str
) -> None:
    script = f"""
        const blob = await (await fetch('test/photo.png')).blob();
        const data = new DataTransfer();
        data.items.add(new File([blob], 'handed.png', {{ type: 'image/png' }}));
        const options = {{ {holder}: data, bubbles: true }};
        document.body.dispatchEvent(new {kind}('{event}', options)) }}"""
    with served(made_page("classification").folder) as address, opened(chromium, address) as page:
        page.evaluate(GIVEN + script, None)
        page.wait_for_selector("#error:has-text('Load the model first')")
        load(page)
        page.evaluate(GIVEN + script, None)
        page.wait_for_selector("#canvas[aria-label^='handed.png: ']")


def test_speed_is_measured_by_keyboard_alone(
    chromium: Any, made_page: Any, screenshots: Path
) -> None:
    with (
        served(made_page("classification").folder) as address,
        opened(chromium, address, permissions=["clipboard-read", "clipboard-write"]) as page,
    ):
        press_on(page, "load-button")
        page.wait_for_selector("#check.good", timeout=60_000)
        press_on(page, "measure")
        page.wait_for_selector("#copy:enabled", timeout=60_000)
        press_on(page, "copy")
        page.wait_for_selector("#bench-state:has-text('Copied')")
        (one,) = json.loads(page.evaluate("navigator.clipboard.readText()"))
        assert one["model"] == "mobilevit_xxs" and one["input"] == [64, 64]
        assert one["runs"] == 100 and one["backend"] == "wasm" and one["threads"] >= 1
        assert 0 < one["min_ms"] <= one["median_ms"] <= one["p90_ms"]
        assert one["frames_a_second"] == pytest.approx(1000 / one["median_ms"], rel=1e-2)
        assert "Chrome" in one["browser"] and one["difference"] < 1e-3
        page.screenshot(path=screenshots / "speed.png", full_page=True)


def press_on(page: Any, target: str) -> None:
    """Go to an element by the tab key, and press it."""
    page.evaluate("document.activeElement?.blur()")
    for _ in range(40):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.id") == target:
            page.keyboard.press("Enter")
            return
    raise AssertionError(f"the tab key does not lead to #{target}")


def test_controls_have_names(chromium: Any, made_page: Any) -> None:
    with served(made_page("detection").folder) as address, opened(chromium, address) as page:
        tree = page.locator("body").aria_snapshot()
        for name in (
            'combobox "Runs on"',
            'combobox "Threads"',
            'button "Load"',
            'button "Photo"',
            'button "Camera"',
            'slider "Boxes from',
            'button "Measure"',
            'img "The test photo"',
            'heading "Answer"',
        ):
            assert name in tree, name


def test_dark_wide_and_narrow(chromium: Any, made_page: Any, screenshots: Path) -> None:
    with (
        served(made_page("segmentation").folder) as address,
        opened(chromium, address, color_scheme="dark", is_mobile=False) as page,
    ):
        load(page)
        page.wait_for_selector("#canvas[aria-label*=': ']")
        background = page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert max(map(int, background.strip("rgb()").split(","))) < 60
        for width in (320, 1200):
            page.set_viewport_size({"width": width, "height": 800})
            assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
            page.screenshot(path=screenshots / f"dark-{width}.png", full_page=True)


@contextmanager
def served_plainly(folder: Path) -> Iterator[int]:
    """A folder by a server that sends no headers for threads: gives its port."""
    handler = partial(SimpleHTTPRequestHandler, directory=str(folder))
    handler.func.log_message = lambda *_: None  # type: ignore[attr-defined]
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server.server_port
        finally:
            server.shutdown()
            thread.join()


def test_threads_on_a_server_without_headers(chromium: Any, made_page: Any) -> None:
    folder = made_page("classification").folder
    with served_plainly(folder) as port:
        with opened(chromium, f"http://localhost:{port}/") as page:
            assert page.evaluate("crossOriginIsolated") is True
            assert page.inner_text("#warnings") == ""
            load(page)
            assert "✓" in page.inner_text("#check")
            redirected = page.goto(f"http://localhost:{port}/app")  # to a folder's own address
            assert redirected.status == 200 and redirected.url.endswith("/app/")
        with opened(chromium, f"http://localhost:{port}/", service_workers="block") as page:
            assert "One thread alone" in page.inner_text("#warnings")
            load(page)
            assert "1 thread." in page.inner_text("#state")
            assert "✓" in page.inner_text("#check")


def test_what_http_of_another_machine_can_not(chromium: Any, made_page: Any) -> None:
    with served_plainly(made_page("classification").folder) as port:
        flags = ("--host-resolver-rules=MAP page.test 127.0.0.1",)
        with opened(chromium, f"http://page.test:{port}/", *flags) as page:
            assert "by http from another machine" in page.inner_text("#warnings")
            load(page)
            assert "✓" in page.inner_text("#check")
            page.click("#camera")
            page.wait_for_selector("#error:has-text('by https')")


def test_webgpu(chromium: Any, made_page: Any) -> None:
    with (
        served(made_page("classification").folder) as address,
        opened(chromium, address, *SOFTWARE_GPU) as page,
    ):
        if page.locator("#backend option[value=webgpu]").count() == 0:
            pytest.skip("this Chromium has no WebGPU by software")
        assert page.input_value("#backend") == "webgpu"
        load(page, "webgpu")
        assert "Runs on WebGPU (" in page.inner_text("#state")
        assert "✓" in page.inner_text("#check")


def test_a_damaged_model_gets_a_message(chromium: Any, made_page: Any, tmp_path: Path) -> None:
    folder = tmp_path / "page"
    shutil.copytree(made_page("classification").folder, folder)
    (folder / MODEL).write_bytes(b"no model")
    with served(folder) as address, opened(chromium, address) as page:
        load(page)
        assert "WebAssembly cannot run the model" in page.inner_text("#state.bad")
        assert page.is_disabled("#measure") and page.is_enabled("#load-button")


def test_page_of_another_format_is_no_model() -> None:
    assert "web" not in BACKENDS
