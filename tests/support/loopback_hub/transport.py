"""HTTP with faults: requests read whole or cut short, answered, refused or left without an answer."""

from __future__ import annotations

import json
import re
from http.server import BaseHTTPRequestHandler
from typing import ClassVar
from urllib.parse import unquote, urlsplit


class RefusedError(Exception):
    """An answer that is an error."""

    def __init__(self, status: int, message: str, code: str | None = None):
        super().__init__(message)
        self.status, self.code = status, code


class FaultyHandler(BaseHTTPRequestHandler):
    """Finds the route of a request and answers with what it returns: status, headers, body."""

    hub: ClassVar
    ROUTES: ClassVar[tuple[tuple[str, str, str], ...]] = ()
    protocol_version = "HTTP/1.1"

    def log_message(self, *args) -> None:
        pass

    def answer(self) -> None:
        path = urlsplit(self.path).path
        self.hub.requests.append((self.command, unquote(path)))
        fault = self.hub.take_fault(self.command, path)
        kind = None if fault is None else fault.kind
        self.body = self._read(is_half=kind == "drop")
        if kind == "hang":
            self.hub.is_hanging.set()
            self.hub.is_closed.wait()
        if kind not in ("hang", "drop"):
            reply = self._reply(path, RefusedError(fault.status, fault.message) if kind == "status" else None)
            if kind != "lost_reply":
                self._send(*reply)
                return
        self.close_connection = True

    def _reply(self, path: str, failure: RefusedError | None) -> tuple[int, dict[str, str], bytes]:
        try:
            if failure is not None:
                raise failure
            for method, pattern, name in self.ROUTES:
                match = re.fullmatch(pattern, path) if method == self.command else None
                if match:
                    groups = {key: value and unquote(value) for key, value in match.groupdict().items()}
                    with self.hub.lock:
                        return getattr(self, name)(**groups)
            raise RefusedError(404, "There is no such route.")
        except RefusedError as refusal:
            headers = {"X-Error-Message": str(refusal)} | ({"X-Error-Code": refusal.code} if refusal.code else {})
            return refusal.status, headers, json.dumps({"error": str(refusal)}).encode()

    def _send(self, status: int, headers: dict[str, str], content: bytes) -> None:
        self.send_response(status)
        for key, value in {"Content-Length": str(len(content)), **headers}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    do_GET = do_POST = do_PUT = do_HEAD = answer  # noqa: N815

    def _read(self, is_half: bool) -> bytes:
        if self.headers.get("Transfer-Encoding") == "chunked":
            chunks = []
            while size := int(self.rfile.readline(), 16):
                chunks.append(self.rfile.read(size))
                self.rfile.readline()
                if is_half:
                    break
            else:
                self.rfile.readline()
            return b"".join(chunks)
        size = int(self.headers.get("Content-Length") or 0)
        return self.rfile.read(size // 2 if is_half else size)
