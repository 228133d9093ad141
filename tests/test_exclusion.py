"""Which bodies are never coded: found in whatever way a handler might read the key, and in doubt excluded."""

import gzip
import json

import pytest

from ts_parity.errors import ConfigError
from ts_parity.exclusion import Exclusions, declared_never_code, read_never_code

PATH = Exclusions(keys=("path",))
URIS = Exclusions(content_types=("text/uri-list", "Application/X-Ref*"))
JSON = (("content-type", "application/json"),)
FORM = (("Content-Type", "application/x-www-form-urlencoded"),)
MULTIPART = (("content-type", "multipart/form-data; boundary=b"),)


@pytest.mark.parametrize(
    ("headers", "body"),
    [
        (JSON, b'{"path": "/data/1.png"}'),
        (JSON, b'{"instances": [{"deep": {"path": 1}}]}'),
        ((), b'{"path":"/data/1.png"}'),  # a handler may parse what no header announces
        (JSON, b'{"p\\u0061th": "/data/1.png"}'),
        (JSON, '{"path": 1}'.encode("utf-16")),
        (JSON, '{"path": 1}'.encode("utf-16-be")),
        (JSON, '{"path": 1}'.encode("utf-32")),
        (JSON, '{"p\\u0061th": 1}'.encode("utf-16")),
        ((), b"{'path': '/data/1.png'}"),  # as ast.literal_eval reads it
        ((*JSON, ("Content-Encoding", "gzip")), gzip.compress(b'{"path": 1}', mtime=0)),
        (FORM, b"a=1&path=%2Fdata%2F1.png"),
        (FORM, b"p%61th=x"),
        (FORM, b"path="),
        (MULTIPART, b'--b\r\nContent-Disposition: form-data; name="path"\r\n\r\nx\r\n--b--'),
        (MULTIPART, b"--b\r\nContent-Disposition: form-data; name=path\r\n\r\nx\r\n--b--"),
    ],
)
def test_a_key_is_found(headers, body):
    assert PATH.covers(headers, body)


@pytest.mark.parametrize(
    ("headers", "body"),
    [
        (JSON, b'{"paths": 1, "a path": 2, "xpath": 3}'),
        (JSON, json.dumps({"text": "gr\u00fc\u00dfe \u4f60"}).encode()),
        (JSON, b""),
        (FORM, b"xpath=1&a=path"),
        ((), bytes(range(256)) * 9),
        ((*JSON, ("Content-Encoding", "identity")), b"{}"),
    ],
)
def test_what_is_no_such_key_is_coded(headers, body):
    assert not PATH.covers(headers, body)


def test_a_key_that_is_not_ascii_is_found_however_it_is_written():
    declared = Exclusions(keys=("größe",))
    assert declared.covers(JSON, json.dumps({"größe": 1}).encode())
    assert declared.covers(JSON, json.dumps({"größe": 1}, ensure_ascii=False).encode())
    for encoding in ("utf-16", "utf-32-be"):
        assert declared.covers(JSON, json.dumps({"größe": 1}, ensure_ascii=False).encode(encoding))


def test_content_types():
    assert URIS.covers((("Content-Type", "Text/URI-List; charset=utf-8"),), b"")
    assert URIS.covers((("content-type", "application/x-reference"),), b"")
    part = b'--b\r\nContent-Disposition: form-data; name="f"\r\nContent-Type: text/uri-list\r\n\r\nx\r\n--b--'
    assert URIS.covers(MULTIPART, part)
    assert not URIS.covers((("content-type", "text/plain"),), b'{"path": 1}')
    assert not URIS.covers((), b"")


def test_declarations():
    declared = declared_never_code(["text/uri-list", "path", " url "])
    assert declared == Exclusions(("text/uri-list",), ("path", "url"))
    assert read_never_code(json.loads(json.dumps(declared.as_json()))) == declared
    assert not Exclusions()
    assert Exclusions(URIS.content_types, ("path",)) == PATH | URIS | PATH
    for wrong in ("path", ["path"], {"keys": "path"}, {"keys": [1]}, {"keys": [""]}, {"bodies": []}):
        with pytest.raises(ConfigError, match="never_code"):
            read_never_code(wrong)
    with pytest.raises(ConfigError, match="--never-code"):
        declared_never_code([""])
