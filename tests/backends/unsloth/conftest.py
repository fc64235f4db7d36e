import pytest

from stages.backends.unsloth.base import weights
from stages.backends.unsloth.reader import Chat
from tests.support.families import FAMILIES
from tests.support.small import make_tokenizer


@pytest.fixture
def family_chat(tmp_path):
    """family_chat(family) is its tokenizer, as the base stage leaves it."""

    def load(family, thinking=False):
        make_tokenizer(tmp_path, FAMILIES[family])
        weights.set_thinking(tmp_path, thinking)
        return Chat.load(tmp_path)

    return load
