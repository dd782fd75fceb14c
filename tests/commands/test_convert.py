"""The command `mobilevit convert`."""

import logging

import pytest
import torch

import mobilevit
from mobilevit.__main__ import main


@pytest.fixture
def folder(tmp_path):
    torch.manual_seed(0)
    model = mobilevit.create_model("mobilevit_xxs", classes=["ant", "bee"])
    return mobilevit.save(model, tmp_path / "insects")


def test_from_layout_to_layout_and_back(folder, tmp_path, capsys):
    way = [
        ("transformers", tmp_path / "hf", []),
        ("authors", tmp_path / "w.pt", []),
        ("timm", tmp_path / "timm", ["--classes", "ant,bee"]),
        ("folder", tmp_path / "again", []),
    ]
    source = folder
    for to, out, options in way:
        assert main(["convert", str(source), str(out), "--to", to, *options]) == 0
        source = out
    text = capsys.readouterr().out
    assert "not stored: the names of its 2 classes" in text
    assert "reversed for bgr" in text and "reversed for rgb" in text
    before, after = mobilevit.load(folder), mobilevit.load(tmp_path / "again")
    assert after.config.classes == ("ant", "bee")
    assert after.config.preprocessing == before.config.preprocessing
    for key, tensor in before.state_dict().items():
        assert torch.equal(after.state_dict()[key], tensor), key
    assert "timm layout" in after.config.source


@pytest.mark.parametrize("to", ["folder", "timm", "transformers"])
def test_a_folder_that_is_not_empty_is_left_alone(folder, tmp_path, capsys, to):
    out = tmp_path / "mine"
    out.mkdir()
    mobilevit.convert(folder, out, to=to)  # into an empty one
    before = {file.name: file.read_bytes() for file in out.iterdir()}
    for source in (folder, "nothing"):  # ahead of all work
        assert main(["convert", str(source), str(out), "--to", to]) == 1
        assert "mine is not empty" in capsys.readouterr().err
    assert {file.name: file.read_bytes() for file in out.iterdir()} == before


def test_channel_order_can_be_stated(folder, tmp_path):
    out = tmp_path / "w.pt"
    conversion = mobilevit.convert(
        folder, out, to="authors", preprocessing={"channel_order": "bgr"}
    )
    assert not any("channel order" in note for note in conversion.notes)
    stem = "backbone.stem.conv.weight"
    states = [mobilevit.load(path).state_dict()[stem] for path in (folder, out)]
    assert torch.equal(*states)


def test_what_was_seen_through_is_said(folder, tmp_path, capsys, caplog):
    mobilevit.convert(folder, tmp_path / "w.pt", to="timm")
    tensors = torch.load(tmp_path / "w.pt")
    wrapped = {"state_dict_ema": {f"module.{key}": value for key, value in tensors.items()}}
    torch.save(wrapped, tmp_path / "training.pt")
    out = tmp_path / "out"
    with caplog.at_level(logging.INFO):
        assert main(["convert", str(tmp_path / "training.pt"), str(out), "--to", "folder"]) == 0
    assert "training.pt: read its state_dict_ema, without the prefix module." in caplog.text
    source = "(training.pt, timm layout, its state_dict_ema, without the prefix module.)"
    assert source in capsys.readouterr().out


@pytest.mark.parametrize(
    ("source", "out", "to", "message"),
    [
        ("insects", "out", "authors", "must end in .pt"),
        ("insects", "out", "keras", "keras"),
    ],
)
def test_errors_help(folder, tmp_path, monkeypatch, capsys, source, out, to, message):
    monkeypatch.chdir(tmp_path)
    try:
        code = main(["convert", source, out, "--to", to])
    except SystemExit as stop:  # of the command line's parser
        code = stop.code
    assert code in (1, 2)
    assert message in capsys.readouterr().err
    assert not (tmp_path / out).exists()
