"""Kill, add and remove containers behind the balancer under load. No request may fail.

make docker-scale-test                                          # needs Docker with compose, and the image nginx:1.30
DOCKER_BUILD_FLAGS=--network=host make docker-scale-test        # if the engine has no bridge network

Standard library only.
"""

import http.client
import json
import os
import shlex
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
IMAGE = "cifar10-classifier:scale-test"
FILES = ["-f", "docker-compose.yml", "-f", "deploy/compose.scale.yml"]
# PORT=0 lets the engine choose a free port. API_KEYS overrides a key in .env.
ENVIRONMENT = {
    **os.environ,
    "IMAGE": IMAGE,
    "COMPOSE_PROJECT_NAME": "cifar10-scale-test",
    "PORT": "0",
    "API_KEYS": "",
    "CPUS": "1",
}
CLIENTS, PAUSE_SECONDS, KILLS = 4, 0.2, 6  # about 20 requests a second, which one core can handle
COUNT = """
import re, urllib.request
text = urllib.request.urlopen('http://127.0.0.1:8000/metrics').read().decode()
print(*re.findall(r'^predictions_total.* (\\S+)$', text, re.M))
"""


def docker(*arguments: str) -> str:
    done = subprocess.run(
        ["docker", *arguments], cwd=ROOT, env=ENVIRONMENT, check=True, stdout=subprocess.PIPE, text=True
    )
    return done.stdout.strip()


def compose(*arguments: str) -> str:
    return docker("compose", *FILES, *arguments)


def scale(instances: int) -> None:
    compose(
        "up",
        "--detach",
        "--no-build",
        "--no-recreate",
        "--wait",
        "--wait-timeout",
        "120",
        "--scale",
        f"api={instances}",
    )


def instances() -> list[str]:
    return compose("ps", "--quiet", "api").split()


def predictions(container: str) -> float:
    return sum(map(float, docker("exec", container, "python", "-c", COUNT).split()))


def until(condition, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"not within {seconds} s"
        time.sleep(0.2)


def classify(connection: http.client.HTTPConnection, image: bytes) -> str:
    """The label, or a description of the error."""
    try:
        connection.request("POST", "/predict", image)
        answer = connection.getresponse()
        content = answer.read()
    except (OSError, http.client.HTTPException) as error:
        connection.close()
        return repr(error)
    return json.loads(content)["predictions"][0]["label"] if answer.status == 200 else f"{answer.status} {content!r}"


@contextmanager
def load(address: str) -> Iterator[Counter[str]]:
    """Run clients with keep-alive connections during the block. Yields the counts of answers, complete at its end."""
    image, answers, over = (ROOT / "tests/data/ship.png").read_bytes(), Counter[str](), threading.Event()

    def client() -> None:
        connection = http.client.HTTPConnection(address, timeout=30)
        while not over.is_set():
            answers[classify(connection, image)] += 1
            time.sleep(PAUSE_SECONDS)

    threads = [threading.Thread(target=client) for _ in range(CLIENTS)]
    for thread in threads:
        thread.start()
    try:
        yield answers
    finally:
        over.set()
        for thread in threads:
            thread.join()


def check_kills() -> None:
    for number in range(KILLS):
        victim = sorted(instances())[number % 2]
        docker("kill", "--signal", "KILL", victim)
        time.sleep(2)
        docker("start", victim)  # the engine does not restart a container that `docker kill` has stopped
        until(lambda victim=victim: docker("inspect", "--format", "{{.State.Health.Status}}", victim) == "healthy")
    print(f"killed {KILLS} times")


def check_scaling() -> None:
    old = set(instances())
    scale(3)
    (new,) = set(instances()) - old
    until(lambda: predictions(new) > 0)
    print("a third instance gets requests, and the balancer was not restarted")
    scale(1)
    assert len(instances()) == 1
    print("two of three instances were removed")


def main() -> None:
    try:
        docker("build", *shlex.split(os.environ.get("DOCKER_BUILD_FLAGS", "")), "--tag", IMAGE, ".")
        scale(2)
        balancer = compose("ps", "--quiet", "balancer")
        address = compose("port", "balancer", "8000").replace("0.0.0.0", "127.0.0.1")
        with load(address) as answers:
            until(lambda: all(predictions(one) > 0 for one in instances()))
            print("both instances get requests")
            check_kills()
            check_scaling()
            time.sleep(2)
        attempts = docker("logs", balancer).count('"instances"')
        print(f"{sum(answers.values())} requests: {dict(answers)}; {attempts} needed more than one attempt")
        assert compose("ps", "--quiet", "balancer") == balancer
        if set(answers) != {"ship"}:
            sys.exit("some requests failed")
    except BaseException:
        subprocess.run(
            ["docker", "compose", *FILES, "logs", "--no-color", "--tail", "200", "balancer"],
            cwd=ROOT,
            env=ENVIRONMENT,
            check=False,
        )
        raise
    finally:
        subprocess.run(["docker", "compose", *FILES, "down", "--timeout", "1"], cwd=ROOT, env=ENVIRONMENT, check=False)
        subprocess.run(["docker", "image", "rm", IMAGE], stdout=subprocess.DEVNULL, check=False)
    print("passed")


if __name__ == "__main__":
    main()
