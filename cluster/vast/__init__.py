"""Vast.ai: which machines can be rented and what they would cost in all, and a client that rents and gives them back.

Two halves that meet in ``offer`` (a machine as the market shows it):

- **Talking.** ``client`` has a method for each call; renting is ``rental`` (what is asked for, and within which
  limits) and ``renting`` (how it is known whether it happened). Each call goes through ``exchange`` (the key, tries),
  which waits for its turn in ``pacing`` and lets ``answer`` judge what comes back. ``instance`` is what was rented,
  ``errors`` how all this fails.
- **Choosing**, without any of that. ``node_type`` is the kind of machine that is wanted, ``requirements`` what it asks
  of an offer, ``search`` how to see all offers although an answer holds 64, ``cost`` what a machine costs for the work
  at hand from its first second to its last, and ``offers`` puts them in order.

Nothing here knows Ray, the mesh or a model.
"""
