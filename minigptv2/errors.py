"""The one exception that a user's input can cause."""


class UserError(Exception):
    """Bad input, told in three parts: what was given, what is allowed or was found, what to do next.

    The command line prints it without a traceback and exits with code 2.
    """

    def __init__(self, given: str, allowed: str, advice: str):
        super().__init__(f"{given}\n  {allowed}\n  {advice}")
        self.given, self.allowed, self.advice = given, allowed, advice
