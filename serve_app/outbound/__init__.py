"""HTTP to places that strangers name: inputs to fetch and webhooks to call.

``pool.py`` is what the service uses: it hands each request to one of a few processes of our own (``worker.py``; the
parent's end is ``process.py``), so that no server can hold up the dispatcher's event loop. In there, ``client.py``
speaks: ``url.py`` says what a link means, ``resolver.py`` finds its addresses, ``addresses.py`` judges them,
``connection.py`` dials what was judged, and ``exchange.py`` sends a request and reads its answer within ``limits.py``.
"""
