"""Reads a list as the agent of keylime 6.8 does: opens it once, and keeps it open.

Argument: the list. For each line of standard input, the number of the entry that the verifier wants next, prints a line of
JSON: the entries, and which was the first.
"""

import errno
import json
import logging
import sys

logging.disable(logging.CRITICAL)

from keylime.ima import ima  # noqa: E402

while True:
    try:
        file = open(sys.argv[1], "r", encoding="utf-8")
        break
    except OSError as error:
        # The kernel's own files cannot be opened while the service drains.
        if error.errno != errno.EBUSY:
            raise

with file:
    for line in sys.stdin:
        entries, first, _ = ima.read_measurement_list(file, int(line))
        print(json.dumps({"list": entries, "from": first}), flush=True)
