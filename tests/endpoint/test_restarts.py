"""What a stopped endpoint leaves, and the next one takes up."""

import json
import threading

from stages.core.paths import BASE, TUNED
from stages.endpoint.jobs import RESULT
from tests.support.endpoint import ended, upload


def start_three(endpoint, client):
    endpoint.held.set()
    file = upload(client)
    jobs = [client.fine_tuning.jobs.create(model="tiny", training_file=file).id for _ in range(3)]
    while not endpoint.started:
        threading.Event().wait(0.01)
    return jobs


def test_a_restart_resumes_the_running_job_first_and_loses_none(endpoint_of):
    endpoint = endpoint_of()
    with endpoint.running(), endpoint.client() as client:
        jobs = start_three(endpoint, client)
    assert endpoint.started[0].killed.is_set()
    endpoint.held.clear()
    with endpoint.running(), endpoint.client() as client:
        assert [ended(client, job).status for job in jobs] == ["succeeded"] * 3
        assert [one.folder.name for one in endpoint.started] == [jobs[0], *jobs]
        events = [event.message for event in client.fine_tuning.jobs.list_events(jobs[0], limit=100)]
    assert sum("restarted" in message for message in events) == 1
    assert len([message for message in events if message.startswith("Step 1/")]) == 1


def test_a_training_that_ended_just_before_the_kill_is_not_repeated(endpoint_of):
    endpoint = endpoint_of()
    with endpoint.running(), endpoint.client() as client:
        first, *_ = start_three(endpoint, client)
    folder = endpoint.started[0].folder
    (folder / TUNED).mkdir(parents=True)
    (folder / RESULT).write_text(json.dumps({"metrics": {"steps": 2, "best_epoch": 1}, "run": {}}))
    endpoint.held.clear()
    with endpoint.running(), endpoint.client() as client:
        assert ended(client, first).status == "succeeded"
    assert [one.folder.name for one in endpoint.started].count(first) == 1


def test_a_job_keeps_its_base_and_recipe_when_the_endpoint_has_others(endpoint_of, project, small_base):
    endpoint = endpoint_of(models=["gpt-3.5-turbo-0125=tiny"])
    with endpoint.running(), endpoint.client() as client:
        endpoint.held.set()
        asked = {"model": "gpt-3.5-turbo-0125", "training_file": upload(client)}
        job = client.fine_tuning.jobs.create(**asked, hyperparameters={"n_epochs": 2}).id
        ended(client, job, ("running",))
    text = (project / "params.yaml").read_text()
    (project / "params.yaml").write_text(text.replace("lr: 0.001", "lr: 0.01").replace("epochs: 3", "epochs: 9"))
    endpoint = endpoint_of()
    with endpoint.running(), endpoint.client() as client:
        done = ended(client, job)
        assert done.status == "succeeded" and done.hyperparameters.n_epochs == 2
        assert endpoint.store_plan(job)["knobs"]["lr"] == 0.001
        assert [model.id for model in client.models.list()] == ["tiny", done.fine_tuned_model]


def test_what_a_killed_endpoint_left_over_is_removed(endpoint_of, project):
    endpoint = endpoint_of()
    with endpoint.running(), endpoint.client() as client:
        job = ended(client, client.fine_tuning.jobs.create(model="tiny", training_file=upload(client)).id)
    state = project / ".state/endpoint"
    (state / "files/part-1").write_text("half an upload")
    (state / "jobs/ftjob-1").mkdir()
    left = state / "jobs" / job.id / ".state/training"
    left.mkdir(parents=True)
    with endpoint.running():
        assert not (state / "files/part-1").exists() and not (state / "jobs/ftjob-1").exists()
        assert not left.parent.exists() and (state / "jobs" / job.id / BASE).exists()


def test_a_cancelled_and_a_failed_job_leave_no_checkpoints(endpoint_of, project):
    endpoint = endpoint_of()
    with endpoint.running(), endpoint.client() as client:
        first, second, third = start_three(endpoint, client)
        client.fine_tuning.jobs.cancel(first)
        ended(client, second, ("running",))
        while len(endpoint.started) < 2:
            threading.Event().wait(0.01)
        endpoint.started[1].error = "no"
        client.fine_tuning.jobs.cancel(third)
        endpoint.held.clear()
        assert ended(client, second).status == "failed"
    assert [path.name for path in (project / ".state/endpoint/jobs").iterdir()] in ([], [second])
    assert not list((project / ".state/endpoint/jobs").rglob("data"))
