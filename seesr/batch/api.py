"""Replicate's API by its official client: token, refusals as sentences, prices. For the engine and scripts/deploy."""

import email.utils
import json
import os
import re
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import httpx
    import replicate
    from replicate.version import Version

API_TOKEN = "REPLICATE_API_TOKEN"
NAME = "[a-z0-9][a-z0-9._-]*"
ENDED = ("succeeded", "failed", "canceled")
ADVICE = {
    401: f"{API_TOKEN} is not valid: make a token at replicate.com/account/api-tokens",
    402: "the account has no credit: set up billing at replicate.com/account/billing",
    403: "the token may not do this: use one of the model's owner",
    404: "not found, or not visible to this token: check OWNER/NAME",
    409: "it exists already or is being changed: run this again",
    429: "too many requests: run this again later",
}


class RefusedError(RuntimeError):
    """An answer that is no success, in one sentence. `retry_after` is in seconds, None where the answer has none."""

    def __init__(self, response: "httpx.Response") -> None:
        self.status, request = response.status_code, response.request
        self.retry_after = seconds_until(response.headers.get("retry-after", ""))
        try:
            detail = " ".join(str(json.loads(response.read())["detail"]).split())[:300]
        except (ValueError, KeyError, TypeError):
            detail = "no details"
        if self.retry_after is not None:
            detail += f"; retry after {self.retry_after:g} s"
        other = "Replicate failed: run this again later" if self.status >= 500 else "correct what it names"
        advice = ADVICE.get(self.status, other)
        super().__init__(f"{request.method} {request.url.path}: HTTP {self.status} ({detail}): {advice}")


def seconds_until(retry_after: str) -> float | None:
    """A Retry-After header, which holds seconds or a date -> seconds from now. None if it is neither."""
    if re.fullmatch(r"\d+(\.\d*)?", retry_after.strip()):
        return float(retry_after)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(retry_after).timestamp() - time.time())
    except ValueError:
        return None


def check_answer(response: "httpx.Response") -> None:
    """Raise RefusedError unless the answer is a success."""
    if response.status_code >= 400:
        raise RefusedError(response)


def connect(
    transport: "httpx.BaseTransport | None" = None, headers: Mapping[str, str] | None = None
) -> "replicate.Client":
    """The official client, with `headers` on each request. RuntimeError if the environment holds no token.

    Where reading is refused with 429 or 503, it waits and asks again by itself, unless `transport` raises first.
    """
    import replicate

    token = os.environ.get(API_TOKEN, "").strip()
    if not re.fullmatch("[!-~]+", token):  # the client would quote a token that it can't send
        state = "holds characters that no token has" if token else "is not set"
        raise RuntimeError(f"{API_TOKEN} {state}: make a token at replicate.com/account/api-tokens")
    hooks = {"response": [check_answer]}
    return replicate.Client(api_token=token, event_hooks=hooks, transport=transport, headers=dict(headers or {}))


def find(get: Callable[[str], Any], name: str) -> Any:
    """What the API has by that name, or None."""
    try:
        return get(name)
    except RefusedError as error:
        if error.status != 404:
            raise
        return None


def latest_version(client: "replicate.Client", model: str) -> "Version":
    """The one that was pushed last. RuntimeError if there is none."""
    if (latest := client.models.get(model).latest_version) is None:
        raise RuntimeError(f"{model} has no version: run scripts/deploy push first")
    return latest


def price(sku: str) -> float:
    """Dollars a second by our own table, since the API tells none; 0 if unknown."""
    from seesr.cost import CARDS

    return (CARDS[card].price or 0) if (card := sku.removeprefix("gpu-")) in CARDS else 0
