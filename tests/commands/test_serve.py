"""The server of `mobilevit serve`."""

from __future__ import annotations

import http.client
import shutil
import ssl
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from mobilevit.__main__ import main
from mobilevit.commands.serve import PageServer, serve
from mobilevit.exports.spec import ExportError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """As much of a page as the server looks at."""
    page = tmp_path / "page"
    (page / "app").mkdir(parents=True)
    (page / "index.html").write_text("<p>page</p>")
    (page / "page.json").write_text("{}")
    (page / "app" / "main.js").write_text("//")
    (tmp_path / "secret.txt").write_text("not of the page")
    return page


def serving(folder: Path, **options: str) -> PageServer:
    server = PageServer(**options)
    server.serve_folder(folder)
    return server


@contextmanager
def running(server: PageServer) -> Iterator[PageServer]:
    """A server that answers."""
    with server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


def answer(connection: http.client.HTTPConnection, path: str) -> tuple[int, str, bytes]:
    """Status, type and content of what a server has at a path."""
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        assert response.headers["Cross-Origin-Opener-Policy"] == "same-origin"
        assert response.headers["Cross-Origin-Embedder-Policy"] == "require-corp"
        return response.status, response.headers["Content-Type"], response.read()
    finally:
        connection.close()


def test_this_machine_alone_gets_the_folder_alone(folder: Path) -> None:
    with running(serving(folder)) as server:
        assert server.server_address[0] == "127.0.0.1"
        port = server.server_port
        for path, expected in (
            ("/", (200, "text/html; charset=utf-8", b"<p>page</p>")),
            ("/app/main.js", (200, "text/javascript; charset=utf-8", b"//")),
        ):
            assert answer(http.client.HTTPConnection("127.0.0.1", port), path) == expected
        for path in ("/app/", "/../secret.txt", "/%2e%2e/secret.txt", "/nothing"):
            status, _, content = answer(http.client.HTTPConnection("127.0.0.1", port), path)
            assert status == 404 and b"not of the page" not in content, path


def test_links_out_of_the_folder_are_refused(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "index.html").write_text("not of the page")
    for name, target in (
        ("file.txt", tmp_path / "secret.txt"),
        ("relative.txt", Path("../secret.txt")),
        ("folder", tmp_path / "outside"),
        ("app/index.html", tmp_path / "outside" / "index.html"),
        ("inside.js", folder / "app" / "main.js"),
    ):
        (folder / name).symlink_to(target)
    (tmp_path / "linked").symlink_to(folder)
    for served in (folder, tmp_path / "linked"):  # the folder itself may be a link
        with running(serving(served)) as server:
            for path, status in (
                *(("/file.txt", 404), ("/relative.txt", 404), ("/app/", 404)),
                *(("/folder/", 404), ("/folder/index.html", 404)),
                *(("/inside.js", 200), ("/", 200)),
            ):
                connection = http.client.HTTPConnection("127.0.0.1", server.server_port)
                found, _, content = answer(connection, path)
                assert found == status and b"not of the page" not in content, path


def test_https(folder: Path, tmp_path: Path) -> None:
    if shutil.which("openssl") is None:
        pytest.skip("openssl makes the certificate, and is not here")
    certificate, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"]
    command += ["-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1"]
    command += ["-keyout", str(key), "-out", str(certificate)]
    subprocess.run(command, check=True, capture_output=True)
    context = ssl.create_default_context(cafile=str(certificate))
    server = serving(folder, certificate=str(certificate), key=str(key))
    with running(server):
        assert server.address.startswith("https://127.0.0.1:")
        connection = http.client.HTTPSConnection(
            "127.0.0.1", server.server_port, context=context, timeout=10
        )
        assert answer(connection, "/")[2] == b"<p>page</p>"
    with pytest.raises(OSError, match=r"key\.pem cannot be used for https"):
        serving(folder, certificate=str(key))


def test_what_cannot_be_served(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ExportError, match="give certificate too"):
        serve(folder, key="key.pem")
    with pytest.raises(ExportError, match="a page already; images is for models"):
        serve(folder, images=["a.jpg"])
    with pytest.raises(OSError, match="from 0 to 65535, not 70000"):
        serve(folder, port=70000)
    with pytest.raises(OSError, match=r"none\.pem cannot be used for https"):
        serve(folder, certificate=str(tmp_path / "none.pem"))
    with serving(folder) as taken, pytest.raises(OSError, match="try --port 0"):
        serve(folder, port=taken.server_port)
    assert main(["serve", str(tmp_path / "no model"), "--port", "0"]) == 1
    assert "no model" in capsys.readouterr().err
