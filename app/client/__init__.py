"""A typed client of the service, on httpx (extra `client`), or on httpx2 where that alone is installed.

    with Client("http://127.0.0.1:8000") as client:
        answer = client.predict("cat.png")            # or bytes, an open file, an array or a PIL image
        print(answer.predictions[0].label)

    async with AsyncClient("http://127.0.0.1:8000", api_key="secret") as client:
        answer = await client.predict_batch(["cat.png", "dog.png"], top_k=3)

No call changes anything on the server, so a failed call may be repeated. The client repeats it

- when the service is busy (429, 503), after the seconds of Retry-After;
- when the connection fails;
- when a proxy says that its connection failed (500 or 502 without a problem document).

It does not repeat a call that took too long: that would only add load.

Whatever a server does, a call ends in an answer or in one of these errors:

    ClientError
    ├── ProblemError               the service, or a proxy, answered with an error
    ├── NoAnswerError              no whole answer arrived; also an httpx.TransportError, with httpx's own as its cause
    │   └── AnswerTimeoutError     not in time; also an httpx.TimeoutException
    ├── InvalidAnswerError         the answer is too large, or is not one that the service gives
    └── EmptyBatchError            a batch without images, which is not sent; also a ValueError

The caller's other mistakes are raised as they are: OSError for an image file that cannot be read, TypeError or
ValueError for what is no image, TypeError for one image in place of a batch, ValueError for a URL without http:// or
https://, httpx.InvalidURL for one that is malformed otherwise.

The environment's proxies (HTTP_PROXY, ...) are used, but not for this machine's own addresses.

An attempt takes `deadline` seconds at most, and an answer `max_answer_bytes`. The client asks for answers without
compression and refuses compressed ones, so no answer grows on arrival; it ignores cookies and redirects.
"""

try:
    from . import http  # noqa: F401
except ImportError:
    raise ImportError(f"{__name__} needs httpx: pip install 'httpx>=0.28'") from None

from ..image_source import ImageSource
from .calls import Explanation
from .clients import AsyncClient, Client
from .errors import (
    AnswerTimeoutError,
    ClientError,
    EmptyBatchError,
    InvalidAnswerError,
    NoAnswerError,
    ProblemError,
)

__all__ = [
    "AnswerTimeoutError",
    "AsyncClient",
    "Client",
    "ClientError",
    "EmptyBatchError",
    "Explanation",
    "ImageSource",
    "InvalidAnswerError",
    "NoAnswerError",
    "ProblemError",
]
