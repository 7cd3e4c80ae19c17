"""`python -m loadtest`: see cli.py. Locust is imported first, since it makes Python's sockets cooperative."""

import locust  # noqa: F401, I001
import sys

from loadtest.cli import main

sys.exit(main())
