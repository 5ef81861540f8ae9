import builtins
import errno
import math
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from app.settings import MAX_WORKERS, Settings, SettingsError
from app.settings.command_help import variables
from app.settings.spelling import edit_distance, may_be_near, misspelt


def test_defaults() -> None:
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


def test_an_empty_variable_counts_as_not_set(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else HOST= would open the service to all networks."""
    expected = Settings()
    for name in Settings.model_fields:
        monkeypatch.setenv(name.upper(), "")
    assert Settings() == expected
    assert expected.host == "127.0.0.1"


@pytest.mark.parametrize("path", ["images", "/images/", "/", "/a b"])
def test_a_prefix_says_what_it_must_be(path: str) -> None:
    with pytest.raises(ValidationError, match="begins with a slash and ends with none"):
        Settings(root_path=path)


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
        ("API_KEYS", ","),
        ("API_KEYS", " "),
        ("API_KEYS", " , ,, "),
        ("TRUSTED_PROXIES", ","),
        ("CORS_ORIGINS", ",,"),
        ("ADMIN_KEYS", "two words"),
        ("METRICS_KEY", "schlüssel"),
        ("MODEL_DIGEST", "sha256:" + "0" * 64),
        ("MODEL_DIGEST", "F" * 64),
        ("MODEL_DIRS", "models/small"),
        ("MODEL_DIRS", "small="),
        ("MODEL_DIRS", "=models/small"),
        ("MODEL_DIRS", "small=a,small=b"),
        ("MODEL_DIRS", "cifar10=a"),
        ("MODEL_DIRS", "stats=a"),
        ("MODEL_DIRS", "a_image=a"),
        ("MODEL_DIRS", "a/b=a"),
        ("MODEL_DIRS", ","),
        ("WORKERS", "0"),
        ("WORKERS", "65"),
        ("WORKERS", "many"),
        ("WORKERS", "-1"),
        ("WORKERS", "1.5"),
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
def test_addresses_and_origins_are_comma_separated(monkeypatch: pytest.MonkeyPatch, variable: str, value: str) -> None:
    monkeypatch.setenv(variable, value)
    assert getattr(Settings(), variable.lower()) == tuple(value.split(", "))


@pytest.mark.parametrize(
    ("cores", "mebibytes", "workers"),
    [
        (1, math.inf, 1),
        (3, math.inf, 3),
        (500, math.inf, MAX_WORKERS),
        (2, 800, 2),  # as in docker-compose.yml
        (8, 800, 2),
        (8, 4096, 8),
        (8, 100, 1),
    ],
)
def test_auto_is_a_worker_for_each_core_as_far_as_there_is_memory(
    monkeypatch: pytest.MonkeyPatch, cores: int, mebibytes: float, workers: int
) -> None:
    monkeypatch.setattr("app.settings.settings.available_cores", lambda: cores)
    monkeypatch.setattr("app.settings.settings.memory_limit", lambda: mebibytes * 2**20)
    monkeypatch.setenv("WORKERS", "auto")
    assert Settings().workers == workers


@pytest.mark.parametrize(
    ("variable", "value", "reason"),
    [
        ("ENGINE", "torch", "WORKERS: several processes compute with ENGINE=onnx and"),
        ("GRPC_PORT", "9000", "WORKERS: one process alone serves GRPC_PORT"),
        ("MODEL_DIR", "hf://owner/name", "WORKERS: several processes serve bundles in folders only"),
        ("EXECUTION_PROVIDER", "cuda", "WORKERS: several processes compute with ENGINE=onnx and"),
    ],
)
def test_what_one_process_does_is_refused_with_several(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str, reason: str
) -> None:
    monkeypatch.setenv("WORKERS", "2")
    assert Settings().workers == 2
    monkeypatch.setenv(variable, value)
    with pytest.raises(ValidationError, match=reason):
        Settings()
    monkeypatch.setenv("WORKERS", "auto")
    monkeypatch.setattr("app.settings.settings.most_workers", lambda: 2)
    assert Settings().workers == 1
    monkeypatch.delenv(variable)
    assert Settings().workers == 2


def test_a_provider_that_nothing_would_compute_with_is_refused() -> None:
    with pytest.raises(ValidationError, match="EXECUTION_PROVIDER: it is for ENGINE=onnx"):
        Settings(engine="torch", execution_provider="cuda")


def test_models_are_name_and_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODEL_DIR", "models/a")
    monkeypatch.setenv("MODEL_DIRS", " small = models/b, other-1.0=/c=d,")
    folders = {"cifar10": Path("models/a"), "small": Path("models/b"), "other-1.0": Path("/c=d")}
    assert Settings().folders == folders
    assert list(Settings().folders) == list(folders)
    monkeypatch.setenv("MODEL_DIRS", "")
    assert list(Settings().folders) == ["cifar10"]


def test_a_model_may_have_an_address(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODEL_DIR", "hf://owner/name@v1")
    monkeypatch.setenv("MODEL_DIRS", "small=https://host/small.zip?key=a")
    assert Settings().folders == {"cifar10": "hf://owner/name@v1", "small": "https://host/small.zip?key=a"}
    monkeypatch.setenv("XDG_CACHE_HOME", "/cached")
    assert Settings().model_cache == Path("/cached/cifar10-classifier")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/home/me")
    assert Settings().model_cache == Path("/home/me/.cache/cifar10-classifier")


def test_a_key_that_loads_models_is_no_key_of_other_requests(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("API_KEYS", "one,hush")
    monkeypatch.setenv("ADMIN_KEYS", "hush")
    with pytest.raises(ValidationError, match="a key is in API_KEYS and in ADMIN_KEYS") as refused:
        Settings()
    assert "hush" not in str(refused.value)


def test_a_scraper_s_key_loads_no_models(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("METRICS_KEY", "")
    assert Settings().metrics_key is None
    monkeypatch.setenv("METRICS_KEY", "hush")
    monkeypatch.setenv("API_KEYS", "hush")  # as scrapers were told before there was METRICS_KEY
    assert Settings().metrics_key == Settings().api_keys[0]
    monkeypatch.setenv("API_KEYS", "")
    monkeypatch.setenv("ADMIN_KEYS", "hush")
    with pytest.raises(ValidationError, match="METRICS_KEY is one of ADMIN_KEYS") as refused:
        Settings()
    assert "hush" not in str(refused.value)


def test_each_protocol_needs_a_port_of_its_own(tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match="GRPC_PORT is PORT"):
        Settings(port=8001, grpc_port=8001)
    for free in ({"port": 0, "grpc_port": 0}, {"port": 8001, "grpc_port": 8001, "uds": tmp_path / "socket"}):
        Settings(**free)


def test_keys_are_not_printed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("API_KEYS", "hush")
    assert "hush" not in repr(Settings())
    monkeypatch.setenv("API_KEYS", "hush hush")
    with pytest.raises(ValidationError) as refused:
        Settings()
    assert "hush" not in str(refused.value)


def test_help_lists_every_setting_with_its_default() -> None:
    shown = dict(variables())
    assert set(shown) == {*(name.upper() for name in Settings.model_fields), "OTEL_*"}
    assert all(meaning.endswith((".", "]")) for meaning in shown.values())
    assert shown["QUEUE_IMAGES"].endswith("429.  [default: 256]")
    assert "default" not in shown["API_KEYS"]


def numbers() -> list[str]:
    return [name for name, field in Settings.model_fields.items() if field.annotation in (int, float)]


@pytest.mark.parametrize("name", numbers())
@pytest.mark.parametrize(
    "value", ["-1", "1e30", "9" * 400, "inf", "-inf", "nan", " ", "1,5", "0x10", "\u0661\u0660\u0660\u0660x"]
)
def test_every_number_has_bounds(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(name.upper(), value)
    with pytest.raises(ValidationError) as refused:
        Settings()
    assert [item["loc"] for item in refused.value.errors()] == [(name,)]


def test_the_tests_cover_all_numbers() -> None:
    assert len(numbers()) == 19


@pytest.mark.parametrize(("value", "allowed"), [("1024", True), ("1025", False), ("100000", False)])
def test_threads_have_a_limit(monkeypatch: pytest.MonkeyPatch, value: str, allowed: bool) -> None:
    monkeypatch.setenv("INFERENCE_THREADS", value)
    with nullcontext() if allowed else pytest.raises(ValidationError, match="less than or equal to 1024"):
        assert Settings().inference_threads == 1024


def test_more_cores_than_threads_are_allowed_do_not_stop_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.settings.settings.available_cores", lambda: 4096)
    assert Settings().inference_threads == 1024


MISSPELT = {
    "API_KEYS": (
        *(
            "API_KEY",
            "APIKEYS",
            "API_KEYSS",
            "API_KESY",
            "API-KEYS",
            "API.KEYS",
            "apikey",
            "Api_Key",
            "AIP_KEYS",
            "_API_KEYS",
        ),
        *("APP_API_KEYS", "CIFAR10_API_KEYS", "SERVICE_API_KEYS", "API_KEYS_FILE", "APP_API_KEYS_FILE", "API_KEYZ"),
        *("API_KEYS ", "\ufeffAPI_KEYS", "API__KEYS", "_API_KEYS"),
    ),
    "TRUSTED_PROXIES": ("TRUSTED_PROXY", "TRUSTED_PROXYS", "TRUSTD_PROXIES", "TRUSTED_PROXEIS"),
    "CORS_ORIGINS": ("CORS_ORIGIN", "CORS_ORGINS", "APP_CORS_ORIGINS"),
    "MODEL_DIR": ("MODELS_DIR", "MODELDIR", "CLASSIFIER_MODEL_DIR"),
    "LOG_LEVEL": ("LOGLEVEL", "LOG_LEVELS", "log_levl"),
    "QUEUE_IMAGES": ("QUEUE_IMAGE", "QUEU_IMAGE"),
    "INFERENCE_THREADS": ("INFERENCE_THREAD", "INFERENCE_TREADS"),
    "DEADLINE_SECONDS": ("DEADLINE_SECOND", "DEADLINES_SECONDS"),
    "ENGINE": ("ENGINES", "ENGIEN"),
    "VIEWS": ("VIEW", "VEIWS"),
    "HOST": ("HOSTS", "HSOT"),
    "PORT": ("PORTS", "PROT"),
}


@pytest.mark.parametrize(("name", "meant"), [(name, meant) for meant, names in MISSPELT.items() for name in names])
def test_a_misspelt_name_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str, meant: str) -> None:
    monkeypatch.setenv(name, "x")
    with pytest.raises(SettingsError, match=f"looks like the setting {meant}: ") as refused:
        Settings()
    assert refused.value.args[0].isascii()


# As containers, Kubernetes, shells, desktops, CI and other programs set them.
ORDINARY = (
    *("HOSTNAME", "HOSTTYPE", "HOSTALIASES", "HOME", "PATH", "PWD", "OLDPWD", "SHLVL", "SHELL", "LOGNAME", "USER"),
    *("COLUMNS", "LINES", "TERM", "LANG", "LC_ALL", "TZ", "TMPDIR", "MAIL", "DISPLAY", "EDITOR", "PAGER", "VISUAL"),
    *("VIRTUAL_ENV", "PYTHONPATH", "PYTHONUNBUFFERED", "LD_LIBRARY_PATH", "SSH_CONNECTION", "ROOTPATH", "CI"),
    *("DEBUG", "MODEL", "KUBERNETES_SERVICE_HOST", "KUBERNETES_SERVICE_PORT", "KUBERNETES_SERVICE_PORT_HTTPS"),
    *("KUBERNETES_PORT", "KUBERNETES_PORT_443_TCP", "KUBERNETES_PORT_443_TCP_ADDR", "KUBERNETES_PORT_443_TCP_PORT"),
    *("KUBERNETES_PORT_443_TCP_PROTO", "API_PORT", "API_SERVICE_HOST", "API_SERVICE_PORT", "API_PORT_8000_TCP"),
    *("APP_PORT", "APP_HOST", "APP_SERVICE_HOST", "APP_SERVICE_PORT", "SERVICE_PORT", "SERVICE_HOST"),
    *("CLASSIFIER_PORT", "CLASSIFIER_SERVICE_HOST", "CLASSIFIER_PORT_8000_TCP_ADDR", "CIFAR10_PORT"),
    *("CIFAR10_SERVICE_PORT", "MODEL_PORT", "ENGINE_PORT", "ENGINE_HOST", "VIEWS_PORT", "DB_HOST", "DB_PORT"),
    *("REDIS_PORT", "OPENAI_API_KEY", "ANTHROPIC_API_KEY", "HF_HOME", "CIFAR10_DIR", "WEB_CONCURRENCY"),
    *("UVICORN_HOST", "UVICORN_PORT", "UVICORN_ROOT_PATH", "UVICORN_LOG_LEVEL", "RAY_ADDRESS", "OMP_NUM_THREADS"),
    *("ORT_LOG_LEVEL", "ORT_DISABLE_TELEMETRY", "GRAFANA_PORT", "METRICS_KEY", "MEMORY", "CPUS"),
    *("STOP_GRACE_PERIOD", "EXTRAS", "GITHUB_TOKEN", "DOCKER_HOST", "HOST_IP", "POD_IP", "NODE_NAME"),
    *("SSL_CERT_FILE", "LOG_FILE", "LOG_FORMAT", "LOG_DIR", "PORT_FILE", "HOST_UID", "ROOT_DIR", "ROOT_URL"),
    *("MODEL_NAME", "MODEL_PATH", "MAX_WORKERS", "http_proxy", "https_proxy", "no_proxy", "HTTP_PROXY", "_"),
    *("LS_COLORS", "XDG_RUNTIME_DIR", "POSTGRES_HOST", "NVIDIA_VISIBLE_DEVICES", "COST", "POST", "SORT"),
)


@pytest.mark.parametrize("name", ORDINARY)
def test_ordinary_variables_are_left_alone(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    known = [field.upper() for field in Settings.model_fields]
    assert misspelt(name, known) is None


def test_no_setting_is_a_misspelling_of_another(monkeypatch: pytest.MonkeyPatch) -> None:
    known = [field.upper() for field in Settings.model_fields]
    for name in known:
        assert misspelt(name, known) is misspelt(name.lower(), known) is None
        pair = {"MODEL_DIR", "MODEL_DIRS"} if name.startswith("MODEL_DIR") else {name}
        assert misspelt(name, [other for other in known if other not in pair]) is None


@pytest.mark.parametrize(
    ("one", "other", "edits"),
    [
        ("", "", 0),
        ("", "abc", 3),
        ("abc", "abc", 0),
        ("abc", "acb", 1),
        ("abc", "ab", 1),
        ("abc", "axc", 1),
        ("ab", "ba", 1),
    ],
)
def test_the_edit_distance_counts_edits(one: str, other: str, edits: int) -> None:
    assert edit_distance(one, other) == edit_distance(other, one) == edits
    assert may_be_near(one, other, edits) and may_be_near(other, one, edits)


def test_names_that_are_far_apart_are_not_compared_letter_by_letter() -> None:
    assert not may_be_near("HOST", "HOSTED", 1)  # by their length
    assert not may_be_near("MODELDIR", "MAINPAGE", 2)  # by their letters


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(Settings.model_config, "env_file", ".env")
    return tmp_path / ".env"


def test_settings_are_read_from_env_files_and_the_environment_overrides_them(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file.write_text("# ours\n\nVIEWS=3\nexport PORT=1 # one\nlog_level='debug'\nMETRICS_KEY=x\nEMPTY\n")
    monkeypatch.setenv("PORT", "2")
    settings = Settings()
    assert (settings.views, settings.port, settings.log_level) == (3, 2, "debug")


def test_a_byte_order_mark_is_ignored(file: Path) -> None:
    file.write_bytes(b"\xef\xbb\xbfAPI_KEYS=secret\n")
    assert len(Settings().api_keys) == 1


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"API_KEY=x\n", "'API_KEY' looks like the setting API_KEYS"),
        (b"VIEWS=3\nexport apikeys=x", "'apikeys' looks like the setting API_KEYS"),
        (b'API_KEYS="unended\nPORT=1\n', r"\.env, line 1: "),
        (b"\n\nVIEWS=3\n\nAPI_KEYS='a\n", r"\.env, line 5: "),
        (b"VIEWS=3\nAPI_KEYS\n", r"\.env, line 2: "),
        (b"API_KEYS: secret\n", r"\.env, line 1: "),
        (b"= secret\n", r"\.env, line 1: "),
        (b"API_KEYS=schl\xfcssel\n", r"\.env: not UTF-8"),
        ("API_KEYS=x\n".encode("utf-16"), r"\.env: not UTF-8"),
    ],
)
def test_an_invalid_env_file_is_refused(file: Path, content: bytes, message: str) -> None:
    file.write_bytes(content)
    with pytest.raises(SettingsError, match=message) as refused:
        Settings()
    assert "\n" not in str(refused.value)


def test_an_unreadable_env_file_is_refused(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file.write_text("API_KEYS=x\n")
    opened = builtins.open

    def refuse(path: object, *rest: Any, **more: Any) -> Any:  # root may read everything
        if str(path).endswith(".env"):
            raise PermissionError(errno.EACCES, "Permission denied")
        return opened(path, *rest, **more)  # type: ignore[call-overload]

    monkeypatch.setattr("builtins.open", refuse)
    with pytest.raises(SettingsError, match=r"cannot read \.env: Permission denied"):
        Settings()
