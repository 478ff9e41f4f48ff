# SPDX-License-Identifier: BSD-3-Clause
"""A web server of a folder on this machine, which can lose connections and refuse ranges."""

import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


class FileServer:
    """The address of the server, its requests, and its faults."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.requests: list[tuple[str, str, str | None]] = []  # method, path and range
        self.has_ranges = True
        self.drop_after: int | None = None  # bytes of a response
        self.num_drops = 0  # responses that are still cut
        self.address = ""

    def num_bytes_asked(self, name: str) -> int:
        """Sum of the ranges of a file."""
        ranges = [wanted for method, path, wanted in self.requests if method == "GET" and path == f"/{name}"]
        bounds = [re.fullmatch(r"bytes=(\d+)-(\d+)", wanted or "") for wanted in ranges]
        return sum(int(match[2]) - int(match[1]) + 1 for match in bounds if match)


@contextmanager
def serve_files(folder: Path) -> Iterator[FileServer]:
    """Serves a folder until the block ends."""
    state = FileServer(folder)

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self._answer(has_body=False)

        def do_GET(self) -> None:
            self._answer(has_body=True)

        def log_message(self, *args: object) -> None:
            pass

        def _answer(self, *, has_body: bool) -> None:
            state.requests.append((self.command, self.path, self.headers.get("Range")))
            path = folder / self.path.partition("?")[0].strip("/")
            if not path.exists():
                self.send_error(404)
                return
            content = _listing(path) if path.is_dir() else path.read_bytes()
            wanted = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", "")) if state.has_ranges else None
            start, stop = (int(wanted[1]), min(int(wanted[2]) + 1, len(content))) if wanted else (0, len(content))
            self.send_response(206 if wanted else 200)
            if wanted:
                self.send_header("Content-Range", f"bytes {start}-{stop - 1}/{len(content)}")
            self.send_header("Content-Length", str(stop - start))
            self.send_header("Content-Type", "text/html" if path.is_dir() else "application/octet-stream")
            self.send_header("ETag", f'"{path.stat().st_mtime_ns}"')
            self.end_headers()
            if has_body:
                self.wfile.write(self._cut(content[start:stop]))

        def _cut(self, content: bytes) -> bytes:
            if state.drop_after is None or not state.num_drops or len(content) <= state.drop_after:
                return content
            state.num_drops -= 1
            self.close_connection = True
            return content[: state.drop_after]

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    state.address = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield state
    finally:
        server.shutdown()
        server.server_close()


def _listing(folder: Path) -> bytes:
    names = [f"{path.name}/" if path.is_dir() else path.name for path in folder.iterdir()]
    return "".join(f'<a href="{name}">{name}</a>' for name in sorted(names, reverse=True)).encode()
