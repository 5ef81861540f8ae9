"""The segments of a JPEG (ITU-T T.81, annex B), before Pillow reads them.

size(content)           # width and height in pixels
essential(content)      # the same picture without the segments that it does not need
completions(content)    # a file without its end marker, completed in several ways

Metadata is never damage: segments that the picture does not need are left out.
"""

import re
import struct
from collections.abc import Iterator
from typing import NamedTuple

from ..errors import UndecodableImage, UnsupportedMediaType

# Encoders write dozens of segments at most. Each takes a step in Python, so a file of a few megabytes could hold enough
# of them to take seconds.
MAX_SEGMENTS = 2_000
MAX_PADDING = 1 << 16  # bytes between segments
MAX_PROFILE_BYTES = 1 << 20
MAX_SCANS = 64  # encoders write about a dozen
USUAL_SCANS = 16

START, END, SCAN = b"\xff\xd8", b"\xff\xd9", 0xDA
FILL_BYTES = re.compile(rb"\xff{1,%d}" % MAX_PADDING)
FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}  # markers of frame headers
BASELINE = (0xC0, 0xC1)
# Frames that libjpeg decodes to eight bits a channel: baseline, extended, progressive; the last two arithmetic-coded.
DECODED_FRAMES = (0xC0, 0xC1, 0xC2, 0xC9, 0xCA)
JPEG_LS_FRAME = 0xF7
# Markers without a segment. Pillow reads what follows JPG and JPG0 to JPG13 as nothing, and looks for the next marker.
ALONE = {0x00, 0x01, *range(0xD0, 0xDA), 0xC8, *range(0xF0, 0xFE)} - {JPEG_LS_FRAME}
METADATA = {*range(0xE0, 0xF0), 0xFE}  # APP0 to APP15, and comments
APP2 = 0xE2  # colour profiles
NEEDED_METADATA = {0xE0: b"JFIF", 0xE1: b"Exif\0\0", 0xEE: b"Adobe"}  # with what the data begins
RESTARTS = 0xDD  # the segment that says after how many blocks the coder starts anew
MAX_COMPONENTS = 4
MAX_ZEROS = 3  # bytes at the end of a file that may be the picture's own
LEAST_METADATA_BYTES = 12  # Pillow reads as many
# What data after the cut may be. It differs from the zeros that a decoder takes for none in its first bit.
OTHER_DATA = bytes(range(254, 0, -1)) * 16


class Segment(NamedTuple):
    marker: int
    start: int  # of the marker in the file
    end: int

    def data(self, content: bytes) -> bytes:
        return content[self.start + 4 : self.end]


def segments(content: bytes, most: int = MAX_SEGMENTS) -> Iterator[Segment]:
    """The segments before the first scan, then that scan with all that follows.

    It ends where the segments cannot be followed. Raises UndecodableImage for more than `most` segments, or more
    padding between them than any encoder writes.
    """
    position, padding = len(START), 0
    for _ in range(most):
        fill = FILL_BYTES.search(content, position)
        if fill is None:
            return
        marked = fill.end()
        padding += marked - 1 - position
        if padding > MAX_PADDING or marked - fill.start() == MAX_PADDING:
            raise UndecodableImage("the JPEG has more padding between its segments than any encoder writes")
        if marked >= len(content):
            return
        marker, position = content[marked], marked + 1
        if marker == SCAN:
            yield Segment(marker, marked - 1, len(content))
            return
        if marker in ALONE:
            continue
        if len(content) < position + 2:
            return
        position += max(2, int.from_bytes(content[position : position + 2]))  # the length counts itself
        yield Segment(marker, marked - 1, position)
    raise UndecodableImage(f"the JPEG has more than {most:,} segments")


def size(content: bytes, most: int = MAX_SEGMENTS) -> tuple[int, int]:
    """Width and height in pixels; 0, 0 if the segments cannot be followed.

    The height of a progressive JPEG is multiplied by USUAL_SCANS. Raises UndecodableImage, as
    `segments` does.
    """
    found = (0, 0)
    for segment in segments(content, most):
        data = segment.data(content)
        if segment.marker in FRAMES and len(data) >= 5:
            height, width = struct.unpack_from(">HH", data, 1)
            found = (width, height if segment.marker in BASELINE else USUAL_SCANS * height)
    return found


def essential(content: bytes) -> bytes:
    """The same picture, of the segments alone that its pixels, its orientation and its colours need.

    Raises UndecodableImage, as `segments` does, and UnsupportedMediaType for kinds of JPEG that libjpeg does not
    decode to eight bits a channel.
    """
    parts, seen, profile_bytes, end = [START], set(), 0, len(START)
    for segment in segments(content):
        marker, data, end = segment.marker, segment.data(content), segment.end
        if marker in FRAMES or marker == JPEG_LS_FRAME:
            _refuse_unsupported(marker, data)
        elif marker == APP2 and data.startswith(b"ICC_PROFILE\0"):
            profile_bytes += len(data)
            if profile_bytes > MAX_PROFILE_BYTES or len(data) <= len(b"ICC_PROFILE\0") + 2:
                continue
        elif marker in METADATA:
            beginning = NEEDED_METADATA.get(marker)
            if beginning is None or not data.startswith(beginning) or len(data) < LEAST_METADATA_BYTES:
                continue
            if marker in seen:
                continue
            seen.add(marker)  # Pillow would join further segments of EXIF, in quadratic time
        parts.append(content[segment.start : end])
    return b"".join(parts) + content[end:]


def _refuse_unsupported(marker: int, frame: bytes) -> None:
    """Raises UnsupportedMediaType."""
    if marker == JPEG_LS_FRAME:
        name = "a JPEG-LS"
    elif marker not in DECODED_FRAMES:
        name = "a lossless or hierarchical JPEG"
    elif frame and frame[0] != 8:
        name = f"a JPEG with {frame[0]} bits a channel"
    else:
        return
    raise UnsupportedMediaType(f"this is {name}: save it as an ordinary JPEG, with 8 bits a channel, or as PNG")


def is_plain(content: bytes, most_segments: int, most_metadata: int) -> bool:
    """Whether the file ends with its end marker, and has few segments and few bytes of metadata.

    Decoding such a file needs none of the repairs here, and reading its metadata takes no time.
    """
    metadata = 0
    try:
        for segment in segments(content, most_segments):
            metadata += segment.end - segment.start if segment.marker in METADATA else 0
    except UndecodableImage:
        return False
    return metadata <= most_metadata and content.endswith(END)


def completions(content: bytes) -> list[list[bytes]]:
    """Alternatives, each a list of files. All pixels are there if the files of one alternative decode to the same ones.

    A file with its end marker is the only one. A file without it is completed as if zeros followed, and as if other
    data did. Zeros at the end count as missing: a broken copy leaves them. A few may belong to the picture, so there is
    an alternative with them. Raises UndecodableImage if whole scans are missing.
    """
    if content.endswith(END):
        return [[content]]
    found = list(segments(content))
    scan = next((segment.start for segment in found if segment.marker == SCAN), len(content))
    if content.find(END, scan) >= 0:
        return [[content]]
    if not _has_all_scans(content, scan):
        raise UndecodableImage("the JPEG is cut short or corrupt")
    other_data = [OTHER_DATA]
    if any(segment.marker == RESTARTS for segment in found):
        # At a restart, a decoder skips data up to the next marker.
        last = max((content.rfind(bytes([0xFF, 0xD0 + number]), scan), number) for number in range(8))
        following = (last[1] + 1) % 8 if last[0] >= 0 else 0
        other_data.append(bytes([0xFF, 0xD0 + following]) + OTHER_DATA)
    whole = content.rstrip(b"\0\xff")
    bases = [whole]
    if content.endswith(b"\0") and len(content) - len(whole) <= MAX_ZEROS:
        bases.append(content)
    return [[base + END, *(base + data + END for data in other_data)] for base in bases]


def _has_all_scans(content: bytes, first: int) -> bool:
    """Whether the scans, from offset `first` on, hold each coefficient of each component to its last bit."""
    frame = next(segment.data(content) for segment in segments(content) if segment.marker in FRAMES)
    if frame[5] > MAX_COMPONENTS:
        return False
    missing = {(component, place) for component in frame[6 : 6 + 3 * frame[5] : 3] for place in range(64)}
    position = first
    for _ in range(MAX_SCANS):
        position = content.find(b"\xff\xda", position)
        if position < 0:
            break
        count = content[position + 4]
        components = content[position + 5 : position + 5 + 2 * count : 2]
        low, high, bits = content[position + 5 + 2 * count : position + 8 + 2 * count]
        if count > MAX_COMPONENTS or high > 63:
            break
        if not bits & 0x0F:
            missing -= {(component, place) for component in components for place in range(low, high + 1)}
        position += 2
    return not missing
