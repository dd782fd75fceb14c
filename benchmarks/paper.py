"""The speeds that the MobileViT paper reports, and a table of them next to ours.

Mehta and Rastegari, MobileViT, ICLR 2022: Tables 3, 10 and 11, Figures 8 and the text on patch
sizes. Milliseconds are theirs on an iPhone 12, Core ML, full precision, batch 1, mean of 100 runs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from mobilevit.commands.benchmark.report import Benchmark
from mobilevit.utils.tables import markdown

B = ":patch_sizes=8,4,2"
"""Configuration B: patches of 8, 4 and 2 pixels at strides 8, 16 and 32; A has 2, 2 and 2."""


class Reported(NamedTuple):
    """Of one network."""

    title: str
    neural_engine: float | None = None
    """Milliseconds."""
    cpu: float | None = None
    """Milliseconds, on the phone's."""
    accuracy: float | None = None
    """Top-1, COCO AP or VOC mean IoU in per cent; of XXS the authors' later figure."""


TABLE3 = {
    "timm:mobilenetv2_100": Reported("MobileNetV2", 0.92, 7.50, 73.3),
    "timm:deit_tiny_patch16_224": Reported("DeiT", 10.99, 28.15, 72.2),
    "timm:pit_ti_224": Reported("PiT", 10.56, 24.03, 73.0),
    "mobilevit_xs": Reported("MobileViT-XS", 7.28, 17.86, 74.8),
}
"""Name -> the paper's figures; MobileViT at 256 px, the others at 224."""

FIGURE8 = {
    "mobilevit_xxs": Reported("XXS, A", accuracy=69.0),
    f"mobilevit_xxs{B}": Reported("XXS, B"),
    "mobilevit_xs": Reported("XS, A", 7.28, accuracy=74.8),
    f"mobilevit_xs{B}": Reported("XS, B", 5.93, accuracy=73.8),
    "mobilevit_s": Reported("S, A", 9.85, accuracy=78.4),
    f"mobilevit_s{B}": Reported("S, B", 8.20, accuracy=77.3),
    "ssdlite_mobilevit_xxs": Reported("SSDLite XXS, A", accuracy=19.9),
    f"ssdlite_mobilevit_xxs{B}": Reported("SSDLite XXS, B"),
    "ssdlite_mobilevit_xs": Reported("SSDLite XS, A", 12.6, accuracy=24.8),
    f"ssdlite_mobilevit_xs{B}": Reported("SSDLite XS, B", 10.7, accuracy=23.1),
    "ssdlite_mobilevit_s": Reported("SSDLite S, A", accuracy=27.7),
    f"ssdlite_mobilevit_s{B}": Reported("SSDLite S, B"),
    "deeplabv3_mobilevit_xxs": Reported("DeepLabv3 XXS, A", accuracy=73.6),
    f"deeplabv3_mobilevit_xxs{B}": Reported("DeepLabv3 XXS, B"),
    "deeplabv3_mobilevit_xs": Reported("DeepLabv3 XS, A", 32.3, accuracy=77.1),
    f"deeplabv3_mobilevit_xs{B}": Reported("DeepLabv3 XS, B", 25.1, accuracy=75.4),
    "deeplabv3_mobilevit_s": Reported("DeepLabv3 S, A", accuracy=79.1),
    f"deeplabv3_mobilevit_s{B}": Reported("DeepLabv3 S, B"),
}
"""Classification at 256 px, detection at 320, segmentation at 512."""


def processor_times(result: Benchmark) -> dict[tuple[str, str], float]:
    """Milliseconds of processor time by (model, runtime).

    On one thread this is the elapsed time of an idle machine, and other processes change it less.
    """
    return {(row.model, row.runtime): row.cpu_ms for row in result.rows if row.cpu_ms is not None}


def comparison(
    times: Mapping[tuple[str, str], float],
    reported: Mapping[str, Reported],
    runtimes: Sequence[str],
) -> str:
    """A table of the paper's milliseconds and ours, each also as a multiple of the first row's."""
    found = [runtime for runtime in runtimes if any(key[1] == runtime for key in times)]
    columns: dict[str, list[float | None]] = {
        "iPhone 12, neural engine": [one.neural_engine for one in reported.values()],
        "iPhone 12, CPU": [one.cpu for one in reported.values()],
        **{runtime: [times.get((name, runtime)) for name in reported] for runtime in found},
    }
    columns = {head: values for head, values in columns.items() if any(values)}
    rows = [
        (one.title, *(_cell(values[place], values[0]) for values in columns.values()))
        for place, one in enumerate(reported.values())
    ]
    return markdown(("ms (as a multiple of the first row's)", *columns), rows)


def _cell(value: float | None, first: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.2f}" if not first else f"{value:.2f} ({value / first:.2f})"
