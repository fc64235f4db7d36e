"""What a stage imports, and what dvc.yaml says it depends on, are the same: an edit of a file runs the right stages."""

import ast
import functools
import re

import pytest
import yaml

from stages import backends
from tests.conftest import ROOT
from tests.support.commands import STAGES

BACKENDS = ("openai", "unsloth")
DOORS = ("base", "reader", "training", "inference", "export", "doctor")
# How a command talks, waits and writes files, and the types of what is handed over: none of it decides a result. An
# edit there would train again for nothing.
UNWATCHED = {
    "stages/__init__.py",
    "stages/backends/__init__.py",
    "stages/backends/protocol.py",
    "stages/core/artifacts.py",
    "stages/core/cli.py",
    "stages/core/diagnosis.py",
    "stages/core/files.py",
    "stages/core/locks.py",
    "stages/core/paths.py",
    # What it fetches is checked against a SHA-256 that its caller names.
    "stages/core/pypi.py",
    # How params.yaml is read.
    "stages/core/yaml_text.py",
}
# Parameters reach a stage as dvc.yaml's params, with their values.
UNWATCHED |= {path.relative_to(ROOT).as_posix() for path in ROOT.glob("stages/params/*.py")}
READERS = ("parse", "finetune", "evaluate", "export")
# A stage that watches a file without importing it, by backend: it costs seconds, and no training.
HARMLESS = {
    "unsloth": {
        ("base", "stages/backends/openai/base"),
        ("base", "stages/backends/openai/export"),
        ("evaluate", "stages/core/revisions.py"),
    },
    "openai": {
        ("base", "stages/backends/unsloth/export"),
        # A part of that backend's reader.
        *((stage, "stages/backends/unsloth/template.py") for stage in ("base", *READERS)),
        ("base", "stages/backends/unsloth/base"),
        ("base", "stages/backends/unsloth/reader.py"),
        ("base", "stages/dataset/conversations.py"),
        ("evaluate", "stages/backends/openai/reader.py"),
        ("export", "stages/backends/openai/base"),
        ("export", "stages/backends/openai/reader.py"),
        ("export", "stages/dataset/conversations.py"),
    },
}


def nodes(tree):
    """All nodes that run: what is under `if TYPE_CHECKING` does not."""
    todo = [tree]
    while todo:
        node = todo.pop()
        if not (isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"):
            yield node
            todo.extend(ast.iter_child_nodes(node))


def module(dotted):
    path = ROOT.joinpath(*dotted.split("."))
    return next((one for one in (path.with_suffix(".py"), path / "__init__.py") if one.exists()), None)


@functools.cache
def mentioned(path, backend):
    """The project's modules that one imports, the backend's door that it opens, and files beside it that it names."""
    return list(_mentioned(path, backend))


def _mentioned(path, backend):
    for node in nodes(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "stages":
            parts = node.module.split(".")
            yield from (module(".".join(parts[:count])) for count in range(1, len(parts) + 1))
            yield from (module(f"{node.module}.{name.name}") for name in node.names)
        elif isinstance(node, ast.Attribute) and ast.unparse(node.value) == "backends" and node.attr in DOORS:
            yield module(f"stages.backends.{backend}")
            yield module(f"stages.backends.{backend}.{node.attr}")
        elif isinstance(node, ast.Constant) and re.fullmatch(r"[\w.]+\.(css|jinja|yaml)", str(node.value)):
            yield from (ROOT / "stages").rglob(node.value)


def imported(path, backend, found=None):
    """Files that a module needs, itself included; nothing is looked for behind a file that is not watched."""
    found = set() if found is None else found
    if path not in found:
        found.add(path)
        if path.suffix == ".py" and name(path) not in UNWATCHED:
            for one in filter(None, mentioned(path, backend)):
                imported(one, backend, found)
    return found


def name(path):
    return path.relative_to(ROOT).as_posix()


@functools.cache
def computes(path):
    """Whether a file holds more than words and types."""
    if path.suffix != ".py":
        return True
    body = ast.parse(path.read_text(encoding="utf-8")).body[1:]
    return any(
        not isinstance(node, ast.ImportFrom) and ast.unparse(getattr(node, "test", node)) != "TYPE_CHECKING"
        for node in body
    )


@functools.cache
def needed(stage, backend):
    """Files that decide a stage's result."""
    found = imported(ROOT / f"stages/{stage}.py", backend)
    return {name(path) for path in found if name(path) not in UNWATCHED and computes(path)}


@functools.cache
def watched(stage, backend):
    """The code that dvc.yaml names for a stage."""
    deps = yaml.safe_load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))["stages"][stage]["deps"]
    return [dep.replace("${backend}", backend) for dep in deps if dep.startswith("stages/")]


def covers(dep, path):
    return path == dep or path.startswith(f"{dep}/")


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_watches_each_file_that_decides_its_result(stage, backend):
    deps = watched(stage, backend)
    assert [path for path in sorted(needed(stage, backend)) if not any(covers(dep, path) for dep in deps)] == []


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_watches_nothing_that_it_never_imports(stage, backend):
    files = needed(stage, backend)
    idle = [dep for dep in watched(stage, backend) if not any(covers(dep, path) for path in files)]
    assert [dep for dep in idle if (stage, dep) not in HARMLESS[backend]] == []


@pytest.mark.parametrize("backend", BACKENDS)
def test_editing_a_file_makes_exactly_the_stages_stale_that_import_it(backend, capsys):
    other = next(one for one in BACKENDS if one != backend)
    helpers = [
        path
        for path in sorted((ROOT / "stages").rglob("*"))
        if path.is_file() and "__pycache__" not in path.parts and path.parent != ROOT / "stages" and computes(path)
    ]
    wrong = {}
    for path in map(name, helpers):
        stale = [stage for stage in STAGES if any(covers(dep, path) for dep in watched(stage, backend))]
        imports = [stage for stage in STAGES if path in needed(stage, backend)]
        harmless = {stage for stage, dep in HARMLESS[backend] if covers(dep, path)}
        with capsys.disabled():
            print(f"\n{path:<60} {', '.join(stale) or 'no stage'}", end="")
        if [stage for stage in stale if stage not in harmless] != [one for one in imports if one not in harmless]:
            wrong[path] = (stale, imports)
    assert wrong == {}
    assert not any(path.startswith(f"stages/backends/{other}") for path in wrong)


def test_the_test_knows_all_backends_and_doors():
    assert tuple(backends.names()) == BACKENDS
    assert all(module(f"stages.backends.{backend}.{door}") for backend in BACKENDS for door in DOORS)


@pytest.mark.parametrize("path", sorted(UNWATCHED))
def test_what_is_not_watched_exists(path):
    assert (ROOT / path).exists()
