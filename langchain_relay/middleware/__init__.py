"""Budgets of an agent: for each of its runs and for its thread, in its checkpoint or in a ledger.

```
before_agent   a run begins: its own count is 0 again
before_model   nothing left: go on locally, end, raise, or ask
wrap_model_call   the model gets what is left, and what it spent goes into the state
after_model    it was refused something: raise, or ask and let it write again
```
"""

from langchain_relay.errors import MissingExtra

try:
    import langchain.agents.middleware  # noqa: F401 - asked for here, where it can be said
    import langgraph.stream  # noqa: F401
except ImportError as error:
    raise MissingExtra(
        "langchain_relay.middleware is for LangChain's agents: pip install langchain"
    ) from error

from langchain_relay.middleware.budget import ExitBehavior, RelayBudgetMiddleware

__all__ = ["ExitBehavior", "RelayBudgetMiddleware"]
