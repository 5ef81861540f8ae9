import socket

import numpy as np
import pytest

from app.errors import UndecodableImage
from app.imaging.decode import EncodedImage
from app.imaging.protocol import DECODE, IDENTIFIED, IDENTITY, THUMBNAILS
from app.imaging.worker import decode, load_codecs
from app.sandbox.channel import ANSWER, receive


def answers(channel: socket.socket) -> list[tuple[int, bytes]]:
    """All that was said before the channel closed."""
    found = []
    while header := receive(channel, ANSWER.size):
        kind, size = ANSWER.unpack(header)
        found.append((kind, receive(channel, size)))
    return found


def test_the_worker_says_what_an_image_is_and_then_decodes_or_skips_it(cat: bytes) -> None:
    load_codecs()
    expected = EncodedImage.identify(cat, 10_000).thumbnails(1).tobytes()
    for views, wanted in ((1, [(THUMBNAILS, expected)]), (0, [])):
        ours, theirs = socket.socketpair()
        with ours:
            ours.sendall(DECODE.pack(views, 32, 32))
            with theirs:
                decode(theirs, cat, 10_000, 0, 1, 0, 0, 0, 0)
            assert answers(ours) == [(IDENTIFIED, IDENTITY.pack(32 * 32, 32, 32)), *wanted]
    assert len(expected) == np.prod((32, 32, 3))


def test_the_worker_refuses_what_is_no_image(cat: bytes) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs, pytest.raises(UndecodableImage):
        decode(theirs, cat[:20], 10_000, 0, 1, 0, 0, 0, 0)
