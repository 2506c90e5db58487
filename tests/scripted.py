"""A scripted endpoint that speaks the real protocol."""

import hashlib
import json
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

FAULTS = ("429", "500", "timeout", "cut", "malformed", "slow")
TIMEOUT = 0.5  # seconds that clients of these tests wait
TALK = "Question: What is in it?\nAnswer: There is a {0} in the middle of the picture.\n"


def good_answer(body: dict, _nth: int) -> str:
    """An answer that the kinds of conf/instruct accept; it names what the request's first caption ends with."""
    thing = body["messages"][-1]["content"].splitlines()[1].split()[-1]
    system = body["messages"][0]["content"]
    reason = f"It is because the {thing} stands on the left of it, and that is where the light of the sun comes from."
    if "Think of one question" in system:
        return f"Question: Why is the {thing} bright?\nAnswer: {reason}"
    if "Describe the photograph at length" in system:
        return f"There is a {thing} in the picture. {reason} The rest of the scene is quiet, and there is a wall behind it."
    return TALK.format(thing) * 3


def chat_of(messages: list) -> str:
    """A short name of what is asked."""
    return hashlib.sha256(json.dumps(messages).encode()).hexdigest()


class Scripted:
    """The endpoint. `faults` is the share of calls that go wrong, in turn in each of the ways of FAULTS."""

    def __init__(self) -> None:
        self.answer: Callable[[dict, int], str] = good_answer
        self.faults = 0.0
        self.fault_kinds: tuple[str, ...] = FAULTS
        self.calls: list[str] = []  # "ok", or the fault
        self.starts: list[float] = []
        self.asked: list[str] = []  # the chat of each call
        self.answered: Counter[str] = Counter()  # whole answers sent, by chat
        self.keys: set[str] = set()
        self.body: dict = {}
        self.retry_after = "0.05"
        self.delay = 0.0  # seconds before every answer
        self._lock = threading.Lock()
        self._server = Server(self)
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self._server.server_port}/v1"

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def next_fault(self) -> str:
        """Faults come at an even share of the calls, whoever calls."""
        with self._lock:
            number = len(self.calls)
            due = int((number + 1) * self.faults) > int(number * self.faults)
            fault = self.fault_kinds[int(number * self.faults) % len(self.fault_kinds)] if due else "ok"
            self.calls.append(fault)
            self.starts.append(time.monotonic())
            return fault


class Server(ThreadingHTTPServer):
    """Listens on a port of its own choice."""

    daemon_threads = True

    def __init__(self, scripted: Scripted) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.scripted = scripted


class Handler(BaseHTTPRequestHandler):
    """Answers one client as `server.scripted` says."""

    protocol_version = "HTTP/1.1"
    server: "Server"

    def do_POST(self) -> None:
        scripted = self.server.scripted
        raw = self.rfile.read(int(self.headers["Content-Length"]))
        key = self.headers["Authorization"].removeprefix("Bearer ")
        scripted.keys.add(key)
        body = scripted.body = json.loads(raw)
        scripted.asked.append(chat_of(body["messages"]))
        fault = scripted.next_fault()
        if fault == "429":
            return self.say(429, {"error": {"message": f"slow down, {key}"}}, {"Retry-After": scripted.retry_after})
        if fault.isdigit():
            return self.say(int(fault), {"error": {"message": f"failed for {key}", "type": "x"}})
        time.sleep(scripted.delay + {"timeout": 1.6 * TIMEOUT, "slow": 0.4 * TIMEOUT}.get(fault, 0.0))
        known = chat_of(body["messages"])
        with scripted._lock:
            nth = scripted.answered[known]
            scripted.answered[known] += fault in {"ok", "slow"}
        text = scripted.answer(body, nth)
        return self.stream(text, fault) if body.get("stream") else self.whole(text, fault)

    def whole(self, text: str, fault: str) -> None:
        choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
        usage = {"prompt_tokens": 1000, "completion_tokens": 100, "total_tokens": 1100}
        reply = {"id": "1", "object": "chat.completion", "created": 1, "model": "m", "choices": [choice]}
        data = json.dumps(reply | {"usage": usage}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if fault == "cut":
            self.wfile.write(data[: len(data) // 2])
            self.close_connection = True
            return
        self.wfile.write(b"{" * len(data) if fault == "malformed" else data)

    def stream(self, text: str, fault: str) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        parts = [({"content": word}, None) for word in text.replace(" ", " \0").split("\0")]
        for number, (delta, finish) in enumerate([*parts, ({}, "stop")]):
            if number == 2 and fault == "cut":
                self.close_connection = True
                return
            self.event({"choices": [{"index": 0, "delta": delta, "finish_reason": finish}]}, fault)
        self.event({"choices": [], "usage": {"prompt_tokens": 1000, "completion_tokens": 100, "total_tokens": 1100}})
        self.chunk(b"data: [DONE]\n\n")
        self.chunk(b"")

    def event(self, content: dict, fault: str = "") -> None:
        head = {"id": "1", "object": "chat.completion.chunk", "created": 1, "model": "m"}
        data = json.dumps(head | content)
        self.chunk(f"data: {data[:-3] if fault == 'malformed' else data}\n\n".encode())

    def chunk(self, data: bytes) -> None:
        self.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")

    def say(self, status: int, content: dict, headers: dict[str, str] | None = None) -> None:
        data = json.dumps(content).encode()
        self.send_response(status)
        for name, value in (
            {"Content-Type": "application/json", "Content-Length": str(len(data))} | (headers or {})
        ).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: object) -> None: ...

    def handle(self) -> None:
        with suppress(BrokenPipeError, ConnectionResetError):  # the client has given up
            super().handle()
