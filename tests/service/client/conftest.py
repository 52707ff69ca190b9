"""A server that clients call."""

import pytest


@pytest.fixture(scope="module")
def url(start_server, clip_store, tiny_checkpoint, tmp_path_factory):
    folder = tmp_path_factory.mktemp("served")
    options = ("--store", clip_store / "store", "--model", tiny_checkpoint, "--jobs-folder", folder / "jobs")
    return start_server(*options).url
