"""The command `mobilevit serve`: a model's page in the browser of this machine, or of a phone."""

from __future__ import annotations

import ipaddress
import logging
import ssl
import tempfile
import webbrowser
from collections.abc import Sequence
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from socket import AF_INET6
from typing import Any

from mobilevit.commands.export import export
from mobilevit.exports.backends.web.backend import is_page
from mobilevit.exports.spec import ExportError
from mobilevit.models.registry import Network

log = logging.getLogger(__name__)

HEADERS = {
    # The first two let the page use threads: browsers give them to isolated pages alone.
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Embedder-Policy": "require-corp",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-cache",  # a page that was exported anew is shown anew
    "X-Content-Type-Options": "nosniff",
}
TYPES = {
    ".css": "text/css; charset=utf-8",
    ".gz": "application/octet-stream",  # the page unpacks it itself
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".json": "application/json",
    ".mjs": "text/javascript; charset=utf-8",
    ".onnx": "application/octet-stream",
    ".png": "image/png",
    ".svg": "image/svg+xml",
    ".wasm": "application/wasm",
    "": "application/octet-stream",
}
"""By a file's ending; not what the machine says of these, which may be wrong."""


def serve(
    model: str | Path | Network,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    certificate: str | None = None,
    key: str | None = None,
    open: bool = False,
    images: Sequence[str] | None = None,
    classes: str | None = None,
    preprocessing: dict[str, Any] | None = None,
    runtime_tarball: str | None = None,
) -> None:
    """Show a model's page at a local address, until Ctrl-C.

    A model is exported as a page into a temporary folder first; see `export`. The server is for
    trying out, on this machine or among friends: to publish a page, copy its folder to any host of
    static files.

    Args:
        model: whatever `load` reads, or the folder of a page that was exported.
        host: the address to serve at. By default this machine alone can open the page; 0.0.0.0
            lets every machine of the network.
        port: of the address; 0 takes any that is free.
        certificate: PEM file, to serve by https: browsers give other machines' pages the camera,
            threads and WebGPU by https alone.
        key: PEM file of its private key, where that is not in the same file.
        open: open the page in the browser of this machine.
        images: of a model: as for `export`; the first is in the page.
        classes: of a model: as for `export`.
        preprocessing: of a model: as for `export`.
        runtime_tarball: of a model: as for `export`.

    Raises:
        ExportError: no such page can be made, or the options do not fit each other.
        CheckpointError: the model cannot be read.
        OSError: the address cannot be served at, or the certificate not be read.
    """
    if key is not None and certificate is None:
        raise ExportError("key is for https: give certificate too")
    of_model: dict[str, Any] = {
        "images": images,
        "classes": classes,
        "preprocessing": preprocessing,
        "runtime_tarball": runtime_tarball,
    }
    ready = isinstance(model, str | Path) and is_page(Path(model))
    given = [name for name, value in of_model.items() if value is not None]
    if ready and given:
        raise ExportError(f"{model} is a page already; {', '.join(given)} is for models")
    with tempfile.TemporaryDirectory(prefix="mobilevit-page.") as temporary:
        folder = Path(temporary) / "page"
        # Ahead of the export, which takes a while: the port may be taken.
        with server_of(folder, host, port, certificate=certificate, key=key) as server:
            if isinstance(model, str | Path) and ready:
                server.folder = Path(model)
            else:
                print(export(model, out=str(folder), format="web", **of_model), flush=True)
            print(_hints(server), flush=True)
            if open:
                webbrowser.open(server.address)
            try:
                server.serve_forever()
            except KeyboardInterrupt:
                log.info("stopped")


class PageServer(ThreadingHTTPServer):
    """Serves one folder."""

    def __init__(self, folder: Path, host: str, port: int, secure: ssl.SSLContext | None) -> None:
        """Take the address; see `server_of`."""
        self.folder, self.secure = folder, secure
        if ":" in host:
            self.address_family = AF_INET6
        super().__init__((host, port), PageHandler)

    @property
    def address(self) -> str:
        """Where the page is, for a browser of this machine."""
        host, port = self.server_address[:2]
        host = {"0.0.0.0": "localhost", "::": "localhost"}.get(str(host), str(host))
        name = f"[{host}]" if ":" in host else host
        return f"{'https' if self.secure else 'http'}://{name}:{port}/"

    def finish_request(self, request: Any, client_address: Any) -> None:
        """Answer one connection, in its own thread."""
        if self.secure is not None:
            # Not on the listening socket: one client that is slow to greet would block all others.
            request = self.secure.wrap_socket(request, server_side=True)
        PageHandler(request, client_address, self, directory=str(self.folder))
        if self.secure is not None:
            request.close()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say in a line what broke off; browsers do so whenever they like."""
        log.debug("a connection of %s broke off", client_address, exc_info=True)


class PageHandler(SimpleHTTPRequestHandler):
    """Gives files of a folder, with the headers that the page needs."""

    protocol_version = "HTTP/1.1"
    timeout = 60
    extensions_map = TYPES

    def end_headers(self) -> None:
        """Add the headers."""
        for name, value in HEADERS.items():
            self.send_header(name, value)
        super().end_headers()

    def list_directory(self, path: Any) -> None:
        """Give no lists of files."""
        self.send_error(404, "File not found")

    def log_message(self, format: str, *args: Any) -> None:
        """Keep quiet but for those who debug."""
        log.debug(format, *args)


def server_of(
    folder: Path,
    host: str = "127.0.0.1",
    port: int = 0,
    *,
    certificate: str | None = None,
    key: str | None = None,
) -> PageServer:
    """A server of a folder that has its address and does not answer yet; see `serve`.

    Raises:
        OSError: the address cannot be had, or the certificate not be read.
    """
    secure = None
    if certificate is not None:
        secure = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        try:
            secure.load_cert_chain(certificate, key)
        except OSError as error:  # ssl's own errors are of this kind, and name no file
            files = certificate if key is None else f"{certificate} with {key}"
            raise OSError(f"{files} cannot be used for https: {error}") from error
    try:
        return PageServer(folder, host, port, secure)
    except OverflowError as error:
        raise OSError(f"port must be from 0 to 65535, not {port}") from error
    except OSError as error:
        raise OSError(f"cannot serve at {host}, port {port}: {error}; try --port 0") from error


def _hints(server: PageServer) -> str:
    """The address, and what other machines need."""
    lines = [f"{server.address}  (Ctrl-C ends it)"]
    host, port = server.server_address[:2]
    if not _is_loopback(str(host)):
        lines.append(f"  other machines: the same with this machine's address, port {port}")
        if server.secure is None:
            lines.append(
                "  by http browsers give other machines no camera, no threads and no WebGPU: give "
                "--certificate, or forward the port to the phone (docs/web.md)"
            )
    return "\n".join(lines)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
