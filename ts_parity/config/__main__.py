"""`python -m ts_parity.config > docs/settings.md`"""

import sys

from ts_parity.config.documentation import settings_markdown

sys.stdout.write(settings_markdown())
