"""Measurements in a CSV file. It grows with each peer of each round, so that a stopped run can continue."""

import csv
import statistics
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from pathlib import Path

BARE = "bare"  # the name for inference without a server; `connections` is then the number of threads


@dataclass(frozen=True)
class Measurement:
    """One peer, image and concurrency in one round. Rate in images a second (only 2xx), times in milliseconds."""

    round: int
    peer: str
    image: str
    connections: int
    seconds: int
    rate: float
    median: float
    tail: float  # the 99th percentile
    bad_statuses: int
    socket_errors: int

    @property
    def errors(self) -> int:
        return self.bad_statuses + self.socket_errors

    @property
    def key(self) -> "Key":
        return self.peer, self.image, self.connections


Key = tuple[str, str, int]  # peer, image, connections


@dataclass(frozen=True)
class Summary:
    """Medians over the rounds, and the sum of errors."""

    rate: float
    median: float
    tail: float
    errors: int
    rounds: int


class Results:
    def __init__(self, path: Path) -> None:
        """Read the file if it exists."""
        self.path = path
        self.measurements: list[Measurement] = []
        if path.exists():
            with path.open(newline="") as file:
                self.measurements = [parse(row) for row in csv.DictReader(file)]

    def add(self, measurements: Iterable[Measurement]) -> None:
        """Append all measurements of one peer in one round, or none."""
        new = list(measurements)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        begins = not self.path.exists()
        with self.path.open("a", newline="") as file:
            writer = csv.DictWriter(file, [field.name for field in fields(Measurement)], lineterminator="\n")
            if begins:
                writer.writeheader()
            writer.writerows(asdict(each) for each in new)
        self.measurements += new

    def done(self, round_number: int, peer: str) -> bool:
        return any(each.round == round_number and each.peer == peer for each in self.measurements)

    def ratios(self, one: Key, other: Key, figure: str) -> list[float]:
        """A figure of one over that of another, in each round that has both."""
        of_one, of_other = (
            {each.round: getattr(each, figure) for each in self.measurements if each.key == key} for key in (one, other)
        )
        return [of_one[number] / max(of_other[number], 1e-9) for number in sorted(of_one.keys() & of_other.keys())]

    def summaries(self) -> dict[Key, Summary]:
        groups: dict[Key, list[Measurement]] = defaultdict(list)
        for each in self.measurements:
            groups[each.key].append(each)
        return {key: summarise(group) for key, group in groups.items()}


def parse(row: dict[str, str]) -> Measurement:
    return Measurement(**{field.name: field.type(row[field.name]) for field in fields(Measurement)})


def summarise(group: list[Measurement]) -> Summary:
    return Summary(
        rate=statistics.median(each.rate for each in group),
        median=statistics.median(each.median for each in group),
        tail=statistics.median(each.tail for each in group),
        errors=sum(each.errors for each in group),
        rounds=len(group),
    )
