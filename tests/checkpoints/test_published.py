"""The table of published checkpoints."""

from mobilevit.checkpoints.published import BASE, PUBLISHED
from mobilevit.models.variants import architecture, list_models


def test_every_published_checkpoint_is_there_once():
    tasks = [entry.task for entry in PUBLISHED.values()]
    assert tasks.count("classification") == 5 + 7 + 7 + 3 + 3
    assert tasks.count("detection") == 3 + 7 + 1
    assert tasks.count("segmentation") == 3 + 2 + 7 + 4 + 6 + 5
    assert tasks.count("video classification") == 1
    assert len({entry.url for entry in PUBLISHED.values()}) == len(PUBLISHED) == len(tasks)


def test_every_variant_has_published_weights():
    assert {entry.model for entry in PUBLISHED.values() if entry.preprocessing} == {*list_models()}
    for entry in PUBLISHED.values():
        architecture(
            entry.model.removeprefix("ssdlite_")
            .removeprefix("maskrcnn_")
            .removeprefix("deeplabv3_")
            .removeprefix("pspnet_")
        )


def test_some_rows_as_the_authors_print_them():
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
