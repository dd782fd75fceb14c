"""The controls of a page: camera, files, benchmark, keyboard, and what servers lack."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from mobilevit.exports.backends.web.backend import MODEL
from tests.exports.web import GIVEN, load, opened, served

pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")
pytestmark = pytest.mark.browser

CAMERA = ("--use-fake-ui-for-media-stream", "--use-fake-device-for-media-stream")
SOFTWARE_GPU = (
    "--enable-unsafe-webgpu",
    "--enable-features=Vulkan",
    "--use-vulkan=swiftshader",
    "--use-webgpu-adapter=swiftshader",
)


def test_camera(chromium: Any, made_page: Any, screenshots: Path) -> None:
    with (
        served(made_page("detection").folder) as address,
        opened(chromium, address, *CAMERA, permissions=["camera"]) as page,
    ):
        load(page)
        page.click("#camera")
        page.wait_for_selector("#canvas[aria-label^='the camera: ']")
        page.wait_for_selector("#timing:has-text('images/s')")
        assert page.get_attribute("#camera", "aria-pressed") == "true"
        page.screenshot(path=screenshots / "camera.png", full_page=True)
        page.click("#camera")
        assert page.get_attribute("#camera", "aria-pressed") == "false"
        assert page.evaluate("document.querySelector('#video').srcObject") is None
        page.click("#camera")  # a second time, then ended by a photo
        page.wait_for_selector("#camera[aria-pressed=true]")
        page.click("#sample")
        page.wait_for_selector("#canvas[aria-label^='the test image: ']")
        assert page.get_attribute("#camera", "aria-pressed") == "false"
        for _ in range(5):  # stopped while an image is waited for, which is no error
            page.click("#camera")
            page.wait_for_selector("#canvas[aria-label^='the camera: ']")
            page.click("#camera")
            page.wait_for_timeout(150)
            assert page.is_hidden("#error"), page.inner_text("#error")


@pytest.mark.parametrize("task", ["classification", "detection", "segmentation"])
def test_a_phone_shows_image_and_prediction_together(
    chromium: Any, made_page: Any, tmp_path: Path, task: str
) -> None:
    tall = tmp_path / "tall.png"
    Image.new("RGB", (300, 600), "teal").save(tall)
    together = """() => {
        const [image, rows] = ["#canvas", "#results"].map((id) => document.querySelector(id));
        const first = rows.firstElementChild.firstElementChild ?? rows.firstElementChild;
        const [upper, lower] = [image, first].map((part) => part.getBoundingClientRect());
        return upper.top >= 0 && upper.height > 100 && lower.bottom <= window.innerHeight; }"""
    with (
        served(made_page(task).folder) as address,
        opened(chromium, address, *CAMERA, permissions=["camera"]) as page,
    ):
        load(page)
        page.wait_for_selector("#timing:has-text('model')")
        assert page.evaluate(together)
        page.set_input_files("#file", tall)
        page.wait_for_selector("#canvas[aria-label^='tall.png: ']")
        assert page.evaluate(together)
        page.evaluate("window.scrollTo(0, 0)")
        page.click("#camera")
        page.wait_for_selector("#canvas[aria-label^='the camera: ']")
        assert page.evaluate(together)


def test_a_page_stays_without_network(chromium: Any, made_page: Any) -> None:
    kept = """async () => {
        const needed = ["/", "/page.json", "/app/main.js", "/style.css", "/%s"];
        for (;;) {
          const found = await Promise.all(needed.map((path) => caches.match(path)));
          if (found.every(Boolean)) return;
          await new Promise((done) => setTimeout(done, 50));
        } }"""
    with ExitStack() as network:
        address = network.enter_context(served(made_page("classification").folder))
        with opened(chromium, address) as page:
            page.evaluate("async () => { await navigator.serviceWorker.ready; }")
            load(page)
            page.evaluate(kept % MODEL)
            page.goto(address + "icon.svg")
            network.close()
            page.go_back()
            for _ in range(2):
                page.wait_for_selector("main:not([hidden])")
                load(page)
                page.wait_for_selector("#results li")
                page.reload()


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
        page.wait_for_selector("#canvas[aria-label^='the test image: ']")
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
    photo = (folder / "test" / "image.png").read_bytes()
    bad = {"notes.txt": b"no image", "empty.png": b"", "torn.png": photo[:200]}
    with served(folder) as address, opened(chromium, address) as page:
        load(page)
        for name, content in bad.items():
            (tmp_path / name).write_bytes(content)
            page.set_input_files("#file", tmp_path / name)
            page.wait_for_selector(f"#error:has-text('{name}')")
            # The prediction of the image before it is gone.
            assert page.inner_text("#results") == "No prediction yet."
            assert page.inner_text("#timing") == page.text_content("#spoken") == ""
            assert page.get_attribute("#canvas", "aria-label") == "No prediction yet"
            page.click("#sample")
            page.wait_for_selector("#results li")
        assert page.get_attribute("#error", "role") == "alert"
        page.evaluate("document.querySelector('#url').closest('details').open = true")
        for path, message in (("nothing.jpg", "404"), ("page.json", "is not an image")):
            page.fill("#url", address + path)
            page.press("#url", "Enter")
            page.wait_for_selector(f"#error:has-text('{message}')")
        page.fill("#url", address.replace("http", "ftp"))
        page.press("#url", "Enter")
        page.wait_for_selector("#error:has-text('select it as a file')")
        page.fill("#url", address + "test/image.png")
        page.press("#url", "Enter")
        page.wait_for_selector("#canvas[aria-label*='test/image.png: ']")
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
        const blob = await (await fetch('test/image.png')).blob();
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
        assert one["frames_per_second"] == pytest.approx(1000 / one["median_ms"], rel=1e-2)
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
        page.get_by_role("img", name="The test image").wait_for()  # shown once it is fetched
        tree = page.locator("body").aria_snapshot()
        for name in (
            'combobox "Backend"',
            'combobox "Threads"',
            'button "Load"',
            'button "Image file"',
            'button "Camera"',
            'slider "Minimum score"',
            'button "Measure"',
            'img "The test image"',
            'heading "Prediction"',
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
            assert "One thread only" in page.inner_text("#warnings")
            load(page)
            assert "1 thread." in page.inner_text("#state")
            assert "✓" in page.inner_text("#check")


def test_what_http_of_another_machine_cannot(chromium: Any, made_page: Any) -> None:
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
