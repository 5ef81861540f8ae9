"""Every block of docs/checkpoint.md runs, and all ways to load the checkpoint give the same logits."""

import contextlib
import io
import re

import numpy as np
import pytest

from tests.conftest import ROOT

TEXT = (ROOT / "docs/checkpoint.md").read_text()
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)
SHARED, *WAYS = [content for kind, content in BLOCKS if kind == "python"]


def printed(block: str) -> list[str]:
    """The lines that a block prints after the shared one, with its logits as the last line."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        exec(f"{SHARED}\n{block}\nprint(*logits[0])\n", {"__name__": "__main__"})
    return out.getvalue().splitlines()


def test_every_code_block_is_tested() -> None:
    assert [kind for kind, _ in BLOCKS] == ["python"] * 4
    assert TEXT.count("```") == 2 * len(BLOCKS)


@pytest.fixture(scope="module")
def of_the_graph() -> list[str]:
    return printed(WAYS[0])


def test_the_graph_example_works(of_the_graph: list[str], cat_label: str) -> None:
    assert of_the_graph[0] == cat_label


@pytest.mark.parametrize("block", WAYS[1:], ids=["PyTorch", "torchvision alone"])
def test_pytorch_gives_the_logits_of_the_graph(block: str, of_the_graph: list[str]) -> None:
    label, logits = printed(block)
    assert label == of_the_graph[0]
    np.testing.assert_allclose(
        np.array(logits.split(), float), np.array(of_the_graph[1].split(), float), rtol=0, atol=1e-3
    )
