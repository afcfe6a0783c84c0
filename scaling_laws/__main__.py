"""`python -m scaling_laws`."""

import sys

from scaling_laws._cli import main

if __name__ == "__main__":
    sys.exit(main())
