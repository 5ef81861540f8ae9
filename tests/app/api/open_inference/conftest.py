import pytest

from app.api.open_inference.models import ServedModel, served_models
from app.bundle.reader import Bundle
from app.inference.sessions import Session
from app.settings import Settings


@pytest.fixture(scope="module")
def models(loaded: tuple[Bundle, Session]) -> dict[str, ServedModel]:
    return served_models(Settings(_env_file=None), loaded[0].manifest)


@pytest.fixture(scope="module")
def pixels(models: dict[str, ServedModel]) -> ServedModel:
    return models["cifar10"]


@pytest.fixture(scope="module")
def files(models: dict[str, ServedModel]) -> ServedModel:
    return models["cifar10_image"]
