"""torchvision's data sets by name; downloads need a network, so here they lie in place."""

import numpy as np
import pytest
from PIL import Image
from torchvision import datasets

from mobilevit.data.formats.folders import DataError
from mobilevit.data.formats.torchvision import NAMED_SETS, named_samples
from mobilevit.data.images import open_image


@pytest.fixture
def imagenette(tmp_path):
    for split, count in (("train", 2), ("val", 1)):
        for number, wnid in enumerate(datasets.Imagenette._WNID_TO_CLASS):
            for image in range(count):
                file = tmp_path / "imagenette2" / split / wnid / f"{image}.JPEG"
                file.parent.mkdir(parents=True, exist_ok=True)
                Image.new("RGB", (20, 30), (25 * number, 0, 0)).save(file)
    return tmp_path


def test_a_data_set_that_lies_there_is_opened(imagenette):
    train, val = named_samples("imagenette", imagenette)
    assert train.classes == val.classes
    assert train.classes[0] == "tench" and len(train.classes) == 10
    assert list(train.labels) == [label for label in range(10) for _ in range(2)]
    assert list(val.labels) == list(range(10))
    red = np.asarray(open_image(val.source(4)))[..., 0]
    assert abs(int(red.mean()) - 100) < 3
    assert val.name(4) == "imagenette/val[4]"


def test_unknown_names_are_answered_with_known_ones(tmp_path):
    with pytest.raises(DataError, match=r"no data set named 'cats'; known: .*flowers102"):
        named_samples("cats", tmp_path)


@pytest.mark.parametrize("name", NAMED_SETS)
def test_every_name_is_torchvisions_and_what_is_missing_is_said(name, tmp_path, monkeypatch):
    """Without a network each either finds nothing or fails to download, and says which set."""
    import urllib.request

    def no_network(*_, **__):
        raise OSError("no network here")

    monkeypatch.setattr(urllib.request, "urlopen", no_network)
    with pytest.raises(DataError, match=f"{name} is not at .*no network here"):
        named_samples(name, tmp_path)
