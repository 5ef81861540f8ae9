"""The chunks of a PNG (W3C, PNG Specification, Third Edition), before Pillow reads them.

size(content)           # width and height in pixels
essential(content)      # the same picture without the chunks that it does not need

Metadata is never damage: a chunk that the picture does not need is left out, and so is EXIF or a colour profile that is
corrupt or too large. A file without its end chunk gets one. If the last pixels are missing, Pillow refuses it.
"""

import struct
import zlib
from typing import NamedTuple

from PIL import Image, PngImagePlugin

from ..errors import UndecodableImage, UnsupportedMediaType

SIGNATURE = b"\x89PNG\r\n\x1a\n"
# Encoders write thousands of chunks at most. Each takes a step in Python, so a file of a few megabytes could hold
# enough of them to take seconds.
MAX_CHUNKS = 20_000
MAX_METADATA_BYTES = 1 << 20  # of EXIF or a colour profile, unpacked; Pillow refuses more
STEP_BYTES = 1 << 16
NEEDED = (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND")
# Other kinds may be needed ones with a damaged name, so their checksum must be right.
METADATA = frozenset(
    b"tEXt zTXt iTXt tIME eXIf pHYs oFFs sCAL pCAL gAMA cHRM sRGB iCCP cICP mDCV cLLI sBIT bKGD hIST sPLT sTER"
    b" acTL fcTL fdAT iDOT vpAg caNv orNT gIFg gIFx gIFt".split()
)
END = struct.pack(">I4sI", 0, b"IEND", zlib.crc32(b"IEND"))


class Chunk(NamedTuple):
    kind: bytes
    start: int  # of the chunk in the file, with its length
    end: int  # with its checksum; beyond the end of a file that is cut short

    def data(self, content: bytes) -> bytes:
        return content[self.start + 8 : self.end - 4]

    def is_sound(self, content: bytes) -> bool:
        checksum = zlib.crc32(memoryview(content)[self.start + 4 : self.end - 4])
        return content[self.end - 4 : self.end] == struct.pack(">I", checksum)


def size(content: bytes) -> tuple[int, int]:
    """Width and height in pixels; 0, 0 for a file that ends before them."""
    width, height = struct.unpack_from(">II", content, 16) if len(content) >= 24 else (0, 0)
    return width, height


def chunks(content: bytes, most: int = MAX_CHUNKS) -> list[Chunk]:
    """All chunks to the end of the picture, or to where they cannot be followed.

    Raises UndecodableImage for more than `most`.
    """
    found: list[Chunk] = []
    position = len(SIGNATURE)
    for _ in range(most):
        kind = content[position + 4 : position + 8]
        if not kind.isalpha():
            return found
        end = position + 12 + int.from_bytes(content[position : position + 4])
        found.append(Chunk(kind, position, end))
        if kind == b"IEND":
            return found
        position = end
    raise UndecodableImage(f"the PNG has more than {most:,} chunks")


def is_plain(content: bytes, most_chunks: int, most_metadata: int) -> bool:
    """Whether the file has one header, at its beginning, its end chunk, and few chunks and bytes of metadata.

    Decoding such a file needs none of the repairs here, and reading its metadata takes no time.
    """
    try:
        found = chunks(content, most_chunks)
    except UndecodableImage:
        return False
    metadata = sum(chunk.end - chunk.start for chunk in found if chunk.kind not in NEEDED)
    return _has_header(found) and found[-1].kind == b"IEND" and metadata <= most_metadata


def _has_header(found: list[Chunk]) -> bool:
    """Whether the header comes first and once, with its 13 bytes: a second one would be another size."""
    kinds = [chunk.kind for chunk in found]
    return kinds[:1] == [b"IHDR"] and kinds.count(b"IHDR") == 1 and found[0].end - found[0].start == 25


def essential(content: bytes) -> bytes:
    """The same picture, of the chunks alone that its pixels, its orientation and its colours need.

    Raises UndecodableImage for more than MAX_CHUNKS chunks, UnsupportedMediaType for Apple's variant of PNG, and
    ValueError if it is corrupt.
    """
    found = chunks(content)
    if found and found[0].kind == b"CgBI":
        raise UnsupportedMediaType("this is a PNG in Apple's own variant (CgBI): save it as an ordinary PNG")
    if not _has_header(found):
        raise ValueError("the PNG does not begin with its only header")
    if found[-1].kind != b"IEND":
        return _with_end(content)
    if all(chunk.kind in NEEDED for chunk in found):
        return content
    return SIGNATURE + b"".join(content[chunk.start : chunk.end] for chunk in _kept(content, found))


def _kept(content: bytes, found: list[Chunk]) -> list[Chunk]:
    """Raises ValueError for a chunk of another kind whose checksum is wrong."""
    kept, seen = [], set()
    for chunk in found:
        if chunk.kind in NEEDED:
            kept.append(chunk)
        elif chunk.kind in (b"eXIf", b"iCCP") and chunk.kind not in seen:
            seen.add(chunk.kind)
            if chunk.is_sound(content) and _unpacked_bytes(chunk, content) <= MAX_METADATA_BYTES:
                kept.append(chunk)
        elif chunk.kind not in METADATA and chunk.end <= len(content) and not chunk.is_sound(content):
            raise ValueError("a chunk of an unknown kind is damaged")
    return kept


def _unpacked_bytes(chunk: Chunk, content: bytes) -> int:
    """Of EXIF, its length; of a colour profile, what it unpacks to. More than MAX_METADATA_BYTES if that is corrupt."""
    data = chunk.data(content)
    if chunk.kind == b"eXIf":
        return len(data)
    inflater = zlib.decompressobj()
    try:
        unpacked = inflater.decompress(data[data.index(0) + 2 :], MAX_METADATA_BYTES + 1)
    except (ValueError, zlib.error):
        return MAX_METADATA_BYTES + 1
    return len(unpacked) if inflater.eof else MAX_METADATA_BYTES + 1


def _with_end(content: bytes) -> bytes:
    """A file that lacks its end chunk, with one. Zeros at its end count as missing: a broken copy leaves them.

    The last chunk of pixels may lack its checksums then, and gets new ones. Checksums that are there stay as they are.
    """
    content = content.rstrip(b"\0")
    kept = _kept(content, chunks(content))
    pixels = [chunk for chunk in kept if chunk.kind == b"IDAT"]
    parts = [content[chunk.start : chunk.end] for chunk in kept]
    if pixels and pixels[-1].end > len(content) and all(chunk.is_sound(content) for chunk in pixels[:-1]):
        stream = _with_checksum(b"".join(chunk.data(content) for chunk in pixels))
        parts = [content[chunk.start : chunk.end] for chunk in kept if chunk.kind != b"IDAT"]
        parts.append(
            struct.pack(">I4s", len(stream), b"IDAT") + stream + struct.pack(">I", zlib.crc32(b"IDAT" + stream))
        )
    return SIGNATURE + b"".join(parts) + END


def _with_checksum(stream: bytes) -> bytes:
    """The zlib stream (RFC 1950). If its data is whole and only its checksum is cut short, it gets a new one."""
    inflater, checksum, position = zlib.decompressobj(-zlib.MAX_WBITS), 1, 2
    try:
        while position < len(stream) and not inflater.eof:
            packed, position = stream[position : position + STEP_BYTES], position + STEP_BYTES
            while packed and not inflater.eof:
                checksum = zlib.adler32(inflater.decompress(packed, STEP_BYTES), checksum)
                packed = inflater.unconsumed_tail
    except zlib.error:
        return stream  # Pillow says what is wrong
    trailing = inflater.unused_data + stream[position:]
    if not inflater.eof or len(trailing) >= 4:
        return stream
    return stream[: len(stream) - len(trailing)] + struct.pack(">I", checksum)


class FilledImageFile(PngImagePlugin.PngImageFile):
    """Pillow's PNG, with ones instead of zeros where no pixels are decoded."""

    def load_prepare(self) -> None:
        super().load_prepare()
        bands = Image.getmodebands(self.mode)
        self.im.paste(1 if bands == 1 else (1,) * bands, (0, 0, *self.size))


def has_empty_end(image: Image.Image) -> bool:
    """Whether the last row is zeros: what Pillow leaves where the data ends too early without being cut short."""
    width, height = image.size
    return image.crop((0, height - 1, width, height)).getbbox(alpha_only=False) is None
