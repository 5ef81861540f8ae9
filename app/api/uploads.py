"""The images that a request carries, as multipart parts or as the raw body.

read_image      the one image of a request
read_images     the images of a batch

The client's Content-Type decides only between multipart and raw. The decoder reads the format from the bytes.
"""

from dataclasses import dataclass

from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request

from ..errors import (
    InvalidParameter,
    MalformedRequest,
    PayloadTooLarge,
    UnsupportedMediaType,
)
from .middleware.body_limits import declared_length

# Past the engine's batch limit more images save nothing but headers, and one request must not fill the queue.
MAX_IMAGES = 32  # of one request


def most_images(queue_images: int, views: int) -> int:
    """How many images one request may hold, each with `views` places in a queue of `queue_images`."""
    return min(MAX_IMAGES, queue_images // views)


@dataclass(frozen=True)
class Upload:
    filename: str | None
    content: bytes


class _InMemoryParser(MultiPartParser):
    # The body's size is limited and budgeted already; spooling to disk would only add a disk that can be full.
    spool_max_size = 1 << 62


async def read_image(request: Request, max_bytes: int) -> bytes:
    """The request's one image: the multipart part `file`, or the raw body. Raises a Problem for anything else."""
    if _content_type(request, "send the image as multipart `file` or as the raw body") == "multipart/form-data":
        (upload,) = await _multipart_files(request, "file", 1)
        content = upload.content
    else:
        content = await _raw_body(request, max_bytes)
    return content


async def read_images(request: Request, max_files: int) -> list[Upload]:
    """The request's 1 to `max_files` multipart parts `files`, of any size, in order. Raises a Problem."""
    hint = "send the images as multipart `files`"
    if _content_type(request, hint) != "multipart/form-data":
        raise UnsupportedMediaType(f"a batch is multipart/form-data: {hint}")
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


async def _multipart_files(request: Request, part: str, max_files: int) -> list[Upload]:
    """At least one and at most `max_files` files, all of them named `part`."""
    try:
        parser = _InMemoryParser(
            request.headers, request.stream(), max_files=max_files, max_fields=8, max_part_size=1024
        )
        form = await parser.parse()
    except MultiPartException as error:
        raise MalformedRequest(f"the multipart body cannot be parsed: {error.message}") from None
    except UnicodeError:  # some codecs, as `undefined` and `punycode`, refuse texts in their own way
        raise MalformedRequest(
            "the multipart body's charset does not decode its names: leave it out, or say utf-8"
        ) from None
    try:
        uploads = []
        for name, value in form.multi_items():
            if name != part:
                raise InvalidParameter(
                    f"unexpected part {name[:40]!r}: send images as `{part}`; parameters go into the query string"
                )
            if not isinstance(value, UploadFile):
                raise InvalidParameter(f"`{part}` came as text: send it as a file, with a filename")
            filename = (value.filename or "").encode(errors="backslashreplace").decode()  # some codecs make no Unicode
            uploads.append(Upload(filename or None, await value.read()))
            await value.close()  # one copy of an image is enough
        if not uploads:
            raise InvalidParameter(f"the part `{part}` is missing: it holds the image")
        return uploads
    finally:
        await form.close()
