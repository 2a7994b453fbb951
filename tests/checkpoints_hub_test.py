"""Published checkpoints by name: downloaded atomically, cached, and used offline."""

import hashlib
import http.server
import importlib.util
import json
import os
import pathlib
import re
import subprocess
import sys
import threading

import pytest

from tests import fake_gcs
from vit_jax.errors import CheckpointError
from vit_jax.pretrained import hub
from vit_jax.pretrained.hub import resolve

pytestmark = pytest.mark.medium

ROOT = pathlib.Path(__file__).resolve().parent.parent


def test_any_other_name_is_a_path(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("runs/a", "/a/b.npz", "a:b", "hf/a", pathlib.Path("x")):
        assert resolve(name) == pathlib.Path(name)
    assert resolve("~/a.npz") == tmp_path / "a.npz"


@pytest.mark.parametrize("name", ["hf:vit", "hf:../x", "timm:a/b"])
def test_an_invalid_repository_name_is_refused(name):
    with pytest.raises(CheckpointError, match="write hf:OWNER/NAME"):
        resolve(name)


def test_other_servers_are_refused():
    with pytest.raises(CheckpointError, match=r"only https://storage\.googleapis\.com"):
        resolve("https://example.com/a.npz")


# --- The Hugging Face Hub: the requests of its client

COMMITS = {"main": "a" * 40, "old": "b" * 40}
REPOSITORIES = {
    "owner/new": ("config.json", "model.safetensors", "pytorch_model.bin", "flax_model.msgpack"),
    "owner/parts": (
        "config.json",
        "preprocessor_config.json",
        "model.safetensors.index.json",
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
        "onnx/model.safetensors",
    ),
    "owner/pickled": ("config.json", "pytorch_model.bin", "README.md"),
    "timm/vit_tiny.augreg": ("config.json", "model.safetensors"),
    "owner/nothing": ("config.json", "tf_model.h5"),
}


class Hub(http.server.BaseHTTPRequestHandler):
    """Answers the requests of huggingface_hub; https://huggingface.co/docs/hub/api."""

    protocol_version = "HTTP/1.1"

    def do_GET(self):
        path = self.path.partition("?")[0]
        if match := re.fullmatch(r"/api/models/(\w+/[\w.]+)/revision/(\w+)", path):
            self.describe(*match.groups())
        elif match := re.fullmatch(r"/api/models/(\w+/[\w.]+)/tree/\w+", path):
            self.send(json.dumps([entry(name) for name in REPOSITORIES[match[1]]]).encode())
        elif match := re.fullmatch(r"/(\w+/[\w.]+)/resolve/(\w+)/(.+)", path):
            headers = {"ETag": f'"{entry(match[3])["oid"]}"', "X-Repo-Commit": match[2]}
            self.send(content(match[3]), **headers)
        else:
            self.send(b"{}", status=404)

    do_HEAD = do_GET

    def describe(self, repository, revision):
        if repository == "owner/gated":
            return self.send(b"{}", status=403, X_Error_Code="GatedRepo")
        if repository not in REPOSITORIES:
            return self.send(b"{}", status=404, X_Error_Code="RepoNotFound")
        if revision not in COMMITS:
            return self.send(b"{}", status=404, X_Error_Code="RevisionNotFound")
        names = [{"rfilename": name} for name in REPOSITORIES[repository]]
        about = {"id": repository, "sha": COMMITS[revision], "siblings": names}
        return self.send(json.dumps(about).encode())

    def send(self, body, status=200, **headers):
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *arguments):
        """Prints nothing."""


def content(name):
    return f"the content of {name}".encode()


def entry(name):
    oid = hashlib.sha1(content(name)).hexdigest()
    return {"type": "file", "path": name, "size": len(content(name)), "oid": oid}


ASK = """
import sys
from vit_jax.pretrained.hub import resolve
from vit_jax.errors import CheckpointError
for name in sys.argv[1:]:
    try:
        print(resolve(name))
    except CheckpointError as error:
        print("error:", str(error).replace("\\n", " "))
"""


@pytest.fixture
def ask(tmp_path):
    """Resolves names in another process: the client reads its settings on import."""
    if importlib.util.find_spec("huggingface_hub") is None:
        pytest.skip('needs huggingface_hub: pip install -e ".[hub]"')

    def run(*names, endpoint, **environment):
        done = subprocess.run(
            [sys.executable, "-c", ASK, *names],
            cwd=ROOT,
            env={
                **os.environ,
                "HF_HOME": str(tmp_path / "hf"),
                "HF_ENDPOINT": endpoint,
                "HF_HUB_DISABLE_TELEMETRY": "1",
                "PYTHONPATH": str(ROOT),
                **environment,
            },
            capture_output=True,
            text=True,
            timeout=200,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.splitlines()

    return run


@pytest.fixture
def server():
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


def test_repositories(ask, server):
    names = (
        "hf:owner/new",
        "hf:owner/parts",
        "hf:owner/pickled",
        "timm:vit_tiny.augreg",
        "hf:owner/new@old",
    )
    folders = [pathlib.Path(line) for line in ask(*names, endpoint=server)]
    names_of_files = [sorted(path.name for path in folder.iterdir()) for folder in folders]
    assert names_of_files == [
        ["config.json", "model.safetensors"],
        sorted(REPOSITORIES["owner/parts"][:5]),
        ["config.json", "pytorch_model.bin"],
        ["config.json", "model.safetensors"],
        ["config.json", "model.safetensors"],
    ]
    assert folders[0].name == COMMITS["main"] and folders[4].name == COMMITS["old"]
    assert (folders[0] / "model.safetensors").read_bytes() == content("model.safetensors")
    # Cached files are used without a network.
    again = ask(*names, "hf:owner/absent", endpoint="http://127.0.0.1:1", HF_HUB_OFFLINE="1")
    assert again[:-1] == list(map(str, folders))
    assert re.search(
        r"hf:owner/absent cannot be downloaded: the Hub cannot be reached.*By hand: download "
        r"config\.json.*model\.safetensors.*repository owner/absent into a folder, and name",
        again[-1],
    )


def test_unavailable_repositories(ask, server):
    names = ("hf:owner/none", "hf:owner/new@no", "hf:owner/gated", "hf:owner/nothing")
    lines = ask(*names, endpoint=server)
    for line, why in zip(
        lines,
        ("no such repository", "no such revision", "licence", "neither model.safetensors"),
        strict=True,
    ):
        assert line.startswith("error: hf:owner/") and why in line


def test_without_the_client(monkeypatch):
    monkeypatch.setattr(hub, "find_spec", lambda name: None)
    with pytest.raises(CheckpointError, match=r"pip install \"vit_jax\[hub\].*By hand: download"):
        resolve("hf:owner/name")
    with pytest.raises(CheckpointError, match=r"pip install \"vit_jax\[gcs\].*By hand: download"):
        resolve("gs://bucket/not/there.npz")


# --- Google Cloud Storage


@pytest.fixture
def cache(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(hub, "_CHUNK", 1000)
    return tmp_path / "vit_jax" / "gs" / "bucket"


NPZ = bytes(range(256)) * 20


def test_objects_are_downloaded_once(gcs, cache):
    gcs.put("augreg/B_16.npz", NPZ)
    path = resolve("gs://bucket/augreg/B_16.npz")
    assert path == cache / "augreg" / "B_16.npz" and path.read_bytes() == NPZ
    assert os.listdir(path.parent) == ["B_16.npz"]
    gcs.stop()
    for name in (
        "gs://bucket/augreg/B_16.npz",
        "https://storage.googleapis.com/bucket/augreg/B_16.npz",
    ):
        assert resolve(name) == path


def test_a_partial_file_of_a_killed_process_is_overwritten(gcs, cache):
    gcs.put("a.npz", NPZ)
    cache.mkdir(parents=True)
    (cache / ".a.npz.partial").write_bytes(b"half of it" * 9999)
    assert resolve("gs://bucket/a.npz").read_bytes() == NPZ
    assert os.listdir(cache) == ["a.npz"]


@pytest.mark.parametrize("kind", ["md5Hash", "crc32c"])
def test_checksums(gcs, cache, monkeypatch, kind):
    import base64

    import google_crc32c

    def describe(bucket, name, item, real=fake_gcs._describe):
        described = real(bucket, name, item)
        if kind == "crc32c":
            del described["md5Hash"]
            digest = google_crc32c.Checksum(item.content).digest()
            described["crc32c"] = base64.b64encode(digest).decode()
        if name == "bad.npz":
            described[kind] = "AAAA" + described[kind][4:]
        return described

    monkeypatch.setattr(fake_gcs, "_describe", describe)
    gcs.put("good.npz", NPZ)
    gcs.put("bad.npz", NPZ)
    assert resolve("gs://bucket/good.npz").read_bytes() == NPZ
    with pytest.raises(CheckpointError, match=r"checksum.*By hand: download https://storage"):
        resolve("gs://bucket/bad.npz")
    assert not (cache / "bad.npz").exists()


def test_unavailable_objects(gcs, cache):
    with pytest.raises(CheckpointError, match=r"no such file.*By hand"):
        resolve("gs://bucket/none.npz")
    gcs.put("folder/a.npz", NPZ)
    with pytest.raises(CheckpointError, match="no such file"):
        resolve("gs://bucket/folder")
    gcs.fault = lambda method, path: 403
    with pytest.raises(CheckpointError, match=r"cannot be downloaded.*a\.npz to /.*the cache"):
        resolve("gs://bucket/folder/a.npz")


@pytest.mark.parametrize("name", ["gs://bucket", "gs://bucket/../a", "gs://b//a"])
def test_an_invalid_object_name_is_refused(cache, name):
    with pytest.raises(CheckpointError, match="names no file"):
        resolve(name)
