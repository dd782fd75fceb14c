"""What several tests need."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
"""What Chromium is called where Playwright has none of its own."""


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of reference outputs: MOBILEVIT_SHARED, or `shared` beside the checkout."""
    beside = Path(__file__).resolve().parents[2] / "shared"
    folder = Path(os.environ.get("MOBILEVIT_SHARED", beside))
    if not folder.is_dir():
        pytest.skip(f"{folder} is absent; MOBILEVIT_SHARED says where the references are")
    return folder


@pytest.fixture(scope="module")  # its event loop would be in the way of other modules' own
def chromium() -> Iterator[Callable[..., Any]]:
    """Start a headless Chromium with given flags: `chromium("--flag")`; each is started once."""
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
