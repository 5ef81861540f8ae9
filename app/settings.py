"""Every knob of the service: environment variables without a prefix, also read from `.env`.

A value that makes no sense stops the service at startup, with one line that says what is allowed.
"""

import ipaddress
import re
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, PositiveFloat, PositiveInt, SecretStr, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from .cores import available_cores

MEBIBYTE = 1024 * 1024


class Settings(BaseSettings):
    """Field names are the variables' names in lower case."""

    model_config = SettingsConfigDict(env_file=".env", extra="ignore", frozen=True, hide_input_in_errors=True)

    model_dir: Path = Field(Path("models/mobilenet_v2_cifar10"), description="The bundle's folder.")
    engine: Literal["onnx", "torch"] = Field("onnx", description="torch needs the extra of that name.")
    host: str = "127.0.0.1"
    port: int = Field(8000, ge=0, le=65535)

    inference_threads: PositiveInt = Field(default_factory=available_cores, description="Worker threads.")
    max_batch_images: PositiveInt = Field(8, description="Images a worker takes at once when several wait.")
    queue_images: int = Field(256, ge=3, description="Images under way at once; more are answered 429.")
    deadline_seconds: PositiveFloat = Field(5, le=3600, description="Reading, waiting and computing together.")
    grace_seconds: float = Field(2, ge=0, le=3600, description="After SIGTERM, for balancers to look elsewhere.")
    drain_seconds: float = Field(10, ge=0, le=3600, description="After SIGTERM, for requests under way.")

    max_file_bytes: PositiveInt = 10 * MEBIBYTE
    max_request_bytes: PositiveInt = 32 * MEBIBYTE
    # Up to where Pillow does not warn of bombs.
    max_pixels: int = Field(25_000_000, ge=1, le=89_478_485, description="Width times height of one image.")
    max_decode_seconds: float = Field(2, ge=0.1, le=60, description="CPU time that decoding one image may take.")
    max_inflight_body_bytes: PositiveInt = Field(64 * MEBIBYTE, description="Of all bodies being read or decoded.")
    max_inflight_pixels: PositiveInt = Field(25_000_000, description="Of all images being decoded.")
    drift_window_images: PositiveInt = Field(1000, description="Answers that the drift gauge looks back on.")
    views: Literal[1, 3] = Field(1, description="Views of a photo whose logits are averaged.")

    api_keys: Annotated[tuple[SecretStr, ...], NoDecode] = Field((), description="Comma-separated; none: open to all.")
    trusted_proxies: Annotated[tuple[str, ...], NoDecode] = Field(
        (), description="Comma-separated addresses and networks whose X-Forwarded headers count; none: nobody's."
    )
    root_path: str = Field("", pattern=r"^(/[A-Za-z0-9._~-]+)*$", description="Prefix that a proxy serves this under.")
    cors_origins: Annotated[tuple[str, ...], NoDecode] = Field((), description="Comma-separated; none: no CORS.")
    log_level: Literal["debug", "info", "warning", "error"] = "info"

    @field_validator("api_keys", "cors_origins", "trusted_proxies", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        if isinstance(value, str):
            return tuple(part.strip() for part in value.split(",") if part.strip())
        return value

    @field_validator("api_keys")
    @classmethod
    def _sendable(cls, keys: tuple[SecretStr, ...]) -> tuple[SecretStr, ...]:
        if not all(re.fullmatch(r"[!-~]+", key.get_secret_value()) for key in keys):
            raise ValueError("a key may hold visible ASCII characters only: it travels in a header")
        return keys

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

    @field_validator("views", mode="before")
    @classmethod
    def _number(cls, value: object) -> object:
        return int(value) if isinstance(value, str) and value.isdecimal() else value  # a literal takes no "3"

    @field_validator("log_level", mode="before")
    @classmethod
    def _lower(cls, value: object) -> object:
        return value.lower() if isinstance(value, str) else value
