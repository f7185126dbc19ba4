"""`direct` over a server that continues an answer: the protocol's `direct_prefix`, then the tree of ratings.

A local model prices all 401 ratings in one forward pass. A server tells the alternatives along one path a request, so
the tree is opened branch by branch, the one that matters most first, until what is still open could move the mean by
no more than a tolerance. The views are those of the local `direct`, one request (or more) each.
"""

from typing import Any

from torch import Tensor

from zoomiqa_reward.model.ratings import RatingSpread
from zoomiqa_reward.model.repeatable import resized
from zoomiqa_reward.model.text_server.client import TextServer
from zoomiqa_reward.model.text_server.replies import chat_messages
from zoomiqa_reward.model.text_server.spread import Branch, follow, summarise_branches
from zoomiqa_reward.model.turns import round1
from zoomiqa_reward.model.views import ViewCutter, plan_views
from zoomiqa_reward.protocol.spec import Protocol

MAX_TOKENS = 8
"""Enough for white space and `4.37` in single bytes."""
MAX_REQUESTS = 64
"""Requests for one view: the whole tree of a tokenizer with single digits takes 47."""


def read_direct(
    server: TextServer, protocol: Protocol, image: Tensor, *, factor_px: int, question: str | None, tolerance: float
) -> RatingSpread:
    """Return the distribution of a float32 CHW image: the mixture of its views'. Its mass is not normalised.

    Raises ImageError for an aspect ratio above 200; ServerError.
    """
    _, height, width = image.shape
    plan = plan_views(
        height, width, protocol.views, factor=factor_px, min_pixels=protocol.min_pixels,
        max_pixels=protocol.max_pixels,
    )  # fmt: skip
    cutter = ViewCutter(image, factor_px)
    mixture: list[Branch] = []
    for view in plan:
        pixels = cutter.cut(view)
        if tuple(pixels.shape[1:]) != view.size:
            pixels = resized(pixels, *view.size)
        messages = chat_messages(round1(protocol, pixels.clamp(0, 1), question))
        mixture += [
            Branch(text=branch.text, is_done=branch.is_done, probability=view.weight * branch.probability)
            for branch in read_tree(server, messages, protocol.direct_prefix, tolerance=tolerance)
        ]
    return summarise_branches(mixture)


def read_tree(server: TextServer, messages: list[dict[str, Any]], prefix: str, *, tolerance: float) -> list[Branch]:
    """Return the branches of the ratings after `prefix`, opened until the mean is known to `tolerance`.

    The bound is on the mean before normalisation: the sum over open branches of probability times half their width.
    """
    waiting, done = [Branch(text="", is_done=False, probability=1.0)], []
    for _ in range(MAX_REQUESTS):
        if sum(branch.probability * branch.reach for branch in waiting) <= tolerance:
            break
        widest = max(waiting, key=lambda branch: branch.probability * branch.reach)
        waiting.remove(widest)
        reply = server.continue_answer(messages, prefix + widest.text, max_tokens=MAX_TOKENS)
        for branch in follow(reply.tokens or (), text=widest.text, probability=widest.probability):
            if branch.is_done or branch.reach == 0:
                done.append(branch)
            elif branch.text != widest.text:  # else the server wrote nothing: no rating, so no mass
                waiting.append(branch)
    return done + waiting
