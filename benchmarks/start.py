"""How long commands take to start, in fresh processes that take turns.

Prints medians of processor and wall time: of every command's help, of the package's import, and of
`mobilevit predict` of one photo next to a bare script that loads the same weights, decodes the
photo with Pillow and runs the network.

    python benchmarks/start.py --rounds 7
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image

import mobilevit
from mobilevit.__main__ import COMMANDS

BARE = """
import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file
from mobilevit.models.registry import build

model = build("mobilevit_xxs", num_classes=10).eval()
model.load_state_dict(load_file("model/model.safetensors"))
with Image.open("photo.jpg") as photo:
    image = photo.convert("RGB").resize((384, 288), Image.Resampling.BILINEAR)
pixels = np.array(image.crop((64, 16, 320, 272)))
x = torch.from_numpy(pixels).permute(2, 0, 1)[None] / 255
with torch.inference_mode():
    found = model(x).softmax(-1)[0].topk(5)
for share, number in zip(found.values.tolist(), found.indices.tolist()):
    print(f"{share:.1%} {number}")
"""


def commands() -> dict[str, list[str]]:
    run = [sys.executable, "-m", "mobilevit"]
    code = [sys.executable, "-c"]
    return {
        "import torch": [*code, "import torch"],
        "import torch, mobilevit": [*code, "import torch, mobilevit"],
        "bare script": [*code, BARE],
        "predict of one photo": [*run, "predict", "model", "photo.jpg"],
        **{f"{name} --help": [*run, name, "--help"] for name in COMMANDS},
    }


def run(command: list[str], folder: str) -> tuple[float, float]:
    """Seconds of processor and of wall time."""
    # A package that pip installs has bytecode; a checkout gets it in the first round.
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    start, before = time.perf_counter(), os.times()
    subprocess.run(command, cwd=folder, env=environment, check=True, stdout=subprocess.DEVNULL)
    after, seconds = os.times(), time.perf_counter() - start
    user = after.children_user - before.children_user
    return user + after.children_system - before.children_system, seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7, help="after one that does not count")
    rounds = parser.parse_args().rounds
    with tempfile.TemporaryDirectory() as folder:
        classes = [f"class {number}" for number in range(10)]
        torch.manual_seed(0)
        model = mobilevit.create_model("mobilevit_xxs", classes=classes)
        mobilevit.save(model, Path(folder) / "model")
        pixels = np.random.default_rng(0).integers(0, 255, (600, 800, 3), np.uint8)
        Image.fromarray(pixels).save(Path(folder) / "photo.jpg")
        times: dict[str, list[tuple[float, float]]] = {name: [] for name in commands()}
        for _ in range(rounds + 1):
            for name, command in commands().items():
                times[name].append(run(command, folder))
    print("| | processor time (s) | wall time (s) |\n|---|---|---|")
    for name, found in times.items():
        processor, wall = (statistics.median(column) for column in zip(*found[1:], strict=True))
        print(f"| {name} | {processor:.2f} | {wall:.2f} |")


if __name__ == "__main__":
    main()
