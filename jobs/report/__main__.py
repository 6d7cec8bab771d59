"""`python -m jobs.report`: the same as `shiftlab report`."""

import sys

from jobs.report import main

sys.exit(main())
