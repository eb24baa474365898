"""Whether servers are reached, with servers of this test."""

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import huggingface_hub.constants
import pytest

from detdistill.inspection import network
from detdistill.inspection.network import check_network, reach


class Handler(BaseHTTPRequestHandler):
    """Answers /ok; everything else is forbidden. /slow answers when `released` is set."""

    released = threading.Event()

    def do_HEAD(self) -> None:
        if self.path == "/slow":
            self.released.wait(60)
        self.send_response(200 if self.path == "/ok" else 403)
        self.end_headers()

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[str]:
    """The address of a server on this machine."""
    Handler.released.clear()
    made = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=made.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{made.server_port}"
    Handler.released.set()
    made.shutdown()
    made.server_close()


def test_a_server_that_answers_has_no_problem(server: str) -> None:
    assert reach({"fine": f"{server}/ok", "blocked": f"{server}/no"}) == {
        "fine": None,
        "blocked": "it answers 403 Forbidden",
    }


def test_a_server_that_is_not_there_has_the_reason() -> None:
    reason = reach({"gone": "http://127.0.0.1:9/ok"})["gone"]
    assert reason is not None and "refused" in reason


def test_a_slow_server_is_given_up(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(network, "TIMEOUT", 0.1)
    assert reach({"slow": f"{server}/slow"})["slow"] is not None
    assert not Handler.released.is_set()


def test_the_remedy_names_files_and_is_given_once(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", f"{server}/no")
    monkeypatch.setattr(network, "PYTORCH", f"{server}/no")
    checks = list(check_network())
    assert [check.state for check in checks] == ["warning", "warning"]
    assert [bool(check.remedy) for check in checks] == [False, True]
    assert "--backbone-weights FILE" in checks[1].remedy
    monkeypatch.setattr(network, "PYTORCH", f"{server}/ok")
    assert [bool(check.remedy) for check in check_network()] == [True, False]


def test_the_hub_is_not_asked_if_the_user_said_so(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(network, "PYTORCH", f"{server}/ok")
    assert [(check.state, "HF_HUB_OFFLINE" in check.text) for check in check_network()] == [
        ("warning", True),
        ("ok", False),
    ]
