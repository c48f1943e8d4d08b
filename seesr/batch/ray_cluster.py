"""A connection to a Ray cluster, or one that is started on this machine alone; what its nodes hold."""

import logging
import os
import secrets
import signal
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from seesr.batch.job import StoppedError

log = logging.getLogger(__name__)

OBJECT_STORE = 200_000_000
"""Bytes of shared memory of a Ray that is started here. Images never pass through it, only jobs and rows."""

# Environment, read by Ray when it is imported or started. Its processes inherit it.
QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_BACKEND_LOG_LEVEL": "fatal",
    "RAY_ENABLE_AUTO_CONNECT": "0",  # a thread that still runs when the connection ends must not start another
}
ALONE = {
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # on Linux too it makes every server listen on 127.0.0.1 only
    "RAY_AUTH_MODE": "token",  # other users of this machine are kept out
    "MALLOC_ARENA_MAX": "1",  # as cog.yaml
    "OMP_WAIT_POLICY": "PASSIVE",  # threads that wait leave the cores to other workers
}


class Share(NamedTuple):
    """What a worker takes of a node."""

    cpus: int
    gpus: int

    def __str__(self) -> str:
        return f"{self.cpus} CPUs" + (f" and {self.gpus} GPU" if self.gpus else "")


def describe(error: BaseException) -> str:
    """An error on one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


@contextmanager
def connect(address: str | None, packages: Sequence[Path]) -> Iterator[None]:
    """Be connected to the cluster at `address`, or to a Ray of this machine's own, which ends with the block.

    `packages` are the folders of Python packages that the workers of a cluster get. Raises StoppedError.
    """
    if address and address.startswith("ray://"):
        text = f"--ray-address must be HOST:PORT or auto, got {address}"
        raise StoppedError(f"{text}; run the command on a node of the cluster, such as its head")
    own = {} if address else ALONE | {"RAY_AUTH_TOKEN": secrets.token_hex(32)}
    for name, value in (QUIET | own).items():
        os.environ.setdefault(name, value)
    import ray
    import ray._private.worker

    # Ray tells there of each worker that dies, on stdout, where --json prints rows. No option turns it off.
    ray._private.worker.print_to_stdstream = _log_message
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.CRITICAL}
    if address:
        options |= {"address": address, "runtime_env": {"py_modules": [str(package) for package in packages]}}
    else:
        options |= {"address": "local", "include_dashboard": False, "object_store_memory": OBJECT_STORE}
    with _signals_kept(), _stderr_dropped(), warnings.catch_warnings(action="ignore"):
        try:
            ray.init(**options)
        except (ConnectionError, RuntimeError, ValueError, OSError, TimeoutError) as error:
            ray.shutdown()
            place = f"Ray at {address}" if address else "Ray"
            raise StoppedError(f"{place} cannot be reached ({describe(error)}); see docs/scale.md") from None
    try:
        yield
    finally:
        ray.shutdown()


def _log_message(message: dict[str, Any], **_: object) -> None:
    log.info("Ray: %s", " ".join(message.get("lines", [])))


def quiet_data() -> Any:
    """ray.data, set up: each row is a block of its own; no bars and messages, which the run has itself."""
    import ray.data

    warnings.filterwarnings("ignore", module=r"ray\.")
    for handler in logging.getLogger("ray.data").handlers:
        if handler.name == "console":
            handler.setLevel(logging.CRITICAL)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.target_max_block_size = 1
    context.execution_no_progress_timeout_s = -1  # RayEngine.patience
    context.autoscaling_config.actor_pool_util_upscaling_threshold = 1.25
    return ray.data


def nodes() -> list[dict[str, float]]:
    """The resources of each living node, by Ray's names: CPU, GPU, memory and others."""
    import ray

    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def choose_share(gpu: str | None, threads: int, shared: bool) -> Share:
    """A worker takes a GPU where there are some, else as many CPUs as torch has threads.

    `shared`: to a cluster nodes may be added, so that `gpu`, which names a card, is enough.
    """
    has_gpus = any(node.get("GPU", 0) >= 1 for node in nodes())
    return Share(1, 1) if has_gpus or (gpu and shared) else Share(threads, 0)


def places(share: Share) -> list[int]:
    """How many workers each living node can hold."""
    wanted = {"CPU": share.cpus, "GPU": share.gpus}
    return [min(int(node.get(name, 0) // n) for name, n in wanted.items() if n) for node in nodes()]


@contextmanager
def _signals_kept() -> Iterator[None]:
    """Ray takes SIGTERM for itself."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _stderr_dropped() -> Iterator[None]:
    """Ray says there which log level it was given. Its errors are exceptions."""
    kept = os.dup(2)
    try:
        with open(os.devnull, "wb") as nothing:
            os.dup2(nothing.fileno(), 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
