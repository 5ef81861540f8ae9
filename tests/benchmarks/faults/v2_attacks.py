"""Requests to /v2, and members of requests that answers repeat, for tests.benchmarks.faults.hostile.

All data is constant or made from SEED.
"""

import gzip
import json
import random
from collections.abc import Iterator

from tests.benchmarks.serving.http_load import post

SEED = 0
PIXELS, FILES = "/v2/models/cifar10/infer", "/v2/models/cifar10_image/infer"
ELEMENTS = 32 * 32 * 32 * 3  # in the largest request
MEGABYTE = 1_000_000


def tensor(data: bytes, count: int = 32, members: bytes = b"") -> bytes:
    """The JSON of a request for pixels."""
    text = b'{%s"inputs":[{"name":"images","datatype":"UINT8","shape":[%d,32,32,3],"data":[%s]}]}'
    return text % (members, count, data)


def files(data: bytes, count: int = 1) -> bytes:
    """The JSON of a request for encoded files."""
    return b'{"inputs":[{"name":"image","datatype":"BYTES","shape":[%d],"data":[%s]}]}' % (count, data)


def numbers(digits: int, total: int = 30 * MEGABYTE) -> bytes:
    random_digits = random.Random(SEED)
    different = [b"%d" % random_digits.randrange(10 ** (digits - 1), 10**digits) for _ in range(100)]
    return b",".join(different[index % 100] for index in range(min(ELEMENTS, total // (digits + 1))))


def pixel_bodies() -> Iterator[tuple[str, bytes]]:
    image = b",".join([b"7"] * 3072)
    yield "an id of 15 MB", tensor(image, 1, b'"id":"%s",' % (b"x" * 15 * MEGABYTE))
    yield "an id of 5,000 escapes", tensor(image, 1, b'"id":"%s",' % (b"\\u0000" * 5000))
    yield "an id of 256 emoji", tensor(image, 1, b'"id":"%s",' % ("\U0001f408" * 256).encode())
    for digits in (19, 60, 256, 300, 4300, 4 * MEGABYTE):
        yield f"numbers of {digits:,} digits", tensor(numbers(digits) if digits < 5000 else b"9" * digits)
    yield "floats of 60 digits", tensor(b",".join([b"0." + b"9" * 56 + b"e9"] * ELEMENTS))
    yield "99,000 times 1e400", tensor(b",".join([b"1e400"] * ELEMENTS))
    yield "99,000 strings", tensor(b",".join([b'"abcdefgh"'] * ELEMENTS))
    yield "99,000 strings of escapes", tensor(b",".join([b'"\\u0000\\u00e9"'] * ELEMENTS))
    yield "lists 20 deep, 99,000 of them", tensor(b",".join([b"[" * 20 + b"]" * 20] * ELEMENTS))
    yield "lists 150 deep, 230 of them", tensor(b",".join([b"[" * 150 + b"]" * 150] * 230))
    yield "30 MB of white space", tensor(b" " * 30 * MEGABYTE)
    yield "6 MB of white space", tensor(b"\n" * 6 * MEGABYTE)
    yield "990 keys of 6 kB", b"{%s}" % b",".join(b'"%d%s":[]' % (n, b"k" * 6000) for n in range(990))
    yield "990 times the same key", b"{%s}" % b",".join([b'"inputs":[]'] * 990)
    yield "a shape of 99,000 numbers", tensor(image).replace(b"[32,32,32,3]", b"[%s]" % b",".join([b"9"] * 99_000))
    yield "6 MB in a name", tensor(image).replace(b"images", b"n" * 6 * MEGABYTE)


def file_bodies() -> Iterator[tuple[str, bytes]]:
    yield "a file of 31 MB in base64", files(b'"%s"' % (b"QUJD" * (31 * MEGABYTE // 4)))
    yield "32 files of 900 kB in base64", files(b",".join([b'"%s"' % (b"QUJD" * 225_000)] * 32), 32)
    yield "base64 with each character escaped", files(b'"%s"' % (b"\\u0041" * 5 * MEGABYTE))
    yield "15 MB of base64 with slashes escaped", files(b'"%s"' % ((b"A" * 62 + b"\\/") * 235_000))
    yield "base64 after an emoji", files('"\U0001f408'.encode() + b"A" * 31 * MEGABYTE + b'"')
    yield "31 MB of white space in base64", files(b'"%s"' % (b" " * 31 * MEGABYTE))
    yield "31 floats of a million digits", files(b",".join([b"0." + b"9" * MEGABYTE] * 31))
    yield "1,000 numbers of 4,300 digits", files(b",".join([b"9" * 4300] * 1000))
    yield "a key of 31 MB", b'{"%s":1}' % (b"k" * 31 * MEGABYTE)


def packed(path: str, body: bytes) -> bytes:
    """The request with its body compressed by gzip."""
    request = post(path, gzip.compress(body, 1), "application/json")
    return request.replace(b"Host: load", b"Host: load\r\nContent-Encoding: gzip", 1)


def names() -> bytes:
    """A batch of 32 parts that are no images, each with a file name of 900 kB of control characters."""
    head = b'--b\r\nContent-Disposition: form-data; name="files"; filename="%s"\r\n\r\nx\r\n' % (b"\x01" * 900_000)
    return post("/predict/batch", head * 32 + b"--b--\r\n", "multipart/form-data; boundary=b")


def requests() -> Iterator[tuple[str, bytes]]:
    """Names and requests."""
    for path, bodies in ((PIXELS, pixel_bodies()), (FILES, file_bodies())):
        for name, body in bodies:
            yield f"/v2: {name}", post(path, body, "application/json")
            yield f"/v2: {name}, gzip", packed(path, body)
    yield "32 file names of 900 kB", names()
    for parameter in ("top_k", "coverage", "class_id", "partial"):
        path = "/explain" if parameter == "class_id" else "/predict/batch"
        yield f"{parameter} of 10,000 digits", post(f"{path}?{parameter}={'9' * 10_000}", b"x")
    ids = tensor(b",".join([b"7"] * 3072), 1, b'"id":%s,' % json.dumps("\0" * 256).encode())
    yield "/v2: ids of 256 escapes", post(PIXELS, ids, "application/json")
