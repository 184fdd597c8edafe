"""Tenancy, sessions, models and the failed-job store.

Imports neither ``middleware`` nor ``worker``: what it needs is handed to it.
"""

#: Lets ``worker`` tell this package from a user's own ``db`` that shadows it.
__distribution__ = "dramaturg"
