"""Put the model on Replicate, and see that it runs there.

scripts/deploy hardware      what Replicate offers, with predicted seconds and dollars
scripts/deploy push          OWNER/NAME --hardware gpu-t4 [--bundle DIR] [--public] [--stage DIR] [--dry-run]
scripts/deploy deployment    OWNER/NAME --hardware gpu-t4 --min 0 --max 3 [--version ID] [--name NAME]
scripts/deploy smoke         OWNER/NAME[:VERSION] [--hardware gpu-t4] [--timeout SECONDS]

REPLICATE_API_TOKEN opens the API. Cog has a login of its own: run `cog login` once, or set REPLICATE_CLI_AUTH_TOKEN.
--dry-run needs no network, token or Cog: it stages the files and prints what a push would run.
"""

import argparse
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import tomllib
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scripts import stage
from seesr.batch.api import API_TOKEN, ENDED, NAME, check_answer, connect, find, latest_version, price

if TYPE_CHECKING:
    import replicate

ROOT = stage.ROOT
EXAMPLE = ROOT / "examples/animal.jpg"
LOGIN_TOKEN = "REPLICATE_CLI_AUTH_TOKEN"
OLDEST_COG, CHECKED_COG = (0, 17), (0, 22)
"""Cog's command line: the first version with sdk_version and COGLET_WHEEL, and the one that this was checked with."""

LINKS = {
    "github_url": "https://github.com/cswry/SeeSR",
    "paper_url": "https://arxiv.org/abs/2311.16518",
    "weights_url": "https://huggingface.co/CSWRY/SeeSR",
    "license_url": "https://huggingface.co/stabilityai/sd-turbo/blob/main/LICENSE.md",
}
NOT_OFFERED = {"a40-large": "no longer offered to new models", "v100": "not offered: your own machine"}


def say(what: str, text: str) -> None:
    print(f"{what:<12}{text}", flush=True)


def profile_of(sku: str) -> str:
    """A name of Replicate's ("gpu-t4") -> SEESR_GPU, which is auto for a card without a profile of its own."""
    from seesr.hardware import AUTO, GPUS

    if not sku.startswith("gpu-"):
        raise ValueError(f"--hardware must be a GPU, such as {', '.join(f'gpu-{name}' for name in GPUS)}, got {sku!r}")
    return card if (card := sku.removeprefix("gpu-")) in GPUS else AUTO


def predicted(card: str, side: int, steps: int) -> str:
    """Seconds and dollars of a result of `side` by the full model."""
    from seesr.cost import estimate
    from seesr.settings import Settings

    found = estimate(card, (side // 4, side // 4), Settings(num_inference_steps=steps))
    return f"{found.seconds:.1f} s" + (f" ${found.dollars:.4f}" if found.dollars is not None else "")


def hardware(_: argparse.Namespace) -> None:
    """Print what Replicate offers, as a table."""
    live = connect().hardware.list()
    from seesr.hardware import GPUS

    cases = [(side, steps) for side in (2048, 4096, 8192) for steps in (1, 4)]
    titles = (f"{side}², {steps} step{'s' if steps > 1 else ''}" for side, steps in cases)
    rows = [["hardware", "name", "$ a second", "`SEESR_GPU`", *titles], ["---"] * (4 + len(cases))]
    for item in live:
        profile = profile_of(item.sku) if item.sku.startswith("gpu-") else "needs a GPU"
        cells = [predicted(profile, *case) if profile in GPUS else "" for case in cases]
        rows.append([f"`{item.sku}`", item.name, str(price(item.sku) or ""), profile, *cells])
    print("\n".join(f"| {' | '.join(row)} |" for row in rows))
    print(
        "Predicted, not measured: results of these sides at scale 4. A private model also pays for setup and idle time."
    )
    for name in sorted(GPUS.keys() - {item.sku.removeprefix("gpu-") for item in live}):
        print(f"`gpu-{name}`: {NOT_OFFERED.get(name, 'not in the list today')}")


def push(options: argparse.Namespace) -> None:
    """Check everything, stage the files, push them, and set the model's page."""
    profile, client = profile_of(options.hardware), None if options.dry_run else connect()
    say("token", f"account {client.accounts.current().username}" if client else "not needed for --dry-run")
    try:
        say("cog", cog_state(log_in=client is not None))
    except RuntimeError as error:
        if client:
            raise
        say("cog", f"{error} (not needed for --dry-run)")
    is_full, about = stage.check_bundle(options.bundle)
    say("bundle", about)
    known = options.hardware == f"gpu-{profile}"
    say("hardware", f"{options.hardware}, profile {profile}{'' if known else ', since none has that name'}")
    before = ensure_model(client, options) if client else None
    stage.check_apart(options.bundle, options.stage)
    with stage.open_stage(options.stage or (ROOT / "weights/.stage" if options.dry_run else None)) as folder:
        for note in [f"{folder}, SEESR_GPU={profile}", *stage.fill(folder, options.bundle, profile)]:
            say("stage", note)
        if hidden := stage.hidden_weights(folder):
            raise RuntimeError(f"Cog would copy {', '.join(hidden)}, which .dockerignore hides: correct .dockerignore")
        flags = ["--separate-weights"] if stage.weight_folders(folder) else []
        sdk_version = re.findall(r'sdk_version: "(.+)"', (ROOT / "cog.yaml").read_text())[0]
        command, wheel = ["cog", "push", f"r8.im/{options.model}", *flags], f"pypi:{sdk_version}"
        say("run", f"COGLET_WHEEL={wheel} {' '.join(command)}")
        if client is None:
            sizes = {name: (folder / name).stat().st_size for name in stage.names_in(folder)}
            print("".join(f"{size:>13,}  {name}\n" for name, size in sizes.items() if name != stage.MARKER), end="")
            return
        run_cog(command, folder, wheel)
    version = pushed_version(client, options.model, before)
    set_page(client, options.model, is_full)
    print(f"\nhttps://replicate.com/{options.model}\n\n{examples(options.model, version)}\n")
    if price(options.hardware):
        costs = ", ".join(f"{side}² in 4 steps {predicted(profile, side, 4)}" for side in (2048, 4096))
        say("cost", f"predicted for the full model on {options.hardware}: {costs}")


def cog_state(log_in: bool) -> str:
    """The version of Cog's command line and its login. RuntimeError says what a push lacks."""
    get = f"install {'.'.join(map(str, CHECKED_COG))} from cog.run"
    if (path := shutil.which("cog")) is None:
        raise RuntimeError(f"Cog's command line is not installed: {get}")
    shown = subprocess.run([path, "--version"], capture_output=True, text=True, check=False).stdout.strip()
    found = re.search(r"(\d+)\.(\d+)\.\d+", shown)
    if not found or (version := tuple(map(int, found.groups()))) < OLDEST_COG:
        raise RuntimeError(
            f"Cog's command line must be {'.'.join(map(str, OLDEST_COG))} or later, got {shown!r}: {get}"
        )
    text = found[0] + ("" if version == CHECKED_COG else " (not checked with this version)")
    if token := os.environ.get(LOGIN_TOKEN):
        login = [path, "login", "--token-stdin"]  # refuses a token of the API
        if log_in and subprocess.run(login, input=token, capture_output=True, text=True, check=False).returncode:
            raise RuntimeError(f"`cog login` does not take {LOGIN_TOKEN}: get one at replicate.com/auth/token")
        return f"{text}, login by {LOGIN_TOKEN}"
    path = Path(os.environ.get("DOCKER_CONFIG") or Path.home() / ".docker", "config.json")
    try:
        config = json.loads(path.read_text()) if path.is_file() else {}
        logged_in, elsewhere = "r8.im" in (config.get("auths") or {}), "credsStore" in config
    except (ValueError, AttributeError, TypeError):
        raise RuntimeError(f"Docker's {path} must be a JSON object, got another text: correct or remove it") from None
    if not logged_in and not elsewhere:
        raise RuntimeError(f"Cog is not logged in: run `cog login`, or set {LOGIN_TOKEN} (replicate.com/auth/token)")
    return f"{text}, {'logged in' if logged_in else 'login not checked'}"


def ensure_model(client: "replicate.Client", options: argparse.Namespace) -> str | None:
    """Create the model unless it exists. Returns its latest version."""
    visibility, live = "public" if options.public else "private", [item.sku for item in client.hardware.list()]
    model = find(client.models.get, options.model)
    if options.hardware not in live and (model is None or profile_of(options.hardware) == "auto"):
        raise RuntimeError(f"--hardware must be one of {', '.join(live)} today, got {options.hardware}")
    if model is None:
        client.models.create(*options.model.split("/"), hardware=options.hardware, visibility=visibility)
        say("model", f"{options.model}: created, {visibility}, {options.hardware}")
        return None
    say("model", f"{options.model}: exists, {model.visibility}. Its hardware, which the API does not tell, stays:")
    say("", f"if it is not {options.hardware}, change it on its settings page, or use scripts/deploy deployment.")
    if model.visibility != visibility:
        say("", f"Only the settings page makes it {visibility}.")
    return model.latest_version.id if model.latest_version else None


def run_cog(command: list[str], folder: Path, wheel: str) -> None:
    """Run Cog in the stage, without our tokens. If it fails, this program ends with its status."""
    kept_from_cog = (API_TOKEN, LOGIN_TOKEN, "COG_SDK_WHEEL")  # the last would replace sdk_version
    env = {name: value for name, value in os.environ.items() if name not in kept_from_cog}
    with subprocess.Popen(command, cwd=folder, env=env | {"COGLET_WHEEL": wheel}) as process:
        try:
            status = process.wait()
        except BaseException:  # interrupted: Cog ends with us
            process.terminate()
            raise
    if status:
        print(f"deploy: {' '.join(command)} ended with {status}; correct its fault and run this again", file=sys.stderr)
        sys.exit(status if status > 0 else 128 - status)


def pushed_version(client: "replicate.Client", model: str, before: str | None) -> str:
    """The version that a push made. The same files make the same version again."""
    end = time.monotonic() + 60 * client.poll_interval
    while time.monotonic() < end:
        latest = client.models.get(model).latest_version
        if latest and latest.id != before:
            say("version", latest.id)
            return latest.id
        time.sleep(client.poll_interval)
    if before is None:
        raise RuntimeError(f"Cog pushed, but Replicate lists no version of {model}: see its page and run this again")
    say("version", f"{before}, as before")
    return before


def set_page(client: "replicate.Client", model: str, is_full: bool) -> None:
    """Set description, readme and links of the model's page."""
    about = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["description"]
    fields = {"description": about, "readme": (ROOT / "docs/model-page.md").read_text()} | LINKS
    if not is_full:
        fields = {"description": f"A test, not the full model. {about}"}
    client._request("PATCH", f"/v1/models/{model}", json=fields)  # the client has no call for this


def examples(model: str, version: str) -> str:
    """The README's calls of the API for one model."""
    section = (ROOT / "README.md").read_text().split("## Use it through the API")[1].split("\n## ")[0]
    calls = "\n\n".join(re.findall(r"```\w+\n.*?```", section, re.DOTALL))
    return calls.replace("OWNER/seesr-turbo", model).replace("VERSION", version)


def deployment(options: argparse.Namespace) -> None:
    """Create a deployment of the model, or update the one of that name."""
    profile, client = profile_of(options.hardware), connect()
    if not 0 <= options.min <= options.max or options.max == 0:
        raise ValueError(f"--min must be 0 to --max, and --max 1 or more, got {options.min} and {options.max}")
    owner, name = client.accounts.current().username, options.name or options.model.split("/")[1]
    wanted: Any = {"version": options.version or latest_version(client, options.model).id, "hardware": options.hardware}
    wanted |= {"min_instances": options.min, "max_instances": options.max}
    if existing := find(client.deployments.get, f"{owner}/{name}"):
        runs = existing.current_release.model
        if runs != options.model:
            raise RuntimeError(f"the deployment {owner}/{name} runs {runs}, not {options.model}: choose another --name")
        client.deployments.update(owner, name, **wanted)
    else:
        client.deployments.create(name=name, model=options.model, **wanted)
    instances = f"{options.min} to {options.max} instances of {options.hardware}"
    say("updated" if existing else "created", f"{owner}/{name}: {instances}, version {wanted['version']}")
    say("", f"The version uses the tiles that it was pushed with; {profile}'s own need a push with that --hardware.")


def smoke(options: argparse.Namespace) -> None:
    """Predict an example twice: the first call may find no worker running, the second finds one."""
    client = connect()
    model, _, version = options.model.partition(":")
    version = version or latest_version(client, model).id
    call(client, version, "cold", options.timeout)
    ran = call(client, version, "warm", options.timeout)
    skus = [options.hardware] if options.hardware else [item.sku for item in client.hardware.list()]
    costs = [f"${ran * price(sku):.5f} on {sku}" for sku in skus if price(sku)]
    say("cost", f"of the warm call: {', '.join(costs) or 'no price is known'}")


def call(client: "replicate.Client", version: str, name: str, timeout: float) -> float:
    """One prediction of the example, checked and printed: the seconds that the model worked.

    RuntimeError says why it failed. It is canceled if it has not ended after `timeout` seconds.
    """
    start, news = time.monotonic(), ""
    with EXAMPLE.open("rb") as image:
        prediction = client.predictions.create(version, {"image": image, "scale_factor": 4, "seed": 1})
    try:
        while prediction.status not in ENDED:
            passed = time.monotonic() - start
            if passed > timeout:
                raise RuntimeError(f"the prediction is still {prediction.status} after {timeout:g} s; it was canceled")
            percent = f" {prediction.progress.percentage:.0%}" if prediction.progress else ""
            if news != (news := f"{prediction.status}{percent}, {passed // 10 * 10:.0f} s"):
                print(f"            {news}", file=sys.stderr, flush=True)
            time.sleep(client.poll_interval)
            prediction.reload()
    finally:
        if prediction.status not in ENDED:
            prediction.cancel()
    if prediction.status != "succeeded" or not prediction.output:
        raise RuntimeError(f"the prediction {prediction.status}: {prediction.error or 'it has no output'}")
    seconds, metrics = time.monotonic() - start, prediction.metrics or {}
    times = (prediction.created_at, prediction.started_at, prediction.completed_at)
    created, started, ended = (datetime.fromisoformat(str(moment)).timestamp() for moment in times)
    ran = float(metrics.get("predict_time", ended - started))
    say(name, f"{seconds:.1f} s, of them {started - created:.1f} s until it started and {ran:.1f} s to predict")
    say("result", fetch(str(prediction.output)))
    say("metrics", json.dumps(metrics))
    return ran


def fetch(url: str) -> str:
    """Download a result, without a token, and read it: its size. RuntimeError unless that is 4 times the example's."""
    import httpx

    from seesr.images import open_image

    answer = httpx.get(url, timeout=60, follow_redirects=True)
    check_answer(answer)
    with tempfile.NamedTemporaryFile() as file:
        Path(file.name).write_bytes(answer.content)
        (width, height), size = open_image(EXAMPLE).rgb.size, open_image(file.name).rgb.size
    if size != (4 * width, 4 * height):
        raise RuntimeError(f"the result must be {4 * width} x {4 * height}, got {size[0]} x {size[1]}")
    return f"{size[0]} x {size[1]}, {len(answer.content) / 1e3:.0f} kB"


def model_name(text: str) -> str:
    return _checked(text, f"{NAME}/{NAME}", "OWNER/NAME in lower case, as in the page's address")


def model_or_version(text: str) -> str:
    return _checked(text, f"{NAME}/{NAME}(:[0-9a-f]{{64}})?", "OWNER/NAME or OWNER/NAME:VERSION in lower case")


def deployment_name(text: str) -> str:
    return _checked(text, NAME, "a name in lower case")


def _checked(text: str, pattern: str, wanted: str) -> str:
    if not re.fullmatch(pattern, text):
        raise argparse.ArgumentTypeError(f"must be {wanted}, got {text!r}")
    return text


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="scripts/deploy", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for run in (hardware, push, deployment, smoke):
        command = commands.add_parser(run.__name__, help=run.__doc__, description=run.__doc__)
        command.set_defaults(run=run)
        if run is not hardware:
            kind, shown = (model_or_version, "OWNER/NAME[:VERSION]") if run is smoke else (model_name, "OWNER/NAME")
            command.add_argument("model", type=kind, metavar=shown)
            command.add_argument("--hardware", required=run is not smoke, help="see scripts/deploy hardware")
        if run is push:
            command.add_argument("--bundle", type=Path, default=ROOT / stage.BUNDLE, metavar="DIR")
            command.add_argument("--public", action="store_true", help="make a new model public")
            command.add_argument("--stage", type=Path, metavar="DIR", help="stage in this folder and keep it")
            command.add_argument("--dry-run", action="store_true", help="list the stage, without the network")
        elif run is deployment:
            command.add_argument("--min", type=int, default=0, help="instances that always run, and cost")
            command.add_argument("--max", type=int, default=3, help="instances at most")
            command.add_argument("--version", help="default: the model's latest")
            command.add_argument("--name", type=deployment_name, help="of the deployment; default: the model's")
        elif run is smoke:
            command.add_argument("--timeout", type=float, default=900, help="seconds to wait for each prediction")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        options.run(options)
    except KeyboardInterrupt:
        sys.exit("deploy: interrupted; run it again")
    except (RuntimeError, ValueError, OSError) as error:
        sys.exit(f"deploy: {error}")
    except Exception as error:
        if not type(error).__module__.startswith("httpx"):  # not imported for --dry-run
            raise
        sys.exit(f"deploy: no connection to Replicate ({error}): check the network and run this again")


if __name__ == "__main__":
    main()
