"""The language model's client against a scripted server: failures, limits, secrets, the transcript and its replay."""

import base64
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path

import pytest
from scripted_server import CANARY, Request, ScriptedServer, Step, answer, completion, error
from talk import HELLO, Talk

from agent.lab.errors import UserError
from agent.llm import transcript
from agent.llm.client import ChatModel, Client, LLMError
from agent.llm.limits import Limits
from agent.llm.redact import REMOVED, redact
from agent.llm.replay import Replay
from agent.llm.server import server
from agent.llm.transcript import BadTranscript


@pytest.fixture
def talk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Talk:
    return Talk(tmp_path, monkeypatch)


def test_a_question_gets_its_answer_and_both_are_recorded(talk: Talk):
    with ScriptedServer(answer("Hi.", tokens=(11, 3))) as scripted:
        client = talk.client(scripted, Limits(prices=(2.0, 10.0)))
        assert client.ask(HELLO, "greeting") == "Hi."
    (request,) = scripted.requests
    assert request.body["messages"] == HELLO
    assert request.body["model"] == "m"
    (line,) = talk.lines
    assert (line["seq"], line["purpose"], line["model"], line["messages"]) == (0, "greeting", "m", HELLO)
    assert line["answer"] == "Hi."
    assert line["usage"] == {"tokens_in": 11, "tokens_out": 3, "estimated": False}
    assert line["cost"] == pytest.approx(52e-6)
    assert (client.spent.calls, client.spent.tokens, client.spent.cost) == (1, 14, pytest.approx(52e-6))


# --- retries ---


def date(seconds: float) -> str:
    return format_datetime(datetime.now(UTC) + timedelta(seconds=seconds), usegmt=True)


@pytest.mark.parametrize(
    ("step", "waits"),
    [
        (error(429, Retry_After="7"), [7]),
        (error(429, Retry_After="0.5"), [0.5]),
        (error(429), [1]),
        (error(429, Retry_After="soon"), [1]),
        (error(503, Retry_After="30"), [30]),
        (error(500), [1]),
        (Step(b"<html>bad gateway</html>", 502), [1]),
        (Step(b"{}", drop=0), [1]),
        (Step(b"{}", drop=1), [1]),
    ],
)
def test_a_temporary_failure_is_retried_after_a_wait(talk: Talk, step: Step, waits: list[float]):
    with ScriptedServer(step, "Hi.") as scripted:
        assert talk.client(scripted).ask(HELLO, "greeting") == "Hi."
    assert talk.waited == waits
    assert len(scripted.requests) == 2
    assert [line.get("answer") for line in talk.lines] == [None, "Hi."]


def test_a_retry_waits_until_the_date_in_retry_after(talk: Talk):
    with ScriptedServer(error(429, Retry_After=date(90)), "Hi.") as scripted:
        talk.client(scripted).ask(HELLO, "greeting")
    assert 85 < talk.waited[0] <= 90


def test_a_permanent_failure_is_retried_four_times_with_longer_waits(talk: Talk):
    failed = talk.fails(*[error(500, "out of order")] * 5)
    assert (failed.kind, talk.waited) == ("connection", [1, 4, 16, 60])
    assert "status 500" in str(failed)
    assert "out of order" in str(failed)


def test_an_answer_that_times_out_counts_with_all_its_tokens(talk: Talk):
    with ScriptedServer(Step(b"{}", delay=0.6), "Hi.") as scripted:
        client = talk.client(scripted, timeout=0.2)
        assert client.ask(HELLO, "greeting") == "Hi."
    assert talk.lines[0]["error"]["kind"] == "timeout"
    assert talk.lines[0]["usage"]["tokens_out"] == scripted.requests[0].body["max_tokens"]


def test_an_answer_that_trickles_in_times_out(talk: Talk):
    with ScriptedServer(Step(b" " * 1000, drip=0.05), "Hi.") as scripted:
        start = time.monotonic()
        assert talk.client(scripted, timeout=0.3).ask(HELLO, "greeting") == "Hi."
    assert time.monotonic() - start < 2


def test_an_unreachable_server_is_named_and_costs_nothing(talk: Talk):
    with ScriptedServer() as scripted:
        client = talk.client(scripted)
    with pytest.raises(LLMError, match="Connection refused: check the network and OPENAI_BASE_URL") as caught:
        client.ask(HELLO, "greeting")
    assert caught.value.kind == "connection"
    assert client.spent.tokens == 0


# --- failures without a retry ---


@pytest.mark.parametrize(
    ("step", "kind", "message"),
    [
        (error(429, Retry_After="3600"), "quota", "asks to wait 3,600 s"),
        (error(429, "No quota.", "insufficient_quota"), "quota", "No quota.: add to its credit or raise its limit"),
        (error(402, "Pay first."), "quota", "Pay first.: add to its credit"),
        (error(401, f"Wrong key: {CANARY[:6]}*****"), "auth", "does not accept OPENAI_API_KEY (status 401)"),
        (error(403), "auth", "does not accept OPENAI_API_KEY (status 403)"),
        (error(404, "No model m."), "request", "(status 404): No model m.: check --llm m"),
        (error(400, "Too long.", "context_length_exceeded"), "request", "Too long."),
        (error(400, "Violence.", "content_filter"), "refused", "a content filter refused the prompt: Violence."),
        (Step(b'{"choices": [{'), "malformed", "no completion: '{\"choices\": [{'"),
        (Step(b"<html>Log in</html>"), "malformed", "'<html>Log in</html>': does OPENAI_BASE_URL end in /v1?"),
        (Step(b'["a", "list"]'), "malformed", "no completion"),
        (Step(b'{"choices": null}'), "malformed", "no completion"),
        (Step(b"[" * 100_000), "malformed", "no completion"),
        (Step(b""), "malformed", "no completion"),
        (completion(choices=[]), "malformed", "has no choice"),
        (completion(choices=[{"message": {"content": {"text": "Hi."}}}]), "malformed", "no completion"),
        (answer(None, refusal="I cannot."), "refused", "the model refused: I cannot."),
        (answer("Hi", "content_filter"), "refused", "a content filter withheld the answer"),
        (answer(""), "malformed", "the answer is empty"),
        (answer(" \n"), "malformed", "the answer is empty"),
        (answer(None, "tool_calls"), "malformed", "the answer is empty"),
    ],
)
def test_a_failure_has_a_kind_and_a_message_with_a_remedy(talk: Talk, step: Step, kind: str, message: str):
    failed = talk.fails(step)
    assert failed.kind == kind
    assert message in str(failed)
    assert failed.answered == (kind in ("refused", "malformed", "truncated"))
    assert not talk.waited
    (line,) = talk.lines
    assert line["error"] == {"kind": kind, "said": str(failed)}


@pytest.mark.parametrize("url", ["localhost:8000", "http://[x", "http://h:port/", "file:///etc", "x"])
def test_an_error_of_an_invalid_base_url_names_it(talk: Talk, url: str):
    talk.patch.setenv("OPENAI_API_KEY", CANARY)
    talk.patch.setenv("OPENAI_BASE_URL", url)
    with pytest.raises(LLMError, match="OPENAI_BASE_URL") as caught:
        Client(server("m"), talk.path, Limits(), sleep=talk.waited.append).ask(HELLO, "greeting")
    assert caught.value.kind in ("request", "connection")


def test_a_body_beyond_16_mib_is_not_read_to_its_end(talk: Talk):
    failed = talk.fails(Step(b" " * (17 * 2**20) + answer("Hi.").body))
    assert failed.kind == "malformed"


@pytest.mark.parametrize("key", ["", f"{CANARY}\n", f"{CANARY}é", f"{CANARY} {CANARY}"])
def test_an_unusable_key_is_rejected_at_once(talk: Talk, key: str):
    talk.patch.setenv("OPENAI_API_KEY", key)
    with pytest.raises(LLMError, match="OPENAI_API_KEY") as caught:
        server("m")
    assert caught.value.kind == "auth"
    assert CANARY not in str(caught.value)


def test_a_model_that_requires_max_completion_tokens_gets_it(talk: Talk):
    message = "Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead."
    with ScriptedServer(error(400, message), "Hi.", "Ho.") as scripted:
        client = talk.client(scripted)
        assert [client.ask(HELLO, "greeting"), client.ask(HELLO, "again")] == ["Hi.", "Ho."]
    assert [list(request.body)[-1] for request in scripted.requests] == ["max_tokens"] + 2 * ["max_completion_tokens"]


# --- limits ---


def test_tokens_of_unusable_answers_count(talk: Talk):
    steps = [
        answer("", tokens=(100, 20)),
        completion(choices=[]),
        Step(b'{"usage": {"prompt_tokens": 7, "completion_tokens": 1}}'),
    ]
    with ScriptedServer(*steps, answer("Hi.", tokens=None)) as scripted:
        client = talk.client(scripted)
        for _ in steps:
            with pytest.raises(LLMError):
                client.ask(HELLO, "greeting")
        client.ask(HELLO, "greeting")
    assert [line["usage"]["estimated"] for line in talk.lines] == [False, False, False, True]
    assert client.spent.tokens_in == 100 + 100 + 7 + talk.lines[3]["usage"]["tokens_in"]
    assert talk.lines[3]["usage"]["tokens_in"] >= len("Be brief.Hello?") / 3
    assert client.spent.cost is None


def test_max_tokens_is_what_the_token_limit_leaves(talk: Talk):
    with ScriptedServer(answer("Hi.", tokens=(200, 300)), "Hi.") as scripted:
        client = talk.client(scripted, Limits(max_tokens=2000))
        client.ask(HELLO, "greeting")
        client.ask(HELLO, "again")
    first, second = (request.body["max_tokens"] for request in scripted.requests)
    assert 1900 < first < 2000
    assert second == first - 500


def test_max_tokens_is_what_the_cost_limit_leaves(talk: Talk):
    with ScriptedServer("Hi.") as scripted:
        talk.client(scripted, Limits(max_cost=0.01, prices=(1.0, 10.0))).ask(HELLO, "greeting")
    assert 990 < scripted.requests[0].body["max_tokens"] < 1000  # a thousand tokens' worth, less the prompt


def talkative(request: Request) -> Step:
    """Answer with as many tokens as the request allows, up to 700."""
    return answer("Hi.", tokens=(len(request.text) // 4, min(request.body["max_tokens"], 700)))


@pytest.mark.parametrize("limits", [Limits(max_tokens=5000), Limits(max_cost=0.05, prices=(2.0, 10.0))])
def test_a_conversation_ends_within_its_limits(talk: Talk, limits: Limits):
    with ScriptedServer(*[talkative] * 20) as scripted:
        client = talk.client(scripted, limits)
        results = [outcome(client, f"greeting {count}") for count in range(20)]
    assert results[0] == "Hi."
    assert results[-1].startswith("budget: ")
    spent = client.spent
    assert 4700 < spent.tokens <= 5000 + 100 * bool(limits.prices)  # tokens of prompts are cheaper
    assert limits.max_cost is None or (spent.cost and 0.047 < spent.cost <= 0.05)


def test_a_prompt_beyond_the_token_limit_is_not_sent(talk: Talk):
    with ScriptedServer() as scripted:
        client = talk.client(scripted, Limits(max_tokens=1000))
        with pytest.raises(LLMError, match="a larger --max-llm-tokens or --max-cost") as caught:
            client.ask([{"role": "user", "content": "word " * 1000}], "greeting")
    assert caught.value.kind == "budget"
    assert not scripted.requests


@pytest.mark.parametrize("limits", [Limits(max_tokens=1500), Limits(max_cost=0.015, prices=(10.0, 10.0))])
def test_limits_count_what_an_earlier_driver_spent(talk: Talk, limits: Limits):
    with ScriptedServer(answer("Hi.", tokens=(1000, 400))) as scripted:
        talk.client(scripted, limits).ask(HELLO, "greeting")
        client = talk.client(scripted, limits)
        with pytest.raises(LLMError, match="1,400 tokens") as caught:
            client.ask(HELLO, "another")
    assert caught.value.kind == "budget"
    assert len(scripted.requests) == 1


def test_an_answer_cut_off_by_the_budget_is_a_budget_failure(talk: Talk):
    with ScriptedServer(answer("Once upon", "length")) as scripted:
        client = talk.client(scripted, Limits(max_tokens=1000))
        with pytest.raises(LLMError, match="cut off after 20 tokens, as no more were left: agent resume") as caught:
            client.ask(HELLO, "greeting")
    assert caught.value.kind == "budget"


def test_a_cost_limit_without_prices_is_rejected():
    with pytest.raises(UserError, match="give --price-in and --price-out, in dollars per million tokens"):
        Limits(max_cost=1.0)


@pytest.mark.parametrize("dollars", [-1.0, float("nan"), float("inf")])
def test_invalid_dollars_are_rejected(dollars: float):
    for limits in ({"max_cost": dollars, "prices": (1.0, 1.0)}, {"prices": (1.0, dollars)}):
        with pytest.raises(UserError, match="are dollars: give numbers from 0 on"):
            Limits(**limits)


def test_a_free_model_is_not_limited_by_its_cost(talk: Talk):
    with ScriptedServer("Hi.") as scripted:
        talk.client(scripted, Limits(max_cost=0.0, prices=(0.0, 0.0))).ask(HELLO, "greeting")
    assert scripted.requests[0].body["max_tokens"] == 16_384


def test_a_prompt_beyond_the_window_is_not_sent(talk: Talk):
    with ScriptedServer() as scripted:
        client = talk.client(scripted)
        client.window = 1000
        with pytest.raises(LLMError, match=r"the model's window of 1,000: .* --llm-window"):
            client.ask([{"role": "user", "content": "word " * 1000}], "greeting")


# --- secrets ---


def echo(request: Request) -> Step:
    return answer(f"You sent {dict(request.headers)} and {request.text}")


def test_secrets_that_the_server_echoes_are_removed_everywhere(talk: Talk):
    talk.patch.setenv("OTHER_TOKEN", "hush-hush/hush")
    loud = f"key {CANARY}, hush-hush/hush and hush-hush%2Fhush"
    steps = [Step(loud.encode()), answer(None, refusal=loud), answer(loud, "length")]
    for step in (*steps, error(404, loud), error(429, loud, "insufficient_quota"), error(429, loud, Retry_After="1e9")):
        with ScriptedServer(step) as scripted:
            client = talk.client(scripted)
            with pytest.raises(LLMError) as caught:
                client.ask([{"role": "user", "content": loud}], "greeting")
        assert CANARY not in str(caught.value) + repr(caught.value)
    with ScriptedServer(echo) as scripted:
        text = talk.client(scripted).ask([{"role": "user", "content": loud}], "echo")
        assert scripted.requests[0].headers["authorization"] == f"Bearer {CANARY}"
        assert scripted.requests[0].text == f"key {REMOVED}, {REMOVED} and {REMOVED}"
    assert f"Bearer {REMOVED}" in text
    assert text == talk.lines[-1]["answer"]
    for secret in (CANARY, "hush"):
        assert secret not in text + talk.path.read_text()


@pytest.mark.parametrize(
    "secret",
    ["sk-proj-0123456789abcdefghij", "sk-abc1*********wxyz", "hf_" + "a1" * 15, "ghp_" + "b2" * 18, "AKIA" + "C3" * 8],
)
def test_text_in_the_shape_of_a_key_is_removed(secret: str):
    assert redact(f"'{secret}'.") == f"'{REMOVED}'."
    assert redact("https://me:" + "pass@host/path") == f"https://{REMOVED}@host/path"


@pytest.mark.parametrize("before", ["", "a", "ab"])
@pytest.mark.parametrize(
    "encode",
    [
        lambda text: base64.b64encode(text.encode()).decode(),
        lambda text: base64.urlsafe_b64encode(text.encode()).decode(),
        lambda text: text.encode().hex(),
        lambda text: text[::-1],
    ],
    ids=["base64", "base64 for URLs", "hexadecimal", "reversed"],
)
def test_a_key_is_removed_however_simply_it_is_encoded(
    monkeypatch: pytest.MonkeyPatch, encode: Callable[[str], str], before: str
):
    key = "a~secret?of>no.shape"
    monkeypatch.setenv("HUB_TOKEN", key)
    assert REMOVED in redact(encode(f"{before}{key} and more"))


def test_plain_text_is_unchanged():
    text = "task-specific risk-free sk-learn-like-things key=K, threshold 1e-3, https://host:80/a@b, BATCH = 1024"
    assert redact(text) == text


# --- the transcript ---


def test_a_torn_last_line_is_dropped(talk: Talk):
    with ScriptedServer("Hi.", "Ho.") as scripted:
        talk.client(scripted).ask(HELLO, "greeting")
        whole = talk.path.read_bytes()
        talk.path.write_bytes(whole + whole[:40])
        client = talk.client(scripted)
        assert client.spent.calls == 1
        client.ask(HELLO, "another")
    assert [line["answer"] for line in talk.lines] == ["Hi.", "Ho."]


@pytest.mark.parametrize(
    "change", [Path.unlink, lambda path: path.write_text("{}\n"), lambda path: path.write_bytes(2 * path.read_bytes())]
)
def test_changes_of_the_transcript_by_an_experiment_are_undone(talk: Talk, change: Callable[[Path], object]):
    with ScriptedServer("Hi.", "Ho.") as scripted:
        client = talk.client(scripted)
        client.ask(HELLO, "greeting")
        change(talk.path)
        client.ask(HELLO, "another")
        assert talk.client(scripted).spent.calls == 2
    assert [line["answer"] for line in talk.lines] == ["Hi.", "Ho."]


def test_a_symlink_in_place_of_the_transcript_is_not_followed(talk: Talk, tmp_path: Path):
    with ScriptedServer("Hi.", "Ho.") as scripted:
        client = talk.client(scripted)
        client.ask(HELLO, "greeting")
        elsewhere = talk.path.rename(tmp_path / "elsewhere")
        talk.path.symlink_to(elsewhere)
        client.ask(HELLO, "another")
    assert [len(path.read_text().splitlines()) for path in (elsewhere, talk.path)] == [1, 2]


def test_other_damage_is_reported_with_its_line(talk: Talk):
    with ScriptedServer("Hi.", "Ho.") as scripted:
        client = talk.client(scripted)
        client.ask(HELLO, "greeting")
        client.ask(HELLO, "another")
        talk.path.write_text(talk.path.read_text().replace('"answer":"Ho."', '"answer":3'))
        with pytest.raises(BadTranscript, match=r"transcript.jsonl line 2 is no exchange: answer "):
            talk.client(scripted)
    with pytest.raises(BadTranscript, match="No such file"):
        Replay(talk.path.with_name("other.jsonl"))


def test_a_lone_surrogate_is_replaced(talk: Talk):
    """Command line arguments hold them if they are not UTF-8."""
    messages = [{"role": "user", "content": "Hi \udcff."}]
    with ScriptedServer("Ho.") as scripted:
        assert talk.client(scripted).ask(messages, "greeting") == "Ho."
        assert scripted.requests[0].text == "Hi ?."
    assert Replay(talk.path).ask(messages, "greeting") == "Ho."


def test_answers_that_a_driver_did_not_act_on_are_used_by_the_next(talk: Talk):
    with ScriptedServer("one", "two", *[answer("x", "length")] * 2, "four") as scripted:
        first = talk.client(scripted)
        assert [first.ask(HELLO, purpose) for purpose in ("a", "b")] == ["one", "two"]
        with pytest.raises(LLMError):
            first.ask(HELLO, "c")
        second = talk.client(scripted)
        assert second.ask(HELLO, "b") == "two"
        with pytest.raises(LLMError, match="cut off"):
            second.ask(HELLO, "c")
        assert second.ask(HELLO, "d") == "four"
        assert len(scripted.requests) == 5
        assert second.spent.calls == 5


def test_a_driver_killed_during_a_request_keeps_earlier_answers(talk: Talk):
    code = f"""
from pathlib import Path
from agent.llm.client import Client
from agent.llm.limits import Limits
from agent.llm.server import server
client = Client(server("m"), Path({str(talk.path)!r}), Limits())
for purpose in ("a", "b"):
    client.ask({HELLO!r}, purpose)
"""
    with ScriptedServer("one", replace(answer("never read"), delay=2), "two") as scripted:
        driver = subprocess.Popen([sys.executable, "-c", code], env=os.environ | scripted.environment)
        while len(scripted.requests) < 2:
            time.sleep(0.02)
        driver.kill()
        driver.wait()
        client = talk.client(scripted)
        assert [client.ask(HELLO, purpose) for purpose in ("a", "b")] == ["one", "two"]
        assert len(scripted.requests) == 3
    replay = Replay(talk.path)
    assert [replay.ask(HELLO, purpose) for purpose in ("a", "b")] == ["one", "two"]


def test_one_driver_may_ask_a_question_twice(talk: Talk):
    with ScriptedServer("one", "two") as scripted:
        client = talk.client(scripted)
        assert [client.ask(HELLO, "a"), client.ask(HELLO, "a")] == ["one", "two"]


# --- replay ---


def eventful_conversation(talk: Talk) -> list[str]:
    """Return the outcomes of a conversation with many failures, resumed by a second driver."""
    cut = answer("tw", "length")
    script = [error(500), "one", cut, cut, error(401), "three", Step(b"{}", drop=0), "four"]
    with ScriptedServer(*script) as scripted:
        first = talk.client(scripted)
        outcomes = [outcome(first, "a"), outcome(first, "b")]
        with pytest.raises(LLMError):
            first.ask(HELLO, "c")
        second = talk.client(scripted)
        outcomes += [outcome(second, "c"), outcome(second, "c")]
        assert len(scripted.requests) == len(script)
    return outcomes


def outcome(model: ChatModel, purpose: str) -> str:
    try:
        return model.ask(HELLO, purpose)
    except LLMError as failed:
        return f"{failed.kind}: {failed}"


def test_a_replay_gives_the_same_outcomes_in_the_same_order(talk: Talk):
    outcomes = eventful_conversation(talk)
    talk.patch.delenv("OPENAI_API_KEY")
    replay = Replay(talk.path)
    assert [outcome(replay, purpose) for purpose in "abcc"] == outcomes
    assert replay.spent.calls == len(transcript.read(talk.path)) == 8
    assert replay.window == 128_000
    with pytest.raises(LLMError, match="ends here: d was asked after its last exchange") as caught:
        replay.ask(HELLO, "d")
    assert caught.value.kind == "replay"


def test_a_replay_begins_where_a_resumed_study_does(talk: Talk):
    outcomes = eventful_conversation(talk)
    replay = Replay(talk.path)
    assert replay.spent.calls == 0
    assert [outcome(replay, purpose) for purpose in "bcc"] == outcomes[1:]


def test_a_question_beyond_the_budget_may_be_repeated_in_a_replay(talk: Talk):
    with ScriptedServer("one", answer("two", tokens=(900, 20))) as scripted:
        client = talk.client(scripted, Limits(max_tokens=1300))
        outcomes = [outcome(client, purpose) for purpose in "abccd"]
    assert [line.split(":")[0] for line in outcomes] == ["one", "two", "budget", "budget", "budget"]
    replay = Replay(talk.path)
    assert [outcome(replay, purpose) for purpose in "abccd"] == outcomes


def test_a_failure_that_ended_the_conversation_ends_its_replay(talk: Talk):
    failed = talk.fails(error(401))
    assert outcome(Replay(talk.path), "greeting") == f"auth: {failed}"


@pytest.mark.parametrize(
    ("messages", "purpose", "message"),
    [
        (HELLO, "b", "line 1 holds another conversation: a was asked for there, and b here"),
        (HELLO[:1], "a", "line 1 holds another a: message 2 is of user there, and of none here"),
        (
            [HELLO[0], {"role": "user", "content": "Hello!"}],
            "a",
            "line 1 holds another a: message 2 line 1 is 'Hello?' there, and 'Hello!' here",
        ),
        (
            [{"role": "system", "content": "Be brief.\nBe kind."}, HELLO[1]],
            "a",
            "message 1 line 2 is '(nothing)' there, and 'Be kind.' here",
        ),
        ([{"role": "user", "content": "Be brief."}, HELLO[1]], "a", "message 1 is of system there, and of user here"),
        ([HELLO[0] | {"content": "Be brief.\n"}, HELLO[1]], "a", "message 1 line 2 is '(nothing)' there, and '' here"),
    ],
)
def test_a_replay_of_another_question_reports_the_first_difference(
    talk: Talk, messages: list, purpose: str, message: str
):
    with ScriptedServer("one") as scripted:
        talk.client(scripted).ask(HELLO, "a")
    with pytest.raises(LLMError) as caught:
        Replay(talk.path).ask(messages, purpose)
    assert caught.value.kind == "replay"
    assert message in str(caught.value)
