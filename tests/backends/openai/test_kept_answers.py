"""Answers and jobs are found by who has only the repository and DVC's cache, even when the models are gone."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml

from stages import evaluate, finetune
from stages.core import files
from stages.core.cli import UserError
from stages.core.paths import ANSWERS, MEASURES, RUN
from stages.metrics import scoring
from tests.conftest import set_params
from tests.support import history
from tests.support.hosted import MODEL, run_all
from tests.support.openai_server.profiles import MINIMAL

ASKED = ("POST", "/chat/completions")


@pytest.fixture(autouse=True)
def fast(monkeypatch):
    monkeypatch.setattr(scoring, "embedded", lambda texts: np.ones((len(texts), 1)))


def keep():
    """Move the out into DVC's cache, as `dvc repro` here and `dvc pull` there do, and delete it, as before a stage."""
    md5 = files.md5(ANSWERS)
    cached = Path(".dvc/cache/files/md5", md5[:2], md5[2:])
    cached.parent.mkdir(parents=True, exist_ok=True)
    shutil.move(ANSWERS, cached)
    out = {"path": ANSWERS.as_posix(), "hash": "md5", "md5": md5, "size": cached.stat().st_size}
    lock = {"schema": "2.0", "stages": {"evaluate": {"cmd": "evaluate", "outs": [out]}}}
    Path("dvc.lock").write_text(yaml.safe_dump(lock))
    return cached


def leave(server, monkeypatch):
    """The models are shut down, and this is another machine, without a key."""
    shutil.rmtree(".state")
    monkeypatch.delenv("OPENAI_API_KEY")
    server.retired = {MODEL: "2027-01-14"}
    server._tuned.clear()


def test_a_colleague_repeats_the_evaluation_without_models_and_without_a_key(hosted, monkeypatch):
    run_all()
    measures, answers = MEASURES.read_bytes(), ANSWERS.read_bytes()
    history.begin()
    keep()
    leave(hosted, monkeypatch)
    evaluate.main()
    assert (MEASURES.read_bytes(), ANSWERS.read_bytes()) == (measures, answers)
    assert hosted.requests.count(ASKED) == 6
    # Other confidence intervals of the same answers.
    set_params(evaluate__resamples=200)
    ANSWERS.unlink()
    evaluate.main()
    assert hosted.requests.count(ASKED) == 6


def test_answers_of_the_last_commit_are_used_after_another_run(hosted, monkeypatch):
    run_all()
    history.begin()
    keep()
    history.commit()
    leave(hosted, monkeypatch)
    Path("dvc.lock").write_text("stages: {}\n")
    evaluate.main()
    assert hosted.requests.count(ASKED) == 6


@pytest.mark.parametrize(
    "line",
    [
        b"no JSON",
        b'{"request": "a"}',
        b'{"request": "%s", "endpoint": "e", "model": "m", "answer": {"text": 5, "cut": false}}' % (b"0" * 64),
        b'{"request": "%s", "endpoint": 1, "model": [], "answer": {"text": "a", "cut": false}}' % (b"0" * 64),
        b"\xff\xfe",
    ],
)
def test_damaged_lines_of_the_out_are_no_answers_and_no_error(hosted, monkeypatch, line):
    run_all()
    history.begin()
    cached = keep()
    cached.write_bytes(line + b"\n" + cached.read_bytes())
    leave(hosted, monkeypatch)
    evaluate.main()
    assert hosted.requests.count(ASKED) == 6


def test_answers_of_another_endpoint_or_to_another_prompt_are_not_used(hosted, monkeypatch):
    run_all()
    history.begin()
    keep()
    leave(hosted, monkeypatch)
    set_params(evaluate__max_new_tokens=9)
    with pytest.raises(UserError, match="OPENAI_API_KEY is not set"):
        evaluate.main()


def test_a_tuned_model_that_is_gone_is_said_with_where_its_answers_are(hosted):
    run_all()
    shutil.rmtree(".state/openai/answers")
    hosted._tuned.clear()
    with pytest.raises(UserError, match=r"does not answer .*404.*`dvc pull` brings the answers .*not paid again"):
        evaluate.main()


def test_a_service_that_lists_nothing_is_asked_for_the_job_of_the_last_commit(hosted):
    hosted.profile = MINIMAL
    finetune.main()
    history.begin()
    history.commit()
    shutil.rmtree(".state")
    RUN.unlink()
    finetune.main()
    assert len(hosted.jobs) == 1
    # Another training has another job.
    set_params(epochs=2)
    finetune.main()
    assert len(hosted.jobs) == 2


@pytest.mark.parametrize("job", ["../files/1", "a b", "", 5, None, "x" * 300])
def test_a_job_of_the_last_commit_that_is_no_name_is_not_asked_for(hosted, job):
    finetune.main()
    RUN.write_text(json.dumps(json.loads(RUN.read_text()) | {"job": job}))
    history.begin()
    history.commit()
    shutil.rmtree(".state")
    finetune.main()
    assert len(hosted.jobs) == 1 and not any("files/1" in path for _, path in hosted.requests)
