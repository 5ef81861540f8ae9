import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

from app.bundle import Bundle
from app.sessions import OnnxSession, Session, SessionError, TorchSession, load_session, self_check
from app.settings import Settings
from tests.conftest import BUNDLE, DATA


def pictures() -> np.ndarray:
    """uint8 [10, 32, 32, 3]: one of each class."""
    return np.stack([np.asarray(Image.open(path).convert("RGB")) for path in sorted(DATA.glob("*.png"))])


@pytest.fixture(scope="module")
def torch_session() -> Session:
    return load_session(Settings(_env_file=None, model_dir=BUNDLE, engine="torch"))[1]


def test_shapes_and_types(loaded: tuple[Bundle, Session]) -> None:
    logits = loaded[1].logits(pictures())
    assert logits.shape == (10, 10)
    assert logits.dtype == np.float32


def test_pytorch_and_onnx_agree(loaded: tuple[Bundle, Session], torch_session: Session) -> None:
    np.testing.assert_allclose(torch_session.logits(pictures()), loaded[1].logits(pictures()), atol=1e-4)


@pytest.mark.parametrize("kind", ["onnx", "torch"])
def test_a_batch_gives_what_its_images_give_alone(
    loaded: tuple[Bundle, Session], torch_session: Session, kind: str
) -> None:
    session = loaded[1] if kind == "onnx" else torch_session
    together = session.logits(pictures())
    alone = np.concatenate([session.logits(image[None]) for image in pictures()])
    np.testing.assert_allclose(together, alone, atol=1e-4)


@pytest.mark.parametrize("kind", ["onnx", "torch"])
def test_threads_share_a_session(loaded: tuple[Bundle, Session], torch_session: Session, kind: str) -> None:
    session = loaded[1] if kind == "onnx" else torch_session
    images = [image[None] for image in pictures()] * 4
    expected = [session.logits(image) for image in images]
    with ThreadPoolExecutor(4) as pool:
        for got, alone in zip(pool.map(session.logits, images), expected, strict=True):
            np.testing.assert_allclose(got, alone, atol=1e-5)


def test_a_model_that_computes_something_else_is_noticed(loaded: tuple[Bundle, Session]) -> None:
    class Wrong:
        def logits(self, images: np.ndarray) -> np.ndarray:
            return loaded[1].logits(images) + np.float32(0.5)

    with pytest.raises(SessionError, match=r"self-check: a logit is off by 0\.5"):
        self_check(Wrong(), loaded[0])


def test_a_model_that_computes_nonsense_is_noticed(loaded: tuple[Bundle, Session]) -> None:
    class Nonsense:
        def logits(self, images: np.ndarray) -> np.ndarray:
            return np.full((1, 10), np.nan, np.float32)

    with pytest.raises(SessionError):
        self_check(Nonsense(), loaded[0])


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
