"""The loopback mesh: a Ray cluster of machines that can only dial out, across a head with one inbound port.

Every node has a slot: a loopback address and 64 ports (``plan``). On each node an agent listens on the other slots'
addresses and carries every flow over its own outbound TLS connection to the hub on the head, which splices.
"""
