"""The command `mobilevit serve`: a model's page in the browser of this machine, or of a phone."""

import logging
import ssl
import tempfile
import webbrowser
from collections.abc import Sequence
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from socket import AF_INET6
from typing import Any

from mobilevit.commands.export import export
from mobilevit.exports.backends.web.backend import is_page
from mobilevit.exports.options import ExportOptions
from mobilevit.exports.spec import ExportError
from mobilevit.models.registry import Network

log = logging.getLogger(__name__)

HEADERS = {
    # Browsers allow threads in isolated pages only, which these two headers make it.
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Embedder-Policy": "require-corp",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-cache",  # a page that is exported again must be loaded again
    "X-Content-Type-Options": "nosniff",
}


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
    """Serve a model's page at a local address, until Ctrl-C.

    A model is first exported as a page into a temporary folder; see `export`. The server is for
    trying it out on this machine or in a local network: to publish a page, copy its folder to any
    host of static files.

    Args:
        model: whatever `load` reads, or the folder of an exported page.
        host: the address to serve at; by default only this machine can open the page, 0.0.0.0
            allows every machine of the network.
        port: of the address; 0 takes a free one.
        certificate: PEM file, to serve by https: only by https do browsers give the pages of
            other machines the camera, threads and WebGPU.
        key: PEM file of its private key, unless that is in the same file.
        open: open the page in the browser of this machine.
        images: of a model: as for `export`; the first is in the page.
        classes: of a model: as for `export`.
        preprocessing: of a model: as for `export`.
        runtime_tarball: of a model: as for `export`.

    Raises:
        ExportError: no such page can be written, or the options contradict each other.
        CheckpointError: the model cannot be read.
        OSError: the address cannot be used, or the certificate cannot be read.
    """
    if key is not None and certificate is None:
        raise ExportError("key is for https: give certificate too")
    options: dict[str, Any] = {
        "images": images,
        "classes": classes,
        "preprocessing": preprocessing,
        "runtime_tarball": runtime_tarball,
    }
    set_options = [name for name, value in options.items() if value is not None]
    page = Path(model) if isinstance(model, str | Path) and is_page(Path(model)) else None
    if page is not None and set_options:
        raise ExportError(f"{model} is a page already; {', '.join(set_options)} is for models")
    with (
        tempfile.TemporaryDirectory(prefix="mobilevit-page.") as temporary,
        # Ahead of the export, which takes a while: the port may be in use.
        PageServer(host, port, certificate=certificate, key=key) as server,
    ):
        if page is None:
            page = Path(temporary) / "page"
            export_options = ExportOptions(out=str(page), format="web", **options)
            print(export(model, export_options), flush=True)
        server.serve_folder(page)
        print(_hints(server), flush=True)
        if open:
            webbrowser.open(server.address)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            log.info("stopped")


class PageServer(ThreadingHTTPServer):
    """Serves one folder by http, or by https."""

    def __init__(
        self,
        host: str = "127.0.0.1",
        port: int = 0,
        *,
        certificate: str | None = None,
        key: str | None = None,
    ) -> None:
        context = None if certificate is None else _ssl_context(certificate, key)
        self.scheme = "http" if context is None else "https"
        if ":" in host:
            self.address_family = AF_INET6
        try:
            super().__init__((host, port), PageHandler)
        except OverflowError as error:
            raise OSError(f"port must be from 0 to 65535, not {port}") from error
        except OSError as error:
            raise OSError(f"cannot serve at {host}, port {port}: {error}; try --port 0") from error
        if context is not None:
            # The handshake happens in a connection's own thread, so that a slow client does not
            # block the others.
            self.socket = context.wrap_socket(
                self.socket, server_side=True, do_handshake_on_connect=False
            )

    def serve_folder(self, folder: Path) -> None:
        self.RequestHandlerClass = partial(PageHandler, directory=str(folder))

    @property
    def address(self) -> str:
        """The URL of the page, for a browser on this machine."""
        host, port = self.server_address[:2]
        host = {"0.0.0.0": "localhost", "::": "localhost"}.get(str(host), str(host))
        return f"{self.scheme}://{f'[{host}]' if ':' in host else host}:{port}/"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Log an aborted connection for debugging only: browsers abort them at any time."""
        log.debug("the connection of %s was aborted", client_address, exc_info=True)


class PageHandler(SimpleHTTPRequestHandler):
    """Serves files, with the headers that the page needs."""

    protocol_version = "HTTP/1.1"
    timeout = 60
    # The system's table can be wrong about these, and with nosniff a script of another
    # type does not run.
    extensions_map = {  # noqa: RUF012
        ".css": "text/css; charset=utf-8",
        ".gz": "application/octet-stream",  # the page decompresses it itself
        ".html": "text/html; charset=utf-8",
        ".js": "text/javascript; charset=utf-8",
        ".json": "application/json",
        ".onnx": "application/octet-stream",
        ".png": "image/png",
        ".svg": "image/svg+xml",
        "": "application/octet-stream",
    }

    def send_head(self) -> Any:
        """Refuse files that symbolic links lead to outside the folder."""
        path = Path(self.translate_path(self.path))
        served = Path(self.directory).resolve()
        if not (path / "index.html" if path.is_dir() else path).resolve().is_relative_to(served):
            self.send_error(404, "File not found")
            return None
        return super().send_head()

    def end_headers(self) -> None:
        for name, value in HEADERS.items():
            self.send_header(name, value)
        super().end_headers()

    def list_directory(self, path: Any) -> None:
        self.send_error(404, "File not found")

    def log_message(self, format: str, *args: Any) -> None:
        """Log requests for debugging only."""
        log.debug(format, *args)


def _ssl_context(certificate: str, key: str | None) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        context.load_cert_chain(certificate, key)
    except OSError as error:  # includes ssl's errors, which name no file
        files = certificate if key is None else f"{certificate} with {key}"
        raise OSError(f"{files} cannot be used for https: {error}") from error
    return context


def _hints(server: PageServer) -> str:
    """The address, and how other machines reach it."""
    lines = [f"{server.address}  (Ctrl-C ends it)"]
    host, port = server.server_address[:2]
    if host not in ("127.0.0.1", "::1"):
        lines.append(f"  other machines: use this machine's address, port {port}")
        if server.scheme == "http":
            lines.append(
                "  by http browsers give other machines no camera, no threads and no WebGPU: give "
                "--certificate, or forward the port to the phone (docs/web.md)"
            )
    return "\n".join(lines)
