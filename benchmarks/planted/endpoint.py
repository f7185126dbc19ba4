"""A scripted OpenAI-compatible server: real HTTP, no model. For tries, tests and the measuring of filters.

It answers by a function of the request, counts tokens roughly, and can be told to be slow, to refuse, or to break off.
"""

import hashlib
import json
import threading
import time
from collections.abc import Callable, Collection, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Script = Callable[[Mapping[str, Any]], str]
"""From the body of a request to the text of the answer."""
CHARACTERS_PER_TOKEN = 4
TOKENS_PER_IMAGE = 500


class ScriptedServer:
    """Serves `/v1/chat/completions` on a free local port while it is entered."""

    def __init__(
        self, script: Script, *, delay_s: float = 0.0, statuses: Callable[[int], int] | None = None,
        refused: Collection[str] = (),
    ) -> None:  # fmt: skip
        """`delay_s`: before each answer. `statuses`: from the number of a request (from 0) to its HTTP status.

        `refused`: fields of a request that the server does not know: it answers with status 400 and names them.
        """
        self.bodies: list[dict[str, Any]] = []
        self.errors: list[Exception] = []
        self.busiest, self._open = 0, 0
        self._lock, self._script, self._delay_s = threading.Lock(), script, delay_s
        self._statuses, self._refused = statuses or (lambda _: 200), frozenset(refused)
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)

    @property
    def url(self) -> str:
        """What goes into `Endpoint.base_url`."""
        return f"http://127.0.0.1:{self._server.server_address[1]}/v1"

    def __enter__(self) -> "ScriptedServer":
        self._thread.start()
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
        if self.errors and kind is None:  # a script that fails is the caller's mistake, not an answer
            raise self.errors[0]

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with server._lock:
                    number = len(server.bodies)
                    server.bodies.append(body)
                    server._open += 1
                    server.busiest = max(server.busiest, server._open)
                time.sleep(server._delay_s)
                unknown = sorted(server._refused & body.keys())
                status = 400 if unknown else server._statuses(number)
                content: Mapping[str, Any] = {
                    "error": {"message": f"scripted refusal {status}\n{unknown}", "type": "scripted"}
                }
                if status == 200:
                    try:
                        content = completion(body, server._script(body))
                    except (AssertionError, LookupError, ValueError) as error:
                        server.errors.append(error)
                        status = 400  # no client tries that again
                with server._lock:
                    server._open -= 1
                self._send(status, content)

            def _send(self, status: int, content: Mapping[str, Any]) -> None:
                data = json.dumps(content).encode()
                try:
                    self.send_response(status)
                    self.send_header("Content-Type", "application/json")
                    self.send_header("Content-Length", str(len(data)))
                    if status in (429, 503):
                        self.send_header("Retry-After-Ms", "10")
                    self.end_headers()
                    self.wfile.write(data)
                except (BrokenPipeError, ConnectionResetError):
                    self.close_connection = True  # the client was killed; nothing is left to say

            def log_message(self, *_: object) -> None:
                """Say nothing: a request is no news."""

        return Handler


def completion(body: Mapping[str, Any], text: str) -> dict[str, Any]:
    """Return the answer's JSON."""
    asked = len(request_text(body)) // CHARACTERS_PER_TOKEN + TOKENS_PER_IMAGE * len(request_images(body))
    num_tokens = len(text) // CHARACTERS_PER_TOKEN
    return {
        "id": "scripted", "object": "chat.completion", "created": 0, "model": body["model"],
        "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": text}}],
        "usage": {"prompt_tokens": asked, "completion_tokens": num_tokens, "total_tokens": asked + num_tokens},
    }  # fmt: skip


def request_text(body: Mapping[str, Any]) -> str:
    """Return all text of a request."""
    return "\n".join(
        item if isinstance(item, str) else item.get("text", "")
        for message in body["messages"]
        for item in ([message["content"]] if isinstance(message["content"], str) else message["content"])
    )


def request_images(body: Mapping[str, Any]) -> list[str]:
    """Return a digest of each image of a request, as `url_digest` gives it."""
    return [
        url_digest(item["image_url"]["url"])
        for message in body["messages"]
        if not isinstance(message["content"], str)
        for item in message["content"]
        if item.get("type") == "image_url"
    ]


def url_digest(url: str) -> str:
    """Return what tells an image from others."""
    return hashlib.sha256(url.encode()).hexdigest()[:16]
