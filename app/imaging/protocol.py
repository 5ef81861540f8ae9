"""What the service and a decoding process say to each other, in addition to app.sandbox.channel.

A request is REQUEST and the file. The process answers IDENTIFIED with an IDENTITY, waits for DECODE, and answers
THUMBNAILS. If DECODE wants no views, the image is skipped. Instead of either the process may answer PROBLEM.
"""

import struct

from ..sandbox.channel import FIRST_OWN

REQUEST = struct.Struct(">QQ")  # bytes of the file, max_pixels
IDENTITY = struct.Struct(">QII")  # pixels that decoding will take, width, height
DECODE = struct.Struct(">III")  # views, height and width of thumbnails
IDENTIFIED, THUMBNAILS = FIRST_OWN, FIRST_OWN + 1
