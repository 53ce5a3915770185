"""The one exception that a user's input can cause."""


class UserError(Exception):
    """Bad input, told in three parts: what was given, what is allowed or was found, what to do next.

    The command line prints it without a traceback and exits with code 2.
    """

    def __init__(self, given: str, allowed: str, advice: str):
        super().__init__(f"{given}\n  {allowed}\n  {advice}")
        self.given, self.allowed, self.advice = given, allowed, advice

    def __reduce__(self):
        return type(self), (self.given, self.allowed, self.advice)  # so that it passes from one process to another
