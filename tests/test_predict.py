"""The real Cog server on the embedded bundle, over HTTP."""

import base64
import http.server
import io
import json
import logging
import re
import shutil
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cog import Path as CogPath
from PIL import Image

from predict import Predictor
from scripts.cog_server import CogServer
from seesr import images
from seesr.settings import Settings
from tests.corpus import CASES

BROKEN = """
import torch
from predict import Predictor

class Broken(Predictor):
    def setup(self):
        super().setup()
        self.upscale_one = self.seesr.upscale
        self.seesr.upscale = self.break_down

    def break_down(self, image, settings, **rest):
        if settings.seed == 13:  # from now on every call of the GPU fails
            torch.ones = self.fail
            self.seesr.device = "cuda"
            self.fail()
        if settings.seed == 14:  # this one passes
            raise RuntimeError("CUDA error: no kernel image is available for execution on the device")
        return self.upscale_one(image, settings, **rest)

    def fail(self, *_, **__):
        raise RuntimeError("CUDA error: an illegal memory access was encountered\\nCompile with ...")
"""
"""A predictor whose GPU breaks down."""
SMALL = {"num_inference_steps": 1, "seed": 5, "scale_factor": 2}


@pytest.fixture(scope="module")
def server() -> Iterator[CogServer]:
    with CogServer() as running:
        yield running


@pytest.fixture(scope="module")
def photograph() -> np.ndarray:
    """33 x 50 pixels with edges, slopes and noise."""
    y, x = np.mgrid[0:33, 0:50]
    noise = np.random.default_rng(0).normal(0, 6, (33, 50, 3))
    picture = np.stack([x * 5, y * 7, ((x // 8 + y // 8) % 2) * 160 + 40], axis=2) + noise
    return np.clip(picture, 0, 255).astype(np.uint8)


def uri(pixels: np.ndarray, kind: str = "PNG") -> str:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, kind)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(stream.getvalue()).decode()}"


def picture(answer: dict[str, Any]) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(answer["output"].partition(",")[2])))


def test_ready_and_a_prediction(server: CogServer, photograph: np.ndarray) -> None:
    assert server.health["status"] == "READY"
    assert "Using the small embedded bundle" in "".join(server.lines)
    status, answer = server.predict(image=uri(photograph), num_inference_steps=2, scale_factor=2.5, seed=0)
    assert (status, answer["status"]) == (200, "succeeded")
    assert picture(answer).size == (125, 83)
    metrics = answer["metrics"]
    assert metrics["seed"] == 0
    assert metrics["steps"] == 2
    assert metrics["tiles"] == 1
    assert metrics["model"] == "SeeSR-tiny"
    assert metrics["device"] == "cpu"
    assert isinstance(metrics["tags"], list)
    assert {"tag", "encode", "denoise", "decode", "color", "file"} <= metrics["seconds"].keys()
    assert metrics["recoveries"] == {}
    assert metrics["plan"].startswith("latent tiles of 128 overlapping 16, 1 at a time")
    assert (metrics["width"], metrics["height"]) == (125, 83)  # 82.5 becomes 83
    for words in ("Tags: ", "denoise: ", "decode: ", "Seed 0, 1 tiles"):
        assert words in answer["logs"]
    assert re.search(r"Setup: [\d.]+ s for imports, [\d.]+ s for weights, [\d.]+ s to warm up", "".join(server.lines))


@pytest.mark.parametrize(
    ("inputs", "sentence"),
    [
        ({}, "Field required"),
        ({"num_inference_steps": 0}, "less than the minimum of 1"),
        ({"num_inference_steps": 5}, "greater than the maximum of 4"),
        ({"scale_factor": 0.5}, "less than the minimum of 1"),
        ({"scale_factor": 9}, "greater than the maximum of 8"),
        ({"cfg_scale": 0.4}, "less than the minimum of 0.5"),
        ({"cfg_scale": 11}, "greater than the maximum of 10"),
        ({"latent_tiled_size": -1}, "less than the minimum of 0"),
        ({"latent_tiled_size": 481}, "greater than the maximum of 480"),
        ({"latent_tiled_overlap": 241}, "greater than the maximum of 240"),
        ({"seed": -1}, "less than the minimum of 0"),
        ({"seed": 2**53}, "greater than the maximum of 9007199254740991"),
        ({"target_long_side": 8193}, "greater than the maximum of 8192"),
        ({"output_quality": 0}, "less than the minimum of 1"),
        ({"output_quality": 101}, "greater than the maximum of 100"),
        ({"num_inference_steps": "two"}, "integer"),
        ({"color_fix": "magic"}, "wavelet"),
        ({"output_format": "gif"}, "png"),
    ],
)
def test_bad_inputs_are_422(
    server: CogServer, photograph: np.ndarray, inputs: dict[str, object], sentence: str
) -> None:
    status, answer = server.predict(**({"image": uri(photograph)} | inputs if inputs else {}))
    assert status == 422
    assert sentence in json.dumps(answer)


@pytest.mark.parametrize(
    ("inputs", "sentence"),
    [
        (
            {"image": "data:text/html;base64," + base64.b64encode(b"<html>no</html>").decode()},
            "image must be an image file",
        ),
        ({"image": "data:image/png;base64,"}, "image must be an image file, got an empty file"),
        ({"image": "iVBORw0KGgoAAAANSUhEUg=="}, "image must be an http(s) URL, a data URI"),
        ({"image": str(Path(__file__).parent / "data/astronaut.jpg")}, "image must be an http(s) URL, a data URI"),
    ],
)
def test_failing_predictions_say_why_and_the_next_works(
    server: CogServer, photograph: np.ndarray, inputs: dict[str, object], sentence: str
) -> None:
    status, answer = server.predict(**({"image": uri(photograph)} | SMALL | inputs))
    assert (status, answer["status"]) == (200, "failed")
    assert sentence in answer["error"]
    assert "\n" not in answer["error"]
    assert server.predict(image=uri(photograph), **SMALL)[1]["status"] == "succeeded"


@pytest.mark.parametrize(
    ("changed", "kind"),
    [
        ({"output_format": "webp", "output_quality": 20}, "WEBP"),
        ({"output_format": "jpg", "output_quality": 20}, "JPEG"),
    ],
)
def test_format_and_quality_act(server: CogServer, photograph: np.ndarray, changed: dict, kind: str) -> None:
    _, low = server.predict(image=uri(photograph), **SMALL, **changed)
    _, high = server.predict(image=uri(photograph), **SMALL, **changed | {"output_quality": 98})
    assert picture(low).format == picture(high).format == kind
    assert picture(low).size == (100, 66)
    assert len(low["output"]) < len(high["output"])


def test_an_empty_seed_is_drawn_and_repeats(server: CogServer, photograph: np.ndarray) -> None:
    inputs = {"image": uri(photograph), "num_inference_steps": 1, "scale_factor": 2}
    _, drawn = server.predict(**inputs)
    _, again = server.predict(**inputs, seed=drawn["metrics"]["seed"])
    _, other = server.predict(**inputs)
    assert drawn["output"] == again["output"]
    assert drawn["metrics"]["seed"] != other["metrics"]["seed"]


@pytest.mark.parametrize(("asked", "size"), [(101, (101, 67)), (64, (64, 42)), (400, (400, 264))])
def test_a_target_long_side_is_met(server: CogServer, photograph: np.ndarray, asked: int, size: tuple) -> None:
    status, answer = server.predict(image=uri(photograph), **SMALL, target_long_side=asked)
    assert (status, answer["status"]) == (200, "succeeded"), answer
    assert picture(answer).size == size


@pytest.mark.parametrize(("asked", "sentence"), [(401, "ask for 64 to 400"), (63, "or between 64 and 8192")])
def test_a_target_long_side_that_cannot_be_is_refused_in_a_sentence(
    server: CogServer, photograph: np.ndarray, asked: int, sentence: str
) -> None:
    _, answer = server.predict(image=uri(photograph), **SMALL, target_long_side=asked)
    assert answer["status"] == "failed"
    assert sentence in answer["error"]
    assert f"got {asked}" in answer["error"]


def test_the_largest_seed_is_accepted(server: CogServer, photograph: np.ndarray) -> None:
    _, answer = server.predict(image=uri(photograph), **SMALL | {"seed": 2**53 - 1})
    assert answer["metrics"]["seed"] == 2**53 - 1


def test_whole_floats_are_taken_as_integers(server: CogServer, photograph: np.ndarray) -> None:
    inputs = {"num_inference_steps": 1.0, "seed": 5.0, "scale_factor": 2, "output_quality": 90.0, "cfg_scale": 0.5}
    status, answer = server.predict(image=uri(photograph), **inputs)
    assert (status, answer["status"]) == (200, "succeeded"), answer
    assert answer["output"] == server.predict(image=uri(photograph), **SMALL)[1]["output"]


@pytest.mark.parametrize(
    ("tiles", "sentence"),
    [
        ({"latent_tiled_size": 1}, "latent_tiled_size 1 is outside 32 to 480: using 32."),
        ({"latent_tiled_size": 31}, "latent_tiled_size 31 is outside 32 to 480: using 32."),
        (
            {"latent_tiled_size": 32, "latent_tiled_overlap": 240},
            "latent_tiled_overlap 240 is more than half of the tile (32): using 16.",
        ),
        ({"latent_tiled_overlap": 240}, "latent_tiled_overlap 240 is more than half of the tile (128): using 64."),
    ],
)
def test_tile_sliders_never_fail(server: CogServer, photograph: np.ndarray, tiles: dict, sentence: str) -> None:
    status, answer = server.predict(image=uri(photograph), **SMALL, **tiles)
    assert (status, answer["status"]) == (200, "succeeded"), answer
    assert sentence in answer["logs"]


def test_cancel_takes_effect_and_the_server_goes_on(server: CogServer) -> None:
    large = np.random.default_rng(1).integers(0, 255, (400, 400, 3), dtype=np.uint8)
    body = {"input": {"image": uri(large), "scale_factor": 8}}
    wait_until_free(server)
    status, _ = server.send("PUT", "/predictions/cancel-me", body, {"Prefer": "respond-async"})
    assert status == 202
    time.sleep(1.5)
    start = time.monotonic()
    assert server.send("POST", "/predictions/cancel-me/cancel")[0] == 200
    wait_until_free(server)
    assert time.monotonic() - start < 60
    assert any("cancel" in line.lower() for line in server.lines)
    assert list(Path(server.folder, "tmp").glob("seesr-*")) == []
    photograph = np.zeros((16, 16, 3), dtype=np.uint8)
    assert server.predict(image=uri(photograph), **SMALL)[1]["status"] == "succeeded"


def test_of_two_requests_at_once_one_is_asked_to_wait(server: CogServer, photograph: np.ndarray) -> None:
    body = {"input": {"image": uri(photograph), "scale_factor": 8, "seed": 1}}
    wait_until_free(server)
    answers: list[int] = []
    threads = [
        threading.Thread(target=lambda: answers.append(server.send("POST", "/predictions", body)[0])) for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(answers) == [200, 409]
    assert server.predict(**body["input"])[1]["status"] == "succeeded"


def test_webhook_hears_the_end(server: CogServer, photograph: np.ndarray) -> None:
    heard: list[dict[str, Any]] = []

    class Receiver(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            heard.append(json.loads(self.rfile.read(int(self.headers["content-length"]))))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None: ...  # type: ignore[override]

    receiver = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Receiver)
    threading.Thread(target=receiver.serve_forever, daemon=True).start()
    try:
        wait_until_free(server)
        body = {
            "input": {"image": uri(photograph), **SMALL},
            "webhook": f"http://127.0.0.1:{receiver.server_port}/",
            "webhook_events_filter": ["completed"],
        }
        assert server.send("POST", "/predictions", body, {"Prefer": "respond-async"})[0] == 202
        end = time.monotonic() + 30
        while not heard and time.monotonic() < end:
            time.sleep(0.05)
    finally:
        receiver.shutdown()
    assert heard[-1]["status"] == "succeeded"
    assert heard[-1]["metrics"]["seed"] == 5


def test_outputs_do_not_pile_up(server: CogServer, photograph: np.ndarray) -> None:
    for _ in range(3):
        server.predict(image=uri(photograph), **SMALL)
    kept = list(Path(server.folder, "tmp").glob("seesr-*"))
    assert len(kept) == 1


@pytest.mark.slow
def test_hostile_files_get_a_sentence_and_the_worker_lives(server: CogServer, tmp_path: Path) -> None:
    refused = 0
    wait_until_free(server)
    for case in CASES:
        path = case.path(tmp_path)
        if case.error is None or len(path.name) > 100:
            continue
        case.write(path)
        if not path.is_file():
            continue  # a folder, a pipe or nothing at all can't be sent
        data = base64.b64encode(path.read_bytes()).decode()
        start = time.monotonic()
        status, answer = server.predict(**SMALL, image=f"data:application/octet-stream;base64,{data}")
        if answer["status"] == "succeeded" and case.picture is not None:
            continue  # one that may be read or refused
        assert time.monotonic() - start < 10, case.name
        assert (status, answer["status"]) == (200, "failed"), case.name
        assert re.search("ValueError: (image must|the result may have)", answer["error"]), case.name
        assert "\n" not in answer["error"], case.name
        refused += 1
    assert refused >= 50
    assert list(Path(server.folder, "tmp").glob("seesr-*")) == []
    wait_until_free(server)
    assert server.get("/health-check")["status"] == "READY"


@pytest.mark.slow
def test_two_workers_do_not_disturb_each_other(server: CogServer, photograph: np.ndarray) -> None:
    inputs = {"image": uri(photograph), **SMALL}
    wait_until_free(server)
    alone = server.predict(**inputs)[1]["output"]
    with CogServer() as second:
        answers: list[str] = []

        def ask(which: CogServer) -> None:
            answers.extend(which.predict(**inputs)[1]["output"] for _ in range(3))

        threads = [threading.Thread(target=ask, args=(which,)) for which in (server, second)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert answers == [alone] * 6


@pytest.mark.slow
def test_several_images_in_one_request(photograph: np.ndarray) -> None:
    with CogServer(predictor="predict.py:BatchPredictor") as many:
        assert many.health["status"] == "READY"
        turned = photograph.transpose(1, 0, 2).copy()
        status, answer = many.predict(images=[uri(photograph), uri(turned)], **SMALL)
        assert (status, answer["status"]) == (200, "succeeded")
        sizes = [picture({"output": output}).size for output in answer["output"]]
        assert sizes == [(100, 66), (66, 100)]
        assert answer["metrics"]["seed"] == answer["metrics"]["seed_2"] == 5
        _, varied = many.predict(images=[uri(photograph), uri(turned)], sample_times=2.0, **SMALL)
        percents = [int(percent) for percent in re.findall(r"^ *(\d+)%\|", varied["logs"], re.MULTILINE)]
        assert percents == sorted(percents)
        assert percents[-1] == 100
        assert [picture({"output": output}).size for output in varied["output"]] == [(100, 66)] * 2 + [(66, 100)] * 2
        assert [varied["metrics"][f"seed{end}"] for end in ("", "_2", "_3", "_4")] == [5, 6, 5, 6]
        assert varied["output"][::2] == answer["output"], "the first variation is the picture of that seed"
        assert varied["output"][0] != varied["output"][1]
        bad = "data:text/plain;base64," + base64.b64encode(b"no").decode()
        _, failed = many.predict(images=[uri(photograph), bad], **SMALL)
        assert failed["status"] == "failed"
        assert "images, number 2: image must be an image file" in failed["error"]
        _, path = many.predict(images=[uri(photograph), str(Path(__file__).parent / "data/astronaut.jpg")], **SMALL)
        assert "images, number 2, must be an http(s) URL" in path["error"]
        assert "images must hold at least one image" in many.predict(images=[], **SMALL)[1]["error"]
        assert len(list(Path(many.folder, "tmp").glob("seesr-*"))) == 1, "the last good answer, until the next"


@pytest.mark.parametrize("shape", [(1, 1), (1, 700), (700, 1), (2, 3)])
def test_extreme_shapes_work(server: CogServer, shape: tuple[int, int]) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (*shape, 3), dtype=np.uint8)
    wait_until_free(server)
    _, answer = server.predict(image=uri(pixels), num_inference_steps=1, scale_factor=4)
    assert answer["status"] == "succeeded", answer
    assert picture(answer).size == (4 * shape[1], 4 * shape[0])


def test_a_format_that_cannot_hold_the_result_is_told_before_the_work(server: CogServer) -> None:
    wait_until_free(server)
    pixels = np.zeros((1, 4100, 3), dtype=np.uint8)
    _, answer = server.predict(image=uri(pixels), scale_factor=4, output_format="webp")
    assert (
        "webp holds at most 16383 pixels a side, the result has 16400 x 4; ask for output_format png" in answer["error"]
    )
    assert "Tags" not in answer["logs"]


def test_memory_that_runs_out_at_the_file_is_met_too(
    photograph: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In this process, as nothing reaches into the server's worker."""
    predictor, metrics = Predictor(), {}
    monkeypatch.setattr(predictor, "record_metric", metrics.__setitem__)
    monkeypatch.setattr(logging, "basicConfig", lambda **_: None)  # pytest's own handlers stay
    predictor.setup()
    Image.fromarray(photograph).save(tmp_path / "a.png")
    hidden = ("start_point", "conditioning_scale")  # not among the Cog inputs
    settings = asdict(Settings(num_inference_steps=1, scale_factor=2, seed=1))
    inputs = {name: value for name, value in settings.items() if name not in hidden}
    wanted = predictor.predict(image=CogPath(tmp_path / "a.png"), **inputs).read_bytes()
    save, left = images.save_image, [1]

    def failing(*args: Any) -> None:
        save(*args)
        if left[0]:
            left[0] -= 1
            raise MemoryError

    monkeypatch.setattr(images, "save_image", failing)
    assert predictor.predict(image=CogPath(tmp_path / "a.png"), **inputs).read_bytes() == wanted
    left[0] = 9
    with pytest.raises(MemoryError, match="not enough memory for the file stage"):
        predictor.predict(image=CogPath(tmp_path / "a.png"), **inputs)
    assert predictor.output is None


def wait_until_free(server: CogServer) -> None:
    end = time.monotonic() + 60
    while server.get("/health-check")["status"] != "READY" and time.monotonic() < end:
        time.sleep(0.05)


def test_a_gpu_that_stopped_working_makes_the_worker_unhealthy(photograph: np.ndarray, tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text(BROKEN)
    with CogServer(tmp_path, "broken.py:Broken") as server:
        inputs = {"image": uri(photograph), **SMALL}
        assert "CUDA error" in server.predict(**inputs | {"seed": 14})[1]["error"]
        wait_until_free(server)
        assert server.predict(**inputs)[1]["status"] == "succeeded"
        wait_until_free(server)
        assert "the GPU stopped working" in server.predict(**inputs | {"seed": 13})[1]["error"]
        end = time.monotonic() + 10
        while (health := server.get("/health-check"))["status"] == "BUSY" and time.monotonic() < end:
            time.sleep(0.05)
        assert health["status"] == "UNHEALTHY", health
        assert "an illegal memory access" in "".join(server.lines)


def test_missing_weights_fail_the_setup_in_one_sentence() -> None:
    with CogServer(env={"SEESR_WEIGHTS": "weights/nowhere"}) as server:
        assert server.health["status"] == "SETUP_FAILED"
        assert "SEESR_WEIGHTS names weights/nowhere, where no bundle is" in server.setup_error()
        status, _ = server.predict(image="data:image/png;base64,")
        assert status == 503


@pytest.mark.slow
def test_missing_weights_are_not_an_excuse_for_the_embedded_bundle(tmp_path: Path) -> None:
    shutil.copy(Path(__file__).parents[1] / "weights/tiny/bundle.json", tmp_path)
    with CogServer(env={"SEESR_WEIGHTS": str(tmp_path)}) as server:
        assert server.health["status"] == "SETUP_FAILED"
        assert "is missing" in server.setup_error()
