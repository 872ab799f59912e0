"""What leaves and what comes back, over a real socket, for every transport and both colours."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from langchain_openai import ChatOpenAI
from pydantic import SecretStr

from langchain_relay.engine.errors import DelegateError, DelegateTimeout, DelegateTruncated
from langchain_relay.engine.values import Usage
from tests.integration_tests.delegates.transports import (
    MAKERS,
    Colour,
    Maker,
    attempt,
    chat_openai,
    pieces_and_error,
    stream,
    text,
    through_a_sync_client,
    through_an_async_client,
)
from tests.servers.openai_server import OpenAIServer, Reply

# Clients are left to the garbage collector, as most programs leave them.
pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning")

both_colours = pytest.mark.parametrize("colour", ["sync", "async"])
every_transport = pytest.mark.parametrize("make", MAKERS, ids=lambda make: make.__name__)

LIMIT_NAMES = {
    "through_langchain": "max_completion_tokens",
    "through_a_sync_client": "max_tokens",
    "through_an_async_client": "max_tokens",
}


@both_colours
@every_transport
def test_pieces_usage_model_and_finish_reason_arrive(
    openai_server: OpenAIServer, make: Maker, colour: Colour
):
    details = {"prompt_tokens_details": {"cached_tokens": 5}}
    openai_server.script(
        Reply(
            "Blue light scatters.",
            usage=(12, 3),
            usage_extra={**details, "completion_tokens_details": {"reasoning_tokens": 1}},
            model="gpt-5-mini-2025-08-07",
        )
    )
    deltas = stream(make(openai_server), attempt(), colour)
    assert [delta.text for delta in deltas if delta.text] == ["Blue", " light", " scatters."]
    assert [delta.finish for delta in deltas if delta.finish] == ["stop"]
    assert [delta.usage for delta in deltas if delta.usage] == [
        Usage(12, 3, cached_input_tokens=5, reasoning_tokens=1)
    ]
    assert {delta.model for delta in deltas} - {None} == {"gpt-5-mini-2025-08-07"}


@both_colours
@every_transport
def test_exactly_the_limit_leaves_and_usage_is_asked_for(
    openai_server: OpenAIServer, make: Maker, colour: Colour
):
    openai_server.script("one two three four five")
    deltas = stream(make(openai_server), attempt(max_tokens=3), colour)
    (body,) = openai_server.bodies
    assert body.pop(LIMIT_NAMES[make.__name__]) == 3
    assert not {"max_tokens", "max_completion_tokens", "stop"} & set(body)
    assert body["stream"] is True
    assert body["stream_options"] == {"include_usage": True}
    assert body["model"] == "gpt-5-mini"
    assert text(deltas) == "one two three"
    assert deltas[-2].finish == "length"


@both_colours
def test_the_limit_wins_over_the_chat_models_own(openai_server: OpenAIServer, colour: Colour):
    from langchain_relay.delegates import ChatModelDelegate

    for own in ({"max_tokens": 900}, {"max_completion_tokens": 900}):
        delegate = ChatModelDelegate(chat_openai(openai_server, **own))
        stream(delegate, attempt(max_tokens=7), colour)
        body = openai_server.bodies[-1]
        assert (body.get("max_tokens"), body["max_completion_tokens"]) == (None, 7)


@both_colours
@pytest.mark.parametrize(
    ("model", "name"),
    [
        ("gpt-5-mini", "max_completion_tokens"),  # OpenAI behind a gateway
        ("openai/o4-mini", "max_completion_tokens"),
        ("gpt-oss-20b", "max_tokens"),
        ("smollm2-135m", "max_tokens"),
    ],
)
def test_a_chat_openai_says_the_limit_by_the_name_that_the_server_knows(
    openai_server: OpenAIServer, model: str, name: str, colour: Colour
):
    from langchain_relay.delegates import ChatModelDelegate

    chat = ChatOpenAI(model=model, base_url=openai_server.base_url, api_key=SecretStr("test"))
    for mode in ("prefill", "flag"):
        delegate = ChatModelDelegate(chat, mode=mode, flag="partial")
        stream(delegate, attempt("The sky is", max_tokens=7), colour)
        body = openai_server.bodies[-1]
        limits = {key: body[key] for key in body if key.endswith("_tokens")}
        assert limits == {name: 7}, mode
        assert body["messages"][-1].get("partial", False) is (mode == "flag")


@both_colours
@every_transport
def test_without_a_draft_the_conversation_leaves_as_it_is(
    openai_server: OpenAIServer, make: Maker, colour: Colour
):
    stream(make(openai_server), attempt(), colour)
    assert openai_server.bodies[0]["messages"] == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Why is the sky blue?"},
    ]


@both_colours
@every_transport
def test_an_instructed_draft_stands_in_the_last_user_message(
    openai_server: OpenAIServer, make: Maker, colour: Colour
):
    stream(make(openai_server), attempt("It is because of ", max_tokens=8), colour)
    system, user = openai_server.bodies[0]["messages"]
    assert system == {"role": "system", "content": "Be brief."}
    assert user["content"].startswith("Why is the sky blue?\n\n")
    assert user["content"].endswith("<draft>It is because of")


@both_colours
@every_transport
def test_a_prefilled_draft_is_a_trailing_assistant_message_without_trailing_blanks(
    openai_server: OpenAIServer, make: Maker, colour: Colour
):
    stream(make(openai_server, mode="prefill"), attempt("It is \n"), colour)
    body = openai_server.bodies[0]
    assert body["messages"][-1] == {"role": "assistant", "content": "It is"}
    assert "continue_final_message" not in body


@both_colours
@every_transport
def test_flags_are_sent_with_a_draft_and_only_then(
    openai_server: OpenAIServer, make: Maker, colour: Colour
):
    delegate = make(openai_server, mode="flag")
    stream(delegate, attempt("It is "), colour)
    stream(delegate, attempt(""), colour)
    flagged, plain = openai_server.bodies
    assert flagged["messages"][-1] == {"role": "assistant", "content": "It is"}
    assert (flagged["continue_final_message"], flagged["add_generation_prompt"]) == (True, False)
    assert "continue_final_message" not in plain


@both_colours
@every_transport
def test_the_model_of_one_call_wins(openai_server: OpenAIServer, make: Maker, colour: Colour):
    stream(make(openai_server), attempt(model="gpt-5"), colour)
    assert openai_server.bodies[0]["model"] == "gpt-5"


@both_colours
@pytest.mark.parametrize("make", [through_a_sync_client, through_an_async_client])
def test_the_completions_api_gets_a_prompt_that_ends_in_the_draft(
    openai_server: OpenAIServer, make: Maker, colour: Colour
):
    openai_server.script(Reply(" scattering.", usage=(9, 1)))
    delegate = make(openai_server, api="completions")
    deltas = stream(delegate, attempt("Because of ", max_tokens=4), colour)
    (body,) = openai_server.bodies
    assert openai_server.requests[0].path == "/v1/completions"
    assert body["prompt"].endswith("User: Why is the sky blue?\n\nAssistant: Because of")
    assert body["max_tokens"] == 4
    assert text(deltas) == " scattering."
    assert [delta.usage for delta in deltas if delta.usage] == [Usage(9, 1)]
    assert [delta.finish for delta in deltas if delta.finish] == ["stop"]


# --- failures -----------------------------------------------------------------------------------


@both_colours
@every_transport
@pytest.mark.parametrize("status", [500, 503, 429, 408, 409])
def test_a_failing_host_gets_exactly_one_request_and_is_owed_nothing(
    openai_server: OpenAIServer, make: Maker, colour: Colour, status: int
):
    openai_server.script(Reply(status=status, headers={"Retry-After": "7"}))
    deltas, error = pieces_and_error(make(openai_server), attempt(), colour)
    assert len(openai_server.requests) == 1
    assert isinstance(error, DelegateError)
    assert (deltas, error.retryable, error.sent, error.retry_after_s) == ([], True, False, 7.0)
    assert error.__cause__ is not None


@both_colours
@every_transport
@pytest.mark.parametrize("status", [400, 401, 403, 404])
def test_a_refused_request_is_not_tried_again(
    openai_server: OpenAIServer, make: Maker, colour: Colour, status: int
):
    openai_server.script(Reply(status=status))
    _, error = pieces_and_error(make(openai_server), attempt(), colour)
    assert isinstance(error, DelegateError)
    assert (error.retryable, error.sent) == (False, False)
    assert str(error).startswith("gpt-5-mini: ")


@both_colours
@every_transport
def test_an_account_without_credit_is_not_tried_again(
    openai_server: OpenAIServer, make: Maker, colour: Colour
):
    openai_server.script(
        Reply(status=429, error={"message": "no credit", "code": "insufficient_quota"})
    )
    _, error = pieces_and_error(make(openai_server), attempt(), colour)
    assert isinstance(error, DelegateError)
    assert not error.retryable


@both_colours
@every_transport
def test_a_host_that_is_not_there_is_owed_nothing(make: Maker, colour: Colour):
    with OpenAIServer() as gone:
        delegate = make(gone)
    _, error = pieces_and_error(delegate, attempt(), colour)
    assert isinstance(error, DelegateError)
    assert (error.retryable, error.sent) == (True, False)


@both_colours
@every_transport
@pytest.mark.parametrize("fault", ["end", "drop"])
def test_a_cut_stream_gives_what_came_and_is_truncated(
    openai_server: OpenAIServer, make: Maker, colour: Colour, fault: Any
):
    openai_server.script(Reply("one two three", fault=fault, fault_after=2))
    deltas, error = pieces_and_error(make(openai_server), attempt(), colour)
    assert text(deltas) == "one two"
    assert isinstance(error, DelegateTruncated)
    assert (error.retryable, error.sent) == (True, True)


@both_colours
@every_transport
@pytest.mark.parametrize("fault", ["malformed", "html"])
def test_a_malformed_stream_may_be_owed_and_tried_again(
    openai_server: OpenAIServer, make: Maker, colour: Colour, fault: Any
):
    openai_server.script(Reply("one two", fault=fault))
    _, error = pieces_and_error(make(openai_server), attempt(), colour)
    assert isinstance(error, DelegateError)
    assert (error.retryable, error.sent) == (True, True)


@both_colours
@every_transport
def test_silence_ends_with_the_attempts_timeout(
    openai_server: OpenAIServer, make: Maker, colour: Colour
):
    openai_server.script(Reply("one", fault="hang"))
    deltas, error = pieces_and_error(make(openai_server), attempt(timeout_s=1.5), colour)
    assert text(deltas) == "one"
    assert isinstance(error, DelegateTimeout)
    assert error.sent
    assert openai_server.wait_for_hangup()


@both_colours
@every_transport
def test_closing_early_ends_the_http_stream(
    openai_server: OpenAIServer, make: Maker, colour: Colour
):
    openai_server.script(Reply("word " * 2_000, delay_s=0.005))
    deltas = stream(make(openai_server), attempt(max_tokens=2_000), colour, until=3)
    assert len(deltas) == 3
    assert openai_server.wait_for_hangup()


@every_transport
async def test_closing_early_ends_the_http_stream_while_the_loop_goes_on(make: Maker):
    with OpenAIServer(Reply("word " * 2_000, delay_s=0.005)) as server:
        deltas: Any = make(server).astream(attempt(max_tokens=2_000))
        assert (await anext(deltas)).text is not None
        await deltas.aclose()
        assert await asyncio.to_thread(server.wait_for_hangup)


@both_colours
@every_transport
def test_missing_usage_is_unknown(openai_server: OpenAIServer, make: Maker, colour: Colour):
    openai_server.script(Reply("one two", report_usage=False))
    deltas = stream(make(openai_server), attempt(), colour)
    assert [delta.usage for delta in deltas if delta.usage] == []
    assert deltas[-1].finish == "stop"


@both_colours
@pytest.mark.parametrize("make", [through_a_sync_client, through_an_async_client])
def test_a_cost_the_host_reports_arrives(openai_server: OpenAIServer, make: Maker, colour: Colour):
    openai_server.script(Reply("one", usage_extra={"cost": 0.00014}))
    deltas = stream(make(openai_server), attempt(), colour)
    assert [delta.cost_usd for delta in deltas if delta.cost_usd] == ["0.00014"]


@both_colours
def test_the_wrapped_model_itself_keeps_its_retries(openai_server: OpenAIServer, colour: Colour):
    from langchain_relay.delegates import ChatModelDelegate

    model = chat_openai(openai_server, max_retries=2)
    ChatModelDelegate(model)
    assert (model.max_retries, model.root_client.max_retries) == (2, 2)
