"""`python -m jobs.featurize`: the same as `shiftlab featurize`."""

import sys

from jobs.featurize import main

sys.exit(main())
