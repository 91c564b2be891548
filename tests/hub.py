"""A small server at 127.0.0.1 that answers the few requests that huggingface_hub makes to fetch a file."""

import contextlib
import hashlib
import http.server
import threading

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub(http.server.BaseHTTPRequestHandler):
    """Serves {path: bytes} of the repository user/model, at the revisions main, v1 and COMMIT."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        pass

    def answer(self, code, body=b"", **headers):
        self.send_response(code)
        for name, value in {"Content-Length": len(body), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def do_GET(self):
        self.server.seen.append(f"{self.command} {self.path}")
        owner, name, word, revision, *file = self.path.strip("/").split("/")
        if (owner, name, word) != ("user", "model", "resolve"):
            return self.answer(401, b"", X_Error_Code="RepoNotFound")
        if revision not in ("main", "v1", COMMIT):
            return self.answer(404, b"", X_Error_Code="RevisionNotFound")
        content = self.server.files.get("/".join(file))
        if content is None:
            return self.answer(404, b"", X_Error_Code="EntryNotFound")
        self.answer(200, content, ETag=f'"{hashlib.sha1(content).hexdigest()}"', X_Repo_Commit=COMMIT, Accept_Ranges="bytes")

    do_HEAD = do_GET

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.seen.append(f"POST {self.path} {len(body)}")
        self.answer(200, b'{"errors": [], "warnings": []}', Content_Type="application/json")


@contextlib.contextmanager
def serving(files):
    """The server while it runs, with its address, `files` to serve and the requests `seen`."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.files, server.seen, server.address = files, [], f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
