"""Ask Replicate again after a fault that passes: longer and longer waits, as long as asked to, and not for ever."""

import logging
import random
import threading
import time
from collections.abc import Callable
from typing import TypeVar

import httpx

from seesr.batch.api import RefusedError, check_answer
from seesr.batch.job import CanceledError

log = logging.getLogger(__name__)
T = TypeVar("T")

NEVER_SENT = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout)
"""Of these it is sure that Replicate has not seen the request."""

SECONDS_TO_ANSWER = 60.0
SHORTEST, LONGEST = 0.5, 60.0
"""Seconds between two attempts: doubled from one to the other, times a random 0.5 to 1."""

QUIET = 10.0
"""Seconds: longer waits are logged."""


class ServiceError(RuntimeError):
    """Replicate did not answer for too long: one sentence."""


class CheckedTransport(httpx.HTTPTransport):
    """Raises RefusedError for an answer that is no success, before the official client repeats the request itself."""

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        # The client sets no limit for uploads, which then wait for ever for a server that is gone.
        request.extensions["timeout"] = httpx.Timeout(SECONDS_TO_ANSWER, connect=10).as_dict()
        response = super().handle_request(request)
        response.request = request
        check_answer(response)
        return response


def passes(error: Exception) -> bool:
    """Whether the same request may succeed later."""
    if isinstance(error, RefusedError):
        return error.status in (408, 429) or error.status >= 500
    return not isinstance(error, (httpx.UnsupportedProtocol, httpx.LocalProtocolError))


class Retry:
    """Repeats requests of many threads for at most `patience` seconds each, until `stop` is set.

    When Replicate asks one thread to wait, the others wait too.
    """

    def __init__(self, stop: threading.Event, patience: float) -> None:
        self.stop, self.patience = stop, patience
        self._closed_until = 0.0

    def call(self, request: Callable[[], T], on_retry: Callable[[], None] = lambda: None) -> T:
        """What `request` returns in the end.

        Raises RefusedError for a refusal that will not pass, ServiceError when patience is over, CanceledError when
        `stop` is set between two attempts.
        """
        give_up, wait = time.monotonic() + self.patience, SHORTEST
        while True:
            try:
                self._wait_for_opening()
                return request()
            except (RefusedError, httpx.TransportError) as error:
                if isinstance(error, RefusedError) and not passes(error):
                    raise
                delay = self._delay(error, wait)
                if not passes(error) or time.monotonic() + delay > give_up:
                    raise ServiceError(sentence(error)) from None
                if delay > QUIET:
                    log.warning("%s. Trying again in %.0f s.", sentence(error), delay)
            if self.stop.wait(delay):
                raise CanceledError
            on_retry()
            wait = min(2 * wait, LONGEST)

    def _delay(self, error: Exception, wait: float) -> float:
        delay = wait * random.uniform(0.5, 1)
        asked = error.retry_after if isinstance(error, RefusedError) else None
        if asked is not None:
            self._closed_until = max(self._closed_until, time.monotonic() + asked)
            delay += asked
        return delay

    def _wait_for_opening(self) -> None:
        """Wait, as all threads do, until Replicate takes requests again."""
        while (delay := self._closed_until - time.monotonic()) > 0:
            if self.stop.wait(delay * random.uniform(1, 1.1)):
                raise CanceledError


def sentence(error: Exception) -> str:
    """A refusal as it is; of a broken connection, what broke and what to do."""
    if isinstance(error, RefusedError):
        return str(error)
    what = str(error) or type(error).__name__
    return f"no connection to Replicate ({what}): check the network and run this again"
