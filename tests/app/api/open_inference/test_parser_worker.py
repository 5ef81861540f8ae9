import json
import socket
from dataclasses import asdict

import numpy as np
import pytest

from app.api.open_inference.models import ServedModel
from app.api.open_inference.parser_protocol import HEAD, MESSAGE, PIXELS
from app.api.open_inference.parser_worker import load_late_imports, parse
from app.api.open_inference.tensors import Signature
from app.errors import MalformedRequest
from app.sandbox.channel import ANSWER, receive
from tests.app.api.open_inference.test_requests import IMAGE, binary, file_tensor, images, message, tensor


def parsed(text: bytes, rest: int, model: ServedModel) -> tuple[dict[str, object], bytes]:
    """The object and the images of the worker's answer."""
    signature = json.dumps(asdict(Signature(model.input, model.output, model.max_batch_size))).encode()
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.sendall(signature)
        parse(theirs, text, len(signature), rest)
        kind, size = ANSWER.unpack(receive(ours, ANSWER.size))
        assert kind == MESSAGE
        content = receive(ours, size)
    (length,) = HEAD.unpack_from(content)
    return json.loads(content[HEAD.size :][:length]), content[HEAD.size + length :]


def test_the_worker_answers_with_the_members_and_the_images(pixels: ServedModel, files: ServedModel) -> None:
    load_late_imports()
    two = images(2)
    head, content = parsed(bytes(message([tensor(2, data=two.tolist())], id="a")[0]), 0, pixels)
    assert head == {"id": "a", "count": 2, "classes": 0, "binary": False, "kind": None, "sizes": PIXELS}
    np.testing.assert_array_equal(np.frombuffer(content, np.uint8).reshape(two.shape), two)
    head, content = parsed(bytes(message([file_tensor(2, data=["QUJD", "QQ=="])])[0]), 0, files)
    assert (head["sizes"], content) == ([3, 1], b"ABCA")
    head, content = parsed(bytes(message([tensor(**binary(IMAGE))])[0]), IMAGE, pixels)
    assert (head["sizes"], content) == (None, b"")


def test_the_worker_refuses_what_is_malformed(pixels: ServedModel) -> None:
    with pytest.raises(MalformedRequest, match="inputs"):
        parsed(b"{}", 0, pixels)
