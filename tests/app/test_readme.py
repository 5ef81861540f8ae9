"""README.md and docs/results.md are true: commands run, answers are the service's, figures are the report's."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.app.server import serve
from tests.benchmarks.docs.examples import rows
from tests.benchmarks.docs.figures import README, RESULTS, Statement, shipped, statements, strays
from tests.benchmarks.docs.frontier import ours
from tests.conftest import BUNDLE, ROOT, in_a_clone

TEXT = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)
(REQUEST,) = [content for kind, content in BLOCKS if kind == "sh" and "curl" in content]
(ANSWER,) = [json.loads(content) for kind, content in BLOCKS if kind == "json"]


@pytest.fixture(scope="module")
def client() -> Iterator[httpx.Client]:
    with serve() as (_, client):
        yield client


def run(command: list[str], source: str, client: httpx.Client) -> str:
    """What a block prints, run from the repository's root against the server of this test."""
    address = f"{client.base_url.host}:{client.base_url.port}"
    environment = os.environ | {
        "MODEL_DIR": str(BUNDLE),
        "PYTHONPATH": str(ROOT),
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    }
    source = in_a_clone(source).replace("localhost:8000", address).replace(".venv/bin/", "")
    done = subprocess.run(
        command, cwd=ROOT, env=environment, input=source, stdout=subprocess.PIPE, text=True, timeout=60, check=True
    )
    return done.stdout


def test_the_request_is_answered_as_shown(client: httpx.Client) -> None:
    said, shown = json.loads(run(["bash", "-eu"], REQUEST, client)), ANSWER.copy()
    assert list(said) == list(shown)
    assert list(said.pop("timing_ms")) == list(shown.pop("timing_ms"))
    predictions = zip(said.pop("predictions"), shown.pop("predictions"), strict=True)
    for one, other in predictions:
        assert one == other | {"probability": pytest.approx(other["probability"], abs=1e-3)}
    assert said.pop("ood_score") == pytest.approx(shown.pop("ood_score"), abs=1e-2)
    assert said == shown


def test_the_ten_examples_are_answered_as_shown(client: httpx.Client) -> None:
    table = (
        (ROOT / RESULTS)
        .read_text()
        .split("| image | answer | probability | second |")[1]
        .split("\n\n")[0]
        .splitlines()[2:]
    )
    shown = [[cell.strip() for cell in line.strip("|").split("|")] for line in table]
    measured = rows(client)
    assert len(measured) == 10
    for one, other in zip(measured, shown, strict=True):
        assert one[:2] == other[:2]
        assert float(one[2]) == pytest.approx(float(other[2]), abs=2e-3)


def test_the_other_commands_run(client: httpx.Client) -> None:
    (classify,) = [content for kind, content in BLOCKS if kind == "sh" and "app classify" in content]
    assert "cat.png" in run(["bash", "-eu"], classify, client)
    with_a_client, without_a_server = [content for kind, content in BLOCKS if kind == "python"]
    assert "probability" in run([sys.executable, "-"], with_a_client, client)
    assert "probability" in run([sys.executable, "-"], without_a_server, client)


SHIPPED, SMALL = shipped()


@pytest.mark.parametrize("statement", list(statements(SHIPPED, SMALL)), ids=lambda one: f"{one.file}: {one.text[:40]}")
def test_figures_are_those_of_the_bundle(statement: Statement) -> None:
    """`python -m tests.benchmarks.docs.figures --write` mends it."""
    assert statement.wrong((ROOT / statement.file).read_text()) == []


def test_the_small_bundle_has_rows_of_its_own() -> None:
    """Here the shipped bundle stands for it."""
    its_own = [one for one in statements(SHIPPED, SHIPPED) if one not in list(statements(SHIPPED, None))]
    its_own = [one for one in its_own if "|" in one.text[2:] and "photographs" not in one.text][:3]
    assert [one.file for one in its_own] == [README, RESULTS, RESULTS]
    assert all(one.text.startswith("| **small** |") for one in its_own)
    for one in its_own:
        filled_in = re.sub("<(.*?)>", lambda figure: figure[1] or "0.00", one.text)
        assert one.wrong(filled_in) == []


DOCUMENTS = [README, *(str(path.relative_to(ROOT)) for path in sorted((ROOT / "docs").glob("*.md")))]


@pytest.mark.parametrize("name", DOCUMENTS)
def test_no_figure_of_the_report_is_printed_unchecked(name: str) -> None:
    assert strays(name, (ROOT / name).read_text(), list(statements(SHIPPED, SMALL))) == []


def test_a_figure_without_a_statement_is_found() -> None:
    held = [Statement("a.md", "right <95.26> %"), Statement("b.md", "area <0.003561>.")]
    assert strays("a.md", "It is right 95.26 %, or 95.26, and 0.003561.", held) == ["95.26", "0.003561"]
    assert strays("a.md", "It is right 95.26 % (95.2, 195.26, 95.261, version 1.95.26).", held) == []


def test_the_points_of_the_frontier_are_those_of_the_bundles() -> None:
    bundles = [one for one in (SHIPPED, SMALL) if one]
    assert list(ours(BUNDLE.parent)) == [
        (one.manifest.name, one.report.accuracy.value, one.report.accuracy.ci95, one.manifest.macs / 1e6)
        for one in bundles
    ]


def test_a_wrong_figure_is_reported_and_corrected_alone() -> None:
    statement = Statement("a.md", "right <95.26> % of the time (<94 to 96> %), <> ms, <cat> | <1,000> |.")
    before = "It is right 95.26 %\nof the time (1 to\n2 %), 3 ms, dog | 2 |. Not 95.26."
    assert statement.wrong(before) == [("1 to 2", "94 to 96"), ("dog", "cat"), ("2", "1,000")]
    after = statement.renewed(before)
    assert after == "It is right 95.26 %\nof the time (94 to 96 %), 3 ms, cat | 1,000 |. Not 95.26."
    assert statement.wrong(after) == []
    for other in ("", "It is right 95.26 % of the time.", after + after):
        with pytest.raises(ValueError, match=r"a\.md must say once, but says \d times"):
            statement.wrong(other)
