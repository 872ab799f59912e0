"""Bad input is one clear error that says what to do, before anything is loaded where possible."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from langchain_core.language_models import GenericFakeChatModel
from langchain_core.messages import HumanMessage

from langchain_relay import Budget, RelayChatModel, errors, policies
from langchain_relay.testing import ScriptedDelegate, ScriptedLocal


def relay(**fields: Any) -> RelayChatModel:
    settings: dict[str, Any] = {
        "model": ScriptedLocal("Hi."),
        "delegate": ScriptedDelegate("x"),
        **fields,
    }
    return RelayChatModel(**settings)


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(errors.ModelNotFound, match=r"nowhere\.gguf"):
        relay(model=tmp_path / "nowhere.gguf")


def test_a_file_that_is_no_gguf(tmp_path: Path) -> None:
    fake = tmp_path / "fake.gguf"
    fake.write_bytes(b"not a model")
    with pytest.raises(errors.ModelNotFound, match="GGUF"):
        relay(model=str(fake))


def test_an_unknown_alias_names_the_known_ones() -> None:
    with pytest.raises(errors.ModelNotFound, match="smollm2-135m"):
        relay(model="smolm-135")


def test_a_missing_adapter(tmp_path: Path) -> None:
    with pytest.raises(errors.ModelNotFound, match="adapter"):
        relay(model="smollm2-135m", adapter=tmp_path / "lora.gguf")


@pytest.mark.parametrize("value", ["gpt-5-mini", "nobody:model", 7, None])
def test_a_delegate_nobody_knows(value: Any) -> None:
    with pytest.raises(errors.UnknownDelegate):
        relay(delegate=value)


def test_no_model() -> None:
    with pytest.raises(errors.UsageMistake, match="model="):
        RelayChatModel(delegate=ScriptedDelegate("x"))  # type: ignore[call-arg]  # the mistake


def test_a_budget_in_usd_needs_a_price() -> None:
    with pytest.raises(errors.PriceUnknown, match="prices="):
        relay(budget=Budget(usd="0.01"))
    relay(budget=Budget(usd="0.01"), prices={"scripted": (0, 0)})
    relay(budget=Budget(tokens=5))


@pytest.mark.parametrize(
    "limits",
    [{"usd": -1}, {"usd": "a lot"}, {"usd": float("nan")}, {"tokens": -1}, {"calls": -1},
     {"calls": 1.5}, {"calls": True}, {"warn_at": 2, "calls": 1}, {}],
)  # fmt: skip
def test_a_budget_that_makes_no_sense(limits: dict[str, Any]) -> None:
    with pytest.raises(errors.UsageMistake, match="Budget"):
        Budget(**limits)


@pytest.mark.parametrize(
    "fields",
    [{"max_tokens": 0}, {"max_tokens": -5}, {"max_calls": -1}, {"max_span_tokens": 0},
     {"timeout": 0}, {"timeout": -1}, {"max_retries": -1}, {"temperature": -0.1}, {"n_ctx": 0},
     {"max_concurrency": 0}],
)  # fmt: skip
def test_a_setting_out_of_range_is_named(fields: dict[str, Any]) -> None:
    with pytest.raises(errors.UsageMistake, match=next(iter(fields))):
        relay(**fields)


def test_a_setting_out_of_range_per_call() -> None:
    with pytest.raises(errors.UsageMistake, match="max_tokens=0"):
        relay().invoke("?", max_tokens=0)


@pytest.mark.parametrize(
    ("misspelt", "meant"),
    [("temprature", "temperature"), ("budgets", "budget"), ("legder", "ledger")],
)
def test_a_misspelt_field_is_refused_with_its_neighbour(misspelt: str, meant: str) -> None:
    with pytest.raises(errors.UsageMistake, match=f"no field '{misspelt}'; did you mean '{meant}'"):
        relay(**{misspelt: None})


def test_an_argument_of_other_chat_models_is_ignored_and_said_so() -> None:
    with pytest.warns(UserWarning, match="has no field 'frequency_penalty' and ignores it"):
        relay(frequency_penalty=0.5)


def test_a_budget_that_is_none() -> None:
    with pytest.raises(errors.UsageMistake, match="Budget"):
        relay(budget=["0.01"])


def test_empty_messages() -> None:
    with pytest.raises(errors.UsageMistake, match="empty"):
        relay().invoke([])


@pytest.mark.parametrize("kind", ["image", "image_url", "audio", "file"])
def test_content_that_is_no_text(kind: str) -> None:
    message = HumanMessage([{"type": "text", "text": "What is this?"}, {"type": kind, kind: "…"}])
    with pytest.raises(errors.UnsupportedContent, match=kind):
        relay().invoke([message])


def test_a_context_too_small_names_both_numbers() -> None:
    model = relay(model=ScriptedLocal("Hi.", n_ctx=10), teach="none")
    with pytest.raises(errors.ContextOverflowError, match="12 tokens but n_ctx=10") as overflow:
        model.invoke("word " * 12)
    assert (overflow.value.needed_tokens, overflow.value.n_ctx) == (12, 10)


def test_every_engine_error_has_a_public_twin() -> None:
    from langchain_relay.engine import errors as engine

    for name in errors.__all__:
        public, own = getattr(errors, name), getattr(engine, name)
        assert issubclass(public, own)
        if own is not engine.RelayError:
            assert errors._PUBLIC[own] is public


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"policy": "CallTokens"}, "CallTokens()"),
        ({"policy": policies.CallTokens}, "CallTokens()"),
        ({"model": 3}, "alias"),
        ({"budget": 0.02}, "Budget"),
        ({"budget": "0.02"}, "Budget"),
        ({"prices": [1]}, "prices"),
        ({"top_p": 7}, "top_p=7"),
        ({"min_p": 9}, "min_p=9"),
        ({"temperature": float("nan")}, "temperature=nan"),
    ],
)
def test_a_field_of_the_wrong_kind_is_named(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(errors.UsageMistake) as mistake:
        relay(**fields)
    assert said in str(mistake.value)


def test_a_field_of_the_wrong_kind_per_call_is_named() -> None:
    with pytest.raises(errors.UsageMistake, match="temperature='hot'"):
        relay().invoke("?", temperature="hot")


@pytest.mark.parametrize("name", policies.__all__)
@pytest.mark.parametrize("bound", [{"max_span_tokens": 0}, {"max_calls": -1}])
def test_a_policy_refuses_bounds_nobody_can_keep(name: str, bound: dict[str, int]) -> None:
    with pytest.raises(errors.UsageMistake, match=next(iter(bound))):
        getattr(policies, name)(**bound)


@pytest.mark.parametrize("wrong", [{"cues": "Thus"}, {"match": "words"}])
def test_switch_cues_says_what_it_takes(wrong: dict[str, Any]) -> None:
    with pytest.raises(errors.UsageMistake, match="SwitchCues"):
        policies.SwitchCues(**wrong)


def test_an_address_as_model_names_the_class_for_servers() -> None:
    with pytest.raises(errors.ModelNotFound, match=r"CompletionServerModel\('http://127"):
        relay(model="http://127.0.0.1:8080")


def test_a_missing_relative_file_says_where_it_was_looked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(errors.ModelNotFound) as missing:
        relay(model="nowhere.gguf")
    assert repr(str(tmp_path)) in str(missing.value)


@pytest.mark.parametrize("wrong", [3, ["spending.db"], dict])
def test_a_ledger_that_is_none(wrong: Any) -> None:
    with pytest.raises(errors.UsageMistake, match="ledger="):
        relay(ledger=wrong)


def test_a_ledger_in_a_file_of_another_kind_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    notes = tmp_path / "notes.txt"
    notes.write_text("a text that is longer than the first bytes of a database")
    with pytest.raises(errors.UsageMistake, match="no database"):
        relay(ledger=notes)
    assert notes.read_text().startswith("a text")
    (tmp_path / "empty.db").touch()
    relay(ledger=tmp_path / "empty.db")


@pytest.mark.parametrize("named", [3, ["gpt-5-mini"]])
def test_a_delegate_model_that_is_no_name(named: Any) -> None:
    with pytest.raises(errors.UsageMistake, match="delegate_model="):
        relay().invoke("?", delegate_model=named)


def test_a_model_of_the_wrong_kind_per_call() -> None:
    with pytest.raises(errors.UsageMistake, match="model=3"):
        relay().invoke("?", model=3)


def test_an_unknown_price_says_whose_prices_were_given() -> None:
    with pytest.raises(errors.PriceUnknown, match=r"'scripted' \(prices= has 'expert'\)"):
        relay(budget=Budget(usd=1), prices={"expert": (1, 2)})


def test_tools_are_refused_with_what_to_do_instead() -> None:
    schema: dict[str, Any] = {"title": "Answer", "type": "object", "properties": {}}
    with pytest.raises(NotImplementedError, match="no tools yet"):
        relay().bind_tools([schema])
    with pytest.raises(NotImplementedError, match="no tools yet"):
        relay().with_structured_output(schema)


# --- a model that was made already ----------------------------------------------------------------


def test_a_field_that_is_read_once_cannot_be_assigned() -> None:
    model = relay()
    with pytest.raises(errors.UsageMistake, match="model_copy"):
        model.delegate = ScriptedDelegate("y")
    model.temperature = 0
    assert model.temperature == 0


def test_a_copy_asks_the_delegate_it_was_given() -> None:
    model = relay(model=ScriptedLocal("<call>4</call>", "!"))
    copy = model.model_copy(update={"delegate": ScriptedDelegate("y")})
    assert (model.invoke("?").text, copy.invoke("?").text) == ("x!", "y!")


def test_a_copy_keeps_the_ledger_and_is_checked() -> None:
    model = relay(ledger="memory")
    assert model.model_copy(update={"max_tokens": 5}).kept_in is model.kept_in
    assert model.model_copy(update={"ledger": "memory"}).kept_in is not model.kept_in
    with pytest.raises(errors.UsageMistake, match="max_tokens=-5"):
        model.model_copy(update={"max_tokens": -5})


def test_an_assigned_budget_in_usd_needs_a_price_too() -> None:
    model = relay(model=ScriptedLocal("<call>4</call>", "!"))
    model.budget = Budget(usd="0.01")
    with pytest.raises(errors.PriceUnknown, match="prices="):
        model.invoke("?")


def test_a_chat_model_in_the_place_of_the_local_one_is_sent_to_the_other() -> None:
    chat = GenericFakeChatModel(messages=iter(()))
    with pytest.raises(errors.UsageMistake, match="GenericFakeChatModel goes to delegate="):
        relay(model=chat)


def test_settings_of_an_engine_beside_a_model_that_has_one_are_named() -> None:
    with pytest.warns(UserWarning, match="ignores n_ctx=, n_threads=: ScriptedLocal has"):
        relay(n_ctx=100, n_threads=1)
