"""The images that a request carries, as multipart parts or as the raw body.

The client's Content-Type decides only between multipart and raw; the format is read from the bytes (app.images).
"""

from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request

from app.limits import declared_length
from app.problems import (
    InvalidParameter,
    MalformedRequest,
    PayloadTooLarge,
    UndecodableImage,
    UnsupportedMediaType,
)


class _InMemoryParser(MultiPartParser):
    # The body's size is limited and budgeted already; spooling to disk would only add a disk that can be full.
    spool_max_size = 1 << 62


async def read_image(request: Request, max_bytes: int) -> bytes:
    """The request's one image: the multipart part `file`, or the raw body.

    The client's Content-Type decides only between multipart and raw; the format is read from the bytes.
    Raises a Problem for anything else.
    """
    encoding = request.headers.get("content-encoding", "identity").lower()
    if encoding != "identity":
        raise UnsupportedMediaType(f"Content-Encoding {encoding[:40]!r} is not accepted: send the image as it is")
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == "application/json":
        raise UnsupportedMediaType("JSON is not accepted: send the image as multipart `file` or as the raw body")
    content = await (_multipart_file(request) if kind == "multipart/form-data" else _raw_body(request, max_bytes))
    if len(content) > max_bytes:
        raise PayloadTooLarge(f"the file has {len(content)} bytes, at most {max_bytes} are accepted")
    if not content:
        raise UndecodableImage("the file is empty")
    return content


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


async def _multipart_file(request: Request) -> bytes:
    try:
        parser = _InMemoryParser(request.headers, request.stream(), max_files=1, max_fields=8, max_part_size=1024)
        form = await parser.parse()
    except MultiPartException as error:
        raise MalformedRequest(f"the multipart body cannot be parsed: {error.message}") from None
    try:
        for name, value in form.multi_items():
            if name != "file":
                raise InvalidParameter(
                    f"unexpected part {name[:40]!r}: send the image as `file`; parameters go into the query string"
                )
            if not isinstance(value, UploadFile):
                raise InvalidParameter("`file` came as text: send it as a file, with a filename")
        files = form.getlist("file")
        if len(files) != 1:
            raise InvalidParameter("the part `file` is missing: send exactly one, holding the image")
        assert isinstance(files[0], UploadFile)
        return await files[0].read()
    finally:
        await form.close()
