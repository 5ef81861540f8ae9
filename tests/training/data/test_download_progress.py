import io
import re

from rich.console import Console

from training.data.download_progress import DownloadProgress


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_without_a_terminal_there_is_a_line_at_once_and_one_a_minute() -> None:
    out, clock = io.StringIO(), Clock()
    with DownloadProgress("CIFAR-10", 170_000_000, Console(file=out, width=20), clock) as progress:
        progress.begin("example.org", 0)
        for clock.now in range(0, 130, 10):
            progress.update(clock.now * 500_000)
        progress.begin("example.com", 60_000_000)
    assert out.getvalue().splitlines() == [
        "downloading CIFAR-10 from example.org (170 MB)",
        "30 of 170 MB from example.org, 0.50 MB/s",
        "60 of 170 MB from example.org, 0.50 MB/s",
        "downloading CIFAR-10 from example.com (170 MB, 60 are there)",
    ]


def test_a_terminal_sees_a_bar_with_its_rate() -> None:
    out = io.StringIO()
    with DownloadProgress(
        "CIFAR-10", 1000, Console(file=out, force_terminal=True, width=120, no_color=True)
    ) as progress:
        progress.begin("example.org", 100)
        progress.update(500)
    last = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", out.getvalue()).replace("\r", "\n").splitlines()[-1]
    assert last.startswith("CIFAR-10 from example.org") and "0.5/1.0 kB" in last
