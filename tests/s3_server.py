"""An S3 server that misbehaves by plan: what the project asks of object stores, and no more.

To hold it against another one, name a bucket there: with GENLIP_TEST_BUCKET=s3://BUCKET and the usual AWS_… variables
the tests that need no faults run there.
"""

import os
import re
import uuid
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from unittest.mock import patch
from urllib.parse import parse_qsl, unquote, urlsplit
from xml.sax.saxutils import escape, unescape

from tests.train.range_server import RangeHandler, RangeServer, serving

_PAGE = 3
"""Names in one answer to a listing, so that several are needed."""


class S3Server(RangeServer):
    """Serves `files`, by /bucket/key. `plan` has faults of ranged reads; `plan_others`, of the rest: `busy`,
    `reset`, and `lost` of a put on condition, which is done and not answered.
    """

    def __init__(self) -> None:
        super().__init__({}, _S3Handler)
        self.bucket = f"bucket-{uuid.uuid4().hex}"  # clients are kept by the bucket's name
        self.plan_others: deque[str] = deque()
        self.parts: dict[str, dict[int, bytes]] = {}
        self.requests: list[str] = []
        """All so far: method and path."""
        self.knows_conditions = True
        """Whether an object can be put where there is none; else such a request is answered with 501."""


class _S3Handler(RangeHandler):
    server: S3Server

    def parse_request(self) -> bool:
        is_good = super().parse_request()
        if is_good:
            url = urlsplit(self.path)
            self.path = unquote(url.path)
            self.query = dict(parse_qsl(url.query, keep_blank_values=True))
            self.server.requests.append(f"{self.command} {self.path}")
        return is_good

    def end_headers(self) -> None:
        self.send_header("ETag", '"etag"')
        self.send_header("Last-Modified", "Tue, 03 Mar 2026 10:00:00 GMT")
        super().end_headers()

    def do_GET(self) -> None:
        if "Range" in self.headers:
            super().do_GET()
        elif self._is_well():
            if "list-type" in self.query:
                self._list()
            else:
                super().do_GET()

    do_HEAD = do_GET

    def do_PUT(self) -> None:
        body = self._body()
        if self._is_well():
            if "uploadId" in self.query:
                self.server.parts[self.query["uploadId"]][int(self.query["partNumber"])] = body
            elif "If-None-Match" in self.headers:
                self._create(body)
                return
            else:
                self.server.files[self.path] = body
            self._answer(200, b"")

    def _create(self, body: bytes) -> None:
        if not self.server.knows_conditions:
            self._answer(501, b"<Error><Code>NotImplemented</Code><Message>Not this header</Message></Error>")
        elif self.server.files.setdefault(self.path, body) is body:
            if self.fault == "lost":
                self._reset()
            else:
                self._answer(200, b"")
        else:
            self._answer(412, b"<Error><Code>PreconditionFailed</Code><Message>It is there</Message></Error>")

    def do_DELETE(self) -> None:
        if self._is_well():
            self.server.files.pop(self.path, None)
            self._answer(204, b"")

    def do_POST(self) -> None:
        body = self._body()
        if not self._is_well():
            return
        if "delete" in self.query:
            keys = re.findall("<Key>(.*?)</Key>", body.decode())
            for key in keys:
                self.server.files.pop(f"{self.path}/{unescape(key)}", None)
            self._answer_xml("DeleteResult", "".join(f"<Deleted><Key>{key}</Key></Deleted>" for key in keys))
        elif "uploads" in self.query:
            upload = uuid.uuid4().hex
            self.server.parts[upload] = {}
            self._answer_xml("InitiateMultipartUploadResult", f"<UploadId>{upload}</UploadId>")
        else:
            parts = self.server.parts.pop(self.query["uploadId"])
            self.server.files[self.path] = b"".join(parts[number] for number in sorted(parts))
            self._answer_xml("CompleteMultipartUploadResult", "<ETag>e</ETag>")

    def _is_well(self) -> bool:
        """Whether nothing was planned for this request, and its bucket is there."""
        self.fault = self.server.plan_others.popleft() if self.server.plan_others else ""
        if self.fault == "reset":
            self._reset()
        elif self.fault == "busy":
            self._answer(503, b"<Error><Code>SlowDown</Code><Message>Please reduce your request rate</Message></Error>")
        elif self.path.split("/")[1] != self.server.bucket:
            self._answer(404, b'<?xml version="1.0"?><Error><Message>There is no such bucket</Message></Error>')
        else:
            return True
        return False

    def _list(self) -> None:
        prefix, delimiter = self.query.get("prefix", ""), self.query.get("delimiter")
        names = set()
        for path in list(self.server.files):
            key = path.removeprefix(f"/{self.server.bucket}/")
            if key.startswith(prefix):
                head, mark, _ = key[len(prefix) :].partition(delimiter or "\0")
                names.add(prefix + head + mark)
        page = sorted(name for name in names if name > self.query.get("continuation-token", ""))
        found = "".join(self._entry(name, delimiter) for name in page[:_PAGE])
        more = f"<NextContinuationToken>{escape(page[_PAGE - 1])}</NextContinuationToken>" if page[_PAGE:] else ""
        self._answer_xml("ListBucketResult", f"<IsTruncated>{str(bool(more)).lower()}</IsTruncated>{more}{found}")

    def _entry(self, name: str, delimiter: str | None) -> str:
        if delimiter and name.endswith(delimiter):
            return f"<CommonPrefixes><Prefix>{escape(name)}</Prefix></CommonPrefixes>"
        size = len(self.server.files.get(f"/{self.server.bucket}/{name}", b""))
        return (
            f"<Contents><Key>{escape(name)}</Key><LastModified>2026-03-03T10:00:00.000Z</LastModified>"
            f"<ETag>e</ETag><Size>{size}</Size></Contents>"
        )

    def _body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def _answer_xml(self, name: str, content: str) -> None:
        self._answer(200, f"<{name}>{content}</{name}>".encode())


@contextmanager
def serve_s3() -> Iterator[tuple[S3Server, str]]:
    """A running server, named by the environment, and the URL of its bucket."""
    with S3Server() as server, serving(server) as url:
        environment = {
            "AWS_ENDPOINT_URL": url,
            "AWS_ACCESS_KEY_ID": "id",
            "AWS_SECRET_ACCESS_KEY": "secret",
            "AWS_REGION": "us-east-1",
        }
        with patch.dict(os.environ, environment):
            yield server, f"s3://{server.bucket}"


@contextmanager
def s3_root() -> Iterator[str]:
    """A URL in an empty place of a bucket."""
    place = f"tests/{uuid.uuid4().hex}"
    if "GENLIP_TEST_BUCKET" in os.environ:
        yield f"{os.environ['GENLIP_TEST_BUCKET']}/{place}"
    else:
        with serve_s3() as (_, bucket):
            yield f"{bucket}/{place}"
