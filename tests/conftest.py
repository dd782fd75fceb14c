"""What several tests need."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of reference outputs: MOBILEVIT_SHARED, or `shared` beside the checkout."""
    beside = Path(__file__).resolve().parents[2] / "shared"
    folder = Path(os.environ.get("MOBILEVIT_SHARED", beside))
    if not folder.is_dir():
        pytest.skip(f"{folder} is absent; MOBILEVIT_SHARED says where the references are")
    return folder
