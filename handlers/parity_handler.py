"""The parity role: what `torch-model-archiver --handler` is given in place of your own handler.

Yours is named in the `ts_parity` section of the archive's config YAML. The code is in `ts_parity.worker`: from the zip
beside this file if there is one (an archive made by `ts-parity package`), else from the installed package.
"""

import os
import sys

_bundled = os.path.join(os.path.dirname(os.path.abspath(__file__)), "ts_parity_worker.zip")
if os.path.exists(_bundled):
    sys.path.insert(0, _bundled)

from ts_parity.worker.entry import make_handle  # noqa: E402

handle = make_handle("parity")
