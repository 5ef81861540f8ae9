"""Build the image, start the container, classify an image, stop it. Needs Docker with compose; standard library only.

make docker-test
DOCKER_BUILD_FLAGS=--network=host make docker-test    # if the engine has no bridge network
"""

import json
import os
import shlex
import subprocess
import time
import urllib.request
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
IMAGE = "cifar10-classifier:docker-test"
PROJECT = "cifar10-docker-test"
MAX_MEGABYTES = 250  # above the base image
GRACE_SECONDS = 20  # as in docker-compose.yml
# PORT=0 lets the engine choose a free port, so a running service is not disturbed. API_KEYS overrides a key in .env.
ENVIRONMENT = {**os.environ, "IMAGE": IMAGE, "COMPOSE_PROJECT_NAME": PROJECT, "PORT": "0", "API_KEYS": ""}


def docker(*arguments: str) -> str:
    """The standard output of the command. Its standard error goes to ours."""
    done = subprocess.run(
        ["docker", *arguments], cwd=ROOT, env=ENVIRONMENT, check=True, stdout=subprocess.PIPE, text=True
    )
    return done.stdout.strip()


def inspect(container: str, field: str) -> object:
    return json.loads(docker("inspect", "--format", f"{{{{json {field}}}}}", container))


def inside(container: str, code: str) -> str:
    return docker("exec", container, "python", "-c", code)


def megabytes_above_base() -> float:
    """The size of the layers that the last stage of the Dockerfile copies. Its other layers are empty."""
    history = docker("history", "--no-trunc", "--human=false", "--format", "{{.Size}} {{.CreatedBy}}", IMAGE)
    steps = [line.partition(" ") for line in history.splitlines()]
    return sum(int(size) for size, _, step in steps if "COPY /opt/venv" in step or "COPY /srv" in step) / 1e6


def classify(address: str, image: Path) -> dict:
    request = urllib.request.Request(f"http://{address}/predict", image.read_bytes(), {"Content-Type": "image/png"})
    with urllib.request.urlopen(request, timeout=10) as answer:
        return json.load(answer)


def check_running(container: str) -> None:
    address = docker("compose", "port", "api", "8000").replace("0.0.0.0", "127.0.0.1")
    answer = classify(address, ROOT / "tests/data/cat.png")
    assert len(answer["predictions"]) == 5, answer
    print("cat.png:", ", ".join(f"{p['label']} {p['probability']:.3f}" for p in answer["predictions"]))

    assert inside(container, "import os; print(os.getuid())") == "10001"
    assert inspect(container, ".HostConfig.ReadonlyRootfs") is True
    writable = "import os; print([p for p in ('/', '/srv', '/opt/venv', '/tmp') if os.access(p, os.W_OK)])"
    assert inside(container, writable) == "['/tmp']"
    assert inside(container, "print(open('/proc/1/cmdline').read().split('\\0')[1:4])") == "['-m', 'app', 'serve']"
    print("the user is not root, only /tmp is writable, the service is process 1")


def check_stopping(container: str) -> None:
    started = time.monotonic()
    docker("compose", "stop")
    seconds = time.monotonic() - started
    assert inspect(container, ".State.ExitCode") == 0, docker("logs", container)
    assert seconds < GRACE_SECONDS, f"{seconds:.1f} s"
    print(f"stopped in {seconds:.1f} s, exit code 0")


def main() -> None:
    try:
        docker("build", *shlex.split(os.environ.get("DOCKER_BUILD_FLAGS", "")), "--tag", IMAGE, ".")
        size = megabytes_above_base()
        print(f"image: {size:.0f} MB above its base")
        assert 0 < size <= MAX_MEGABYTES

        started = time.monotonic()
        docker("compose", "up", "--detach", "--no-build", "--wait", "--wait-timeout", "60")
        print(f"healthy after {time.monotonic() - started:.1f} s")
        container = docker("compose", "ps", "--quiet", "api")
        check_running(container)
        check_stopping(container)
    except BaseException:
        subprocess.run(["docker", "compose", "logs"], cwd=ROOT, env=ENVIRONMENT, check=False)
        raise
    finally:
        subprocess.run(["docker", "compose", "down", "--timeout", "1"], cwd=ROOT, env=ENVIRONMENT, check=False)
        subprocess.run(["docker", "image", "rm", IMAGE], stdout=subprocess.DEVNULL, check=False)
    print("passed")


if __name__ == "__main__":
    main()
