"""Which encoding a source is in: as declared, as detected, and as contradicted by its bytes."""

import pytest

from stages.core.cli import UserError
from stages.core.paths import RAW
from stages.dataset import conversations, encodings, readers
from stages.params import Columns
from tests.support.sources import LINES, TALK, as_csv, read, record, source

pytestmark = pytest.mark.usefixtures("here")


@pytest.mark.parametrize("encoding", ["latin-1", "cp1252", "utf-16", "utf-8"])
def test_a_declared_encoding_is_used(encoding):
    cell = record(("user", "Café?"), ("assistant", "Oui, déjà")).replace('"', '""')
    found = read(f'"{cell}"\n'.encode(encoding), source(encoding=encoding))
    assert found[0][1].prompt[0].content == "Café?"


FRENCH = "Où êtes-vous, où est le café déjà payé par l’hôtel ? Voilà, voilà."


RUSSIAN = "Во сколько завтрак? Завтрак подают с семи до десяти часов утра в саду."


JAPANESE = "朝食は何時からですか。朝食は七時から十時まで、庭の部屋でお召し上がりいただけます。"


@pytest.mark.parametrize("encoding, text", [("cp1252", FRENCH), ("cp1251", RUSSIAN), ("shift_jis", JAPANESE)])
def test_an_encoding_is_detected_and_reported(encoding, text, capsys):
    # The first odd byte comes after all that is looked at to tell the container.
    plain = "\n".join(["asked,answered"] + ["Is there a pool?,Yes there is."] * 3000)
    raw = f"{plain}\n{text.replace(',', ' ')},{text.replace(',', ' ')}\n".encode(encoding)
    found = read(raw, source("columns", columns=Columns(user="asked", assistant="answered")))
    assert found[-1].conversation.response == text.replace(",", " ")
    assert f"is not UTF-8 and is read as {encoding}" in capsys.readouterr().out


@pytest.mark.parametrize("declared", ["utf-8", "ascii", "shift_jis"])
def test_a_wrong_encoding_names_a_likely_one(declared):
    with pytest.raises(UserError, match="it looks like cp1252: fix data.sources"):
        read(f'"{FRENCH} {FRENCH}"\n'.encode("cp1252") * 50, source(encoding=declared))


GERMAN = "Wann gibt es Frühstück? Es wird von sieben bis zehn Uhr serviert. Schöne Grüße, natürlich für Sie."


POLISH = "O której jest śniadanie? Podajemy je od siódmej do dziesiątej rano w ogrodzie. Dziękuję, proszę bardzo."


CROATIAN = "U koliko sati je doručak? Poslužuje se od sedam do deset sati. Želite li još nešto, čašu, u kući, đak?"


BULGARIAN = "В колко часа е закуската? Закуската се сервира от седем до десет сутринта в градината."


ENGLISH = "It’s “fine” – the guest’s bill of the café is paid, isn’t it? We’ll see you at seven o’clock."


NAMES = "Mr Wałęsa and Mr Dvořák asked at what time breakfast is served, and whether the pool is open at night."


SIMPLE = str.maketrans("łęřá", "lera")


RIGHT = [
    ("cp1252", FRENCH),
    ("latin-1", FRENCH.replace("’", "'")),
    ("cp1252", GERMAN),
    ("cp1252", ENGLISH),
    ("cp1251", RUSSIAN),
    ("cp1251", BULGARIAN),
    ("cp1250", POLISH),
    ("cp1250", CROATIAN),
    ("cp1250", NAMES),
    ("iso8859-2", POLISH),
    ("koi8-r", RUSSIAN),
    ("cp1251", f"{NAMES.translate(SIMPLE)} “Are they?” {NAMES.translate(SIMPLE)} Завтрак в семь."),
]


@pytest.mark.parametrize("declared, text", RIGHT)
@pytest.mark.parametrize("times", [1, 30])
def test_a_right_encoding_is_accepted(declared, text, times):
    RAW.parent.mkdir()
    RAW.write_bytes(f'"{text}"\n'.encode(declared) * times)
    assert [cells for _, cells in readers.rows(RAW, source(encoding=declared), 10_000_000)] == [[text]] * times


@pytest.mark.parametrize(
    "right, text",
    [("cp1250", POLISH), ("cp1252", FRENCH), ("cp1252", GERMAN), ("cp1251", RUSSIAN)],
)
def test_the_language_shows_which_encoding_is_likely(right, text):
    assert encodings.guess(f"{text}\n".encode(right) * 3) == right


def test_a_letter_that_another_encoding_lacks_contradicts_nothing():
    # Windows' encoding of Western Europe has no character for the byte of Ť.
    slovak = "Ťažko povedať, či sú raňajky už od siedmej. Žiaľ, Ťuhýk je ešte zatvorený. " * 3
    assert encodings.contradicted("cp1250", slovak.encode("cp1250")) is None


@pytest.mark.parametrize(
    "right, text, declared",
    [
        ("cp1251", RUSSIAN, "cp1252"),
        ("cp1251", RUSSIAN, "latin-1"),
        ("cp1251", BULGARIAN, "cp1250"),
        ("cp1252", FRENCH, "cp1251"),
        ("cp1252", FRENCH, "cp1250"),
        ("cp1252", GERMAN, "cp1251"),
        ("cp1252", ENGLISH, "latin-1"),
        ("cp1250", POLISH, "cp1252"),
        ("cp1250", POLISH, "latin-1"),
        ("cp1250", POLISH, "cp1251"),
        ("cp1250", CROATIAN, "cp1252"),
    ],
)
def test_a_wrong_encoding_that_takes_any_byte_names_the_likely_one(right, text, declared):
    with pytest.raises(UserError, match=f"declared as {declared}, and reads as a text in {right}; fix data.sources"):
        read(f'"{text}"\n'.encode(right) * 5, source(encoding=declared))


@pytest.mark.parametrize(
    "declared",
    ["hex", "rot13", "zlib", "idna", "undefined", "punycode", "utf-7", "unicode_escape", "a\0b", "nope", "ü"],
)
def test_what_is_no_encoding_of_text_is_reported_in_a_line(declared):
    for raw in (as_csv([record(*TALK)]), record(*TALK).encode()):
        with pytest.raises(UserError, match="is not an encoding of text; expected e.g. utf-8") as error:
            read(raw, source(encoding=declared))
        assert str(error.value).isprintable()


@pytest.mark.parametrize("encoding", ["cp1252", "latin-1", "utf-16", "utf-16-le"])
@pytest.mark.parametrize("form", ["lines", "array"])
def test_json_in_a_declared_encoding(encoding, form):
    text = LINES if form == "lines" else f"[{LINES.strip().replace(chr(10), ',')}]"
    assert [one.conversation for one in read(text.encode(encoding), source(encoding=encoding))] == [
        conversations.decode(line) for line in LINES.splitlines()
    ]


@pytest.mark.parametrize("encoding", ["cp1252", "utf-16"])
def test_json_lines_in_another_encoding_are_detected(encoding):
    assert [one.error for one in read(LINES.encode(encoding))] == [None] * 9


@pytest.mark.parametrize("declared, message", [("utf-8", "it looks like cp1252"), ("utf-16", "is not utf-16")])
def test_json_lines_with_a_wrong_encoding_are_reported(declared, message):
    with pytest.raises(UserError, match=message):
        read(LINES.encode("cp1252"), source(encoding=declared))


def test_utf_8_json_lines_declared_as_another_are_reported():
    with pytest.raises(UserError, match="declared as cp1252, and is utf-8"):
        read(LINES.encode(), source(encoding="cp1252"))


def test_utf_8_declared_as_another_is_reported():
    with pytest.raises(UserError, match="is declared as cp1252, and is utf-8"):
        read(as_csv([FRENCH]), source(encoding="cp1252"))
