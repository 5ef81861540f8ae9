"""Fuzz the parsers that are written in Python, guided by coverage. It needs `pip install atheris`.

    python -m tests.benchmarks.faults.fuzz_parsers images --seconds 600 --seed 1
    python -m tests.benchmarks.faults.fuzz_parsers chunks CORPUS      # a folder that keeps the inputs found

It ends with a traceback, and writes the input to the working directory, if a parser raises an error that is not for
clients, takes over a second, or, for chunks, if the result depends on how the bytes are cut into pieces.
"""

import argparse
import contextlib
import sys
from collections.abc import Callable

import atheris

with atheris.instrument_imports(include=["app", "PIL"]):
    from app.api.open_inference.requests import read_json
    from app.api.open_inference.tensors import Signature, Tensor
    from app.errors import Problem
    from app.imaging import decode, formats
    from app.process.framing import Chunks, FramingError

MODEL = Signature(Tensor("images", "UINT8", (-1, 2, 2, 3)), Tensor("probabilities", "FP32", (-1, 10)), 4)
FILES = Signature(Tensor("image", "BYTES", (-1,)), Tensor("probabilities", "FP32", (-1, 10)), 4)


def images(data: bytes) -> None:
    """All that reads an image in Python: before Pillow does, and in Pillow."""
    try:
        formats.is_tiny(data)
        decode.EncodedImage.identify(data, 4096).thumbnails(1)
    except Problem:
        pass


def chunks(data: bytes) -> None:
    """A body in chunks, cut after each of its bytes, is the body in one piece."""
    whole, pieces = Chunks(), Chunks()
    one = taken(whole, [data])
    two = taken(pieces, [data[index : index + 1] for index in range(len(data))])
    assert one == two, (one, two)


def taken(body: Chunks, pieces: list[bytes]) -> tuple[bytes, bytes] | None:
    """The content and what follows the body; None if it breaks HTTP."""
    content, rest = bytearray(), bytearray()
    try:
        for piece in pieces:
            if body.complete:
                rest += piece
            else:
                found, after = body.take(piece)
                content += found
                rest += after
    except FramingError:
        return None
    return bytes(content), bytes(rest)


def messages(data: bytes) -> None:
    """The JSON of requests for pixels and for files."""
    for model in (MODEL, FILES):
        with contextlib.suppress(Problem):
            read_json(data, len(data) % 3, model)


PARSERS: dict[str, Callable[[bytes], None]] = {"images": images, "chunks": chunks, "messages": messages}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parser", choices=PARSERS)
    parser.add_argument("corpus", nargs="*", help="folders with inputs; what is found is written to the first")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--seconds", type=int, default=60)
    options = parser.parse_args()
    arguments = [f"-seed={options.seed}", f"-max_total_time={options.seconds}", "-timeout=1", "-max_len=4096"]
    atheris.Setup([sys.argv[0], *arguments, *options.corpus], PARSERS[options.parser])
    atheris.Fuzz()


if __name__ == "__main__":
    main()
