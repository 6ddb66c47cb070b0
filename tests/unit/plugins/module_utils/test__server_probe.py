# Copyright (c) 2026, llamafleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Against a server on the loopback interface that answers as llama-server does, or as it should not."""

from __future__ import annotations

import http.server
import json
import signal
import subprocess
import sys
import threading
import time

import pytest
from ansible_collections.llamafleet.turboquant.plugins.module_utils import _server_probe as probe

CHAT = {
    "choices": [{"message": {"content": "Blue"}}],
    "usage": {"completion_tokens": 2},
    "timings": {"predicted_per_second": 12.345},
}


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        pass

    def answer(self):
        length = int(self.headers.get("Content-Length") or 0)
        self.server.seen.append((self.path, self.headers.get("Authorization"), self.rfile.read(length)))
        queue = self.server.answers.get(self.path, [(404, "{}")])
        status, text = queue.pop(0) if len(queue) > 1 else queue[0]
        if status is None:
            time.sleep(text)
            self.close_connection = True
            return
        body = (text if isinstance(text, str) else json.dumps(text)).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_GET = do_POST = answer


@pytest.fixture
def server():
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as httpd:
        httpd.seen, httpd.answers = [], {}
        thread = threading.Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        httpd.client = probe.Client(port=httpd.server_address[1], key="k")
        yield httpd
        httpd.shutdown()
        thread.join()


def metrics(processing, deferred=0, decoded=0):
    text = (
        "# HELP llamacpp:requests_processing Number\n# TYPE llamacpp:requests_processing gauge\n"
        f"llamacpp:requests_processing {processing}\nllamacpp:requests_deferred {deferred}\n"
        f"llamacpp:n_decode_total {decoded}\n"
    )
    return 200, text


def test_a_token_is_decoded_with_the_key(server):
    server.answers["/v1/chat/completions"] = [(200, CHAT)]
    seen = probe.decode(server.client)
    assert seen == {"tokens": 2, "tokens_per_second": 12.35, "text": "Blue", "endpoint": "/v1/chat/completions"}
    assert server.seen[0][1] == "Bearer k"


def test_a_model_without_a_chat_template_is_asked_plainly(server):
    server.answers["/v1/chat/completions"] = [(500, {"error": {"message": "template"}})]
    server.answers["/completion"] = [(200, {"tokens_predicted": 3, "content": "x", "timings": {}})]
    assert probe.decode(server.client)["endpoint"] == "/completion"


@pytest.mark.parametrize(
    ("status", "answer", "message"),
    [
        (401, {"error": {"message": "Invalid API Key"}}, "answered 401: Invalid API Key"),
        (503, {"error": {"message": "Loading model"}}, "answered 503: Loading model"),
        (200, dict(CHAT, usage={"completion_tokens": 0}), "without having decoded a token"),
        (200, "hello", "not as llama-server does: hello"),
        (200, {"choices": []}, "not as llama-server does"),
    ],
)
def test_anything_less_than_a_token_is_an_error(server, status, answer, message):
    server.answers["/v1/chat/completions"] = [(status, answer)]
    with pytest.raises(probe.ProbeError, match=message):
        probe.decode(server.client)


def test_a_server_that_answers_health_but_decodes_nothing_runs_into_the_time_limit(server):
    server.answers["/health"] = [(200, "{}")]
    server.answers["/v1/chat/completions"] = [(None, 2)]
    assert probe.ready(server.client, 5) == 0
    with pytest.raises(probe.Unreachable, match="timed out"):
        probe.decode(server.client, timeout=0.3)


def test_readiness_waits_while_the_model_loads(server):
    server.answers["/health"] = [(503, {"error": {"message": "Loading model"}})] * 2 + [(200, "{}")]
    assert probe.ready(server.client, 10) == 0
    assert len(server.seen) == 3


def test_readiness_ends_with_the_time_and_says_the_last_answer(server, capsys):
    server.answers["/health"] = [(503, {"error": {"message": "Loading model"}})]
    assert probe.ready(server.client, 0.5) == 1
    assert "not ready within 0.5 s: the last answer was 503: Loading model" in capsys.readouterr().out


def test_readiness_ends_with_the_process(capsys):
    import subprocess
    import sys

    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    started = time.monotonic()
    assert probe.ready(probe.Client(port=9), 30, gone.pid) == 1
    assert time.monotonic() - started < 5
    assert f"process {gone.pid}) ended while it was loading" in capsys.readouterr().out


def test_draining_waits_for_running_and_waiting_requests(server):
    server.answers["/metrics"] = [metrics(1, 2), metrics(0, 1), metrics(0)]
    assert probe.drain(server.client, 10) == 0
    assert len(server.seen) == 3


@pytest.mark.parametrize(
    ("answers", "message"),
    [
        ([metrics(1)], "drained for 0.3 s, 1 requests are cut off"),
        ([(401, {"error": {"message": "Invalid API Key"}})], "not drained: GET /metrics answered 401"),
    ],
)
def test_draining_is_bounded_and_says_so(server, capsys, answers, message):
    server.answers["/metrics"] = answers
    assert probe.drain(server.client, 0.3) == 0
    assert message in capsys.readouterr().out


def test_draining_waits_for_a_server_that_is_at_a_long_prompt(server, monkeypatch):
    # It answers /metrics only between two batches.
    patient = server.client.request
    monkeypatch.setattr(server.client, "request", lambda *words, timeout: patient(*words, timeout=0.1))
    server.answers["/metrics"] = [(None, 0.3)] * 5 + [metrics(1), metrics(0)]
    assert probe.drain(server.client, 30) == 0
    assert len(server.seen) == 7


def test_draining_a_server_that_never_answers_is_bounded(server, monkeypatch, capsys):
    patient = server.client.request
    monkeypatch.setattr(server.client, "request", lambda *words, timeout: patient(*words, timeout=0.1))
    server.answers["/metrics"] = [(None, 0.3)]
    assert probe.drain(server.client, 1) == 0
    assert "drained for 1 s, whatever it works on is cut off" in capsys.readouterr().out


def test_a_dead_server_has_nothing_to_drain(capsys):
    started = time.monotonic()
    assert probe.drain(probe.Client(port=9), 30) == 0
    assert time.monotonic() - started < 5
    assert "does not answer" in capsys.readouterr().out


def test_a_server_that_decodes_is_busy_and_not_wedged(server):
    server.answers["/metrics"] = [metrics(1, 0, 5), metrics(1, 0, 9)]
    assert probe.advancing(server.client, 0) is True
    server.answers["/metrics"] = [metrics(1, 0, 9)]
    assert probe.advancing(server.client, 0) is False
    server.answers["/metrics"] = [(None, 1)]
    assert probe.advancing(server.client, 0, 0.2) is False


def test_the_watchdog_waits_for_several_failures_and_then_cools_down():
    state = {}
    outcomes = [probe.judge(state, False, 1000 + n, 3, 100) for n in range(3)]
    assert outcomes == [False, False, True]
    assert state["restarts"] == 1
    # Within the cool-down failures count but do not restart.
    assert [probe.judge(state, False, 1010 + n, 3, 100) for n in range(4)] == [False] * 4
    assert probe.judge(state, False, 1200, 3, 100) is True
    assert state["restarts"] == 2


def test_one_good_probe_forgets_the_bad_ones():
    state = {"failures": 2}
    assert probe.judge(state, True, 1000, 3, 0) is False
    assert probe.judge(state, False, 1001, 3, 0) is False


@pytest.fixture
def watched(server, tmp_path, monkeypatch):
    """A watch over the server of the test: call it for one look; units, time and restarts are made up."""
    unit = "llama-server@chat.service"
    shown = {"ActiveState": "active", "ActiveEnterTimestampMonotonic": "0"}
    restarts, now = [], [1_764_000_000.0]

    def run(words, **more):
        if words[:2] == ["systemctl", "restart"]:
            restarts.append(words[2])
            return subprocess.CompletedProcess(words, watch.restart_rc)
        assert words == ["systemctl", "show", "--property=ActiveState,ActiveEnterTimestampMonotonic", unit]
        return subprocess.CompletedProcess(words, 0, stdout="".join(f"{k}={v}\n" for k, v in shown.items()))

    def watch(**options):
        now[0] += 60
        words = {"timeout": 0.2, "failures": 3, "grace": 0, "cooldown": 1800, **options}
        given = [word for key, value in words.items() for word in (f"--{key}", str(value))]
        return probe.main(["watch", "--name", "chat", "--port", str(server.server_address[1]), "--unit", unit, *given])

    monkeypatch.setattr(probe.subprocess, "run", run)
    monkeypatch.setattr(probe, "WATCH_STATE", tmp_path)
    monkeypatch.setattr(probe, "ADVANCE_PAUSE", 0.0)
    monkeypatch.setattr(probe.time, "time", lambda: now[0])
    monkeypatch.setattr(probe.time, "clock_gettime", lambda clock: 1000.0)
    server.answers["/metrics"] = [metrics(1, 0, 9)]
    watch.server, watch.shown, watch.restarts, watch.now, watch.restart_rc = server, shown, restarts, now, 0
    watch.state = lambda: json.loads((tmp_path / "chat.json").read_text(encoding="utf-8"))
    watch.textfile = tmp_path / "textfile"
    watch.textfile.mkdir()
    return watch


def wedge(watch):
    watch.server.answers["/v1/chat/completions"] = [(None, 0.5)]


def test_a_token_is_seen_and_nothing_said(watched, capsys):
    watched.server.answers["/v1/chat/completions"] = [(200, CHAT)]
    assert watched(timeout=5) == 0
    assert json.loads(watched.server.seen[0][2])["max_tokens"] == 1
    assert watched.state() == {"restarts": 0, "failures": 0, "last_probe": watched.now[0], "last_ok": watched.now[0]}
    assert capsys.readouterr().out == ""
    assert watched.restarts == []


@pytest.mark.parametrize("state", ["inactive", "activating", "deactivating", "failed"])
def test_a_unit_that_is_not_active_is_left_alone(watched, state):
    watched.shown["ActiveState"] = state
    assert watched(failures=1) == 0
    assert watched.server.seen == watched.restarts == []


def test_a_start_has_its_time_of_grace(watched):
    wedge(watched)
    # Now is second 1000 of the boot.
    watched.shown["ActiveEnterTimestampMonotonic"] = str(701 * 10**6)
    assert watched(failures=1, grace=300) == 0
    assert watched.server.seen == watched.restarts == []
    watched.shown["ActiveEnterTimestampMonotonic"] = str(700 * 10**6)
    assert watched(failures=1, grace=300) == 0
    assert watched.restarts == ["llama-server@chat.service"]


def test_a_wedged_server_is_restarted_after_several_looks_and_the_journal_has_what_was_seen(watched, capsys):
    wedge(watched)
    for number in (1, 2):
        assert watched() == 0
        said = capsys.readouterr().out
        assert said.startswith("no token decoded (POST /v1/chat/completions: timed out")
        assert said.endswith(f"); {number} of 3 before a restart\n")
        assert watched.restarts == []
    assert watched() == 0
    said = capsys.readouterr().out
    assert "no token decoded 3 times in a row (POST /v1/chat/completions: timed out" in said
    assert "restarting llama-server@chat.service" in said
    assert watched.restarts == ["llama-server@chat.service"]
    assert (watched.state()["restarts"], watched.state()["failures"]) == (1, 0)
    # It was never seen alive: there is no such moment to tell.
    assert watched.state()["last_ok"] is None


def test_one_token_between_two_failures_begins_anew(watched):
    for answer in ([(None, 0.5)], [(200, CHAT)], [(None, 0.5)]):
        watched.server.answers["/v1/chat/completions"] = answer
        watched(failures=2)
    assert watched.restarts == []
    assert watched.state()["failures"] == 1


def test_two_restarts_are_a_cool_down_apart(watched, capsys):
    wedge(watched)
    # A look a minute; the restart at the first, and at the first after five minutes.
    for _look in range(6):
        watched(failures=1, cooldown=300)
    assert len(watched.restarts) == 2
    said = capsys.readouterr().out
    assert "not restarted: 240 s since the last time, of 300 s" in said
    assert "before a restart" not in said
    assert watched.state()["restarts"] == 2


def test_a_server_that_decodes_for_others_is_alive(watched, capsys):
    wedge(watched)
    watched.server.answers["/metrics"] = [metrics(2, 3, 5), metrics(2, 3, 9)]
    assert watched(failures=1) == 0
    assert "but the server decodes: busy" in capsys.readouterr().out
    assert watched.restarts == []
    assert watched.state()["last_ok"] == watched.now[0]


def test_the_watch_writes_its_figures_and_goes_on_where_it_cannot(watched, capsys):
    wedge(watched)
    watched(failures=2, textfile=watched.textfile)
    watched(failures=2, textfile=watched.textfile)
    (path,) = watched.textfile.iterdir()
    assert path.name == "llamafleet_watchdog_chat.prom"
    assert path.stat().st_mode & 0o777 == 0o644
    assert 'llamafleet_watchdog_restarts_total{name="chat"} 1\n' in path.read_text(encoding="utf-8")
    capsys.readouterr()
    watched.now[0] += 1800
    watched(failures=1, textfile="/nowhere")
    assert "no figures written" in capsys.readouterr().out
    assert len(watched.restarts) == 2


def test_a_state_that_cannot_be_read_begins_anew(watched, tmp_path):
    (tmp_path / "chat.json").write_text("{", encoding="utf-8")
    watched.server.answers["/v1/chat/completions"] = [(200, CHAT)]
    assert watched(timeout=5) == 0
    assert watched.state()["restarts"] == 0


def test_a_restart_that_fails_is_a_failure_of_the_watch(watched):
    wedge(watched)
    watched.restart_rc = 1
    assert watched(failures=1) == 1


def test_the_key_is_the_first_line_of_the_credential(tmp_path, monkeypatch):
    (tmp_path / "api-keys").write_text("\n first-key \nsecond\n")
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    assert probe.read_key("no-such-instance") == "first-key"
    monkeypatch.delenv("CREDENTIALS_DIRECTORY")
    assert probe.read_key("no-such-instance") is None


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a-key\n", ""),
        ("\n\n  a-key", ""),
        ("", "not started: the file of API keys is empty, and llama-server would let everybody in"),
        (" \n\t\n", "is empty"),
        (None, "cannot be read"),
    ],
)
def test_a_start_without_a_key_is_refused_in_words(tmp_path, monkeypatch, capsys, text, said):
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    if text is not None:
        (tmp_path / "api-keys").write_text(text)
    assert probe.main(["keys", "--name", "chat"]) == (1 if said else 0)
    out = capsys.readouterr().out
    assert said in out
    assert "a-key" not in out
    assert len(out.splitlines()) == (1 if said else 0)


def started(code):
    process = subprocess.Popen(
        [sys.executable, "-c", f"{code}; print(flush=True); time.sleep(60)"], stdout=subprocess.PIPE
    )
    process.stdout.readline()
    return process


def test_the_server_is_asked_to_end(capsys):
    with started("import time") as process:
        probe.end(process.pid)
        assert process.wait() == -signal.SIGTERM
    assert capsys.readouterr().out == ""


def test_a_server_that_waits_for_its_clients_is_killed_in_a_bounded_time(capsys):
    with started("import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN)") as process:
        probe.end(process.pid, 0.2)
        assert process.wait() == -signal.SIGKILL
    assert f"(process {process.pid}) has not ended 0.2 s after SIGTERM" in capsys.readouterr().out


def test_a_server_that_is_gone_needs_no_end():
    with started("import sys; sys.exit(0); import time") as process:
        pass
    probe.end(process.pid)


def test_a_drain_ends_the_process_of_its_unit(monkeypatch):
    with started("import time") as process:
        monkeypatch.setenv("MAINPID", str(process.pid))
        assert probe.main(["drain", "--name", "none", "--port", "9", "--timeout", "0"]) == 0
        assert process.wait() == -signal.SIGTERM
