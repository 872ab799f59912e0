"""Policies: who writes next.

`CallTokens` (RelayLLM) is the default. `SwitchCues` is RelayGen. `FixedLength`, `SingleHandoff`,
`Never` and `Always` are what they are compared with.
"""

from langchain_relay.policies.always import Always
from langchain_relay.policies.call_tokens import CallTokens
from langchain_relay.policies.fixed_length import FixedLength
from langchain_relay.policies.never import Never
from langchain_relay.policies.single_handoff import SingleHandoff
from langchain_relay.policies.switch_cues import SwitchCues

__all__ = ["Always", "CallTokens", "FixedLength", "Never", "SingleHandoff", "SwitchCues"]
