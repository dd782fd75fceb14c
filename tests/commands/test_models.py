"""`mobilevit models`: counts against the literature, memory against hand and real tensors."""

import functools
from dataclasses import FrozenInstanceError

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from mobilevit.checkpoints.pretrained import PUBLISHED
from mobilevit.commands.models import (
    CostCounter,
    ModelSummary,
    ModelTable,
    count_macs,
    describe,
    measure,
)
from mobilevit.models.registry import VARIANTS, build

pytestmark = pytest.mark.slow


@functools.cache
def summary(name: str, **options) -> ModelSummary:
    result = describe(model=name, **options)
    assert isinstance(result, ModelSummary)
    return result


@functools.cache
def table(size: int) -> ModelTable:
    result = describe(size=size)
    assert isinstance(result, ModelTable)
    return result


@pytest.mark.parametrize(
    ("name", "size", "millions"),
    [
        ("mobilevit_s", 256, 2000.8),
        ("mobilevit_xs", 256, 1025.9),
        ("mobilevit_xxs", 256, 407.4),
        ("mobilevit_s", 224, 1521.5),
        ("mobilevit_xs", 224, 772.3),
        ("mobilevit_xxs", 224, 301.5),
    ],
)
def test_v1_macs(name, size, millions):
    assert summary(name, size=size).cost.macs / 1e6 == pytest.approx(millions, abs=0.05)


@pytest.mark.parametrize(
    ("name", "size", "millions"),
    [
        ("mobilevit_s", 256, 2033.4),
        ("mobilevit_xs", 256, 1052.2),
        ("mobilevit_xxs", 256, 418.2),
        ("mobilevit_s", 224, 1546.7),
        ("mobilevit_xs", 224, 792.6),
        ("mobilevit_xxs", 224, 309.9),
        ("mobilevitv2_050", 256, 480.5),
        ("mobilevitv2_075", 256, 1051.8),
        ("mobilevitv2_100", 256, 1843.8),
        ("mobilevitv2_125", 256, 2856.6),
        ("mobilevitv2_150", 256, 4090.1),
        ("mobilevitv2_175", 256, 5544.3),
        ("mobilevitv2_200", 256, 7219.2),
    ],
)
def test_macs_explain_what_fvcore_counts_in_the_authors_networks(name, size, millions):
    # fvcore adds 2 for each value of a batch norm's result, 5 for other norms, 4 for resizing, and
    # leaves out v2's context product, which the authors wrote elementwise: sum(keys * scores).
    extra = 0

    def count(module, inputs, output):
        nonlocal extra
        extra += (2 if isinstance(module, nn.BatchNorm2d) else 5) * output.numel()

    with torch.device("meta"):
        model, images = build(name).eval(), torch.empty(1, 3, size, size)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d | nn.LayerNorm | nn.GroupNorm):
            module.register_forward_hook(count)
    with torch.no_grad():
        model(images)
    if size == 224:  # stage5's 7 x 7 map becomes 8 x 8 tokens, and shrinks back
        extra += 4 * (8 * 8 + 7 * 7) * summary(name, size=size).stages[4].tokens.dim
    cost = summary(name, size=size).cost if size == 224 else table(size).costs[name]
    context = cost.attention if name.startswith("mobilevitv2") else 0
    assert (cost.macs - context + extra) / 1e6 == pytest.approx(millions, abs=0.05)


@pytest.mark.parametrize("name", list(VARIANTS))
def test_parameters_add_up_to_the_networks(name):
    with torch.device("meta"):
        expected = sum(weight.numel() for weight in build(name).parameters())
    assert table(256).costs[name].parameters == expected


@pytest.mark.parametrize("name", ["mobilevit_xxs", "mobilevitv2_050"])
@pytest.mark.parametrize(
    ("size", "options"),
    [
        (256, {}),
        (224, {}),
        (32, {"patch_sizes": (8, 4, 2)}),
        (250, {"patch_sizes": (8, 4, 2)}),
        (250, {"patch_sizes": (3, 3, 3)}),
        (250, {"output_stride": 8}),
    ],
)
def test_maps_strides_and_tokens(name, size, options):
    with torch.device("meta"):
        backbone = build(name, features_only=True, **options)
    *stages, classifier = summary(name, size=size, **options).stages
    assert [stage.shape[1:] for stage in stages] == backbone.feature_sizes(size, size)
    assert [stage.shape[0] for stage in stages] == [i.channels for i in backbone.feature_info]
    assert [stage.stride for stage in stages] == [i.stride for i in backbone.feature_info]
    assert (classifier.shape, classifier.stride, classifier.tokens) == ((1000,), None, None)
    assert [stage.tokens is not None for stage in stages] == [False, False, True, True, True]


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("deeplabv3_mobilevit_xxs", (21, 96, 96)),
        ("deeplabv3_mobilevitv2_050", (21, 96, 96)),
        ("pspnet_mobilevitv2_050", (21, 96, 96)),
        ("ssdlite_mobilevit_xxs", (310, 81)),
    ],
)
def test_other_heads_have_their_own_classes_strides_and_logits(name, shape):
    result = summary(name, size=96)
    *stages, head = result.stages
    assert (head.shape, head.stride) == (shape, None)
    assert stages[-1].stride == (32 if name.startswith("ssdlite_") else 16)
    with torch.device("meta"):
        network = build(name, num_classes=80 if name.startswith("ssdlite_") else 21)
    assert result.cost.parameters == sum(weight.numel() for weight in network.parameters())
    if not name.startswith("ssdlite_"):
        real = measure(build(name, num_classes=21), torch.zeros(1, 3, 96, 96))
        assert {stage.name: stage.cost for stage in result.stages} == real


@pytest.mark.parametrize("name", ["mobilevit_xs", "mobilevitv2_050", "pspnet_mobilevitv2_050"])
def test_macs_are_those_of_torchs_counter(name):
    network = build(name).eval()
    with torch.device("meta"):  # where attention is the two products that it is
        meta, images = build(name).eval(), torch.empty(1, 3, 96, 96)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        meta(images)
    macs = counter.get_total_flops() // 2
    assert summary(name, size=96).cost.macs == macs == count_macs(network, 96)


def test_macs_of_a_segmentation_head_by_hand():
    # XXS: 32 x 32 positions of 80 channels; ASPP of 256: 1x1, three 3x3, the mean, the projection.
    head = summary("deeplabv3_mobilevit_xxs", size=512).stages[-1]
    position = 80 * 256 * (1 + 3 * 9) + 5 * 256 * 256 + 256 * 21
    assert head.cost.macs == 32 * 32 * position + 80 * 256


@pytest.mark.parametrize("name", ["mobilevit_s", "mobilevit_xxs", "mobilevitv2_100"])
@pytest.mark.parametrize(
    ("size", "patches"), [(256, (2, 2, 2)), (250, (8, 4, 2)), (250, (3, 3, 3))]
)
def test_attention_is_counted_as_its_formula_says(name, size, patches):
    result = summary(name, size=size, patch_sizes=patches)
    for stage in (*result.stages, *result.doubled):
        expected = 0
        if stage.tokens:
            t = stage.tokens
            pairs = t.patches if t.separable else 2 * t.patches**2
            expected = t.layers * pairs * t.pixels * t.dim
        assert stage.cost.attention == expected


def test_attention_grows_with_the_square_of_the_area_in_v1_and_with_the_area_in_v2():
    for name, factor in (("mobilevit_s", 16), ("mobilevitv2_100", 4)):
        result = summary(name)
        for stage, double in zip(result.stages, result.doubled, strict=True):
            assert double.cost.attention == factor * stage.cost.attention


class Memory(nn.Module):
    """Peak by hand for a 3-channel image of n floats a channel: see the test."""

    def __init__(self, *, inplace: bool):
        super().__init__()
        self.widen = nn.Conv2d(3, 8, 3, padding=1)
        self.act = nn.SiLU(inplace=inplace)
        self.narrow = nn.Conv2d(8, 4, 1)

    def forward(self, x):
        return self.narrow(self.act(self.widen(x))).flatten(2).transpose(1, 2)


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize(("inplace", "channels"), [(True, 3 + 8 + 4), (False, 3 + 8 + 8)])
def test_peak_of_a_network_calculated_by_hand(device, inplace, channels):
    # In place: image, wide map and narrow map. Otherwise: image, wide map and its activation; the
    # first wide map is gone when the narrow one comes. Views never count.
    with torch.device(device):
        model, image = Memory(inplace=inplace), torch.zeros(1, 3, 16, 16)
    memory = CostCounter(image.nbytes)
    with torch.inference_mode(), memory:
        result = model(image)
    assert memory.peaks == {"": channels * 16 * 16 * 4}
    assert memory.alive == (3 + 4) * 16 * 16 * 4
    del result
    assert memory.alive == 3 * 16 * 16 * 4


@pytest.mark.parametrize("name", ["mobilevit_xxs", "mobilevitv2_050"])
@pytest.mark.parametrize(("size", "patches"), [(64, (2, 2, 2)), (90, (8, 4, 2))])
def test_costs_without_memory_are_those_of_real_tensors(name, size, patches):
    real = measure(build(name, patch_sizes=patches), torch.zeros(1, 3, size, size))
    stages = summary(name, size=size, patch_sizes=patches).stages
    assert {stage.name: stage.cost for stage in stages} == real


def test_peak_of_mobilevit_s_is_in_its_widest_inverted_residual():
    image, stage1 = 3 * 256 * 256, 32 * 128 * 128
    widened, filtered = 128 * 128 * 128, 128 * 64 * 64
    assert summary("mobilevit_s").cost.peak_bytes == 4 * (image + stage1 + widened + filtered)


def test_fused_attention_is_laid_out_as_the_query():
    # What the measurement on the meta device assumes of real kernels.
    q, k, v = (x.unflatten(-1, (4, 8)).transpose(1, 2) for x in torch.rand(2, 6, 96).chunk(3, -1))
    with torch.inference_mode():
        assert F.scaled_dot_product_attention(q, k, v).stride() == torch.empty_like(q).stride()


def test_the_largest_network_at_1024_px_takes_no_memory():
    resource = pytest.importorskip("resource")
    summary("mobilevitv2_050", size=64)  # what torch loads at its first use
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    cost = summary.__wrapped__("mobilevitv2_200", size=1024).cost  # not from the cache
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    # KiB on Linux, bytes on macOS; weights alone are 74 MB.
    assert grown * 1024 < 50e6 < cost.peak_bytes


def test_random_numbers_are_left_alone():
    state = torch.get_rng_state()
    describe(model="mobilevit_xxs", size=32)
    assert torch.equal(torch.get_rng_state(), state)


def test_summary_as_text():
    result = summary("mobilevit_s")
    text = str(result)
    lines = text.splitlines()
    assert lines[0].startswith("mobilevit_s at 256 x 256 px")
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    rows = {row[0]: row[1:] for row in cells[2:11]}
    assert rows["stage3"] == [
        *("96 x 32 x 32", "8", "4 x 256", "656,768", "377.7", "339.7", "151.0", "868.5", "7.5"),
    ]
    assert [*rows][-7:] == [*(stage.name for stage in result.stages), "total"]
    assert rows["total"][3:] == ["5,578,632", "1,092.4", "730.8", "177.6", "2,000.8", "13.4"]
    assert "2 x 2 x 256^2 x 4 x 144 = 151.0" in text
    assert "2 x 2 x 1024^2 x 4 x 144 = 2,415.9" in text
    assert "x 16.0" in text
    assert "O(N^2 P d)" in text
    assert "O(N P d)" in str(summary("mobilevitv2_050"))


def test_table_as_text():
    assert list(table(256).costs) == list(VARIANTS)
    for name in list(VARIANTS):
        assert f"| {name} " in str(table(256))
    assert table(256).costs["mobilevit_xs"] == summary("mobilevit_xs").cost


def test_text_is_plain_and_whole(monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    monkeypatch.setenv("FORCE_COLOR", "1")
    for text in (str(table(256)), str(summary("mobilevitv2_200", size=1024))):
        assert text.isascii()
        assert "\x1b" not in text
        assert "Not counted: biases" in " ".join(text.split())
        assert "1 MB = 10^6 bytes" in " ".join(text.split())
        rows = [line for line in text.splitlines() if line.startswith("|")]
        assert all(line.endswith("|") for line in rows)
        assert all(len(line) <= 100 for line in text.splitlines() if line not in rows)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"model": "mobilevit_m"}, "did you mean"),
        ({"size": 31}, "at least 32"),
        ({"size": 0}, "at least 32"),
        ({"size": -256, "model": "mobilevit_s"}, "at least 32"),
        ({"model": "mobilevit_s", "output_stride": 4}, "8, 16 or 32"),
        ({"model": "mobilevit_s", "patch_sizes": (0, 2, 2)}, "patch_sizes"),
        ({"model": "mobilevit_s", "num_classes": 0}, "num_classes"),
        ({"model": "deeplabv3_mobilevit_s", "num_classes": 0}, "num_classes"),
    ],
)
def test_options_out_of_range_are_refused(options, reason):
    with pytest.raises(ValueError, match=reason):
        describe(**options)


def test_results_can_not_be_changed():
    with pytest.raises(FrozenInstanceError):
        summary("mobilevit_xxs", size=32).size = 64


def test_published_checkpoints_are_listed_with_their_licence():
    text = str(describe(pretrained=True))
    rows = [row for row in text.splitlines() if ".apple_" in row]
    assert len(rows) == len(PUBLISHED)
    row = next(row for row in rows if "mobilevit_s.apple_in1k " in row)
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells == [
        "mobilevit_s.apple_in1k",
        "classification",
        "ImageNet-1k",
        "top-1 78.3",
        "256",
        "5.6",
        "yes",
        "cvnets/classification/mobilevit_s.pt",
    ]
    assert "Apple sample code licence" in text
    assert len(describe(pretrained=True, model="mobilevit_s").entries) == 4
    with pytest.raises(ValueError, match="'mobilevit_m'"):
        describe(pretrained=True, model="mobilevit_m")
