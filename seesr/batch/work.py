"""One job: read the image, upscale it, write the result, tell about it in a row."""

import errno
import hashlib
import io
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from seesr import images, locate
from seesr.batch import files
from seesr.batch.job import Job, Row, StoppedError
from seesr.settings import Settings

if TYPE_CHECKING:
    from seesr.pipeline import Result, SeeSR

ROOT = Path(__file__).resolve().parents[2]
MAX_NAME = 255  # bytes of the name of a file


@dataclass(frozen=True)
class Opened:
    """An image that was read, and the seconds that this took."""

    image: images.OpenedImage
    sha256: str
    bytes: int
    seconds: float

    @property
    def megapixels(self) -> float:
        return self.image.rgb.width * self.image.rgb.height / 1e6


def choose_bundle(asked: Path | None) -> Path:
    """The bundle asked for by --bundle, else that of seesr.locate. Raises StoppedError where there is none."""
    if locate.is_bundle(bundle := asked or locate.choose_bundle(ROOT)):
        return bundle.resolve()
    advice = "name its folder by --bundle (README.md says how to get one)"
    raise StoppedError(f"the model needs a bundle, got {bundle}, where none is; {advice}")


def read(job: Job, settings: Settings) -> Opened:
    """Read a job's input. ValueError if this image cannot be done, StoppedError if its storage does not answer."""
    start = time.perf_counter()
    check_name(job)
    data = read_input(job.input)
    try:
        opened = images.open_checked(io.BytesIO(data), settings)
    except MemoryError:
        raise ValueError("the image needs more memory than there is; make it smaller") from None
    return Opened(opened, hashlib.sha256(data).hexdigest(), len(data), time.perf_counter() - start)


def check_name(job: Job) -> None:
    """Raise ValueError if the name of a job's result is too long for a disk."""
    name = os.path.basename(job.output)
    if not files.is_address(job.output) and len(os.fsencode(name)) > MAX_NAME:
        wanted = f"the result needs a name of at most {MAX_NAME} bytes"
        raise ValueError(f"{wanted}, got {name[:40]}... of {len(os.fsencode(name))}; shorten it by --name")


def read_input(name: str) -> bytes:
    """All of an input. ValueError if this file cannot be read, StoppedError if its storage does not answer."""
    try:
        if not files.is_address(name) and os.path.exists(name) and not os.path.isfile(name):
            raise ValueError("image must be a file, got a folder or a device")
        return files.read(name)
    except OSError as error:
        folder, reason = os.path.dirname(name), error.strerror or str(error)
        if not files.is_address(name) and (error.errno in _GONE or not os.path.isdir(folder)):
            raise StoppedError(f"{folder} does not answer ({reason}); when it is back, run again") from None
        raise ValueError(f"image must be a file that can be read, got {os.path.basename(name)} ({reason})") from None


_GONE = (errno.EIO, errno.ESTALE, errno.ENOTCONN, errno.ETIMEDOUT, errno.EHOSTDOWN, errno.ENODEV, errno.ENXIO)


def load(bundle: Path, gpu: str | None) -> "SeeSR":
    """The model. StoppedError where it cannot be loaded."""
    from seesr.pipeline import SeeSR  # imported here: a run with nothing to do needs no torch

    try:
        return SeeSR.load(bundle, gpu=gpu)
    except (RuntimeError, ValueError, OSError) as error:
        raise StoppedError(str(error)) from error


def upscale(
    seesr: "SeeSR", opened: Opened, settings: Settings, on_progress: Callable[[float, str], None] | None = None
) -> "Result":
    """Upscale an image. ValueError if it cannot be done, StoppedError if the GPU stopped working."""
    from seesr import hardware  # imported here: a run with nothing to do needs no model

    try:
        return seesr.upscale(opened.image, settings, on_progress=on_progress)
    except (RuntimeError, MemoryError) as error:
        if not hardware.responds(seesr.device):
            advice = "restart the machine or the container, then run again"
            raise StoppedError(f"the GPU stopped working; {advice}") from error
        text = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"the upscale failed: {text}") from error


def write(
    job: Job, opened: Opened, result: "Result", settings: Settings, check: Callable[[], None] | None = None
) -> Row:
    """Write a result whole and tell about it. `check` may raise before the file gets its name.

    StoppedError if it cannot be written, ValueError if this image cannot.
    """
    start = time.perf_counter()
    try:
        with files.write_whole(job.output) as file:
            images.write_image(opened.image, result, file, settings)
            size = file.seek(0, os.SEEK_END)
            if check is not None:
                check()
    except OSError as error:
        raise unwritable(job.output, error) from None
    except MemoryError:
        raise ValueError("writing the result needs more memory than there is; lower scale_factor") from None
    seconds = opened.seconds + sum(result.timings.values()) + time.perf_counter() - start
    return Row(
        input=job.input,
        bytes=opened.bytes,
        sha256=opened.sha256,
        output=job.output,
        output_bytes=size,
        width=result.image.width,
        height=result.image.height,
        seconds=round(seconds, 3),
        tags=result.tags,
        seed=result.seed,
        retries=sum(result.recoveries.values()),
    )


def unwritable(output: str, error: OSError) -> StoppedError:
    """Why a run stops where a result cannot be written."""
    reason = f"{output} cannot be written ({error.strerror or error})"
    return StoppedError(f"{reason}; make room or name another place by --out, then run again")


def failed(job: Job, error: Exception) -> Row:
    """The row of an image that cannot be done."""
    return Row(input=job.input, bytes=job.bytes, error=str(error))
