"""How a rented machine becomes a node: on a stock image that has Python, torch and pip, and nothing of ours.

::

    container's command ── seed: process 1                         travels as an argument, so it is small
      │ fetches install.pyz through the mesh's port
      └─ install: config.json, files, environment, packages         travels as a file: this package, zipped
           └─ becomes `video-api node join`

The head hands everything out on the mesh's one port, to whoever holds an invitation that nobody has joined with yet
(``cluster.mesh.reception``). The certificate in the token is checked before anything is sent. What was fetched is kept:
a container that is restarted fetches what it lacks, and after the node has joined, when the token opens nothing more,
works with what it has. Whatever ends the node, the seed gives the machine back.

Standard library only: this runs before anything is installed.
"""
