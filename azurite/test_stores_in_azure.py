"""Stores among the blobs of Azure, as its emulator keeps them: written, merged, labelled, repaired and copied there."""

from any_cloud import (
    check_a_store_there_is_the_one_here,
    check_two_encoders_that_begin_a_store_lose_nothing_and_tell_no_key,
)
from conftest import KEY


def test_a_store_there_is_the_one_here(container, tmp_path):
    check_a_store_there_is_the_one_here(f"{container}/deep/store", tmp_path)


def test_two_encoders_that_begin_a_store_lose_nothing_and_tell_no_key(container, tmp_path):
    check_two_encoders_that_begin_a_store_lose_nothing_and_tell_no_key(f"{container}/store", tmp_path, KEY)
