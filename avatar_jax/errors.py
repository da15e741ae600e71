"""The one exception that is meant for the person at the keyboard."""


class UserError(Exception):
    """Something the user can fix: one line that names the file or option, what is wrong and what to do.

    The command line prints the message without a traceback and exits with status 2. Programming errors stay
    ordinary exceptions.
    """
