"""A real S3 server on the loopback (moto), and a proxy before it that fails as real ones do.

def test_something(object_store):
    with FaultProxy(object_store.port, fail_every=5) as proxy:
        uri = object_store.uri("prefix", proxy)
"""

import contextlib
import http.client
import socket
import subprocess
import sys
import threading
import time
import uuid
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import quote

import pyarrow.fs as pafs
import pytest

_SLOW_DOWN = (
    b'<?xml version="1.0"?><Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>'
)
CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": "test",
    "AWS_SECRET_ACCESS_KEY": "test",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
}


class ObjectStore:
    """A running server with a bucket of its own for every prefix asked for."""

    def __init__(self, port):
        self.port = port

    def uri(self, prefix="run", proxy=None):
        """Make a bucket and return the URI of a prefix in it, by way of a proxy if one is given."""
        bucket = f"bucket-{uuid.uuid4().hex[:12]}"
        self.filesystem().create_dir(bucket)
        return self.same(f"s3://{bucket}/{prefix}", proxy)

    def same(self, uri, proxy=None):
        """The same place, by way of a proxy or directly."""
        port = self.port if proxy is None else proxy.port
        return f"{uri.split('?')[0]}?scheme=http&endpoint_override={quote(f'127.0.0.1:{port}')}&region=us-east-1"

    def filesystem(self):
        return pafs.S3FileSystem(
            endpoint_override=f"127.0.0.1:{self.port}", scheme="http", region="us-east-1", allow_bucket_creation=True
        )


@contextlib.contextmanager
def start_object_store():
    """Start a server for the duration of a block; CREDENTIALS must be in the environment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    words = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    server = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        _wait_for(port, server)
        yield ObjectStore(port)
    finally:
        server.kill()
        server.wait()


@pytest.fixture(scope="session")
def object_store():
    with pytest.MonkeyPatch.context() as patch:
        for name, value in CREDENTIALS.items():
            patch.setenv(name, value)
        with start_object_store() as store:
            yield store


def _wait_for(port, server):
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and server.poll() is None:
        with contextlib.suppress(OSError):
            socket.create_connection(("127.0.0.1", port), 1).close()
            return
        time.sleep(0.1)
    raise RuntimeError("the S3 server did not start")


class FaultProxy:
    """Passes requests on to the server, except those that it fails.

    Args:
        port: of the server.
        fail_every: every n-th request of the verbs is answered 503 SlowDown; 0 for none.
        verbs: that are counted.

    Attributes:
        away: whether every connection is closed without an answer.
        stalls: so many of the next requests are answered only after `stall` seconds.
        cuts: so many of the next uploads are cut in their middle: half of them arrives, and no answer.
        halves: of so many of the next uploads half is stored, and the answer is that all is well.
        requests, failed: how many of the verbs came, and were failed.
    """

    def __init__(self, port, fail_every=0, verbs=("PUT",), stall=30.0):
        self.target, self.fail_every, self.verbs, self.stall = port, fail_every, verbs, stall
        self.away, self.stalls, self.cuts, self.halves = False, 0, 0, 0
        self.requests = self.failed = 0
        self._lock = threading.Lock()

    def __enter__(self):
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def handle_one_request(self):
                with contextlib.suppress(ConnectionError, TimeoutError):
                    super().handle_one_request()

            def _pass(self):
                proxy._answer(self)

            do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = _pass

            def log_message(self, *_):
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_):
        self._server.shutdown()
        self._server.server_close()

    def _answer(self, request):
        body = self._body(request)
        counted = request.command in self.verbs
        with self._lock:
            self.requests += counted
            fails = self.away or (counted and self.fail_every and self.requests % self.fail_every == 0)
            stalls = not fails and counted and self.stalls > 0
            self.stalls -= stalls
            cuts = not fails and not stalls and counted and self.cuts > 0 and len(body) > 1
            self.cuts -= cuts
            halves = not (fails or stalls or cuts) and counted and self.halves > 0 and len(body) > 1
            self.halves -= halves
            self.failed += bool(fails or stalls or cuts or halves)
        if self.away:
            request.close_connection = True
            request.connection.shutdown(socket.SHUT_RDWR)
            return
        if stalls:
            time.sleep(self.stall)
        if fails:
            self._reply(request, 503, {"Content-Type": "application/xml"}, _SLOW_DOWN)
            return
        if cuts:  # half an object arrives, and the client never hears of it
            self._forward(request, body[: len(body) // 2])
            request.close_connection = True
            request.connection.shutdown(socket.SHUT_RDWR)
            return
        self._reply(request, *self._forward(request, body[: len(body) // 2] if halves else body))

    @staticmethod
    def _body(request):
        length = request.headers.get("Content-Length")
        if length is not None:
            return request.rfile.read(int(length))
        body = b""
        if request.headers.get("Transfer-Encoding", "").lower() == "chunked":
            while size := int(request.rfile.readline().split(b";")[0], 16):
                body += request.rfile.read(size)
                request.rfile.readline()
            request.rfile.readline()
        return body

    def _forward(self, request, body):
        skipped = {"transfer-encoding", "content-length", "connection", "expect"}
        headers = {k: v for k, v in request.headers.items() if k.lower() not in skipped}
        connection = http.client.HTTPConnection("127.0.0.1", self.target, timeout=60)
        try:
            connection.request(request.command, request.path, body or None, headers)
            answer = connection.getresponse()
            return answer.status, dict(answer.getheaders()), answer.read()
        finally:
            connection.close()

    @staticmethod
    def _reply(request, status, headers, body):
        request.send_response_only(status)
        length = headers.get("Content-Length") or headers.get("content-length")
        for name, value in headers.items():
            if name.lower() not in ("content-length", "transfer-encoding", "connection"):
                request.send_header(name, value)
        head = request.command == "HEAD"
        request.send_header("Content-Length", length if head and length is not None else str(len(body)))
        request.end_headers()
        if not head:
            request.wfile.write(body)
