"""Only the page itself is answered, on this machine."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.viewer.conftest import PORT, client_of

OWN = f"127.0.0.1:{PORT}"
SITE = {"sec-fetch-site": "cross-site"}


@pytest.mark.parametrize(
    ("path", "headers", "status"),
    [
        ("/", {}, 200),
        ("/", {"host": f"localhost:{PORT}"}, 200),
        ("/", {"host": "evil.example"}, 403),  # DNS rebinding
        ("/", {"host": f"evil.example:{PORT}"}, 403),
        ("/", {"host": "127.0.0.1:1"}, 403),
        ("/", {"host": ""}, 403),
        ("/api/runs", {"origin": f"http://{OWN}"}, 200),
        ("/api/runs", {"origin": "http://evil.example"}, 403),
        ("/api/runs", {"origin": "null"}, 403),
        ("/api/runs", {"origin": f"https://{OWN}"}, 403),
        ("/api/runs", {"origin": f"http://localhost:{PORT}"}, 403),
        ("/api/runs", {"sec-fetch-site": "same-origin"}, 200),
        ("/api/runs", SITE, 403),
        ("/api/runs", {"sec-fetch-site": "same-site"}, 403),  # another port of this machine
        ("/", SITE, 403),  # a frame or a script of another site
        ("/", {**SITE, "sec-fetch-mode": "navigate"}, 200),  # a link
        ("/api/runs", {**SITE, "sec-fetch-mode": "navigate"}, 403),
    ],
)
def test_requests_from_elsewhere_are_refused(
    runs: Path, path: str, headers: dict[str, str], status: int
) -> None:
    with client_of(runs) as client:
        response = client.get(path, headers=headers)
    assert response.status_code == status
    if status == 403:
        assert "refused" in response.json()["error"]
        assert "complete" not in response.text
    policy = response.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert "access-control-allow-origin" not in response.headers


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE"])
def test_changes_need_the_token(runs: Path, method: str) -> None:
    with client_of(runs) as client:
        for headers in ({}, {"x-toa-trl-token": "another"}):
            response = client.request(method, "/api/mark", headers=headers, json={})
            assert response.status_code == 403
            assert "token" in response.json()["error"]


def test_the_page_loads_nothing_from_elsewhere(runs: Path) -> None:
    with client_of(runs) as client:
        page = client.get("/")
        assert 'content="the-token"' in page.text
        for name in ("viewer.js", "viewer.css", "palette.css", "dom.js", "drawing.js"):
            file = client.get(f"/static/{name}")
            assert file.status_code == 200
            assert f"/static/{name}" in page.text or name in ("dom.js", "drawing.js")
            assert "://" not in file.text.replace("http://www.w3.org/2000/svg", "")
            assert "innerHTML" not in file.text
        assert client.get("/static/../server.py").status_code == 404
        assert client.get("/docs").status_code == 404
