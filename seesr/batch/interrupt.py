"""Ctrl-C, SIGTERM and a closed terminal end a run cleanly; the second of them ends it at once."""

import signal
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TypeVar

T = TypeVar("T")
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Interrupts:
    """Within the block a signal raises KeyboardInterrupt: at once, or after what `held` holds together."""

    def __init__(self) -> None:
        self._came = self._told = self._held = False
        self._taken = {name: before for name in _SIGNALS if (before := signal.getsignal(name)) is not signal.SIG_IGN}

    def __enter__(self) -> "Interrupts":
        for name in self._taken:  # not those that nohup has set to be ignored
            signal.signal(name, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        for name, before in self._taken.items():
            signal.signal(name, before)

    @contextmanager
    def held(self) -> Iterator[None]:
        """Signals wait until the end of the block."""
        self._held = True
        yield
        self._held = False
        if self._came:
            raise KeyboardInterrupt

    def next(self, values: Generator[T, None, None]) -> T | None:
        """Within `held`: the next value, None at the end. A signal that comes now, or came before, is raised in it.

        What the generator gives after that is given too, until it raises the interrupt itself.
        """
        self._held = False
        try:
            if self._came and not self._told:
                self._told = True
                return values.throw(KeyboardInterrupt())
            return next(values, None)
        finally:
            self._held = True

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if not self._came:
            for name in self._taken:
                signal.signal(name, signal.SIG_DFL)
            self._came = True
        if not self._held:
            self._told = True
            raise KeyboardInterrupt
