"""The two ways work ends badly, and the exit code of each. Every message is one line: what, where, what to do."""


class BadInput(Exception):
    """The input or the usage is wrong; nothing was done. Command lines exit with 2."""

    exit_code = 2


class WorkFailed(Exception):
    """The input was fine and the work failed. Command lines exit with 1."""

    exit_code = 1
