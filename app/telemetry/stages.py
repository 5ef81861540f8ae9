"""The stages of a request, as spans: read, decode, queue, inference, and classify if that failed.

They are made when the request has been answered, from the times that it took: nothing on its way waits for them.
"""

import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from opentelemetry.trace import Span, StatusCode, Tracer, set_span_in_context

from ..inference.answers import Classification

NANOSECONDS = 10**9


@dataclass(frozen=True)
class Stage:
    """From `start` to `end`, in seconds of time.monotonic(). images: of a stage of images; error: a problem's code."""

    name: str
    start: float
    end: float
    images: int = 0
    error: str | None = None


def stages_of(
    began: float, read: float | None, results: Sequence[Classification], error: str | None, now: float
) -> Iterator[Stage]:
    """The stages of a request for images.

    began: when its body was begun to be read; read: when that was whole, if it was; results: of images that were
    classified; error: the code of the problem that the request ended with, if it did. Times are in seconds of
    time.monotonic(). Images that waited or were computed together share a stage.
    """
    yield Stage("read", began, now if read is None else read, error=error if read is None else None)
    together: Counter[tuple[str, float, float]] = Counter()
    for result in results:
        computing = result.ended - result.inference_seconds
        waiting = computing - result.queue_seconds
        if result.began is not None:
            together["decode", result.began, waiting] += 1
        together["queue", waiting, computing] += 1
        together["inference", computing, result.ended] += 1
    for (name, start, end), images in together.items():
        yield Stage(name, start, end, images)
    if read is not None and error and not results:
        yield Stage("classify", read, now, error=error)


def add_spans(tracer: Tracer, parent: Span, stages: Iterable[Stage]) -> None:
    """Make a span of each stage, inside the request's span `parent`."""
    context = set_span_in_context(parent)
    since = time.time_ns() - time.monotonic_ns()
    for stage in stages:
        span = tracer.start_span(stage.name, context, start_time=since + round(stage.start * NANOSECONDS))
        if stage.images:
            span.set_attribute("classifier.images", stage.images)
        if stage.error:
            span.set_attribute("error.type", stage.error)
            span.set_status(StatusCode.ERROR)
        span.end(since + round(stage.end * NANOSECONDS))
