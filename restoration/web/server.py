"""Serving the page: what the server refuses, where uploads lie, and how it ends."""

import contextlib
import ipaddress
import os
import socket
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from restoration.web.studio import Studio

POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; worker-src 'self' blob:; object-src 'none'; base-uri 'self'; frame-ancestors 'none'"
)
"""The browser loads nothing from elsewhere, whatever a component asks for. Gradio evaluates templates as scripts."""
OUTWARD = ("/gradio_api/file=http", "/file=http", "/gradio_api/proxy=", "/proxy=")
"""Paths by which Gradio would fetch an address of the caller's choice."""


@dataclass(frozen=True, kw_only=True)
class PageConfig:
    """Where the page is served, and for whom."""

    host: str = "127.0.0.1"
    port: int = 7860
    """0: a free one."""
    token: str | None = None
    """Password of the user `zoomiqa`; every address but loopback needs one."""
    max_upload_mib: int = 64

    def __post_init__(self) -> None:
        if self.token is None and not _is_loopback(self.host):
            raise ValueError(
                f"--host {self.host}: others can reach this address, so set a password: the variable ZOOMIQA_TOKEN"
            )


class OnlyThisMachine:
    """ASGI middleware: refuses what would reach outward, and tells the browser to load nothing from elsewhere."""

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def send_with_policy(message: Any) -> None:
            if message["type"] == "http.response.start":
                rules = {"content-security-policy": POLICY, "x-content-type-options": "nosniff",
                         "referrer-policy": "no-referrer"}  # fmt: skip
                message["headers"] = [
                    *message.get("headers", []),
                    *((k.encode(), v.encode()) for k, v in rules.items()),
                ]
            await send(message)

        if scope["path"].replace("//", "/").startswith(OUTWARD):
            from starlette.responses import PlainTextResponse

            await PlainTextResponse("not allowed", 403)(scope, receive, send_with_policy)
            return
        await self.app(scope, receive, send_with_policy)


@contextlib.contextmanager
def serve_page(studio: Studio, title: str, config: PageConfig) -> Iterator[str]:
    """Serve the page, give its address, and take it down at the end with all uploads.

    Raises OSError for a port that is taken.
    """
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    port = _free_port(config)
    with tempfile.TemporaryDirectory(prefix="zoomiqa-web-") as folder:  # readable by this user alone
        os.environ["GRADIO_TEMP_DIR"] = folder  # read when components are made
        from starlette.middleware import Middleware
        from starlette.middleware.trustedhost import TrustedHostMiddleware

        from restoration.web.page import CSS, build_page, theme
        from restoration.web.samples import write_samples

        samples = Path(folder) / "samples"
        samples.mkdir()
        page = build_page(studio, title, *write_samples(samples))
        middleware = [Middleware(OnlyThisMachine)]
        if _is_loopback(config.host):  # no other name may lead here: a foreign page could use one
            middleware.append(Middleware(TrustedHostMiddleware, allowed_hosts=["127.0.0.1", "localhost", "[::1]"]))
        page.launch(
            server_name=config.host, server_port=port, share=False, quiet=True, prevent_thread_lock=True,
            allowed_paths=[], max_file_size=config.max_upload_mib << 20, ssr_mode=False,
            auth=None if config.token is None else ("zoomiqa", config.token), enable_monitoring=False,
            mcp_server=False, pwa=False, theme=theme(), css=CSS, app_kwargs={"middleware": middleware},
            show_error=False,
        )  # fmt: skip
        try:
            yield f"http://{config.host}:{port}/"
        finally:
            page.close(verbose=False)


def _free_port(config: PageConfig) -> int:
    family = socket.AF_INET6 if ":" in config.host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((config.host, config.port))
        except OSError as error:
            raise OSError(
                f"--host {config.host} --port {config.port}: cannot listen there ({error.strerror}); "
                "another program may use it: try --port 0, which takes a free one"
            ) from error
        return probe.getsockname()[1]


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
