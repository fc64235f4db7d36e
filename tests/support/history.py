"""Git histories for tests: committed reports of finished runs, with numbers that are easy to check by hand."""

import hashlib
import json
import subprocess
from pathlib import Path

import yaml

from stages.core import files
from stages.core.paths import CONVERSATIONS, GENERAL, MEASURES, PREDICTIONS, RAW, SPLIT_REPORT, SPLITS, VALIDATION

_PER_TOKEN = ("loss", "perplexity", "perturbed_loss", "token_accuracy")
LOSSES = [1.0, 2.0, 4.0]
TOKENS = [10, 30, 60]


def git(*arguments):
    done = subprocess.run(["git", *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def begin():
    """Make the current folder a Git and DVC repository."""
    git("init", "-q", "-b", "main")
    git("config", "user.name", "t")
    git("config", "user.email", "t@example.org")
    Path(".dvc").mkdir()
    Path(".dvc/config").write_text("[core]\n    analytics = false\n")
    Path(".dvc/.gitignore").write_text("/config.local\n/tmp\n/cache\n")


def commit(message="run"):
    git("add", "-A")
    git("commit", "-qm", message, "--allow-empty")
    return git("rev-parse", "HEAD")


def prediction(number, loss=1.0, tokens=10, chrf=50.0, answer="Yes.", prompt=None, **scores):
    likely = {} if loss is None else {"loss": loss, "perplexity": 2.7183**loss}
    tuned = {**likely, "chrf": chrf, "exact_match": 0.0, **scores}
    weights = {name: tokens for name in tuned if name in _PER_TOKEN and tokens is not None}
    return {
        "prompt": [{"role": "user", "content": prompt or f"Room {number}?"}],
        "reference": f"It is {number}.",
        "base": "No.",
        "tuned": answer,
        "scores": {"base": tuned, "tuned": tuned},
        "weights": {"base": weights, "tuned": weights},
        "baselines": {},
    }


def predictions(losses=LOSSES, tokens=TOKENS, **each):
    """A line per loss; `each` lists other values that differ. None means not measured."""
    rows = zip(losses, tokens, *each.values(), strict=True)
    return [
        prediction(number, loss, length, **dict(zip(each, rest, strict=True)))
        for number, (loss, length, *rest) in enumerate(rows)
    ]


def write_run(lines=None, tuned=None, train=None, conversations=b"", raw=b"", general=()):
    """Write the reports and dvc.lock of a run with the predictions `lines`."""
    lines = predictions() if lines is None else lines
    files.write_text(PREDICTIONS, "".join(json.dumps(line) + "\n" for line in lines))
    files.write_text(GENERAL, "".join(json.dumps(line) + "\n" for line in general))
    names = lines[0]["scores"]["tuned"]
    own = {name: {"value": 9.5, "low": None, "high": None} for name in names} if tuned is None else tuned
    parts = {"base": own, "tuned": own, "gain": own}
    measures = {
        "verdict": {"word": "better", "sentence": "Better than all."},
        "test": parts,
        "baselines": {},
        "train": train or {"steps": 57},
        "counts": {"test": len(lines)},
    }
    files.write_json(MEASURES, measures)
    files.write_json(SPLIT_REPORT, {name: {"conversations": len(lines)} for name in SPLITS})
    files.write_json(VALIDATION, {"rows": 9, "quarantined": 0, "findings": []})
    contents = {RAW: raw, CONVERSATIONS: conversations, **dict.fromkeys(SPLITS.values(), b"")}
    outs = [{"path": path.as_posix(), "hash": "md5", "md5": md5(content)} for path, content in contents.items()]
    Path("dvc.lock").write_text(yaml.safe_dump({"schema": "2.0", "stages": {"all": {"cmd": "x", "outs": outs}}}))


def md5(content):
    return hashlib.md5(content).hexdigest()


def cache(content):
    """Add an output's content to DVC's cache."""
    name = md5(content)
    path = Path(".dvc/cache/files/md5", name[:2], name[2:])
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
