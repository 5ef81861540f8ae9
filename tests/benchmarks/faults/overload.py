"""Send three times as many requests as the service can answer for a minute, and measure accepted and refused ones.

    python -m tests.benchmarks.faults.overload --seconds 60

The service runs on core 0, the generator on core 1. Goals: accepted requests are answered within the deadline, at 75 %
of the peak rate or more; 99 % of refusals take less than 50 ms; one second after the load, latency is normal again.
"""

import argparse
import asyncio
import os
import time

from tests.app.server import serve
from tests.benchmarks.serving.http_load import Connections, Outcome, closed_loop, open_loop, percentile, post
from tests.conftest import DATA

OVERLOAD = 3
SERVICE_CORE, OWN_CORE = 0, 1


async def measure(url: str, seconds: float, deadline: float) -> None:
    connections, request = Connections(url), post("/predict", (DATA / "cat.png").read_bytes())
    await closed_loop(lambda: connections.send(request), 32, 2)
    alone = percentile([one.seconds for one in await closed_loop(lambda: connections.send(request), 1, 3)], 0.99)
    peak = answered(await closed_loop(lambda: connections.send(request), 32, 8)) / 8
    print(f"peak: {peak:.0f} images/s with 32 at once; a lone request takes {alone * 1000:.0f} ms (99 %)")

    outcomes = await open_loop(lambda due: connections.send(request, due), OVERLOAD * peak, seconds)
    over = time.perf_counter()
    after: list[tuple[float, Outcome]] = []
    while time.perf_counter() - over < 3:
        one = await connections.send(request)
        after.append((time.perf_counter() - over, one))
    connections.close()

    accepted = [one.seconds for one in outcomes if one.status == 200]
    refused = [one.seconds for one in outcomes if one.status == 429]
    other = len(outcomes) - len(accepted) - len(refused)
    rate = len(accepted) / (seconds + max(accepted))
    slow = [at for at, one in after if one.status != 200 or one.seconds > 2 * alone]
    print(f"offered: {len(outcomes) / seconds:.0f} a second for {seconds:g} s, {len(outcomes)} in all")
    print(f"accepted: {len(accepted)}, {rate:.0f} a second, {rate / peak:.0%} of the peak (goal: 75 %)")
    print(f"  50 % in {times(accepted, 0.5)}, 99 % in {times(accepted, 0.99)}, all in {times(accepted, 1)} ", end="")
    print(f"(goal: the deadline, {deadline * 1000:.0f} ms)")
    print(f"refused with 429: {len(refused)}, 50 % in {times(refused, 0.5)}, 99 % in {times(refused, 0.99)} ", end="")
    print("(goal: 50 ms)")
    print(f"other answers: {other}")
    print(f"normal again after {slow[-1] if slow else 0:.2f} s (goal: 1 s)")


def answered(outcomes: list[Outcome]) -> int:
    return sum(one.status == 200 for one in outcomes)


def times(seconds: list[float], share: float) -> str:
    return f"{percentile(seconds, share) * 1000:.0f} ms"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--deadline", type=float, default=5)
    options = parser.parse_args()
    os.sched_setaffinity(0, {SERVICE_CORE})  # for the service, which inherits it
    with serve(DEADLINE_SECONDS=options.deadline, LOG_LEVEL="warning") as (_, client):
        os.sched_setaffinity(0, {OWN_CORE})
        asyncio.run(measure(str(client.base_url), options.seconds, options.deadline))


if __name__ == "__main__":
    main()
