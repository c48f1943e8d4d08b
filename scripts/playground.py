"""A page to try the model: drop a photograph, run, compare. It talks HTTP to a Cog server or to Replicate."""

import argparse
import contextlib
import os
import signal
import socket
import sys
import tempfile
import threading
import time
import webbrowser
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from scripts.cog_server import PREDICTOR, ROOT
from scripts.page.cog_client import CogClient, check_address
from scripts.page.job import Client
from scripts.page.replicate_client import ReplicateClient
from scripts.page.studio import Studio
from scripts.page.toolbox_process import ToolboxProcess

TITLE = "SeeSR-Turbo"
DOCUMENT_SECONDS = 120.0
"""How long a server may take to describe its inputs."""


def main() -> None:
    parser = argparse.ArgumentParser(prog="scripts/playground", description=__doc__)
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--url", help="address of a running Cog server (default: start this project's own)")
    where.add_argument("--model", metavar="OWNER/NAME", help="a model on Replicate; needs REPLICATE_API_TOKEN")
    parser.add_argument(
        "--host", default="127.0.0.1", help="address to listen at (default: %(default)s, this machine only)"
    )
    parser.add_argument(
        "--port", type=int, default=7860, help="port to listen at (default: %(default)s; 0: any free one)"
    )
    parser.add_argument("--no-browser", action="store_true", help="do not open the page in a browser")
    parser.add_argument(
        "--predictor", default=PREDICTOR, metavar="FILE:CLASS", help="what the own server runs (default: %(default)s)"
    )
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        with contextlib.suppress(KeyboardInterrupt):
            serve(arguments)
    except (ValueError, RuntimeError, OSError) as error:
        sys.exit(f"playground: {error}")


def serve(arguments: argparse.Namespace) -> None:
    """Serve the page until it is interrupted."""
    port = free_port(arguments.host, arguments.port)
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="seesr-playground-"))
        prepare(Path(folder))
        own = not (arguments.url or arguments.model)
        toolbox = stack.enter_context(ToolboxProcess(arguments.predictor if own else None))
        client = stack.enter_context(connect(arguments, toolbox))
        from scripts.page import widgets  # Gradio takes seconds, while the server starts
        from scripts.page.layout import Page

        studio = Studio(client, toolbox, read_document(client, toolbox, own))
        stack.callback(studio.close)
        page = Page(studio, client.name if arguments.model else TITLE)
        page.blocks.queue(api_open=False, default_concurrency_limit=None).launch(
            server_name=arguments.host,
            server_port=port,
            prevent_thread_lock=True,
            quiet=True,
            share=False,
            ssr_mode=False,
            run_history=False,
            footer_links=[],
            max_file_size="256mb",
            allowed_paths=[str(ROOT / "examples"), folder],
            theme=widgets.theme(),
            head=widgets.head(),
        )
        stack.callback(page.blocks.close, verbose=False)
        address = f"http://{arguments.host}:{port}"
        print(f"Playground: {address}", flush=True)
        if not arguments.no_browser and has_display():
            webbrowser.open(address)
        threading.Event().wait()


def prepare(folder: Path) -> None:
    """Before Gradio starts: no reports to anybody, and every file in a folder of this run."""
    os.environ |= {"GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_OFFLINE": "1", "GRADIO_TEMP_DIR": str(folder)}
    tempfile.tempdir = str(folder)
    for name in ("no_proxy", "NO_PROXY"):  # servers on this machine are not behind a proxy
        os.environ[name] = ",".join(filter(None, [os.environ.get(name), "127.0.0.1,localhost,::1"]))


@contextlib.contextmanager
def connect(arguments: argparse.Namespace, toolbox: ToolboxProcess) -> Iterator[Client]:
    """A client of the server that was asked for."""
    if arguments.model:
        yield ReplicateClient(arguments.model)
    elif arguments.url:
        address = check_address(arguments.url)
        with CogClient(lambda: address).listening() as client:
            yield client
    else:
        with CogClient(lambda: toolbox.url, stopped="it starts again").listening() as client:
            yield client


def read_document(client: Client, toolbox: ToolboxProcess, own: bool) -> dict[str, Any]:
    """The OpenAPI document; the own server's while it still sets up. RuntimeError if there is none."""
    end = time.monotonic() + (DOCUMENT_SECONDS if own else 5)
    while True:
        if toolbox.document:
            return toolbox.document
        try:
            if not own:
                return client.document()
        except OSError as error:
            if time.monotonic() > end:
                raise RuntimeError(f"the server does not answer ({error}); start it, or leave out --url") from None
        if time.monotonic() > end or toolbox.ended:
            raise RuntimeError(f"the Cog server did not start: {toolbox.reason or 'its log is above'}")
        time.sleep(0.1)


def free_port(host: str, port: int) -> int:
    """`port`, or any free one for 0. ValueError if it is in use."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as found:
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            found.bind((host, port))
        except OSError as error:
            advice = "choose another with --port, or 0 for any free one"
            raise ValueError(f"cannot listen at {host}:{port} ({error.strerror}); {advice}") from None
        return found.getsockname()[1]


def has_display() -> bool:
    return sys.platform in ("darwin", "win32") or any(name in os.environ for name in ("DISPLAY", "WAYLAND_DISPLAY"))


if __name__ == "__main__":
    main()
