"""What a run tells while it works, and how signals reach it."""

import io
import os
import signal
from collections.abc import Generator

import pytest

from seesr.batch import progress
from seesr.batch.interrupt import Interrupts
from seesr.batch.job import Row
from seesr.batch.progress import Progress, summary_lines

DONE = Row(input="a\n.jpg", width=1000, height=2000, seconds=2.0, retries=1)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_gets_a_bar_in_megapixels() -> None:
    screen = Terminal()
    cost = iter([0.5, 0.75, 1.25])
    told = Progress(4, lambda: 8.0, lambda: next(cost), screen)
    told.add(DONE)
    told.add(Row(input="b.jpg", error="no image"))
    told.add(DONE)
    told.close()
    bars = [bar for bar in screen.getvalue().split("\r") if "2 done, 1 failed, $1.25" in bar]
    assert " 50%|" in bars[-1]
    assert "| 4.0/8.0 MP [" in bars[-1]


def test_a_log_gets_a_line_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    log = io.StringIO()
    told = Progress(4, lambda: 8.0, stream=log)
    told.add(DONE)
    assert log.getvalue() == ""
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", 0)
    told.add(DONE)
    told.close()
    assert log.getvalue() == "upscale: 4.0 of 8.0 megapixels, 2 of 4 images, 0 failed, 0 minutes, 0 left\n"
    paid = Progress(4, lambda: 8.0, lambda: 1.5, log)
    paid.add(DONE)
    assert log.getvalue().endswith("0 failed, 0 minutes, 0 left, $1.50\n")


def test_the_summary(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "MOST_FAILED", 1)
    told = Progress(5, lambda: 4.0, lambda: 0.75, io.StringIO())
    for row in (DONE, Row(input="b\n.jpg", error="no image"), Row(input="c.jpg", error="none")):
        told.add(row)
    found = told.summary(skipped=2)
    assert found["slowest"] == {"input": "a\n.jpg", "seconds": 2.0}
    wanted = {"images": 5, "done": 1, "skipped": 2, "failed": 2, "megapixels": 2.0, "retries": 1, "cost": 0.75}
    assert {name: found[name] for name in wanted} == wanted
    line, sentences = summary_lines(
        found | {"seconds": 4, "images_per_hour": 900, "megapixels_per_second": 0.5}, told.failed
    )
    assert line == (
        "1 of 5 images done in 4 s, 2 skipped that were done before (--force does them again); 2 megapixels, "
        r"0.5 a second, 900 images an hour; slowest 'a\n.jpg', 2 s; $0.75"
    )
    assert sentences == [r"'b\n.jpg': no image", "and 1 more, which the report names", "2 of 5 images failed"]


def numbers(sent: int | None = None) -> Generator[int, None, None]:
    """1, 2, 3; before the second, the process gets a signal."""
    for number in (1, 2, 3):
        if number == 2 and sent is not None:
            os.kill(os.getpid(), sent)
        yield number


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_is_raised_where_the_run_waits(sent: int) -> None:
    before, seen = signal.getsignal(sent), []

    def run() -> None:
        with Interrupts() as interrupts, interrupts.held():
            values = numbers(sent)
            while (value := interrupts.next(values)) is not None:
                seen.append(value)

    with pytest.raises(KeyboardInterrupt):
        run()
    assert seen == [1]
    assert signal.getsignal(sent) == before


def test_a_signal_waits_until_a_row_is_written() -> None:
    seen = []

    def run() -> None:
        with Interrupts() as interrupts, interrupts.held():
            values = numbers()
            while (value := interrupts.next(values)) is not None:
                os.kill(os.getpid(), signal.SIGINT)
                assert signal.getsignal(signal.SIGINT) == signal.SIG_DFL, "the second one ends the process"
                seen.append(value)

    with pytest.raises(KeyboardInterrupt):
        run()
    assert seen == [1]


def test_elsewhere_a_signal_is_raised_at_once_and_an_ignored_one_stays_so() -> None:
    def run() -> None:
        with Interrupts():
            os.kill(os.getpid(), signal.SIGHUP)
            assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
            os.kill(os.getpid(), signal.SIGTERM)

    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with pytest.raises(KeyboardInterrupt):
            run()
    finally:
        signal.signal(signal.SIGHUP, before)
