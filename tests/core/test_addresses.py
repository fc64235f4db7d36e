import pytest

from stages.core.flatten import address, without_credentials


@pytest.mark.parametrize(
    "url, shown",
    [
        ("https://host/a.csv", "https://host/a.csv"),
        ("https://me:secret@host:8000/a.csv?token=secret#secret", "https://host:8000/a.csv"),
        ("s3://secret@bucket/a.csv", "s3://bucket/a.csv"),
        ("https://me:secret@[broken/a.csv?token=secret", "https://..."),
        ("http://[::1", "http://..."),
        ("file:///data/a.csv", "file:///data/a.csv"),
        # A scheme that was forgotten.
        ("me:secret@host/a.csv?token=secret", "host/a.csv"),
        ("//me:secret@host/a.csv", "//host/a.csv"),
        # Paths, whatever they are called.
        ("data/sample.csv", "data/sample.csv"),
        ("data/a#b.csv", "data/a#b.csv"),
        ("data/what?.csv", "data/what?.csv"),
        ("data/me@work.csv", "data/me@work.csv"),
        ("C:\\data\\a.csv", "C:\\data\\a.csv"),
        ("", ""),
    ],
)
def test_an_address_is_shown_without_credentials_and_a_path_as_it_is(url, shown):
    assert address(url) == shown


def test_only_values_that_are_addresses_lose_something():
    values = {"data.sources.a.url": "me:secret@host/a?x=secret", "name": "me:you@host", "base": "http://a:b@[c"}
    assert without_credentials(values) == {"data.sources.a.url": "host/a", "name": "me:you@host", "base": "http://..."}
