"""Servers as they are: each asked as it wants to be, and each of its failures told with what to do about it."""

import json
import ssl
import subprocess
from pathlib import Path

import pytest
from scripted_server import CANARY, Request, ScriptedServer, Step, answer, completion, error, events, stream
from talk import HELLO, Talk

from agent.llm.client import LLMError
from agent.llm.limits import Limits
from agent.llm.replay import Replay
from agent.llm.server import server

LONG = [HELLO[0], {"role": "user", "content": "A word. " * 1500}]  # about 4,000 tokens by our estimate


@pytest.fixture
def talk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Talk:
    return Talk(tmp_path, monkeypatch)


def limits_of(scripted: ScriptedServer) -> list[int]:
    return [request.body.get("max_tokens") for request in scripted.requests]


def plain(status: int, body: object) -> Step:
    return Step(json.dumps(body).encode(), status)


# --- the longest answer and the window ---


@pytest.mark.parametrize(
    ("step", "longest"),
    [
        (error(400, "max_tokens is too large: 16384. This model supports at most 4096 completion tokens."), 4096),
        (error(400, "max_tokens: 16384 > 8192, which is the maximum allowed number of output tokens for c."), 8192),
        (error(400, "`max_tokens` must be less than or equal to `8192`, the maximum value for `max_tokens` is"), 8192),
        (error(400, "'max_tokens' must be less than or equal to 8,192"), 8192),
        (error(400, "Invalid max_tokens value, the valid range of max_tokens is [1, 8192]"), 8192),
        (error(400, "Range of max_tokens should be [1,8192]"), 8192),
        (error(400, "maxOutputTokens 16384: the supported range is from 1 (inclusive) to 8193 (exclusive)"), 8192),
        (
            plain(
                422,
                {"detail": [{"loc": ["body", "max_tokens"], "msg": "Input should be less than or equal to 8192"}]},
            ),
            8192,
        ),
        (plain(400, {"error": {"message": "Bad", "param": "max_tokens: supports at most 4096 output tokens"}}), 4096),
        (plain(200, {"error": {"code": 400, "message": "max_tokens: 16384 > 8192, which is too many"}}), 8192),
    ],
)
def test_the_longest_answer_that_a_server_allows_is_obeyed_from_then_on(talk: Talk, step: Step, longest: int):
    with ScriptedServer(step, "Hi.", "Ho.") as scripted:
        client = talk.client(scripted)
        assert [client.ask(HELLO, "greeting"), client.ask(HELLO, "again")] == ["Hi.", "Ho."]
    assert limits_of(scripted) == [16_384, longest, longest]
    assert not talk.waited


@pytest.mark.parametrize("number", ["100", "9" * 5000])
def test_a_limit_that_is_of_no_use_is_told(talk: Talk, number: str):
    failed = talk.fails(error(400, f"No: This model supports at most {number} completion tokens"))
    assert f"(status 400): No: This model supports at most {number[:100]}" in str(failed)


@pytest.mark.parametrize(
    "message",
    [
        "This model's maximum context length is 8192 tokens. However, you requested 24096 tokens (4096 in the messages",
        "'max_tokens' or 'max_completion_tokens' is too large: 16384. This model's maximum context length is 8192 "
        "tokens and your request has 4000 input tokens (16384 > 8192 - 4000).",
        "`inputs` tokens + `max_new_tokens` must be <= 8192. Given: 4000 `inputs` tokens and 16384 `max_new_tokens`",
        "input length and `max_tokens` exceed context limit: 4000 + 16384 > 8192, decrease input length",
        "request (14000 tokens) exceeds the available context size (8192 tokens), try increasing it",
        "Prompt contains 14000 tokens, too large for model with 8192 maximum context length",
    ],
)
def test_a_window_that_leaves_room_is_obeyed_and_a_prompt_beyond_it_points_to_llm_window(talk: Talk, message: str):
    with ScriptedServer(error(400, message), "Hi.", error(400, message)) as scripted:
        client = talk.client(scripted)
        assert client.ask(LONG, "long") == "Hi."
        assert 4000 < limits_of(scripted)[1] < 8192 - 3500
        with pytest.raises(LLMError, match="begin a study with --llm-window 8192") as caught:
            client.ask([*LONG, *LONG[1:]], "longer")
    assert caught.value.kind == "request"


@pytest.mark.parametrize(
    ("body", "window"),
    [
        ({"error": {"message": "prompt is too long: 208310 tokens > 20000 maximum"}}, 20000),
        ({"error": {"message": "the request exceeds the available context size.", "n_ctx": 256}}, 256),
        ({"error": {"message": "The input token count (120) exceeds the number of tokens allowed (64)."}}, 64),
        ({"error": {"message": "loaded with context length of only 250, which is not enough"}}, 250),
    ],
)
def test_a_context_error_names_the_window_that_the_server_states(talk: Talk, body: dict, window: int):
    failed = talk.fails(plain(500, body))
    assert str(failed).endswith(f"begin a study with --llm-window {window}")


def test_an_answer_that_is_cut_off_is_asked_for_once_more_with_twice_the_room(talk: Talk):
    cut = answer("Once upon", "length", tokens=(10, 16_384))
    with ScriptedServer(cut, "Once upon a time.", cut, cut) as scripted:
        client = talk.client(scripted)
        assert client.ask(HELLO, "tale") == "Once upon a time."
        with pytest.raises(LLMError, match="cut off after 16,384 tokens") as caught:
            client.ask(HELLO, "another")
    assert limits_of(scripted) == [16_384, 32_768] * 2
    assert caught.value.kind == "truncated"
    assert [line.get("error", {}).get("kind") for line in talk.lines] == ["short", None, "short", "truncated"]
    assert "asked again for one of up to 32,768" in talk.lines[0]["error"]["said"]
    assert client.spent.tokens_out == 3 * 16_384 + 20
    replay = Replay(talk.path)
    assert replay.ask(HELLO, "tale") == "Once upon a time."
    with pytest.raises(LLMError, match="cut off after 16,384 tokens"):
        replay.ask(HELLO, "another")


def test_a_cut_answer_is_not_asked_for_again_where_none_can_be_longer(talk: Talk):
    cut = answer("Once upon", "length", tokens=(10, 4096))
    with ScriptedServer(error(400, "supports at most 4096 completion tokens"), cut) as scripted:
        with pytest.raises(LLMError, match="cut off after 4,096 tokens") as caught:
            talk.client(scripted).ask(HELLO, "tale")
        assert caught.value.kind == "truncated"
        assert limits_of(scripted) == [16_384, 4096]


def test_a_server_that_allows_no_longer_answer_is_not_asked_to_repeat_the_cut_one(talk: Talk):
    refusal = error(400, "max_tokens is too large: 32768. This model supports at most 16384 completion tokens")
    cut = answer("Once upon", "length", tokens=(10, 16_384))
    failed = talk.fails(cut, refusal)
    assert failed.kind == "truncated"
    assert "cut off after 16,384 tokens, the most the server allows" in str(failed)


def test_a_cut_answer_is_not_asked_for_again_beyond_the_budget(talk: Talk):
    cut = answer("Once upon", "length", tokens=(10, 16_384))
    with ScriptedServer(cut) as scripted, pytest.raises(LLMError, match="cut off") as caught:
        talk.client(scripted, Limits(max_tokens=20_000)).ask(HELLO, "tale")
    assert caught.value.kind == "truncated"
    assert len(scripted.requests) == 1


def test_the_user_sets_the_longest_answer(talk: Talk):
    with ScriptedServer("Hi.") as scripted:
        talk.patch_environment(scripted)
        talk.client_of(server("m"), answer=700).ask(HELLO, "greeting")
    assert limits_of(scripted) == [700]


# --- the check ---


def test_a_check_asks_for_a_word_as_a_question_would(talk: Talk):
    with ScriptedServer("Hi.", check=answer("Yes.", tokens=(20, 2))) as scripted:
        client = talk.client(scripted)
        client.check()
        assert client.ask(HELLO, "greeting") == "Hi."
    (check,) = scripted.checks
    assert check.body["max_tokens"] == 16_384
    assert [message["role"] for message in check.body["messages"]] == ["system", "user"]
    assert [line["purpose"] for line in talk.lines] == ["check", "greeting"]
    assert client.spent.tokens == 22 + 120
    replay = Replay(talk.path)
    assert replay.ask(HELLO, "greeting") == "Hi."
    assert replay.spent.tokens == 22 + 120


def test_a_check_between_two_drivers_does_not_hide_what_was_answered(talk: Talk):
    with ScriptedServer("one", "two") as scripted:
        first = talk.client(scripted)
        assert [first.ask(HELLO, purpose) for purpose in ("a", "b")] == ["one", "two"]
        second = talk.client(scripted)
        second.check()
        assert second.ask(HELLO, "b") == "two"
    assert len(scripted.requests) == 2


@pytest.mark.parametrize(
    ("step", "message", "asked"),
    [
        (error(401), "does not accept OPENAI_API_KEY", 1),
        (error(404, "The model m does not exist"), "The model m does not exist: check --llm m", 1),
        (error(503), "status 503", 3),
        (Step(b"<html>Log in</html>"), "no completion: '<html>Log in</html>': does OPENAI_BASE_URL end in /v1?", 1),
        (answer(""), "the answer is empty", 1),
    ],
)
def test_a_check_fails_with_the_reason(talk: Talk, step: Step, message: str, asked: int):
    with ScriptedServer(check=step) as scripted, pytest.raises(LLMError) as caught:
        talk.client(scripted).check()
    assert message in str(caught.value)
    assert len(scripted.checks) == asked


def test_a_check_that_the_budget_does_not_allow_is_not_made(talk: Talk):
    with ScriptedServer() as scripted:
        talk.client(scripted, Limits(max_tokens=100)).check()
    assert not scripted.checks


# --- errors with status 200, and other forms of errors and answers ---


@pytest.mark.parametrize(
    ("step", "kind", "message"),
    [
        (plain(200, {"error": {"message": "Slow down", "code": 429}}), "quota", "(status 429): Slow down"),
        (plain(200, {"error": {"message": "upstream", "code": "502"}}), "connection", "(status 502): upstream"),
        (plain(200, {"error": {"message": "upstream"}}), "connection", "(status 500): upstream"),
        (completion(choices=[{"message": {"content": ""}, "error": {"code": 503, "message": "down"}}]), "", "down"),
        (answer("Half of", "error"), "connection", "the server broke off its answer"),
        (answer("Half of", "insufficient_system_resource"), "connection", "ran out of resources"),
        (events({"error": {"code": 502, "message": "Provider disconnected"}}), "connection", "Provider disconnected"),
        (Step(b'event: error\ndata: {"message": "overloaded"}\n\n'), "connection", "overloaded"),
        (events({"choices": [{"delta": {"content": "Ha"}, "error": {"code": 502, "message": "gone"}}]}), "", "gone"),
        (stream("Half ", "of", finish=None), "connection", "the stream broke off after about 3 tokens"),
        (events({"choices": [{"delta": {"content": "Half"}}]}, '{"choices": [{"del'), "connection", "broke off"),
        (stream("Half", " of", drop=110), "connection", "the stream broke off"),
        (Step(b": only comments\n\n"), "connection", "broke off"),
    ],
)
def test_a_failure_of_the_server_in_a_response_that_began_well_is_retried(
    talk: Talk, step: Step, kind: str, message: str
):
    with ScriptedServer(step, "Hi.") as scripted:
        assert talk.client(scripted).ask(HELLO, "greeting") == "Hi."
    failed = talk.lines[0]["error"]
    assert failed["kind"] == (kind or "connection")
    assert message in failed["said"]
    assert "answer" not in talk.lines[0]
    assert talk.waited == [1]


@pytest.mark.parametrize(
    ("step", "kind", "message"),
    [
        (plain(200, {"error": {"message": "Pay", "code": 402}}), "quota", "has nothing left: Pay"),
        (plain(200, {"error": {"message": "No", "code": 401}}), "auth", "does not accept OPENAI_API_KEY"),
        (plain(400, [{"error": {"code": 400, "message": "Not so.", "status": "INVALID"}}]), "request", "Not so."),
        (plain(400, {"error": "Input validation error"}), "request", "(status 400): Input validation error: check"),
        (plain(400, {"detail": "Unknown field"}), "request", "(status 400): Unknown field: check --llm m"),
        (answer("", "RECITATION"), "refused", "a content filter withheld the answer (recitation)"),
        (answer("", "SAFETY"), "refused", "(safety)"),
        (answer("Hi", "Content_Filter"), "refused", "a content filter withheld the answer"),
        (stream("Hi", finish="content_filter"), "refused", "a content filter withheld the answer"),
    ],
)
def test_a_failure_that_is_told_in_another_form_means_the_same(talk: Talk, step: Step, kind: str, message: str):
    failed = talk.fails(step)
    assert failed.kind == kind
    assert message in str(failed)


@pytest.mark.parametrize("finish", ["length", "MAX_TOKENS", "model_length"])
def test_every_name_for_a_cut_off_answer_is_known(talk: Talk, finish: str):
    failed = talk.fails(answer("Half of", finish), answer("Half of", finish))
    assert failed.kind == "truncated"


def test_an_answer_in_parts_is_put_together_without_its_thoughts(talk: Talk):
    thoughts = {"type": "thinking", "thinking": [{"type": "text", "text": "Hm."}]}
    parts = [thoughts, {"type": "text", "text": "Hi"}, {"type": "text", "text": "."}]
    with ScriptedServer(completion(choices=[{"message": {"content": parts}, "finish_reason": "stop"}])) as scripted:
        assert talk.client(scripted).ask(HELLO, "greeting") == "Hi."


# --- streams ---


@pytest.mark.parametrize(
    "message",
    [
        "Stream must be set to true",
        "This model only support stream mode, please enable the stream parameter to access the model.",
        "parameter.enable_thinking must be set to false for non-streaming calls",
    ],
)
def test_a_server_that_only_streams_is_asked_for_a_stream_from_then_on(talk: Talk, message: str):
    with ScriptedServer(plain(400, {"detail": message}), stream("H", "i."), stream("Ho.")) as scripted:
        client = talk.client(scripted)
        assert [client.ask(HELLO, "greeting"), client.ask(HELLO, "again")] == ["Hi.", "Ho."]
    assert [request.body.get("stream") for request in scripted.requests] == [None, True, True]
    assert scripted.requests[1].body["stream_options"] == {"include_usage": True}
    assert talk.lines[0]["usage"] == {"tokens_in": 100, "tokens_out": 20, "estimated": False}


@pytest.mark.parametrize(
    "step",
    [
        error(400, "property 'stream_options' is unsupported, did you mean 'stream'?"),
        plain(422, {"message": {"detail": [{"loc": ["body", "stream_options"], "msg": "Extra inputs"}]}}),
    ],
)
def test_the_usage_of_a_stream_is_not_asked_for_where_that_is_refused(talk: Talk, step: Step):
    with ScriptedServer(step, stream("Hi.", tokens=None), stream("Ho.")) as scripted:
        client = talk.client(scripted, stream=True)
        assert [client.ask(HELLO, "greeting"), client.ask(HELLO, "again")] == ["Hi.", "Ho."]
    assert ["stream_options" in request.body for request in scripted.requests] == [True, False, False]
    assert talk.lines[0]["usage"]["estimated"]
    assert 0 < talk.lines[0]["usage"]["tokens_out"] < 10


@pytest.mark.parametrize("status", [504, 524])
def test_a_proxy_that_does_not_wait_is_asked_for_a_stream_and_its_answer_counts(talk: Talk, status: int):
    with ScriptedServer(Step(b"<html>timeout</html>", status), stream("Hi.")) as scripted:
        assert talk.client(scripted).ask(HELLO, "greeting") == "Hi."
    assert [request.body.get("stream") for request in scripted.requests] == [None, True]
    assert talk.lines[0]["error"]["kind"] == "timeout"
    assert talk.lines[0]["usage"]["tokens_out"] == 16_384


def test_a_model_that_cannot_stream_is_asked_without(talk: Talk):
    refusal = error(400, "Unsupported value: 'stream' does not support true with this model.")
    with ScriptedServer(Step(b"", 524), refusal, "Hi.") as scripted:
        assert talk.client(scripted).ask(HELLO, "greeting") == "Hi."
    assert [request.body.get("stream") for request in scripted.requests] == [None, True, None]


def test_a_stream_that_nobody_asked_for_is_read(talk: Talk):
    with ScriptedServer(stream("H", "i.")) as scripted:
        assert talk.client(scripted).ask(HELLO, "greeting") == "Hi."


def test_thoughts_in_a_stream_count_and_are_no_answer(talk: Talk):
    thought = {"choices": [{"delta": {"reasoning_content": "Hm. " * 300}}]}
    said = {"choices": [{"delta": {"content": "Hi."}, "finish_reason": "stop"}]}
    with ScriptedServer(events(thought, said, "[DONE]")) as scripted:
        assert talk.client(scripted, stream=True).ask(HELLO, "greeting") == "Hi."
    assert talk.lines[0]["usage"]["tokens_out"] >= 400


def test_a_stream_that_ends_and_then_breaks_is_an_answer(talk: Talk):
    whole = stream("Hi.")
    cut = Step(whole.body, headers=whole.headers | {"Content-Length": str(len(whole.body) + 9)})
    with ScriptedServer(cut) as scripted:
        assert talk.client(scripted, stream=True).ask(HELLO, "greeting") == "Hi."


# --- models without a system role ---


@pytest.mark.parametrize(
    "step",
    [
        error(400, "System role not supported"),
        plain(400, [{"error": {"message": "Developer instruction is not enabled for models/gemma-3-27b-it"}}]),
        error(400, "Conversation roles must alternate user/assistant/user/assistant/..."),
        error(500, "Only user, assistant and tool roles are supported, got system."),
        error(400, "Unsupported value: 'messages[0].role' does not support 'system' with this model."),
    ],
)
def test_a_model_without_a_system_role_reads_it_in_the_users_message(talk: Talk, step: Step):
    with ScriptedServer(step, "Hi.", "Ho.") as scripted:
        client = talk.client(scripted)
        client.ask(HELLO, "greeting")
        client.ask([*HELLO, {"role": "user", "content": "Well?"}], "again")
    folded = [{"role": "user", "content": "Be brief.\n\nHello?"}]
    assert [request.body["messages"] for request in scripted.requests[1:]] == [
        folded,
        [{"role": "user", "content": "Be brief.\n\nHello?\n\nWell?"}],
    ]
    assert talk.lines[0]["messages"] == HELLO


# --- a prompt that was cut ---


def test_a_prompt_that_the_server_has_cut_is_told_once(talk: Talk):
    def cuts(_: Request) -> Step:
        return answer("Hi.", tokens=(1024, 5))

    with ScriptedServer(cuts, cuts) as scripted:
        client = talk.client(scripted)
        client.ask(LONG, "greeting")
        client.ask(LONG, "again")
    (said,) = talk.said
    assert "counted 1,024 tokens in a prompt of about 4,0" in said
    assert "OLLAMA_CONTEXT_LENGTH" in said


@pytest.mark.parametrize(("tokens", "messages"), [((1700, 5), LONG), ((3, 5), HELLO), (None, LONG), ((0, 5), LONG)])
def test_a_prompt_that_was_read_is_not_told(talk: Talk, tokens: tuple[int, int] | None, messages: list):
    with ScriptedServer(answer("Hi.", tokens=tokens)) as scripted:
        talk.client(scripted).ask(messages, "greeting")
    assert not talk.said


# --- addresses, proxies, certificates ---


def test_a_wrong_path_is_named_without_the_password(talk: Talk):
    for step in (Step(b"404 page not found", 404), plain(404, {"detail": "Not Found"}), Step(b"<html>", 405)):
        with ScriptedServer(step) as scripted:
            client_url = scripted.environment["OPENAI_BASE_URL"].replace("//", "//me:" + "hush@").removesuffix("/v1")
            talk.patch_environment(scripted)
            talk.patch.setenv("OPENAI_BASE_URL", client_url)
            with pytest.raises(LLMError, match=r"http://127.0.0.1:\d+/chat/completions \(status 40[45]\)") as caught:
                talk.client_of(server("m")).ask(HELLO, "greeting")
        assert "check OPENAI_BASE_URL, which for most servers ends in /v1" in str(caught.value)
        assert "hush" not in str(caught.value)


def test_the_query_of_an_address_is_sent_as_a_query(talk: Talk):
    with ScriptedServer("Hi.") as scripted:
        talk.patch_environment(scripted)
        talk.patch.setenv("OPENAI_BASE_URL", scripted.environment["OPENAI_BASE_URL"] + "?api-version=2024-10-21")
        talk.client_of(server("m")).ask(HELLO, "greeting")
    assert scripted.requests[0].path == "/v1/chat/completions?api-version=2024-10-21"
    assert scripted.requests[0].headers["api-key"] == CANARY


@pytest.mark.parametrize(
    ("variable", "proxy", "message"),
    [
        ("HTTP_PROXY", "http://127.0.0.1:9", "no answer from the proxy that HTTP_PROXY names: [Errno 111]"),
        ("ALL_PROXY", "http://127.0.0.1:9", "check or unset ALL_PROXY, or name the host in NO_PROXY"),
        ("http_proxy", "socks5://127.0.0.1:9", "http_proxy names a SOCKS proxy, for which the package socksio is"),
        ("HTTP_PROXY", "ftp://127.0.0.1:9", "HTTP_PROXY names no proxy that can be used"),
        ("SSL_CERT_FILE", "/nowhere.pem", "SSL_CERT_FILE or SSL_CERT_DIR names what does not exist"),
    ],
)
def test_a_setting_of_the_network_that_fails_is_named(talk: Talk, variable: str, proxy: str, message: str):
    with ScriptedServer() as scripted:
        client = talk.client(scripted)
    talk.patch.delenv("NO_PROXY")
    talk.patch.setenv(variable, proxy)
    with pytest.raises(LLMError) as caught:
        client.ask(HELLO, "greeting")
    assert message in str(caught.value)


def test_a_certificate_that_is_not_trusted_is_told_at_once_and_trusted_by_ssl_cert_file(talk: Talk, tmp_path: Path):
    make = "openssl req -x509 -newkey rsa:2048 -nodes -keyout key.pem -out cert.pem -days 2 -subj /CN=localhost"
    subprocess.run([*make.split(), "-addext", "subjectAltName=IP:127.0.0.1"], cwd=tmp_path, check=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "cert.pem", tmp_path / "key.pem")
    with ScriptedServer("Hi.", tls=context) as scripted:
        with pytest.raises(LLMError, match=r"not trusted \(self-signed certificate\): set SSL_CERT_FILE") as caught:
            talk.client(scripted).ask(HELLO, "greeting")
        assert caught.value.kind == "request"
        assert not talk.waited
        talk.patch.setenv("SSL_CERT_FILE", str(tmp_path / "cert.pem"))
        assert talk.client(scripted).ask(HELLO, "greeting") == "Hi."
