"""The command `mobilevit convert`: the same network in another layout."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mobilevit.checkpoints.create import open_model
from mobilevit.checkpoints.write import Target, write


@dataclass(frozen=True, kw_only=True)
class Conversion:
    """The result of `convert`."""

    out: Path
    to: Target
    model: str
    source: str
    """Where the weights come from."""
    notes: tuple[str, ...]
    """What the layout cannot store, and what was changed for it."""

    def __str__(self) -> str:
        lines = [f"{self.model} ({self.source}) as {self.to}: {self.out}"]
        return "\n".join([*lines, *(f"  not stored: {note}" for note in self.notes)])


def convert(
    source: str,
    out: str,
    *,
    to: Target,
    classes: str | None = None,
    preprocessing: dict[str, Any] | None = None,
) -> Conversion:
    """Convert a model to this library's layout, or to that of the authors, timm or transformers.

    Args:
        source: a model folder; a checkpoint or folder of the authors, timm or transformers; a
            published name, a Hub id or a URL.
        out: a folder, new or empty; for `authors` a file (`.pt`), for `timm` either.
        to: `folder` (a model folder of this library), `authors`, `timm` or `transformers`.
        classes: names of the classes in the order of the logits, or a file of them, one a line, or
            `imagenet1k`; where the source has none.
        preprocessing: fields that differ from the source's, such as `channel_order`.

    Raises:
        FileNotFoundError: there is no source.
        ValueError: it cannot be read, the layout cannot hold it, or `out` is a folder with files.
    """
    if Path(out).is_dir() and any(Path(out).iterdir()):
        raise ValueError(f"{out} is not empty; remove it, or choose another folder")
    model, _ = open_model(source, classes=classes, preprocessing=preprocessing)
    notes = write(model, out, to=to)
    return Conversion(
        out=Path(out), to=to, model=model.name, source=model.config.source, notes=tuple(notes)
    )
