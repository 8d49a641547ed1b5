"""A server of rewards that answers as a test says, for faults that a real one seldom has."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Answering:
    """Answers requests for rewards from a list of status, headers and body; then with the rewards that it reads off
    the rows (each completion is a number)."""

    def __init__(self, *answers):
        self.answers, self.bodies, self.headers, lock = list(answers), [], [], threading.Lock()
        self.models = {"data": [{"id": "tiny", "owned_by": "interdistill"}]}
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *args):
                pass

            def do_GET(self):
                assert self.path == "/v1/models"
                self.reply(200, {}, outer.models)

            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with lock:
                    outer.bodies.append(body)
                    outer.headers.append(self.headers)
                    status, headers, answer = outer.answers.pop(0) if outer.answers else (200, {}, None)
                if status == "drop":
                    self.close_connection = True
                    return
                answer = {"rewards": [float(text) for text in body["completions"]]} if answer is None else answer
                self.reply(status, headers, answer)

            def reply(self, status, headers, answer):
                content = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
                self.send_response(status)
                for name, value in {"Content-Length": str(len(content)), **headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(content)

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def __enter__(self):
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def __exit__(self, *exception):
        self.server.shutdown()
        self.server.server_close()
