"""A small server that speaks the Hugging Face Hub's protocol for files and commits."""

import base64
import contextlib
import hashlib
import http.server
import json
import threading
import urllib.parse

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class HubServer(http.server.ThreadingHTTPServer):
    """Repositories in memory: {"owner/name": {path: bytes}}; a token is needed to write."""

    def __init__(self, repositories=None, token="hf_test"):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repositories, self.token, self.log = repositories or {}, token, []
        self.gated = set()  # names of repositories whose terms nobody has accepted

    @property
    def address(self):
        return f"http://127.0.0.1:{self.server_port}"


@contextlib.contextmanager
def serving(repositories=None):
    server = HubServer(repositories)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def _send(self, status, body=b"", **headers):
        if not isinstance(body, bytes):
            body, headers = (
                json.dumps(body).encode(),
                {"Content-Type": "application/json"} | headers,
            )
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(body))} | headers).items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _missing(self, code="RepoNotFound"):
        self._send(404 if code != "RepoNotFound" else 401, {"error": code}, X_Error_Code=code)

    def _parts(self):
        path = urllib.parse.unquote(urllib.parse.urlparse(self.path).path)
        self.server.log.append((self.command, path))
        return path.strip("/").split("/")

    def do_GET(self):
        parts = self._parts()
        if parts[:2] == ["api", "models"]:
            repository = self.server.repositories.get("/".join(parts[2:4]))
            if repository is None:
                return self._missing()
            if "tree" in parts:
                rows = [
                    {"type": "file", "path": name, "size": len(data), "oid": _etag(data)}
                    for name, data in repository.items()
                ]
                return self._send(200, rows)
            files = [{"rfilename": n, "size": len(d)} for n, d in repository.items()]
            return self._send(
                200, {"id": "/".join(parts[2:4]), "sha": COMMIT, "siblings": files, "tags": []}
            )
        if "resolve" in parts:
            at = parts.index("resolve")
            repository = self.server.repositories.get("/".join(parts[:at]))
            if repository is None:
                return self._missing()
            if "/".join(parts[:at]) in self.server.gated:
                return self._send(403, {"error": "gated"}, X_Error_Code="GatedRepo")
            name = "/".join(parts[at + 2 :])
            if name not in repository:
                return self._missing("EntryNotFound")
            data = repository[name]
            return self._send(200, data, ETag=f'"{_etag(data)}"', X_Repo_Commit=COMMIT)
        return self._missing("EntryNotFound")

    do_HEAD = do_GET

    def do_POST(self):
        parts = self._parts()
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.headers.get("Authorization") != f"Bearer {self.server.token}":
            return self._send(401, {"error": "Invalid credentials"})
        if parts == ["api", "repos", "create"]:
            asked = json.loads(body)
            name = f"{asked.get('organization') or 'me'}/{asked['name']}"
            self.server.repositories.setdefault(name, {})
            return self._send(200, {"url": f"{self.server.address}/{name}", "name": name})
        if parts == ["api", "validate-yaml"]:  # of a card
            return self._send(200, {"errors": [], "warnings": []})
        name = "/".join(parts[2:4])
        if "preupload" in parts:
            files = [
                {"path": f["path"], "uploadMode": "regular", "shouldIgnore": False}
                for f in json.loads(body)["files"]
            ]
            return self._send(200, {"files": files})
        if "commit" in parts:
            for line in body.splitlines():
                item = json.loads(line)
                if item["key"] == "file":
                    value = item["value"]
                    self.server.repositories[name][value["path"]] = base64.b64decode(
                        value["content"]
                    )
            url = f"{self.server.address}/{name}/commit/{COMMIT}"
            return self._send(200, {"commitUrl": url, "commitOid": COMMIT, "success": True})
        return self._missing("EntryNotFound")


def _etag(data):
    return hashlib.sha1(data).hexdigest()
