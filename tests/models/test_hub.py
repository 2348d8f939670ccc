"""Downloads by the real client of the hub, from a local server: pinned commits, hashes, missing files."""

import hashlib
import http.server
import json
import os
import subprocess
import sys
import threading

import pytest

COMMIT = "b" * 40
CONTENT = b"weights, or what stands for them" * 100
CODE = """
import json, sys, warnings
from dataclasses import replace
from stampy.models._systems.catalogue import card
from stampy.models._systems.hub import download
revision, sha256, wanted = json.loads(sys.argv[1])
found = replace(card("virchow2"), revision=revision, sha256=sha256)
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    try:
        path, source = download(found, wanted)
        print(json.dumps([path.read_bytes().hex(), source, [str(w.message) for w in caught]]))
    except Exception as error:
        print(json.dumps([type(error).__name__, str(error)]))
"""


class _Hub(http.server.BaseHTTPRequestHandler):
    """As far as a download needs it: HEAD and GET of /org/name/resolve/REVISION/FILE, branches resolved to a commit."""

    def do_HEAD(self):
        self._answer()

    def do_GET(self):
        if self._answer():
            self.wfile.write(CONTENT)

    def _answer(self):
        self.server.asked.append(self.path)
        if self.path not in {f"/paige-ai/Virchow2/resolve/{r}/pytorch_model.bin" for r in (COMMIT, "main")}:
            self.send_response(404)
            self.send_header("X-Error-Code", "EntryNotFound")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return False
        self.send_response(200)
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("ETag", f'"{hashlib.sha256(CONTENT).hexdigest()}"')
        self.send_header("Content-Length", str(len(CONTENT)))
        self.end_headers()
        return True

    def log_message(self, *_):
        pass


@pytest.fixture
def hub(tmp_path):
    """A function that downloads from a loopback server, and the requested paths."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Hub)
    server.asked = []
    threading.Thread(target=server.serve_forever, daemon=True).start()
    environment = os.environ | {
        "HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}",
        "HF_HOME": str(tmp_path / "hf"),
        "HF_HUB_OFFLINE": "0",
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "NO_PROXY": "127.0.0.1",
    }

    def run(revision, sha256, wanted=None):
        call = [sys.executable, "-c", CODE, json.dumps([revision, sha256, wanted])]
        done = subprocess.run(call, env=environment, capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout.splitlines()[-1])

    yield run, server.asked, tmp_path / "hf"
    server.shutdown()
    server.server_close()


def test_pinned(hub):
    run, asked, _ = hub
    content, source, notes = run(COMMIT, {"pytorch_model.bin": hashlib.sha256(CONTENT).hexdigest()})
    assert bytes.fromhex(content) == CONTENT
    assert source == f"hf-hub:paige-ai/Virchow2@{COMMIT}"
    assert not notes
    assert all(COMMIT in path for path in asked)  # not a branch, which may change


def test_another_file_is_refused_and_removed(hub):
    run, _, home = hub
    kind, message = run(COMMIT, {"pytorch_model.bin": "0" * 64})
    assert kind == "ValueError"
    assert "was removed from the cache" in message
    assert not [p for p in home.rglob("*") if p.is_file() and p.stat().st_size == len(CONTENT)]


def test_unpinned_is_refused_unless_named(hub):
    run, asked, _ = hub
    kind, message = run(None, {})
    assert (kind, "not downloaded unasked" in message) == ("ValueError", True)
    assert not asked
    content, source, notes = run(None, {}, "main")
    assert bytes.fromhex(content) == CONTENT
    assert source.endswith(COMMIT)  # the record has the commit of the branch
    assert "was not verified" in notes[0]
