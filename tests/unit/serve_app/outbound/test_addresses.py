from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve_app.outbound.addresses import is_allowed, is_open_port

REFUSED = [
    *("0.0.0.0", "10.1.2.3", "100.64.0.1", "100.100.100.200", "127.0.0.1", "127.77.0.1", "169.254.169.254"),
    *("172.16.0.1", "172.31.255.255", "192.0.0.170", "192.0.2.1", "192.88.99.1", "192.168.1.1", "198.18.0.1"),
    *("168.63.129.16", "192.31.196.1", "192.52.193.1", "192.175.48.6"),
    *("198.51.100.1", "203.0.113.1", "224.0.0.1", "239.255.255.250", "240.0.0.1", "255.255.255.255"),
    *("::", "::1", "::ffff:127.0.0.1", "::ffff:8.8.8.8", "::127.0.0.1", "64:ff9b::7f00:1", "64:ff9b:1::1"),
    *("100::1", "2001::1", "2001:db8::1", "2002:7f00:1::", "3fff::1", "5f00::1", "fc00::1", "fd00:ec2::254"),
    *("fe80::1", "fe80::1%1", "2620:4f:8000::6", "fec0::1", "ff02::1", "2606:4700::1111%1"),
]
PUBLIC = [
    "168.63.129.15",
    "168.63.129.17",
    "192.31.197.1",
    "2620:4f:8001::1",
    "1.1.1.1",
    "8.8.8.8",
    "100.63.255.255",
    "100.128.0.1",
    "172.32.0.1",
    "2606:4700::1111",
    "2a00:1450::1",
]


@pytest.mark.parametrize("address", REFUSED)
def test_refused(address: str) -> None:
    assert not is_allowed(ip_address(address))


@pytest.mark.parametrize("address", PUBLIC)
def test_public(address: str) -> None:
    assert is_allowed(ip_address(address))


def test_the_operator_may_allow_networks() -> None:
    allow = (ip_network("127.0.0.0/8"), ip_network("::1/128"))
    assert is_allowed(ip_address("127.0.0.1"), allow)
    assert is_allowed(ip_address("::1"), allow)
    assert not is_allowed(ip_address("10.0.0.1"), allow)
    # Not by the back door.
    assert not is_allowed(ip_address("::ffff:127.0.0.1"), allow)


@given(st.ip_addresses())
def test_never_more_open_than_python(address: IPv4Address | IPv6Address) -> None:
    if is_allowed(address):
        assert address.is_global
        assert not address.is_multicast


@pytest.mark.parametrize(
    ("port", "opened"),
    [(80, True), (443, True), (1024, True), (8080, True), (65535, True)]
    + [(port, False) for port in (0, 1, 22, 25, 53, 81, 110, 139, 445, 465, 587, 993, 1023)],
)
def test_ports(port: int, opened: bool) -> None:
    for address in (ip_address("1.1.1.1"), ip_address("2606:4700::1111")):
        assert is_open_port(port, address) is opened


def test_the_operator_opens_every_port_of_a_network() -> None:
    allow = (ip_network("10.0.0.0/8"),)
    assert is_open_port(25, ip_address("10.0.0.1"), allow)
    assert not is_open_port(25, ip_address("1.1.1.1"), allow)
    assert not is_open_port(25, ip_address("2606:4700::1111"), allow)
