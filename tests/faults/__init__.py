"""A real HTTP server on the loopback that speaks eight dialects of hosted models and misbehaves.

    with FaultServer(Reply(fault=Fault.RESET_AFTER_TOKEN), Reply("blue light.")) as server:
        client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="test")

`script` says what a request is answered and what goes wrong, `dialects` how that is said, one
module each, and `server` performs it. Nothing here knows the relay.
"""

from tests.faults.caches import PromptCaches
from tests.faults.script import STATUS, Fault, Reply
from tests.faults.server import FaultServer, Served

__all__ = ["STATUS", "Fault", "FaultServer", "PromptCaches", "Reply", "Served"]
