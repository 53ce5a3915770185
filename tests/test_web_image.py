"""Images at web addresses: opened only on request, from public hosts only, with limits of size and time."""

import io
import socket
import threading
from contextlib import closing

import pytest
from PIL import Image

from minigptv2 import web_image
from minigptv2.errors import UserError
from minigptv2.images import open_image, open_original
from minigptv2.web_image import fetch, is_public

PUBLIC, URL = "93.184.216.34", "http://images.test/a.png"


def png() -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (30, 20), "red").save(file, "PNG")
    return file.getvalue()


def reply(body: bytes = b"", status: str = "200 OK", **headers: str) -> bytes:
    lines = [f"HTTP/1.1 {status}", *(f"{k}: {v}" for k, v in ({"Content-Length": str(len(body))} | headers).items())]
    return "\r\n".join([*lines, "", ""]).encode() + body


@pytest.fixture
def web(monkeypatch):
    """Hosts and their addresses; and what each path answers. No network: a socket pair stands for the connection."""

    class Web:
        hosts, pages = {"images.test": [PUBLIC]}, {"/a.png": reply(png())}
        connected, asked, looked_up = [], [], []

        def resolve(self, host, port):
            self.looked_up.append(host)
            if host not in self.hosts:
                raise socket.gaierror(-2, "Name or service not known")
            return self.hosts[host]

        def connect(self, address, port, seconds):
            self.connected.append((address, port))
            mine, theirs = socket.socketpair()
            mine.settimeout(seconds)
            threading.Thread(target=self.serve, args=(theirs,), daemon=True).start()
            return mine

        def serve(self, connection):
            with closing(connection):
                request = b""
                while b"\r\n\r\n" not in request and (more := connection.recv(4096)):
                    request += more
                self.asked.append(request.decode())
                answer = self.pages.get(request.split()[1].decode())
                if answer is None:  # never answers
                    connection.recv(1)
                else:
                    connection.sendall(answer)

    Web.connected, Web.asked, Web.looked_up = [], [], []
    Web.hosts, Web.pages = dict(Web.hosts), dict(Web.pages)
    made = Web()
    monkeypatch.setattr(web_image, "_resolve", made.resolve)
    monkeypatch.setattr(web_image, "_connect", made.connect)
    return made


def refused(url: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        fetch(url)


def test_an_address_is_opened_only_on_request(web):
    for url in (URL, "HTTPS://images.test/a.png"):
        with pytest.raises(UserError, match="allow_urls=True"):
            open_image(url)
    assert web.looked_up == []
    assert open_image(URL, allow_urls=True).size == (30, 20)
    assert web.connected == [(PUBLIC, 80)] and "Host: images.test\r\n" in web.asked[0]
    for url in ("ftp://images.test/a.png", "file:///etc/passwd"):
        for allowed in (True, False):
            with pytest.raises(UserError, match="only http"):
                open_image(url, allow_urls=allowed)


@pytest.mark.slow
def test_the_model_downloads_each_address_once(web, tiny_model):
    answer = tiny_model.chat(URL, "[caption]", 2, allow_urls=True)
    assert answer.image.size == (30, 20) and len(web.connected) == 1
    calls = (
        lambda **k: tiny_model.chat_batch([(URL, "hi")], 2, **k),
        lambda **k: tiny_model.encode_images([URL], **k),
        lambda **k: tiny_model.start_chat(URL, **k),
        lambda **k: tiny_model.stream(URL, "hi", 2, **k),
        lambda **k: tiny_model.image_features(URL, **k),
        lambda **k: tiny_model.logprobs(URL, "hi", "a", **k),
        lambda **k: tiny_model.logprobs_batch([(URL, "hi", "a")], **k),
    )
    for call in calls:
        call(allow_urls=True)
        with pytest.raises(UserError, match="allow_urls"):
            call()


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1",
        "10.1.1.1",
        "192.168.0.1",
        "169.254.169.254",
        "100.64.0.1",
        "0.0.0.0",
        "224.0.0.1",
        "240.0.0.1",
        "255.255.255.255",
        "::1",
        "::",
        "fe80::1",
        "fc00::1",
        "fec0::1",
        "ff02::1",
        "::ffff:127.0.0.1",
        "::ffff:10.0.0.1",
        "2002:7f00:1::",
        "2001:0:1::1",
        "64:ff9b::7f00:1",
        "::7f00:1",
    ],
)
def test_private_addresses_are_never_opened(web, address):
    assert not is_public(address)
    web.hosts |= {"images.test": [address], "mixed.test": [PUBLIC, address]}
    for host in ("images.test", "mixed.test"):
        refused(f"http://{host}/a.png", "not at a public address")
    assert web.connected == []


@pytest.mark.parametrize("address", [PUBLIC, "2606:4700::1111", "::ffff:8.8.8.8", "64:ff9b::808:808"])
def test_public_addresses(address):
    assert is_public(address)


def test_numeric_hosts_are_checked(monkeypatch):
    """By the system's own look-up, which reads them in every form."""
    monkeypatch.setattr(web_image, "_connect", lambda *_: pytest.fail("connected"))
    for host in ("127.0.0.1", "127.1", "2130706433", "0x7f000001", "[::1]", "[::ffff:127.0.0.1]", "localhost"):
        refused(f"http://{host}/a.png", "not at a public address|not found")


def test_each_redirect_is_checked_with_one_host_lookup(web):
    web.hosts["inside.test"] = ["10.0.0.1"]
    web.pages |= {
        "/moved": reply(status="302 Found", Location="/a.png"),
        "/inside": reply(status="301 Moved", Location="http://inside.test/a.png"),
        "/file": reply(status="307 Moved", Location="file:///etc/passwd"),
        "/round": reply(status="302 Found", Location="/round"),
    }
    assert fetch("http://images.test/moved") == png()
    assert web.looked_up == ["images.test"] * 2
    refused("http://images.test/inside", "not at a public address")
    refused("http://images.test/file", "only http")
    web.connected.clear()
    refused("http://images.test/round", "more than 5 times")
    assert len(web.connected) == 6 and {a for a, _ in web.connected} == {PUBLIC}


@pytest.mark.parametrize(
    "url, message",
    [
        ("http://me:secret@images.test/a.png", "name or password"),
        ("http://images.test:8080/a.png", "port 8080"),
        ("http://images.test:99999/a.png", "cannot be read"),
        ("http:///a.png", "no host"),
        ("http://[::1/a", "read"),
        ("http://nowhere.test/a.png", "not found"),
        ("http://images.test/none", "404 Not Found"),
    ],
)
def test_invalid_addresses_raise_user_error(web, url, message):
    web.pages["/none"] = reply(status="404 Not Found")
    refused(url, message)


def test_size_and_time_are_limited(web, monkeypatch):
    monkeypatch.setattr(web_image, "MAX_BYTES", 1000)
    web.pages |= {
        "/declared": reply(b"", **{"Content-Length": "1001"}),
        "/large": b"HTTP/1.1 200 OK\r\n\r\n" + b"x" * 5000,
        "/cut": reply(b"x" * 10, **{"Content-Length": "20"}),
        "/odd": b"nothing of HTTP\r\n\r\n",
        "/slow": None,
    }
    for path in ("declared", "large"):
        refused(f"http://images.test/{path}", "It is larger than")
    refused("http://images.test/cut", "connection failed")
    refused("http://images.test/odd", "connection failed")
    monkeypatch.setattr(web_image, "SECONDS", 0.2)
    refused("http://images.test/slow", "was not read within")


def test_the_content_must_be_an_image_whatever_its_type(web):
    web.pages |= {
        "/page": reply(b"<html>", **{"Content-Type": "image/png"}),
        "/image": reply(png(), **{"Content-Type": "text/html"}),
    }
    with pytest.raises(UserError, match="images.test/page.* is not an image"):
        open_image("http://images.test/page", allow_urls=True)
    assert open_image("http://images.test/image", allow_urls=True).size == (30, 20)
    _, original = open_original(URL, allow_urls=True)
    web.pages.clear()
    assert original.open().size == (30, 20), "kept as the bytes that were read"
