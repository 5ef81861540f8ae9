import base64
import encodings
import io
import pkgutil
import re
import tracemalloc
from collections.abc import Callable

import pytest
from httpx import Response
from PIL import Image
from starlette.requests import Request
from starlette.testclient import TestClient
from starlette.types import Message

from app.api.uploads import read_image
from tests.app.problems import assert_problem

MakeClient = Callable[..., TestClient]


def test_multipart_and_raw_body_give_the_same_answer(client: TestClient, cat: bytes) -> None:
    multipart = client.post("/predict", files={"file": ("cat.png", cat, "image/png")})
    raw = client.post("/predict", content=cat, headers={"Content-Type": "image/png"})
    assert multipart.status_code == raw.status_code == 200
    assert multipart.json()["predictions"] == raw.json()["predictions"]


@pytest.mark.parametrize("kind", ["", "text/plain", "application/x-www-form-urlencoded", "image/png", "nonsense"])
def test_the_content_type_of_a_raw_body_is_ignored(client: TestClient, cat: bytes, kind: str) -> None:
    assert client.post("/predict", content=cat, headers={"Content-Type": kind}).status_code == 200


def test_an_empty_body_is_refused(client: TestClient) -> None:
    assert_problem(client.post("/predict"), 422, "undecodable_image")
    assert_problem(client.post("/predict", files={"file": ("empty.png", b"")}), 422, "undecodable_image")


def test_multipart_without_the_file_is_refused(client: TestClient, cat: bytes) -> None:
    wrong_name = client.post("/predict", files={"image": ("cat.png", cat)})
    assert "'image'" in assert_problem(wrong_name, 422, "invalid_parameter")["detail"]
    text = client.post("/predict", files={"file": (None, "a cat")})
    assert "as text" in assert_problem(text, 422, "invalid_parameter")["detail"]
    parameter = client.post("/predict", files={"file": ("cat.png", cat)}, data={"top_k": "3"})
    several = client.post("/predict", files=[("files", ("cat.png", cat))] * 2)
    assert "send images as `file`" in assert_problem(several, 422, "invalid_parameter")["detail"]
    assert "query string" in assert_problem(parameter, 422, "invalid_parameter")["detail"]
    boundary = {"Content-Type": "multipart/form-data; boundary=x"}
    nothing = client.post("/predict", content=b"--x--\r\n", headers=boundary)
    assert "missing" in assert_problem(nothing, 422, "invalid_parameter")["detail"]


def test_two_files_are_refused(client: TestClient, cat: bytes) -> None:
    two = client.post("/predict", files=[("file", ("a.png", cat)), ("file", ("b.png", cat))])
    assert "/predict/batch" in assert_problem(two, 400, "malformed_request")["detail"]


@pytest.mark.parametrize(
    ("content", "content_type"),
    [
        (b"garbage", "multipart/form-data"),
        (b"garbage", "multipart/form-data; boundary=x"),
        (b"--x\r\nContent-Disposition: form-data\r\n\r\nhello\r\n--x--\r\n", "multipart/form-data; boundary=x"),
        (b"--x\r\nno colon\r\n\r\n", "multipart/form-data; boundary=x"),
    ],
)
def test_malformed_multipart_is_refused(client: TestClient, content: bytes, content_type: str) -> None:
    assert_problem(
        client.post("/predict", content=content, headers={"Content-Type": content_type}), 400, "malformed_request"
    )


@pytest.mark.parametrize("route", ["/predict", "/predict/batch", "/explain"])
@pytest.mark.parametrize("name", [b"\xff", b"xn--99999999", b"image"])
def test_an_unusable_charset_is_refused(client: TestClient, route: str, name: bytes) -> None:
    def post(charset: str) -> Response:
        content = b'--x\r\nContent-Disposition: form-data; name="' + name + b'"; filename="a"\r\n\r\n\r\n--x--\r\n'
        headers = {"Content-Type": f"multipart/form-data; boundary=x; charset={charset}"}
        return client.post(route, content=content, headers=headers)

    assert "charset" in assert_problem(post("undefined"), 400, "malformed_request")["detail"]
    for module in pkgutil.iter_modules(encodings.__path__):
        assert post(module.name).status_code in (400, 422), module.name


@pytest.mark.parametrize(("charset", "name"), [("utf-7", b"+2AA-.png"), ("unicode_escape", b"\\ud800.png")])
def test_a_file_name_that_is_not_unicode_is_accepted(client: TestClient, charset: str, name: bytes) -> None:
    disposition = b'--x\r\nContent-Disposition: form-data; name="files"; filename="' + name + b'"\r\n\r\n'
    headers = {"Content-Type": f"multipart/form-data; boundary=x; charset={charset}"}
    answer = client.post("/predict/batch", content=disposition + b"no image\r\n--x--\r\n", headers=headers)
    (error,) = assert_problem(answer, 422, "invalid_batch")["errors"]
    assert error["code"] == "unsupported_media_type"


def test_json_and_compressed_bodies_are_not_accepted(client: TestClient, cat: bytes) -> None:
    assert_problem(client.post("/predict", json={"file": "cat"}), 415, "unsupported_media_type")
    compressed = client.post("/predict", content=cat, headers={"Content-Encoding": "gzip"})
    assert "gzip" in assert_problem(compressed, 415, "unsupported_media_type")["detail"]


def test_too_many_bytes_are_refused(make_client: MakeClient, cat: bytes) -> None:
    client = make_client(max_file_bytes=len(cat) - 1, max_request_bytes=len(cat) + 1000)
    assert_problem(client.post("/predict", content=cat), 413, "payload_too_large")
    assert_problem(client.post("/predict", content=iter([cat[:9], cat[9:]])), 413, "payload_too_large")
    assert_problem(client.post("/predict", files={"file": ("cat.png", cat)}), 413, "payload_too_large")
    assert_problem(client.post("/predict", content=bytes(len(cat) + 2000)), 413, "payload_too_large")
    large = client.post("/predict", content=iter([bytes(1000)] * 9))
    assert_problem(large, 413, "payload_too_large")
    assert large.headers["connection"] == "close"


def form(*parts: bytes) -> dict[str, object]:
    content = b"".join(b"--x\r\n" + part + b"\r\n" for part in parts) + b"--x--\r\n"
    return {"content": content, "headers": {"Content-Type": "multipart/form-data; boundary=x"}}


def part(name: str, content: bytes, filename: str | None = None, more: bytes = b"") -> bytes:
    disposition = f'Content-Disposition: form-data; name="{name}"' + (f'; filename="{filename}"' if filename else "")
    return disposition.encode() + more + b"\r\n\r\n" + content


@pytest.mark.parametrize(
    "parts",
    [
        [part("files", b"x", "x")] * 10_000,
        [part("files", b"x", "x", b"\r\nX-Long: " + b"y" * 10_000)],
        [part("files", b"x", "x", b"\r\nX-More: y" * 100)],
    ],
    ids=["files", "a long header", "headers"],
)
def test_a_form_above_a_limit_is_refused(client: TestClient, parts: list[bytes]) -> None:
    assert_problem(client.post("/predict/batch", **form(*parts)), 400, "malformed_request")


@pytest.mark.parametrize("parts", [[part("a", b"x")] * 10_000, [part("a", b"x" * 2000)]], ids=["fields", "a long one"])
@pytest.mark.parametrize("route", ["/predict", "/predict/batch"])
def test_fields_of_any_number_and_length_are_unexpected(client: TestClient, route: str, parts: list[bytes]) -> None:
    answer = client.post(route, **form(*parts))
    assert "unexpected part 'a'" in assert_problem(answer, 422, "invalid_parameter")["detail"]


@pytest.mark.parametrize(("route", "name"), [("/predict", "file"), ("/explain", "file"), ("/predict/batch", "files")])
@pytest.mark.parametrize("more", [b"", b"; filename*=UTF-8''cat.png", b"\r\nContent-Type: image/png"])
@pytest.mark.parametrize("encode", [bytes, base64.b64encode], ids=["bytes", "base64"])
def test_a_file_that_came_without_a_filename_is_said_to_need_one(
    client: TestClient, cat: bytes, route: str, name: str, more: bytes, encode: Callable[[bytes], bytes]
) -> None:
    answer = client.post(route, **form(part(name, encode(cat), more=more)))
    detail = assert_problem(answer, 422, "invalid_parameter")["detail"]
    assert f"`{name}` came as text" in detail
    assert "send it as a file, with a filename" in detail


@pytest.mark.parametrize(("route", "name"), [("/predict", "file"), ("/explain", "file"), ("/predict/batch", "files")])
@pytest.mark.parametrize("missing", [len(b"--\r\n"), len(b"--x--\r\n"), 1000, 10_000])
def test_a_multipart_body_that_is_cut_off_ends_early(
    client: TestClient, cat: bytes, route: str, name: str, missing: int
) -> None:
    whole = form(part(name, cat, "cat.png"))
    answer = client.post(route, **{**whole, "content": whole["content"][:-missing]})
    assert "ends early" in assert_problem(answer, 400, "malformed_request")["detail"]


def test_the_line_end_after_the_closing_boundary_may_be_missing(client: TestClient, cat: bytes) -> None:
    whole = form(part("file", cat, "cat.png"))
    assert client.post("/predict", **{**whole, "content": whole["content"][:-2]}).status_code == 200


FORMATS = ("PNG", "JPEG", "GIF", "WEBP", "BMP", "AVIF")
URLENCODED = {"Content-Type": "application/x-www-form-urlencoded"}


@pytest.fixture(params=FORMATS)
def picture(request: pytest.FixtureRequest, cat: bytes) -> bytes:
    out = io.BytesIO()
    with Image.open(io.BytesIO(cat)) as image:
        image.save(out, request.param)
    return out.getvalue()


def test_a_file_sent_by_curl_data_binary_is_read_whatever_its_format(client: TestClient, picture: bytes) -> None:
    assert client.post("/predict", content=picture, headers=URLENCODED).status_code == 200


@pytest.mark.parametrize("kind", ["application/x-www-form-urlencoded", "image/png", ""])
def test_an_image_that_curl_d_has_stripped_is_told_from_a_corrupt_one(
    client: TestClient, picture: bytes, kind: str
) -> None:
    stripped = re.sub(rb"[\0\r\n]", b"", picture)
    answer = client.post("/predict", content=stripped, headers={"Content-Type": kind})
    assert "--data-binary" in assert_problem(answer, 422, "undecodable_image")["detail"]


@pytest.mark.parametrize(
    "content", [b"file=@cat.png", b"file=%89PNG%0D%0A%1A%0A&x=1", b"files%5B%5D=1", b'{"image": "aGk="}', b"[1, 2]"]
)
def test_a_urlencoded_form_is_said_to_be_one(client: TestClient, content: bytes) -> None:
    detail = assert_problem(
        client.post("/predict", content=content, headers=URLENCODED), 415, "unsupported_media_type"
    )["detail"]
    assert "urlencoded form" in detail
    assert "-F file=@" in detail and "--data-binary @" in detail
    batch = client.post("/predict/batch", content=content, headers=URLENCODED)
    assert "-F files=@" in assert_problem(batch, 415, "unsupported_media_type")["detail"]


@pytest.mark.parametrize("kind", ["application/x-www-form-urlencoded", "image/png"])
def test_base64_and_data_uris_are_said_to_be_text(client: TestClient, picture: bytes, kind: str) -> None:
    text = base64.b64encode(picture)
    for content, what in ((text, "base64"), (b"data:image/png;base64," + text, "a data URI")):
        answer = client.post("/predict", content=content, headers={"Content-Type": kind})
        assert f"this is {what} (send" in assert_problem(answer, 415, "unsupported_media_type")["detail"]
        answer = client.post("/predict", files={"file": ("cat.png", content)})
        assert f"this is {what} (send" in assert_problem(answer, 415, "unsupported_media_type")["detail"]


@pytest.mark.parametrize("decoding", [("utf-8", "replace"), ("latin-1", "strict")])
@pytest.mark.parametrize("format", ["PNG", "JPEG"])
def test_an_image_that_a_program_read_as_text_is_named(
    client: TestClient, cat: bytes, format: str, decoding: tuple[str, str]
) -> None:
    out = io.BytesIO()
    with Image.open(io.BytesIO(cat)) as image:
        image.save(out, format)
    answer = client.post("/predict", content=out.getvalue().decode(*decoding).encode())
    assert "read as text" in assert_problem(answer, 415, "unsupported_media_type")["detail"]


def test_a_form_is_the_same_in_one_piece_and_byte_by_byte(client: TestClient, cat: bytes) -> None:
    whole = form(part("file", cat + b"\r\n" * 50_000, "cat.png"))
    pieces = {**whole, "content": (bytes([byte]) for byte in form(part("file", cat, "cat.png"))["content"])}
    answers = [client.post("/predict", **one).json() for one in (whole, pieces)]
    assert answers[0]["predictions"] == answers[1]["predictions"]


async def test_a_file_of_millions_of_small_pieces_takes_no_more_memory_than_its_bytes() -> None:
    """A parser of forms passes on each line end alone, since it could begin the boundary."""
    content = b"\r\n" * 500_000
    body = b'--x\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n' + content + b"\r\n--x--\r\n"

    async def receive() -> Message:
        return {"type": "http.request", "body": body, "more_body": False}

    headers = [(b"content-type", b"multipart/form-data; boundary=x")]
    request = Request({"type": "http", "method": "POST", "headers": headers}, receive)
    tracemalloc.start()
    try:
        assert await read_image(request, len(content)) == content
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 6 * len(content)
