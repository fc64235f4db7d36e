"""Each family's architecture and template from base to answers, at a small size and with random weights."""

import pytest

from stages.backends.unsloth.base import weights_folder
from stages.backends.unsloth.inference.local import LocalPair
from stages.backends.unsloth.reader import Chat
from stages.core.paths import SPLITS, TUNED, VALIDATION_HISTORY
from stages.dataset import conversations
from tests.conftest import use_base
from tests.support.families import FAMILIES
from tests.support.small import make_family
from tests.support.trainings import rows

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_learns_and_answers_and_its_loss_is_that_of_plain_libraries(train, tmp_path, family):
    use_base(make_family(tmp_path / "family", FAMILIES[family]))
    shipped = {"lora__target_modules": "mlp", "lora__layers_to_transform": "upper_half"}
    assert train(lr=0.01, epochs=2, batch_size=4, **shipped) is None
    history = [float(row["validation_loss"]) for row in rows(VALIDATION_HISTORY)]
    assert min(history) < history[0] - 0.1
    pair = LocalPair.load(weights_folder(), TUNED, Chat.load(), batch_size=4)
    validation = list(conversations.read_jsonl(SPLITS["validation"]))
    found = pair.likelihoods(validation, tuned=True)
    assert found.nll.sum() / found.tokens.sum() == pytest.approx(min(history), rel=0.03)
    answers, _ = pair.answers(validation, True, 4)
    assert len(answers) == len(validation)
