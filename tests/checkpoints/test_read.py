"""Tensors out of files of all kinds."""

import argparse
import pickle

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from mobilevit.checkpoints.keymap import CheckpointError
from mobilevit.checkpoints.read import read_tensors, without_prefix

NEW, OLD = {"a": torch.ones(2)}, {"a": torch.zeros(2)}


@pytest.mark.parametrize(
    ("content", "seen"),
    [
        (NEW, ()),
        ({"state_dict": NEW, "epoch": 3}, ("its state_dict",)),
        ({"model": NEW, "optimizer": {}}, ("its model",)),
        # averaged weights come first: the authors', timm's, torchvision's
        (
            {"model_state_dict": OLD, "ema_state_dict": NEW, "best_metric": np.float64(69.0)},
            ("its ema_state_dict",),
        ),
        (
            {"state_dict": OLD, "state_dict_ema": NEW, "args": argparse.Namespace(lr=0.1)},
            ("its state_dict_ema",),
        ),
        (
            {"model": OLD, "model_ema": {"n_averaged": torch.tensor(3), **NEW}},
            ("its model_ema",),
        ),
        ({"ema": {"state_dict": NEW}}, ("its ema", "its state_dict")),
        ({"state_dict": NEW, "state_dict_ema": None}, ("its state_dict",)),
    ],
)
def test_wrappers_are_removed_and_reported(tmp_path, content, seen):
    torch.save(content, tmp_path / "w.pt")
    found = read_tensors(tmp_path / "w.pt")
    assert found.tensors.keys() == {"a"}
    assert found.tensors["a"].tolist() == [1, 1]
    assert found.unwrapped == seen


@pytest.mark.parametrize("prefix", ["", "module.", "module._orig_mod."])
def test_a_prefix_before_a_networks_names_is_removed(prefix):
    tensors = {f"{prefix}{key}": NEW["a"] for key in ("a.weight", "b.a.weight")}
    found = without_prefix({**tensors, "c": NEW["a"]}, "a.weight")
    assert found.keys() - {"c"} == {"a.weight", "b.a.weight"}
    assert ("c" in found) == (not prefix)


class Hostile:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (self.path, "w")


@pytest.mark.parametrize("writer", ["torch", "pickle"])
def test_a_file_that_would_run_code_is_refused(tmp_path, writer):  # A15
    mark, path = tmp_path / "mark", tmp_path / "weights.pt"
    content = {"head.weight": torch.zeros(2), "evil": Hostile(str(mark))}
    if writer == "torch":
        torch.save(content, path)
    else:
        path.write_bytes(pickle.dumps(content))
    with pytest.raises(CheckpointError, match=r"weights\.pt was refused.*save_file"):
        read_tensors(path)
    assert not mark.exists()


def test_the_same_weights_as_safetensors_load(tmp_path):  # A15
    save_file(NEW, tmp_path / "w.safetensors", metadata={"format": "pt"})
    found = read_tensors(tmp_path / "w.safetensors")
    assert found.tensors["a"].tolist() == [1, 1]
    assert found.metadata == {"format": "pt"}


@pytest.mark.parametrize("name", ["w.pt", "w.safetensors"])
@pytest.mark.parametrize("content", [b"", b"no weights", b"PK\x03\x04 cut off", bytes(range(99))])
def test_errors_name_unreadable_files(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(CheckpointError, match=name):
        read_tensors(tmp_path / name)


def test_a_pickle_within_a_simple_value_is_refused(tmp_path):
    mark = tmp_path / "mark"
    inner = argparse.Namespace(evil=Hostile(str(mark)))
    torch.save({"state_dict": NEW, "args": inner}, tmp_path / "w.pt")
    with pytest.raises(CheckpointError, match="was refused"):
        read_tensors(tmp_path / "w.pt")

    class Scalar:
        """A numpy scalar of dtype object, whose bytes are a pickle."""

        def __reduce__(self):
            scalar = np.float64(0).__reduce__()[0]
            return scalar, (np.dtype("O"), pickle.dumps(Hostile(str(mark))))

    torch.save({"state_dict": NEW, "best": Scalar()}, tmp_path / "w.pt")
    with pytest.raises(CheckpointError, match=r"was refused|not a readable"):
        read_tensors(tmp_path / "w.pt")
    assert not mark.exists()


def test_other_contents_are_errors(tmp_path):
    with pytest.raises(FileNotFoundError, match="nothing"):
        read_tensors(tmp_path / "nothing.pt")
    for content in ([1, 2], {"a": 1}, {"state_dict": {"a": {"b": 3}}}):
        torch.save(content, tmp_path / "w.pt")
        with pytest.raises(CheckpointError, match="not a dictionary of tensors"):
            read_tensors(tmp_path / "w.pt")


def test_the_suffix_of_a_file_does_not_matter(tmp_path):
    save_file(NEW, tmp_path / "w.bin")
    assert read_tensors(tmp_path / "w.bin").tensors["a"].tolist() == [1, 1]
    (tmp_path / "page.pt").write_text("<!doctype html><title>Please log in</title>")
    with pytest.raises(CheckpointError, match="neither a zip nor a pickle"):
        read_tensors(tmp_path / "page.pt")
