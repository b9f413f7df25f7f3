"""The fleet: machines come when they are wished for and go when they are not, within caps, with a true bill.

It runs in the launcher, which alone holds the provider's key, and knows neither Ray nor any provider. A *slot* is a
node that somebody wishes for; Ray knows it by its id from the wish on. What is rented for it is a *rental*: one at a
time, and the next one if that fails before it has worked; or two that race, where that costs little.

- ``slots`` are added and dismissed one by one; ``waiting`` says why nothing is rented for one, and ``gates`` what is
  in the way of a whole node type.
- ``rental`` is a rented machine's life and why it ended, ``terms`` its prices, ``report`` what it says of itself,
  and ``words`` how much of that is written down.
- ``provider`` is all that is asked of whoever rents out machines; ``cluster.vast.provider`` is the one there is.
- ``door`` is all that is asked of the mesh: let a node in, shut it out.
- ``decide`` looks at everything once and says what is to be done; it does nothing. ``limits`` are its numbers.
- ``caps`` say what may be spent, ``ledger`` what was, by the second; ``account`` is what the provider says of both,
  and ``reconcile`` holds its charges against the ledger.
- ``books`` keep all that in PostgreSQL (``tables``), where only the head that leads may write.
- ``fleet`` carries it out, pass after pass.
"""
