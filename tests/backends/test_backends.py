"""Each backend has every module that the stages ask for."""

import pytest

from stages import backends, params
from tests.conftest import set_params

MODULES = ("base", "reader", "training", "inference", "export")


@pytest.mark.parametrize("backend", ["unsloth", "openai"])
@pytest.mark.parametrize("module", MODULES)
def test_a_stage_gets_the_selected_backends_module(project, backend, module):
    set_params(backend=backend)
    found = getattr(backends, module)(params.load())
    assert found.__name__ == f"stages.backends.{backend}.{module}"


def test_the_doctor_asks_every_backend_by_name():
    assert backends.names() == ["openai", "unsloth"]
    for name in backends.names():
        assert backends.doctor(name).__name__ == f"stages.backends.{name}.doctor"
