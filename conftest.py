"""How tests are divided among processes; what examples in docstrings (`>>>`) may use."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import pytest

LONGEST = (
    *("executorch", "coreml", "training/test_processes", "litert", "openvino"),
    *("exports/test_accuracy", "exports/test_web_predictions", "exports/test_web_controls"),
    *("commands/test_bulk", "training/test_nothing_lost", "training/test_train"),
    *("exports/test_files_as_models", "commands/test_benchmark", "onnx"),
)
"""Groups of tests that take a minute or about, longest first: a last one would run alone."""

# Converters make millions of small objects that stay; looking through them takes 10% of their time.
gc.set_threshold(50_000)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Group a module's tests, or all examples, so that one process makes what its fixtures hold."""
    order = {name: place for place, name in enumerate(LONGEST)}
    places = {}
    for item in items:
        mark = item.get_closest_marker("xdist_group")
        module = f"{item.path.parent.name}/{item.path.stem}"
        name = "examples" if isinstance(item, pytest.DoctestItem) else module
        if mark is None:
            item.add_marker(pytest.mark.xdist_group(name))
        places[item] = order.get(mark.args[0] if mark else name, len(order))
    items.sort(key=places.__getitem__)


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
