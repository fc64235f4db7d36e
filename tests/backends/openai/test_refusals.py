"""Errors of the endpoint and the environment are reported in one sentence, before anything is paid."""

import pytest

from stages import base, evaluate, finetune
from stages.core.cli import UserError
from tests.conftest import set_params
from tests.support.hosted import MODEL
from tests.support.openai_server import OpenAIServer


@pytest.mark.parametrize("outcome", ["failed", "cancelled"])
def test_an_unsuccessful_job_is_reported_and_not_resubmitted(hosted, outcome):
    hosted.job_outcome = outcome
    for _ in range(2):
        with pytest.raises(UserError) as error:
            finetune.main()
        assert f"is {outcome}" in str(error.value) and "increase openai.attempt by one" in str(error.value)
        assert "Fine-tuning job started" in str(error.value)
    assert len(hosted.jobs) == 1
    hosted.job_outcome = "succeeded"
    set_params(openai__attempt=2)
    finetune.main()
    assert len(hosted.jobs) == 2


def test_a_failed_job_shows_code_message_and_parameter(hosted):
    hosted.job_outcome = "failed"
    with pytest.raises(UserError, match=r"is failed: .+ error \(code server_error\)\n"):
        finetune.main()


def test_an_unknown_status_is_waited_for(hosted, capsys):
    hosted.job_outcome = "unknown"
    set_params(openai__timeout=0.0002)
    with pytest.raises(UserError, match="hours exceeded"):
        finetune.main()
    assert "the status 'thinking', which OpenAI's API lacks; still waiting" in capsys.readouterr().out


@pytest.mark.parametrize(
    "status, code, message, expected",
    [
        (401, "invalid_api_key", "no", "the key in OPENAI_API_KEY was rejected"),
        (403, None, "not allowed", "the key lacks permission"),
        (429, "insufficient_quota", "You exceeded your current quota", "the account has no credit left"),
        (429, "rate_limit_exceeded", "Limit reached on requests per day", "the daily limit is reached"),
        (429, "rate_limit_exceeded", "Slow down", "too many requests"),
        (400, "bad", "suffix is odd", "400: suffix is odd"),
    ],
)
def test_a_rejected_job_is_reported_in_one_sentence_and_not_created(hosted, status, code, message, expected):
    hosted.fail("POST", "/fine_tuning/jobs", "status", status=status, code=code, message=message)
    with pytest.raises(UserError) as error:
        finetune.main()
    assert str(error.value).startswith(f"{hosted.url}: {expected}") and "\n" not in str(error.value)
    assert not hosted.jobs
    finetune.main()
    assert len(hosted.jobs) == 1


@pytest.mark.parametrize(
    "url, cause",
    [
        ("http://127.0.0.1:9/v1", "connection refused"),
        ("http://no-such-host.invalid/v1", "host not found"),
    ],
)
def test_an_unreachable_endpoint_is_reported_with_the_cause(hosted, monkeypatch, url, cause):
    monkeypatch.setenv("OPENAI_BASE_URL", url)
    with pytest.raises(UserError, match=f"{url}: {cause}"):
        base.main()


def test_tls_with_a_server_without_tls_is_reported(hosted, monkeypatch):
    monkeypatch.setenv("OPENAI_BASE_URL", hosted.url.replace("http:", "https:"))
    with pytest.raises(UserError, match="TLS connection failed"):
        base.main()


def test_a_missing_key_is_reported(hosted, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY")
    with pytest.raises(UserError, match="OPENAI_API_KEY is not set"):
        base.main()


@pytest.mark.parametrize(
    "url", ["ftp://x/v1", "https://user:secret@api.example/v1", "https://api.example/v1?key=secret"]
)
def test_an_invalid_address_is_rejected_without_showing_it(hosted, monkeypatch, url):
    monkeypatch.setenv("OPENAI_BASE_URL", url)
    with pytest.raises(UserError) as error:
        base.main()
    assert "secret" not in str(error.value)


def test_an_unknown_model_is_reported(hosted):
    set_params(openai__model="gpt-9")
    with pytest.raises(UserError, match="openai.model: 'gpt-9' does not exist at"):
        base.main()


def test_a_wrong_path_is_not_reported_as_an_unknown_model(hosted):
    for path in ("/models/*", "/fine_tuning/jobs", "/fine_tuning/jobs/*"):
        hosted.fail("GET", path, "status", status=404, message="no such page")
    with pytest.raises(UserError, match="404: no such page; this endpoint .* check that openai.base_url is complete"):
        base.main()


def test_an_endpoint_without_fine_tuning_is_reported_before_any_upload(hosted):
    for path in ("/fine_tuning/jobs", "/fine_tuning/jobs/*"):
        hosted.fail("GET", path, "status", status=404, message="Not Found")
    with pytest.raises(UserError, match=f"{hosted.url}: 404: Not Found; this endpoint has no fine-tuning jobs$"):
        base.main()


def test_another_endpoint_in_the_environment_is_rejected_before_training(hosted, monkeypatch):
    base.main()
    monkeypatch.setenv("OPENAI_BASE_URL", "http://elsewhere.example/v1")
    with pytest.raises(UserError, match=r"is at http://127.*run `dvc repro -f base` to use the new endpoint"):
        finetune.main()


def test_a_model_that_was_shut_down_is_reported_with_the_date(project, monkeypatch):
    with OpenAIServer(retired={MODEL: "2026-10-23"}) as server:
        monkeypatch.setenv("OPENAI_BASE_URL", server.url)
        monkeypatch.setenv("OPENAI_API_KEY", server.key)
        set_params(backend="openai")
        with pytest.raises(UserError, match="does not exist at .*was shut down on 2026-10-23"):
            base.main()


def test_an_organisation_without_permission_to_create_jobs(hosted):
    hosted.permissions.clear()
    with pytest.raises(UserError, match=r"the key lacks permission.*no longer able to create"):
        finetune.main()


def test_the_tuned_model_is_queried_only_at_its_own_endpoint(hosted, monkeypatch):
    finetune.main()
    monkeypatch.setenv("OPENAI_BASE_URL", "http://elsewhere.example/v1")
    with pytest.raises(UserError, match=r"is at http://127.*is http://elsewhere.example/v1; set it back"):
        evaluate.main()


@pytest.mark.parametrize("key", ["sk-test-1\nsk-test-2", "\u201csk-test-1\u201d", "sk-test\x00"[:7] + "\x7f"])
def test_a_malformed_key_is_rejected_and_not_shown(hosted, monkeypatch, key):
    monkeypatch.setenv("OPENAI_API_KEY", key)
    with pytest.raises(UserError, match="another invalid character") as error:
        base.main()
    assert "sk-test" not in str(error.value)


def test_white_space_around_a_key_is_ignored(hosted, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", f" {hosted.key}\n")
    base.main()


@pytest.mark.parametrize("address", ["http://:secret@127.0.0.1/v1", "http://me:secret@127.0.0.1/v1"])
def test_an_address_with_credentials_is_rejected_and_not_shown(hosted, monkeypatch, address):
    monkeypatch.setenv("OPENAI_BASE_URL", address)
    with pytest.raises(UserError, match="must not contain credentials") as error:
        base.main()
    assert "secret" not in str(error.value)
