"""Records what a stage reads: parameters of params.yaml, and files in the current folder."""

import os
import sys
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePath
from typing import Any
from unittest import mock

from stages import params
from stages.params.kinds import Section

_STAGES = Path(params.__file__).parents[1]
# Listeners to the audit hook, which can never be removed and is therefore installed only once.
_listeners: list[Callable[[str, tuple[Any, ...]], None]] = []


@contextmanager
def recorded() -> Iterator[dict[str, Any]]:
    """Yield a dict that is filled at the end of the block with sorted lists of names.

    `knobs`: leaves of params.yaml accessed by name. `dumped`: for each module that accessed many at once with
    `model_dump` or `params.select`, their names. `read` and `written`: files in the current folder, and templates of
    `stages`. A path counts as read if it is opened, listed or tested for existence, including by native libraries.
    """
    found: dict[str, Any] = {}
    knobs, paths = _Knobs(), _Paths()
    with knobs.watched(), paths.watched():
        yield found
    found |= {
        "knobs": sorted(knobs.read),
        "dumped": {module: sorted(names) for module, names in knobs.dumped.items()},
        "read": paths.read,
        "written": paths.written,
    }


def leaves(kind: type[Section], prefix: str = "") -> list[str]:
    """The full names of all keys of params.yaml that are not sections."""
    found = []
    for name, field in kind.model_fields.items():
        key = prefix + (field.alias or name)
        inner = field.annotation
        if isinstance(inner, type) and issubclass(inner, Section):
            found += leaves(inner, f"{key}.")
        else:
            found.append(key)
    return found


class _Knobs:
    """Records access to the parameters returned by `params.load`."""

    def __init__(self) -> None:
        self.read: set[str] = set()
        self.dumped: dict[str, set[str]] = defaultdict(set)
        self._prefixes: dict[int, str] = {}
        self._kept: list[Section] = []

    @contextmanager
    def watched(self) -> Iterator[None]:
        load, get, dump, select = params.load, Section.__getattribute__, Section.model_dump, params.select

        def loaded(*given: Any) -> params.Params:
            made = load(*given)
            self._register(made, "")
            return made

        def asked(section: Section, name: str) -> Any:
            value = get(section, name)
            prefix = self._prefixes.get(id(section))
            if prefix is not None and not isinstance(value, Section):
                field = type(section).model_fields.get(name)
                if field is not None:
                    self.read.add(prefix + (field.alias or name))
            return value

        def dumped(section: Section, **given: Any) -> dict[str, Any]:
            made = dump(section, **given)
            module = sys._getframe(1).f_globals["__name__"]
            # It dumps all to select some, which are noted below.
            if module != select.__module__:
                self._note_dump(section, made, module)
            return made

        def selected(knobs: params.Params, some: Iterable[str]) -> dict[str, Any]:
            names = list(some)
            self.dumped[sys._getframe(1).f_globals["__name__"]] |= set(names)
            return select(knobs, names)

        with (
            mock.patch.object(params, "load", loaded),
            mock.patch.object(Section, "__getattribute__", asked),
            mock.patch.object(Section, "model_dump", dumped),
            mock.patch.object(params, "select", selected),
        ):
            yield

    def _register(self, section: Section, prefix: str) -> None:
        # Keep a reference, so that its id is not reused.
        self._kept.append(section)
        self._prefixes[id(section)] = prefix
        for name, field in type(section).model_fields.items():
            if isinstance(inner := section.__dict__[name], Section):
                self._register(inner, f"{prefix}{field.alias or name}.")

    def _note_dump(self, section: Section, made: dict[str, Any], module: str) -> None:
        prefix = self._prefixes[id(section)]
        fields = type(section).model_fields.items()
        taken = {field.alias or name for name, field in fields if {name, field.alias} & made.keys()}
        self.dumped[module] |= {
            key for key in leaves(type(section), prefix) if key[len(prefix) :].split(".")[0] in taken
        }


class _Paths:
    """Records files read and written below the current folder."""

    def __init__(self) -> None:
        self._top = Path.cwd()
        self._read: set[str] = set()
        self._written: set[str] = set()

    @contextmanager
    def watched(self) -> Iterator[None]:
        name = PurePath.__fspath__

        def named(path: PurePath) -> str:
            self._read.add(name(path))
            return name(path)

        _listeners.append(self._heard)
        try:
            # Native libraries such as Arrow bypass the audit hook, but convert the path to a string.
            with mock.patch.object(PurePath, "__fspath__", named):
                yield
        finally:
            _listeners.remove(self._heard)

    def _heard(self, event: str, given: tuple[Any, ...]) -> None:
        if event == "open":
            path, _, flags = given
            writes = bool(flags & (os.O_WRONLY | os.O_RDWR))
        elif event in ("os.listdir", "os.scandir", "os.rename"):
            path, writes = given[event == "os.rename"], event == "os.rename"
        else:
            return
        # Others are descriptors of files that are already open.
        if isinstance(path, str | PurePath):
            (self._written if writes else self._read).add(str(path))

    @property
    def read(self) -> list[str]:
        # Readers also look for files that do not exist.
        return sorted({name for name, path in self._named(self._read) if path.exists()})

    @property
    def written(self) -> list[str]:
        return sorted({name for name, _ in self._named(self._written)})

    def _named(self, paths: set[str]) -> Iterator[tuple[str, Path]]:
        for path in (Path(os.path.normpath(self._top / path)) for path in paths):
            # Python lists folders to find modules.
            code = path.is_relative_to(_STAGES) and path.is_file() and path.suffix not in (".py", ".pyc")
            top = _STAGES.parent if code else self._top
            parts = path.relative_to(top).parts if path.is_relative_to(top) else ()
            # Hidden: temporary files, those of DVC and Git, and local state.
            if parts and not any(part.startswith(".") for part in parts):
                yield "/".join(parts), path


def _hook(event: str, given: tuple[Any, ...]) -> None:
    for listener in _listeners:
        listener(event, given)


sys.addaudithook(_hook)
