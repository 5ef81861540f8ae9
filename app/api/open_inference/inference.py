"""The inference of a request of /v2, whichever protocol it came by: limits, classification, metrics and statistics."""

import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

from fastapi import Request

from ...errors import NotFound, Problem
from ...inference.answers import Classification
from ...inference.classifier import Classifier
from ...inference.loaded_model import LoadedModel
from ..disconnect import unless_gone
from ..fair_share import hold_places
from ..request_context import RequestContext, context_of
from ..service import Service, there_are
from .models import VERSION, ServedModel
from .requests import InferenceRequest

Answer = TypeVar("Answer")


def served_model(service: Service, name: str) -> ServedModel:
    """The model of that name. Raises NotFound."""
    if name not in service.models:
        raise NotFound(f"there is no model {name[:40]!r}: {there_are(service.models)}")
    return service.models[name]


def check_version(version: str) -> None:
    """Raises NotFound for a version that there is not."""
    if version != VERSION:
        raise NotFound(f"there is no version {version[:40]!r}: there is {VERSION}")


@contextmanager
def counting_failures(served: ServedModel, started: float) -> Iterator[None]:
    """Add the seconds since `started` to the model's statistics if the block ends with an error."""
    try:
        yield
    except Exception:
        served.statistics.fail(time.monotonic() - started)
        raise


async def infer(
    request: Request,
    service: Service,
    served: ServedModel,
    model: LoadedModel,
    parse: Callable[[], Awaitable[InferenceRequest]],
    form: Callable[[InferenceRequest, list[Classification]], Answer],
) -> Answer:
    """Classify the images that `parse` finds in a body which is whole, and count that. `form` makes the answer.

    The request's context must say when its body was begun to be read, and when it was whole.
    """
    context = context_of(request.scope)
    assert context.began is not None and context.read is not None
    inference = await parse()
    parsed = time.monotonic()
    async with hold_places(request, len(inference.images) * served.views):
        results = await unless_gone(request, _classify(model.classifier, inference, context))
    computed = time.monotonic()
    answer = form(inference, results)
    total_seconds = service.observe(context, model, results)
    decode, queue, inference_seconds = _means(results)
    served.statistics.succeed(
        len(results),
        {
            "success": total_seconds,
            "queue": queue,
            "compute_input": parsed - context.read + decode,
            "compute_infer": inference_seconds,
            "compute_output": context.began + total_seconds - computed,
        },
        time.time(),
    )
    context.log = {"model": served.name, "images": len(results)}
    return answer


async def _classify(
    classifier: Classifier, inference: InferenceRequest, context: RequestContext
) -> list[Classification]:
    """In order. Raises the Problem of the first image that cannot be used."""
    images = inference.images
    if not isinstance(images, list):
        return await classifier.classify_pixels(images, context.deadline)
    results = []
    found = await classifier.classify_batch(images, context.deadline, context.client, inference.kind)
    for index, result in enumerate(found):
        if isinstance(result, Problem):
            result.detail = f"image {index}: {result.detail}"
            raise result
        results.append(result)
    return results


def _means(results: Sequence[Classification]) -> tuple[float, float, float]:
    """Seconds of decoding, waiting and computing."""
    times = [(result.decode_seconds, result.queue_seconds, result.inference_seconds) for result in results]
    decode, queue, inference = (sum(column) / len(results) for column in zip(*times, strict=True))
    return decode, queue, inference
