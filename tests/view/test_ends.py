"""What ends ``deepatlas view``: Ctrl-C, SIGTERM, and a terminal that is closed. What was marked is kept by all."""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import time
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from forked import Forked
from page_marks import point

pytestmark = pytest.mark.slow(3)


def marked(address: str) -> None:
    """Put a point on the page, as a browser that has the address does."""
    host = urlsplit(address).netloc
    connection = http.client.HTTPConnection(host, timeout=20)
    connection.request("GET", address.partition(host)[2])
    answer = connection.getresponse()
    answer.read()
    cookie = answer.getheader("Set-Cookie").partition(";")[0]
    body = json.dumps({"put": [point("atlas", (0.1, 0.0, 0.2))], "delete": []})
    headers = {"Cookie": cookie, "Content-Type": "application/json", "Origin": f"http://{host}"}
    connection.request("POST", "/api/marks/change", body, headers)
    assert connection.getresponse().status == 200
    connection.close()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP], ids=lambda s: s.name)
@pytest.mark.parametrize("kept", [True, False], ids=["file", "no file"])
def test_a_signal_ends_the_page_and_what_was_marked_is_kept(folder, tmp_path, number, kept):
    printed, marks = tmp_path / "printed.txt", tmp_path / "marks.json"
    arguments = ["view", "headneck", str(folder / "plain"), "--no-browser", "--quiet"]
    arguments += ["--marks", str(marks)] if kept else []
    process = Forked("deepatlas.cli.main", arguments, os.environ, printed)
    try:
        end = time.monotonic() + 60
        while not (found := re.search(r"http://\S+", printed.read_text() if printed.exists() else "")):
            assert time.monotonic() < end and process.poll() is None, printed.read_text()
            time.sleep(0.1)
        marked(found[0])
        # A shell and the system send more than one.
        for _ in range(1 if number == signal.SIGINT else 3):
            os.kill(process.pid, number)
        _, text = process.communicate(30)
    finally:
        if process.poll() is None:
            os.kill(process.pid, signal.SIGKILL)
    # On a busy machine the last one may come when all is done, and end the process on its way out.
    assert process.returncode in (0, -number)
    lines = [line for line in text.splitlines() if line.startswith("deepatlas:")]
    assert len(lines) == 1 and "1 mark of the page is in " in lines[0]
    assert number == signal.SIGINT or f"ended by {number.name}" in lines[0]
    file = Path(re.search(r" is in (.+); --marks \1 opens it$", lines[0])[1])
    assert (file == marks) is kept
    assert [mark["name"] for mark in json.loads(file.read_text())["marks"]] == ["tip"]
    file.unlink()
