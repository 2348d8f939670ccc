"""Corpora from data sets of the hub, by its real client, from a local server."""

import hashlib
import http.server
import json
import os
import subprocess
import sys
import threading
from contextlib import contextmanager

import pytest

from stampy import datasets
from stampy.train import Corpus
from stampy.train._corpus import source

COMMIT = "c" * 40
REPOSITORY = "minghaofdu/SpaVis-6M"
SMALL = {"max_tokens": 48, "size_px": 64, "codec": "zstd", "n_workers": 1, "progress": False}
CODE = """
import json, sys, warnings
from huggingface_hub import HfFileSystem
from stampy.train import Corpus
from stampy.train._corpus import source
warnings.simplefilter("ignore")
fetch = source.HubFolder.fetch
def build(address, out, options, stop):
    there = []
    def spied(self, file):
        there.append(sorted(p.name for p in self.place.rglob("*.h5*") if p.suffix in (".h5", ".h5ad")))
        if len(there) > stop:
            raise KeyboardInterrupt
        return fetch(self, file)
    source.HubFolder.fetch = spied
    HfFileSystem.clear_instance_cache()  # each test has other files under the same address
    try:
        corpus = Corpus.build(address, out, **options)
        return corpus.digest, [s.name for s in corpus.sections], there, (corpus.path / "downloads").exists()
    except KeyboardInterrupt:
        return "stopped", there
    except (OSError, ValueError) as error:
        return type(error).__name__, str(error)
for line in sys.stdin:
    print("found", json.dumps(build(*json.loads(line))), flush=True)
"""


class _Hub(http.server.BaseHTTPRequestHandler):
    """Requests of the client: the commit, the tree, some paths, and files or ranges of them."""

    protocol_version = "HTTP/1.1"

    def do_HEAD(self):
        self._file(body=False)

    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        self._json([self._entry(name) for name in self.server.files])

    def do_GET(self):
        path = self.path.partition("?")[0]
        tree = f"/api/datasets/{REPOSITORY}/tree/{COMMIT}"
        if path.startswith(tree):
            below = path.removeprefix(tree).replace("%2F", "/").strip("/")
            self._json([self._entry(name) for name in self.server.files if not below or name.startswith(f"{below}/")])
        elif path == f"/api/datasets/{REPOSITORY}/revision/{COMMIT}":
            self._json({"id": REPOSITORY, "sha": COMMIT, "siblings": []})
        else:
            self._file(body=True)

    def _entry(self, name):
        data = self.server.files[name]
        lfs = {"oid": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 130}
        return {"type": "file", "path": name, "size": len(data), "oid": "0" * 40, "lfs": lfs}

    def _json(self, found):
        data = json.dumps(found).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def _file(self, *, body):
        self.server.asked.append((self.command, self.path, self.headers.get("Range")))
        name = self.path.partition(f"/datasets/{REPOSITORY}/resolve/{COMMIT}/")[2]
        data = self.server.files.get(name)
        if data is None:
            self.send_response(404)
            self.send_header("X-Error-Code", "RepoNotFound" if REPOSITORY not in self.path else "EntryNotFound")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        served = self.server.served.get(name, data)
        wanted = self.headers.get("Range")
        first, last = 0, len(data) - 1
        if wanted:
            start, _, stop = wanted.removeprefix("bytes=").partition("-")
            first, last = int(start), min(int(stop) if stop else last, last)
        self.send_response(206 if wanted else 200)
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("ETag", f'"{hashlib.sha256(data).hexdigest()}"')
        self.send_header("Content-Length", str(last + 1 - first))
        if wanted:
            self.send_header("Content-Range", f"bytes {first}-{last}/{len(data)}")
        self.end_headers()
        if body:
            self.wfile.write(served[first : last + 1])

    def log_message(self, *_):
        pass


@contextmanager
def hub(folder, *, is_there=True):
    """A hub on this machine, and a process that builds from it: the hub's client reads its address once."""
    found = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Hub)
    found.daemon_threads = True
    found.files, found.served, found.asked = {}, {}, []
    if is_there:
        threading.Thread(target=found.serve_forever, daemon=True).start()
    else:
        found.server_close()
    environment = os.environ | {
        "HF_ENDPOINT": f"http://127.0.0.1:{found.server_port}",
        "HF_HOME": str(folder / "hf"),
        "HF_HUB_OFFLINE": "0",
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
    }
    with (
        open(folder / "errors.txt", "w+") as errors,
        subprocess.Popen([sys.executable, "-c", CODE], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors,
                         env=environment, text=True) as process,
    ):  # fmt: skip

        def run(address, out, stop=99, **options):
            process.stdin.write(json.dumps([address, str(out), SMALL | options, stop]) + "\n")
            process.stdin.flush()
            for line in process.stdout:
                if line.startswith("found "):
                    return json.loads(line.removeprefix("found "))
            raise AssertionError((folder / "errors.txt").read_text())

        found.run = run
        yield found
        process.stdin.close()
    if is_there:
        found.shutdown()
        found.server_close()


@pytest.fixture(scope="module")
def one_hub(tmp_path_factory):
    with hub(tmp_path_factory.mktemp("hub")) as found:
        yield found


@pytest.fixture
def server(one_hub):
    """The hub, empty."""
    one_hub.files, one_hub.served, one_hub.asked = {}, {}, []
    return one_hub


@pytest.mark.filterwarnings("ignore:The vocabulary is not the published one")
def test_spavis_comes_file_by_file(server, tmp_path):
    toy = datasets.toy_spavis(tmp_path / "SpaVis", n_spots=40, n_sections=4, n_files=3, n_positions=48, n_genes=300)
    server.files = {p.relative_to(toy.folder).as_posix(): p.read_bytes() for p in toy.folder.rglob("*.h5")}
    server.files["README.md"] = b"about"
    local = Corpus.build(toy.folder, tmp_path / "local", vocabulary=toy.vocabulary, **SMALL)
    address, options = f"hf:{REPOSITORY}@{COMMIT}", {"vocabulary": str(toy.vocabulary)}
    found = server.run(address, tmp_path / "corpus", stop=1, **options)
    assert found[0] == "stopped", found
    written = sorted(p.name for p in (tmp_path / "corpus" / "sections").iterdir() if p.is_dir())
    assert written == ["dataset0_slide0"]  # the other section of the first file continues in the second
    digest, names, there, left = server.run(address, tmp_path / "corpus", **options)
    assert digest == local.digest
    assert names == [s.name for s in local.sections]
    # one file is kept, as one of its sections goes on in the next
    assert there == [["tokens-0.h5"], ["tokens-0.h5"], ["tokens-1.h5"]]
    assert not left
    assert not [path for _, path, _ in server.asked if "/val/" in path]
    whole = [path for command, path, wanted in server.asked if command == "GET" and not wanted]
    assert len(whole) == 3  # each once, for the killed run and the one that went on


@pytest.mark.filterwarnings("ignore:The vocabulary is not the published one")
def test_a_relative_folder_and_no_network(server, tmp_path):
    toy = datasets.toy_spavis(tmp_path / "SpaVis", n_spots=40, n_sections=2, n_files=1, n_positions=48, n_genes=300)
    address, options = f"hf:{REPOSITORY}@{COMMIT}", {"vocabulary": str(toy.vocabulary)}
    server.files = {p.relative_to(toy.folder).as_posix(): p.read_bytes() for p in toy.folder.rglob("*.h5")}
    found = server.run(address, os.path.relpath(tmp_path / "corpus"), **options)
    assert found[1] == ["dataset0_slide0", "dataset0_slide1"]
    with hub(tmp_path, is_there=False) as nowhere:
        found = nowhere.run(address, tmp_path / "other", **options)
    assert found[0] == "ConnectionError"
    assert "cannot be reached" in found[1]


@pytest.mark.filterwarnings("ignore")
def test_a_file_a_section(server, toy, vocabulary, tmp_path):
    for name in ("a", "b"):
        section = toy[:, :60].copy() if name == "a" else toy.copy()
        section.uns = {}
        section.write_h5ad(tmp_path / f"{name}.h5ad")
        server.files[f"data/{name}.h5ad"] = (tmp_path / f"{name}.h5ad").read_bytes()
    vocabulary.save(tmp_path / "genes.tsv")
    address, options = f"hf:{REPOSITORY}@{COMMIT}", {"vocabulary": str(tmp_path / "genes.tsv")}
    digest, names, there, left = server.run(address, tmp_path / "corpus", **options)
    assert (names, there, left) == (["a", "b"], [[], []], False)
    paths = [tmp_path / "a.h5ad", tmp_path / "b.h5ad"]
    assert Corpus.build(paths, tmp_path / "local", vocabulary=tmp_path / "genes.tsv", **SMALL).digest == digest
    assert "Pass the vocabulary" in server.run(address, tmp_path / "other")[1]


@pytest.mark.filterwarnings("ignore:The vocabulary is not the published one")
def test_damaged_download_is_removed(server, tmp_path):
    toy = datasets.toy_spavis(tmp_path / "SpaVis", n_spots=20, n_sections=1, n_val=0, n_files=1, n_positions=48)
    data = (toy.folder / "train" / "tokens-0.h5").read_bytes()
    half = len(data) // 2
    server.files = {"stage1/train/tokens-0.h5": data}
    server.served = {"stage1/train/tokens-0.h5": data[:half] + b"\1\1" + data[half + 2 :]}
    options = {"vocabulary": str(toy.vocabulary)}
    kind, message = server.run(f"hf:{REPOSITORY}@{COMMIT}/stage1", tmp_path / "corpus", **options)
    assert (kind, "came with the hash" in message) == ("ValueError", True), message
    assert not list((tmp_path / "corpus").rglob("*.h5"))
    assert "Files of tokens lie in ['stage1/train']" in server.run(f"hf:{REPOSITORY}@{COMMIT}", tmp_path / "o")[1]


@pytest.mark.parametrize(
    "address", ["hf:org/name", "hf:org/name@main", f"hf:name@{COMMIT}", f"hf:org/name@{COMMIT[:12]}"]
)
def test_a_commit_is_required(address, tmp_path):
    with pytest.raises(ValueError, match=r"expected hf:org/name@COMMIT, with the 40 digits"):
        Corpus.build(f"hf:{address}", tmp_path / "corpus")
    assert not (tmp_path / "corpus").exists()


def test_hub_source_excludes_other_sources(tmp_path):
    with pytest.raises(ValueError, match="is a separate corpus"):
        Corpus.build([f"hf:org/name@{COMMIT}", "a.h5ad"], tmp_path / "corpus")


def test_only_hub_addresses_are_recognised(tmp_path):
    assert source.hub_folder("hf", tmp_path) is None
    assert source.hub_folder([tmp_path], tmp_path) is None
    assert source.hub_folder(None, tmp_path) is None
