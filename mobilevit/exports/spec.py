"""What an exported file says of itself, as texts by name: every format has a place for those."""

from __future__ import annotations

import importlib.metadata
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from mobilevit.checkpoints.folder import config_from_json, config_to_json
from mobilevit.checkpoints.keymap import CheckpointError
from mobilevit.models.config import ModelConfig

Dynamic = Literal["batch", "size"]
Precision = Literal["fp32", "fp16"]

LICENCE = (
    "MobileViT's library is under the MIT licence. The weights are under the licence of those who "
    "published or trained them; they come from: {source}"
)


class ExportError(ValueError):
    """A network cannot be exported like this; the message says why and what can be done."""


@dataclass(frozen=True, kw_only=True)
class FileFacts:
    """What is needed to feed a file and to read its answer, and where it comes from."""

    config: ModelConfig
    """Of the network; its preprocessing is what photos need ahead of the file, values included
    (those happen inside the file, unless it is raw)."""
    weights: str
    """Digest of the network's weights; see `mobilevit.checkpoints.folder.digest`."""
    raw: bool = False
    """A prepared tensor in and logits out, in place of a photo's pixels and an answer."""
    dynamic: Dynamic | None = None
    precision: Precision = "fp32"
    """What the network computes in where it is not quantised."""
    quantize: str | None = None
    """How weights, or weights and activations, are kept in fewer bits; None where they are not."""

    @property
    def values(self) -> str:
        """What the file takes for a pixel, in words."""
        if not self.raw:
            return "v in 0 to 255: red, green, blue"
        order = "red, green, blue"
        if self.config.preprocessing.channel_order == "bgr":
            order = "blue, green, red"
        return f"(v / 255 - mean) / std of v in 0 to 255: {order}"

    def texts(self) -> dict[str, str]:
        """Texts by name, for a file's metadata; those with structure are in JSON.

        `config` is the whole of it, the others are for people and for other programs.
        """
        config = self.config
        form = {
            "raw": self.raw,
            "dynamic": self.dynamic,
            "precision": self.precision,
            "quantize": self.quantize,
        }
        return {
            "model": config.model,
            "task": config.task,
            "classes": json.dumps(config.classes, ensure_ascii=False),
            "preprocessing": json.dumps(asdict(config.preprocessing)),
            "values": self.values,
            "form": json.dumps(form),
            "source": config.source,
            "weights_sha256": self.weights,
            "licence": LICENCE.format(source=config.source),
            "mobilevit_version": importlib.metadata.version("mobilevit"),
            "config": config_to_json(config, weights=self.weights),
        }

    @classmethod
    def read(cls, texts: Mapping[str, str], *, file: str | Path) -> FileFacts:
        """Read a file's metadata.

        Raises:
            ExportError: it is not a file of this library.
        """
        try:
            config, weights = config_from_json(texts["config"], file=str(file))
            form: dict[str, Any] = json.loads(texts["form"])
            return cls(config=config, weights=weights, **form)
        except (KeyError, TypeError, ValueError, CheckpointError) as error:
            raise ExportError(
                f"{file} does not say how it is to be run ({error!r}): it is no file of "
                "`mobilevit export`"
            ) from error
