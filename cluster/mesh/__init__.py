"""The loopback mesh: a Ray cluster of machines that can only dial out, across a head with one inbound port.

Ray's processes connect to each other by address and port as if all machines were one: every node has a loopback address
and 64 ports of its own (``plan``). On each node an **agent** listens on the head's address, on the head the **hub**
listens on the nodes' addresses, and both carry what is connected there over TLS connections that the nodes have dialed.

One flow, from ``connect(127.77.0.1:10256)`` of a program on node 2 to a program of the head::

    node 2                                                head
    program                                               program, listens on 127.77.0.1:10256
      │ connect()                                           ▲
    listeners    accepts on the head's address              │
    transports   TcpTransport                             transports   TcpTransport, connect()
    flow         PlainEndpoint                            flow         PlainEndpoint
      │ agent    _carry_out: a new data connection          │ router   open: finds the other end, splices
      │ dialer   TCP, TLS, the pinned certificate           │ hub      _admit: whose key (admission), what for
    flow         FramedEndpoint                           flow         FramedEndpoint (takes over from ``control``)
    wire, pieces Open(slot, key, 1, port), then pieces    wire, pieces FrameReader for Open, PieceReader for the rest
    transports   TlsTransport ────── one TCP port ──────▶ acceptor     handshake, deadline, first frame

The other way round, the hub can't dial a node. A program of the head connects to 127.77.0.2:10320; ``listeners`` on
the head give it to the router, which sends ``Dial(flow, port)`` on node 2's control connection; the agent connects to
its own port and to the hub, sends ``Accept(slot, key, flow)`` there, and the router splices what belongs together.

A node that is to come has an invitation and nothing else. ``reception`` lets it join, and before that fetch what it
installs from the head's ``depot`` and say how far it is.

Beside that: ``registry`` (which nodes there are, in PostgreSQL), ``identity`` (certificate, keys), ``invitation``,
``tasks`` (who owns every task), ``sockets`` (options, and whether a path is dead), ``counters`` (what ``/metrics``
shows), ``tls`` (TLS over buffers, without a socket), ``evicting_set`` (how many strangers may wait), ``turns`` (how
many questions the registry is asked at a time), ``pace`` (how often a node may say something).

Words
    hub, agent            the mesh's end on the head, and on a node; one each
    node                  a machine that has joined; the head is none
    slot                  a node's place in the plan: a number, its address and its ports. The head's is 1
    invitation, token     lets one node join, once; the token is its text
    key                   what a node shows from then on; the registry has its hash
    flow                  one program's connection to another through the mesh: two endpoints on each machine
    endpoint              one of the two connections that a flow is spliced of, and the bytes' way to its peer
    program               whatever Ray runs at a flow's end; all we know of it is its TCP connection
    splice                make two endpoints each other's peer
    control connection    a node's one connection for frames: what to dial, pings, reports, refusals
    session               a control connection from Hello to its end
    data connection       one per flow, between a node and the hub: one frame, then the flow's bytes as pieces
    frame                 one message of the protocol (``wire``): Join, Hello, Open, Dial …
    first frame           says who a connection is and what for; until it is there it is a PendingConnection
    piece                 a length and so many bytes of a flow, on a data connection
    END, DONE             nothing follows in this direction; your END has come. TLS can't be closed one way only
    fixed answer          what the hub itself sends on a port of the head where no program listens (the briefing)
    stranger              a connection that has not been admitted; silent, ready, pending are its stages (``acceptor``)
    source                where strangers come from: an IPv4 address or an IPv6 network; has half of the places
    sighting              what a hub reports of a node: that it was there, and its traffic
    instance              tells two processes with one key apart; the newer one replaces the older
    early bytes           what comes in before an endpoint has a peer; kept up to a limit, then reading pauses
"""
