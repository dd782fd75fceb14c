"""Files and names that examples in docstrings (`>>>`) may use."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest


@pytest.fixture(scope="session")
def example_files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`photo.jpg`; `photos/`, class folders; `flowers/`, a model folder of two classes."""
    import numpy as np
    import torch
    from PIL import Image

    import mobilevit

    root = tmp_path_factory.mktemp("examples")
    draw = np.random.default_rng(0)

    def image(*names: str) -> None:
        path = root.joinpath(*names)
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(draw.integers(0, 255, (48, 64, 3), np.uint8)).save(path)

    image("photo.jpg")
    for name in ("daisy", "rose"):
        for number in range(6):
            image("photos", name, f"{number}.jpg")
    torch.manual_seed(0)
    mobilevit.save(
        mobilevit.create_model("mobilevit_xxs", classes=["daisy", "rose"]), root / "flowers"
    )
    return root


@pytest.fixture(autouse=True)
def _example_names(request: pytest.FixtureRequest) -> None:
    """Run a docstring's examples in a copy of those files, with the usual names defined."""
    if not isinstance(request.node, pytest.DoctestItem):
        return
    import shutil

    import numpy as np
    import torch
    from PIL import Image

    import mobilevit

    folder = request.getfixturevalue("tmp_path")
    shutil.copytree(request.getfixturevalue("example_files"), folder, dirs_exist_ok=True)
    request.getfixturevalue("monkeypatch").chdir(folder)
    names: dict[str, Any] = request.getfixturevalue("doctest_namespace")
    names.update(mobilevit=mobilevit, torch=torch, np=np, Image=Image, Path=Path)
    torch.manual_seed(0)
