"""Names that the writer and the readers of a bundle agree on: its files, and the graph's input and outputs."""

MANIFEST = "bundle.json"
GRAPH = "model.onnx"
CHECKPOINT = "checkpoint.safetensors"
NOVELTY = "novelty.safetensors"
REPORT = "report.json"
REPORT_TEXT = "report.txt"
HISTORY = "history.csv"
SPLIT = "split.json"
CARD = "README.md"
PICTURES = (
    *("accuracy_and_loss.png", "confusion_matrix.png", "reliability.png"),
    *("risk_coverage.png", "robustness.png", "mistakes.png"),
)

# The graph's input, uint8 [N, height, width, 3], and its outputs, float32.
INPUT = "images"
LOGITS = "logits"  # [N, classes]
CLASS_MAPS = "class_maps"  # [N, classes, h, w]
OOD_SCORE = "ood_score"  # [N]
