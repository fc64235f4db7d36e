"""Where the stages' files lie, as dvc.yaml declares them."""

from pathlib import Path

# Ignored by Git and unknown to DVC: what belongs to a run of this very folder. files.state_dir() outlives experiments.
WORKING = Path(".state")

RAW = Path("data/raw.csv")
CONVERSATIONS = Path("data/conversations.jsonl")
SIGNALS = Path("data/signals.parquet")
SUITE = Path("data/expectations.yaml")
QUARANTINE = Path("data/quarantine.csv")
SPLITS = {name: Path(f"data/splits/{name}.jsonl") for name in ("train", "validation", "test")}
TEST_LABELS = Path("data/splits/test_labels.json")

BASE = Path("models/base")
TUNED = Path("models/tuned")
EXPORT = Path("models/export")

VALIDATION = Path("reports/validation.json")
VALIDATION_PAGE = Path("reports/validation/index.html")
DATA_DOCS = Path("reports/validation/data_docs.html")
SPLIT_REPORT = Path("reports/splits.json")
HISTORY = Path("reports/train/history.csv")
VALIDATION_HISTORY = Path("reports/train/validation_history.csv")
GROUPS = Path("reports/train/groups.csv")
WEIGHTS = Path("reports/train/weights.csv")
TRAIN_METRICS = Path("reports/train/metrics.json")
RUN = Path("reports/train/run.json")
METRICS = Path("reports/metrics.json")
SLICES = Path("reports/slices.json")
MEASURES = Path("reports/eval/measures.json")
PREDICTIONS = Path("reports/eval/predictions.jsonl")
GENERAL = Path("reports/eval/general.jsonl")
ANSWERS = Path("reports/eval/answers.jsonl")
EVAL_RUN = Path("reports/eval/run.json")
HTML = Path("reports/report.html")
MARKDOWN = Path("reports/report.md")
