"""The report: tables of all peers against the service, the goals, and the cases in which a peer is better."""

import statistics
from collections.abc import Iterator, Sequence

from tests.benchmarks.serving.peers.catalogue import OURS, OWN, PEERS, Peer
from tests.benchmarks.serving.peers.results import BARE, Key, Results, Summary

TOLERANCE = 0.03
AGREEMENT = 0.8  # share of the rounds in which a cell must be lost to count as lost
SHARE_OF_BARE = 0.80  # with 32 connections, relative to bare inference on the same number of threads
TIMES_BARE = 1.45  # a single request's time, relative to that of its inference
TITLES = {"png": "32x32 PNG", "jpeg": "3 MP JPEG"}

Summaries = dict[Key, Summary]


def losses(results: Results) -> Iterator[str]:
    """The cells in which a peer is better than the service, in throughput or 99th percentile.

    A cell is lost if the median of the rounds' ratios is beyond TOLERANCE, and most rounds agree.
    """
    summaries = results.summaries()
    for key, peer in summaries.items():
        name, image, connections = key
        own_key = (OWN.get(image, ""), image, connections)
        own = summaries.get(own_key)
        if name in (*OURS, BARE) or own is None:
            continue
        where = f"{title(name)}, {TITLES[image]}, {connections} at once"
        faster = results.ratios(key, own_key, "rate")
        if statistics.median(faster) > 1 + TOLERANCE and _agree([ratio > 1 for ratio in faster]):
            ratio = statistics.median(faster)
            yield f"{where}: {peer.rate:.0f} images/s against {own.rate:.0f} ({ratio:.2f} times)"
        sooner = results.ratios(key, own_key, "tail")
        if statistics.median(sooner) < 1 - TOLERANCE and _agree([ratio < 1 for ratio in sooner]):
            ratio = statistics.median(sooner)
            yield f"{where}: 99 % within {peer.tail:.1f} ms against {own.tail:.1f} ({ratio:.2f} times)"


def cells(summaries: Summaries) -> int:
    """How many cells `losses` compares."""
    return 2 * sum(name not in (*OURS, BARE) for name, _, _ in summaries)


def _agree(lost: list[bool]) -> bool:
    return sum(lost) >= AGREEMENT * len(lost)


def goals(summaries: Summaries, cores: int) -> Iterator[str]:
    """The two goals relative to bare inference in the same run."""
    many, own = summaries.get((BARE, "", cores)), summaries.get((OWN["png"], "png", 32))
    if many and own:
        share = own.rate / many.rate
        yield (
            f"At 32 at once {own.rate:.0f} of the {many.rate:.0f} images/s of {cores} bare threads: {share:.0%}"
            f" (goal: at least {SHARE_OF_BARE:.0%}; {verdict(share >= SHARE_OF_BARE)})"
        )
    one, own = summaries.get((BARE, "", 1)), summaries.get((OWN["png"], "png", 1))
    if one and own:
        times = own.median / one.median
        yield (
            f"A lone request takes {own.median:.2f} ms, bare inference {one.median:.2f} ms: {times:.2f} times"
            f" (goal: at most {TIMES_BARE}; {verdict(times <= TIMES_BARE)})"
        )


def verdict(met: bool) -> str:
    return "met" if met else "missed"


def title(name: str) -> str:
    return next(peer.title for peer in PEERS if peer.name == name)


def table(
    summaries: Summaries, peers: Sequence[Peer], image: str, concurrency: Sequence[int], latency: bool
) -> Iterator[str]:
    """Throughput or latency for one image: a row for each peer, a column for each concurrency, ratios in brackets."""
    yield f"| | {' | '.join(f'{connections} at once' for connections in concurrency)} |"
    yield f"| ---{' | ---' * len(concurrency)} |"
    for peer in peers:
        row = [peer.title]
        for connections in concurrency:
            own, cell = summaries.get((OWN[image], image, connections)), summaries.get((peer.name, image, connections))
            if cell is None:
                row.append("not measured")
                continue
            text = f"{cell.median:.1f} / {cell.tail:.1f}" if latency else f"{cell.rate:.0f}"
            if own and peer.name != OWN[image]:
                text += f" ({cell.tail / own.tail:.2f})" if latency else f" ({cell.rate / own.rate:.2f})"
            row.append(text + (f" **{cell.errors} errors**" if cell.errors else ""))
        yield f"| {' | '.join(row)} |"


def render(results: Results, cores: int) -> str:
    """The whole report in Markdown."""
    summaries = results.summaries()
    peers = [peer for peer in PEERS if any(name == peer.name for name, _, _ in summaries)]
    images = [image for image in TITLES if any(key[1] == image for key in summaries)]
    concurrency = sorted({key[2] for key in summaries if key[0] != BARE})
    rounds = {summary.rounds for summary in summaries.values()}
    seconds = {each.seconds for each in results.measurements if each.peer != BARE}
    lines = [
        f"Medians of {alternatives(rounds)} rounds, {alternatives(seconds)} s a cell; {cores} cores, shared with wrk. "
        "In brackets, the peer's figure over the service's.",
        "",
    ]
    for image in images:
        lines += [f"{TITLES[image]}, images a second:", "", *table(summaries, peers, image, concurrency, False), ""]
        lines += [
            f"{TITLES[image]}, milliseconds, median / 99 % (the ratio is that of the 99 %):",
            "",
            *table(summaries, peers, image, concurrency, True),
            "",
        ]
    lines += ["Bare inference, with one image at a time in each thread:", ""]
    for (name, _, threads), bare in sorted(summaries.items()):
        if name == BARE:
            lines.append(f"- {threads} thread{'s' * (threads > 1)}: {bare.rate:.0f} images/s, {bare.median:.2f} ms")
    lines += ["", "Goals:", "", *(f"- {goal}" for goal in goals(summaries, cores))]
    lines += [f"- {line}" for line in leads(summaries, peers)]
    lost = list(losses(results))
    count = f"{len(lost)} of {cells(summaries)} cells are lost: the median of the rounds is beyond {TOLERANCE:.0%}"
    lines += ["", f"{count}, and {AGREEMENT:.0%} of them agree.", "", *(f"- {loss}" for loss in lost)]
    return "\n".join(lines) + "\n"


def alternatives(numbers: set[int]) -> str:
    return " or ".join(str(number) for number in sorted(numbers))


def leads(summaries: Summaries, peers: Sequence[Peer]) -> Iterator[str]:
    """The throughput of the service relative to each peer, over all cells."""
    for peer in peers:
        ratios = [
            summaries[OWN[image], image, connections].rate / max(cell.rate, 1e-9)
            for (name, image, connections), cell in summaries.items()
            if name == peer.name not in OURS and (OWN[image], image, connections) in summaries
        ]
        if ratios:
            least, most, median = min(ratios), max(ratios), statistics.median(ratios)
            yield f"Images/s over {peer.title}: {least:.2f} to {most:.2f} times, median {median:.2f}"
