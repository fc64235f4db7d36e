"""Jobs of other trainings in the same account, on services that do not filter lists."""

import pytest

from stages.backends.openai.base.client import connect
from stages.backends.openai.training import jobs
from tests.support.openai_server import OpenAIServer

MODEL = "gpt-3.5-turbo-0125"


def order(server, seed):
    return jobs.Order(server.url, MODEL, {"type": "supervised"}, seed, None, 1, {"train": "a", "validation": "b"})


@pytest.mark.parametrize("filters", [True, False], ids=["service-filters", "service-lists-all"])
def test_a_job_of_another_training_is_never_used(project, monkeypatch, filters):
    with OpenAIServer() as server:
        monkeypatch.setenv("OPENAI_API_KEY", server.key)
        server.filters_metadata = filters
        client, mine = connect(server.url), order(server, 1)
        file = client.files.create(file=("other.jsonl", b"{}\n"), purpose="fine-tune")
        for fingerprint in (order(server, 2).fingerprint, None):
            metadata = {"metadata": {"fingerprint": fingerprint}} if fingerprint else {}
            client.fine_tuning.jobs.create(model=MODEL, training_file=file.id, **metadata)
        assert len(list(client.fine_tuning.jobs.list(metadata={"fingerprint": "none"}))) == (0 if filters else 2)
        assert jobs.find(client, mine) is None
        own = client.fine_tuning.jobs.create(
            model=MODEL, training_file=file.id, metadata={"fingerprint": mine.fingerprint}
        )
        assert jobs.find(client, mine).id == own.id
        assert server.violations == []
