import pytest

from app.api.open_inference.models import served_models
from app.api.open_inference.statistics import Statistics
from app.bundle.manifest import DataSet
from app.bundle.reader import Bundle
from app.inference.sessions import Session
from app.settings import Settings


def test_a_model_takes_no_more_images_than_the_queue_has_places(loaded: tuple[Bundle, Session]) -> None:
    for settings, pixels, files in (
        (Settings(), 32, 32),
        (Settings(views=3), 32, 32),
        (Settings(queue_images=20), 20, 20),
        (Settings(queue_images=20, views=3), 20, 6),
        (Settings(queue_images=3, views=3), 3, 1),
    ):
        models = served_models(settings, loaded[0].manifest)
        assert models["cifar10"].max_batch_size == pixels
        assert models["cifar10_image"].max_batch_size == files


@pytest.mark.parametrize(
    ("data_set", "named"),
    [
        ("digits", "digits"),
        ("small", "cifar10"),
        ("stats", "cifar10"),
        ("small_image", "cifar10"),
        ("cifar10", "cifar10"),
    ],
)
def test_the_default_model_takes_no_name_of_another_model_or_route(
    loaded: tuple[Bundle, Session], data_set: str, named: str
) -> None:
    settings = Settings(model_dirs={"small": "models/mobilenet_v2_cifar10_small"})
    manifest = loaded[0].manifest.model_copy(update={"data_set": DataSet(name=data_set, title="Other")})
    assert list(served_models(settings, manifest)) == [named, f"{named}_image"]
    assert list(served_models(settings, manifest, "small")) == ["small", "small_image"]


def test_the_runtime_is_named(loaded: tuple[Bundle, Session]) -> None:
    for engine, platform, backend in (
        ("onnx", "onnxruntime_onnx", "onnxruntime"),
        ("torch", "pytorch_safetensors", "pytorch"),
    ):
        for model in served_models(Settings(engine=engine), loaded[0].manifest).values():
            assert model.metadata()["platform"] == model.config()["platform"] == platform
            assert model.config()["backend"] == backend


def test_statistics_add_up() -> None:
    statistics = Statistics()
    empty = statistics.document()
    assert empty["inference_count"] == empty["execution_count"] == empty["last_inference"] == 0
    assert all(entry == {"count": 0, "ns": 0} for entry in empty["inference_stats"].values())
    assert empty["batch_stats"] == []

    seconds = {"success": 1.0, "queue": 0.25, "compute_input": 0.125, "compute_infer": 0.5, "compute_output": 0.0625}
    statistics.succeed(8, seconds, now=1000.5)
    statistics.succeed(1, seconds, now=1001.5)
    statistics.succeed(8, seconds, now=1002.5)
    statistics.fail(0.5)
    document = statistics.document()
    assert (document["inference_count"], document["execution_count"]) == (17, 3)
    assert document["last_inference"] == 1_002_500
    for name, spent in seconds.items():
        assert document["inference_stats"][name] == {"count": 3, "ns": 3 * spent * 1e9}
    assert document["inference_stats"]["fail"] == {"count": 1, "ns": 500_000_000}
    assert document["inference_stats"]["cache_hit"] == {"count": 0, "ns": 0}
    one, eight = document["batch_stats"]
    assert (one["batch_size"], eight["batch_size"]) == (1, 8)
    assert one["compute_infer"] == pytest.approx({"count": 1, "ns": 500_000_000})
    assert eight["compute_input"] == pytest.approx({"count": 2, "ns": 250_000_000})
