"""The command line: it parses, calls `detdistill.run`, and prints. It imports no torch before a command runs."""

from detdistill.cli import checks, completion, listing, reports, training, using  # each adds its commands to `app`
from detdistill.cli.app import app, main
