"""`python -m ts_parity.doctor > docs/doctor.md`"""

import sys

from ts_parity.doctor.documentation import doctor_markdown

sys.stdout.write(doctor_markdown())
