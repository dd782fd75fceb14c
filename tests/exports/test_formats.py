"""Every format, from a network to a file that says the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import mobilevit
from mobilevit.checkpoints.folder import digest
from mobilevit.commands.export import export
from mobilevit.exports.backends.registry import BACKENDS, open_exported
from mobilevit.exports.options import ExportOptions
from mobilevit.exports.spec import ExportError
from tests.numerics import assert_probabilities_close

# torch's exporters and the formats' tools use what their own dependencies deprecate.
pytestmark = pytest.mark.filterwarnings("ignore")

OTHERS = [one for name, one in BACKENDS.items() if name != "onnx"]


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        *((one, "mobilevit_xxs") for one in OTHERS),
        # The others' boxes are tested with the format.
        (BACKENDS["coreml"], "ssdlite_mobilevit_xxs"),
    ],
    ids=lambda one: one if isinstance(one, str) else one.name,
)
def test_whole_file(
    network: Any, photos: list[Image.Image], tmp_path: Path, kind: Any, name: str
) -> None:
    size = 128 if "ssdlite" in name else 64  # then there are more anchors than suppression looks at
    model = network(
        name, size=size, channel_order="bgr", mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.25)
    )
    path = tmp_path / f"ants{kind.suffix}"
    exported = export(model, ExportOptions(out=str(path)))
    assert exported.exit_code == 0 and exported.verification.difference < 1e-3
    assert path.is_dir() == kind.folder
    run = open_exported(path)
    assert run.metadata.config.classes == model.config.classes
    assert run.metadata.config.preprocessing == model.config.preprocessing
    assert run.metadata.weights == digest(model.state_dict())
    ours, theirs = (mobilevit.predict(one, *photos) for one in (str(path), model))
    for mine, true in zip(ours, theirs, strict=True):
        if name == "mobilevit_xxs":
            assert_probabilities_close(mine.probabilities, true.probabilities)
        else:
            assert len(mine.boxes) == len(true.boxes) > 0
            for ours_box, theirs_box in zip(mine.boxes, true.boxes, strict=True):
                assert ours_box.score == pytest.approx(theirs_box.score, abs=1e-3)


@pytest.mark.parametrize("kind", OTHERS, ids=lambda one: one.name)
def test_what_is_no_such_file(tmp_path: Path, kind: Any) -> None:
    path = tmp_path / f"ants{kind.suffix}"
    if kind.folder:
        path.mkdir()
        (path / "model.xml").write_text("nothing")
    else:
        path.write_bytes(b"nothing at all")
    with pytest.raises(ExportError, match="ants"):
        open_exported(path)
