"""A Weights & Biases server on loopback, as far as nip's tracker needs one: runs, history, files, artifacts, resume.

It answers the real client (0.31): its GraphQL operations by name, its file stream, and uploads and downloads by URL. What it
is asked and does not know is kept in `unknown`. It trusts everybody and forgets everything when it stops.
"""

import base64
import gzip
import hashlib
import json
import re
import threading
from collections import defaultdict
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

ENTITY = "tester"


def connection(nodes: list[dict]) -> dict:
    "A list as GraphQL pages it"
    edges = [{"node": node, "cursor": str(i)} for i, node in enumerate(nodes)]
    return {
        "edges": edges,
        "pageInfo": {"endCursor": str(len(edges)), "hasNextPage": False},
        "totalCount": len(edges),
    }


def strict(value) -> str:
    "JSON, with `NaN` as text, as the real server has it"
    return json.dumps(json.loads(json.dumps(value), parse_constant=str))


class Quiet(ThreadingHTTPServer):
    def handle_error(self, request, client_address):
        "A client that hangs up is no error"


class WandbServer:
    "Starts on a free port; `url` is what `WANDB_BASE_URL` should be"

    def __init__(self):
        self.runs: dict[tuple[str, str], dict] = {}  # (project, run) → what is known of it
        self.artifacts: dict[str, dict] = {}  # id → version of an artifact
        self.collections = defaultdict(list)  # (project, name) → ids of its versions
        self.storage: dict[str, bytes] = {}  # path of a URL → bytes
        self.asked, self.unknown = [], []  # Names of operations
        self.lock = threading.RLock()
        self.http = Quiet(("127.0.0.1", 0), handler(self))
        self.url = f"http://127.0.0.1:{self.http.server_port}"
        threading.Thread(target=self.http.serve_forever, daemon=True).start()

    def close(self) -> None:
        self.http.shutdown()
        self.http.server_close()

    def answer(self, operation: str, query: str, v: dict) -> dict:
        with self.lock:
            self.asked.append(operation)
            method = getattr(self, f"on_{operation}", None)
            if method is None:
                self.unknown.append((operation, v, query))
                return {}
            return method(v.get("input") or v, query)

    # Who and what

    def on_Viewer(self, v, query):
        return {"viewer": {"id": "user", "entity": ENTITY, "username": ENTITY, "email": "", "admin": False, "flags": "{}",
                           "teams": connection([{"name": ENTITY}]), "apiKeys": connection([])}}  # fmt: skip

    on_GetDefaultEntity = on_Viewer

    def on_ServerInfo(self, v, query):
        versions = {"max_cli_version": "99.0.0", "out_of_date": False, "latest": "99.0.0", "on_premise": True}
        return {"serverInfo": {"cliVersionInfo": versions, "latestLocalVersionInfo": None, "features": []}}

    on_ServerFeaturesQuery = on_ServerInfo

    def on_OrganizationCoreWeaveOrganizationID(self, v, query):
        return {"entity": {"organization": None}}

    # Runs

    def bucket(self, project: str, name: str) -> dict | None:
        run = self.runs.get((project, name))
        if run is None:
            return None
        where = {"id": f"project-{project}", "name": project, "entity": {"id": ENTITY, "name": ENTITY}}
        return run | {"project": where, "projectId": "1", "historyLineCount": len(run["history"]), "logLineCount": 0,
                      "eventsLineCount": 0, "historyTail": json.dumps(run["history"][-1:]), "eventsTail": "[]",
                      "config": strict(run["config"]), "summaryMetrics": strict(run["summary"]), "sweepName": None,
                      "wandbConfig": "{}", "historyKeys": None, "user": {"name": ENTITY, "username": ENTITY}, "readOnly": False,
                      "createdAt": "2026-01-01T00:00:00Z", "heartbeatAt": "2026-01-01T00:00:00Z"}  # fmt: skip

    def on_UpsertBucket(self, v, query):
        project, name = v.get("project") or "uncategorized", v["name"]
        new = (project, name) not in self.runs
        blank = {"id": f"run-{project}-{name}", "name": name, "config": {}, "summary": {}, "history": [], "tags": [], "state": "running",
                 "displayName": name, "group": None, "notes": None, "description": None, "jobType": None, "commit": None}  # fmt: skip
        run = self.runs.setdefault((project, name), blank)
        renamed = {"groupName": "group"}
        for key in ("tags", "displayName", "groupName", "notes", "description", "state"):
            if v.get(key) is not None:
                run[renamed.get(key, key)] = v[key]
        for key, target in (("config", "config"), ("summaryMetrics", "summary")):
            if v.get(key):
                run[target] |= json.loads(v[key])
        return {"upsertBucket": {"bucket": self.bucket(project, name), "inserted": new}}

    def on_RunResumeStatus(self, v, query):
        bucket = self.bucket(v["project"], v["name"])
        where = {
            "id": f"project-{v['project']}",
            "name": v["project"],
            "entity": {"id": ENTITY, "name": ENTITY},
        }
        return {"model": where | {"bucket": bucket}}

    def on_Run(self, v, query):
        return {
            "project": {"internalId": "1", "run": self.bucket(v["project"], v.get("name") or v.get("run"))}
        }

    def stream(self, project: str, name: str, sent: dict) -> None:
        run = self.runs[project, name]
        history = sent.get("files", {}).get("wandb-history.jsonl", {})
        run["history"] = (
            run["history"][: history.get("offset", 0)] + history["content"] if history else run["history"]
        )
        if summary := sent.get("files", {}).get("wandb-summary.json"):
            run["summary"] |= json.loads(summary["content"][0])
        if sent.get("complete"):
            run["state"] = "finished" if sent.get("exitcode") == 0 else "failed"

    # Files

    def place(self, *path: str) -> str:
        return f"{self.url}/storage/" + "/".join(base64.urlsafe_b64encode(p.encode()).decode() for p in path)

    def on_CreateRunFiles(self, v, query):
        files = [{"name": f, "uploadUrl": self.place(v["project"], v["run"], f)} for f in v["files"]]
        return {
            "createRunFiles": {"runID": f"run-{v['project']}-{v['run']}", "uploadHeaders": [], "files": files}
        }

    # Artifacts: a version is created with its digest, its manifest and files are uploaded, and then it is committed

    def on_CreateArtifact(self, v, query):
        key = (v["projectName"], v["artifactCollectionName"])
        versions = self.collections[key]
        same = next(
            (
                a
                for a in map(self.artifacts.get, versions)
                if a["digest"] == v["digest"] and a["state"] == "COMMITTED"
            ),
            None,
        )
        made = same or {"id": f"artifact-{len(self.artifacts)}", "state": "PENDING", "digest": v["digest"], "key": key, "aliases": [],
                        "metadata": v.get("metadata") or "{}", "type": v["artifactTypeName"], "index": len(versions),
                        "description": v.get("description"), "manifest": None}  # fmt: skip
        if same is None:
            self.artifacts[made["id"]] = made
            versions.append(made["id"])
        self.give_aliases(made, [a["alias"] for a in v.get("aliases") or []])
        sequence = {
            "id": "/".join(key),
            "latestArtifact": {"id": versions[-2], "versionIndex": len(versions) - 2}
            if len(versions) > 1
            else None,
        }
        return {
            "createArtifact": {
                "artifact": {"id": made["id"], "state": made["state"], "artifactSequence": sequence}
            }
        }

    def give_aliases(self, artifact: dict, aliases: list[str]) -> None:
        for other in map(self.artifacts.get, self.collections[artifact["key"]]):
            other["aliases"] = [a for a in other["aliases"] if a not in aliases]
        artifact["aliases"] += aliases

    def on_CreateArtifactManifest(self, v, query):
        url = self.place("manifests", v["artifactID"])
        file = {
            "id": "file",
            "name": v["name"],
            "displayName": v["name"],
            "uploadUrl": url,
            "uploadHeaders": [],
        }
        return {
            "createArtifactManifest": {
                "artifactManifest": {"id": f"manifest-{v['artifactID']}", "file": file}
            }
        }

    on_UpdateArtifactManifest = on_CreateArtifactManifest

    def on_CreateArtifactFiles(self, v, query):
        nodes = []
        for spec in v["artifactFiles"]:
            url = self.place("artifacts", spec["artifactID"], spec["name"])
            nodes.append({"id": "file", "name": spec["name"], "displayName": spec["name"], "uploadUrl": url, "uploadHeaders": [],
                          "storagePath": url, "uploadMultipartUrls": None, "artifact": {"id": spec["artifactID"]}})  # fmt: skip
        return {"createArtifactFiles": {"files": connection(nodes)}}

    def on_CommitArtifact(self, v, query):
        self.artifacts[v["artifactID"]]["state"] = "COMMITTED"
        return {
            "commitArtifact": {
                "artifact": {"id": v["artifactID"], "digest": self.artifacts[v["artifactID"]]["digest"]}
            }
        }

    def described(self, artifact: dict) -> dict:
        project, name = artifact["key"]
        where = {
            "id": f"project-{project}",
            "internalId": "1",
            "name": project,
            "entity": {"id": ENTITY, "name": ENTITY},
        }
        collection = {
            "__typename": "ArtifactSequence",
            "id": "/".join(artifact["key"]),
            "name": name,
            "project": where,
        }
        aliases = [{"__typename": "ArtifactAlias", "id": a, "alias": a, "artifactCollection": collection}
                   for a in (*artifact["aliases"], f"v{artifact['index']}")]  # fmt: skip
        fields = {k: artifact[k] for k in ("id", "state", "digest", "metadata", "description")}
        return fields | {"__typename": "Artifact", "artifactSequence": collection, "versionIndex": artifact["index"], "tags": [],
                         "artifactType": {"name": artifact["type"]}, "ttlDurationSeconds": -2, "ttlIsInherited": False, "size": 1,
                         "historyStep": None, "digestAlgorithm": "MANIFEST_MD5", "commitHash": artifact["digest"], "fileCount": 1,
                         "createdAt": "2026-01-01T00:00:00Z", "updatedAt": None, "aliases": aliases}  # fmt: skip

    def found(self, project: str, name: str) -> dict | None:
        collection, _, alias = name.partition(":")
        versions = [
            a
            for a in map(self.artifacts.get, self.collections.get((project, collection), []))
            if a["state"] == "COMMITTED"
        ]
        return next((a for a in versions if alias in (*a["aliases"], f"v{a['index']}")), None)

    def on_ArtifactMembershipByName(self, v, query):
        artifact = self.found(v["project"], v["name"])
        if artifact is None:
            return {"project": {"artifactCollectionMembership": None}}
        described = self.described(artifact)
        member = {"__typename": "ArtifactCollectionMembership", "id": described["id"], "versionIndex": artifact["index"], "createdAt": described["createdAt"],
                  "artifactCollection": described["artifactSequence"], "artifact": described,
                  "aliases": [{"__typename": "ArtifactAlias", "id": a, "alias": a} for a in artifact["aliases"]]}  # fmt: skip
        return {"project": {"artifactCollectionMembership": member}}

    def on_ArtifactType(self, v, query):
        known = next(
            (a for a in self.artifacts.values() if a["key"] == (v["project"], v["name"].partition(":")[0])),
            None,
        )
        return {"project": {"artifact": {"artifactType": {"name": known["type"]}} if known else None}}

    def on_ArtifactByID(self, v, query):
        return {"artifact": self.described(self.artifacts[v["id"]])}

    def on_FetchArtifactManifest(self, v, query):
        return {"artifact": {"currentManifest": {"file": {"directUrl": self.place("manifests", v["id"])}}}}

    on_ArtifactManifest = on_FetchArtifactManifest

    def on_GetArtifactMembershipFileUrls(self, v, query):
        artifact = self.found(v["project"], f"{v['collection']}:{v['alias']}")
        manifest = json.loads(self.storage[self.place("manifests", artifact["id"]).removeprefix(self.url)])
        nodes = [
            {"__typename": "File", "name": n, "directUrl": self.place("artifacts", artifact["id"], n)}
            for n in manifest["contents"]
        ]
        return {
            "project": {
                "artifactCollection": {
                    "__typename": "ArtifactSequence",
                    "artifactMembership": {"files": connection(nodes)},
                }
            }
        }


def handler(server: WandbServer) -> type[BaseHTTPRequestHandler]:
    "What does the talking"

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_):
            pass

        def body(self) -> bytes:
            data = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            return gzip.decompress(data) if self.headers.get("Content-Encoding") == "gzip" else data

        def reply(self, content, code: int = 200, tag: str | None = None) -> None:
            data = content if isinstance(content, bytes) else json.dumps(content).encode()
            self.send_response(code)
            self.send_header("Content-Length", str(len(data)))
            self.send_header("Content-Type", "application/json")
            if tag:
                self.send_header("ETag", tag)
            self.end_headers()
            self.wfile.write(data)

        def do_POST(self):
            data = self.body()
            if self.path == "/graphql":
                asked = json.loads(data)
                name = (
                    asked.get("operationName") or re.search(r"(?:query|mutation)\s+(\w+)", asked["query"])[1]
                )
                self.reply({"data": server.answer(name, asked["query"], asked.get("variables") or {})})
            elif self.path.endswith("/file_stream"):
                *_, project, run, _ = self.path.split("/")
                server.stream(project, run, json.loads(data))
                self.reply({})
            else:
                self.reply({})

        def do_PUT(self):
            data = self.body()
            server.storage[self.path] = data
            self.reply({}, tag=f'"{hashlib.md5(data).hexdigest()}"')

        def do_GET(self):
            there = self.path in server.storage
            self.reply(server.storage[self.path] if there else b"{}", 200 if there else 404)

    return Handler
