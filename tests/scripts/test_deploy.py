"""scripts/deploy against Replicate's API on loopback; a stand-in for Cog's command line records what it gets."""

import argparse
import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from scripts import deploy, stage
from scripts.bundle_writer import hash_files
from seesr.hardware import AUTO, GPUS
from seesr.settings import Settings
from tests.replicate_api import ReplicateApi

ROOT = Path(__file__).resolve().parents[2]
UNKNOWN = "gpu-next"
"""Hardware on loopback that we have no profile of."""

NUMBERS = itertools.count()
LOGIN = "secret-of-the-login"
COG = """#!{python}
import json, os, sys, time
from pathlib import Path
here, words = Path(__file__).parent, sys.argv[1:]
if words == ["--version"]:
    print(f"cog version {{(here / 'version').read_text()}} (built 2026-08-13)")
    sys.exit()
if words[0] == "login":
    sys.exit(sys.stdin.read() != "{login}")
files = [os.path.relpath(os.path.join(folder, name)) for folder, _, names in os.walk(".") for name in names]
record = {{"words": words, "folder": os.getcwd(), "env": dict(os.environ), "files": files}}
record |= {{"pid": os.getpid(), "config": Path("cog.yaml").read_text()}}
status = (here / "status").read_text()
(here / f"{{time.time_ns()}}.part").write_text(json.dumps(record | {{"status": status}}))
for part in here.glob("*.part"):
    part.rename(part.with_suffix(".json"))
print("cog pushes", flush=True)
while status == "hang":
    time.sleep(0.05)
sys.exit(int(status))
"""


class CogStandIn:
    """`cog` in a folder of PATH. A push with status 0 makes a version, as Replicate does after a push."""

    def __init__(self, folder: Path, api: ReplicateApi) -> None:
        folder.mkdir()
        self.folder, self.versions = folder, dict[Path, str]()
        (folder / "cog").write_text(COG.format(python=sys.executable, login=LOGIN))
        (folder / "cog").chmod(0o755)
        self.set("0")
        self._api, self._over = api, threading.Event()
        threading.Thread(target=self._publish, daemon=True).start()

    def set(self, status: str, version: str = "0.22.0") -> None:
        (self.folder / "status").write_text(status)
        (self.folder / "version").write_text(version)

    def pushes(self) -> list[dict[str, Any]]:
        return [json.loads(path.read_text()) for path in sorted(self.folder.glob("*.json"))]

    def _publish(self) -> None:
        while not self._over.wait(0.02):
            for path in sorted(set(self.folder.glob("*.json")) - self.versions.keys()):
                record = json.loads(path.read_text())
                name = record["words"][1].removeprefix("r8.im/").split("/")
                self.versions[path] = self._api.add_version(*name) if record["status"] == "0" else ""

    def close(self) -> None:
        self._over.set()


@pytest.fixture(scope="module")
def running_api() -> Iterator[ReplicateApi]:
    with ReplicateApi() as api:
        api.hardware |= {UNKNOWN: "A card without a profile"}
        yield api


@pytest.fixture
def model() -> str:
    """A name that no other test has."""
    return f"owner/model-{next(NUMBERS)}"


@pytest.fixture
def api(running_api: ReplicateApi, monkeypatch: pytest.MonkeyPatch) -> ReplicateApi:
    running_api.requests.clear()
    for name, value in (running_api.env | {"REPLICATE_POLL_INTERVAL": "0.1"}).items():
        monkeypatch.setenv(name, value)
    return running_api


@pytest.fixture
def cog(api: ReplicateApi, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[CogStandIn]:
    """Cog as it is where everything is set up: on PATH and logged in."""
    cog = CogStandIn(tmp_path / "bin", api)
    monkeypatch.setenv("PATH", f"{cog.folder}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
    monkeypatch.delenv(deploy.LOGIN_TOKEN, raising=False)
    (tmp_path / "config.json").write_text('{"auths": {"r8.im": {"auth": "eDp5"}}}')
    yield cog
    cog.close()


@pytest.fixture
def bundle(tmp_path: Path, tiny_bundle: Path) -> Path:
    """A bundle that says it is the full model, with a file that Cog takes for weights."""
    folder = tmp_path / "full"
    shutil.copytree(tiny_bundle, folder)
    with (folder / "unet/more.safetensors").open("wb") as file:
        file.truncate(stage.LARGE)
    info = json.loads((folder / "bundle.json").read_text()) | {"kind": "seesr-turbo", "files": hash_files(folder)}
    (folder / "bundle.json").write_text(json.dumps(info))
    return folder


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Callable[..., tuple[Any, str]]:
    """Run a command line in this process: (exit status or message, what it printed). No token is ever printed."""

    def run(*words: object) -> tuple[Any, str]:
        monkeypatch.setattr(sys, "argv", ["deploy", *map(str, words)])
        before, code = signal.getsignal(signal.SIGTERM), None
        try:
            deploy.main()
        except SystemExit as end:
            code = end.code
        finally:
            signal.signal(signal.SIGTERM, before)
        out, err = capfd.readouterr()
        for secret in filter(None, (os.environ.get(deploy.API_TOKEN), LOGIN)):
            assert secret not in f"{code}{out}{err}"
        return code, out + err

    return run


Run = Callable[..., tuple[Any, str]]


def writes(api: ReplicateApi) -> list[str]:
    return [f"{request.method} {request.path}" for request in api.requests if request.method != "GET"]


def stages() -> list[Path]:
    return list((ROOT / "weights").glob(".stage-*"))


def test_a_first_push_makes_a_model_with_a_page(
    api: ReplicateApi, model: str, cog: CogStandIn, bundle: Path, run: Run
) -> None:
    code, printed = run("push", model, "--hardware", "gpu-l40s", "--bundle", bundle, "--public")
    assert code is None, printed
    assert re.search(r"(?s)token .*cog .*bundle .*model .*stage .*run .*cog pushes.*version .*cost ", printed)
    (push,) = cog.pushes()
    assert push["words"] == ["push", f"r8.im/{model}", "--separate-weights"]
    assert push["env"]["COGLET_WHEEL"] == "pypi:0.23.1"
    assert not {deploy.API_TOKEN, deploy.LOGIN_TOKEN} & push["env"].keys()
    assert api.token not in json.dumps(push)
    assert "- SEESR_GPU=l40s\n" in push["config"]
    assert f"{stage.BUNDLE}/unet/more.safetensors" in push["files"]
    assert not Path(push["folder"]).exists()

    made, (version,) = api.models[model], cog.versions.values()
    assert (made["hardware"], made["visibility"]) == ("gpu-l40s", "public")
    assert made["readme"] == (ROOT / "docs/model-page.md").read_text()
    assert made["description"].startswith("SeeSR on SD-Turbo")
    assert {name: made[name] for name in deploy.LINKS} == deploy.LINKS
    assert printed.count(f"{model}:{version}") == 2
    assert f'"version": "{version}"' in printed
    assert not re.search("OWNER|VERSION", printed)
    assert f"https://replicate.com/{model}" in printed
    assert re.search(r"cost .*gpu-l40s: 2048² in 4 steps \d+\.\d s \$0\.00\d\d", printed)


@pytest.mark.slow
def test_a_push_to_an_existing_model_says_who_changes_its_hardware(
    api: ReplicateApi, model: str, cog: CogStandIn, tiny_bundle: Path, run: Run
) -> None:
    api.add_model(*model.split("/"), hardware="gpu-t4")
    command = ("push", model, "--hardware", UNKNOWN, "--bundle", tiny_bundle, "--public")
    code, printed = run(*command)
    assert code is None, printed
    assert "exists, private. Its hardware, which the API does not tell, stays" in printed
    assert f"if it is not {UNKNOWN}, change it on its settings page, or use scripts/deploy deployment" in printed
    assert "Only the settings page makes it public" in printed
    made = api.models[model]
    assert (made["hardware"], made["visibility"]) == ("gpu-t4", "private")
    assert made["description"].startswith("A test, not the full model.")
    assert made["readme"] is None
    assert "not the full model, a test" in printed
    assert cog.pushes()[0]["words"] == ["push", f"r8.im/{model}"], "nothing here is large enough for a layer"
    assert "SEESR_GPU=auto" in cog.pushes()[0]["config"]

    first = made["latest_version"]["id"]
    code, printed = run(*command)
    assert code is None
    assert made["latest_version"]["id"] != first
    assert f"{model}:{made['latest_version']['id']}" in printed
    assert writes(api) == [f"PATCH /v1/models/{model}"] * 2


def test_when_cog_fails_its_status_is_ours_and_a_second_run_works(
    api: ReplicateApi,
    model: str,
    cog: CogStandIn,
    tiny_bundle: Path,
    run: Run,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    command = ("push", model, "--hardware", UNKNOWN, "--bundle", tiny_bundle, "--stage", tmp_path / "stage")
    cog.set("3")
    code, printed = run(*command)
    assert code == 3
    assert f"cog push r8.im/{model} ended with 3; correct its fault and run this again" in printed
    assert api.models[model]["description"] is None
    cog.set("0")
    (tmp_path / "stage/left-over").touch()
    code, printed = run(*command)
    assert code is None
    assert f"{model}: exists" in printed
    assert cog.pushes()[1]["folder"] == str(tmp_path / "stage")
    assert sorted(cog.pushes()[0]["files"]) == sorted(cog.pushes()[1]["files"])


@pytest.mark.slow
@pytest.mark.parametrize(("signal_", "status"), [(signal.SIGINT, 1), (signal.SIGTERM, 143)])
def test_an_interrupted_push_leaves_nothing_behind(
    model: str, cog: CogStandIn, tiny_bundle: Path, signal_: signal.Signals, status: int
) -> None:
    cog.set("hang")
    words = [ROOT / "scripts/deploy.py", "push", model, "--hardware", "gpu-t4", "--bundle", tiny_bundle]
    process = subprocess.Popen(
        [sys.executable, *map(str, words)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background jobs ignore it
    )
    try:
        while not cog.pushes():
            assert process.poll() is None
            time.sleep(0.05)
        (push,) = cog.pushes()
        assert Path(push["folder"]).is_dir()
        process.send_signal(signal_)
        printed = process.communicate(timeout=120)[0].decode()
    finally:
        process.kill()
    assert process.returncode == status
    assert ("deploy: interrupted; run it again" in printed) == (signal_ == signal.SIGINT)
    assert "Traceback" not in printed
    assert not Path(push["folder"]).exists()
    with pytest.raises(ProcessLookupError):
        os.kill(push["pid"], 0)


@pytest.mark.slow
def test_the_same_files_are_the_same_version(
    api: ReplicateApi, model: str, cog: CogStandIn, tiny_bundle: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REPLICATE_POLL_INTERVAL", "0.01")
    cog.close()
    api.add_model(*model.split("/"))
    version = api.add_version(*model.split("/"))
    code, printed = run("push", model, "--hardware", UNKNOWN, "--bundle", tiny_bundle)
    assert code is None
    assert f"version     {version}, as before" in printed
    code, printed = run("push", f"{model}-new", "--hardware", UNKNOWN, "--bundle", tiny_bundle)
    assert f"Cog pushed, but Replicate lists no version of {model}-new" in code


def test_a_push_without_a_bundle_is_refused_before_anything(
    api: ReplicateApi, model: str, cog: CogStandIn, run: Run, tmp_path: Path
) -> None:
    code, _ = run("push", model, "--hardware", "gpu-t4", "--bundle", tmp_path / "none")
    assert "has no bundle.json, and no worker starts without a bundle" in code
    assert writes(api) == []
    assert cog.pushes() == stages() == []


@pytest.mark.parametrize(
    ("hardware", "sentence"),
    [
        (
            "gpu-v100",
            "--hardware must be one of cpu, gpu-t4, gpu-l40s, gpu-a100-large, gpu-h100, gpu-next today, got gpu-v100",
        ),
        ("cpu", "--hardware must be a GPU, such as gpu-t4, "),
    ],
)
def test_hardware_that_is_not_offered_is_refused(
    api: ReplicateApi, model: str, cog: CogStandIn, tiny_bundle: Path, run: Run, hardware: str, sentence: str
) -> None:
    code, _ = run("push", model, "--hardware", hardware, "--bundle", tiny_bundle)
    assert sentence in code
    assert writes(api) == []


def test_cog_s_version_and_login_are_checked_before_the_model(
    api: ReplicateApi,
    model: str,
    cog: CogStandIn,
    tmp_path: Path,
    tiny_bundle: Path,
    run: Run,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    command = ("push", model, "--hardware", "gpu-t4", "--bundle", tiny_bundle)
    cog.set("0", version="0.9.8")
    assert "Cog's command line must be 0.17 or later, got 'cog version 0.9.8" in run(*command)[0]
    cog.set("0")
    (tmp_path / "config.json").unlink()
    assert "Cog is not logged in: run `cog login`, or set REPLICATE_CLI_AUTH_TOKEN" in run(*command)[0]
    monkeypatch.setenv(deploy.LOGIN_TOKEN, api.token)
    assert "`cog login` does not take REPLICATE_CLI_AUTH_TOKEN" in run(*command)[0]
    monkeypatch.setenv("PATH", "")
    assert "Cog's command line is not installed: install 0.22 from cog.run" in run(*command)[0]
    assert writes(api) == []
    monkeypatch.setenv("PATH", str(cog.folder))
    monkeypatch.setenv(deploy.LOGIN_TOKEN, LOGIN)
    assert deploy.cog_state(log_in=True) == "0.22.0, login by REPLICATE_CLI_AUTH_TOKEN"
    monkeypatch.delenv(deploy.LOGIN_TOKEN)
    (tmp_path / "config.json").write_text('{"credsStore": "desktop"}')
    cog.set("0", version="0.23.4")
    assert deploy.cog_state(log_in=True) == "0.23.4 (not checked with this version), login not checked"


@pytest.mark.parametrize(
    ("method", "path", "status", "retry_after", "sentence"),
    [
        ("GET", "/v1/account", 401, None, "REPLICATE_API_TOKEN is not valid"),
        ("GET", "/v1/models/MODEL", 403, None, "the token may not do this"),
        ("GET", "/v1/account", 404, None, "not found, or not visible to this token"),
        ("POST", "/v1/models", 402, None, "the account has no credit"),
        ("POST", "/v1/models", 409, None, "it exists already or is being changed"),
        ("POST", "/v1/models", 422, None, "correct what it names"),
        ("POST", "/v1/models", 429, 7, "retry after 7 s): too many requests: run this again later"),
        ("POST", "/v1/models", 500, None, "Replicate failed: run this again later"),
    ],
)
def test_each_refusal_of_the_api_is_one_sentence(
    model: str,
    api: ReplicateApi,
    cog: CogStandIn,
    tiny_bundle: Path,
    run: Run,
    method: str,
    path: str,
    status: int,
    retry_after: float | None,
    sentence: str,
) -> None:
    path = path.replace("MODEL", model)
    api.fail_next(method, path, status, "A detail\nof the API.", retry_after)
    code, _ = run("push", model, "--hardware", "gpu-t4", "--bundle", tiny_bundle)
    assert code.startswith(f"deploy: {method} {path}: HTTP {status} (A detail of the API.")
    assert sentence in code
    assert "\n" not in code
    assert cog.pushes() == stages() == []


def test_reading_waits_where_the_api_asks_to(api: ReplicateApi, model: str, run: Run) -> None:
    api.add_model(*model.split("/"))
    api.fail_next("GET", f"/v1/models/{model}", 429, retry_after=1)
    start = time.monotonic()
    assert run("smoke", model)[0] == f"deploy: {model} has no version: run scripts/deploy push first"
    assert time.monotonic() - start > 1


@pytest.mark.parametrize("command", [("hardware",), ("smoke", "owner/name")])
def test_without_a_good_token_or_network_one_sentence_says_so(
    api: ReplicateApi, run: Run, monkeypatch: pytest.MonkeyPatch, command: tuple[str, ...]
) -> None:
    monkeypatch.setenv(deploy.API_TOKEN, "r8_" + "0" * 37)
    assert "HTTP 401 (You did not pass a valid authentication token): REPLICATE_API_TOKEN is not" in run(*command)[0]
    monkeypatch.setenv(deploy.API_TOKEN, "r8_a\nb")
    assert "REPLICATE_API_TOKEN holds characters that no token has" in run(*command)[0]
    monkeypatch.setenv(deploy.API_TOKEN, api.token)
    monkeypatch.setenv("REPLICATE_BASE_URL", "http://127.0.0.1:1")
    assert run(*command)[0].startswith("deploy: no connection to Replicate ([Errno 111] Connection refused)")
    monkeypatch.delenv(deploy.API_TOKEN)
    assert "REPLICATE_API_TOKEN is not set: make a token at" in run(*command)[0]


@pytest.mark.slow
def test_a_dry_run_needs_no_network_no_token_no_cog_and_no_client(model: str, tmp_path: Path, bundle: Path) -> None:
    for name in ("replicate", "httpx"):
        (tmp_path / f"{name}.py").write_text("raise ImportError('the extra is not installed')")
    folder = tmp_path / "stage"
    words = ["push", model, "--hardware", "gpu-t4", "--bundle", bundle, "--dry-run", "--stage", folder]
    env = {"PATH": "/usr/bin:/bin", "PYTHONPATH": str(tmp_path), "HOME": str(tmp_path)}
    for _ in range(2):
        command = [str(word) for word in (ROOT / "scripts/deploy", *words)]
        done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert "Cog's command line is not installed: install 0.22 from cog.run (not needed for" in done.stdout
        assert f"COGLET_WHEEL=pypi:0.23.1 cog push r8.im/{model} --separate-weights" in done.stdout
        sizes = {name: (folder / name).stat().st_size for name in stage.names_in(folder) if name != stage.MARKER}
        listed = re.findall(r"(?m)^ +([\d,]+)  (\S+)$", done.stdout)
        assert {name: int(size.replace(",", "")) for size, name in listed} == sizes
        assert sizes[f"{stage.BUNDLE}/unet/more.safetensors"] == stage.LARGE


def test_hardware_lists_what_is_live_with_what_a_call_costs(api: ReplicateApi, model: str, run: Run) -> None:
    code, printed = run("hardware")
    assert code is None
    rows = {row[1]: row[2:-1] for row in (re.split(r" *\| *", line) for line in printed.splitlines()) if len(row) > 9}
    assert rows["`gpu-t4`"][:3] == ["Nvidia T4 GPU", "0.000225", "t4"]
    assert rows["`cpu`"] == ["CPU", "", "needs a GPU", *[""] * 6]
    assert rows[f"`{UNKNOWN}`"] == ["A card without a profile", "", AUTO, *[""] * 6]
    costs = [re.fullmatch(r"(\d+\.\d) s \$(0\.\d{4})", cell) for cell in rows["`gpu-t4`"][3:]]
    for found in costs:
        assert found is not None
        assert float(found[2]) == pytest.approx(0.000225 * float(found[1]), abs=1e-4)
    assert "`gpu-a40-large`: no longer offered to new models" in printed
    assert "`gpu-v100`: not offered: your own machine" in printed


def test_the_deployment_of_another_model_is_left_alone(api: ReplicateApi, model: str, run: Run) -> None:
    other = f"{model}-other"
    for name in (model, other):
        api.add_model(*name.split("/"))
        api.add_version(*name.split("/"))
    assert run("deployment", model, "--hardware", "gpu-t4", "--name", "shared")[0] is None
    code, _ = run("deployment", other, "--hardware", "gpu-t4", "--name", "shared")
    assert f"owner/shared runs {model}, not {other}: choose another --name" in code


@pytest.mark.parametrize(
    "words",
    [
        ("push", f"owner/name:{'a' * 64}", "--hardware", "gpu-t4"),
        ("deployment", f"owner/name:{'a' * 64}", "--hardware", "gpu-t4"),
        ("deployment", "owner/name", "--hardware", "gpu-t4", "--name", "../other"),
        ("smoke", "owner/name:latest"),
    ],
)
def test_odd_names_are_refused(api: ReplicateApi, run: Run, words: tuple[str, ...]) -> None:
    before = len(api.requests)
    code, printed = run(*words)
    assert code == 2
    assert "must be" in printed
    assert len(api.requests) == before


@pytest.mark.slow
def test_a_bundle_inside_the_stage_is_refused_and_stays(
    api: ReplicateApi, model: str, cog: CogStandIn, tiny_bundle: Path, run: Run, tmp_path: Path
) -> None:
    folder = tmp_path / "stage"
    command = ("push", model, "--hardware", "gpu-t4", "--stage", folder, "--dry-run", "--bundle")
    assert run(*command, tiny_bundle)[0] is None
    inside = folder / stage.BUNDLE
    assert f"--stage and --bundle must be folders apart, got {folder} and {inside}" in run(*command, inside)[0]
    assert (inside / "bundle.json").is_file()


@pytest.mark.parametrize("text", ["{bad", "[]", '{"auths": []}', "null"])
def test_a_damaged_docker_config_is_named(
    api: ReplicateApi, model: str, cog: CogStandIn, tiny_bundle: Path, run: Run, tmp_path: Path, text: str
) -> None:
    (tmp_path / "config.json").write_text(text)
    code, printed = run("push", model, "--hardware", "gpu-t4", "--bundle", tiny_bundle)
    assert "config.json must be a JSON object" in code or "Cog is not logged in" in code
    assert "Traceback" not in printed


def test_a_card_that_nobody_knows_is_refused_for_an_existing_model_too(
    api: ReplicateApi, model: str, cog: CogStandIn, tiny_bundle: Path, run: Run
) -> None:
    api.add_model(*model.split("/"))
    code, printed = run("push", model, "--hardware", "gpu-typo", "--bundle", tiny_bundle)
    assert "--hardware must be one of" in code
    assert "profile auto, since none has that name" in printed
    assert cog.pushes() == []


def test_a_deployment_is_created_and_then_updated(api: ReplicateApi, model: str, run: Run) -> None:
    api.add_model(*model.split("/"))
    code, _ = run("deployment", model, "--hardware", "gpu-h100")
    assert code == f"deploy: {model} has no version: run scripts/deploy push first"
    first, second = api.add_version(*model.split("/")), api.add_version(*model.split("/"))
    code, printed = run("deployment", model, "--hardware", "gpu-h100", "--version", first, "--name", "fast")
    assert code is None
    assert f"created     owner/fast: 0 to 3 instances of gpu-h100, version {first}" in printed
    code, printed = run("deployment", model, "--hardware", "gpu-t4", "--min", 1, "--max", 2, "--name", "fast")
    assert f"updated     owner/fast: 1 to 2 instances of gpu-t4, version {second}" in printed
    release = api.deployments["owner/fast"]["current_release"]
    assert release["configuration"] == {"hardware": "gpu-t4", "min_instances": 1, "max_instances": 2}
    assert (release["version"], release["number"]) == (second, 2)
    for limits in (("--min", 3, "--max", 2), ("--max", 0), ("--min", -1)):
        assert "--min must be 0 to --max" in run("deployment", model, "--hardware", "gpu-t4", *limits)[0]
    assert "gpu-v100 is not one of" in run("deployment", model, "--hardware", "gpu-v100")[0]


@pytest.mark.slow
def test_smoke_calls_the_model_twice(api: ReplicateApi, model: str, run: Run) -> None:
    api.add_model(*model.split("/"))
    version = api.add_version(*model.split("/"))
    code, printed = run("smoke", f"{model}:{version}", "--hardware", "gpu-t4")
    assert code is None, printed
    for call in ("cold", "warm"):
        assert re.search(rf"{call} +\d+\.\d s, of them \d+\.\d s until it started and \d+\.\d s to predict", printed)
    assert printed.count("result      448 x 300, ") == 2
    metrics = json.loads(re.findall("metrics +(.*)", printed)[1])
    assert metrics["seed"] == 1
    found = re.search(r"cost +of the warm call: \$(0\.\d+) on gpu-t4$", printed, re.MULTILINE)
    assert found
    assert float(found[1]) == pytest.approx(0.000225 * metrics["predict_time"], abs=1e-5)
    assert re.search(r"%, 0 s", printed), "progress is told"
    assert re.search(r"on gpu-t4, \$\S+ on gpu-l40s, ", run("smoke", model)[1]), "all prices if no card is named"


@pytest.mark.slow
def test_smoke_says_why_it_failed(
    api: ReplicateApi, model: str, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    api.add_model(*model.split("/"))
    api.add_version(*model.split("/"))
    code, _ = run("smoke", model, "--timeout", 0)
    assert re.fullmatch("deploy: the prediction is still (starting|processing) after 0 s; it was canceled", code)
    assert list(api.predictions.values())[-1].view["status"] == "canceled"
    broken = tmp_path / "photo.jpg"
    broken.write_bytes(b"no image")
    monkeypatch.setattr(deploy, "EXAMPLE", broken)
    code, _ = run("smoke", model)
    assert re.match("deploy: the prediction failed: .*image must be an image file", code)
    monkeypatch.setattr(deploy, "EXAMPLE", ROOT / "examples/text.jpg")
    with pytest.raises(RuntimeError, match="the result must be"):
        deploy.fetch(api.serve("result.jpg", (ROOT / "examples/people.jpg").read_bytes()))


def test_names_are_those_of_addresses() -> None:
    version = "a" * 64
    assert deploy.model_or_version(f"owner/seesr-turbo:{version}").endswith(version)
    for wrong in (
        "owner",
        "Owner/x",
        "owner/x:latest",
        "owner/x y",
        "https://replicate.com/owner/x",
        f"owner/x:{version}",
    ):
        with pytest.raises(argparse.ArgumentTypeError, match="OWNER/NAME in lower case"):
            deploy.model_name(wrong)
    assert [deploy.profile_of(f"gpu-{name}") for name in GPUS] == list(GPUS)


def test_the_workflow_pushes_with_a_cog_that_fits() -> None:
    workflow = yaml.safe_load((ROOT / ".github/workflows/push.yml").read_text())
    inputs = workflow[True]["workflow_dispatch"]["inputs"]  # YAML reads `on` as true
    assert {deploy.profile_of(sku) for sku in inputs["hardware"]["options"]} < set(GPUS)
    assert inputs["hardware"]["default"] in inputs["hardware"]["options"]
    steps = workflow["jobs"]["push"]["steps"]
    (cog,) = [step["with"] for step in steps if step.get("uses", "").startswith("replicate/setup-cog")]
    assert cog["cog-version"] == "v{}.{}.0".format(*deploy.CHECKED_COG)
    assert deploy.LOGIN_TOKEN in cog["token"]
    push = steps[-1]
    assert push["run"] == 'scripts/deploy push "$MODEL" --hardware "$HARDWARE"'
    assert push["env"].keys() == {"MODEL", "HARDWARE", deploy.API_TOKEN}
    for step in steps:
        assert "${{" not in step.get("run", ""), "an input never becomes a part of a script"
        for word in re.findall(r"(?:scripts|\.venv/bin)/\S+", step.get("run", "")):
            assert (ROOT / word).exists(), word


def test_cog_safe_push_tests_inputs_that_exist() -> None:
    config = yaml.safe_load((ROOT / "cog-safe-push.yaml").read_text())
    assert config.keys() == {"model", "test_model", "test_hardware", "predict"}
    assert deploy.profile_of(config["test_hardware"]) in GPUS
    predict, fuzz = config["predict"], config["predict"]["fuzz"]
    assert predict.keys() == {"compare_outputs", "predict_timeout", "test_cases", "fuzz"}
    assert fuzz.keys() == {"fixed_inputs", "disabled_inputs", "iterations"}
    schema = json.loads((ROOT / "tests/data/schemas.json").read_text())["Predictor"]
    names = schema["Input"]["properties"].keys()
    assert {*fuzz["fixed_inputs"], *fuzz["disabled_inputs"]} <= names
    for case in predict["test_cases"]:
        assert case["inputs"].keys() <= names
        Settings(**{name: value for name, value in case["inputs"].items() if name != "image"})
    formats = [case["inputs"].get("output_format") for case in predict["test_cases"] if "error_contains" not in case]
    assert formats == schema["output_format"]["enum"]


def test_the_model_page_names_inputs_that_exist() -> None:
    table = (ROOT / "docs/model-page.md").read_text().split("|---|---|")[1].split("\n\n")[0]
    schema = json.loads((ROOT / "tests/data/schemas.json").read_text())["Predictor"]
    named = set(re.findall(r"`(\w+)`", table))
    assert len(named) >= 8
    assert named <= schema["Input"]["properties"].keys()
