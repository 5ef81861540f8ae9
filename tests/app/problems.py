"""What every problem document must be, whatever the problem."""


def assert_problem(response: object, status: int, code: str) -> dict:
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    document = response.json()
    assert document["code"] == code
    assert document["status"] == status
    assert document["type"] == f"/problems/{code}"
    assert document["error"] == document["detail"]
    assert document["instance"] == response.headers["x-request-id"]
    return document
