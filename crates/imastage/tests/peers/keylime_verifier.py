"""Appraises lists as keylime's verifier does, over several rounds.

For each line of standard input, JSON with PCR 10 of the sha256 bank in hex, a list, and the number of its first entry, prints
a line of JSON: the kinds of failure, and the number of the entry it wants next.
"""

import json
import logging
import sys

logging.disable(logging.CRITICAL)

from keylime.agentstates import AgentAttestState  # noqa: E402
from keylime.common.algorithms import Hash  # noqa: E402
from keylime.ima import ima  # noqa: E402

state = AgentAttestState("host")
for line in sys.stdin:
    asked = json.loads(line)
    if asked["from"] == 0:
        # As cloud_verifier_common does when an agent begins anew.
        state.reset_ima_attestation()
    lines = asked["list"].split("\n")
    _, failure = ima.process_measurement_list(state, lines, None, pcrval=asked["pcr"], hash_alg=Hash.SHA256)
    failures = [event.event_id for event in failure.events]
    print(json.dumps({"failures": failures, "next": state.get_next_ima_ml_entry()}), flush=True)
