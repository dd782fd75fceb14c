"""The examples of docs/extending.md, applied to a copy of the package, work as they stand."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "extending.md"
BLOCK = re.compile(r'^```(\w+)(?: title="([^"]+)")?\n(.*?)^```$', re.MULTILINE | re.DOTALL)


class Block(NamedTuple):
    """A block of code: a new file, a change of a file, or a script (without a file)."""

    language: str
    file: str
    code: str


def sections() -> dict[str, list[Block]]:
    """The blocks under each heading of the page."""
    parts = re.split(r"^## (.+)$", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]
    return {
        title: [Block(*found) for found in BLOCK.findall(text)]
        for title, text in zip(parts[::2], parts[1::2], strict=True)
    }


def apply(diff: str, file: Path) -> None:
    """Change a file by the lines of a diff, all of which stand together in it once."""
    lines = diff.splitlines(keepends=True)
    before = "".join(line[1:] for line in lines if line[0] != "+")
    after = "".join(line[1:] for line in lines if line[0] != "-")
    text = file.read_text(encoding="utf-8")
    assert text.count(before) == 1, f"{file.name} has {text.count(before)} times:\n{before}"
    file.write_text(text.replace(before, after), encoding="utf-8")


@pytest.fixture(scope="module")
def extended(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a copy of the package in which everything on the page is applied."""
    root = tmp_path_factory.mktemp("extended")
    shutil.copytree(ROOT / "mobilevit", root / "mobilevit")
    shutil.copy(ROOT / "pyproject.toml", root)
    for blocks in sections().values():
        for language, file, code in blocks:
            if language == "diff":
                apply(code, root / file)
            elif file:
                assert not (root / file).exists()
                (root / file).parent.mkdir(exist_ok=True)
                (root / file).write_text(code, encoding="utf-8")
    return root


@pytest.mark.parametrize("title", sections())
def test_the_script_runs(title: str, extended: Path, tmp_path: Path) -> None:
    (script,) = (block.code for block in sections()[title] if not block.file)
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(extended)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr


def test_packages_still_import_only_packages_below_them(extended: Path) -> None:
    done = subprocess.run(
        [Path(sys.executable).with_name("lint-imports"), "--no-cache"],
        cwd=extended,
        env={**os.environ, "PYTHONPATH": str(extended)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout
