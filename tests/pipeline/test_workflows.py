"""The workflow files: linted, and their shell steps run on a real merge, with a stand-in for GitHub's gh."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.conftest import ROOT, set_params
from tests.support.history import commit, git, predictions, write_run

FILES = sorted((ROOT / ".github/workflows").glob("*.yml"))
DEPENDABOT = ROOT / ".github/dependabot.yml"
BIN = Path(sys.executable).parent


def against_the_schema(*paths, schema="vendor.github-workflows"):
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", schema, *paths]
    return subprocess.run(command, capture_output=True, text=True)


def test_the_workflows_are_what_github_accepts(tmp_path):
    done = against_the_schema(*FILES)
    assert done.returncode == 0, done.stdout
    wrong = tmp_path / "wrong.yml"
    wrong.write_text(FILES[0].read_text().replace("runs-on:", "run-on:"))
    assert against_the_schema(wrong).returncode == 1


def test_dependabot_accepts_its_configuration(tmp_path):
    text = DEPENDABOT.read_text()
    done = against_the_schema(DEPENDABOT, schema="vendor.dependabot")
    assert done.returncode == 0, done.stdout
    assert {one["package-ecosystem"] for one in yaml.safe_load(text)["updates"]} == {"pip", "github-actions"}
    wrong = tmp_path / "wrong.yml"
    wrong.write_text(text.replace("interval: weekly", "interval: sometimes"))
    assert against_the_schema(wrong, schema="vendor.dependabot").returncode == 1


LINTER = [BIN / "zizmor", "--offline", "--no-progress", "--config", ROOT / ".github/zizmor.yml"]


def test_the_linter_finds_no_weakness(tmp_path):
    done = subprocess.run([*LINTER, *FILES, DEPENDABOT], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    wrong = tmp_path / "wrong.yml"
    wrong.write_text(FILES[0].read_text().replace("make setup", "echo ${{ github.event.pull_request.title }}"))
    assert "template-injection" in subprocess.run([*LINTER, wrong], capture_output=True, text=True).stdout


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_every_action_is_pinned_by_its_commit_and_names_its_version(path, tmp_path):
    text = path.read_text()
    used = re.findall(r"(?m)uses: (.*)$", text)
    assert used and all(re.fullmatch(r"[\w./-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+", action) for action in used), used
    wrong = tmp_path / path.name
    wrong.write_text(re.sub(r"@[0-9a-f]{40} # v(\d+).*", r"@v\1", text))
    assert "unpinned-uses" in subprocess.run([*LINTER, wrong], capture_output=True, text=True).stdout


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_a_workflow_needs_no_secret_and_may_only_read(path):
    text = path.read_text()
    # A pull request's own code runs here: pull_request_target would run it with the rights of the project.
    assert "secrets." not in text and "pull_request_target" not in text
    assert yaml.safe_load(text)["permissions"] == {"contents": "read"}


def test_the_tests_run_on_each_python_that_is_supported():
    job = yaml.safe_load((ROOT / ".github/workflows/test.yml").read_text())["jobs"]["test"]
    assert job["strategy"]["matrix"]["python"] == ["3.11", "3.12", "3.13"]
    assert job["steps"][-1] == {"run": "make test-all"}


def test_style_and_types_are_checked_on_every_pull_request():
    workflow = yaml.safe_load((ROOT / ".github/workflows/test.yml").read_text())
    # YAML 1.1 reads the key `on` as true.
    assert "pull_request" in workflow[True] and workflow["jobs"]["lint"]["steps"][-1] == {"run": "make lint"}


def test_pre_commit_runs_the_linters_that_make_lint_runs():
    recipe = re.search(r"(?m)^lint:.*\n((?:\t.*\n)+)", (ROOT / "Makefile").read_text()).group(1)
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"][0]["hooks"]
    linter = re.compile(r"(?:\.venv/bin|\$\(BIN\))/([\w-]+(?: [a-z]+)?)")
    assert {linter.match(hook["entry"]).group(1) for hook in hooks} == set(linter.findall(recipe))


GH = """#!/usr/bin/env bash
# Answers a listing with what $COMMENTS holds, and writes down all else.
case "$*" in
    *--paginate*) cat "$COMMENTS" ;;
    *) echo "$@" >> "$CALLS"; cp comment.md "$CALLS.body" ;;
esac
"""


@pytest.fixture
def merge(repository, monkeypatch, tmp_path_factory):
    """merge(losses) proposes a run with these losses as GitHub does: by a merge commit, which is checked out."""
    tools = tmp_path_factory.mktemp("tools")
    (tools / "gh").write_text(GH)
    (tools / "gh").chmod(0o755)
    Path(".venv").symlink_to(Path(sys.prefix))
    Path(".git/info/exclude").write_text(".venv\n/*.txt\n/*.md\n")
    for name, value in {
        "PATH": f"{tools}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "GITHUB_STEP_SUMMARY": str(tools / "summary"),
        "COMMENTS": str(tools / "comments"),
        "CALLS": str(tools / "calls"),
        "OPTIONS": "",
        "RUN": "https://host.example/o/p/actions/runs/1",
        "ISSUES": "repos/o/p/issues",
        "NUMBER": "7",
    }.items():
        monkeypatch.setenv(name, value)
    (tools / "comments").touch()
    Path("dvc.yaml").write_text("params: [params.yaml]\n")
    commit()

    def propose(losses):
        git("checkout", "-qb", "topic")
        write_run(predictions(losses))
        commit()
        git("checkout", "-q", "main")
        Path("other.cfg").write_text("x")
        commit("main went on")
        git("merge", "-q", "--no-ff", "--no-edit", "topic")
        return tools

    return propose


def step(name):
    """Run one step of the review workflow as GitHub's bash does; its exit status."""
    jobs = yaml.safe_load((ROOT / ".github/workflows/review.yml").read_text())["jobs"]
    (script,) = [one["run"] for job in jobs.values() for one in job["steps"] if one.get("name") == name]
    return subprocess.run(["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", script]).returncode


def reviewed():
    return step("Check that the committed run belongs to this code"), step("Review"), step("Summary")


def test_a_pull_request_gets_its_review(merge):
    tools = merge([0.8, 1.8, 3.8])
    assert reviewed() == (0, 0, 0)
    summary = (tools / "summary").read_text()
    assert summary.startswith("<!-- review -->\n# Review: before → after\n")
    assert "| loss (lower is better) | 3.10 | 2.90 |" in summary
    assert summary.rstrip().splitlines()[-1].startswith("    dvc.lock and the reports match the code")


def test_a_regression_fails_the_job_and_is_shown(merge):
    tools = merge([2.0, 3.0, 5.0])
    assert reviewed() == (0, 1, 0)
    summary = (tools / "summary").read_text()
    assert "failed: worse by 1" in summary and "    error: 1 metric got worse by more than" in summary


def test_a_stale_run_fails_the_job_and_is_shown(merge):
    tools = merge([0.8, 1.8, 3.8])
    set_params(lr=0.5)
    pipeline = {"stages": {"all": {"cmd": "x", "params": ["lr"], "outs": ["data/conversations.jsonl"]}}}
    Path("dvc.yaml").write_text(json.dumps(pipeline))
    assert reviewed() == (1, 0, 0)
    assert "    error: 1 of 1 stages is stale" in (tools / "summary").read_text()


def test_different_tests_fail_the_job_unless_the_label_allows_them(merge, monkeypatch):
    tools = merge([0.8, 1.8, 3.8])
    lines = predictions([0.8, 1.8, 3.8])[:2]
    write_run(lines)
    git("add", "-A")
    git("commit", "-q", "--amend", "--no-edit")
    assert reviewed() == (0, 1, 0)
    assert "    error: the test sets differ" in (tools / "summary").read_text()
    git("tag", "-d", "before", "after")
    monkeypatch.setenv("OPTIONS", "--allow-different-tests")
    assert reviewed() == (0, 0, 0)
    assert "<!-- review -->\n**Warning: the test sets differ" in (tools / "summary").read_text()


def test_one_comment_is_made_and_then_updated(merge):
    tools = merge([0.8, 1.8, 3.8])
    reviewed()
    assert step("Comment") == 0
    (tools / "comments").write_text("4711\n4712\n")
    assert step("Comment") == 0
    assert (tools / "calls").read_text().splitlines() == [
        "api --silent --method POST repos/o/p/issues/7/comments --field body=@comment.md",
        "api --silent --method PATCH repos/o/p/issues/comments/4711 --field body=@comment.md",
    ]
    assert (tools / "calls.body").read_text().startswith("<!-- review -->\n# Review: ")


def test_a_comment_is_cut_after_a_whole_line_and_names_the_summary(merge):
    tools = merge([0.8, 1.8, 3.8])
    assert step("Review") == 0
    said = [f"error: {number} ü stages are stale" for number in range(500)]
    Path("check.txt").write_text("\n".join(said) + "\n")
    assert step("Summary") == 0
    comment, summary = Path("comment.md").read_text(), (tools / "summary").read_text()
    *lines, last = comment.splitlines()
    assert last == "Continued in the [summary](https://host.example/o/p/actions/runs/1)."
    assert lines[-2].strip() in said and len(comment) < 65_536
    assert all(f"    {line}\n" in summary for line in said) and "error: 499" not in comment


def test_a_fork_cannot_comment_and_that_fails_nothing():
    comment = yaml.safe_load((ROOT / ".github/workflows/review.yml").read_text())["jobs"]["comment"]
    assert "head.repo.full_name == github.repository" in comment["if"] and comment["continue-on-error"] is True


def test_a_job_that_runs_a_pull_requests_code_has_no_token_that_may_write():
    for path in (ROOT / ".github/workflows").glob("*.yml"):
        workflow = yaml.safe_load(path.read_text())
        assert workflow["permissions"] == {"contents": "read"}
        for job in workflow["jobs"].values():
            checked_out = any("actions/checkout" in one.get("uses", "") for one in job["steps"])
            rights = job.get("permissions", workflow["permissions"])
            assert not (checked_out and "write" in rights.values())
            # Without the code there is nothing of it that could run.
            assert checked_out or "make" not in str(job["steps"]) and "python" not in str(job["steps"])
