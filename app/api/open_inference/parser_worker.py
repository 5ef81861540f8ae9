"""The program of the process that parses JSON. It gets messages on standard input, a socket, and answers on it.

    python -P -m app.api.open_inference.parser_worker MEMORY_BYTES CPU_SECONDS

app.api.open_inference.parser starts it.
"""

import json
import socket
import sys

from ...errors import MalformedRequest
from ...sandbox.channel import answer, receive
from ...sandbox.worker import serve
from .parser_protocol import HEAD, MESSAGE, PIXELS, REQUEST
from .requests import read_json
from .tensors import Signature, Tensor


def parse(channel: socket.socket, text: bytes, signature_bytes: int, rest: int) -> None:
    """Answer one request. Raises MalformedRequest or MemoryError."""
    message = read_json(text, rest, _signature(receive(channel, signature_bytes)))
    sizes: list[int] | str | None = None
    content: list[bytes] = []
    if isinstance(message.images, list):
        content = message.images
        sizes = list(map(len, content))
    elif message.images is not None:
        content, sizes = [message.images.tobytes()], PIXELS
    head = {name: getattr(message, name) for name in ("id", "count", "classes", "binary", "kind")}
    encoded = json.dumps({**head, "sizes": sizes}).encode()
    answer(channel, MESSAGE, HEAD.pack(len(encoded)), encoded, *content)


def load_late_imports() -> None:
    """Run the ways that import modules at first use, which the sandbox forbids."""
    model = Signature(Tensor("images", "UINT8", (-1, 1)), Tensor("probabilities", "FP32", (-1, 1)), 1)
    for text in (b'{"inputs":[{"name":"images","datatype":"UINT8","shape":[1,1],"data":[1]}]}', b"[", b"{}"):
        try:
            read_json(text, 0, model)
        except MalformedRequest as refused:
            json.dumps([refused.code, refused.detail])


def _signature(text: bytes) -> Signature:
    fields = json.loads(text)
    tensors = {name: Tensor(**{**fields[name], "shape": tuple(fields[name]["shape"])}) for name in ("input", "output")}
    return Signature(**tensors, max_batch_size=fields["max_batch_size"])


if __name__ == "__main__":
    load_late_imports()
    serve(REQUEST, parse, memory_bytes=int(sys.argv[1]), cpu_seconds=float(sys.argv[2]))
