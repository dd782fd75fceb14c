"""The table of published checkpoints."""

import pytest
import torch

from mobilevit.checkpoints.pretrained import BASE, PUBLISHED
from mobilevit.data.class_names import ADE20K_CLASSES, VOC_CLASSES
from mobilevit.models.config import ModelConfig
from mobilevit.models.mobilevit import MobileViTBlock
from mobilevit.models.registry import HEADS, VARIANTS, build, list_models, split_name


def test_every_published_checkpoint_is_there_once():
    tasks = [entry.task for entry in PUBLISHED.values()]
    assert tasks.count("classification") == 5 + 7 + 7 + 3 + 3
    assert tasks.count("detection") == 3 + 7 + 1
    assert tasks.count("segmentation") == 3 + 2 + 7 + 4 + 6 + 5
    assert tasks.count("video classification") == 1
    assert len({entry.url for entry in PUBLISHED.values()}) == len(PUBLISHED) == len(tasks)


def test_nearly_every_network_has_published_weights():
    known = {entry.model for entry in PUBLISHED.values() if entry.preprocessing}
    without = {
        f"pspnet_{variant}" for variant in VARIANTS if VARIANTS[variant].block is MobileViTBlock
    }
    assert {*list_models()} - known == without | {"pspnet_mobilevitv2_200"}
    assert known <= {*list_models()}
    for entry in PUBLISHED.values():
        assert split_name(entry.model.removeprefix("maskrcnn_"))


def test_figures_are_those_that_the_authors_print():
    entry = PUBLISHED["mobilevitv2_175.apple_in21k_in1k_384"]
    assert (entry.value, entry.size, entry.parameters) == (82.93, 384, 14.3)
    assert entry.preprocessing.resize == entry.preprocessing.crop == 384
    assert entry.preprocessing.assumed == ("channel_order",)
    path = "cvnets-v2/classification/mobilevitv2/imagenet21k_to_1k/384x384/mobilevitv2-1.75.pt"
    assert entry.url == BASE + path
    entry = PUBLISHED["mobilevit_xs.apple_in1k"]
    assert (entry.metric, entry.value, entry.task) == ("top-1", 74.7, "classification")
    assert entry.preprocessing.channel_order == "bgr"
    assert PUBLISHED["mobilevit_s.apple_in1k_distilled"].preprocessing.channel_order == "rgb"
    assert PUBLISHED["pspnet_mobilevitv2_125.apple_voc"].value == 79.40


@pytest.mark.parametrize(
    ("name", "classes", "stride", "mode", "order", "rates"),
    [
        ("deeplabv3_mobilevit_xs.apple_voc", 21, 16, "stretch", "bgr", 6),
        ("deeplabv3_mobilevit_s.apple_voc_os8", 21, 8, "shortest_edge", "rgb", 12),
        ("deeplabv3_mobilevit_s.apple_ade20k_rangeaugment", 150, 8, "shortest_edge", "rgb", 12),
        ("deeplabv3_mobilevitv2_050.apple_voc", 21, 16, "shortest_edge", "rgb", 6),
        ("deeplabv3_mobilevitv2_050.apple_ade20k", 150, 8, "shortest_edge", "rgb", 12),
        ("pspnet_mobilevitv2_050.apple_ade20k", 150, 8, "shortest_edge", "rgb", None),
    ],
)
def test_segmentation_weights_are_completed(name, classes, stride, mode, order, rates):
    entry = PUBLISHED[name]
    config = entry.complete(
        ModelConfig(
            model=entry.model,
            num_classes=classes,
            task="segmentation",
            preprocessing=HEADS["pspnet_"].preprocessing,
        )
    )
    assert config.options == ({} if stride == 16 else {"output_stride": stride})
    assert (entry.preprocessing.resize_mode, entry.preprocessing.channel_order) == (mode, order)
    assert entry.preprocessing.resize == entry.preprocessing.crop == 512
    assert config.classes == (VOC_CLASSES if classes == 21 else ADE20K_CLASSES)
    with torch.device("meta"):
        model = build(config.model, num_classes=classes, **config.options)
    if rates:
        assert model.context.branches[1].conv.dilation == (rates, rates)
