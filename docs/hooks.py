"""Adds files of other folders to the site, and shows examples in docstrings as code."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import griffe
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
LINK = re.compile(r"(\]\()([^)\s]+\))")
OUTSIDE = ("CHANGELOG.md", "examples/*", "examples/*/*", "recipes/*")


def on_files(files: Files, config: Any) -> Files:
    """Add the README as the first page, and the files that pages link to under their own names."""
    files.append(File.generated(config, "index.md", content=(ROOT / "README.md").read_text()))
    for path in sorted(path for pattern in OUTSIDE for path in ROOT.glob(pattern)):
        if path.is_file():
            name = path.relative_to(ROOT).as_posix()
            files.append(File.generated(config, name, content=path.read_bytes()))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Links as they are in the repository lead to the same pages of the site."""
    if page.file.src_uri in ("index.md", "CHANGELOG.md"):
        return LINK.sub(lambda link: link[1] + link[2].removeprefix("docs/"), markdown)
    if "/" in page.file.src_uri:
        return markdown
    return LINK.sub(lambda link: link[1] + link[2].removeprefix("../"), markdown)


class Examples(griffe.Extension):
    """`>>>` lines of a docstring become a block of code up to the next empty line."""

    BLOCK = re.compile(r"^(>>> .+(?:\n.+)*)", re.MULTILINE)

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Fence the examples of one docstring."""
        if obj.docstring:
            obj.docstring.value = self.BLOCK.sub(r"```pycon\n\1\n```", obj.docstring.value)
