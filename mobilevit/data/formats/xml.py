"""XML of annotation formats."""

import re
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import Element, TreeBuilder
from xml.parsers import expat

from mobilevit.data.errors import FileError
from mobilevit.data.formats.text import read_bytes

_HEAD_BYTES = 4096


class _EntityError(Exception):
    """An XML file that declares entities."""


def root_element(file: Path) -> str | None:
    """The name of the outermost element, by the beginning of a file; None where there is none."""
    try:
        with file.open("rb") as opened:
            head = opened.read(_HEAD_BYTES).replace(b"\0", b"")  # UTF-16
    except OSError:
        return None
    found = re.search(rb"<([A-Za-z_][\w.-]*)[\s/>]", head)
    return None if found is None else found[1].decode().casefold()


def parse_xml(file: Path) -> Element:
    """Read an XML file; `line_of` gives the lines of its elements.

    Raises:
        FileError: it cannot be read, is malformed, or declares entities, which may expand a few
            bytes to gigabytes, or include other files.
    """
    content = read_bytes(file)
    parser = expat.ParserCreate()
    declared = re.match(rb"<\?xml[^>]*?encoding\s*=\s*[\"']([\w.-]+)", content)
    if declared and declared[1].lower() != b"utf-8":
        # expat knows four encodings, Python many: GB2312, windows-1251, ...
        try:
            content = content.decode(declared[1].decode()).encode()
        except (LookupError, ValueError) as error:
            message = f"not in the encoding that it states, or that is unknown: {error}"
            raise FileError(f"{file}:1", message) from error
        parser = expat.ParserCreate("utf-8")
    tree = TreeBuilder()

    def start(name: str, attributes: dict[str, Any]) -> None:
        tree.start(name, {**attributes, "": str(parser.CurrentLineNumber)})

    def refuse(*_: object) -> None:
        raise _EntityError

    parser.StartElementHandler, parser.EndElementHandler = start, tree.end
    parser.CharacterDataHandler, parser.EntityDeclHandler = tree.data, refuse
    try:
        parser.Parse(content, True)
    except _EntityError:
        where = f"{file}:{parser.CurrentLineNumber}"
        raise FileError(where, "declares entities, which are not read") from None
    except expat.ExpatError as error:
        message = f"malformed XML: {expat.ErrorString(error.code)}"
        raise FileError(f"{file}:{error.lineno}", message) from error
    return tree.close()


def line_of(element: Element) -> int:
    """The line on which an element begins."""
    return int(element.attrib[""])  # no attribute of a file can have this name


def text_of(element: Element, path: str) -> str:
    """The text of an element in another, without spaces around it; empty where there is none."""
    return (element.findtext(path) or "").strip()
