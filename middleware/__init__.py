"""Dramatiq middleware, one idea a file, for any Dramatiq project.

Never imports ``worker``; what a middleware needs is handed to its constructor.
"""

#: Lets ``worker`` tell this package from a user's own ``middleware`` that shadows it.
__distribution__ = "dramaturg"
