"""Check a folder of recordings of the original against this program.

``python tests/parity.py FOLDER`` prints one line for each quantity: where it was recorded, of which
kind it is, the worst error and the limit. Exit code 1 says that a limit is passed, that a file of
the folder went unchecked, or that nothing was checked at all; 2 that the folder cannot be used.
"""

import logging
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tests.helpers.recorded.checking import main

if __name__ == "__main__":
    logging.disable(logging.WARNING)
    sys.exit(main())
