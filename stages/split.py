"""split: train, validation and test, decided by each prompt's own hash.

A conversation's split depends on its prompt and the seed, not on its place in the file, and conversations whose
prompts are nearly the same always share a split.
"""

import contextlib
import csv
import hashlib
import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from stages import params
from stages.core import files, revisions
from stages.core.artifacts import intact
from stages.core.cli import UserError, notice, run
from stages.core.paths import CONVERSATIONS, QUARANTINE, SIGNALS, SPLIT_REPORT, SPLITS, TEST_LABELS, VALIDATION
from stages.dataset import near_duplicates

_COLUMNS = ["row", "error", "label", "prompt_hash", "sketch", "n_tokens"]
_QUANTILES = {"median": 0.5, "p90": 0.9, "max": 1.0}
# The nearest neighbour is sought among all train prompts; for more test prompts that would take too long.
_TEST_PROMPTS = 200
# What csv takes at most on every machine: as JSON a record can be longer than it is in its source.
_ANY_LENGTH = 2**31 - 1
_AGAIN = "`dvc repro` writes it again from the source"


def main() -> None:
    knobs = params.load()
    signals = pq.read_table(SIGNALS, columns=_COLUMNS)
    quarantined = _quarantined()
    kept = pc.invert(pc.is_in(signals["row"], pa.array(quarantined)))
    # conversations.jsonl has a line for each row without an error.
    lines = kept.filter(pc.is_null(signals["error"])).to_numpy()
    if len(kept) != pc.sum(kept).as_py() + len(quarantined):
        raise _edited("it names rows that the source does not have")
    signals = signals.filter(kept)
    if signals["error"].null_count != len(signals):
        raise _edited("a row that is not a conversation is missing in it")
    sketches = near_duplicates.matrix(signals["sketch"])
    frame = signals.drop_columns(["sketch", "error", "row"]).to_pandas()
    prompts = frame["prompt_hash"].groupby(near_duplicates.groups(sketches)).transform("min")
    _refuse_few(frame["prompt_hash"].nunique(), prompts.nunique())
    chosen = np.array(assign(prompts, knobs.split.validation, knobs.split.test, knobs.seed, frame["label"].fillna("")))
    _write(lines, chosen)
    labels = frame["label"][chosen == "test"]
    files.write_json(TEST_LABELS, labels.tolist() if labels.notna().any() else [])
    report = describe(frame, chosen, sketches) | {"changed_split": changed_split()}
    files.write_json(SPLIT_REPORT, report)
    notice("split: " + ", ".join(f"{name} {report[name]['conversations']}" for name in SPLITS))


def _quarantined() -> np.ndarray:
    """Numbers of the rows that the gate quarantined: the first cell of each record, however many cells follow.

    Raises:
        UserError: the file is not what validate wrote.
    """
    csv.field_size_limit(_ANY_LENGTH)
    with intact(str(QUARANTINE), _AGAIN), QUARANTINE.open(newline="", encoding="utf-8") as file:
        rows = [int(cells[0]) for cells in itertools.islice(csv.reader(file, strict=True), 1, None)]
    with intact(str(VALIDATION), _AGAIN):
        counted = json.loads(VALIDATION.read_text(encoding="utf-8"))["quarantined"]
    if not len(set(rows)) == len(rows) == counted:
        raise _edited(f"it has {len(rows)} rows, and {VALIDATION} counts {counted}")
    return np.array(rows, np.int64)


def _edited(how: str) -> UserError:
    return UserError(f"{QUARANTINE} was edited: {how}; {_AGAIN}")


def _write(lines: np.ndarray, chosen: np.ndarray) -> None:
    """Copy each line of conversations.jsonl that is kept to the file of its split."""
    with contextlib.ExitStack() as stack:
        paths = {name: stack.enter_context(files.replacing(path)) for name, path in SPLITS.items()}
        outs = {name: stack.enter_context(path.open("wb")) for name, path in paths.items()}
        all_lines = stack.enter_context(CONVERSATIONS.open("rb"))
        for line, split in zip(itertools.compress(all_lines, lines), chosen, strict=True):
            outs[split].write(line)


def describe(rows: pd.DataFrame, chosen: np.ndarray, sketches: np.ndarray) -> dict[str, Any]:
    """Sizes of the splits, and how near the test is to what is trained on.

    `overlap`: prompts in more than one split; `nearest`: quantiles of the similarity (share of common
    character 4-grams, estimated) of test prompts to the nearest train prompt, over at most 200 of them.
    """
    tokens = rows["n_tokens"].groupby(chosen).agg(["size", "sum"])
    test, train = sketches[chosen == "test"][:_TEST_PROMPTS], sketches[chosen == "train"]
    quantiles = np.quantile(near_duplicates.nearest(test, train), list(_QUANTILES.values()))
    homes = pd.Series(chosen).groupby(rows["prompt_hash"].to_numpy()).nunique()
    return {
        **{name: {"conversations": int(size), "tokens": int(sum_)} for name, size, sum_ in tokens.itertuples()},
        "overlap": int((homes > 1).sum()),
        "nearest": dict(zip(_QUANTILES, (round(float(value), 2) for value in quantiles), strict=True)),
    }


def _refuse_few(prompts: int, groups: int) -> None:
    if groups >= len(SPLITS):
        return
    if prompts < len(SPLITS):
        raise UserError(f"{prompts} different prompts cannot fill train, validation and test; add conversations")
    raise UserError(
        f"{prompts} different prompts are so alike that they form {groups} of the {len(SPLITS)} groups that train,"
        " validation and test need: nearly equal prompts are never divided. Move what all share into the system"
        " message, or add conversations about something else"
    )


def assign(
    prompts: Sequence[str], validation: float, test: float, seed: int, labels: Sequence[str] | None = None
) -> list[str]:
    """The split of each conversation, given the hash of its prompt or of its group of prompts.

    Groups of equal hashes are taken label by label, in the order of a seeded hash: each goes to the test split while
    it fits into what the fraction allows to the labels so far, then likewise to validation, else to train. A group's
    label is the most common one in it. A new row moves a group only where a rounded size changes, so most
    conversations stay where they were.

    There must be at least three groups.
    """
    rows = pd.DataFrame({"prompt": np.asarray(prompts), "label": "" if labels is None else np.asarray(labels)})
    pairs = rows.value_counts().reset_index().sort_values(["count", "label"], ascending=[False, True])
    groups = pairs.groupby("prompt", sort=False).agg(label=("label", "first"), size=("count", "sum"))
    groups["order"] = np.array([_order(seed, prompt) for prompt in groups.index], np.uint64)
    groups = groups.sort_values(["label", "order"])
    wanted = {"test": max(1, round(test * len(rows))), "validation": max(1, round(validation * len(rows)))}
    groups["split"] = _fill(groups, wanted)
    _fill_empty(groups)
    return rows["prompt"].map(groups["split"]).tolist()


def _order(seed: int, prompt: str) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed}:{prompt}".encode()).digest()[:8])


def _fill(groups: pd.DataFrame, wanted: dict[str, int]) -> list[str]:
    """A split for each group; after each label, test and validation may hold the label's share of what is wanted."""
    splits, room, done, total = [], dict.fromkeys(wanted, 0), 0, int(groups["size"].sum())
    for _, sizes in groups.groupby("label", sort=False)["size"]:
        before, done = done, done + int(sizes.sum())
        for name, size in wanted.items():
            room[name] += round(size * done / total) - round(size * before / total)
        for size in sizes.tolist():
            split = next((name for name, left in room.items() if size <= left), "train")
            splits.append(split)
            if split in room:
                room[split] -= size
    return splits


def _fill_empty(groups: pd.DataFrame) -> None:
    """Give each empty split the smallest group of the split that has the most groups."""
    for name in SPLITS:
        counts = groups["split"].value_counts()
        if name not in counts:
            donors = groups["size"][groups["split"] == counts.index[0]]
            groups.loc[donors.idxmin(), "split"] = name


def changed_split() -> int | None:
    """Number of conversations of the splits just written were in another split in the last committed run.

    None where that run's splits are not in DVC's cache. Where it has these very splits, it is what that run counted,
    so that repeating a committed run changes nothing.
    """
    checksums = revisions.HEAD.checksums()
    before = {name: checksums.get(path.as_posix()) for name, path in SPLITS.items()}
    if before == {name: files.md5(path) for name, path in SPLITS.items()}:
        count: int | None = json.loads(revisions.HEAD.text(SPLIT_REPORT) or "{}").get("changed_split")
        return count
    then = {name: path for name, md5 in before.items() if md5 and (path := revisions.cached(md5))}
    return _count_changed(_homes(then), _homes(SPLITS)) if then.keys() == SPLITS.keys() else None


def _count_changed(then: pd.Series, now: pd.Series) -> int:
    home = then[~then.index.duplicated()].reindex(now.index)
    return int((home.notna() & (home != now)).sum())


def _homes(paths: dict[str, Path]) -> pd.Series:
    """The split of each conversation, by a hash of its line."""
    found = {name: [_line_hash(line) for line in path.open("rb")] for name, path in paths.items()}
    return pd.concat(pd.Series(name, index=np.array(hashes, np.uint64)) for name, hashes in found.items())


def _line_hash(line: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(line, digest_size=8).digest())


if __name__ == "__main__":
    run(main)
