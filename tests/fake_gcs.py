"""A stand-in for Google Cloud Storage: its JSON API on a local port, objects in memory.

It is what gcsfs (all files but the arrays) and TensorStore (the arrays) need of it: buckets, media
with ranges, uploads at once, in parts (multipart) and resumable, listings with prefix, delimiter
and pages, deletion, renaming (moveTo), and conditions on generations. As in the real one, an object
appears whole or not at all, and there are no folders.

    with FakeGcs() as store:
        subprocess.run(..., env={**os.environ, **store.environment})
        store.objects("bucket")  # {name: content}

Source: https://cloud.google.com/storage/docs/json_api/v1
"""

import base64
import dataclasses
import hashlib
import itertools
import json
import re
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qsl, unquote, urlsplit

PAGE = 50  # Names in a page of a listing, so that there are several.

# Given method and path of a request (with the object's name, in uploads too), the status to answer
# it with, or None: as it should be.
Fault = Callable[[str, str], int | None]


@dataclasses.dataclass(frozen=True)
class Object:
    """Content and generation: a number that every write makes larger."""

    content: bytes
    generation: int


class FakeGcs:
    """The server. Use as a context manager; what is stored outlives `stop`."""

    def __init__(self, *buckets: str):
        """Not running yet; the buckets are there, and empty ("bucket", if none is named)."""
        self.buckets: dict[str, dict[str, Object]] = {name: {} for name in buckets or ("bucket",)}
        self.uploads: dict[str, tuple[str, str, dict, bytearray]] = {}
        self.lock = threading.RLock()
        self.fault: Fault | None = None
        self.requests: list[tuple[str, str]] = []
        """Method and path of every request so far."""
        self.generations = itertools.count(int(time.time() * 1e6))
        self._server: ThreadingHTTPServer | None = None
        self._port = 0

    def start(self) -> None:
        """Listens, if it does not: on a free port the first time, later on the same one."""
        if self._server is not None:
            return
        self._server = _Server(("127.0.0.1", self._port), _Handler)
        self._server.gcs = self
        self._port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def stop(self) -> None:
        """Refuses connections from now on, and breaks those that are open."""
        server, self._server = self._server, None
        if server is not None:
            server.shutdown()
            server.server_close()
            server.break_connections()

    def __enter__(self) -> "FakeGcs":
        self.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.stop()

    @property
    def environment(self) -> dict[str, str]:
        """The variables that send gcsfs, google-cloud-storage and TensorStore here."""
        address = f"http://127.0.0.1:{self._port}"
        return {
            "STORAGE_EMULATOR_HOST": address,
            "TENSORSTORE_GCS_HTTP_URL": address,
            "GOOGLE_AUTH_TOKEN_FOR_TESTING": "nobody",  # TensorStore asks for no other.
            "FSSPEC_GCS_TOKEN": "anon",  # Nor gcsfs any,
            "NO_GCE_CHECK": "true",  # not even if fsspec was imported before.
            "GOOGLE_CLOUD_PROJECT": "project",
            # Otherwise gcsfs asks over gRPC, which nobody answers here, what kind the bucket is.
            "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",
        }

    def objects(self, bucket: str = "bucket") -> dict[str, bytes]:
        """All objects of a bucket by name."""
        with self.lock:
            return {name: item.content for name, item in sorted(self.buckets[bucket].items())}

    def put(self, name: str, content: bytes, bucket: str = "bucket") -> None:
        """Writes an object past the API, as somebody else would."""
        with self.lock:
            self.buckets[bucket][name] = Object(content, next(self.generations))

    def delete(self, name: str, bucket: str = "bucket") -> None:
        """Deletes an object past the API."""
        with self.lock:
            del self.buckets[bucket][name]


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128
    gcs: FakeGcs

    def __init__(self, *args):
        self.connections: set = set()
        super().__init__(*args)

    def process_request(self, request, client_address):
        self.connections.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request):
        self.connections.discard(request)
        super().shutdown_request(request)

    def break_connections(self):
        for connection in list(self.connections):
            self.shutdown_request(connection)

    def handle_error(self, request, client_address):
        """A client that was killed is no error of the server's."""


class _Reply(Exception):
    """Ends a request with a status."""

    def __init__(self, status: int, message: str = ""):
        super().__init__(message)
        self.status = status


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def log_message(self, *args):
        pass

    def _any(self):
        gcs = self.server.gcs
        url = urlsplit(self.path)
        query = dict(parse_qsl(url.query, keep_blank_values=True))
        body = self._body()
        path = unquote(url.path)
        if "uploadType" in query:  # The name is not in the path.
            name = re.search(rb'"name": *"([^"]+)"', body[:2000])
            path += "/" + (query.get("name") or (name[1].decode() if name else ""))
        try:
            with gcs.lock:
                gcs.requests.append((self.command, path))
            if gcs.fault and (status := gcs.fault(self.command, path)):
                raise _Reply(status, "a fault that a test has planted")
            # Names are split off before they are unquoted: they hold quoted slashes.
            self._route(url.path, query, body)
        except _Reply as reply:
            error = {"error": {"code": reply.status, "message": str(reply)}}
            self._send(reply.status, b"" if reply.status == 304 else json.dumps(error).encode())

    do_GET = do_POST = do_PUT = do_DELETE = _any

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        parts = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def _send(self, status, content=b"", kind="application/json", **headers):
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(content)

    def _send_json(self, value):
        self._send(200, json.dumps(value).encode())

    def _route(self, path, query, body):
        for methods, pattern, answer in _ROUTES:
            if self.command in methods and (match := re.fullmatch(pattern, path)):
                return answer(self, *map(unquote, match.groups()), query=query, body=body)
        raise _Reply(404, f"{self.command} {path}: the fake store has no such call")

    # --- What the calls need

    def _bucket(self, name) -> dict[str, Object]:
        try:
            return self.server.gcs.buckets[name]
        except KeyError:
            raise _Reply(404, f"The specified bucket {name} does not exist.") from None

    def _object(self, bucket, name, query) -> Object:
        item = self._bucket(bucket).get(name)
        self._check(item, query)
        if item is None:
            raise _Reply(404, f"No such object: {bucket}/{name}")
        return item

    def _check(self, item: Object | None, query):
        """Conditions: generation 0 means that there is no such object."""
        now = item.generation if item else 0
        wanted, unwanted = query.get("ifGenerationMatch"), query.get("ifGenerationNotMatch")
        if wanted is not None and int(wanted) != now:
            raise _Reply(412, "At least one of the pre-conditions you specified did not hold.")
        if unwanted is not None and int(unwanted) == now:
            raise _Reply(304 if self.command == "GET" else 412)

    def _write(self, bucket, name, content, query) -> dict:
        gcs = self.server.gcs
        with gcs.lock:
            objects = self._bucket(bucket)
            self._check(objects.get(name), query)
            objects[name] = Object(bytes(content), next(gcs.generations))
            return _describe(bucket, name, objects[name])

    # --- The calls

    def get_bucket(self, bucket, *, query, body):
        self._bucket(bucket)
        self._send_json({"kind": "storage#bucket", "name": bucket, "id": bucket})

    def get_object(self, bucket, name, *, query, body):
        item = self._object(bucket, name, query)
        if query.get("alt") != "media":
            return self._send_json(_describe(bucket, name, item))
        content, status, headers = item.content, 200, {}
        if wanted := self.headers.get("Range"):
            first, last = re.fullmatch(r"bytes=(\d*)-(\d*)", wanted).groups()
            size = len(content)
            start = int(first) if first else max(0, size - int(last))
            end = min(size, int(last) + 1) if first and last else size
            if start >= size:
                raise _Reply(416, "The requested range cannot be satisfied.")
            status, content = 206, content[start:end]
            headers["Content-Range"] = f"bytes {start}-{end - 1}/{size}"
        headers["x_goog_generation"] = str(item.generation)
        self._send(status, content, "application/octet-stream", **headers)

    def list_objects(self, bucket, *, query, body):
        prefix, delimiter = query.get("prefix", ""), query.get("delimiter", "")
        with self.server.gcs.lock:
            objects = dict(self._bucket(bucket))
        entries = {}  # In the order of names; a prefix counts as one entry.
        for name in sorted(objects):
            if not name.startswith(prefix):
                continue
            cut = name.find(delimiter, len(prefix)) if delimiter else -1
            if cut >= 0:
                entries[name[: cut + len(delimiter)]] = None
            else:
                entries[name] = _describe(bucket, name, objects[name])
        start = int(query.get("pageToken") or 0)
        size = min(PAGE, int(query.get("maxResults") or PAGE))
        page = list(entries.items())[start : start + size]
        answer = {"kind": "storage#objects"}
        if items := [entry for _, entry in page if entry]:
            answer["items"] = items
        if prefixes := [name for name, entry in page if entry is None]:
            answer["prefixes"] = prefixes
        if start + size < len(entries):
            answer["nextPageToken"] = str(start + size)
        self._send_json(answer)

    def delete_object(self, bucket, name, *, query, body):
        with self.server.gcs.lock:
            self._object(bucket, name, query)
            del self._bucket(bucket)[name]
        self._send(204)

    def upload(self, bucket, *, query, body):
        kind = query.get("uploadType")
        if kind == "media":
            return self._send_json(self._write(bucket, query["name"], body, query))
        if kind == "multipart":
            boundary = re.search(r'boundary="?([^";]+)', self.headers["Content-Type"])[1].encode()
            start, end = body.index(b"--" + boundary), body.rindex(b"--" + boundary + b"--")
            described, content = body[start:end].split(b"--" + boundary, 2)[1:]
            name = json.loads(_after_head(described))["name"]
            content = _after_head(content).removesuffix(b"\n").removesuffix(b"\r")
            return self._send_json(self._write(bucket, name, content, query))
        if kind == "resumable" and "upload_id" not in query:
            name = query.get("name") or json.loads(body)["name"]
            key = f"upload-{next(self.server.gcs.generations)}"
            self.server.gcs.uploads[key] = (bucket, name, query, bytearray())
            host, port = self.server.server_address
            location = f"http://{host}:{port}{urlsplit(self.path).path}"
            return self._send(200, Location=f"{location}?uploadType=resumable&upload_id={key}")
        if kind == "resumable":
            return self._upload_part(query["upload_id"], body)
        raise _Reply(400, f"uploadType={kind} is not known.")

    def _upload_part(self, key, body):
        bucket, name, query, content = self.server.gcs.uploads[key]
        sent = re.fullmatch(r"bytes (?:(\d+)-\d+|\*)/(\d+|\*)", self.headers["Content-Range"])
        if sent[1] is not None:
            del content[int(sent[1]) :]
            content += body
        if sent[2] == "*" or len(content) < int(sent[2]):
            headers = {"Range": f"bytes=0-{len(content) - 1}"} if content else {}
            return self._send(308, **headers)
        self._send_json(self._write(bucket, name, content, query))

    def move(self, bucket, name, to_name, *, query, body):
        with self.server.gcs.lock:
            written = self._write(bucket, to_name, self._object(bucket, name, {}).content, query)
            del self._bucket(bucket)[name]
        self._send_json(written)


_OBJECT = "(?:/download)?/storage/v1/b/([^/]+)/o/([^/]+)"
_ROUTES = (
    (("GET",), "/storage/v1/b/([^/]+)", _Handler.get_bucket),
    (("GET",), "/storage/v1/b/([^/]+)/o/?", _Handler.list_objects),
    (("GET",), _OBJECT, _Handler.get_object),
    (("DELETE",), _OBJECT, _Handler.delete_object),
    (("POST", "PUT"), "/(?:resumable/)?upload/storage/v1/b/([^/]+)/o", _Handler.upload),
    (("POST",), f"{_OBJECT}/moveTo/o/([^/]+)", _Handler.move),
)


def _after_head(part: bytes) -> bytes:
    """The content of a part of a multipart body: what follows its first empty line."""
    return re.split(rb"\r?\n\r?\n", part, maxsplit=1)[1]


def _describe(bucket: str, name: str, item: Object) -> dict:
    stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(item.generation / 1e6)) + ".000000Z"
    return {
        "kind": "storage#object",
        "bucket": bucket,
        "name": name,
        "id": f"{bucket}/{name}/{item.generation}",
        "generation": str(item.generation),
        "metageneration": "1",
        "size": str(len(item.content)),
        "md5Hash": base64.b64encode(hashlib.md5(item.content).digest()).decode(),
        "contentType": "application/octet-stream",
        "timeCreated": stamp,
        "updated": stamp,
    }
