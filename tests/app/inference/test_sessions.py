import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from PIL import Image

from app.bundle.reader import Abstention, Bundle
from app.inference.sessions import (
    OnnxSession,
    Outputs,
    Session,
    SessionError,
    TorchSession,
    load_session,
    self_check,
)
from app.settings import Settings
from tests.conftest import BUNDLE, DATA, SMALL_BUNDLE


def pictures() -> np.ndarray:
    """uint8 [10, 32, 32, 3]: one of each class."""
    return np.stack([np.asarray(Image.open(path).convert("RGB")) for path in sorted(DATA.glob("*.png"))])


@pytest.fixture(scope="module")
def torch_session() -> Session:
    return load_session(Settings(_env_file=None, model_dir=BUNDLE, engine="torch"))[1]


@pytest.fixture(params=["onnx", "torch"])
def session(request: pytest.FixtureRequest, loaded: tuple[Bundle, Session], torch_session: Session) -> Session:
    return loaded[1] if request.param == "onnx" else torch_session


def assert_close(one: Outputs, other: Outputs) -> None:
    for ours, theirs in zip(one, other, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4)


def test_shapes_and_types(session: Session) -> None:
    outputs = session.run(pictures(), maps=True)
    assert [output.shape for output in outputs] == [(10, 10), (10,), (10, 10, 4, 4)]
    assert {output.dtype for output in outputs} == {np.dtype(np.float32)}


def test_maps_come_only_when_they_are_asked_for(session: Session) -> None:
    without, with_maps = session.run(pictures()), session.run(pictures(), maps=True)
    assert without.class_maps is None
    assert_close(without[:2], with_maps[:2])


def test_the_means_of_the_maps_are_the_logits(session: Session) -> None:
    outputs = session.run(pictures(), maps=True)
    np.testing.assert_allclose(outputs.class_maps.mean((2, 3)), outputs.logits, atol=1e-4)


def test_pytorch_and_onnx_agree(loaded: tuple[Bundle, Session], torch_session: Session) -> None:
    assert_close(torch_session.run(pictures(), maps=True), loaded[1].run(pictures(), maps=True))


@pytest.mark.parametrize("engine", ["onnx", "torch"])
@pytest.mark.parametrize("folder", [BUNDLE, SMALL_BUNDLE], ids=lambda folder: folder.name)
def test_the_shipped_models_know_the_examples(folder: Path, engine: Any) -> None:
    session = load_session(Settings(_env_file=None, model_dir=folder, engine=engine))[1]
    assert session.run(pictures()).logits.argmax(1).tolist() == list(range(10))


def test_a_batch_gives_what_its_images_give_alone(session: Session) -> None:
    together = session.run(pictures(), maps=True)
    for index, image in enumerate(pictures()):
        assert_close(together.part(index, index + 1), session.run(image[None], maps=True))


def test_threads_share_a_session(session: Session) -> None:
    images = [image[None] for image in pictures()] * 4
    expected = [session.run(image, maps=True) for image in images]
    with ThreadPoolExecutor(4) as pool:
        for got, alone in zip(pool.map(lambda image: session.run(image, maps=True), images), expected, strict=True):
            assert_close(got, alone)


def test_a_model_that_computes_something_else_is_noticed(loaded: tuple[Bundle, Session]) -> None:
    class Wrong:
        def run(self, images: np.ndarray, maps: bool = False) -> Outputs:
            return Outputs(loaded[1].run(images).logits + np.float32(0.5))

    with pytest.raises(SessionError, match=r"self-check: a logit is off by 0\.5"):
        self_check(Wrong(), loaded[0])


def test_a_model_that_computes_nonsense_is_noticed(loaded: tuple[Bundle, Session]) -> None:
    class Nonsense:
        def run(self, images: np.ndarray, maps: bool = False) -> Outputs:
            return Outputs(np.full((1, 10), np.nan, np.float32))

    with pytest.raises(SessionError):
        self_check(Nonsense(), loaded[0])


def test_a_score_that_is_another_is_noticed(loaded: tuple[Bundle, Session]) -> None:
    class Wrong:
        def __init__(self, by: float) -> None:
            self.by = np.float32(by)

        def run(self, images: np.ndarray, maps: bool = False) -> Outputs:
            outputs = loaded[1].run(images)
            return outputs._replace(ood_scores=outputs.ood_scores + self.by)

    self_check(Wrong(0.0), loaded[0])
    for by in (0.1, np.nan):
        with pytest.raises(SessionError, match="self-check: its ood_score"):
            self_check(Wrong(by), loaded[0])


def changed(**fields: object) -> Bundle:
    """The shipped bundle, not yet read by a session, its manifest with other fields."""
    bundle = Bundle.load(BUNDLE)
    bundle.manifest = bundle.manifest.model_copy(update=fields)
    return bundle


@pytest.mark.parametrize("kind", [OnnxSession, TorchSession])
def test_a_bundle_without_abstention_has_no_scores(kind: type[Session]) -> None:
    bundle = changed(abstention=None)
    session = kind(bundle)
    assert session.run(pictures()).ood_scores is None
    self_check(session, bundle)


def test_pytorch_refuses_a_score_that_it_does_not_know() -> None:
    with pytest.raises(SessionError, match=r"can compute novelty, not 'tea leaves'"):
        TorchSession(changed(abstention=Abstention(method="tea leaves", threshold=0, kept=0.95)))


def test_pytorch_needs_what_the_score_is_computed_with() -> None:
    bundle = changed()
    bundle.forget("novelty.safetensors")
    with pytest.raises(SessionError, match=r"holds no novelty\.safetensors"):
        TorchSession(bundle)


def test_a_graph_without_maps_gives_none_and_one_without_scores_is_refused() -> None:
    graph = onnx.load_from_string(Bundle.load(BUNDLE).read("model.onnx"))
    del graph.graph.output[1:]  # only the logits: an older bundle
    older = changed(abstention=None)
    older._files["model.onnx"] = graph.SerializeToString()
    outputs = OnnxSession(older).run(pictures(), maps=True)
    assert outputs.logits.shape == (10, 10)
    assert outputs.ood_scores is outputs.class_maps is None
    strange = changed()
    strange._files["model.onnx"] = graph.SerializeToString()
    with pytest.raises(SessionError, match="no ood_score"):
        OnnxSession(strange)


def test_torch_is_asked_for_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(SessionError, match="extra 'torch'"):
        TorchSession(Bundle.load(BUNDLE))


def test_weights_are_not_kept_twice() -> None:
    bundle, _ = load_session(Settings(_env_file=None, model_dir=BUNDLE))
    assert "model.onnx" not in bundle
    assert "checkpoint.safetensors" not in bundle
    assert "report.json" in bundle


def test_each_computation_runs_on_one_thread() -> None:
    options = OnnxSession(Bundle.load(BUNDLE))._session.get_session_options()
    assert options.intra_op_num_threads == 1
    assert options.inter_op_num_threads == 1
