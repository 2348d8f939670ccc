"""The test suite does not use the network."""

import socket
import subprocess
import sys

import pytest

OUTSIDE = "192.0.2.1"  # reserved for documentation


def test_a_connection_out_of_the_machine_is_refused_and_noted(request):
    guard = next(p for p in request.config.pluginmanager.get_plugins() if hasattr(p, "_refuse_network"))
    with pytest.raises(OSError, match="Only tests marked `network`"):
        socket.create_connection((OUTSIDE, 80), timeout=5)
    with pytest.raises(OSError, match=r"example\.org"):
        socket.getaddrinfo("example.org", 443)
    assert guard._refused == [OUTSIDE, "example.org"]  # else the fixture would fail this test
    guard._refused.clear()


def test_local_connections_are_allowed():
    with socket.create_server(("127.0.0.1", 0)) as server:
        socket.create_connection(("localhost", server.getsockname()[1]), timeout=5).close()


def test_child_processes_have_no_network():
    code = f"import urllib.request; urllib.request.urlopen('http://{OUTSIDE}/', timeout=60)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 1
    assert "Connection refused" in done.stderr
