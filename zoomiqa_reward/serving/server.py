"""A reward server: Ray Serve's replicas behind the gateway, started and stopped as one thing."""

import contextlib
import os
import secrets
import shutil
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from zoomiqa_reward.serving.connection import is_loopback
from zoomiqa_reward.serving.spec import MIB, Limits, RewardSpec

MIN_TOKEN_CHARACTERS = 16
START_S = 900.0
"""How long loading the model in every replica may take."""
_MIN_STORE_BYTES = 80 * MIB  # Ray refuses smaller object stores


@dataclass(frozen=True, kw_only=True)
class ServeConfig:
    """One server."""

    spec: RewardSpec = field(default_factory=RewardSpec)
    """What is served."""
    host: str = "127.0.0.1"
    """Address to listen on; any other than loopback needs a token."""
    port: int = 8765
    """0: any free one."""
    replicas: int = 1
    """Processes that score, each with the whole model."""
    threads: int = 1
    """Torch threads (and Ray's CPUs) of each replica."""
    gpus_per_replica: float = 0.0
    """Ray hides the GPUs from a replica that asks for none; 0.5 puts two replicas on one."""
    tokens: tuple[str, ...] = ()
    """Who may ask; several, so that they can be changed one after the other."""
    limits: Limits = field(default_factory=Limits)
    ray_address: str | None = None
    """A Ray cluster to join (`auto`, or its address); None: one of this process's own, on loopback."""
    dashboard: bool = False
    """Start Ray's dashboard, on loopback."""
    ray_folder: str | None = None
    """Where Ray keeps its sockets and logs; None: a temporary folder that goes when the server stops."""

    def __post_init__(self) -> None:
        if self.replicas < 1 or self.threads < 1:
            raise ValueError(f"replicas={self.replicas}, threads={self.threads}: must be at least 1")
        if self.gpus_per_replica < 0:
            raise ValueError(f"gpus_per_replica={self.gpus_per_replica}: must not be negative")
        if not 0 <= self.port <= 65535:
            raise ValueError(f"port={self.port}: must be 0..65535")
        for token in self.tokens:
            if len(token) < MIN_TOKEN_CHARACTERS or not token.isascii() or any(c.isspace() for c in token):
                raise ValueError(
                    f"a token of {len(token)} characters: must be at least {MIN_TOKEN_CHARACTERS}, ASCII, without "
                    "spaces; make one with python -c 'import secrets; print(secrets.token_urlsafe(32))'"
                )
        if not self.tokens and not is_loopback(self.host):
            raise ValueError(f"host={self.host!r} can be reached from outside: give a token, or listen on 127.0.0.1")


class RewardServer:
    """A running server, as a context manager: `with RewardServer(config) as server: RemoteReward(server.url)`.

    Starting loads the model in every replica; the port is taken first. In a process that already uses Ray, its
    cluster is used and left running; so is one that `ray_address` names.
    Raises OSError (the port is taken), ModuleNotFoundError (the extra `serve`), RuntimeError (a replica could not be
    started; its reason is in the message).
    """

    def __init__(self, config: ServeConfig) -> None:
        self.config = config
        self.url = ""
        """`http://host:port`, once started."""
        self.info: dict[str, Any] = {}
        """What the replicas say of their reward."""
        self.app_name = f"zoomiqa-{secrets.token_hex(4)}"  # several servers may share a cluster
        """The Serve application's name, which also stands in the titles of the replicas' processes."""
        self._serve: Any = None
        self._owns_ray = False
        self._undo: list[Callable[[], Any]] = []

    def __enter__(self) -> "RewardServer":
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Start Ray, the replicas and the gateway; returns when requests are answered."""
        try:
            listener = _listen(self.config.host, self.config.port)
            self._undo.append(listener.close)
            self._start_ray()
            handle = self._deploy()
            self._start_gateway(listener, handle)
        except BaseException:  # an interrupt too must leave no process behind
            self.stop()
            raise

    def stop(self) -> None:
        """Finish what is being answered, then end everything that `start` started. May be called twice."""
        with contextlib.redirect_stdout(sys.stderr):  # Ray prints what it ends to stdout, which is for results
            while self._undo:
                self._undo.pop()()

    def _start_ray(self) -> None:
        from zoomiqa_reward.serving.ray_environment import import_ray, init_ray

        config = self.config
        ray, self._serve = import_ray(own_cluster=config.ray_address is None)
        if ray.is_initialized():
            return
        if config.ray_address is not None:
            init_ray(ray, address=config.ray_address)
            self._undo.append(ray.shutdown)
            return
        folder = config.ray_folder
        if folder is None:
            folder = tempfile.mkdtemp(prefix="zoomiqa-")  # short: Ray puts sockets below it, of at most 107 characters
            self._undo.append(lambda: shutil.rmtree(folder, ignore_errors=True))
        self._undo.append(ray.shutdown)
        self._owns_ray = True
        init_ray(
            ray,
            address="local",
            num_cpus=max(os.cpu_count() or 1, config.replicas * config.threads),
            include_dashboard=config.dashboard,
            object_store_memory=max(_MIN_STORE_BYTES, 2 * config.limits.max_held_bytes),
            _temp_dir=folder,
        )

    def _deploy(self) -> Any:
        from ray.exceptions import RayError
        from ray.serve.exceptions import RayServeException

        from zoomiqa_reward.serving.replicas import application

        config, serve = self.config, self._serve
        serve.start(proxy_location="Disabled")  # the gateway stands in its place
        name = self.app_name
        self._undo.append(serve.shutdown if self._owns_ray else lambda: serve.delete(name))
        app = application(
            config.spec, replicas=config.replicas, threads=config.threads, num_gpus=config.gpus_per_replica,
            limits=config.limits,
        )  # fmt: skip
        try:
            handle = serve.run(app, name=name, route_prefix=None)
            self.info = handle.describe.remote().result(timeout_s=START_S)
        except (RayError, RayServeException, RuntimeError, TimeoutError) as error:
            status = serve.status().applications.get(name)
            reasons = (
                [deployment.message for deployment in status.deployments.values() if deployment.message]
                if status
                else []
            )
            raise RuntimeError(f"the replicas could not be started: {' '.join(reasons) or error}") from error
        return handle

    def _start_gateway(self, listener: socket.socket, handle: Any) -> None:
        from zoomiqa_reward.serving.gateway import Gateway
        from zoomiqa_reward.serving.replicas import RayBackend

        config = self.config
        gateway = Gateway(RayBackend(handle, self.app_name), self.info, config.tokens, config.limits)
        self._undo.append(run_gateway(gateway, listener))
        host, port = listener.getsockname()[:2]
        self.url = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def run_gateway(gateway: Any, listener: socket.socket) -> Callable[[], None]:
    """Serve `gateway` on a bound socket in a thread of its own; return what stops it. Raises RuntimeError."""
    import uvicorn

    from zoomiqa_reward.serving.guard import guarded

    limits = gateway.limits
    server = uvicorn.Server(
        uvicorn.Config(
            gateway, http=guarded(limits), ws="none", lifespan="off", loop="asyncio", log_config=None,
            access_log=False, server_header=False, proxy_headers=False, timeout_keep_alive=limits.keep_alive_s,
            timeout_graceful_shutdown=5,
        )
    )  # fmt: skip
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, name="gateway", daemon=True)
    thread.start()
    while not server.started:
        if not thread.is_alive():
            raise RuntimeError("the gateway's HTTP server ended while it was starting; its log says why")
        time.sleep(0.01)

    def stop() -> None:
        server.should_exit = True
        thread.join()

    return stop


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.socket(family, socket.SOCK_STREAM))
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((host, port))
        except OSError as error:
            raise OSError(f"cannot listen on {host}:{port}: {error.strerror}; choose another port, or 0") from error
        listener.listen(128)
        stack.pop_all()
    return listener
