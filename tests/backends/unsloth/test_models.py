"""How base and tuned model are held: in which precision, and how many of them at once."""

import gc
import weakref
from types import SimpleNamespace

import pytest
import torch

from stages.backends.unsloth.common import device, four_bit
from stages.backends.unsloth.inference import models
from stages.backends.unsloth.inference.local import LocalPair
from stages.backends.unsloth.reader import Chat
from tests.backends.unsloth.test_inference import TALKS
from tests.backends.unsloth.test_inference_numbers import adapter
from tests.support.small import make_base


@pytest.fixture
def full(base, tmp_path):
    """Folders of a base and of another whole model."""
    return base, make_base(tmp_path / "other", "qwen2")


def test_a_full_model_and_its_base_are_both_kept_where_memory_allows(full):
    both = models.load(*full)
    with both.using(False) as base, both.using(True) as tuned:
        assert (base.config.model_type, tuned.config.model_type) == ("llama", "qwen2")
        assert base.dtype == torch.bfloat16 and not base.training and not tuned.training
        assert not any(weight.requires_grad for weight in tuned.parameters())
    with both.using(False) as again:
        assert again is base


def test_one_makes_room_for_the_other_where_memory_does_not_hold_both(full, monkeypatch):
    monkeypatch.setattr(device, "free_memory", lambda: [0])
    both, dropped = models.load(*full), []
    for tuned in (False, True, False):
        with both.using(tuned) as model:
            assert model.config.model_type == ("qwen2" if tuned else "llama")
            dropped.append(weakref.ref(model))
            del model
        gc.collect()
        assert len(both._loaded) == 1
    assert [one() is None for one in dropped] == [True, True, False]


def test_scores_do_not_depend_on_how_many_are_held(full, monkeypatch):
    def scores():
        pair = LocalPair.load(*full, Chat.load(), batch_size=3)
        return [pair.likelihoods(TALKS, tuned).nll.tolist() for tuned in (False, True, False)]

    expected = scores()
    monkeypatch.setattr(device, "free_memory", lambda: [0])
    assert scores() == expected and expected[0] == expected[2] != expected[1]


def test_one_model_serves_both_where_biases_are_trained(project, tmp_path, monkeypatch):
    from tests.conftest import use_base

    base = make_base(tmp_path / "qwen", "qwen2")
    use_base(base)
    adapter(base, tmp_path / "adapter", bias="all", target_modules=["q_proj", "v_proj"])
    loads, real = [], models.plain
    monkeypatch.setattr(models, "plain", lambda *given: loads.append(given) or real(*given))
    pair = LocalPair.load(base, tmp_path / "adapter", Chat.load(), batch_size=3)
    first = [pair.likelihoods(TALKS, tuned).nll.tolist() for tuned in (True, False, True)]
    assert len(loads) == 1 and first[0] == first[2] != first[1]
    # Also after an error in between.
    with pytest.raises(RuntimeError), pair._which(False):
        raise RuntimeError
    assert pair.likelihoods(TALKS, True).nll.tolist() == first[0]


@pytest.mark.parametrize(
    "marked, kind, free, expected",
    [(True, "cuda", 0, "nf4"), (True, "cuda", 2**40, "16"), (False, "cuda", 0, "16"), (True, "cpu", 0, "16")],
)
def test_a_base_is_in_4_bit_only_if_trained_so_and_too_large_otherwise(
    base, tmp_path, monkeypatch, capsys, marked, kind, free, expected
):
    adapter(base, tmp_path / "adapter")
    if marked:
        four_bit.mark(tmp_path / "adapter")
    monkeypatch.setattr(device, "kind", lambda: kind)
    monkeypatch.setattr(device, "free_memory", lambda: [free])
    placed, real = [], models._placement

    def placement(four_bits):
        placed.append(real(four_bits))
        return {"dtype": torch.bfloat16}

    monkeypatch.setattr(models, "_placement", placement)
    models.load(base, tmp_path / "adapter")
    (given,) = placed
    assert ("quantization_config" in given) == (expected == "nf4") == ("in 4 bit" in capsys.readouterr().out)
    assert given.get("device_map") == (None if kind == "cpu" else "sequential")
    if expected == "nf4":
        assert given["quantization_config"].bnb_4bit_quant_type == "nf4"


def test_sizes_are_those_in_16_bit(base):
    """The small base is stored in 32 bit."""
    stored = sum(path.stat().st_size for path in base.glob("*.safetensors"))
    assert models._bytes(base) == pytest.approx(stored / 2, rel=0.02)


def test_a_model_that_fits_nowhere_is_an_error_for_the_user(base, monkeypatch):
    def fail(*_, **__):
        raise ValueError("Please provide an `offload_folder` for them.")

    monkeypatch.setattr(models.AutoModelForCausalLM, "from_pretrained", fail)
    with pytest.raises(models.UserError, match="the model does not fit into the memory of this machine"):
        models.plain(base)


def test_precision_is_that_of_the_weights():
    assert models.precision(SimpleNamespace(dtype=torch.float16)) == "float16"
    assert models.precision(SimpleNamespace(dtype=torch.bfloat16, is_loaded_in_4bit=True)) == "nf4"


@pytest.mark.parametrize("free", [2**20, 2**30])
def test_batches_with_gradients_take_half_of_a_gpu_s_free_memory(base, tmp_path, monkeypatch, free):
    adapter(base, tmp_path / "adapter")
    pair = LocalPair.load(base, tmp_path / "adapter", Chat.load(), batch_size=2)
    assert pair._gradient_tokens(True) == 2048
    monkeypatch.setattr(device, "kind", lambda: "cuda")
    monkeypatch.setattr(device, "free_memory", lambda: [2**50, free])
    # 2 layers of 64 numbers with 34 bytes each, and 10 bytes for each token of the vocabulary.
    config = pair.models.model.config
    each = 2 * 64 * 34 + 10 * config.vocab_size
    assert pair._gradient_tokens(True) == free // 2 // each
