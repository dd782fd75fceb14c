"""How tests are divided among processes; what examples in docstrings (`>>>`) may use."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import pytest

FORMATS = ("executorch", "coreml", "litert", "openvino", "onnx")
OF_FORMATS = tuple(f"tests/exports/test_{name}.py" for name in ("backends", "contract", "quantize"))
"""Modules whose tests name formats."""
LONGEST = (
    *("executorch", "coreml", "tests/training/test_processes.py", "litert", "openvino"),
    *("tests/exports/test_accuracy.py", "tests/exports/test_web_predictions.py"),
    *("tests/exports/test_web_controls.py", "tests/commands/test_bulk.py"),
    *("tests/training/test_nothing_lost.py", "tests/training/test_train.py"),
    *("tests/exports/test_files_as_models.py", "tests/commands/test_benchmark.py", "onnx"),
)
"""Groups of tests that take a minute or about, longest first: a last one would run alone."""

# Converters make millions of small objects that stay; looking through them takes 10% of their time.
gc.set_threshold(50_000)


def group_of(nodeid: str) -> str:
    """The group of a test, which one process runs, so that what its fixtures make is made once."""
    module, _, name = nodeid.partition("::")
    formats = [one for one in FORMATS if one in name] if module in OF_FORMATS else []
    return next(iter(formats), "examples" if module.startswith("mobilevit/") else module)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the longest groups."""
    order = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: order.get(group_of(item.nodeid), len(order)))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Divide tests among processes by `group_of`, with --dist loadscope."""
    from xdist.scheduler import LoadScopeScheduling

    class Groups(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return group_of(nodeid)

    return Groups(config, log) if config.getvalue("dist") == "loadscope" else None


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
