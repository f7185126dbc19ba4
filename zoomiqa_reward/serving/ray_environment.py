"""Ray is imported when a server starts and not before, with the environment variables that it needs then.

Variables that the user has set keep their values.

Seen in ray 2.60: usage statistics are sent unless switched off; worker processes get niceness 15, so replicas starve
beside anything else that computes; ports are opened on all interfaces (the switch below is the one that keeps Ray on
loopback on a laptop); and a cluster without a token of its own writes one to ~/.ray.
"""

import logging
import os
import secrets
import sys
import warnings
from typing import Any

from zoomiqa_reward.runs.progress import say

ATTEMPTS = 3
_AUTHENTICATION = ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")


def import_ray(*, own_cluster: bool) -> tuple[Any, Any]:
    """Return the modules (ray, ray.serve). own_cluster: one that this process starts for itself, closed to others.

    A program that has imported ray already keeps what Ray read then: its ports may be open, behind Ray's own token.
    Raises ModuleNotFoundError where the extra `serve` is not installed.
    """
    _prepare(own_cluster=own_cluster)
    with warnings.catch_warnings():
        # ray 2.60 declares its settings in a way that pydantic 2.14 warns of.
        message = "Using extra keyword arguments on `Field`"
        warnings.filterwarnings("ignore", message=message, category=DeprecationWarning)
        import ray
        from ray import serve
    return ray, serve


def init_ray(ray: Any, **options: Any) -> None:
    """Call `ray.init(**options)`; again where a busy machine did not start Ray's node within its 30 seconds.

    Ray has no setting for that time. Raises what `ray.init` does.
    """
    for attempt in range(1, ATTEMPTS + 1):
        try:
            ray.init(log_to_driver=False, logging_level=logging.WARNING, **options)
            return
        except Exception as error:  # Ray raises a bare Exception here
            ray.shutdown()
            if attempt == ATTEMPTS or "timed out during startup" not in str(error):
                raise
            say(f"Ray did not start within its 30 seconds (attempt {attempt} of {ATTEMPTS}); trying again")


def _prepare(*, own_cluster: bool) -> None:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_worker_niceness", "0")
    if not own_cluster or "ray" in sys.modules:
        return
    os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")  # false: a node's address is 127.0.0.1
    if not any(name in os.environ for name in _AUTHENTICATION):
        os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
