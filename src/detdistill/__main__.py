"""`python -m detdistill` is the same command."""

import sys

from detdistill.cli import main

if __name__ == "__main__":
    sys.exit(main())
