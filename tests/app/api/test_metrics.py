from starlette.testclient import TestClient

from app.api.metrics import Metrics


def test_the_model_is_named_in_a_metric(client: TestClient) -> None:
    version = client.get("/model").json()["version"]
    assert f'model_info{{name="mobilenet_v2_cifar10",version="{version}"}} 1.0' in client.get("/metrics").text


def test_the_buckets_of_histograms_are_fixed() -> None:
    edges = {}
    for metric in Metrics().registry.collect():
        found = dict.fromkeys(sample.labels["le"] for sample in metric.samples if "le" in sample.labels)
        if found:
            edges[metric.name] = " ".join(found)
    assert edges == {
        "predict_stage_seconds": "0.001 0.0025 0.005 0.01 0.025 0.05 0.1 0.25 0.5 1.0 2.5 5.0 +Inf",
        "predict_batch_images": "1.0 2.0 3.0 4.0 6.0 8.0 16.0 32.0 64.0 +Inf",
        "prediction_confidence": "0.2 0.3 0.4 0.5 0.6 0.7 0.8 0.9 0.95 0.99 1.0 +Inf",
        "prediction_ood_score": "-2.0 -1.0 0.0 0.25 0.5 0.75 1.0 1.25 1.5 1.75 2.0 2.25 3.0 4.0 6.0 8.0 12.0 16.0 32.0"
        " +Inf",
    }


def test_the_queue_is_read_whenever_metrics_are_collected(client: TestClient) -> None:
    service = client.app.state.service  # type: ignore[attr-defined]
    with service.places.reserve(2):
        assert service.metrics.registry.get_sample_value("predict_queue_images") == 2
    assert service.metrics.registry.get_sample_value("predict_queue_images") == 0
