"""Predictions on a Cog server as Replicate runs them: queued, cancelled, with files by address and signed webhooks."""

import base64
import contextlib
import datetime
import hmac
import json
import secrets
import threading
import time
import urllib.request
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from scripts.cog_server import CogServer

ENDED = ("succeeded", "failed", "canceled")
EVENTS = ("start", "output", "logs", "completed")


@dataclass
class Job:
    """A prediction: what the API shows of it, the inputs as the model gets them, and who is told of which events."""

    view: dict[str, Any]
    inputs: Any
    webhook: str | None
    events: Sequence[str]
    running: bool = False


class Runner:
    """Runs jobs, one at a time. `server` is a running Cog server; else one starts at the first job.

    The Cog server reports to the address `report` and a job's id; pass that on to `update`. `deliver` keeps a file of
    that name and returns its address. `secret` signs webhooks.
    """

    def __init__(
        self, server: CogServer | None, predictor: str, report: str, deliver: Callable[[str, bytes], str], secret: str
    ) -> None:
        self.server, self.predictor, self.report, self.deliver, self.secret = server, predictor, report, deliver, secret
        self._starting, self._changed = threading.Lock(), threading.Condition()

    def __enter__(self) -> "Runner":
        with contextlib.ExitStack() as stack:
            self._webhooks = stack.enter_context(ThreadPoolExecutor(1))
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def start(self, job: Job) -> list[dict[str, Any]]:
        """Run a job now or as soon as the server is free. Returns what is wrong with its inputs, and then does not."""
        status, answer = self._submit(job)
        if status == 409:
            threading.Thread(target=self._submit_later, args=[job], daemon=True).start()
        return answer["detail"] if status == 422 else []

    def wait(self, job: Job, seconds: float) -> None:
        with self._changed:
            self._changed.wait_for(lambda: job.view["status"] in ENDED, seconds)

    def cancel(self, job: Job) -> None:
        if job.running:
            self._cog().send("POST", f"/predictions/{job.view['id']}/cancel")
            self.wait(job, 5)
        else:
            self.update(job, {"status": "canceled"})

    def _cog(self) -> CogServer:
        with self._starting:
            self.server = self.server or self._stack.enter_context(CogServer(predictor=self.predictor))
            return self.server

    def _submit(self, job: Job) -> tuple[int, dict[str, Any]]:
        """Give a job to the Cog server, which checks the inputs (422) and then whether it is busy (409)."""
        id, cog = job.view["id"], self._cog()
        body = {"input": job.inputs, "webhook": f"{self.report}/{id}", "webhook_events_filter": EVENTS}
        status, answer = cog.send("PUT", f"/predictions/{id}", body, {"prefer": "respond-async"})
        job.running = status == 202
        if status not in (202, 409, 422):
            error = cog.setup_error() if cog.health["status"] == "SETUP_FAILED" else answer
            self.update(job, {"status": "failed", "error": f"the Cog server answers {status}: {error}"})
        return status, answer

    def _submit_later(self, job: Job) -> None:
        while job.view["status"] == "starting":
            with contextlib.suppress(OSError):  # a connection that broke
                if self._submit(job)[0] != 409:
                    return
            time.sleep(0.05)

    def update(self, job: Job, news: dict[str, Any]) -> None:
        """Take over what the Cog server reports of a job, and tell its webhook."""
        with self._changed:
            view, before = job.view, dict(job.view)
            if before["status"] in ENDED:
                return
            new = {name: news[name] for name in ("status", "logs", "error") if name in news}
            if new["status"] != "canceled":  # while it was queued: it has never started
                new["started_at"] = view["started_at"] or now()
            if ended := new["status"] in ENDED:
                new |= {"completed_at": now(), "output": self._files(view["id"], news.get("output"))}
                seconds = time.time() - datetime.datetime.fromisoformat(view["created_at"]).timestamp()
                new["metrics"] = news.get("metrics", {}) | {"total_time": seconds}
            view.update(new)  # at once: another thread shows it
            happened = {"start": before["status"] == "starting", "output": view["output"] is not None}
            happened |= {"logs": view["logs"] != before["logs"], "completed": ended}
            if job.webhook and any(happened[event] for event in job.events):
                self._webhooks.submit(self._tell, job.webhook, json.dumps(view).encode())
            self._changed.notify_all()

    def _files(self, id: str, output: Any) -> Any:
        """Data URIs -> addresses of files."""
        if isinstance(output, list):
            return [self._files(f"{id}/{number}", item) for number, item in enumerate(output)]
        if not str(output).startswith("data:"):
            return output
        head, _, data = output.partition(",")
        ending = head.removeprefix("data:image/").partition(";")[0]
        return self.deliver(f"{id}/output.{ending}", base64.b64decode(data))

    def _tell(self, url: str, body: bytes) -> None:
        headers = {"Content-Type": "application/json"} | sign(self.secret, body, int(time.time()))
        with contextlib.suppress(OSError):  # a receiver that is gone
            urllib.request.urlopen(urllib.request.Request(url, body, headers), timeout=10).close()


def sign(secret: str, body: bytes, when: int) -> dict[str, str]:
    """The headers of a webhook, sent `when` seconds after 1970."""
    id, key = f"msg_{secrets.token_hex(12)}", base64.b64decode(secret.removeprefix("whsec_"))
    signature = base64.b64encode(hmac.digest(key, f"{id}.{when}.".encode() + body, "sha256")).decode()
    return {"webhook-id": id, "webhook-timestamp": str(when), "webhook-signature": f"v1,{signature}"}


def now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat().replace("+00:00", "Z")
