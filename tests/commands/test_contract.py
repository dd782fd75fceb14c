"""What the commands that take a model have in common: the same errors, with the same messages."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import mobilevit
from mobilevit.__main__ import main
from mobilevit.data.options import DataOptions

ARGUMENTS = {
    "predict": ["IMAGES"],
    "evaluate": ["--data.root", "IMAGES"],
    "export": ["--out", "OUT.onnx"],
    "convert": ["OUT", "--to", "folder"],
    "benchmark": ["--out", "OUT"],
}
"""Command -> what follows the model."""


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("nowhere.pt", "there is no file or folder nowhere.pt"),
        ("mobilevit_xx", "did you mean mobilevit_xxs"),
        ("IMAGES", "not a model folder"),
    ],
)
@pytest.mark.parametrize("command", ARGUMENTS)
def test_what_is_no_model_is_named_and_nothing_is_written(
    command: str,
    model: str,
    message: str,
    images: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    places = {"IMAGES": str(images), "OUT": str(tmp_path / "out")}
    places["OUT.onnx"] = places["OUT"] + ".onnx"
    words = [places.get(word, word) for word in (model, *ARGUMENTS[command])]
    assert main([command, *words]) == 1
    assert message in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["images"]


@pytest.mark.parametrize("ignored", [{"classes": "a,b,c"}, {"preprocessing": {"crop": 64}}])
@pytest.mark.parametrize("command", ["predict", "evaluate"])
def test_options_that_a_network_would_ignore_are_refused(
    command: str, ignored: dict[str, Any], colours: Path, images: Path
) -> None:
    arguments: list[Any] = [mobilevit.load(colours)]
    if command == "evaluate":
        ignored = {**ignored, "data": DataOptions(root=str(images), workers=0)}
    else:
        arguments.append(images)
    with pytest.raises(ValueError, match=r"model\.config"):
        getattr(mobilevit, command)(*arguments, **ignored)
