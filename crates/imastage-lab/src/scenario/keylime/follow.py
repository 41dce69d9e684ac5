"""Follows a list as Keylime's agent does: opens it once, keeps it open, and asks for the entries after those that it has.
Arguments: the list, and the file that the entries are appended to.
"""

import sys
import time

from keylime.ima import ima

entry = 0
with open(sys.argv[1], "r", encoding="utf-8") as file, open(sys.argv[2], "w", encoding="utf-8") as seen:
    while True:
        entries, first, _ = ima.read_measurement_list(file, entry)
        if entries is not None and first == entry:
            seen.write(entries)
            seen.flush()
            entry += entries.count("\n")
        time.sleep(0.1)
