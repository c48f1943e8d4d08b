"""A request as code that repeats it: curl, Python and JavaScript."""

import json
import mimetypes
import secrets
import shlex
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from scripts.page.job import Job

TOKEN = '-H "Authorization: Bearer $REPLICATE_API_TOKEN"'
JSON = '-H "Content-Type: application/json"'


def for_cog(address: str, job: Job, ending: str) -> dict[str, str]:
    """The request at a Cog server, with the libraries that the languages bring along."""
    url, several = f"{address}/predictions", is_list(job)
    return {
        "curl": _cog_curl(url, job, ending, several),
        "Python": _cog_python(url, job, ending, several),
        "JavaScript": _cog_javascript(url, job, ending, several),
    }


def for_replicate(base: str, model: str, job: Job, ending: str) -> dict[str, str]:
    """The request at Replicate's API, by its official clients in Python and JavaScript. `model` has a version."""
    several = is_list(job)
    return {
        "curl": _replicate_curl(base, model, job, ending, several),
        "Python": _replicate_python(model, job, ending, several),
        "JavaScript": _replicate_javascript(model, job, ending, several),
    }


def is_list(job: Job) -> bool:
    """Whether the model answers with a list: one that takes a list of files does."""
    return any(isinstance(paths, list) for paths in job.files.values())


def _cog_curl(url: str, job: Job, ending: str, several: bool) -> str:
    """The body is written piece by piece, since files are too large for an argument."""
    marks, inputs = _marked(job, lambda path, mark: f"data:{_kind(path)};base64,{mark}")
    text, lines = json.dumps({"input": inputs}, ensure_ascii=False), ["{"]
    for mark, path in marks.items():
        before, _, text = text.partition(mark)
        lines += [f"  printf %s {shlex.quote(before)}", f"  base64 < {shlex.quote(path.name)} | tr -d '\\n'"]
    lines.append(f"  printf %s {shlex.quote(text)}")
    lines.append(f"}} | curl -s {shlex.quote(url)} {JSON} -d @- > answer.json")
    found = """grep -o '"output":[^]}]*' answer.json | grep -o 'base64,[^"]*' | cut -d, -f2"""
    if not several:
        return "\n".join([*lines, f"{found} | base64 -d > result.{ending}"])
    each = f'  n=$((n + 1)); printf %s "$data" | base64 -d > "result-$n.{ending}"'
    return "\n".join([*lines, "n=0", f"{found} | while read -r data; do", each, "done"])


def _replicate_curl(base: str, model: str, job: Job, ending: str, several: bool) -> str:
    marks, inputs = _marked(job, lambda path, mark: mark)
    body = json.dumps({"version": model.rpartition(":")[2], "input": inputs}, ensure_ascii=False)
    body, lines, address = shlex.quote(body), [], 'grep -o \'"get": *"[^"]*\' | cut -d\'"\' -f4'
    for number, (mark, path) in enumerate(marks.items(), 1):
        upload = f"curl -s {base}/v1/files {TOKEN} -F {shlex.quote(f'content=@{path.name}')}"
        lines.append(f"file{number}=$({upload} |\n  {address})")
        body = body.replace(mark, f"'\"$file{number}\"'")
    lines.append(f'curl -s {base}/v1/predictions -H "Prefer: wait" {TOKEN} \\\n  {JSON} -d {body} > answer.json')
    lines.append("# Longer than 60 s: docs/api.md says how to ask again.")
    found = """grep -o '"output": *[^]}]*' answer.json | grep -o 'http[^"]*'"""
    if not several:
        return "\n".join([*lines, f'curl -s -o result.{ending} "$({found})"'])
    each = f'  n=$((n + 1)); curl -s -o "result-$n.{ending}" "$address"'
    return "\n".join([*lines, "n=0", f"{found} | while read -r address; do", each, "done"])


def _cog_python(url: str, job: Job, ending: str, several: bool) -> str:
    content = 'base64.b64decode({}.partition(",")[2])'
    return f"""import base64, json, urllib.request

def read(name, kind):
    with open(name, "rb") as file:
        return f"data:{{kind}};base64," + base64.b64encode(file.read()).decode()

inputs = {_python_inputs(job, lambda path: f'read({json.dumps(path.name)}, "{_kind(path)}")')}
body = json.dumps({{"input": inputs}}).encode()
request = urllib.request.Request({json.dumps(url)}, body, {{"Content-Type": "application/json"}})
with urllib.request.urlopen(request) as response:
    answer = json.load(response)
if answer["status"] != "succeeded":
    raise RuntimeError(answer["error"])
{_python_save('answer["output"]', content, ending, several)}"""


def _replicate_python(model: str, job: Job, ending: str, several: bool) -> str:
    return f"""import replicate  # pip install replicate==1.0.7

inputs = {_python_inputs(job, lambda path: f'open({json.dumps(path.name)}, "rb")')}
answer = replicate.run({json.dumps(model)}, input=inputs, wait=False)
{_python_save("answer", "{}.read()", ending, several)}"""


def _python_save(answer: str, content: str, ending: str, several: bool) -> str:
    if not several:
        return f'with open("result.{ending}", "wb") as file:\n    file.write({content.format(answer)})'
    return f"""for number, output in enumerate({answer}, 1):
    with open(f"result-{{number}}.{ending}", "wb") as file:
        file.write({content.format("output")})"""


def _cog_javascript(url: str, job: Job, ending: str, several: bool) -> str:
    content = 'Buffer.from({}.split(",")[1], "base64")'
    return f"""import {{ readFile, writeFile }} from "node:fs/promises";

const read = async (name, kind) => `data:${{kind}};base64,${{(await readFile(name)).toString("base64")}}`;
const input = {_javascript_inputs(job, lambda path: f'await read({json.dumps(path.name)}, "{_kind(path)}")')};
const response = await fetch({json.dumps(url)}, {{
    method: "POST", headers: {{ "Content-Type": "application/json" }}, body: JSON.stringify({{ input }}),
}});
const answer = await response.json();
if (answer.status !== "succeeded") throw new Error(answer.error);
{_javascript_save("answer.output", content, ending, several)}"""


def _replicate_javascript(model: str, job: Job, ending: str, several: bool) -> str:
    return f"""import {{ readFile, writeFile }} from "node:fs/promises";
import Replicate from "replicate"; // npm install replicate

const input = {_javascript_inputs(job, lambda path: f"await readFile({json.dumps(path.name)})")};
const answer = await new Replicate().run({json.dumps(model)}, {{ input, wait: {{ mode: "poll" }} }});
{_javascript_save("answer", "{}", ending, several)}"""


def _javascript_save(answer: str, content: str, ending: str, several: bool) -> str:
    if not several:
        return f'await writeFile("result.{ending}", {content.format(answer)});'
    name = f"`result-${{number + 1}}.{ending}`"
    return f"""for (const [number, output] of {answer}.entries())
    await writeFile({name}, {content.format("output")});"""


def _marked(job: Job, write: Callable[[Path, str], str]) -> tuple[dict[str, Path], dict[str, Any]]:
    """Files by a mark, and the inputs in which `write` puts the marks in the place of files."""
    marks: dict[str, Path] = {}

    def mark(path: Path) -> str:
        name = f"@{secrets.token_hex(8)}"
        marks[name] = path
        return write(path, name)

    files = {name: [*map(mark, paths)] if isinstance(paths, list) else mark(paths) for name, paths in job.files.items()}
    return marks, files | dict(job.inputs)


def _kind(path: Path) -> str:
    return mimetypes.guess_type(path.name)[0] or "application/octet-stream"


def _python_inputs(job: Job, read: Callable[[Path], str]) -> str:
    """A literal of Python; `read` gives the code that reads a file."""

    def write(value: Any) -> str:
        return repr(value) if value is None or isinstance(value, bool) else json.dumps(value, ensure_ascii=False)

    return _literal({f'"{name}"': text for name, text in _items(job, read, write).items()})


def _javascript_inputs(job: Job, read: Callable[[Path], str]) -> str:
    return _literal(_items(job, read, lambda value: json.dumps(value, ensure_ascii=False)))


def _items(job: Job, read: Callable[[Path], str], write: Callable[[Any], str]) -> dict[str, str]:
    """The code of every input by its name."""
    files = {
        name: f"[{', '.join(map(read, paths))}]" if isinstance(paths, list) else read(paths)
        for name, paths in job.files.items()
    }
    return files | {name: write(value) for name, value in job.inputs.items()}


def _literal(items: Mapping[str, str]) -> str:
    return "{\n" + "".join(f"    {name}: {text},\n" for name, text in items.items()) + "}"
