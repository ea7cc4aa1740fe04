"""A stand-in for the W&B server on the loopback interface, for tests of the unmodified `wandb` client.

It knows what online runs need (log in, create and update a run, stream history, summary and console, upload
files, log artifacts) and what a grid sweep needs (`wandb sweep`, `wandb agent`, stopping a run). It keeps
everything in memory, as the client sent it. Resuming and the rest of the public API are not there: such a
request is answered with an error and listed in `WandbServer.unknown`.
"""

import base64
import gzip
import itertools
import json
import re
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any
from urllib.parse import quote, unquote

import yaml

ENTITY = "tester"
_STREAM = re.compile(r"/files/[^/]+/[^/]+/([^/]+)/file_stream")
_OPERATION = re.compile(r"\s*(?:query|mutation)\s+(\w+)")
_UPLOAD = re.compile(r"/storage/([^/]+)/(.+)")
_HISTORY, _SUMMARY = "wandb-history.jsonl", "wandb-summary.json"


@dataclass
class RecordedRun:
    """What the client said of one run.

    Attributes:
        id: the client's own short name for the run.
        config: key → value, without W&B's envelope around each value.
        lines: streamed file → line number → line; history, summary, console and machine statistics.
        files: uploaded file → content.
        exit_code: of the process; None until the client says that the run is over.
        sweep: id of the sweep that it says it belongs to.
    """

    id: str
    project: str | None = None
    group: str | None = None
    job_type: str | None = None
    sweep: str | None = None
    display_name: str | None = None
    tags: list[str] = field(default_factory=list)
    config: dict[str, Any] = field(default_factory=dict)
    lines: dict[str, dict[int, str]] = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)
    exit_code: int | None = None

    @property
    def history(self) -> list[dict[str, Any]]:
        """Rows in order, keys as they were logged."""
        return [json.loads(line) for _, line in sorted(self.lines.get(_HISTORY, {}).items())]

    @property
    def summary(self) -> dict[str, Any]:
        """The latest summary."""
        lines = self.lines.get(_SUMMARY, {})
        return json.loads(lines[max(lines)]) if lines else {}


@dataclass
class RecordedSweep:
    """A grid and what its agents were told.

    Attributes:
        id: short name.
        config: the sweep file, as the client sent it.
        waiting: points that no agent has got yet.
        given: run's id → its point.
        to_stop: runs whose agent is told so at its next heartbeat.
    """

    id: str
    config: dict[str, Any]
    waiting: list[dict[str, Any]]
    given: dict[str, dict[str, Any]] = field(default_factory=dict)
    to_stop: list[str] = field(default_factory=list)


@dataclass
class RecordedArtifact:
    """What was logged under one name, and the files of it that were uploaded."""

    name: str
    type: str
    metadata: dict[str, Any]
    run: str
    files: dict[str, bytes] = field(default_factory=dict)
    committed: bool = False


class WandbServer:
    """Serves while the `with` block runs.

    Args:
        key: the only API key it lets in.

    Attributes:
        runs: id → run.
        sweeps: id → sweep.
        artifacts: id → artifact.
        requests: each request, in order: a GraphQL operation's name, or the method and path of another one.
        unknown: the requests that it had no answer to.
    """

    def __init__(self, *, key: str) -> None:
        self.runs: dict[str, RecordedRun] = {}
        self.sweeps: dict[str, RecordedSweep] = {}
        self.artifacts: dict[str, RecordedArtifact] = {}
        self._agents: dict[str, str] = {}  # agent → sweep
        self.requests: list[str] = []
        self.unknown: list[str] = []
        self._authorization = "Basic " + base64.b64encode(f"api:{key}".encode()).decode()
        self._lock = threading.Lock()  # one request at a time: the client sends several at once
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                if self.headers.get("Content-Encoding") == "gzip":
                    body = gzip.decompress(body)
                with server._lock:
                    status, answer = server._answer(
                        self.command, self.path, body, authorization=self.headers.get("Authorization")
                    )
                content = json.dumps(answer).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            do_GET = do_PUT = do_POST

            def log_message(self, *_: Any) -> None:
                """The tests' output stays readable."""

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._http.serve_forever, daemon=True)

    @property
    def url(self) -> str:
        """For WANDB_BASE_URL."""
        return f"http://127.0.0.1:{self._http.server_port}"

    def __enter__(self) -> "WandbServer":
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()

    def _answer(
        self, method: str, path: str, body: bytes, *, authorization: str | None
    ) -> tuple[int, dict[str, Any]]:
        if upload := _UPLOAD.fullmatch(path):  # the address is the permission, as with a signed one
            self.requests.append(f"{method} {path}")
            owner, name = map(unquote, upload.groups())
            (self.artifacts.get(owner) or self._run(owner)).files[name] = body
            return 200, {}
        query = json.loads(body) if path == "/graphql" else {}
        operation = query.get("operationName") or f"{method} {path}"
        if query and (named := _OPERATION.match(query["query"])):  # the client leaves some names out
            operation = named[1]
        self.requests.append(operation)
        if authorization != self._authorization:
            return 401, {"errors": [{"message": "this key is not known here"}]}
        if stream := _STREAM.fullmatch(path):
            self._stream(self._run(unquote(stream[1])), json.loads(body))
            return 200, {"exitcode": None, "limits": {}}
        answer = getattr(self, f"_on_{operation}", None) if query else None
        if answer is None:
            self.unknown.append(operation)
            return 400, {"errors": [{"message": f"the stand-in has no answer to {operation}"}]}
        return 200, {"data": answer(query.get("variables") or {})}

    def _run(self, name: str) -> RecordedRun:
        return self.runs.setdefault(name, RecordedRun(id=name))

    def _stream(self, run: RecordedRun, chunk: dict[str, Any]) -> None:
        for name, part in (chunk.get("files") or {}).items():
            # By offset, so that a chunk which is sent again after an error counts once.
            run.lines.setdefault(name, {}).update(enumerate(part["content"], start=part["offset"]))
        if chunk.get("complete"):
            run.exit_code = chunk.get("exitcode")

    def _on_ServerFeaturesQuery(self, _: dict[str, Any]) -> dict[str, Any]:
        return {"serverInfo": {"features": []}}

    def _on_Viewer(self, _: dict[str, Any]) -> dict[str, Any]:
        viewer = {"id": "1", "entity": ENTITY, "username": ENTITY, "email": "", "flags": "{}"}
        return {"viewer": {**viewer, "teams": {"edges": []}}}

    def _on_OrganizationCoreWeaveOrganizationID(self, _: dict[str, Any]) -> dict[str, Any]:
        return {"entity": {"organization": None}}

    def _on_RunResumeStatus(self, _: dict[str, Any]) -> dict[str, Any]:
        return {"model": None}  # nothing to resume: every run is new

    def _on_UpsertBucket(self, sent: dict[str, Any]) -> dict[str, Any]:
        inserted = sent["name"] not in self.runs
        run = self._run(sent["name"])
        run.project = sent.get("project") or run.project
        run.group = sent.get("groupName") or run.group
        run.display_name = sent.get("displayName") or run.display_name
        run.tags = sent.get("tags") or run.tags
        run.job_type = sent.get("jobType") or run.job_type
        run.sweep = sent.get("sweep") or run.sweep
        for key, entry in json.loads(sent.get("config") or "{}").items():
            run.config[key] = entry["value"]
        owner = {"id": "1", "name": ENTITY}
        bucket = {
            "id": run.id,
            "name": run.id,
            "displayName": run.display_name,
            "description": None,
            "config": None,
            "sweepName": run.sweep,
            "project": {"id": "1", "name": run.project, "entity": owner},
            "historyLineCount": len(run.history),
        }
        return {"upsertBucket": {"bucket": bucket, "inserted": inserted}}

    def _on_CreateRunFiles(self, sent: dict[str, Any]) -> dict[str, Any]:
        place = f"{self.url}/storage/{quote(sent['run'], safe='')}"
        files = [{"name": name, "uploadUrl": f"{place}/{quote(name)}"} for name in sent["files"]]
        return {"createRunFiles": {"runID": sent["run"], "uploadHeaders": [], "files": files}}

    def _on_ArtifactType(self, _: dict[str, Any]) -> dict[str, Any]:
        return {"project": {"artifact": None}}  # every artifact is new

    def _on_CreateArtifact(self, sent: dict[str, Any]) -> dict[str, Any]:
        given = sent["input"]
        artifact = RecordedArtifact(
            name=given["artifactCollectionName"],
            type=given["artifactTypeName"],
            metadata=json.loads(given.get("metadata") or "{}"),
            run=given["runName"],
        )
        id_ = f"artifact{len(self.artifacts)}"
        self.artifacts[id_] = artifact
        described = {"id": id_, "state": "PENDING", "artifactSequence": {"latestArtifact": None}}
        return {"createArtifact": {"artifact": described}}

    def _on_CreateArtifactManifest(self, sent: dict[str, Any]) -> dict[str, Any]:
        given = sent.get("input", sent)
        return {
            "createArtifactManifest": {"artifactManifest": self._place(given["artifactID"], given["name"])}
        }

    def _on_CreateArtifactFiles(self, sent: dict[str, Any]) -> dict[str, Any]:
        nodes = []
        for file in sent["input"]["artifactFiles"]:
            url = f"{self.url}/storage/{file['artifactID']}/{quote(file['name'])}"
            node = {"storagePath": file["name"], "uploadUrl": url, "uploadHeaders": []}
            nodes.append(node | {"uploadMultipartUrls": None, "artifact": {"id": file["artifactID"]}})
        return {"createArtifactFiles": {"files": {"edges": [{"node": node} for node in nodes]}}}

    def _on_CommitArtifact(self, sent: dict[str, Any]) -> dict[str, Any]:
        id_ = sent.get("input", sent)["artifactID"]
        self.artifacts[id_].committed = True
        return {"commitArtifact": {"artifact": {"id": id_, "digest": ""}}}

    def _place(self, artifact: str, name: str) -> dict[str, Any]:
        url = f"{self.url}/storage/{artifact}/{quote(name)}"
        return {
            "id": f"{artifact}/{name}",
            "file": {"id": name, "name": name, "displayName": name, "uploadUrl": url, "uploadHeaders": []},
        }

    def _on_UpsertSweep(self, sent: dict[str, Any]) -> dict[str, Any]:
        config = yaml.safe_load(sent["config"])
        choices = {
            name: [described["value"]] if "value" in described else described["values"]
            for name, described in config["parameters"].items()
        }
        points = [dict(zip(choices, values, strict=True)) for values in itertools.product(*choices.values())]
        sweep = RecordedSweep(id=f"sweep{len(self.sweeps)}", config=config, waiting=points)
        self.sweeps[sweep.id] = sweep
        project = {"id": "1", "name": sent["projectName"], "entity": {"id": "1", "name": ENTITY}}
        return {
            "upsertSweep": {"sweep": {"name": sweep.id, "project": project}, "configValidationWarnings": []}
        }

    def _on_SweepWithRuns(self, sent: dict[str, Any]) -> dict[str, Any]:
        sweep = self.sweeps[sent["sweep"]]
        found = {"id": sweep.id, "name": sweep.id, "method": sweep.config["method"], "state": "RUNNING"}
        found |= {"description": None, "config": yaml.dump(sweep.config), "runs": {"edges": []}}
        return {"project": {"sweep": found}}

    def _on_CreateAgent(self, sent: dict[str, Any]) -> dict[str, Any]:
        agent = f"agent{len(self._agents)}"
        self._agents[agent] = sent["sweep"]
        return {"createAgent": {"agent": {"id": agent}}}

    def _on_Heartbeat(self, sent: dict[str, Any]) -> dict[str, Any]:
        """One trial at a time for each agent, then the end."""
        sweep = self.sweeps[self._agents[sent["id"]]]
        running = json.loads(sent["runState"])
        commands: list[dict[str, Any]] = [
            {"type": "stop", "run_id": run} for run in sweep.to_stop if run in running
        ]
        if not running and sweep.waiting:
            point = sweep.waiting.pop(0)
            run = f"{sweep.id}-{len(sweep.given)}"
            sweep.given[run] = point
            arguments = {name: {"value": _through_javascript(value)} for name, value in point.items()}
            commands.append({"type": "run", "run_id": run, "program": None, "args": arguments})
        elif not running:
            commands.append({"type": "exit"})
        return {"agentHeartbeat": {"agent": {"id": sent["id"]}, "commands": json.dumps(commands)}}


def _through_javascript(value: Any) -> Any:
    """Numbers on the real server have one type, so 1.0 comes back as 1."""
    if isinstance(value, dict):
        return {key: _through_javascript(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_through_javascript(item) for item in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value
