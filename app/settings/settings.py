"""All settings of the service: environment variables without a prefix, also read from `.env`.

An invalid value stops the start with one line that says what is allowed. So does a name that looks like a misspelt
setting, since a misspelt API_KEYS would open the service to everybody.
"""

import ipaddress
import logging
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeAlias

from dotenv.parser import parse_stream
from pydantic import (
    BeforeValidator,
    Field,
    PositiveFloat,
    PositiveInt,
    SecretStr,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_settings import (
    BaseSettings,
    DotEnvSettingsSource,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from ..cores import available_cores
from ..memory import memory_limit
from .spelling import misspelt

BUNDLE = "models/mobilenet_v2_cifar10"
ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
DEFAULT_MODEL = "cifar10"  # the name of the model in MODEL_DIR
FILES_SUFFIX = "_image"  # /v2 adds it to a model's name for a model that takes files
MEBIBYTE = 1024 * 1024
ENV_FILE = ".env"
GIBIBYTE = 1024 * MEBIBYTE
MAX_THREADS = 1024
MAX_WORKERS = 64
# Memory that WORKERS=auto counts on: what all take together, bodies included, and a worker with its decoding processes.
SHARED_BYTES, WORKER_BYTES = 400 * MEBIBYTE, 200 * MEBIBYTE

# .env's damaged lines are refused here; the library would pass over them with a warning.
logging.getLogger("dotenv.main").setLevel(logging.ERROR)


class SettingsError(ValueError):
    """The settings cannot be read, or one of their names is misspelt; the message is one line for the operator."""


def default_bundle() -> Path:
    """Where the wheel has installed the bundle; in a clone the current folder's, or the one beside the code."""
    package = Path(__file__).parents[1]
    places = package / BUNDLE, Path(BUNDLE), package.parent / BUNDLE
    return next((place for place in places if place.is_dir()), Path(BUNDLE))


def default_cache() -> Path:
    """Where the XDG Base Directory Specification keeps what can be fetched again."""
    return Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")) / "cifar10-classifier"


def _place(value: object) -> object:
    return Path(value) if isinstance(value, str) and not ADDRESS.match(value) else value


ModelPlace: TypeAlias = Annotated[Path | str, BeforeValidator(_place)]
"""A bundle's folder, or its address, such as hf://owner/name@revision, as a string: a path would lose a slash."""


def default_threads() -> int:
    return min(available_cores(), MAX_THREADS)


def most_workers() -> int:
    """One a core, but no more than the memory limit has room for, and at least one."""
    room = (memory_limit() - SHARED_BYTES) // WORKER_BYTES
    return max(1, int(min(available_cores(), MAX_WORKERS, room)))


def why_one_process(settings: Mapping[str, Any]) -> str | None:
    """Why several processes cannot serve with these settings; None if they can."""
    if (settings.get("engine"), settings.get("execution_provider")) != ("onnx", "cpu"):
        return "several processes compute with ENGINE=onnx and EXECUTION_PROVIDER=cpu only"
    places = [settings.get("model_dir"), *settings.get("model_dirs", {}).values()]
    if any(isinstance(place, str) for place in places):
        return "several processes serve bundles in folders only, not at addresses"
    if settings.get("grpc_port") is not None:
        return "one process alone serves GRPC_PORT: set one of the two"
    return None


LogFormat = Literal["auto", "json", "text"]


class Settings(BaseSettings):
    """Field names are the variables' names in lower case."""

    model_config = SettingsConfigDict(
        env_file=ENV_FILE,
        env_ignore_empty=True,  # compose files pass on what is not set as an empty text
        env_file_encoding="utf-8-sig",  # some editors begin a file with a byte order mark
        extra="ignore",
        frozen=True,
        hide_input_in_errors=True,
    )

    model_dir: ModelPlace = Field(
        default_factory=default_bundle,
        description="The bundle's folder, or its address: hf://, https://, s3:// or gs://, with the extra remote.",
    )
    model_dirs: Annotated[dict[str, ModelPlace], NoDecode] = Field(
        {}, description="Comma-separated name=folder pairs: further bundles, served at once."
    )
    model_cache: Path = Field(default_factory=default_cache, description="The folder for bundles that are fetched.")
    model_digest: Annotated[tuple[str, ...], NoDecode] = Field(
        (), description="Comma-separated digests of the manifests that may be served; none: all."
    )
    engine: Literal["onnx", "torch"] = Field("onnx", description="onnx, or torch, which needs the extra of that name.")
    execution_provider: Literal["cpu", "cuda", "tensorrt", "openvino", "coreml"] = Field(
        "cpu", description="What ONNX Runtime computes with; others than cpu need a build of it that has them."
    )
    host: str = Field("127.0.0.1", description="The address to serve at; :: serves IPv4, too.")
    port: int = Field(8000, ge=0, le=65535, description="0: any that is free.")
    uds: Path | None = Field(None, description="The file of a Unix socket to serve at, instead of HOST and PORT.")
    grpc_port: int | None = Field(
        None,
        ge=0,
        le=65535,
        description="The port of HOST for gRPC, which needs the extra of that name; none: no gRPC.",
    )
    workers: int = Field(
        1, ge=1, le=MAX_WORKERS, description="Processes that serve as one; auto: one a core, if several can."
    )

    inference_threads: PositiveInt = Field(
        default_factory=default_threads, le=MAX_THREADS, description="By default as many as there are cores."
    )
    max_batch_images: PositiveInt = Field(8, le=1024, description="Images a worker takes at once when several wait.")
    queue_images: int = Field(256, ge=3, le=1_000_000, description="Images under way at once; more are answered 429.")
    deadline_seconds: PositiveFloat = Field(5, le=3600, description="Reading, waiting and computing together.")
    grace_seconds: float = Field(2, ge=0, le=3600, description="After SIGTERM, for balancers to look elsewhere.")
    drain_seconds: float = Field(10, ge=0, le=3600, description="After SIGTERM, for requests under way.")

    max_file_bytes: PositiveInt = Field(10 * MEBIBYTE, le=GIBIBYTE, description="Of one image.")
    max_request_bytes: PositiveInt = Field(32 * MEBIBYTE, le=GIBIBYTE, description="Of a request's body.")
    # Up to where Pillow does not warn of bombs.
    max_pixels: int = Field(25_000_000, ge=1, le=89_478_485, description="Width times height of one image.")
    max_decode_seconds: float = Field(2, ge=0.1, le=60, description="CPU time that decoding one image may take.")
    max_inflight_body_bytes: PositiveInt = Field(
        64 * MEBIBYTE, le=1024 * GIBIBYTE, description="Of all bodies being read or decoded."
    )
    min_body_bytes_per_second: PositiveInt = Field(1024, le=GIBIBYTE, description="Slower bodies are answered 408.")
    max_inflight_pixels: PositiveInt = Field(25_000_000, le=10**12, description="Of all images being decoded.")
    drift_window_images: PositiveInt = Field(
        1000, le=1_000_000, description="Answers that the drift gauge looks back on."
    )
    views: Literal[1, 3] = Field(1, description="1, or 3: as many crops of a photo, whose logits are averaged.")

    api_keys: Annotated[tuple[SecretStr, ...], NoDecode] = Field((), description="Comma-separated; none: open to all.")
    admin_keys: Annotated[tuple[SecretStr, ...], NoDecode] = Field(
        (), description="Comma-separated; a request with one may have a model loaded anew; none: nobody's."
    )
    metrics_key: SecretStr | None = Field(
        None, description="GET /metrics then needs it, or a key of API_KEYS or ADMIN_KEYS; it opens nothing else."
    )
    trusted_proxies: Annotated[tuple[str, ...], NoDecode] = Field(
        (), description="Comma-separated addresses and networks whose X-Forwarded headers count; none: nobody's."
    )
    root_path: str = Field("", description="Prefix that a proxy serves this under.")
    cors_origins: Annotated[tuple[str, ...], NoDecode] = Field((), description="Comma-separated; none: no CORS.")
    feedback_dir: Path | None = Field(None, description="A folder for feedback; none: no feedback.")
    feedback_sample: float = Field(0.1, ge=0, le=1, description="Of unsure images, the share that is kept.")
    feedback_days: PositiveFloat = Field(30, le=3650, description="For which such a copy is kept.")
    feedback_max_bytes: PositiveInt = Field(100 * MEBIBYTE, le=1024 * GIBIBYTE, description="Of all such copies.")
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="debug, info, warning or error: lines below it are left out."
    )
    log_format: LogFormat = Field("auto", description="json, text, or auto: text in a terminal, else JSON.")

    @field_validator("api_keys", "admin_keys", "cors_origins", "trusted_proxies", "model_digest", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        if not isinstance(value, str):
            return value
        parts = tuple(part.strip() for part in value.split(",") if part.strip())
        if value and not parts:
            raise ValueError("it names nothing: list values with commas in between, or leave the variable out")
        return parts

    @field_validator("model_dirs", mode="before")
    @classmethod
    def _pairs(cls, value: object) -> object:
        if not isinstance(value, str):
            return value
        pairs = [[part.strip() for part in pair.partition("=")] for pair in value.split(",") if pair.strip()]
        if (value and not pairs) or not all(folder for _, _, folder in pairs):
            raise ValueError("it must be name=folder pairs with commas in between")
        if len({name for name, _, _ in pairs}) < len(pairs):
            raise ValueError("each name must be another")
        return {name: folder for name, _, folder in pairs}

    @field_validator("model_dirs")
    @classmethod
    def _named(cls, folders: dict[str, Path | str]) -> dict[str, Path | str]:
        for name in folders:
            if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,39}", name) or name.endswith(FILES_SUFFIX):
                raise ValueError(
                    f"a name has up to 40 letters, digits, dots, - and _, and does not end with {FILES_SUFFIX}"
                )
            if name in (DEFAULT_MODEL, "stats"):  # /v2/models/stats is a route
                raise ValueError(f"the name {name} is taken")
        return folders

    @field_validator("model_digest")
    @classmethod
    def _digests(cls, digests: tuple[str, ...]) -> tuple[str, ...]:
        if not all(re.fullmatch("[0-9a-f]{64}", digest) for digest in digests):
            raise ValueError("a digest is 64 hexadecimal digits, in lower case, as in bundle.json")
        return digests

    @field_validator("api_keys", "admin_keys")
    @classmethod
    def _sendable(cls, keys: tuple[SecretStr, ...]) -> tuple[SecretStr, ...]:
        for key in keys:
            _check_sendable(key)
        return keys

    @field_validator("metrics_key")
    @classmethod
    def _sendable_too(cls, key: SecretStr | None) -> SecretStr | None:
        if key:
            _check_sendable(key)
        return key

    @field_validator("trusted_proxies")
    @classmethod
    def _networks(cls, proxies: tuple[str, ...]) -> tuple[str, ...]:
        for proxy in proxies if proxies != ("*",) else ():
            ipaddress.ip_network(proxy)  # its error says what is wrong
        return proxies

    @field_validator("cors_origins")
    @classmethod
    def _origins(cls, origins: tuple[str, ...]) -> tuple[str, ...]:
        for origin in origins:
            if origin != "*" and not re.fullmatch(r"https?://[^/\s?#]+", origin):
                raise ValueError(f"{origin[:80]!r} is no origin: scheme and host, no slash at the end")
        return origins

    @model_validator(mode="after")
    def _keys_differ(self) -> Self:
        if set(self.api_keys) & set(self.admin_keys):
            raise ValueError("a key is in API_KEYS and in ADMIN_KEYS: a key that loads models must be another")
        if self.metrics_key in self.admin_keys:
            raise ValueError("METRICS_KEY is one of ADMIN_KEYS: a key that loads models must be another")
        return self

    @model_validator(mode="after")
    def _ports_differ(self) -> Self:
        if self.uds is None and self.port and self.port == self.grpc_port:
            raise ValueError("GRPC_PORT is PORT: each of the two needs a port of its own")
        return self

    @field_validator("workers", mode="before")
    @classmethod
    def _one_a_core(cls, value: object, info: ValidationInfo) -> object:
        if value == "auto":
            return 1 if why_one_process(info.data) else most_workers()
        if isinstance(value, str) and not value.isdecimal():
            raise ValueError(f"it must be auto, or a number from 1 to {MAX_WORKERS}")
        return value

    @model_validator(mode="after")
    def _provider_of_onnx_runtime(self) -> Self:
        if self.engine != "onnx" and self.execution_provider != "cpu":
            raise ValueError("EXECUTION_PROVIDER: it is for ENGINE=onnx; PyTorch computes on the processor here")
        return self

    @model_validator(mode="after")
    def _possible_with_several_workers(self) -> Self:
        if self.workers > 1 and (reason := why_one_process(dict(self))):
            raise ValueError(f"WORKERS: {reason}")
        return self

    @field_validator("root_path")
    @classmethod
    def _prefix(cls, path: str) -> str:
        if not re.fullmatch(r"(/[A-Za-z0-9._~-]+)*", path):
            raise ValueError(
                "it begins with a slash and ends with none, as /images; it has letters, digits, ., _, ~ and -"
            )
        return path

    @field_validator("views", mode="before")
    @classmethod
    def _number(cls, value: object) -> object:
        return int(value) if isinstance(value, str) and value.isdecimal() else value  # a literal takes no "3"

    @field_validator("log_level", mode="before")
    @classmethod
    def _lower(cls, value: object) -> object:
        return value.lower() if isinstance(value, str) else value

    @property
    def folders(self) -> dict[str, Path | str]:
        """The folders and addresses of all models by name, the default model's first."""
        return {DEFAULT_MODEL: self.model_dir, **self.model_dirs}

    def __init__(self, **values: Any) -> None:
        """`values` win over the environment. Raises SettingsError, or pydantic's ValidationError for invalid values."""
        try:
            super().__init__(**values)
        except UnicodeError as error:
            raise SettingsError(f"{ENV_FILE}: not UTF-8 ({error.__class__.__name__})") from None
        except OSError as error:
            raise SettingsError(f"cannot read {ENV_FILE}: {error.strerror}") from None

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Raises SettingsError for a variable that looks like a misspelt setting, and for a damaged line of .env."""
        known = [name.upper() for name in settings_cls.model_fields]
        assert isinstance(dotenv_settings, DotEnvSettingsSource)
        file = dotenv_settings.env_file
        names = {*os.environ, *(_names_in(Path(file), known) if isinstance(file, str | Path) else ())}
        for name in sorted(names):
            if meant := misspelt(name, known):
                raise SettingsError(f"{name[:80]!a} looks like the setting {meant}: rename it, or unset it")
        return init_settings, env_settings, dotenv_settings, file_secret_settings


def _check_sendable(key: SecretStr) -> None:
    """Raises ValueError."""
    if not re.fullmatch(r"[!-~]+", key.get_secret_value()):
        raise ValueError("a key may hold visible ASCII characters only: it travels in a header")


def _names_in(path: Path, known: Sequence[str]) -> Iterator[str]:
    """The names in a file of settings. Raises SettingsError for a line that would be passed over without a word."""
    if not path.is_file():
        return
    with path.open(encoding="utf-8-sig") as file:
        for binding in parse_stream(file):
            name = binding.key or ""
            if binding.error or (binding.value is None and name.upper() in known):
                text = binding.original.string
                line = binding.original.line + text[: len(text) - len(text.lstrip())].count("\n")
                raise SettingsError(f"{path}, line {line}: it must be NAME=value, with quotes that end")
            yield name
