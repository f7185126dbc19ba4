"""The scorers as replicas of a Ray Serve deployment, and the gateway's way to them.

Each image is one call: Serve spreads a request over the replicas, joins images of several requests into batches, and
a replica that dies takes only what it was working on. Ray moves our own objects between its processes; a client's
bytes are never unpickled.
"""

import asyncio
import math
from typing import Any

from zoomiqa_reward.images.loading import ImageError
from zoomiqa_reward.serving.errors import ServingError
from zoomiqa_reward.serving.scorer import Answer, Scorer
from zoomiqa_reward.serving.spec import MAX_BATCH, Limits, RewardSpec
from zoomiqa_reward.serving.wire import ScoreItem

DEPLOYMENT = "scorer"
HEALTH_PERIOD_S = 2.0
"""How often Serve looks whether a replica lives."""


def batch_units(items: list[ScoreItem], batch_pixels: int) -> int:
    """Return how full a batch is, of `MAX_BATCH`: each image counts by its pixels, at least 1, at most all of it.

    Serve compares this number with its `max_batch_size`, so the batch ends at `batch_pixels` or `MAX_BATCH` images.

    >>> from zoomiqa_reward.serving.wire import EncodedImage
    >>> small = ScoreItem(image=EncodedImage(data=b"", shape=(3, 10, 10)))
    >>> batch_units([small, small], batch_pixels=200), batch_units([small] * 3, batch_pixels=10**6)
    (32, 3)
    """
    total = 0
    for item in items:
        width, height = item.image.size()
        total += min(MAX_BATCH, max(1, math.ceil(width * height * MAX_BATCH / batch_pixels)))
    return total


def application(spec: RewardSpec, *, replicas: int, threads: int, num_gpus: float, limits: Limits) -> Any:
    """Return the Serve application: `replicas` scorers of `threads` cores and `num_gpus` GPUs each."""
    from ray import serve  # here and below: the server has imported it the way it wants it (`ray_environment`)

    batch_pixels = limits.batch_pixels

    class Replica(Scorer):
        """A scorer that Serve calls."""

        async def strict(self, item: ScoreItem) -> Answer:
            """Score one image in its own forward passes."""
            return (await self.score([item], batched=False))[0]

        @serve.batch(  # type: ignore[untyped-decorator] # Ray is not followed by the checker
            max_batch_size=MAX_BATCH,
            batch_wait_timeout_s=limits.batch_wait_s,
            batch_size_fn=lambda items: batch_units(items, batch_pixels),
        )
        async def batched(self, items: list[ScoreItem]) -> list[Answer]:
            """Score what Serve has joined."""
            return await self.score(items, batched=True)

    deployment = serve.deployment(
        Replica,
        name=DEPLOYMENT,
        num_replicas=replicas,
        max_ongoing_requests=MAX_BATCH,
        ray_actor_options={"num_cpus": threads, "num_gpus": num_gpus},
        health_check_period_s=HEALTH_PERIOD_S,
        graceful_shutdown_timeout_s=5,
        logging_config={"enable_access_log": False},
    )
    return deployment.bind(spec, threads)


class RayBackend:
    """A deployment's replicas, as the gateway wants them."""

    def __init__(self, handle: Any, app_name: str) -> None:
        self._handle = handle
        self._app_name = app_name

    async def score(self, item: ScoreItem, *, batched: bool) -> Answer:
        """Return one image's answer. Raises ServingError: by what happened to the replica, or unreadable_image."""
        try:
            item.image.size()  # a batch is measured by it
        except ImageError as error:
            raise ServingError("unreadable_image", str(error)) from error
        from ray.exceptions import RayError, RayTaskError
        from ray.serve.exceptions import BackPressureError, RayServeException

        response = (self._handle.batched if batched else self._handle.strict).remote(item)
        try:
            answer: Answer = await response
            return answer
        except asyncio.CancelledError:
            response.cancel()  # frees its place in the replica's queue
            raise
        except RayTaskError as error:
            cause = " ".join(str(error.cause or error).split())[:300]
            raise ServingError("internal", f"the reward raised an error: {cause}") from error
        except BackPressureError as error:
            raise ServingError("busy", "the replicas' queues are full; try again") from error
        except (RayError, RayServeException) as error:
            message = f"the replica that scored it is gone ({type(error).__name__})"
            raise ServingError("replica_died", message) from error

    async def running(self) -> int:
        """Return how many replicas Serve counts as running."""
        return await asyncio.to_thread(self.count_running)

    def count_running(self) -> int:
        """Return the same, blocking."""
        from ray import serve
        from ray.exceptions import RayError
        from ray.serve.exceptions import RayServeException

        try:
            app = serve.status().applications.get(self._app_name)
        except (RayError, RayServeException):  # the controller is gone or restarting
            return 0
        deployment = app.deployments.get(DEPLOYMENT) if app else None
        states = deployment.replica_states if deployment else {}
        return sum(count for state, count in states.items() if str(getattr(state, "value", state)) == "RUNNING")
