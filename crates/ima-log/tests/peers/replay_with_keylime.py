"""Replays ASCII lists with keylime's verifier.

Arguments: for each list its path, the bank, the PCR's value in hex. Prints a line of JSON for each: the value that the
whole list leads to, how many records lead to the value given (0 if none do), the kinds of failure, and the seconds it
took.
"""

import json
import logging
import sys
import time

logging.disable(logging.CRITICAL)

from keylime.agentstates import AgentAttestState  # noqa: E402
from keylime.common.algorithms import Hash  # noqa: E402
from keylime.ima import ima  # noqa: E402

for path, bank, pcr in zip(sys.argv[1::3], sys.argv[2::3], sys.argv[3::3]):
    with open(path, encoding="utf-8", newline="\n") as file:
        text = file.read()
    state = AgentAttestState("host")
    start = time.perf_counter()
    value, failure = ima.process_measurement_list(state, text.split("\n"), None, pcrval=pcr, hash_alg=Hash(bank))
    seconds = time.perf_counter() - start
    answer = {
        "value": value,
        "records": state.get_next_ima_ml_entry(),
        "failures": [event.event_id for event in failure.events],
        "seconds": seconds,
    }
    print(json.dumps(answer))
