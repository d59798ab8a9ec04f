"""A small server in OpenAI's form, on a real socket, that says what it is told and fails as it is told."""

import json
import socket
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

Reply = Callable[[str, dict], str]  # from path ("completions" or "chat") and body


@dataclass
class Fault:
    """What a request meets instead of an answer: a status, a cut connection, garbage, or a long wait before all."""

    status: int = 200
    headers: dict = field(default_factory=dict)
    cut: bool = False
    body: str | None = None
    delay_s: float = 0.0


@dataclass
class OpenAiServer:
    """`fault(number)` tells what request `number` (of those that write, counted from 0) meets; None: an answer."""

    reply: Reply
    fault: Callable[[int], Fault | None] = lambda number: None
    models: tuple[dict, ...] = ({"id": "tiny", "owned_by": "vllm", "max_model_len": 100_000},)
    takes_ids: bool = True
    delay_s: float = 0.0
    requests: list[dict] = field(default_factory=list)  # bodies, with "path" and "time"
    headers: list[dict] = field(default_factory=list)
    most_at_once: int = 0

    def __enter__(self) -> "OpenAiServer":
        self._at_once, self._lock = 0, threading.Lock()
        outer = self

        class Handler(_Handler):
            server_of_test = outer

        self._http = _Http(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._http.server_port}"
        threading.Thread(target=self._http.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_) -> None:
        self._http.shutdown()
        self._http.server_close()

    def written(self) -> list[dict]:
        """The requests for samples: neither those of the judge nor the probe of one token."""
        return [r for r in self.requests if "prompt" in r and r["max_tokens"] > 1]

    def judged(self) -> list[dict]:
        return [r for r in self.requests if "messages" in r]

    def note(self, path: str, body: dict, headers: dict) -> int:
        with self._lock:
            self.requests.append({**body, "path": path, "time": time.monotonic()})
            self.headers.append(headers)
            self._at_once += 1
            self.most_at_once = max(self.most_at_once, self._at_once)
            return len(self.requests) - 1

    def leave(self) -> None:
        with self._lock:
            self._at_once -= 1


class _Http(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128  # by default 5, beyond which connections at once are reset

    def handle_error(self, request, client_address) -> None:
        """A client that was killed, or gave up waiting, is no news."""
        if not isinstance(sys.exc_info()[1], OSError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    server_of_test: OpenAiServer
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._send(200, json.dumps({"object": "list", "data": list(self.server_of_test.models)}))

    def do_POST(self) -> None:
        test = self.server_of_test
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        path = "chat" if self.path.endswith("/chat/completions") else "completions"
        number = test.note(path, body, dict(self.headers))
        try:
            self._answer(path, body, test.fault(number))
        finally:
            test.leave()

    def _answer(self, path: str, body: dict, fault: Fault | None) -> None:
        test = self.server_of_test
        time.sleep(fault.delay_s if fault and fault.delay_s else test.delay_s)
        if fault and fault.cut:
            self.connection.shutdown(socket.SHUT_RDWR)
            self.close_connection = True
        elif fault and (fault.status != 200 or fault.body is not None):
            said = fault.body if fault.body is not None else json.dumps({"error": {"message": "not now"}})
            self._send(fault.status, said, fault.headers)
        elif path == "completions" and not test.takes_ids:
            self._send(404, json.dumps({"error": {"message": "no such path"}}))
        else:
            self._send(200, json.dumps(_answer(path, body, test.reply(path, body))))

    def _send(self, status: int, text: str, headers: dict | None = None) -> None:
        content = text.encode()
        try:
            self.send_response(status)
            for name, value in (headers or {}).items():
                self.send_header(name, value)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)
        except OSError:
            self.close_connection = True  # who asked has gone

    def log_message(self, *_) -> None: ...


def _answer(path: str, body: dict, text: str) -> dict:
    said = {"text": text} if path == "completions" else {"message": {"role": "assistant", "content": text}}
    usage = {"prompt_tokens": len(body.get("prompt", "")), "completion_tokens": len(text.split())}
    return {"choices": [{**said, "index": 0, "finish_reason": "stop"}], "usage": usage}
