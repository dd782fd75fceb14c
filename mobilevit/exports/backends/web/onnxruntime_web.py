"""ONNX Runtime Web: one version, fetched from npm into the user's cache and checked by its hash."""

import base64
import gzip
import hashlib
import logging
import shutil
import subprocess
import tarfile
import tempfile
from pathlib import Path

import torch

from mobilevit.exports.spec import ExportError
from mobilevit.utils.files import lock_file

log = logging.getLogger(__name__)

NAME, VERSION = "onnxruntime-web", "1.30.0"
PACKAGE = f"{NAME}@{VERSION}"
INTEGRITY = (
    "sha512-"
    "q0y+JrrtukXSzsBWEMccVfqX25LRmosXHF+CaRJmg8pZClzcV7svNc4rKY3jL02Vb7QmRMDs1SigqR4CXAfKYQ=="
)
"""Of the package's tarball, as npm gives it."""
NPM_TIMEOUT = 900
"""Seconds; the tarball has 33 MB."""


BUILDS = {
    # Browsers run JavaScript only, and not every server knows that .mjs is JavaScript.
    "wasm": {
        "ort.wasm.js": "ort.wasm.bundle.min.mjs",
        "ort-wasm-simd-threaded.wasm.gz": "ort-wasm-simd-threaded.wasm",
    },
    "webgpu": {
        "ort.webgpu.js": "ort.webgpu.bundle.min.mjs",
        "ort-wasm-simd-threaded.asyncify.wasm.gz": "ort-wasm-simd-threaded.asyncify.wasm",
    },
}
"""By execution provider (WebGPU's falls back to WebAssembly): a page's module and WebAssembly ->
the files of the package."""


def cached() -> Path:
    """The path of the tarball, next to downloaded weights (`TORCH_HOME` moves it)."""
    return Path(torch.hub.get_dir()) / "mobilevit" / f"{NAME}-{VERSION}.tgz"


def provide(tarball: str | Path | None = None) -> Path:
    """Make sure that the runtime's tarball is in the cache: fetched once by npm, always checked.

    Args:
        tarball: a local copy of the tarball, used in place of npm.

    Raises:
        ExportError: it cannot be fetched, or is not the expected file.
        OSError: `tarball` cannot be read.
    """
    target = cached()
    target.parent.mkdir(parents=True, exist_ok=True)
    with lock_file(target):  # other processes may fetch it
        if tarball is None and target.is_file():
            if _integrity(target) == INTEGRITY:
                return target
            log.warning("%s is damaged: it is fetched again", target)
        with tempfile.TemporaryDirectory(prefix=".fetching.", dir=target.parent) as folder:
            fresh = Path(folder) / target.name
            if tarball is None:
                _by_npm(fresh)
            else:
                shutil.copyfile(tarball, fresh)
            if (found := _integrity(fresh)) != INTEGRITY:
                raise ExportError(
                    f"{tarball or PACKAGE} is not the expected file: its hash is {found}, not "
                    f"{INTEGRITY}. `npm pack {PACKAGE}` gives the right one"
                )
            fresh.replace(target)
    return target


def _by_npm(to: Path) -> None:
    by_hand = (
        f"On a machine with npm and network access, `npm pack {PACKAGE}` writes {to.name}: give "
        "that file once by --runtime_tarball"
    )
    npm = shutil.which("npm")
    if npm is None:
        raise ExportError(
            f"pages need {NAME} {VERSION}, which is fetched by npm, and npm is not installed: "
            f"install Node.js. {by_hand}"
        )
    log.info("fetching %s by npm (33 MB, once)", PACKAGE)
    command = [npm, "pack", PACKAGE, "--silent", "--ignore-scripts"]
    command += ["--pack-destination", str(to.parent)]
    try:
        done = subprocess.run(
            command, cwd=to.parent, capture_output=True, text=True, timeout=NPM_TIMEOUT, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise ExportError(f"npm did not fetch {PACKAGE} in {NPM_TIMEOUT} s. {by_hand}") from error
    if done.returncode or not to.is_file():
        output = done.stderr.strip() or done.stdout.strip() or f"exit code {done.returncode}"
        raise ExportError(f"npm could not fetch {PACKAGE}: {output}. {by_hand}")


def _integrity(file: Path) -> str:
    with file.open("rb") as opened:
        digest = hashlib.file_digest(opened, "sha512").digest()
    return f"sha512-{base64.b64encode(digest).decode()}"


def unpack(tarball: Path, folder: Path) -> None:
    """Write the files of the runtime that a page needs into an existing folder.

    WebAssembly is stored as gzip, a quarter of its size, since not every server compresses it.
    """
    with tarfile.open(tarball) as archive:
        for build in BUILDS.values():
            for name, origin in build.items():
                member = archive.extractfile(f"package/dist/{origin}")
                assert member is not None
                content = member.read()
                if name.endswith(".gz"):
                    content = gzip.compress(content, 9, mtime=0)
                (folder / name).write_bytes(content)
