"""Addresses in object stores: what counts as one, what is refused, and that none is taken for a folder."""

from pathlib import Path, PurePosixPath

import pytest

from frevl.errors import StoreError, UsageError
from frevl.store.reader import Store
from frevl.store.remote.address import RemotePath, cache_of, is_remote, place_of, remote_failure, storage_options
from frevl.store.remote.copying import copy_store


@pytest.mark.parametrize(
    "written",
    ["s3://bucket/a/b", "s3:/bucket/a/b", Path("s3://bucket/a/b"), "S3://bucket/a/b/", RemotePath("s3:/bucket/a/b")],
)
def test_an_address_is_known_however_it_is_written(written):
    place = place_of(written)
    assert is_remote(place)
    assert str(place) == "s3://bucket/a/b"
    assert str(place / "images.lance") == "s3://bucket/a/b/images.lance"
    assert place == place_of("s3://bucket/a/b")


def test_a_folder_stays_one(tmp_path):
    for written in (tmp_path, str(tmp_path), "C:/store", "a:b/c", "ß://x"):
        assert place_of(written) == Path(written)


@pytest.mark.parametrize(
    ("written", "match"),
    [
        ("s3://KEY:SECRET@bucket/store", "must not contain credentials"),
        ("s3://KEY:SEC/SECRET@bucket/store", "must not contain credentials"),
        ("s3://KEY:/SECRET@bucket/store", "must not contain credentials"),
        ("s3://KEY:SECRET/store", "must not contain credentials"),
        ("s3://KEY/a:SECRET@bucket/store", "must not contain credentials"),
        ("s3://KEY/b:SEC/SECRET@bucket", "must not contain credentials"),
        ("s3://KEY/b:/SEC/SECRET@bucket/store", "must not contain credentials"),
        ("s3://KEY%3ASECRET%40bucket/store", "must not contain credentials"),
        (Path("az://KEY:a//SECRET@box/store"), "must not contain credentials"),
        ("s3://SECRET@bucket", "must not contain credentials"),
        ("s3://bucket/store?key=SECRET", "must not contain credentials"),
        ("gs://bucket?key=SECRET", "must not contain credentials"),
        ("az://box/a/b/?sv=1&sig=SECRET", "must not contain credentials"),
        ("s3://", "needs a bucket"),
        ("gs:///", "needs a bucket"),
        ("ftp://KEY:SECRET@host/store", "expected a local folder or an address s3://"),
        ("https://acct.blob.core.windows.net/c/store?sv=1&sig=SECRET", "^https://...: expected a local folder"),
        (Path("https://u:SEC/SECRET@h/s"), "^https://...: expected a local folder"),
        ("abfss://box@SECRET.dfs.core.windows.net/s", "^abfss://...: expected a local folder"),
        ("http:/SECRET", "^http://...: expected a local folder"),
    ],
)
def test_what_is_no_address_is_refused_without_its_secrets(written, match):
    with pytest.raises(UsageError, match=match) as raised:
        place_of(written)
    assert "SEC" not in str(raised.value)
    assert "KEY" not in str(raised.value).replace("AWS_ACCESS_KEY_ID", "")


def test_a_key_of_a_path_is_no_credential():
    for written in ("s3://bucket/a@b/c", "gs://my_bucket.x-1/run:3/store", "az://$root/a%20b"):
        assert str(place_of(written)) == written


def test_nothing_of_an_address_is_on_this_machine(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FREVL_CACHE", str(tmp_path / "cache"))
    place = place_of("s3://bucket/store")
    assert not place.exists()
    assert not place.is_dir()
    assert list(place.iterdir()) == list(place.rglob("*")) == []
    with pytest.raises(FileNotFoundError):
        place.stat()
    with pytest.raises(OSError, match="Read-only"):
        place.mkdir()
    assert isinstance(place, PurePosixPath)
    assert cache_of(place).parent == tmp_path / "cache" / "stores"
    assert cache_of(place) != cache_of(place_of("s3://bucket/other"))
    assert list(tmp_path.iterdir()) == []


def test_a_copy_has_one_end_here(tmp_path):
    with pytest.raises(UsageError, match="are both folders"):
        copy_store(tmp_path / "a", tmp_path / "b")
    with pytest.raises(UsageError, match="are both addresses"):
        copy_store("s3://bucket/a", "s3://bucket/b")


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        ("Generic S3 error: ... 403 Forbidden: <AWSAccessKeyId>AKIASECRET</AWSAccessKeyId>", "access was denied"),
        ("404 Not Found: <Code>NoSuchBucket</Code>", "there is no such bucket"),
        ("403 Forbidden: <Code>RequestTimeTooSkewed</Code>", "the clock of this machine is wrong"),
        ("Error getting list response body: HTTP error: request or response body error", "its answer was cut off"),
        ("HTTP error: error sending request", "it cannot be reached"),
        ("503 Slow Down after 5 retries", "answers with failures"),
        ("Failed to get AWS credentials: dispatch failure", "no usable credentials"),
        ("something new, AKIASECRET", "it cannot be used"),
    ],
)
def test_what_an_object_store_says_is_told_in_our_words(said, reason):
    error = remote_failure(place_of("s3://bucket/store"), "reading the table 'images'", OSError(said))
    assert str(error).startswith("s3://bucket/store: reading the table 'images' failed: ")
    assert reason in str(error)
    assert "AKIASECRET" not in str(error)


def test_a_server_of_ones_own_comes_from_the_environment(monkeypatch):
    monkeypatch.delenv("AWS_ENDPOINT_URL", raising=False)
    monkeypatch.delenv("AWS_ENDPOINT_URL_S3", raising=False)
    assert "aws_endpoint" not in storage_options()
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://a")
    assert storage_options()["allow_http"] == "true"
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "https://b")
    assert storage_options()["aws_endpoint"] == "https://b"
    assert "allow_http" not in storage_options()


@pytest.mark.slow
def test_a_server_that_is_not_there_is_one_sentence(monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIASECRET")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "VERYSECRET")
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    with pytest.raises(StoreError, match="it cannot be reached") as raised:
        Store.open("s3://bucket/store")
    assert "SECRET" not in str(raised.value)
