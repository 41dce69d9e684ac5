"""Attests a machine with keylime, as its agent and its verifier do it: the ASCII list stays open and is read on from where
it ended, the verifier keeps its place from round to round.

Argument: the list. Standard input: for each round the value of PCR 10, sha256, in hex. Prints a line of JSON a round: how
many records were verified so far, and the kinds of failure.
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
