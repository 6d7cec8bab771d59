"""`python -m jobs.certify`: the same as `shiftlab certify`."""

import sys

from jobs.certify import main

sys.exit(main())
