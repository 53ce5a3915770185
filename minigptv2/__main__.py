"""`python -m minigptv2`: the same as the command `minigptv2`."""

import sys

from minigptv2.cli import main

if __name__ == "__main__":
    sys.exit(main())
