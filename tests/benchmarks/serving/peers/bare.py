"""Bare inference: threads that run inference on single images, without a server.

    python -m tests.benchmarks.serving.peers.bare THREADS SECONDS

Prints images a second and the median milliseconds for an image, as JSON. Run it in the environment of the service.
"""

import json
import statistics
import sys
import threading
import time

import numpy as np

from app.inference.sessions import load_session
from app.settings import Settings


def bare(threads: int, seconds: float) -> tuple[float, float]:
    _, session = load_session(Settings())
    image = np.zeros((1, 32, 32, 3), np.uint8)
    session.run(image)  # the first call initialises the session
    times: list[list[float]] = [[] for _ in range(threads)]
    end = time.perf_counter() + seconds

    def work(own: list[float]) -> None:
        before = time.perf_counter()
        while before < end:
            session.run(image)
            after = time.perf_counter()
            own.append(after - before)
            before = after

    workers = [threading.Thread(target=work, args=(own,)) for own in times]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    together = [each for own in times for each in own]
    return len(together) / seconds, 1000 * statistics.median(together)


if __name__ == "__main__":
    rate, median = bare(int(sys.argv[1]), float(sys.argv[2]))
    print(json.dumps({"rate": rate, "median": median}))
