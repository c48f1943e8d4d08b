"""Trying again: how long, how often, and together."""

import email.utils
import threading
import time

import httpx
import pytest

from seesr.batch import retry
from seesr.batch.api import RefusedError, seconds_until
from seesr.batch.retry import CanceledError, Retry, ServiceError


def refusal(status: int, retry_after: str | None = None) -> RefusedError:
    headers = {"Retry-After": retry_after} if retry_after else {}
    request = httpx.Request("POST", "https://example.com/v1/predictions")
    return RefusedError(httpx.Response(status, headers=headers, json={"detail": "Throttled."}, request=request))


class Flaky:
    """A request that fails with each of these errors in turn and then answers. `times` holds when it was made."""

    def __init__(self, *errors: Exception) -> None:
        self.errors, self.times = list(errors), []

    def __call__(self) -> str:
        self.times.append(time.monotonic())
        if self.errors:
            raise self.errors.pop(0)
        return "answer"

    @property
    def waits(self) -> list[float]:
        return [later - earlier for earlier, later in zip(self.times, self.times[1:], strict=False)]


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retry, "SHORTEST", 0.04)
    monkeypatch.setattr(retry, "LONGEST", 0.08)


def test_waits_double_up_to_a_limit_and_differ_by_chance() -> None:
    request, counted = Flaky(refusal(500), httpx.ReadError("broken"), refusal(429), refusal(503)), []
    assert Retry(threading.Event(), 60).call(request, lambda: counted.append(1)) == "answer"
    assert len(counted) == 4
    for wait, longest in zip(request.waits, (0.04, 0.08, 0.08, 0.08), strict=True):
        assert longest / 2 <= wait < longest + 0.04
    assert len({round(wait, 6) for wait in request.waits}) == 4


def test_retry_after_is_honoured_by_all_threads() -> None:
    shared = Retry(threading.Event(), 60)
    first, other = Flaky(refusal(429, "0.4")), Flaky()
    thread = threading.Thread(target=shared.call, args=[first])
    thread.start()
    time.sleep(0.1)
    shared.call(other)
    thread.join()
    assert first.waits[0] >= 0.4
    assert other.times[0] - first.times[0] >= 0.4


def test_patience_ends_with_a_sentence() -> None:
    request = Flaky(*[httpx.ReadTimeout("") for _ in range(99)])
    with pytest.raises(ServiceError, match=r"^no connection to Replicate \(ReadTimeout\): check the network"):
        Retry(threading.Event(), 0.2).call(request)
    assert 2 < len(request.times) < 10
    with pytest.raises(ServiceError, match=r"HTTP 429 \(Throttled\.; retry after 3600 s\): too many requests"):
        Retry(threading.Event(), 600).call(Flaky(refusal(429, "3600")))


@pytest.mark.parametrize("error", [refusal(422), refusal(404), httpx.UnsupportedProtocol("no scheme")], ids=str)
def test_what_does_not_pass_is_not_tried_again(error: Exception) -> None:
    request = Flaky(error)
    with pytest.raises((RefusedError, ServiceError)):
        Retry(threading.Event(), 60).call(request)
    assert len(request.times) == 1


def test_a_stopped_run_waits_for_nothing() -> None:
    stop = threading.Event()
    waiting = Retry(stop, 600)
    threading.Timer(0.1, stop.set).start()
    start = time.monotonic()
    with pytest.raises(CanceledError):
        waiting.call(Flaky(refusal(429, "60")))
    with pytest.raises(CanceledError):
        waiting.call(Flaky())
    assert time.monotonic() - start < 1


def test_retry_after_holds_seconds_or_a_date() -> None:
    assert seconds_until("7") == 7
    assert seconds_until(" 1.5 ") == 1.5
    assert seconds_until("") is None
    assert seconds_until("soon") is None
    assert seconds_until(email.utils.formatdate(time.time() + 100, usegmt=True)) == pytest.approx(100, abs=2)
    assert seconds_until(email.utils.formatdate(time.time() - 100, usegmt=True)) == 0
