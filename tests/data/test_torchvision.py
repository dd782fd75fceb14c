"""torchvision's data sets by name; downloads need a network, so here they lie in place."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torchvision import datasets

from mobilevit.data.errors import DataError
from mobilevit.data.formats.labels.torchvision import TORCHVISION_SETS, read_torchvision
from mobilevit.data.images import open_image
from mobilevit.data.open import open_evaluation, open_splits
from mobilevit.data.options import DataOptions
from mobilevit.data.splits import LabelSamples


@pytest.fixture
def imagenette(tmp_path: Path) -> Path:
    for split, count in (("train", 2), ("val", 1)):
        for number, wnid in enumerate(datasets.Imagenette._WNID_TO_CLASS):
            for image in range(count):
                file = tmp_path / "imagenette2" / split / wnid / f"{image}.JPEG"
                file.parent.mkdir(parents=True, exist_ok=True)
                Image.new("RGB", (20, 30), (25 * number, 0, 0)).save(file)
    return tmp_path


def test_a_data_set_that_lies_there_is_opened(imagenette: Path) -> None:
    data = DataOptions(root=str(imagenette), name="imagenette")
    found = open_splits(LabelSamples, data)
    train, val = found.train, found.val
    assert train.classes == val.classes
    assert train.classes[0] == "tench" and len(train.classes) == 10
    assert train.labels.tolist() == [label for label in range(10) for _ in range(2)]
    assert val.labels.tolist() == list(range(10))
    red = np.asarray(open_image(val.source(4)))[..., 0]
    assert abs(int(red.mean()) - 100) < 3
    assert val.name(4) == "imagenette/val[4]"
    assert "(20 images), val: val (10 images)" in found.note
    turned = open_evaluation(LabelSamples, data, classes=[*reversed(val.classes), "more"])
    assert turned.labels.tolist() == list(range(9, -1, -1))


def test_unknown_names_are_answered_with_known_ones(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no data set named 'cats'; known: .*flowers102"):
        read_torchvision("cats", tmp_path)


@pytest.mark.parametrize("name", TORCHVISION_SETS)
def test_every_name_is_torchvisions_and_missing_data_is_named(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a network each either finds nothing or fails to download, and names its set."""
    import urllib.request

    def no_network(*_: object, **__: object) -> None:
        raise OSError("no network here")

    monkeypatch.setattr(urllib.request, "urlopen", no_network)
    with pytest.raises(DataError, match=f"{name} is not at .*no network here"):
        read_torchvision(name, tmp_path)
