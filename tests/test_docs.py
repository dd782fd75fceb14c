"""Links in the documentation lead somewhere, its options exist, and its Python examples run."""

from __future__ import annotations

import contextlib
import io
import re
import shutil
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import mobilevit
from mobilevit.__main__ import COMMANDS, main
from mobilevit.checkpoints.write import write

ROOT = Path(__file__).parents[1]
FOREIGN = {"folder", "nproc-per-node", "rounds", "standalone"}
"""Options of torchrun and of the scripts in benchmarks/."""
TEXTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])


def anchors(file: Path) -> set[str]:
    """The anchors that a heading of a text gets."""
    heads = re.findall(r"^#+ (.+)$", file.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


@pytest.mark.parametrize("text", TEXTS, ids=lambda file: str(file.relative_to(ROOT)))
def test_links_lead_somewhere(text):
    links = re.findall(r"\]\(([^)\s]+)\)", text.read_text(encoding="utf-8"))
    for link in links:
        if "://" in link:
            continue
        name, _, anchor = link.partition("#")
        target = (text.parent / name).resolve() if name else text
        assert target.exists(), f"{text.name} links to {link}"
        assert not anchor or anchor in anchors(target), f"{text.name} links to {link}"


@pytest.fixture
def photos(tmp_path, monkeypatch):
    """A folder with what the pages' examples use: photos, model folders, the authors' files."""
    monkeypatch.chdir(tmp_path)
    draw = np.random.default_rng(0)
    for name in ("photo.jpg", "new.jpg"):
        Image.fromarray(draw.integers(0, 255, (90, 120, 3), np.uint8)).save(name)
    torch.manual_seed(0)
    names = {
        "flowers": "mobilevit_xxs",
        "runs/photos/model": "mobilevit_xxs",
        "detection.md": "ssdlite_mobilevit_xxs",
        "runs/streets/model": "deeplabv3_mobilevit_xxs",
    }
    for folder, name in names.items():
        mobilevit.save(mobilevit.create_model(name, classes=["daisy", "rose"]), folder)
    for name in ("mobilevit_s", "mobilevit_xs"):
        write(mobilevit.create_model(name, num_classes=1000), Path(f"{name}.pt"), to="authors")
    return tmp_path


PYTHON = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@pytest.mark.slow
@pytest.mark.parametrize(
    "text", ["README.md", "docs/networks.md", "docs/detection.md", "docs/segmentation.md"]
)
def test_python_examples_run(text, photos):
    model = photos / Path(text).name
    if model.is_dir():  # the page's own task
        shutil.rmtree(photos / "runs/photos/model")
        model.rename(photos / "runs/photos/model")
    names = {"images": torch.rand(1, 3, 64, 64), "mobilevit": mobilevit}
    blocks = PYTHON.findall((ROOT / text).read_text(encoding="utf-8"))
    assert blocks
    for block in blocks:
        exec(compile(block, text, "exec"), names)


@cache
def options_of(command):
    """The options that a command's help lists."""
    with contextlib.redirect_stdout(io.StringIO()) as printed, pytest.raises(SystemExit):
        main([command, "--help"])
    return set(re.findall(r"(?<!\S)--([\w.]+)", printed.getvalue()))


def is_option(option, known):
    group = option.partition(".")[0]
    if group == "data" and "data" in known:  # an optional group, which help does not list
        known = options_of("train")
    return option in known or (group == "preprocessing" and group in known)


@pytest.mark.parametrize(
    "text",
    [text for text in TEXTS if text.name != "CHANGELOG.md"],  # which has options of the past
    ids=lambda file: str(file.relative_to(ROOT)),
)
def test_options_exist(text):
    content = text.read_text(encoding="utf-8")
    code = "\n".join(re.findall(r"^```\n(.*?)^```$", content, re.MULTILINE | re.DOTALL))
    for line in code.replace("\\\n", " ").splitlines():
        if found := re.search(r"\bmobilevit (\w+)( .*)?$", line.partition(" #")[0]):
            command, rest = found[1], found[2] or ""
            for option in re.findall(r"(?<!\S)--([\w.]+)", rest):
                assert is_option(option, options_of(command)), f"{command} has no --{option}"
    known = set().union(*map(options_of, COMMANDS)) | FOREIGN
    for inline in re.findall(r"`([^`\n]+)`", content):
        for option in re.findall(r"(?<!\S)--([\w.-]+)", inline):
            assert is_option(option, known), f"no command has --{option}"
