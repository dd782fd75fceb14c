"""Networks of other libraries, to time beside ours: `timm:NAME` and `torchvision:NAME`."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from mobilevit.exports.spec import MissingExtraError
from mobilevit.models.config import Interpolation, ModelConfig, Preprocessing, TaskName

Home = Literal["timm", "torchvision"]

NEW = ModelConfig.source
"""What the source of new weights is called."""


class Alone(nn.Module):
    """A network alone: float32 `[B, 3, H, W]` in, float32 out, whatever it computes in."""

    def __init__(self, network: nn.Module) -> None:
        """Wrap a network that gives logits, several outputs, or a mapping with logits as `out`."""
        super().__init__()
        self.network = network
        self.dtype = torch.float32

    def halve(self) -> None:
        """Compute in float16."""
        self.network.half()
        self.dtype = torch.float16

    def forward(self, tensor: Tensor) -> Tensor | tuple[Tensor, ...]:
        """Give logits, or all outputs where there are several."""
        said = self.network(tensor.to(self.dtype))
        if isinstance(said, Mapping):
            said = said["out"]
        return said.float() if isinstance(said, Tensor) else tuple(part.float() for part in said)


class Outside(NamedTuple):
    """A network of another library with new weights."""

    network: Alone
    config: ModelConfig
    """Its `model` is what it is called there; its preprocessing is of the size asked for."""
    own_size: int
    """The size that the library has it for."""


def outside(home: Home, name: str, options: Mapping[str, Any], size: int | None) -> Outside:
    """Make a network of another library, in evaluation mode.

    Its weights are drawn from torch's global generator.

    Args:
        home: the library.
        name: what the network is called there.
        options: of the library's own function.
        size: side of the input in pixels; by default the one the library has it for.

    Raises:
        MissingExtraError: the library is not installed.
        ValueError: it has no such network, or not with these options; the message names near ones.
    """
    return MAKERS[home](name, options, size)


def _timm(name: str, options: Mapping[str, Any], size: int | None) -> Outside:
    timm = _library("timm")
    if not timm.is_model(name):
        raise _unknown("timm", name, timm.list_models())
    usual = dict(timm.get_pretrained_cfg(name).to_dict())
    own = usual["input_size"][-1]
    # Vision transformers hold a place for each patch.
    sized = {"img_size": size} if size not in (None, own) and usual.get("fixed_input_size") else {}
    network: Any = _made("timm", timm.create_model, name, {"pretrained": False, **sized, **options})
    data = importlib.import_module("timm.data").resolve_model_data_config(network)
    rule = _rule(
        size or own,
        resize=round((size or own) / data["crop_pct"]),
        interpolation=data["interpolation"],
        mean=data["mean"],
        std=data["std"],
    )
    return _wrapped("timm", timm, name, network, network.num_classes, rule, own)


def _torchvision(name: str, options: Mapping[str, Any], size: int | None) -> Outside:
    torchvision = _library("torchvision")
    models = torchvision.models
    segmenters = models.list_models(module=models.segmentation)
    known = [*models.list_models(module=models), *segmenters]
    if name not in known:
        raise _unknown("torchvision", name, known)
    segments = name in segmenters
    usual = models.get_model_weights(name).DEFAULT.transforms()
    own = (usual.resize_size if segments else usual.crop_size)[0]
    sized = {"image_size": size} if size not in (None, own) and name.startswith("vit_") else {}
    bare = {"weights_backbone": None} if segments else {}
    network = _made(
        "torchvision", models.get_model, name, {"weights": None, **bare, **sized, **options}
    )
    resize = usual.resize_size[0] if not segments else own
    rule = _rule(
        size or own,
        resize=round((size or own) * resize / own),
        interpolation=usual.interpolation.value,
        mean=usual.mean,
        std=usual.std,
        squash=segments,
    )
    classes = options.get("num_classes", 21 if segments else 1000)
    task: TaskName = "segmentation" if segments else "classification"
    return _wrapped("torchvision", torchvision, name, network, classes, rule, own, task)


MAKERS: dict[Home, Callable[[str, Mapping[str, Any], int | None], Outside]] = {
    "timm": _timm,
    "torchvision": _torchvision,
}


def _library(home: Home) -> Any:
    try:
        return importlib.import_module(home)
    except ImportError as error:
        raise MissingExtraError(
            f"{home}:NAME needs {home}, which is not installed ({error}): "
            "pip install 'mobilevit[bench]'"
        ) from error


def _unknown(home: Home, name: str, known: Sequence[str]) -> ValueError:
    near = difflib.get_close_matches(name, known, n=3)
    hint = f"; did you mean {' or '.join(near)}?" if near else ""
    kinds = "classifiers" if home == "timm" else "classifiers and networks for segmentation"
    return ValueError(f"{home} has no {name!r} among its {kinds}{hint}")


def _made(
    home: Home, make: Callable[..., nn.Module], name: str, options: Mapping[str, Any]
) -> nn.Module:
    try:
        return make(name, **options)
    except (TypeError, ValueError, AssertionError) as error:
        raise ValueError(f"{home}:{name} cannot be made like this: {error}") from error


def _rule(
    size: int,
    *,
    resize: int,
    interpolation: str,
    mean: Sequence[float],
    std: Sequence[float],
    squash: bool = False,
) -> Preprocessing:
    kind: Interpolation = "bicubic" if interpolation == "bicubic" else "bilinear"
    red, green, blue = mean
    deviations = std[0], std[1], std[2]
    return Preprocessing(
        resize_mode="stretch" if squash else "crop",
        resize=size if squash else max(size, resize),
        crop=size,
        interpolation=kind,
        mean=(red, green, blue),
        std=deviations,
    )


def _wrapped(
    home: Home,
    library: Any,
    name: str,
    network: nn.Module,
    classes: int,
    rule: Preprocessing,
    own: int,
    task: TaskName = "classification",
) -> Outside:
    config = ModelConfig(
        model=f"{home}:{name}",
        num_classes=classes,
        task=task,
        preprocessing=rule,
        source=f"{NEW}, {home} {library.__version__}",
    )
    return Outside(Alone(network.eval()).eval(), config, own)
