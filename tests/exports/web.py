"""A page in a real browser, at a phone's size."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mobilevit.commands.serve import PageServer

PHONE = {
    "viewport": {"width": 390, "height": 844},
    "device_scale_factor": 2,
    "is_mobile": True,
    "has_touch": True,
}
GIVEN = "async (given) => { const held = await (await import('/app/main.js')).ready; "
"""How a script begins that uses the state of the page."""


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """A folder by `mobilevit serve`'s server: gives its address."""
    with PageServer() as server:
        server.serve_folder(folder)
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
