"""``X-Forwarded-For`` is ignored, also from loopback, unless ``--trusted-proxies`` names the proxy."""

import httpx
import pytest

from service.settings import load_settings


def statuses(server, *addresses):
    """The answers to a request from each address, as a proxy would say it."""
    with httpx.Client(base_url=server.url) as client:
        headers = [{"X-Forwarded-For": address} for address in addresses]
        return [client.get("/v1/index", headers=header).status_code for header in headers]


def options_of(clip_store, tiny_checkpoint, folder):
    store = ["--store", clip_store / "store", "--model", tiny_checkpoint, "--jobs-folder", folder / "jobs"]
    return [*store, "--embedded-worker", "off", "--limit-clients", "--rate-limit", "0.001", "--rate-burst", "2"]


def test_an_address_in_a_header_evades_no_rate(start_server, clip_store, tiny_checkpoint, tmp_path):
    server = start_server(*options_of(clip_store, tiny_checkpoint, tmp_path))
    assert statuses(server, "10.1.1.1", "10.1.1.2", "10.1.1.3", "10.1.1.4")[-1] == 429


def test_a_trusted_proxy_says_who_asks(start_server, clip_store, tiny_checkpoint, tmp_path):
    options = options_of(clip_store, tiny_checkpoint, tmp_path)
    server = start_server(*options, "--trusted-proxies", "192.0.2.0/24,127.0.0.1")
    assert statuses(server, *(f"10.1.1.{number}" for number in range(6))) == [200] * 6
    # What the client itself wrote stands to the left of what the proxy added.
    assert statuses(server, "10.9.9.1, 10.1.1.7", "10.9.9.2, 10.1.1.7", "10.9.9.3, 10.1.1.7")[-1] == 429


@pytest.mark.parametrize("proxy", ["*", "proxy.example.org", "10.0.0.1/8", "10.0.0.0/99"])
def test_proxies_are_addresses_or_networks(proxy):
    with pytest.raises(ValueError, match="expected addresses or networks such as"):
        load_settings({"trusted_proxies": proxy})
