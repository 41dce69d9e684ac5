"""Attests a machine with keylime, as its agent and verifier do: the ASCII list stays open and each read continues at
the previous end, and the verifier keeps its position between rounds.

Argument: the list. Standard input: one line per round, the value of PCR 10 in the sha256 bank, in hex. Prints one line of
JSON per round: the number of records verified so far, and the kinds of failure.
"""

import json
import logging
import sys

logging.disable(logging.CRITICAL)

from keylime.agentstates import AgentAttestState  # noqa: E402
from keylime.common.algorithms import Hash  # noqa: E402
from keylime.ima import ima  # noqa: E402

state = AgentAttestState("host")
with open(sys.argv[1], encoding="utf-8", newline="\n") as file:
    for line in sys.stdin:
        text = file.read()
        _, failure = ima.process_measurement_list(
            state, text.split("\n"), None, pcrval=line.strip(), hash_alg=Hash.SHA256
        )
        answer = {"records": state.get_next_ima_ml_entry(), "failures": [event.event_id for event in failure.events]}
        print(json.dumps(answer), flush=True)
