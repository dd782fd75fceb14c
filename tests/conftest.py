"""Fixtures of several packages' tests, and the markers that follow from a test's place."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
"""Commands of Chromium, where Playwright has brought none."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark tests that start Chromium as `browser`, and all tests of exports as `export`."""
    for item in items:
        if "chromium" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.browser)
        if item.path.is_relative_to(Path(__file__).parent / "exports"):
            item.add_marker(pytest.mark.export)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of reference outputs: MOBILEVIT_SHARED, or `shared` next to the checkout."""
    default = Path(__file__).resolve().parents[2] / "shared"
    folder = Path(os.environ.get("MOBILEVIT_SHARED", default))
    if not folder.is_dir():
        pytest.skip(f"there are no references in {folder}; set MOBILEVIT_SHARED to their folder")
    return folder


@pytest.fixture(scope="module")  # its event loop disturbs those of other modules
def chromium() -> Iterator[Callable[..., Any]]:
    """`chromium("--flag")`: a headless Chromium with these flags, started once per module."""
    playwright = pytest.importorskip("playwright.sync_api")
    with ExitStack() as stack:
        driver = stack.enter_context(playwright.sync_playwright())
        own = Path(driver.chromium.executable_path)
        found = own if own.is_file() else next(filter(None, map(shutil.which, CHROMIUM)), None)
        if found is None:
            pytest.skip("no Chromium: `playwright install chromium`, or the system's package")
        started: dict[tuple[str, ...], Any] = {}

        def start(*flags: str) -> Any:
            if flags not in started:
                # Its own sandbox needs rights that containers and root do not have.
                browser = driver.chromium.launch(
                    executable_path=str(found), args=["--no-sandbox", *flags]
                )
                started[flags] = browser
                stack.callback(browser.close)
            return started[flags]

        yield start
