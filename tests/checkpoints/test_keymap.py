from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from timm import create_model as create_timm
from torch import nn
from transformers import (
    MobileViTConfig,
    MobileViTForImageClassification,
    MobileViTV2Config,
    MobileViTV2ForImageClassification,
)

from mobilevit.checkpoints import authors, timm, transformers
from mobilevit.checkpoints.keymap import CheckpointError, Layout, shorten
from mobilevit.models.config import ModelConfig
from mobilevit.models.mobilevit import MobileViTBlock, MobileViTv2Block
from mobilevit.models.registry import VARIANTS, build

LAYOUTS = tuple(home for module in (authors, timm, transformers) for home in (module.V1, module.V2))
NAMES = {
    MobileViTBlock: ("mobilevit_xxs", "mobilevit_xs", "mobilevit_s"),
    MobileViTv2Block: ("mobilevitv2_050",),
}


def layout_id(layout: Layout) -> str:
    return f"{layout.name}-{layout.block.__name__}"


def equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(
        a[key].shape == b[key].shape and torch.equal(a[key], b[key]) for key in a
    )


@pytest.mark.parametrize("layout", LAYOUTS, ids=layout_id)
def test_there_and_back(layout: Layout) -> None:
    for name in NAMES[layout.block]:
        ours = build(name).state_dict()
        theirs = layout.from_ours(ours)
        assert theirs.keys().isdisjoint(ours)
        assert sum(t.numel() for t in theirs.values()) == sum(t.numel() for t in ours.values())
        assert equal(layout.to_ours(theirs), ours)


@pytest.mark.parametrize(
    ("name", "layout"),
    [(f"mobilevit_{size}", authors.V1) for size in ("xxs", "xs", "s")]
    + [(f"mobilevitv2_{width}", authors.V2) for width in ("050", "100", "200")],
)
def test_authors_keys_and_shapes(name: str, layout: Layout, shared: Path) -> None:
    """Exactly the tensors of the original checkpoint, and back to them."""
    expected = json.loads((shared / "reference" / f"{name}.keys.json").read_text())
    with torch.device("meta"):
        theirs = layout.from_ours(build(name).state_dict())
    assert sorted([key, list(tensor.shape)] for key, tensor in theirs.items()) == sorted(expected)


def check_same_logits(name: str, layout: Layout, theirs: nn.Module, sizes: Sequence) -> None:
    """Random weights of a network of theirs give the same logits in ours, and go back whole."""
    with torch.no_grad():  # initial ones and zeros would hide a wrong name
        for key, tensor in theirs.state_dict().items():
            if tensor.ndim == 1 and tensor.is_floating_point():
                positive = key.endswith(("weight", "running_var"))
                tensor.uniform_(0.5, 1.5) if positive else tensor.normal_(std=0.1)
    tensors = layout.to_ours(theirs.state_dict())
    assert equal(layout.from_ours(tensors), theirs.state_dict())
    ours = build(name).eval()
    ours.load_state_dict(tensors)
    for size in sizes:
        x = torch.rand(1, 3, *size)
        with torch.inference_mode():
            expected = theirs(x)
            expected = getattr(expected, "logits", expected)
            assert (ours(x) - expected).abs().max() < 1e-4 * expected.abs().max(), size


@pytest.mark.parametrize("name", list(VARIANTS))
def test_timm_weights_give_timm_logits(name: str) -> None:
    layout = timm.V1 if name.startswith("mobilevit_") else timm.V2
    torch.manual_seed(0)
    theirs = create_timm(name).eval()
    check_same_logits(name, layout, theirs, [(256, 256), (224, 224), (160, 250)])


@pytest.mark.parametrize("name", list(VARIANTS))
def test_transformers_weights_give_transformers_logits(name: str) -> None:
    described = transformers.write_config(ModelConfig(model=name, num_classes=1000))["config.json"]
    torch.manual_seed(0)
    if name.startswith("mobilevit_"):
        layout, sizes = transformers.V1, [(256, 256), (224, 224), (160, 250)]
        theirs = MobileViTForImageClassification(MobileViTConfig(**described))
    else:
        # 224 px has maps of 7 x 7 and 160 x 250 px of 5 x 8, which transformers cuts to whole
        # patches and fills up with zeros; the authors, timm and we stretch them
        layout, sizes = transformers.V2, [(256, 256), (192, 320)]
        theirs = MobileViTV2ForImageClassification(MobileViTV2Config(**described))
    check_same_logits(name, layout, theirs.eval(), sizes)


def test_a_part_without_its_others_is_an_error() -> None:
    ours = {"backbone.stage3.1.transformer.0.attention.qkv.bias": torch.arange(6.0)}
    theirs = transformers.V1.from_ours(ours)
    assert [tensor.tolist() for tensor in theirs.values()] == [[0, 1], [2, 3], [4, 5]]
    del theirs["mobilevit.encoder.layer.2.transformer.layer.0.attention.attention.key.bias"]
    with pytest.raises(CheckpointError, match=r"attention\.qkv\.bias is without its key"):
        transformers.V1.to_ours(theirs)


@pytest.mark.parametrize("layout", LAYOUTS, ids=layout_id)
def test_each_layout_knows_its_own(layout: Layout) -> None:
    with torch.device("meta"):
        theirs = layout.from_ours(build(NAMES[layout.block][0]).state_dict())
    assert [other for other in LAYOUTS if other.matches(theirs)] == [layout]


@pytest.mark.parametrize("layout", LAYOUTS, ids=layout_id)
def test_unknown_names_are_named(layout: Layout) -> None:
    tensors = {"layer_9.weight": torch.zeros(1), "ema.decay": torch.zeros(1)}
    with pytest.raises(CheckpointError, match=r"2 tensors .* layout: layer_9.weight, ema.decay"):
        layout.to_ours(tensors)
    with pytest.raises(CheckpointError, match=r"no place for layer_9\.weight"):
        layout.from_ours(tensors)


def test_a_number_must_be_the_same_wherever_it_stands() -> None:
    """`stages.{s-1}` of timm counts from nought."""
    key = "backbone.stage4.0.project.conv.weight"
    assert list(timm.V1.from_ours({key: torch.zeros(1)})) == ["stages.3.0.conv3_1x1.conv.weight"]
    assert list(authors.V1.from_ours({key: torch.zeros(1)})) == [
        "layer_4.0.block.red_1x1.block.conv.weight"
    ]


def test_long_lists_are_cut() -> None:
    assert shorten(list("abc"), 3) == "a, b, c"
    assert shorten(list("abcd"), 3) == "a, b, c and 1 more"
