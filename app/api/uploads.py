"""The images that a request carries, as multipart parts or as the raw body.

read_image      the one image of a request
read_images     the images of a batch

The client's Content-Type decides only between multipart and raw. The decoder reads the format from the bytes.
"""

import re
from dataclasses import dataclass

from starlette.datastructures import FormData, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request

from ..errors import (
    InvalidParameter,
    MalformedRequest,
    PayloadTooLarge,
    UndecodableImage,
    UnsupportedMediaType,
)
from .middleware.body_limits import declared_length

# Past the engine's batch limit more images save nothing but headers, and one request must not fill the queue.
MAX_IMAGES = 32  # of one request

SMALL_PIECE_BYTES = 1 << 12  # shorter pieces are joined: an object for each would take more memory than its bytes

# What is said of more images than a request may hold, by the name of their part.
TOO_MANY = {
    "file": "image: POST /predict takes one as the part `file`, POST /predict/batch several as parts `files`",
    "files": "images: send the others in another batch",
}

# What curl -d makes of each format's signature: it removes zero bytes and line ends.
STRIPPED = re.compile(rb"\x89PNG\x1a|\xff\xd8\xff|GIF8[79]a|RIFF.{0,4}WEBP|BM|.{1,4}ftyp", re.DOTALL)
FORM_OR_JSON = re.compile(rb"[\w.%\[\]-]{1,64}=|\s{0,9}[{\[]")
AS_CURL = "curl --data-binary @photo.png, or as multipart: curl -F file=@photo.png"


def most_images(queue_images: int, views: int) -> int:
    """How many images one request may hold, each with `views` places in a queue of `queue_images`."""
    return min(MAX_IMAGES, queue_images // views)


@dataclass(frozen=True)
class Upload:
    filename: str | None
    content: bytes


class _FilesParser(MultiPartParser):
    """Takes only files that are named `part`: any other part is refused before its content is read.

    Their content goes to `contents`, as it came: Starlette would write each piece to a temporary file, and read all of
    it again. The body's size is limited and budgeted already.
    """

    def __init__(self, request: Request, part: str, max_files: int) -> None:
        super().__init__(request.headers, request.stream(), max_files=max_files)
        self.contents: list[list[bytes | bytearray]] = []  # of each file, in pieces
        self._part = part
        self._complete = False  # whether the closing boundary came

    def on_part_begin(self) -> None:
        super().on_part_begin()
        self.contents.append([])

    def on_part_data(self, data: bytes, start: int, end: int) -> None:
        pieces, piece = self.contents[-1], data[start:end]
        if len(piece) >= SMALL_PIECE_BYTES:
            pieces.append(piece)
        elif pieces and isinstance(pieces[-1], bytearray):
            pieces[-1] += piece
        else:
            pieces.append(bytearray(piece))

    def on_headers_finished(self) -> None:
        super().on_headers_finished()
        name = self._current_part.field_name
        if name != self._part:
            raise InvalidParameter(
                f"unexpected part {name[:40]!r}: send images as `{self._part}`; parameters go into the query string"
            )
        if self._current_part.file is None:
            raise InvalidParameter(
                f"`{name}` came as text, without `filename` (`filename*` alone does not count): send it as a file, with"
                f" a filename, as curl -F {name}=@photo.png does"
            )

    def on_end(self) -> None:
        self._complete = True

    async def parse(self) -> FormData:
        form = await super().parse()
        if not self._complete:
            for file in self._files_to_close_on_error:  # an unfinished file is in no form
                file.close()
            raise MalformedRequest("the multipart body ends early: its closing boundary is missing")
        return form


async def read_image(request: Request, max_bytes: int) -> bytes:
    """The request's one image: the multipart part `file`, or the raw body. Raises a Problem for anything else."""
    kind = _content_type(request, "send the image as multipart `file` or as the raw body")
    if kind == "multipart/form-data":
        (upload,) = await _multipart_files(request, "file", 1)
        return upload.content
    content = await _raw_body(request, max_bytes)
    _check_sent_as_it_is(content, kind)
    return content


async def read_images(request: Request, max_files: int) -> list[Upload]:
    """The request's 1 to `max_files` multipart parts `files`, of any size, in order. Raises a Problem."""
    hint = "send the images as multipart `files`"
    if _content_type(request, hint) != "multipart/form-data":
        raise UnsupportedMediaType(f"a batch is multipart/form-data: {hint} (curl -F files=@a.png -F files=@b.png)")
    return await _multipart_files(request, "files", max_files)


def _content_type(request: Request, hint: str) -> str:
    """Without its parameters. Raises UnsupportedMediaType for what cannot hold an image."""
    encoding = request.headers.get("content-encoding", "identity").lower()
    if encoding != "identity":
        raise UnsupportedMediaType(f"Content-Encoding {encoding[:40]!r} is not accepted: send the image as it is")
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == "application/json":
        raise UnsupportedMediaType(f"JSON is not accepted: {hint}")
    return kind


async def _raw_body(request: Request, max_bytes: int) -> bytes:
    declared = declared_length(request.headers)
    if declared > max_bytes:
        raise PayloadTooLarge(f"the file has {declared} bytes, at most {max_bytes} are accepted")
    content = bytearray()
    async for chunk in request.stream():
        content += chunk
        if len(content) > max_bytes:
            raise PayloadTooLarge(f"the file has more than the {max_bytes} bytes that are accepted")
    return bytes(content)


def _check_sent_as_it_is(content: bytes, kind: str) -> None:
    """Raise UndecodableImage for what curl -d leaves of an image, and UnsupportedMediaType for a form or JSON.

    `kind` is the Content-Type. That of a form is no proof: curl sends it with every --data-binary.
    """
    if b"\0" in content:  # as in any image
        return
    if STRIPPED.match(content) and not content.isascii() and b"\r" not in content and b"\n" not in content:
        raise UndecodableImage(
            f"the image has lost its zero bytes and line ends, as by curl -d @photo.png: send it as it is: {AS_CURL}"
        )
    if kind == "application/x-www-form-urlencoded" and FORM_OR_JSON.match(content):
        raise UnsupportedMediaType(
            f"a urlencoded form or JSON is not accepted: send the image's bytes as they are: {AS_CURL}"
        )


async def _multipart_files(request: Request, part: str, max_files: int) -> list[Upload]:
    """At least one and at most `max_files` files, all of them named `part`."""
    parser = _FilesParser(request, part, max_files)
    try:
        form = await parser.parse()
    except MultiPartException as error:
        if error.message.startswith("Too many files"):
            raise MalformedRequest(f"more than {max_files} {TOO_MANY[part]}") from None
        raise MalformedRequest(f"the multipart body cannot be parsed: {error.message}") from None
    except UnicodeError:  # some codecs, as `undefined` and `punycode`, refuse texts in their own way
        raise MalformedRequest(
            "the multipart body's charset does not decode its names: leave it out, or say utf-8"
        ) from None
    try:
        uploads = []
        for (_, file), pieces in zip(form.multi_items(), parser.contents, strict=True):
            assert isinstance(file, UploadFile)
            filename = (file.filename or "").encode(errors="backslashreplace").decode()  # some codecs make no Unicode
            uploads.append(Upload(filename or None, b"".join(pieces)))
            pieces.clear()  # one copy of an image is enough
        if not uploads:
            raise InvalidParameter(f"the part `{part}` is missing: it holds the image")
        return uploads
    finally:
        await form.close()
