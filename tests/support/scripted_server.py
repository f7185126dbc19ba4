"""A scripted OpenAI-compatible server on the loopback, and what its tests say and read."""

import base64
import io
import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from PIL import Image
from tiny import tiny_protocol

from zoomiqa_reward import ZoomIQA
from zoomiqa_reward.images import load_image, to_pil

THINK = "<think>Image Quality Summary: soft. Issues to Avoid: noise.</think>"
ZOOM = THINK + '<answer>{"bbox_2d": [0.1, 0.1, 0.6, 0.7], "rating": 2.5, "tool": "crop"}</answer>'
FINAL = THINK + '<answer>{"bbox_2d": [0, 0, 0, 0], "rating": 3.25, "tool": "final"}</answer>'
SECOND = '<think>Crop Inspection Summary: fine.</think><answer>{"bbox_2d": [0], "rating": 4, "tool": "final"}</answer>'


def reply(text, logprobs=None, finish="stop", **more):
    message = {"role": "assistant", "content": text} | more
    choice = {"index": 0, "message": message, "finish_reason": finish}
    return 200, {"choices": [choice | ({} if logprobs is None else {"logprobs": {"content": logprobs}})]}


def token(text, logprob=0.0, alternatives=()):
    """One entry of the log-probabilities; the written token is among the alternatives, as vLLM does it."""
    listed = {text: logprob} | dict(alternatives)
    entries = [{"token": t, "logprob": p, "bytes": list(t.encode())} for t, p in listed.items()]
    return entries[0] | {"top_logprobs": entries}


class Script:
    """`answer(body, count)` gives (status, JSON or bytes); keeps what was asked and how many asked at once."""

    def __init__(self, answer):
        self.answer, self.bodies, self.keys = answer, [], []
        self.lock, self.running, self.most = threading.Lock(), 0, 0

    def __call__(self, body, key):
        with self.lock:
            self.bodies.append(body)
            self.keys.append(key)
            self.running += 1
            self.most = max(self.most, self.running)
            count = len(self.bodies)
        try:
            return self.answer(body, count)
        finally:
            with self.lock:
                self.running -= 1


@contextmanager
def server(answer, **options):
    """A RemoteZoomIQA of the tiny protocol over a scripted server, and the script."""
    script = Script(answer)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            assert self.path == "/v1/chat/completions"
            status, data = script(body, self.headers["Authorization"])
            raw = data if isinstance(data, bytes) else json.dumps(data).encode()
            try:
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Retry-After-Ms", "5")  # or a test waits for the client's own pause
                self.send_header("Content-Length", str(len(raw)))
                self.end_headers()
                self.wfile.write(raw)
            except OSError:
                pass  # the client has gone: its time was up

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        options = {"protocol": tiny_protocol(), "max_retries": 2, "timeout_s": 20.0} | options
        try:
            url = f"http://127.0.0.1:{http.server_address[1]}/v1"
            with ZoomIQA.from_server(url, "served", **options) as iqa:
                yield iqa, script
        finally:
            http.shutdown()
            thread.join()


def always(text, **more):
    return lambda body, count: reply(text, **more)


def parts(body, kind):
    content = [m["content"] for m in body["messages"] if isinstance(m["content"], list)]
    return [item[kind] for items in content for item in items if item["type"] == kind]


def sent_images(body):
    urls = [item["url"] for item in parts(body, "image_url")]
    assert all(url.startswith("data:image/png;base64,") for url in urls)
    return [load_image(Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2])))) for url in urls]


def eight_bits(image):
    return load_image(to_pil(image))
