"""Serving the page: what the server refuses, where uploads lie, and how it ends."""

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from restoration.web.studio import Studio
from zoomiqa_reward.serving.connection import is_loopback

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

HEADERS = {
    b"content-security-policy": b"default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; "
    b"style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; object-src 'none'; frame-ancestors 'none'",
    b"x-content-type-options": b"nosniff",
    b"referrer-policy": b"no-referrer",
}
"""The browser loads nothing from elsewhere, whatever a component asks for. Gradio evaluates templates as scripts."""
OUTWARD = ("/gradio_api/file=http", "/gradio_api/proxy=")
"""Paths by which Gradio would fetch an address of the caller's choice."""


class OnlyThisMachine:
    """ASGI middleware: refuses what would reach outward, and tells the browser to load nothing from elsewhere."""

    def __init__(self, app: "ASGIApp") -> None:
        self.app = app

    async def __call__(self, scope: "Scope", receive: "Receive", send: "Send") -> None:
        """Answer one request."""
        from starlette.responses import PlainTextResponse

        async def send_with_headers(message: "Message") -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], *HEADERS.items()]
            await send(message)

        is_outward = scope["type"] == "http" and scope["path"].replace("//", "/").startswith(OUTWARD)
        answer = PlainTextResponse("not allowed", 403) if is_outward else self.app
        await answer(scope, receive, send_with_headers)


def require_password(host: str, token: str | None) -> None:
    """Raise ValueError if others can reach the address and need no password."""
    if token is None and not is_loopback(host):
        raise ValueError(f"--host {host}: others can reach this address, so set a password in ZOOMIQA_TOKEN")


@contextlib.contextmanager
def serve_page(
    studio: Studio, title: str, *, host: str = "127.0.0.1", port: int | None = None, token: str | None = None
) -> Iterator[str]:
    """Serve the page, give its address, and take it down at the end with all uploads.

    title: the model, in words. port: None takes the first free one from 7860. token: password of the user `zoomiqa`;
    every address but loopback needs one. Raises ValueError without it, OSError for a port that is taken.
    """
    require_password(host, token)
    with tempfile.TemporaryDirectory(prefix="zoomiqa-web-") as folder:  # readable by this user alone
        # Gradio reads both when it is imported or makes a component. What lies in its folder it deletes in time.
        os.environ |= {"GRADIO_ANALYTICS_ENABLED": "False", "GRADIO_TEMP_DIR": f"{folder}/uploads"}
        from starlette.middleware import Middleware
        from starlette.middleware.trustedhost import TrustedHostMiddleware

        from restoration.web.page import CSS, build_page, theme
        from restoration.web.samples import write_samples

        middleware = [Middleware(OnlyThisMachine)]
        if is_loopback(host):  # no other name may lead here: a foreign page could use one
            middleware.append(Middleware(TrustedHostMiddleware, allowed_hosts=["127.0.0.1", "localhost", "[::1]"]))
        page = build_page(studio, title, *write_samples(Path(folder)))
        try:
            _, url, _ = page.launch(
                server_name=host, server_port=port, share=False, quiet=True, prevent_thread_lock=True, show_error=False,
                allowed_paths=[], max_file_size=studio.limits.max_upload_mib << 20, ssr_mode=False,
                enable_monitoring=False, auth=None if token is None else ("zoomiqa", token), theme=theme(), css=CSS,
                app_kwargs={"middleware": middleware},
            )  # fmt: skip
        except OSError as error:
            raise OSError(f"--port {port}: cannot listen there; leave it out to take the first free one") from error
        try:
            yield url
        finally:
            page.close(verbose=False)
