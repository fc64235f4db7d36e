import pytest

from stages.core.flatten import address, has_credentials, without_credentials


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
        # Chains of fsspec.
        ("simplecache::https://me:secret@host/a.csv?sig=secret", "simplecache::https://host/a.csv"),
        ("zip://a.csv::simplecache::s3://key:secret@bucket/a.zip", "zip://a.csv::simplecache::s3://bucket/a.zip"),
        ("http://[fe80::1]/a.csv", "http://[fe80::1]/a.csv"),
    ],
)
def test_an_address_is_shown_without_credentials_and_a_path_as_it_is(url, shown):
    assert address(url) == shown


def test_only_values_that_are_addresses_lose_something():
    values = {"data.sources.a.url": "me:secret@host/a?x=secret", "name": "me:you@host", "base": "http://a:b@[c"}
    assert without_credentials(values) == {"data.sources.a.url": "host/a", "name": "me:you@host", "base": "http://..."}


@pytest.mark.parametrize(
    "url",
    [
        "https://me:secret@host/a.csv",
        "https://ghp_token@host/a.csv",
        "s3://key:secret@bucket/a.csv",
        "https://host/a.csv?access_token=x",
        "https://host/a.csv?X-Amz-Credential=a&X-Amz-Signature=x",
        "https://host/a.csv?sv=1&sig=x",
        "https://host/a.csv?api_key=x",
        "https://host/a.csv?KEY=x",
        "simplecache::https://me:secret@host/a.csv",
        "zip://a.csv::simplecache::https://me:secret@host/a.zip",
        "me:secret@host/a.csv",
        # What cannot be taken apart.
        "https://me:secret@[broken/a.csv",
    ],
)
def test_an_address_with_a_password_a_key_or_a_token_has_credentials(url):
    assert has_credentials(url)


@pytest.mark.parametrize(
    "url",
    [
        "https://host/a.csv?download=true&raw=1&keyword=x",
        "sftp://me@host/a.csv",
        "zip://a.csv::https://host/a.zip",
        "s3://bucket/a.csv",
        "https://host/token/a.csv",
        "http://[::1]/a.csv",
        "http://[broken/a.csv",
        "data/local/me@work.csv",
        "data/local/a::b.csv",
        "",
    ],
)
def test_other_addresses_and_paths_have_none(url):
    assert not has_credentials(url)
