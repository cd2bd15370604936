"""Stores in Google's object store: written, merged, labelled, repaired and copied there.

Lance speaks Google's XML interface, which has the shape of S3's: the server of moto answers it, after the names of its
headers are translated, the condition under which commits are made included. It is not Google's own software.
"""

import json

import pytest

from any_cloud import (
    check_a_store_there_is_the_one_here,
    check_two_encoders_that_begin_a_store_lose_nothing_and_tell_no_key,
)
from conftest import new_bucket, serve

KEY = "BEGINPRIVATEKEY"


@pytest.fixture
def bucket(monkeypatch, tmp_path):
    """A new bucket, and an environment in which Google's store is a server on this machine."""
    process, server = serve(0, 0, "google")
    name = new_bucket(server, monkeypatch, tmp_path).removeprefix("s3://")
    for variable in ("AWS_ENDPOINT_URL", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_REGION"):
        monkeypatch.delenv(variable)
    account = {"client_email": "a@b", "private_key": KEY, "private_key_id": "1"}
    (tmp_path / "account.json").write_text(json.dumps({**account, "gcs_base_url": server, "disable_oauth": True}))
    monkeypatch.setenv("GOOGLE_SERVICE_ACCOUNT", str(tmp_path / "account.json"))
    yield f"gs://{name}"
    process.kill()
    process.communicate()


def test_a_store_there_is_the_one_here(bucket, tmp_path):
    check_a_store_there_is_the_one_here(f"{bucket}/deep/store", tmp_path)


def test_two_encoders_that_begin_a_store_lose_nothing_and_tell_no_key(bucket, tmp_path):
    check_two_encoders_that_begin_a_store_lose_nothing_and_tell_no_key(f"{bucket}/store", tmp_path, KEY)
