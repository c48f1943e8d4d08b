"""What the page needs of seesr, in a process of the main environment: the local server, sizes, forecasts and previews.

A line of JSON on the standard input is a request, {"id", "do", "with"}; a line on the standard output is its answer,
{"id", "answer"} or {"id", "error"}, or news of the server, {"server"}. It ends when its input does.
"""

import argparse
import contextlib
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from scripts.cog_server import CogServer

Say = Callable[[dict[str, Any]], None]

SETUP_SECONDS = 1800.0
"""How long the full model may take to load, on a CPU from a slow disk."""

REPORT_AT_ONCE = {"COG_THROTTLE_RESPONSE_INTERVAL": "0"}
"""The server holds back lines of the log that come within half a second, and forgets the last of them."""

PAUSE = 2.0
"""Seconds before the server starts again."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--serve", action="store_true", help="start the Cog server, and start it again when it stops")
    parser.add_argument("--predictor", default="predict.py:Predictor", help="the server's predictor: FILE:CLASS")
    arguments = parser.parse_args()
    output = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what libraries print is no answer
    lock = threading.Lock()

    def say(message: dict[str, Any]) -> None:
        with lock:
            print(json.dumps(message), file=output, flush=True)

    keeper = Keeper(arguments.predictor, say) if arguments.serve else None
    try:
        answer_requests(say)
    finally:
        if keeper is not None:
            keeper.stop()


class Keeper:
    """Runs the Cog server in a thread, starts it again whenever it stops, and says where it is."""

    def __init__(self, predictor: str, say: Say) -> None:
        self.predictor, self.say = predictor, say
        self._stop, self._server = threading.Event(), CogServer(predictor=predictor)
        self._thread = threading.Thread(target=self._keep)
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        with contextlib.suppress(AttributeError, ProcessLookupError):  # AttributeError: it has not started yet
            os.kill(self._server.pid, signal.SIGTERM)  # setup may have minutes to go
        self._thread.join()

    def _keep(self) -> None:
        while not self._stop.is_set():
            self._server = CogServer(predictor=self.predictor, env=REPORT_AT_ONCE, timeout=SETUP_SECONDS)
            threading.Thread(target=self._announce, args=[self._server], daemon=True).start()
            reason = self._run(self._server)
            self.say({"server": {"url": "", "reason": reason}})
            self._stop.wait(PAUSE)

    def _run(self, server: CogServer) -> str:
        """Run the server until it stops or fails: why."""
        try:
            with server:
                while not self._stop.wait(1):
                    status = server.get("/health-check").get("status")
                    if status == "SETUP_FAILED":
                        return server.setup_error()
                    if status not in ("READY", "BUSY"):
                        return "the server stopped working"
            return ""
        except (RuntimeError, OSError) as error:
            return str(error).strip().splitlines()[-1]

    def _announce(self, server: CogServer) -> None:
        """Say the address as soon as there is one, before setup has ended."""
        end = time.monotonic() + SETUP_SECONDS
        while not server.url and time.monotonic() < end:
            time.sleep(0.05)
        document = json.loads((server.folder / ".cog/openapi_schema.json").read_text()) if server.url else {}
        self.say({"server": {"url": server.url, "reason": "", "document": document}})


def answer_requests(say: Say) -> None:
    """Answer every line of the standard input, two at a time."""
    from scripts.page.tools import Tools  # imported here: torch takes seconds, in which the server starts

    tools = Tools()

    def answer(request: dict[str, Any]) -> None:
        try:
            found = getattr(tools, request["do"])(**request["with"])
            say({"id": request["id"], "answer": found})
        except (ValueError, RuntimeError, OSError) as error:
            say({"id": request["id"], "error": str(error) or type(error).__name__})
        except Exception as error:  # the page waits for an answer, whatever it is
            say({"id": request["id"], "error": f"{type(error).__name__}: {error}"})

    with ThreadPoolExecutor(2) as pool:
        for line in sys.stdin:
            pool.submit(answer, json.loads(line))


if __name__ == "__main__":
    main()
