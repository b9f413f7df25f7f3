"""Which IP addresses and ports a client may make us connect to.

An explicit list instead of ``ipaddress.is_global``, whose answers differ between patch releases of Python. Sources are
the IANA special-purpose registries for IPv4 and IPv6.
"""

from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

_CLOSED_IPV4 = tuple(
    IPv4Network(network)
    for network in (
        "0.0.0.0/8",  # this host
        "10.0.0.0/8",  # private
        "100.64.0.0/10",  # carrier-grade NAT; also Tailscale and some clouds' metadata
        "127.0.0.0/8",  # loopback; also the slots of our own mesh
        "168.63.129.16/32",  # public by the registry, but inside Azure it is the host of one's machine
        "169.254.0.0/16",  # link-local: cloud metadata
        "172.16.0.0/12",  # private
        "192.0.0.0/24",  # protocol assignments
        "192.0.2.0/24",  # documentation
        "192.31.196.0/24",  # AS112: answers to the private networks' reverse lookups
        "192.52.193.0/24",  # automatic multicast tunnels
        "192.88.99.0/24",  # 6to4 relays
        "192.168.0.0/16",  # private
        "192.175.48.0/24",  # AS112
        "198.18.0.0/15",  # benchmarks
        "198.51.100.0/24",  # documentation
        "203.0.113.0/24",  # documentation
        "224.0.0.0/4",  # multicast
        "240.0.0.0/4",  # reserved, broadcast
    )
)
#: The only part of IPv6 given out as global unicast. Outside are loopback, unique local (fd00::/8), link-local,
#: multicast, IPv4-mapped (::ffff:0:0/96) and NAT64 (64:ff9b::/96, 64:ff9b:1::/48).
_OPEN_IPV6 = IPv6Network("2000::/3")
_CLOSED_IPV6 = tuple(
    IPv6Network(network)
    for network in (
        "2001::/23",  # protocol assignments: Teredo, ORCHID, benchmarks
        "2001:db8::/32",  # documentation
        "2002::/16",  # 6to4: an IPv4 address inside
        "2620:4f:8000::/48",  # AS112
        "3fff::/20",  # documentation
    )
)


#: Below 1024 live services that are no web servers and may take an HTTP request for one of theirs, e.g. mail.
_WEB_PORTS = (80, 443)
_FIRST_OPEN_PORT = 1024


def is_allowed(address: Address, allow_networks: tuple[Network, ...] = ()) -> bool:
    """Whether ``address`` is public, or in a network that the operator allows.

    IPv6 forms that carry an IPv4 address are refused even if that address is public or allowed: no honest name resolves
    to one, except behind NAT64, whose operator can allow ``64:ff9b::/96``.
    """
    if any(address in network for network in allow_networks if network.version == address.version):
        return True
    if isinstance(address, IPv4Address):
        return not any(address in network for network in _CLOSED_IPV4)
    # A zone (fe80::1%eth0) would pick an interface of ours.
    if address.scope_id is not None:
        return False
    return address in _OPEN_IPV6 and not any(address in network for network in _CLOSED_IPV6)


def is_open_port(port: int, address: Address, allow_networks: tuple[Network, ...] = ()) -> bool:
    """Whether ``port`` of an allowed address may be connected to: 80, 443, from 1024 up, or any the operator allows."""
    if port in _WEB_PORTS or port >= _FIRST_OPEN_PORT:
        return True
    return any(address in network for network in allow_networks if network.version == address.version)
