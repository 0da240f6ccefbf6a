"""A local chat-completions server: answers from a script, injects faults and records every call."""

from __future__ import annotations

import hashlib
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Script = Callable[[dict[str, Any]], str]


@dataclass(frozen=True)
class Fault:
    """The fault of one call.

    `kind` is one of: status (an error response with `status` and Retry-After), hang (no response), cut and cut_error (a
    truncated response), garbage (HTML instead of JSON), text (a complete answer with content `text`), length and filter
    (answers with another finish reason).
    """

    kind: str
    status: int = 500
    retry_after: str | None = None
    text: str = ""


#: Request body, its digest and how often it was received before -> the fault of this call, or None.
FaultScript = Callable[[dict[str, Any], str, int], Fault | None]


@dataclass
class ReceivedCall:
    """A call. `id` is the id of the completion, set after the completion was sent completely."""

    digest: str
    schema: str
    authorization: str
    id: str | None = None


class ScriptedServer(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def __init__(self, script: Script, fault_script: FaultScript | None, delay_seconds: float) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.script, self.fault_script, self.delay_seconds = script, fault_script, delay_seconds
        self.calls: list[ReceivedCall] = []
        self.num_open = self.max_open = 0
        self.times_received: dict[str, int] = {}
        self.lock = threading.Lock()
        self.closing = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"

    @property
    def answered(self) -> list[ReceivedCall]:
        """Returns the calls with a completely sent answer."""
        return [call for call in self.calls if call.id is not None]

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Ignores the broken pipe of a client that a test killed."""


@contextmanager
def serving(
    script: Script, fault_script: FaultScript | None = None, delay_seconds: float = 0.0
) -> Iterator[ScriptedServer]:
    server = ScriptedServer(script, fault_script, delay_seconds)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.closing.set()
        server.shutdown()
        server.server_close()
        thread.join()


def schema_name(body: dict[str, Any]) -> str:
    """Returns the name of the schema in the request, or an empty string."""
    return str(body.get("response_format", {}).get("json_schema", {}).get("name", ""))


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: ScriptedServer

    def do_POST(self) -> None:
        data = self.rfile.read(int(self.headers["Content-Length"]))
        body = json.loads(data)
        digest = hashlib.sha256(data).hexdigest()
        server = self.server
        call = ReceivedCall(digest, schema_name(body), self.headers.get("Authorization", ""))
        with server.lock:
            server.num_open += 1
            server.max_open = max(server.max_open, server.num_open)
            server.calls.append(call)
            repeat = server.times_received.get(digest, 0)
            server.times_received[digest] = repeat + 1
            number = len(server.calls)
        try:
            assert self.path == "/v1/chat/completions", self.path
            time.sleep(server.delay_seconds)
            fault = server.fault_script(body, digest, repeat) if server.fault_script is not None else None
            self._answer(call, body, fault, number)
        finally:
            with server.lock:
                server.num_open -= 1

    def _answer(self, call: ReceivedCall, body: dict[str, Any], fault: Fault | None, number: int) -> None:
        kind = fault.kind if fault is not None else "fine"
        if fault is not None and kind in ("status", "cut_error"):
            # Some real endpoints quote the key that they refuse.
            error = {"error": {"message": f"refused, said {self.headers.get('Authorization')}", "type": "test"}}
            self._send(fault.status, json.dumps(error).encode(), fault.retry_after, cut=kind == "cut_error")
            return
        if kind == "hang":
            self.server.closing.wait(60)
            return
        if kind == "garbage":
            self._send(200, b"<html>a proxy's page</html>")
            return
        text = fault.text if fault is not None and kind == "text" else self.server.script(body)
        reasons = {"length": "length", "filter": "content_filter"}
        if kind == "length":
            text = text[: len(text) // 2]
        message = {"role": "assistant", "content": None if kind == "filter" else text}
        words = sum(len(json.dumps(message["content"])) for message in body["messages"] if message["role"] != "user")
        record = {
            "id": f"call-{number}",
            "object": "chat.completion",
            "created": 0,
            "model": body["model"],
            "choices": [{"index": 0, "finish_reason": reasons.get(kind, "stop"), "message": message}],
            # Equal requests must report equal usage. The pictures do not count.
            "usage": {"prompt_tokens": 100 + words // 4, "completion_tokens": len(text) // 4, "total_tokens": 0},
        }
        self._send(200, json.dumps(record).encode(), cut=kind == "cut")
        if kind != "cut":
            call.id = f"call-{number}"

    def _send(self, status: int, data: bytes, retry_after: str | None = None, cut: bool = False) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        if retry_after is not None:
            self.send_header("Retry-After", retry_after)
        self.end_headers()
        self.wfile.write(data[: len(data) // 2] if cut else data)
        if cut:
            self.close_connection = True

    def log_message(self, format: str, *arguments: Any) -> None:
        """Prints nothing."""
