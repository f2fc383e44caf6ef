from __future__ import annotations

import sys

from pyvfio.cli import main

sys.exit(main())
