import base64
from contextlib import contextmanager
from types import SimpleNamespace as Some

import httpx
import openai
import pytest

from stages.backends.openai.training import results
from stages.core.cli import UserError

CSV = "step,train_loss,valid_loss\n1,2.00004,\n2,1.5,1.75006\n4,0.5,0.25\n"
CURVES = [
    {"step": 1, "train_loss": 2.0, "epoch": 0.75},
    {"step": 2, "train_loss": 1.5, "validation_loss": 1.7501, "epoch": 1.5},
    {"step": 4, "train_loss": 0.5, "validation_loss": 0.25, "epoch": 3.0},
]


def metric(step, loss, **more):
    return Some(type="metrics", data={"step": step, "train_loss": loss, **more})


class Service:
    """A client for one job: files by id, events and checkpoints."""

    def __init__(self, files=None, events=(), checkpoints=()):
        self.asked = []
        self.files = Some(with_streaming_response=Some(content=lambda name: self._streamed(files[name])))
        listed = Some(list=lambda job: self._note(("checkpoints", job), checkpoints))
        jobs = Some(list_events=lambda job, limit: self._note((job, limit), events), checkpoints=listed)
        self.fine_tuning = Some(jobs=jobs)

    def _note(self, request, answer):
        self.asked.append(request)
        return iter(answer)

    @staticmethod
    @contextmanager
    def _streamed(content):
        if isinstance(content, Exception):
            raise content
        yield Some(iter_bytes=lambda: iter((content[:7], content[7:])))


def job(epochs=3, files=("f1",), model="ft:tuned"):
    return Some(
        id="job1",
        result_files=list(files),
        hyperparameters=Some(n_epochs=epochs) if epochs is not None else None,
        fine_tuned_model=model,
    )


@pytest.mark.parametrize("encode", [bytes, base64.b64encode], ids=["plain", "base64"])
def test_curves_come_from_the_result_file_plain_or_in_base64(encode, capsys):
    service = Service({"f1": encode(CSV.encode())})
    assert results.curves(service, job()) == CURVES
    assert service.asked == [("job1", 100)] and capsys.readouterr().out == ""


def test_a_file_with_a_comma_in_the_first_200_bytes_is_csv():
    wide = "a" * 190 + ",step,train_loss\n9,1,2\n"
    assert results.curves(Service({"f1": wide.encode()}), job())[0]["step"] == 1
    # 200 bytes of the base64 alphabet without a comma, followed by what is not base64.
    late = ("a" * 200 + ",step,train_loss\n9,1,2\n").encode()
    assert results.curves(Service({"f1": late}), job()) == []


def test_curves_of_several_files_are_concatenated():
    service = Service({"f1": b"step,train_loss\n1,2\n", "f2": b"step,train_loss\n2,1\n"})
    assert [row["step"] for row in results.curves(service, job(files=["f1", "f2"]))] == [1, 2]


@pytest.mark.parametrize(
    "content",
    [
        b"not base64!",
        b"step,loss\n1,2\n",
        b"step,train_loss\n1,a\n",
        b"step,train_loss\n1\n",
        b"step,train_loss\n\xff,1\n",
        base64.b64encode(b"\xff\xff\xff"),
        openai.APIConnectionError(request=httpx.Request("GET", "http://x")),
    ],
)
def test_events_replace_an_unreadable_file(content, capsys):
    events = [metric(2, 1.5), Some(type="message", data={"step": 9, "train_loss": 9}), metric(1, 2), metric(4, 0.5)]
    found = results.curves(Service({"f1": content}, events), job())
    assert [(row["step"], row["train_loss"], row["epoch"]) for row in found] == [
        (1, 2, 0.75),
        (2, 1.5, 1.5),
        (4, 0.5, 3),
    ]
    assert "cannot read the result file f1" in capsys.readouterr().out


def test_a_result_file_without_end_is_not_taken_whole(monkeypatch, capsys):
    monkeypatch.setattr(results, "_MOST_BYTES", len(CSV))
    assert results.curves(Service({"f1": CSV.encode()}, [metric(1, 2.0)]), job()) == CURVES
    results.curves(Service({"f1": CSV.encode() + b"\n"}, [metric(1, 2.0)]), job())
    assert "cannot read the result file f1 (ValueError); using the job's events instead" in capsys.readouterr().out


def test_a_result_file_takes_precedence_over_events():
    found = results.curves(Service({"f1": CSV.encode()}, [metric(7, 0.1)]), job())
    assert found == CURVES


def test_events_without_data_are_ignored():
    events = [Some(type="metrics", data=None), Some(type="metrics", data=[1]), metric(1, 2)]
    assert [row["step"] for row in results.curves(Service({}, events), job(files=[]))] == [1]


def test_losses_over_the_whole_validation_split_replace_those_over_batches():
    events = [
        metric(2, 1.5, full_valid_loss=1.60006),
        metric(4, 0.5, full_valid_loss=0.0),
        metric(1, 2, full_valid_loss=None),
    ]
    found = results.curves(Service({"f1": CSV.encode()}, events), job())
    assert [row.get("validation_loss") for row in found] == [None, 1.6001, 0.0]
    # Once a step has a loss over the whole split, losses over batches are not comparable.
    found = results.curves(Service({"f1": CSV.encode()}, [metric(4, 0.5, full_valid_loss=0.3)]), job())
    assert [row.get("validation_loss") for row in found] == [None, None, 0.3]


def test_an_empty_cell_is_not_a_validation_loss_but_zero_is():
    rows = b"step,train_loss,valid_loss\n1,2,\n2,1,0\n"
    first, second = results.curves(Service({"f1": rows}), job())
    assert "validation_loss" not in first and second["validation_loss"] == 0.0
    events = [metric(1, 2, valid_loss=None)]
    assert "validation_loss" not in results.curves(Service({}, events), job(files=[]))[0]


@pytest.mark.parametrize("epochs", [None, "auto"])
def test_without_a_number_of_epochs_steps_have_no_epoch(epochs):
    assert {row["epoch"] for row in results.curves(Service({"f1": CSV.encode()}), job(epochs))} == {None}


def test_epochs_are_proportional_to_the_last_step_in_any_order():
    rows = b"step,train_loss\n3,1\n1,1\n2,1\n"
    found = results.curves(Service({"f1": rows}), job(epochs=2))
    assert [row["epoch"] for row in found] == [2.0, 0.6667, 1.3333]


def test_a_job_without_curves_is_reported_and_not_an_error(capsys):
    assert results.curves(Service({}), job(files=[])) == []
    assert "job1 has no loss curves" in capsys.readouterr().out


def checkpoint(step, full=None, batch=None):
    return Some(
        step_number=step,
        fine_tuned_model_checkpoint=f"ft:tuned:{step}",
        metrics=Some(full_valid_loss=full, valid_loss=batch),
    )


def test_the_last_model_is_that_of_the_job_and_needs_no_checkpoints():
    service = Service(checkpoints=[checkpoint(3, 0.1)])
    assert results.model(service, job(), "last", "auto") == ("ft:tuned", None) and service.asked == []


@pytest.mark.parametrize("name", [None, ""])
def test_a_job_that_names_no_model_is_an_error(name):
    with pytest.raises(
        UserError, match="job job1 has succeeded, but the service does not name its model; set openai.chat_model"
    ):
        results.model(Service(), job(model=name), "last", "auto")


@pytest.mark.parametrize(
    "checkpoints, step",
    [
        ([checkpoint(9, 0.5), checkpoint(6, 0.2), checkpoint(3, 0.4)], 6),
        # Losses over a batch and over the whole split are not compared with each other.
        ([checkpoint(9, 0.5), checkpoint(6, None, 0.3), checkpoint(3, 0.4, 0.1)], 3),
        ([checkpoint(9, None, 0.2), checkpoint(6, None, 0.0), checkpoint(3, None, 0.1)], 6),
        ([checkpoint(9, 0.5), checkpoint(6), checkpoint(3, 0.7)], 9),
        ([checkpoint(9, 0.5), checkpoint(6, 0.0, 0.9)], 6),
        # Of equal ones, the first that the service lists, which is the latest.
        ([checkpoint(9, 0.5), checkpoint(3, 0.5)], 9),
    ],
)
def test_the_best_checkpoint_has_the_lowest_validation_loss(checkpoints, step):
    service = Service(checkpoints=checkpoints)
    assert results.model(service, job(), "best", "auto") == (f"ft:tuned:{step}", step)
    assert service.asked == [("checkpoints", "job1")]


def test_a_checkpoint_can_be_selected_by_step_even_without_a_loss():
    assert results.model(Service(checkpoints=[checkpoint(9, 0.5), checkpoint(6)]), job(), 6, "auto") == (
        "ft:tuned:6",
        6,
    )


@pytest.mark.parametrize("checkpoints", [[], [checkpoint(3)]])
def test_best_is_rejected_if_no_checkpoint_has_a_loss(checkpoints):
    with pytest.raises(
        UserError, match=r"job1 has no checkpoint with a validation loss; set openai.checkpoint to last"
    ):
        results.model(Service(checkpoints=checkpoints), job(), "best", "auto")


@pytest.mark.parametrize(
    "checkpoints, there", [([], "none"), ([checkpoint(9), checkpoint(6), checkpoint(10)], "6, 9, 10")]
)
def test_a_step_without_a_checkpoint_is_rejected_with_the_available_ones(checkpoints, there):
    with pytest.raises(
        UserError, match=f"openai.checkpoint: job job1 has no checkpoint at step 5; available: {there}$"
    ):
        results.model(Service(checkpoints=checkpoints), job(), 5, "auto")
