"""Where a teacher's graph comes from: a bundle, or a finished run that nobody exported."""

from pathlib import Path

from app.bundle.names import GRAPH
from app.bundle.reader import Bundle, BundleError
from app.network.served import ServedNetwork
from training.errors import TrainingError
from training.export.graph import build_graph
from training.fit.run import RUN
from training.fit.run_folder import Outcome
from training.provenance import check_split


def read_teacher(folder: Path, split_seed: int) -> bytes:
    """The ONNX graph of the network in `folder`.

    Raises TrainingError when it holds neither a bundle nor a run, or one that was trained with another split.
    """
    check_split("--teacher", folder, split_seed)
    if (folder / RUN).exists():
        graph: bytes = build_graph(ServedNetwork(Outcome.read(folder).model())).SerializeToString(deterministic=True)
        return graph
    try:
        return Bundle.load(folder).read(GRAPH)
    except BundleError as error:
        raise TrainingError(f"--teacher: {error}") from None
