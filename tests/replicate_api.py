"""Replicate's HTTP API on loopback, for tests of what calls it. Predictions run on the real Cog server.

Paths, answers and errors are those of the documented HTTP API, as the official clients (Python 1.0.7, JavaScript 1.4.0)
use it. Output files come by https, as Replicate's do: the clients make files of https addresses only.
"""

import base64
import contextlib
import email
import hashlib
import http.server
import json
import mimetypes
import re
import secrets
import shutil
import ssl
import subprocess
import tempfile
import threading
from collections.abc import Callable
from dataclasses import dataclass
from email.message import Message
from pathlib import Path
from typing import Any, Literal

from scripts.cog_server import PREDICTOR, ROOT, CogServer, schema
from tests.replicate_jobs import Job, Runner, now

NAMES = {"cpu": "CPU", "gpu-t4": "Nvidia T4 GPU", "gpu-l40s": "Nvidia L40S GPU"}
NAMES |= {"gpu-a100-large": "Nvidia A100 (80GB) GPU", "gpu-h100": "Nvidia H100 GPU"}
TITLES = {401: "Unauthenticated", 422: "Input validation failed"}
DETAILS = {
    401: "You did not pass a valid authentication token",
    404: "The requested resource could not be found.",
    429: "Request was throttled. Expected available in 1 second.",
    500: "Internal server error",
}
TEXTS = ("description", "readme", "github_url", "paper_url", "weights_url", "license_url")
CONFIGURATION = ("hardware", "min_instances", "max_instances")
Json = dict[str, Any]


@dataclass(frozen=True)
class Request:
    """One request as it came. `body` is parsed JSON, else bytes. `headers` have lower-case names and no token."""

    method: str
    path: str
    body: Any
    headers: dict[str, str]


class RefusedError(Exception):
    """An answer other than success, in the documented shape."""

    def __init__(self, status: int, detail: str | None = None, **more: Any) -> None:
        title = {"title": TITLES[status]} if status in TITLES else {}
        self.status, self.body = (
            status,
            title | {"detail": detail or DETAILS.get(status, "Error"), "status": status} | more,
        )


@dataclass(frozen=True)
class Fault:
    """What happens to a request: it is refused, or the connection breaks `before` it is read or in its `answer`."""

    refused: RefusedError | None = None
    breaks: Literal["before", "answer"] | None = None


class ReplicateApi:
    """The API for a `with` block. `server` is a running Cog server; else one starts at the first prediction.

    `sync_wait` is how many seconds `Prefer: wait` waits at most. A client with `env` in its environment comes here: it
    holds the token, the address and the certificate of the output files.

    Attributes: `url`; `token`; `secret` of the webhooks; `hardware`, its names by SKU; `requests`; `models` and
    `deployments` by "owner/name"; `predictions` by id; `files`, what is served without a token; `leaks`, the paths of
    files that were asked for with one.
    """

    def __init__(
        self, server: CogServer | None = None, predictor: str = PREDICTOR, sync_wait: float = 60, owner: str = "owner"
    ) -> None:
        self.server, self.predictor, self.sync_wait, self.owner = server, predictor, sync_wait, owner
        self.token = f"r8_{secrets.token_hex(18)}"
        self.secret = f"whsec_{base64.b64encode(secrets.token_bytes(24)).decode()}"
        self.hardware = dict(NAMES)
        self.requests: list[Request] = []
        self.models: dict[str, Json] = {}
        self.deployments: dict[str, Json] = {}
        self.predictions: dict[str, Job] = {}
        self._account = {"type": "user", "username": owner, "name": owner, "github_url": "https://example.com"}
        self._shown: dict[str, Any] = {"/account": self._account, "/webhooks/default/secret": {"key": self.secret}}
        self._versions: dict[str, str] = {}
        self.files: dict[str, bytes] = {}
        self.leaks: list[str] = []
        self._faults: list[tuple[str, str, Fault]] = []
        self._schema: Json = {}

    def __enter__(self) -> "ReplicateApi":
        with contextlib.ExitStack() as stack:
            certificate = make_certificate(Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="seesr-api-"))))
            self.url, self.delivery = self._listen(stack, None), self._listen(stack, certificate)
            trust = dict.fromkeys(("SSL_CERT_FILE", "CURL_CA_BUNDLE", "NODE_EXTRA_CA_CERTS"), str(certificate))
            self.env = {"REPLICATE_API_TOKEN": self.token, "REPLICATE_BASE_URL": self.url} | trust
            runner = Runner(self.server, self.predictor, f"{self.url}/cog", self._deliver, self.secret)
            self._runner = stack.enter_context(runner)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _listen(self, stack: contextlib.ExitStack, certificate: Path | None) -> str:
        api = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def answer(self) -> None:
                sent = self.rfile.read(int(self.headers["Content-Length"] or 0))
                path = self.path.partition("?")[0]
                fault = api._fault(self.command, path)
                if fault.breaks == "before":
                    self.close_connection = True
                    return
                status, headers, content = api._respond(self.command, path, self.headers, sent, fault.refused)
                with contextlib.suppress(ConnectionError):  # a client that no longer waits
                    self.send_response(status)
                    for name, value in (headers | {"Content-Length": str(len(content))}).items():
                        self.send_header(name, value)
                    self.end_headers()
                    self.close_connection = self.close_connection or fault.breaks == "answer"
                    self.wfile.write(content[: len(content) // 2] if fault.breaks == "answer" else content)

            do_GET = do_POST = do_PATCH = do_DELETE = answer  # noqa: N815

            def log_message(self, *_: object) -> None: ...  # type: ignore[override]

        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        server.daemon_threads = True
        if certificate is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificate)
            server.socket = context.wrap_socket(server.socket, server_side=True)
        threading.Thread(target=server.serve_forever, args=[0.01], daemon=True).start()
        stack.callback(server.server_close)
        stack.callback(server.shutdown)
        return f"http{'s' if certificate else ''}://127.0.0.1:{server.server_port}"

    def add_model(self, owner: str, name: str, hardware: str = "gpu-t4", visibility: str = "private") -> None:
        model = dict.fromkeys((*TEXTS, "cover_image_url", "default_example", "latest_version"))
        model |= {"url": f"https://replicate.com/{owner}/{name}", "owner": owner, "name": name, "run_count": 0}
        model |= {"visibility": visibility, "hardware": hardware}
        self.models[f"{owner}/{name}"] = self._shown[f"/models/{owner}/{name}"] = model
        self._shown[f"/models/{owner}/{name}/versions"] = {"next": None, "previous": None, "results": []}

    def add_version(self, owner: str, name: str) -> str:
        """What `cog push` does: a new version, with the predictor's schema. KeyError if there is no such model."""
        model, id = self.models[f"{owner}/{name}"], secrets.token_hex(32)
        self._schema = self._schema or schema(ROOT, self.predictor)
        version = {"id": id, "created_at": now(), "cog_version": "0.23.1", "openapi_schema": self._schema}
        self._versions[id], model["latest_version"] = f"{owner}/{name}", version
        self._shown[f"/models/{owner}/{name}/versions/{id}"] = version
        self._shown[f"/models/{owner}/{name}/versions"]["results"].insert(0, version)
        return id

    def serve(self, name: str, content: bytes) -> str:
        """The address of a file on some web server, which needs no token."""
        self.files[name] = content
        return f"{self.url}/files/{name}"

    def _deliver(self, name: str, content: bytes) -> str:
        self.serve(name, content)
        return f"{self.delivery}/files/{name}"

    def fail_next(
        self, method: str, path: str, status: int, detail: str | None = None, retry_after: float | None = None
    ) -> None:
        """Refuse the next request of that method and path, a regular expression. Several calls refuse several."""
        more = {} if retry_after is None else {"retry_after": retry_after}
        self._faults.append((method, path, Fault(RefusedError(status, detail, **more))))

    def break_next(self, method: str, path: str, when: Literal["before", "answer"]) -> None:
        """Break the connection of the next such request: before it has any effect, or halfway through its answer."""
        self._faults.append((method, path, Fault(breaks=when)))

    def clear(self) -> None:
        """Forget what was asked, predicted, served and planted. Models and deployments stay."""
        for things in (self.requests, self.predictions, self.files, self.leaks, self._faults):
            things.clear()

    def _fault(self, method: str, path: str) -> Fault:
        for planted in self._faults:
            if planted[0] == method and re.fullmatch(planted[1], path):
                self._faults.remove(planted)
                return planted[2]
        return Fault()

    def _respond(
        self, method: str, path: str, sent: Message, content: bytes, refused: RefusedError | None
    ) -> tuple[int, dict[str, str], bytes]:
        """(status, headers, content) of one request."""
        headers = {name.lower(): value for name, value in sent.items()}
        token, more = headers.pop("authorization", ""), {}
        if path.startswith("/files/"):
            if token:
                self.leaks.append(path)
            found = self.files.get(path.removeprefix("/files/"))
            status = refused.status if refused else 404 if found is None else 200
            kind = {"Content-Type": mimetypes.guess_type(path)[0] or "application/octet-stream"}
            return status, kind, found if found is not None and status == 200 else b""
        try:
            is_json = headers.get("content-type", "").startswith("application/json")
            body = json.loads(content or b"{}") if is_json else content
            status, answer = self._answer(Request(method, path, body, headers), token, refused)
        except RefusedError as error:
            status, answer = error.status, error.body
            more = {"Retry-After": f"{answer['retry_after']:g}"} if "retry_after" in answer else {}
        if "visibility" in answer:  # a model does not say which hardware it has
            answer = {name: value for name, value in answer.items() if name != "hardware"}
        return (
            status,
            {"Content-Type": "application/json"} | more,
            b"" if status == 204 else json.dumps(answer).encode(),
        )

    def _answer(self, request: Request, token: str, refused: RefusedError | None) -> tuple[int, Any]:
        if request.path.startswith("/cog/"):
            self._runner.update(self.predictions[request.path.removeprefix("/cog/")], request.body)
            return 200, {}
        self.requests.append(request)
        if token not in (f"Bearer {self.token}", f"Token {self.token}"):
            raise RefusedError(401)
        if refused:
            raise refused
        path = request.path.removeprefix("/v1")
        if request.method == "GET" and path == "/hardware":
            return 200, [{"name": name, "sku": sku} for sku, name in self.hardware.items()]
        if request.method == "GET" and path in self._shown:
            return 200, self._shown[path]
        routes: dict[str, Callable[..., tuple[int, Any]]] = {
            "POST /models": self._create_model,
            "PATCH /models/(.+)": self._update_model,
            "POST /deployments": self._create_deployment,
            "PATCH /deployments/(.+)": self._update_deployment,
            "POST /files": self._upload,
            "DELETE /files/(.+)": lambda _, id: self._delete_file(id),
            "GET /predictions": lambda _: self._list_predictions(),
            "POST /predictions": lambda it: self._predict(it, str(it.body.get("version")).rpartition(":")[2]),
            "POST /deployments/(.+)/predictions": lambda it, name: self._predict(
                it, find(self.deployments, name)["current_release"]["version"]
            ),
            "POST /predictions/(.+)/cancel": lambda _, id: self._cancel(id),
        }
        for pattern, answer in routes.items():
            if matched := re.fullmatch(pattern, f"{request.method} {path}"):
                return answer(request, *matched.groups())
        raise RefusedError(404)

    def _create_model(self, request: Request) -> tuple[int, Any]:
        owner, name, visibility, hardware = require(request.body, "owner", "name", "visibility", "hardware")
        self._check_hardware(hardware)
        if f"{owner}/{name}" in self.models:
            raise RefusedError(409, "A model with that name and owner already exists")
        self.add_model(owner, name, hardware, visibility)
        return 201, self._update_model(request, f"{owner}/{name}")[1]

    def _update_model(self, request: Request, name: str) -> tuple[int, Any]:
        model = find(self.models, name)
        model |= {text: request.body[text] for text in TEXTS if text in request.body}
        return 200, model

    def _check_hardware(self, sku: str) -> None:
        if sku not in self.hardware:
            raise RefusedError(422, f"- hardware: {sku} is not one of {', '.join(self.hardware)}\n")

    def _create_deployment(self, request: Request) -> tuple[int, Any]:
        name, model, *_ = require(request.body, "name", "model", "version", *CONFIGURATION)
        if (key := f"{self.owner}/{name}") in self.deployments:
            raise RefusedError(409, "A deployment with that name already exists")
        release = {"number": 0, "model": model, "created_by": self._account, "configuration": {}}
        deployment = self._change({"owner": self.owner, "name": name, "current_release": release}, request.body)
        self.deployments[key] = self._shown[f"/deployments/{key}"] = deployment
        return 201, deployment

    def _update_deployment(self, request: Request, name: str) -> tuple[int, Any]:
        return 200, self._change(find(self.deployments, name), request.body)

    def _change(self, deployment: Json, body: Json) -> Json:
        """A new release of a deployment. 404 if the model has no such version."""
        release = deployment["current_release"]
        version = body.get("version", release.get("version"))
        if self._versions.get(version) != release["model"]:
            raise RefusedError(404)
        configuration = release["configuration"] | {name: body[name] for name in CONFIGURATION if name in body}
        self._check_hardware(configuration["hardware"])
        release |= {"number": release["number"] + 1, "version": version, "created_at": now()}
        release["configuration"] = configuration
        return deployment

    def _upload(self, request: Request) -> tuple[int, Any]:
        boundary = request.headers["content-type"].partition("boundary=")[2].strip('"').encode()
        for part in request.body.split(b"--" + boundary)[1:-1]:
            raw, _, content = part.removeprefix(b"\r\n").removesuffix(b"\r\n").partition(b"\r\n\r\n")
            head = email.message_from_bytes(raw)
            if head.get_param("name", header="content-disposition") == "content":
                break
        else:
            raise RefusedError(400, "Missing content")
        id, digest, name = secrets.token_hex(13), hashlib.sha256(content).hexdigest(), head.get_filename()
        self.serve(f"uploads/{id}", content)
        file = {"id": id, "name": name, "content_type": head.get_content_type(), "size": len(content), "etag": digest}
        file |= {"checksums": {"sha256": digest}, "metadata": {}, "created_at": now(), "expires_at": None}
        self._shown[f"/files/{id}"] = file | {"urls": {"get": f"{self.url}/v1/files/{id}"}}
        return 201, self._shown[f"/files/{id}"]

    def _delete_file(self, id: str) -> tuple[int, Any]:
        find(self._shown, f"/files/{id}")
        del self._shown[f"/files/{id}"], self.files[f"uploads/{id}"]
        return 204, {}

    def _list_predictions(self) -> tuple[int, Any]:
        """The newest 100. (The real one has pages.)"""
        newest = [dict(job.view) for job in reversed(list(self.predictions.values()))][:100]
        return 200, {"next": None, "previous": None, "results": newest}

    def _predict(self, request: Request, version: str) -> tuple[int, Any]:
        if version not in self._versions:
            text = "The specified version does not exist (or perhaps you don't have permission to use it?)"
            raise RefusedError(422, text, title="Invalid version or not permitted")
        id, inputs = secrets.token_hex(13), require(request.body, "input")[0]
        here = f"{self.url}/v1/predictions/{id}"
        view = {"id": id, "model": self._versions[version], "version": version, "input": inputs, "source": "api"}
        view |= {"status": "starting", "logs": "", "output": None, "error": None, "metrics": {}, "data_removed": False}
        view |= {"created_at": now(), "started_at": None, "completed_at": None}
        view |= {"urls": {"get": here, "cancel": f"{here}/cancel", "web": f"https://replicate.com/p/{id}"}}
        # An uploaded file has an address for the model that needs no token.
        known = json.loads(json.dumps(inputs).replace(f"{self.url}/v1/files/", f"{self.url}/files/uploads/"))
        events = request.body.get("webhook_events_filter", ["output", "completed"])
        job = self.predictions[id] = Job(view, known, request.body.get("webhook"), events)
        self._shown[f"/predictions/{id}"] = view
        if wrong := self._runner.start(job):
            del self.predictions[id], self._shown[f"/predictions/{id}"]
            faults = [{"field": ".".join(fault["loc"][1:]), "description": fault["msg"]} for fault in wrong]
            detail = "".join(f"- {fault['field']}: {fault['description']}\n" for fault in faults)
            raise RefusedError(422, detail, invalid_fields=faults)
        if wait := re.fullmatch(r"wait(?:=(\d+))?", request.headers.get("prefer", "")):
            self._runner.wait(job, min(float(wait[1] or 60), self.sync_wait))
        return 201, dict(view)

    def _cancel(self, id: str) -> tuple[int, Any]:
        job = find(self.predictions, id)
        self._runner.cancel(job)
        return 200, dict(job.view)


def make_certificate(folder: Path) -> Path:
    if shutil.which("openssl") is None:
        raise RuntimeError("the output files need a certificate: install openssl")
    path = folder / "certificate.pem"
    key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-keyout", str(folder / "key.pem")]
    about = ["-days", "2", "-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1", "-out", str(path)]
    subprocess.run(["openssl", "req", "-x509", *key, *about], check=True, capture_output=True)
    with path.open("a") as file:
        file.write((folder / "key.pem").read_text())
    return path


def find(things: dict[str, Any], name: str) -> Any:
    if name not in things:
        raise RefusedError(404)
    return things[name]


def require(body: Json, *names: str) -> list[Any]:
    """The values of fields. 422 names those that are missing."""
    if missing := [name for name in names if name not in body]:
        faults = [{"type": "required", "field": "", "description": f"{name} is required"} for name in missing]
        raise RefusedError(422, "".join(f"- {name} is required\n" for name in missing), invalid_fields=faults)
    return [body[name] for name in names]
