"""What Ray's autoscaler wishes for, on its way to the launcher, which alone may rent.

Ray's monitor process belongs to Ray: code of any node may run in it. So it holds no key and decides nothing that costs
money: it names slots that it wants and slots that it wants no more, by a Unix socket, and the fleet bounds that.

- ``exchange`` is what is said: one line there, one line back.
- ``server`` is the launcher's end, ``link`` is Ray's: it remembers what it was told last, so nobody ever waits for it.
- ``provider`` is what Ray loads; ``configuration`` is how Ray is told of it.
"""
