"""The calls in the documents, as they stand there: real clients, Replicate's API on loopback, the embedded bundle."""

import base64
import http.server
import io
import json
import os
import queue
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from replicate.client import Client
from replicate.exceptions import ReplicateError
from replicate.prediction import Prediction

from tests.replicate_api import ReplicateApi
from tests.replicate_jobs import sign
from tests.test_docs import API, INLINE, README, ROOT, blocks

CLIENT = "replicate@1.4.0"
PATTERN = re.compile(r"^\s*(\d+)%\s*\|.+?\|\s*(\d+)/(\d+)")
"""How both clients find a line of progress."""


def jpeg(size: tuple[int, int], name: str = "animal") -> bytes:
    stream = io.BytesIO()
    with Image.open(ROOT / f"examples/{name}.jpg") as photo:
        photo.resize(size).save(stream, "JPEG")
    return stream.getvalue()


PHOTO = jpeg((64, 48))


@pytest.fixture(scope="module")
def api() -> Iterator[ReplicateApi]:
    """Waits shorter than any prediction takes: what does not poll gets nothing."""
    with ReplicateApi(sync_wait=0.05) as running:
        yield running


@pytest.fixture(scope="module")
def version(api: ReplicateApi) -> str:
    api.add_model("owner", "seesr-turbo")
    return api.add_version("owner", "seesr-turbo")


@pytest.fixture(scope="module")
def node_modules(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The official JavaScript client."""
    if shutil.which("node") is None or shutil.which("npm") is None:
        pytest.skip("needs node and npm")
    folder = tmp_path_factory.mktemp("node")
    command = ["npm", "install", "--ignore-scripts", "--no-save", "--no-audit", "--no-fund", CLIENT]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, timeout=120)
    if done.returncode:
        pytest.skip(f"npm cannot install {CLIENT}: {done.stderr.strip().splitlines()[-1:]}")
    return folder / "node_modules"


def example(document: Path, language: str, words: str) -> str:
    """The one block of a document that holds these words."""
    (found,) = [block for block in blocks(document, language) if words in block]
    return found


def fill_in(text: str, api: ReplicateApi, version: str) -> str:
    """What the documents ask the reader to do, with addresses on loopback. Small results, to be quick."""
    text = text.replace("OWNER", "owner").replace("VERSION", version).replace("https://api.replicate.com", api.url)
    text = text.replace("https://example.com/photo.jpg", api.serve("photo.jpg", PHOTO)).replace("4096", "160")
    return text.replace("new Replicate()", f'new Replicate({{ baseUrl: "{api.url}/v1" }})')


def run(command: Sequence[str], folder: Path, api: ReplicateApi) -> str:
    for name in ("photo.jpg", "a.jpg"):
        (folder / name).write_bytes(PHOTO)
    (folder / "b.jpg").write_bytes(jpeg((40, 56), "people"))
    done = subprocess.run(command, cwd=folder, env=os.environ | api.env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def run_python(text: str, folder: Path, api: ReplicateApi) -> str:
    return run([sys.executable, "-c", text], folder, api)


def run_js(text: str, folder: Path, api: ReplicateApi, node_modules: Path) -> str:
    (folder / "node_modules").symlink_to(node_modules)
    (folder / "example.mjs").write_text(text)
    return run(["node", "example.mjs"], folder, api)


def served(api: ReplicateApi) -> list[bytes]:
    """The files that the last prediction put out."""
    view = list(api.predictions.values())[-1].view
    assert view["status"] == "succeeded", view["error"]
    outputs = view["output"] if isinstance(view["output"], list) else [view["output"]]
    return [api.files[output.partition("/files/")[2]] for output in outputs]


def check(files: Sequence[Path], api: ReplicateApi, *sizes: tuple[int, int]) -> None:
    """The written files are images of these sizes, byte for byte the API's."""
    assert [Image.open(file).size for file in files] == list(sizes)
    assert [file.read_bytes() for file in files] == served(api)


def bash(text: str, folder: Path, api: ReplicateApi) -> Any:
    return json.loads(run(["bash", "-c", text], folder, api) or "null")


@pytest.mark.slow
def test_curl_waits_and_then_asks_again(api: ReplicateApi, version: str, tmp_path: Path) -> None:
    answer = bash(fill_in(example(README, "sh", "Prefer: wait"), api, version), tmp_path, api)
    assert answer["status"] in ("starting", "processing")
    assert answer["output"] is None
    ask, save = [" ".join(text.split()) for text in INLINE.findall(API.read_text()) if text.startswith("curl -s")]
    while answer["status"] in ("starting", "processing"):
        time.sleep(0.1)
        answer = bash(fill_in(ask, api, version).replace("/ID", f"/{answer['id']}"), tmp_path, api)
    assert answer["metrics"]["predict_time"] > 0
    bash(save.replace("OUTPUT", answer["output"]), tmp_path, api)
    check([tmp_path / "photo-x4.png"], api, (256, 192))


def test_curl_gets_the_result_of_a_short_prediction(api: ReplicateApi, version: str, tmp_path: Path) -> None:
    api.sync_wait, short = 60, api.sync_wait
    try:
        answer = bash(fill_in(example(README, "sh", "Prefer: wait"), api, version), tmp_path, api)
    finally:
        api.sync_wait = short
    assert answer["status"] == "succeeded"
    assert Image.open(io.BytesIO(served(api)[0])).size == (256, 192)


def test_a_webhook_is_called_and_its_signature_verified(api: ReplicateApi, version: str, tmp_path: Path) -> None:
    received: queue.Queue[tuple[dict[str, str], str]] = queue.Queue()

    class Receiver(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            received.put((dict(self.headers), self.rfile.read(int(self.headers["Content-Length"])).decode()))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None: ...  # type: ignore[override]

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Receiver) as server:
        threading.Thread(target=server.serve_forever, args=[0.01], daemon=True).start()
        text = fill_in(example(API, "sh", "webhook"), api, version)
        text = text.replace("https://example.com/done", f"http://127.0.0.1:{server.server_port}/done")
        asked = bash(text, tmp_path, api)
        headers, body = received.get(timeout=60)
        server.shutdown()
    assert received.empty()
    assert json.loads(body)["id"] == asked["id"]
    code = example(API, "python", "webhooks.validate")
    call = "\nimport sys\nprint(json.dumps(receive(*json.loads(sys.argv[1]))))\n"
    told = json.loads(run([sys.executable, "-c", code + call, json.dumps([headers, body])], tmp_path, api))
    assert told == json.loads(body)
    assert told["status"] == "succeeded"
    old = sign(api.secret, body.encode(), int(time.time()) - 600)
    for forged in ([headers, body.replace("succeeded", "failed")], [old, body]):
        with pytest.raises(AssertionError, match=r"InvalidSignatureError|InvalidTimestampError"):
            run([sys.executable, "-c", code + call, json.dumps(forged)], tmp_path, api)


def test_python_saves_the_result_of_a_local_file(api: ReplicateApi, version: str, tmp_path: Path) -> None:
    run_python(fill_in(example(README, "python", "replicate.run"), api, version), tmp_path, api)
    check([tmp_path / "photo-x4.png"], api, (256, 192))


def test_python_shows_progress(api: ReplicateApi, version: str, tmp_path: Path) -> None:
    shown = run_python(fill_in(example(API, "python", "prediction.progress"), api, version), tmp_path, api)
    assert shown.splitlines()[-1] == "succeeded 100%"
    check([tmp_path / "photo-160.png"], api, (160, 120))


@pytest.mark.slow
def test_javascript_saves_the_result_of_a_local_file(
    api: ReplicateApi, version: str, node_modules: Path, tmp_path: Path
) -> None:
    run_js(fill_in(example(README, "js", "run"), api, version), tmp_path, api, node_modules)
    check([tmp_path / "photo-x4.png"], api, (256, 192))


@pytest.mark.slow
def test_javascript_shows_progress(api: ReplicateApi, version: str, node_modules: Path, tmp_path: Path) -> None:
    shown = run_js(fill_in(example(API, "js", "parseProgress"), api, version), tmp_path, api, node_modules)
    assert shown.splitlines()[-1] == "succeeded 1"
    check([tmp_path / "photo-160.png"], api, (160, 120))


@pytest.mark.slow
def test_several_images_in_one_request(node_modules: Path, tmp_path: Path) -> None:
    with ReplicateApi(predictor="predict.py:BatchPredictor", sync_wait=0.05) as api:
        api.add_model("owner", "seesr-turbo")
        version = api.add_version("owner", "seesr-turbo")
        for language in ("python", "js"):
            (folder := tmp_path / language).mkdir()
            text = fill_in(example(API, language, "sample_times"), api, version)
            run_python(text, folder, api) if language == "python" else run_js(text, folder, api, node_modules)
            files = [folder / f"result-{number}.png" for number in range(4)]
            check(files, api, (256, 192), (256, 192), (160, 224), (160, 224))


def start(api: ReplicateApi, version: str, **inputs: object) -> Prediction:
    return Client(api.token, base_url=api.url).predictions.create(version=version, input=inputs)


def readings_of(api: ReplicateApi, version: str, **inputs: object) -> tuple[list[str], Prediction]:
    """The logs of a prediction whenever they had grown, and the prediction at its end."""
    prediction = start(api, version, image=api.serve("large.jpg", jpeg((96, 96))), **inputs)
    found = [""]
    while prediction.status not in ("succeeded", "failed", "canceled"):
        time.sleep(0.05)
        prediction.reload()
        if prediction.logs != found[-1]:
            found.append(prediction.logs or "")
    return found, prediction


@pytest.mark.slow
def test_progress_rises_from_0_to_100_for_the_clients_own_readers(api: ReplicateApi, version: str) -> None:
    seen, ended = readings_of(api, version, scale_factor=8)
    assert ended.status == "succeeded", ended.error
    assert ended.metrics is not None
    logs = ended.logs or ""
    lines = [line for line in logs.splitlines() if PATTERN.match(line)]
    percents = [round(100 * read.percentage) for line in lines if (read := Prediction.Progress.parse(line))]
    assert (percents[0], percents[-1]) == (0, 100)
    assert percents == sorted(percents)
    assert 4 < len(percents) == len(lines)
    assert len(lines) <= 2 * ended.metrics["predict_time"] + 2, "more than two lines a second"
    assert "\r" not in logs
    polled = [read.percentage for text in seen if (read := Prediction.Progress.parse(text))]
    assert polled == sorted(polled)
    assert len(set(polled)) > 2, "a caller who polls sees it rise"


@pytest.mark.slow
def test_the_javascript_client_reads_the_same_progress(
    api: ReplicateApi, version: str, node_modules: Path, tmp_path: Path
) -> None:
    logs, _ = readings_of(api, version)
    code = 'import { parseProgressFromLogs as parse } from "replicate";\nimport { readFile } from "node:fs/promises";\n'
    code += 'console.log(JSON.stringify(JSON.parse(await readFile("logs.json")).map((logs) => parse({ logs }))));\n'
    (tmp_path / "logs.json").write_text(json.dumps(logs))
    read = json.loads(run_js(code, tmp_path, api, node_modules))
    wanted = [Prediction.Progress.parse(text) for text in logs]
    assert read == [progress and vars(progress) for progress in wanted]
    assert read[-1] == {"percentage": 1, "current": 100, "total": 100}


EARLIER = {
    "user_prompt": "",
    "positive_prompt": "clean, high-resolution, 8k, best quality, masterpiece",
    "negative_prompt": "dotted, noise, blur, lowres, oversmooth, longbody, bad anatomy, bad hands, missing fingers, "
    "extra digit, fewer digits, cropped, worst quality, low quality",
    "num_inference_steps": 4,
    "scale_factor": 4,
    "cfg_scale": 1.0,
    "use_kds": True,
    "bandwidth": 0.1,
    "num_particles": 10,
    "seed": 231,
    "latent_tiled_size": 320,
    "latent_tiled_overlap": 4,
}
"""Every input of the customer's earlier repository (cog-super-resolution-SEESR) at its default."""

LUCATACO = {
    "user_prompt": "",
    "positive_prompt": "clean, high-resolution, 8k",
    "negative_prompt": "dotted, noise, blur, lowres, smooth",
    "cfg_scale": 5.5,
    "num_inference_steps": 50,
    "sample_times": 1,
    "latent_tiled_size": 320,
    "latent_tiled_overlap": 4,
    "scale_factor": 4,
    "seed": 231,
}
"""Every input of lucataco/seesr at its default. Its least number of steps is 10, and SD-Turbo's most is 4."""


@pytest.mark.parametrize(
    "inputs", [EARLIER, LUCATACO | {"num_inference_steps": 4}], ids=["earlier repository", "lucataco"]
)
def test_calls_of_other_repositories_run_unchanged(api: ReplicateApi, version: str, inputs: dict[str, Any]) -> None:
    prediction = start(api, version, image=api.serve("small.jpg", jpeg((24, 32))), **inputs)
    prediction.wait()
    assert prediction.status == "succeeded", prediction.error
    assert prediction.metrics is not None
    assert prediction.metrics["seed"] == 231
    assert Image.open(io.BytesIO(served(api)[0])).size == (96, 128)


@pytest.mark.parametrize(
    ("inputs", "detail"),
    [
        (LUCATACO, "- input.num_inference_steps: 50 is greater than the maximum of 4"),
        ({"seed": None}, '- input.seed: null is not of type "integer"'),
    ],
    ids=["50 steps", "null"],
)
def test_what_is_out_of_range_is_refused_in_one_sentence(
    api: ReplicateApi, version: str, inputs: dict[str, Any], detail: str
) -> None:
    with pytest.raises(ReplicateError) as refused:
        start(api, version, image=api.serve("small.jpg", PHOTO), **inputs)
    assert refused.value.status == 422
    assert str(refused.value.detail).startswith(detail)
    assert str(refused.value.detail).count("\n") == 1


@pytest.mark.slow
def test_predictions_wait_for_each_other_and_can_be_cancelled(api: ReplicateApi, version: str) -> None:
    uri = f"data:image/jpeg;base64,{base64.b64encode(PHOTO).decode()}"
    long = start(api, version, image=uri, scale_factor=8, use_kds=True)
    queued = [start(api, version, image=uri, scale_factor=2, misspelt=1) for _ in range(3)]
    queued[0].cancel()
    assert queued[0].status == "canceled"
    long.cancel()
    assert long.status == "canceled"
    assert long.metrics is not None
    assert long.metrics["predict_time"] > 0  # the Cog server says so
    for prediction in queued[1:]:
        prediction.wait()
        assert prediction.status == "succeeded", prediction.error
    times = [(api.predictions[prediction.id].view["started_at"], prediction.completed_at) for prediction in queued[1:]]
    assert sorted(times)[0][1] <= sorted(times)[1][0] or sorted(times)[1][1] <= sorted(times)[0][0]
