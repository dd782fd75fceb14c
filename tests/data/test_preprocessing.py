"""From an image to the tensor that weights expect."""

import numpy as np
import pytest
import torch
from PIL import Image

from mobilevit.data.images import open_image
from mobilevit.data.preprocessing import frame_image, image_to_tensor, preprocess
from mobilevit.models.config import Preprocessing


def test_solid_red_is_blue_green_red_for_the_authors_weights():  # A7
    red = Image.new("RGB", (40, 30), (255, 0, 0))
    rgb = preprocess(red, Preprocessing(resize=32, crop=32))
    bgr = preprocess(red, Preprocessing(resize=32, crop=32, channel_order="bgr"))
    assert rgb.shape == bgr.shape == (3, 32, 32)
    assert rgb.amax((1, 2)).tolist() == rgb.amin((1, 2)).tolist() == [1, 0, 0]
    assert bgr.amax((1, 2)).tolist() == bgr.amin((1, 2)).tolist() == [0, 0, 1]


def test_three_forms_of_a_image_give_one_tensor():  # A8
    hwc = np.arange(18, dtype=np.uint8).reshape(2, 3, 3) * 14
    forms = [
        open_image(np.ascontiguousarray(hwc.transpose(2, 0, 1)), layout="CHW"),
        open_image(hwc, layout="HWC"),
        open_image(Image.fromarray(hwc)),
    ]
    for order, channels in (("rgb", [0, 1, 2]), ("bgr", [2, 1, 0])):
        preprocessing = Preprocessing(channel_order=order)
        expected = torch.from_numpy(hwc[:, :, channels].copy()).permute(2, 0, 1) / 255
        for form in forms:
            assert torch.equal(image_to_tensor(form, preprocessing), expected)


def _columns(width: int, height: int) -> Image.Image:
    """An image whose red is the column and whose green is the row, modulo 256."""
    rows, columns = np.mgrid[0:height, 0:width]
    return Image.fromarray(np.uint8(np.stack((columns % 256, rows % 256, rows * 0), -1)))


def test_short_side_288_then_the_centre():  # A9: 400x300 becomes 384x288, of which 64..319
    image = _columns(384, 288)
    framed = np.asarray(frame_image(image, Preprocessing()))
    assert framed.shape == (256, 256, 3)
    assert framed[0, :, 0].tolist() == [column % 256 for column in range(64, 320)]
    assert framed[:, 0, 1].tolist() == [row % 256 for row in range(16, 272)]
    assert frame_image(_columns(400, 300), Preprocessing()).size == (256, 256)


def test_an_odd_margin_is_rounded_to_even():  # A9
    framed = np.asarray(frame_image(_columns(289, 288), Preprocessing()))
    assert framed[0, 0].tolist() == [16, 16, 0]  # 16.5 -> 16
    framed = np.asarray(frame_image(_columns(291, 288), Preprocessing()))
    assert framed[0, 0].tolist() == [18, 16, 0]  # 17.5 -> 18


def test_another_size_keeps_the_margins_share():
    assert Preprocessing().at(160) == Preprocessing(resize=180, crop=160)
    assert Preprocessing(resize=384, crop=384).at(200) == Preprocessing(resize=200, crop=200)


def test_small_and_narrow_images_are_framed():
    for size in ((1, 1), (1, 300), (2000, 3), (1, 60_000)):
        assert frame_image(Image.new("RGB", size), Preprocessing(resize=36, crop=32)).size == (
            32,
            32,
        )


def test_the_ends_of_a_strip_do_not_matter():
    strip = _columns(400, 10)
    preprocessing = Preprocessing(resize=36, crop=32)
    short = frame_image(strip.crop((120, 0, 280, 10)), preprocessing)
    assert np.array_equal(np.asarray(frame_image(strip, preprocessing)), np.asarray(short))


def test_mean_and_std():
    grey = Image.new("RGB", (32, 32), (51, 102, 153))
    preprocessing = Preprocessing(resize=32, crop=32, mean=(0.2, 0.2, 0.2), std=(0.5, 0.5, 0.1))
    assert torch.allclose(preprocess(grey, preprocessing)[:, 0, 0], torch.tensor([0.0, 0.4, 4.0]))


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((300, 400), (512, 672)),  # 682.7 is rounded down
        ((400, 300), (672, 512)),
        ((512, 512), (512, 512)),
        ((513, 512), (512, 512)),
        ((1, 1), (512, 512)),
        ((1, 1500), (512, 8192)),  # no longer than 16 times its short side
    ],
)
def test_a_whole_image_keeps_its_shape_in_steps_of_32(size, expected):
    preprocessing = Preprocessing(resize_mode="shortest_edge", resize=512, crop=512)
    assert preprocessing.size(*size) == expected


def test_short_keeps_all_of_the_image():
    preprocessing = Preprocessing(resize_mode="shortest_edge", resize=96, crop=96)
    framed = np.asarray(frame_image(_columns(240, 192), preprocessing))
    assert framed.shape == (96, 96, 3)  # 120 is rounded down
    framed = np.asarray(frame_image(_columns(192, 96), preprocessing))
    assert np.array_equal(framed, np.asarray(_columns(192, 96)))
    assert preprocess(_columns(100, 200), preprocessing).shape == (3, 192, 96)
    assert frame_image(_columns(100, 200), preprocessing.at(64)).size == (64, 128)
    assert frame_image(_columns(100, 200), preprocessing.at(70)).size == (64, 128)


def test_sizes_of_the_other_fits_are_squares():
    for preprocessing in (
        Preprocessing(),
        Preprocessing(resize_mode="stretch", resize=256, crop=256),
    ):
        assert preprocessing.size(100, 300) == (256, 256)
        assert frame_image(Image.new("RGB", (300, 100)), preprocessing).size == (256, 256)


@pytest.mark.parametrize(
    "wrong",
    [
        {"crop": 300},
        {"crop": 0},
        {"channel_order": "gbr"},
        {"interpolation": "cubic"},
        {"resize_mode": "long"},
        {"resize": 512, "resize_mode": "shortest_edge"},
        {"resize": 16, "crop": 16, "resize_mode": "shortest_edge"},
    ],
)
def test_rules_without_meaning_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Preprocessing(**wrong)
