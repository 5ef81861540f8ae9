import pytest
from pydantic import ValidationError

from app.settings import Settings


def test_the_defaults_are_those_of_the_design() -> None:
    settings = Settings()
    assert settings.port == 8000
    assert settings.engine == "onnx"
    assert settings.max_batch_images == 8
    assert settings.queue_images == 256
    assert settings.deadline_seconds == 5
    assert settings.max_file_bytes == 10 * 2**20
    assert settings.max_request_bytes == 32 * 2**20
    assert settings.max_pixels == settings.max_inflight_pixels == 25_000_000
    assert settings.views == 1
    assert settings.api_keys == ()


def test_variables_have_no_prefix(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VIEWS", "3")
    monkeypatch.setenv("API_KEYS", "one, two,")
    monkeypatch.setenv("LOG_LEVEL", "INFO")
    settings = Settings()
    assert settings.views == 3
    assert [key.get_secret_value() for key in settings.api_keys] == ["one", "two"]
    assert settings.log_level == "info"


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("VIEWS", "2"),
        ("ENGINE", "tensorflow"),
        ("PORT", "70000"),
        ("INFERENCE_THREADS", "0"),
        ("QUEUE_IMAGES", "2"),
        ("DEADLINE_SECONDS", "0"),
        ("DEADLINE_SECONDS", "nan"),
        ("MAX_PIXELS", "many"),
        ("DRAIN_SECONDS", "-1"),
        ("LOG_LEVEL", "loud"),
        ("API_KEYS", "schlüssel"),
        ("API_KEYS", "good,two words"),
        ("TRUSTED_PROXIES", "nginx"),
        ("TRUSTED_PROXIES", "10.0.0.1/8"),
        ("TRUSTED_PROXIES", "*,10.0.0.1"),
        ("CORS_ORIGINS", "https://example.com/"),
        ("CORS_ORIGINS", "example.com"),
    ],
)
def test_a_wrong_value_is_refused(monkeypatch: pytest.MonkeyPatch, variable: str, value: str) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(ValidationError, match=variable.lower()):
        Settings()


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("TRUSTED_PROXIES", "*"),
        ("TRUSTED_PROXIES", "10.0.0.0/8, 127.0.0.1, ::1"),
        ("CORS_ORIGINS", "*"),
        ("CORS_ORIGINS", "https://example.com, http://localhost:3000"),
    ],
)
def test_addresses_and_origins(monkeypatch: pytest.MonkeyPatch, variable: str, value: str) -> None:
    monkeypatch.setenv(variable, value)
    assert getattr(Settings(), variable.lower()) == tuple(value.split(", "))


def test_keys_do_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("API_KEYS", "hush")
    assert "hush" not in repr(Settings())
    monkeypatch.setenv("API_KEYS", "hush hush")
    with pytest.raises(ValidationError) as refused:
        Settings()
    assert "hush" not in str(refused.value)
