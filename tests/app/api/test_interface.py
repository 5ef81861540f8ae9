"""What others build on changes on purpose or not at all.

python -m tests.app.api.test_interface    # writes the OpenAPI document anew, once the change is meant
"""

import json
from typing import Any

import app.client
from app.main import create_app
from app.settings import Settings
from tests.conftest import DATA

SNAPSHOT = DATA / "openapi.json"


def openapi() -> dict[str, Any]:
    document = create_app(Settings(_env_file=None)).openapi()
    document["info"]["version"] = "any"  # a release changes nothing else
    return document


def render(document: dict[str, Any]) -> str:
    return json.dumps(document, indent=1, sort_keys=True, ensure_ascii=False) + "\n"


def test_the_openapi_document_is_the_committed_one() -> None:
    # By line, so that pytest shows those that differ.
    assert render(openapi()).splitlines() == SNAPSHOT.read_text().splitlines(), (
        "the interface has changed; if that was meant: python -m tests.app.api.test_interface, and commit the result"
    )


def test_the_client_exports_the_documented_names() -> None:
    assert app.client.__all__ == [
        *("AnswerTimeoutError", "AsyncClient", "Client", "ClientError", "EmptyBatchError"),
        *("Explanation", "ImageSource", "InvalidAnswerError", "NoAnswerError", "ProblemError"),
    ]
    assert all(hasattr(app.client, name) for name in app.client.__all__)


if __name__ == "__main__":
    SNAPSHOT.write_text(render(openapi()))
