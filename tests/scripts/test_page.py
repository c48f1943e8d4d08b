"""The playground without a browser: forms from schemas, requests as code, clients, forecasts, previews."""

import base64
import io
import itertools
import json
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from scripts.cog_server import CogServer
from scripts.page import calls, panels
from scripts.page.cog_client import CogClient, check_address, is_loopback
from scripts.page.form import Field, main_field, read_fields, read_values
from scripts.page.job import Health, Job, error_of, send
from scripts.page.log import in_order, read_progress
from scripts.page.replicate_client import ReplicateClient
from scripts.page.studio import Studio
from scripts.page.toolbox import REPORT_AT_ONCE
from scripts.page.toolbox_process import ToolboxProcess
from scripts.page.tools import Tools
from scripts.page.visit import KEPT, Result, Source, Visit, metrics_of
from scripts.playground import free_port
from seesr.progress import ProgressBar
from tests.replicate_api import ReplicateApi
from tests.test_inputs import INPUTS, SCHEMAS

SLOW = """
import time
from cog import BasePredictor, Input

class Slow(BasePredictor):
    def predict(self, seconds: float = Input(default=0, description="How long."),
                steps: int = Input(default=1, ge=1, le=4, description="Steps.")) -> str:
        print(" 10%|#   | 10/100 [00:00<00:00, denoise]", flush=True)
        for _ in range(int(seconds * 20)):  # a cancellation comes between two of them
            time.sleep(0.05)
        if steps == 3:
            raise ValueError("three is not served")
        return "done"
"""


def document(predictor: str = "Predictor") -> dict[str, Any]:
    return {"components": {"schemas": json.loads(SCHEMAS.read_text())[predictor]}}


FIELDS = read_fields(document())


def field(name: str) -> Field:
    (found,) = [field for field in FIELDS if field.name == name]
    return found


def test_every_input_has_a_field_in_its_order() -> None:
    assert [field.name for field in FIELDS] == INPUTS
    kinds = {field.kind for field in FIELDS}
    assert kinds == {"file", "text", "integer", "number", "boolean", "choice"}
    in_sight = [field.name for field in FIELDS if field.everyday]
    assert in_sight == ["image", "num_inference_steps", "scale_factor", "target_long_side", "output_format", "fidelity"]
    assert field("color_fix").choices == ("wavelet", "dwt", "adain", "none")
    assert (field("fidelity").minimum, field("fidelity").maximum, field("fidelity").step) == (0, 1, 0.05)
    assert field("seed").step is None
    assert field("seed").info.endswith("(0 to 9007199254740991)")
    assert field("num_inference_steps").info == field("num_inference_steps").description, "a slider shows its range"
    assert (field("num_inference_steps").title, field("color_fix").title) == ("Num inference steps", "Color fix")
    assert Field("shade", "Shade", "number", minimum=0, maximum=1).step is None, "a slider cannot be empty"


def test_several_files_and_an_input_that_nobody_knows() -> None:
    found = document("BatchPredictor")
    found["components"]["schemas"]["Input"]["properties"]["shade"] = {"type": "number", "x-order": 99, "title": "Shade"}
    fields = read_fields(found)
    assert [fields[-1].name, fields[-1].kind, fields[-1].everyday] == ["shade", "number", False]
    main = main_field(fields)
    assert main is not None
    assert (main.name, main.several, main.required) == ("images", True, True)


def test_a_server_without_inputs_is_refused() -> None:
    with pytest.raises(ValueError, match="is it a Cog server"):
        read_fields({"openapi": "3.0.2"})


def test_only_changed_values_are_sent() -> None:
    start = {field.name: field.default for field in FIELDS}
    assert read_values(FIELDS, start) == {}
    changed = {"num_inference_steps": 2.0, "seed": 0, "positive_prompt": "", "use_kds": True, "scale_factor": 4}
    wanted = {"num_inference_steps": 2, "seed": 0, "positive_prompt": "", "use_kds": True}
    assert read_values(FIELDS, start | changed) == wanted
    assert isinstance(read_values(FIELDS, start | changed)["num_inference_steps"], int)


def test_required_and_listed_values() -> None:
    fields = [Field("text", "Text", "text", required=True), Field("sizes", "Sizes", "integer", several=True)]
    assert read_values(fields, {"text": "a", "sizes": "1\n 2\n"}) == {"text": "a", "sizes": [1, 2]}
    with pytest.raises(ValueError, match="Text is missing"):
        read_values(fields, {"text": ""})
    with pytest.raises(ValueError, match="Sizes must hold one integer a line, got 'one'"):
        read_values(fields, {"text": "a", "sizes": "one"})


def test_a_number_without_a_default_is_read_from_text() -> None:
    assert read_values(FIELDS, {"seed": ""}) == read_values(FIELDS, {"seed": None}) == {}
    assert read_values(FIELDS, {"seed": " 7 "}) == {"seed": 7}
    shade = Field("shade", "Shade", "number")
    assert read_values([shade], {"shade": "0.5"}) == {"shade": 0.5}
    with pytest.raises(ValueError, match="Seed must be an integer or empty, got '7,5'"):
        read_values(FIELDS, {"seed": "7,5"})
    with pytest.raises(ValueError, match="Shade must be a number or empty, got 'nan'"):
        read_values([shade], {"shade": "nan"})


def test_progress_is_read_from_the_bar_that_predict_prints() -> None:
    stream = io.StringIO()
    bar = ProgressBar(stream=stream)
    assert read_progress(stream.getvalue()) == (0.0, "start")
    bar(1.0, "decode")
    assert read_progress(f"Tags: cat\n{stream.getvalue()}decode: 1.2 s\n") == (1.0, "decode")
    assert read_progress("no bar") is None
    assert [*in_order({"file": 1, "color": 1, "own": 1, "tag": 1})] == ["tag", "color", "file", "own"]


def run_curl(script: str, folder: Path) -> bytes:
    """Run a call with a `curl` that keeps the body it was to send, and answers with a result of "abc"."""
    answer = """{"output":"data:image/png;base64,YWJj","status":"succeeded"}"""
    curl = f"""curl() {{ cat > body; printf %s '{answer}'; }}\n"""
    subprocess.run(["bash", "-euc", curl + script], cwd=folder, check=True)
    return (folder / "body").read_bytes()


def test_calls_repeat_the_request(tmp_path: Path) -> None:
    name = "it's a photo.jpg"
    (tmp_path / name).write_bytes(b"\xff" * 100)
    job = Job({"user_prompt": "a 'cat' \"%s\" $HOME \\n ü", "use_kds": True, "seed": 7}, {"image": tmp_path / name})
    found = calls.for_cog("http://127.0.0.1:5000", job, "png")
    body = json.loads(run_curl(found["curl"], tmp_path))
    image = base64.b64encode(b"\xff" * 100).decode()
    assert body == {"input": {"image": f"data:image/jpeg;base64,{image}", **job.inputs}}
    assert (tmp_path / "result.png").read_bytes() == b"abc"
    compile(found["Python"], "call", "exec")
    assert '"use_kds": True' in found["Python"]
    assert "use_kds: true" in found["JavaScript"]


def test_calls_of_several_files_and_of_replicate(tmp_path: Path) -> None:
    files = [tmp_path / "a.png", tmp_path / "b.png"]
    for file in files:
        file.write_bytes(file.name.encode())
    job = Job({"seed": 1}, {"images": files})
    body = json.loads(run_curl(calls.for_cog("http://127.0.0.1:1", job, "png")["curl"], tmp_path))
    assert body == {
        "input": {"images": ["data:image/png;base64,YS5wbmc=", "data:image/png;base64,Yi5wbmc="], "seed": 1}
    }
    assert (tmp_path / "result-1.png").read_bytes() == b"abc"
    found = calls.for_replicate("https://api.replicate.com", f"owner/name:{'0' * 64}", job, "png")
    for code in (found["Python"], calls.for_cog("http://127.0.0.1:1", job, "png")["Python"]):
        compile(code, "call", "exec")
    curl = """curl() {
        case "$*" in *v1/files*) echo '{"urls": {"get": "https://x/1"}}' ;; *) printf %s "${@: -1}" ;; esac
    }
"""
    script = found["curl"].partition(" > answer.json")[0] + " > answer.json"
    subprocess.run(["bash", "-euc", curl + script], cwd=tmp_path, check=True, env={"REPLICATE_API_TOKEN": "none"})
    wanted = {"version": "0" * 64, "input": {"images": ["https://x/1", "https://x/1"], "seed": 1}}
    assert json.loads((tmp_path / "answer.json").read_text()) == wanted


def test_text_of_others_is_escaped(tmp_path: Path) -> None:
    metrics = {"tags": ["<b>cat"], "seed": 1, "recoveries": {"out of memory in decode": 2}}
    result = Result(1, "about", tmp_path, None, Job({}, {}), metrics, {}, [])
    assert "&lt;b&gt;cat" in panels.details(result)
    assert "out of memory in decode (2 ×)" in panels.details(result)
    assert "<script>" not in panels.status(Health(False, "<script>"), "") + panels.notice("<script>", "error")


def test_metrics_and_labels_of_several_outputs() -> None:
    metrics = {"seed": 1, "tags": ["cat"], "seed_2": 5, "tags_2": [], "predict_time": 3.0}
    assert metrics_of(metrics, 0) == {"seed": 1, "tags": ["cat"], "predict_time": 3.0}
    assert metrics_of(metrics, 1) == {"seed": 5, "tags": []}


def add(visit: Visit, job: Job, name: str = "photo.jpg", **metrics: Any) -> Result:
    """A result as a studio keeps it."""
    path = visit.new_folder() / "result.png"
    path.write_bytes(b"")
    visit.add(result := Result(visit.count, "", path, Source(Path(name)), job, metrics, {}, []))
    return result


def test_results_are_told_apart_by_that_in_which_they_differ() -> None:
    visit = Visit()
    first = add(visit, Job({"scale_factor": 2, "fidelity": 0}, {}), seed=5)
    assert visit.label(first) == "1: seed 5"
    second = add(visit, Job({"scale_factor": 2, "fidelity": 1, "seed": 5}, {}), seed=5)
    third = add(visit, Job({"scale_factor": 2}, {}), "cat.png")
    assert visit.label(first) == "1: photo, fidelity 0, seed 5"
    assert visit.label(second) == "2: photo, fidelity 1, seed 5"
    assert visit.label(third) == "3: cat"
    visit.close()


def test_a_visit_keeps_its_last_results_and_all_of_the_newest_request() -> None:
    visit = Visit()
    for _ in range(KEPT + 2):
        add(visit, Job({}, {}))
    assert [result.number for result in visit.results] == [*range(3, KEPT + 3)]
    assert len([*visit.folder.iterdir()]) == KEPT
    job = Job({}, {})
    results = [add(visit, job) for _ in range(KEPT + 4)]
    assert visit.results == results
    assert all(result.path.exists() for result in results)
    add(visit, Job({}, {}))
    assert len(visit.results) == KEPT
    visit.close()
    assert not visit.folder.exists()


@pytest.fixture
def studio(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Studio:
    """For several photographs, without a server."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return Studio(CogClient(lambda: "http://127.0.0.1:1"), ToolboxProcess(), document("BatchPredictor"))


def test_a_result_of_several_is_repeated_alone(studio: Studio, tmp_path: Path) -> None:
    files = [tmp_path / "a.png", tmp_path / "b.png"]
    for file in files:
        file.write_bytes(file.name.encode())
    job = Job({"sample_times": 2, "fidelity": 1}, {"images": [*files]}, metrics={"seed": 1, "seed_2": 2, "seed_3": 3})
    result = add(studio.visit("one"), job, str(files[1]), seed=3)
    body = json.loads(run_curl(studio.calls(result)["curl"], tmp_path))
    assert body == {"input": {"images": ["data:image/png;base64,Yi5wbmc="], "fidelity": 1, "seed": 3}}


def test_a_visit_has_one_folder(studio: Studio, tmp_path: Path) -> None:
    assert studio.visit("one") is studio.visit("one")
    assert len([*tmp_path.glob("visit-*")]) == 1
    studio.close()
    assert [*tmp_path.iterdir()] == []


def test_seconds_and_costs_on_replicate_stand_where_the_server_s_are_unknown() -> None:
    sources = [Source(Path("a.png"), 8, 8), Source(Path("b.png"), 8, 8)]
    cards = [{"card": "t4", "seconds": 4.0, "dollars": 0.001}, {"card": "h100", "seconds": 1.0, "dollars": 0.003}]
    size = {"width": 32, "height": 32}
    unknown = [size | {"seconds": None, "times": 2, "cards": cards}, size | {"seconds": None, "cards": cards}]
    assert "About <b>3.0 s</b> to <b>12 s</b> on Replicate, $0.0030 to $0.0090" in panels.facts(sources, unknown)
    known = [found | {"seconds": 1.5} for found in unknown]
    assert "About <b>3.0 s</b> here" in panels.facts(sources, known)
    assert "Replicate" not in panels.facts(sources, known) + panels.facts(sources, [{"error": "too large"}, unknown[1]])


@pytest.mark.parametrize("address", ["127.0.0.1:5000", "ftp://host", "http://", ""])
def test_an_address_that_is_none_is_refused(address: str) -> None:
    with pytest.raises(ValueError, match="--url must be the address of a Cog server, such as"):
        check_address(address)


def test_addresses_and_ports() -> None:
    assert check_address("http://localhost:5000/") == "http://localhost:5000"
    found = [
        is_loopback(f"http://{host}:1") for host in ("127.0.0.1", "localhost", "[::1]", "192.168.0.1", "example.com")
    ]
    assert found == [True, True, True, False, False]
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(ValueError, match=r"cannot listen at 127\.0\.0\.1:\d+ .*choose another with --port"):
            free_port("127.0.0.1", taken.getsockname()[1])
    assert free_port("127.0.0.1", 0) > 0


def test_the_server_s_sentence_comes_without_what_stands_before_it() -> None:
    assert (
        error_of(200, {"status": "failed", "error": "Prediction failed: Prediction failed: ValueError: no."}) == "no."
    )
    detail = [{"loc": ["body", "input", "steps"], "msg": "9 is greater than the maximum of 4"}]
    assert error_of(422, {"detail": detail}) == "steps: 9 is greater than the maximum of 4"


@pytest.fixture(scope="module")
def slow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CogServer]:
    folder = tmp_path_factory.mktemp("slow")
    (folder / "slow.py").write_text(SLOW)
    with CogServer(folder, "slow.py:Slow", REPORT_AT_ONCE) as server:
        yield server


@pytest.fixture
def client(slow: CogServer) -> Iterator[CogClient]:
    with CogClient(lambda: slow.url).listening() as running:
        yield running


def started(client: CogClient, **inputs: Any) -> Job:
    job = Job(inputs, {})
    client.start(job)
    return job


def wait_until(condition: Any) -> None:
    end = time.monotonic() + 30
    while not condition() and time.monotonic() < end:
        time.sleep(0.02)
    assert condition()


def test_a_job_reports_progress_waits_its_turn_and_is_cancelled(client: CogClient) -> None:
    first = started(client, seconds=60)
    wait_until(lambda: read_progress(first.logs) == (0.1, "denoise"))
    second = started(client)
    wait_until(lambda: "busy with another request" in second.note)
    third = started(client)
    wait_until(lambda: third.note)
    client.cancel(third)
    assert third.status == "canceled"
    client.cancel(first)
    assert first.ended.wait(30)
    assert second.ended.wait(30)
    assert (first.status, second.status, second.text) == ("canceled", "succeeded", "done")


@pytest.mark.parametrize("held", [1, 2], ids=["health", "prediction"])
def test_a_job_cancelled_before_the_server_knows_it_does_not_run(slow: CogServer, held: int) -> None:
    """The cancellation comes while the client asks for the server's health, or sends the prediction."""
    number, here, go = itertools.count(), threading.Event(), threading.Event()

    def address() -> str:
        if next(number) == held:
            here.set()
            go.wait(30)
        return slow.url

    with CogClient(address).listening() as client:
        job = started(client, seconds=40)
        assert here.wait(30)
        threading.Timer(0.3, go.set).start()
        client.cancel(job)
        assert job.ended.wait(30)
        assert job.status == "canceled"
        time.sleep(0.5)  # in which a prediction would begin
        wait_until(lambda: client.health().sentence == "Ready")


def test_an_answer_that_is_not_http_is_a_sentence() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def talk() -> None:
            for _ in range(2):
                connection, _ = server.accept()
                with connection:
                    connection.recv(1000)
                    connection.sendall(b"SSH-2.0-x\r\n")

        threading.Thread(target=talk, daemon=True).start()
        url = f"http://127.0.0.1:{server.getsockname()[1]}"
        with pytest.raises(OSError, match=r"no HTTP answer: SSH-2\.0-x"):
            send("GET", url)
        health = CogClient(lambda: url).health()
        assert health == Health(False, "The server does not answer (no HTTP answer: SSH-2.0-x)")


def test_a_job_that_fails_says_why(client: CogClient) -> None:
    for steps, sentence in ((3, "three is not served"), (9, "steps: 9 is greater than the maximum of 4")):
        job = started(client, steps=steps)
        assert job.ended.wait(30)
        assert (job.status, job.error) == ("failed", sentence)


def test_a_server_that_is_away_is_waited_for(slow: CogServer) -> None:
    address = [""]
    with CogClient(lambda: address[0]).listening() as client:
        assert not client.health().ready
        job = started(client)
        wait_until(lambda: "waiting for it" in job.note)
        address[0] = "http://127.0.0.1:9"
        assert "does not answer" in client.health().sentence
        address[0] = slow.url
        assert job.ended.wait(30)
        assert job.status == "succeeded"


def test_replicate_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("REPLICATE_API_TOKEN", raising=False)
    with pytest.raises(ValueError, match="--model needs REPLICATE_API_TOKEN"):
        ReplicateClient("owner/name")
    with ReplicateApi() as api:
        for name, value in api.env.items():
            monkeypatch.setenv(name, value)
        with pytest.raises(ValueError, match="--model must be OWNER/NAME or OWNER/NAME:VERSION, got 'name'"):
            ReplicateClient("name")
        with pytest.raises(ValueError, match="answers HTTP 404 about owner/other"):
            ReplicateClient("owner/other").document()
        api.add_model("owner", "new")
        with pytest.raises(ValueError, match="owner/new has no version yet: push one"):
            ReplicateClient("owner/new").document()
        monkeypatch.setenv("REPLICATE_API_TOKEN", "wrong")
        with pytest.raises(ValueError, match="HTTP 401"):
            ReplicateClient("owner/new").document()


SETUP = """[coglet::setup] No GPU: profile cpu.
[coglet::setup] Loaded SeeSR-tiny on cpu, attention by torch SDPA.
[coglet::setup] tag: 0.01 s
[coglet::setup] encode: 0.04 s
[coglet::setup] denoise: 0.33 s
[coglet::setup] decode: 0.15 s
"""


def test_a_forecast_knows_sizes_learns_seconds_and_estimates_costs() -> None:
    tools = Tools()
    found = tools.forecast(120, 128, {"scale_factor": 2.5})
    assert (found["width"], found["height"], found["seconds"]) == (300, 320, None)
    assert {"card", "seconds", "dollars"} == found["cards"][0].keys()
    tools.read_setup(SETUP)
    first = tools.forecast(120, 128, {})["seconds"]
    assert first > 0.5
    assert tools.forecast(120, 128, {"num_inference_steps": 1})["seconds"] < first
    tools.learn(120, 128, {}, {"tag": 0.1, "encode": 1.0, "denoise": 10.0, "decode": 2.0})
    assert tools.forecast(120, 128, {})["seconds"] == pytest.approx(13.1, abs=0.1)
    assert tools.forecast(120, 128, {"sample_times": 2})["seconds"] == pytest.approx(26.2, abs=0.2)
    with pytest.raises(ValueError, match="the result may have at most 67 megapixels"):
        tools.forecast(5000, 5000, {})
    with pytest.raises(ValueError, match="target_long_side must be 1 to 8 times"):
        tools.forecast(120, 128, {"target_long_side": 5000})


def test_a_large_model_without_a_warm_up_is_forecast_by_this_machine() -> None:
    tools = Tools()
    tools.read_setup("Loaded SeeSR-tiny on cpu, attention by torch SDPA.\n")
    assert tools.forecast(120, 128, {})["seconds"] > 0


def test_previews_are_upright_whole_and_of_8_bits(tmp_path: Path) -> None:
    tools, deep, turned = Tools(), tmp_path / "deep.tiff", tmp_path / "turned.jpg"
    Image.fromarray(np.full((12, 16), 30000, np.uint16)).save(deep)
    looked = tools.look(str(deep), str(tmp_path))
    assert (looked["width"], looked["height"]) == (16, 12)
    assert Image.open(looked["shown"]).mode == "L"
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn
    Image.new("RGB", (16, 12), "red").save(turned, exif=exif)
    looked = tools.look(str(turned), str(tmp_path))
    assert looked == {"width": 12, "height": 16, "shown": str(turned)}
    found = tools.compare(str(turned), str(deep), str(tmp_path))
    assert (Image.open(found["before"]).size, Image.open(found["after"]).size) == ((16, 12), (16, 12))
    assert Image.open(found["after"]).mode == "L"
    (tmp_path / "text.png").write_text("no image")
    with pytest.raises(ValueError, match="must be an image file"):
        tools.look(str(tmp_path / "text.png"), str(tmp_path))
