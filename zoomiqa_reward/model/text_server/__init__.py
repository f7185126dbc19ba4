"""A quality model behind an OpenAI-compatible text server: vLLM, `transformers serve` or another; extra `serve`."""

from zoomiqa_reward.model.text_server.client import NotOffered, RequestFailed, ServerError, ServerRefused, TextServer
from zoomiqa_reward.model.text_server.remote import RemoteZoomIQA

__all__ = ["NotOffered", "RemoteZoomIQA", "RequestFailed", "ServerError", "ServerRefused", "TextServer"]
