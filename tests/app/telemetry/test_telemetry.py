"""What an OTLP receiver gets of the service, run in this process."""

import json
import logging
import re
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import numpy as np
import pytest
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status
from prometheus_client.parser import text_string_to_metric_families
from starlette.testclient import TestClient

from app import __main__ as command_line
from app import main
from app.bundle.reader import Bundle
from app.inference.sessions import Outputs, Session
from app.main import create_app
from app.settings import Settings
from app.telemetry import TelemetryError, asked_for, pipeline, with_instance
from tests.app.telemetry.receiver import Receiver, attributes, receiving
from tests.conftest import BUNDLE

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
CALLER = "00f067aa0ba902b7"
SAMPLED = 1  # of the flags
Serve = Callable[..., AbstractContextManager[TestClient]]


@pytest.fixture
def receiver(monkeypatch: pytest.MonkeyPatch) -> Iterator[Receiver]:
    with receiving() as found:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", found.address)
        monkeypatch.setattr(pipeline, "FLUSH_SECONDS", 60)
        yield found


@pytest.fixture
def serving(loaded: tuple[Bundle, Session]) -> Serve:
    """The service while the block runs. At its end everything has been sent."""

    @contextmanager
    def serve(session: Session | None = None, **settings: object) -> Iterator[TestClient]:
        values = {"model_dir": BUNDLE, "inference_threads": 1, **settings}
        app = create_app(Settings(**values), (loaded[0], session or loaded[1]), on_death=lambda: None)
        with TestClient(app, raise_server_exceptions=False) as client:
            yield client

    return serve


def of_request(spans: list[Span]) -> Span:
    (found,) = (span for span in spans if span.kind == Span.SPAN_KIND_SERVER)
    return found


def stages(spans: list[Span]) -> list[str]:
    """The names of the stages, which are all inside the one request."""
    whole = of_request(spans)
    inner = [span for span in spans if span is not whole]
    assert all((span.trace_id, span.parent_span_id) == (whole.trace_id, whole.span_id) for span in inner)
    assert all(whole.start_time_unix_nano <= span.start_time_unix_nano <= span.end_time_unix_nano for span in inner)
    return [span.name for span in inner]


def test_a_request_is_one_trace_with_our_ids_and_a_span_for_each_stage(
    receiver: Receiver, serving: Serve, cat: bytes, cat_label: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "app.access")
    with serving() as client:
        answer = client.post("/predict?top_k=1", content=cat, headers={"X-Request-ID": "mine"})
    spans = receiver.spans
    assert stages(spans) == ["read", "decode", "queue", "inference"]
    whole = of_request(spans)
    (line,) = (record.fields for record in caplog.records if record.name == "app.access")
    version, trace, span, flags = answer.headers["traceparent"].split("-")
    assert (version, trace, span) == ("00", whole.trace_id.hex(), whole.span_id.hex())
    assert int(flags, 16) & SAMPLED
    assert line["trace_id"] == whole.trace_id.hex()
    found = attributes(whole.attributes)
    assert whole.name == "POST /predict"
    assert found["http.response.header.x-request-id"] == ["mine"] == [line["request_id"]]
    assert (found["classifier.outcome"], found["classifier.label"]) == ("ok", cat_label)
    assert (found["http.route"], found["http.response.status_code"]) == ("/predict", 200)
    ends = {span.name: span.end_time_unix_nano for span in spans}
    assert ends["read"] <= ends["decode"] <= ends["queue"] <= ends["inference"]
    seconds = {span.name: (span.end_time_unix_nano - span.start_time_unix_nano) / 1e9 for span in spans}
    times = answer.json()["timing_ms"]
    for stage in ("queue", "inference"):
        assert seconds[stage] * 1000 == pytest.approx(times[stage], abs=0.01)
    resource = receiver.resource(receiver.traces[0])
    assert resource["service.name"] == "cifar10-classifier" and resource["service.instance.id"]


@pytest.mark.parametrize(("flags", "names"), [("01", ["GET /model"]), ("00", [])], ids=["sampled", "not sampled"])
def test_the_callers_trace_is_continued(receiver: Receiver, serving: Serve, flags: str, names: list[str]) -> None:
    with serving() as client:
        answer = client.get("/model", headers={"traceparent": f"00-{TRACE}-{CALLER}-{flags}"})
    version, trace, span, answered = answer.headers["traceparent"].split("-")
    assert (version, trace, answered) == ("00", TRACE, flags) and span != CALLER
    assert [span.name for span in receiver.spans] == names
    assert all((span.trace_id.hex(), span.parent_span_id.hex()) == (TRACE, CALLER) for span in receiver.spans)


def test_what_the_standard_variables_say_is_done(
    receiver: Receiver, serving: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_SERVICE_NAME", "photos")
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "service.version=7,team=blue")
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", "parentbased_traceidratio")
    monkeypatch.setenv("OTEL_TRACES_SAMPLER_ARG", "0")
    monkeypatch.setenv("OTEL_METRICS_EXPORTER", "none")
    with serving() as client:
        assert not int(client.get("/model").headers["traceparent"][-2:], 16) & SAMPLED
        client.get("/model", headers={"traceparent": f"00-{TRACE}-{CALLER}-01"})
    assert [span.trace_id.hex() for span in receiver.spans] == [TRACE]
    resource = receiver.resource(receiver.traces[0])
    assert (resource["service.name"], resource["service.version"], resource["team"]) == ("photos", "7", "blue")
    assert receiver.metrics == []


@pytest.mark.parametrize("prefix", ["", "/images"])
def test_probes_are_not_traced(receiver: Receiver, serving: Serve, prefix: str) -> None:
    with serving(root_path=prefix) as client:
        for probe in ("/livez", "/readyz", "/v2/health/live", "/v2/health/ready"):
            for path in {probe, f"{prefix}{probe}"}:
                answer = client.get(path)
                assert answer.status_code == client.head(path).status_code == 200
                assert answer.headers["traceparent"].endswith("-00")
        client.head(f"{prefix}/model")
    assert [span.name for span in receiver.spans] == ["HEAD /model"]


def test_images_that_were_computed_together_share_a_span(receiver: Receiver, serving: Serve, cat: bytes) -> None:
    with serving() as client:
        answer = client.post("/predict/batch", files=[("files", ("cat.png", cat))] * 3)
    assert answer.status_code == 200
    images: Counter[str] = Counter()
    for span in receiver.spans:
        images[span.name] += attributes(span.attributes).get("classifier.images", 0)
    assert images == {"POST /predict/batch": 3, "read": 0, "decode": 3, "queue": 3, "inference": 3}
    assert set(stages(receiver.spans)) == {"read", "decode", "queue", "inference"}


def test_pixels_over_the_inference_protocol_and_explanations_have_stages(
    receiver: Receiver, serving: Serve, cat: bytes
) -> None:
    tensor = {"name": "images", "datatype": "UINT8", "shape": [1, 32, 32, 3], "data": [0] * 3072}
    with serving() as client:
        name = client.get("/v2/models/cifar10").json()["inputs"][0]["name"]
        answer = client.post("/v2/models/cifar10/infer", json={"inputs": [tensor | {"name": name}]})
        assert answer.status_code == client.post("/explain", content=cat).status_code == 200
    by_trace: dict[bytes, list[Span]] = {}
    for span in receiver.spans:
        by_trace.setdefault(span.trace_id, []).append(span)
    found = {of_request(spans).name: stages(spans) for spans in by_trace.values()}
    assert found == {
        "GET /v2/models/{model}": [],
        "POST /v2/models/{model}/infer": ["read", "queue", "inference"],
        "POST /explain": ["read", "decode", "queue", "inference"],
    }


class Broken(Session):
    def run(self, images: np.ndarray, maps: bool = False) -> Outputs:
        raise RuntimeError("broken")


@pytest.mark.parametrize(
    ("body", "session", "code", "status", "failed"),
    [
        (b"no image", None, "unsupported_media_type", 415, "classify"),
        (b"0" * 5000, None, "payload_too_large", 413, "read"),
        (None, Broken(), "unavailable", 503, "classify"),
    ],
    ids=["no image", "too large", "engine dies"],
)
def test_errors_are_marked_where_they_occurred(
    receiver: Receiver,
    serving: Serve,
    cat: bytes,
    body: bytes | None,
    session: Session | None,
    code: str,
    status: int,
    failed: str,
) -> None:
    with serving(session, max_file_bytes=4096) as client:
        assert client.post("/predict", content=body or cat).status_code == status
    spans = receiver.spans
    assert stages(spans)[-1] == failed
    of_stage = next(span for span in spans if span.name == failed)
    assert (of_stage.status.code, attributes(of_stage.attributes)["error.type"]) == (Status.STATUS_CODE_ERROR, code)
    whole = of_request(spans)
    found = attributes(whole.attributes)
    assert (found["classifier.outcome"], found["http.response.status_code"]) == (code, status)
    # A client's own error is none of the server's: OpenTelemetry's conventions leave its status unset.
    assert whole.status.code == (Status.STATUS_CODE_ERROR if status >= 500 else Status.STATUS_CODE_UNSET)


def test_a_request_that_is_refused_before_routing_has_its_route(
    receiver: Receiver, serving: Serve, cat: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_METRICS_EXPORTER", "none")
    with serving(queue_images=3) as client, client.app.state.service.places.reserve(3):  # type: ignore[attr-defined]
        assert client.post("/predict", content=cat).status_code == 429
    assert stages(receiver.spans) == []
    whole = of_request(receiver.spans)
    assert (whole.name, attributes(whole.attributes)["classifier.outcome"]) == ("POST /predict", "overloaded")


def test_long_addresses_are_cut(receiver: Receiver, serving: Serve) -> None:
    with serving() as client:
        client.get("/" + "x" * 5000, params={"q": "y" * 5000})
    found = attributes(of_request(receiver.spans).attributes)
    assert max(len(str(value)) for value in found.values()) == 1024


def test_the_metrics_are_those_of_the_prometheus_route(receiver: Receiver, serving: Serve, cat: bytes) -> None:
    with serving() as client:
        for _ in range(3):
            client.post("/predict", content=cat)
        text = client.get("/metrics").text
    metrics = receiver.last_metrics
    families = {family.name: family for family in text_string_to_metric_families(text)}
    labels = {
        attributes(point.attributes)["label"]: point.as_double for point in metrics["predictions"].sum.data_points
    }
    assert metrics["predictions"].sum.is_monotonic
    assert labels == {
        sample.labels["label"]: sample.value
        for sample in families["predictions"].samples
        if sample.name.endswith("_total")
    }
    (confidences,) = metrics["prediction_confidence"].histogram.data_points
    assert confidences.count == sum(confidences.bucket_counts) == 3
    assert len(confidences.bucket_counts) == len(confidences.explicit_bounds) + 1
    samples = {sample.labels.get("le"): sample.value for sample in families["prediction_confidence"].samples}
    assert list(np.cumsum(confidences.bucket_counts)) == [
        samples[bound] for bound in sorted((le for le in samples if le), key=float)
    ]
    assert not confidences.HasField("min")
    assert "prediction_drift" not in metrics  # NaN until there are enough answers
    assert metrics["model_info"].gauge.data_points[0].as_double == 1
    assert metrics["process.uptime"].gauge.data_points[0].as_double > 0
    duration = metrics["http.server.request.duration"].histogram.data_points
    assert {attributes(point.attributes)["http.route"]: point.count for point in duration}["/predict"] == 3


def test_a_collector_that_never_answers_does_not_hold_up_the_end(
    receiver: Receiver, serving: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline, "FLUSH_SECONDS", 0.05)
    receiver.answering.clear()
    with serving() as client:
        client.get("/model")
    assert any(thread.name == "telemetry-close" for thread in threading.enumerate())  # it still waits


@pytest.mark.parametrize(
    ("environment", "signals"),
    [
        ({}, ()),
        ({"OTEL_SERVICE_NAME": "photos", "OTEL_TRACES_SAMPLER": "always_on"}, ()),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://x"}, ("traces", "metrics")),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": " "}, ()),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://x", "OTEL_SDK_DISABLED": "True"}, ()),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://x", "OTEL_TRACES_EXPORTER": "none"}, ("metrics",)),
        ({"OTEL_EXPORTER_OTLP_METRICS_ENDPOINT": "http://x"}, ("metrics",)),
        ({"OTEL_TRACES_EXPORTER": "otlp", "OTEL_METRICS_EXPORTER": "none"}, ("traces",)),
    ],
    ids=json.dumps,
)
def test_an_exporter_or_an_endpoint_asks_for_a_signal(environment: dict[str, str], signals: tuple[str, ...]) -> None:
    assert tuple(asked_for(environment)) == signals


@pytest.mark.parametrize(
    ("variable", "value", "message"),
    [
        ("OTEL_TRACES_EXPORTER", "zipkin", "OTEL_TRACES_EXPORTER: no exporter for 'zipkin' is installed"),
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/json", "OTEL_EXPORTER_OTLP_PROTOCOL: no exporter for 'http/json'"),
        ("OTEL_EXPORTER_OTLP_METRICS_PROTOCOL", "grpc", "OTEL_EXPORTER_OTLP_METRICS_PROTOCOL: no exporter for 'grpc'"),
        ("OTEL_METRIC_EXPORT_INTERVAL", "-1", "OTEL_METRIC_EXPORT_INTERVAL: it must be milliseconds"),
        (
            "OTEL_EXPORTER_OTLP_ENDPOINT",
            "localhost:4318",
            "OTEL_EXPORTER_OTLP_ENDPOINT: it must be http:// or https://",
        ),
        ("OTEL_BSP_MAX_QUEUE_SIZE", "9" * 20, "OTEL_* cannot be used: Python int too large"),
        ("OTEL_PYTHON_EXPORTER_OTLP_HTTP_CREDENTIAL_PROVIDER", "none", "OTEL_* cannot be used: Requested component"),
        ("OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT", "many", "OTEL_* cannot be used: OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT must be"),
    ],
)
def test_what_cannot_be_done_is_said(monkeypatch: pytest.MonkeyPatch, variable: str, value: str, message: str) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv(variable, value)
    with pytest.raises(TelemetryError) as caught:
        create_app(Settings())
    assert message in str(caught.value)


def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.delitem(sys.modules, "app.telemetry.pipeline")
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
    with pytest.raises(
        TelemetryError, match=r"^OTEL_EXPORTER_OTLP_ENDPOINT asks for .* needs the extra 'otel' \(.*\)$"
    ):
        create_app(Settings())


def test_the_start_ends_with_one_line_if_it_cannot_be_done(
    loaded: tuple[Bundle, Session], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "zipkin")
    monkeypatch.setattr(command_line, "configure_logging", lambda *_: None)
    with pytest.raises(command_line.StartupError, match="^OTEL_TRACES_EXPORTER: no exporter for 'zipkin'"):
        command_line._serve(Settings(), [], {"cifar10": loaded})
    with pytest.raises(SystemExit, match="^error: OTEL_TRACES_EXPORTER: no exporter for 'zipkin'"):
        main.app  # noqa: B018  # what uvicorn imports


def test_each_worker_is_an_instance_of_its_own() -> None:
    one, other = (with_instance("service.instance.id=mine,deployment=test") for _ in range(2))
    assert re.fullmatch(r"deployment=test,service\.instance\.id=[0-9a-f-]{36}", one)
    assert one != other
    assert with_instance("").startswith("service.instance.id=")


def test_without_a_request_for_it_fastapi_records_nothing(client: TestClient) -> None:
    telemetry: Any = client.app._native_telemetry  # type: ignore[attr-defined]
    assert not telemetry.enabled()
