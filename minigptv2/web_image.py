"""Downloads an image from a web address: http and https only, public hosts only, with limits of size and time.

The address may come from untrusted data and must not reach the network of this machine (SSRF). So the host is looked up
once, all its addresses must be public, the connection goes to one of these addresses, and every redirect is checked in
the same way. No proxy is used, because it would look the host up again.
"""

from __future__ import annotations

import http.client
import ipaddress
import socket
import ssl
import threading
import time
from urllib.parse import quote, urljoin, urlsplit

from minigptv2.errors import UserError
from minigptv2.files import shorten

MAX_BYTES = 50_000_000
MAX_REDIRECTS = 5
SECONDS = 30.0  # for everything except looking up the host; includes redirects
PORTS = {"http": 80, "https": 443}
_REDIRECTS = (301, 302, 303, 307, 308)
_CHUNK = 1 << 16
_NAT64 = ipaddress.ip_network("64:ff9b::/96")  # RFC 6052: the last 32 bits are an IPv4 address


def fetch(url: str) -> bytes:
    """The content of a web address; the type that the server states is ignored. Raises UserError."""
    deadline = time.monotonic() + SECONDS
    current = url.strip()
    for _ in range(MAX_REDIRECTS + 1):
        redirect, data = _get(current, deadline)
        if redirect is None:
            return data
        try:
            current = urljoin(current, redirect)
        except ValueError:
            raise _refused(current, "It redirects to an invalid address.") from None
    raise _refused(url, f"It redirects more than {MAX_REDIRECTS} times.")


def _get(url: str, deadline: float) -> tuple[str | None, bytes]:
    """The address to which the server redirects, None if it does not, and the content."""
    scheme, host, port, target = _parts(url)
    address = _public_address(url, host, port)
    raw = watch = timer = None
    try:
        raw = _connect(address, port, max(0.001, deadline - time.monotonic()))
        watch = raw.dup()  # shut down at the deadline, which ends reading and writing, however slow it is
        timer = threading.Timer(max(0.0, deadline - time.monotonic()), _end, (watch,))
        timer.daemon = True
        timer.start()
        connection = http.client.HTTPConnection(host, port)
        connection.auto_open, connection.default_port = 0, PORTS[scheme]  # never connects by itself
        connection.sock = _encrypted(raw, host) if scheme == "https" else raw
        raw = connection.sock
        connection.request("GET", target, headers={"User-Agent": "minigptv2", "Accept": "image/*,*/*;q=0.5"})
        return _answer(url, connection.getresponse())
    except (OSError, http.client.HTTPException, ValueError) as error:
        if time.monotonic() >= deadline:
            raise _refused(url, f"It was not read within {SECONDS:.0f} seconds.") from error
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise _refused(url, f"The connection failed: {reason}.") from error
    finally:
        if timer is not None:
            timer.cancel()
        for each in (raw, watch):
            if each is not None:
                each.close()


def _answer(url: str, response: http.client.HTTPResponse) -> tuple[str | None, bytes]:
    redirect = response.getheader("Location")
    if response.status in _REDIRECTS and redirect:
        return redirect, b""
    if response.status != 200:
        raise _refused(url, f"The server answers {response.status} {response.reason}.")
    too_large = _refused(url, f"It is larger than {MAX_BYTES // 10**6} MB.")
    if (response.length or 0) > MAX_BYTES:
        raise too_large
    data = bytearray()
    while more := response.read(_CHUNK):
        data += more
        if len(data) > MAX_BYTES:
            raise too_large
    if response.length:
        raise http.client.IncompleteRead(bytes(data), response.length)
    return None, bytes(data)


def _parts(url: str) -> tuple[str, str, int, str]:
    """Scheme, host, port, and path with query, in ASCII. Raises UserError for an address that is not allowed."""
    try:
        parts = urlsplit(url)
        scheme, host, port = parts.scheme.lower(), parts.hostname, parts.port
        if scheme not in PORTS:
            raise _refused(url, f"It begins with {scheme}://, and only http:// and https:// are opened.")
        if "@" in parts.netloc:
            raise _refused(url, "It has a user name or password.")
        if not host or "%" in host:
            raise _refused(url, "It names no host.")
        if port not in (None, *PORTS.values()):
            raise _refused(url, f"It names port {port}, and only {' and '.join(map(str, PORTS.values()))} are opened.")
        host = host if ":" in host else host.encode("idna").decode()
        target = quote(parts.path or "/", safe="/%:@!$&'()*+,;=~") + (
            "?" + quote(parts.query, safe="/%:@!$&'()*+,;=~?") if parts.query else ""
        )
    except ValueError as error:
        raise _refused(url, f"It cannot be read: {error}.") from None
    return scheme, host, port or PORTS[scheme], target


def _public_address(url: str, host: str, port: int) -> str:
    """The first numeric address of a host. Raises UserError unless all its addresses are public."""
    try:
        found = _resolve(host, port)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise _refused(url, f"Its host {host} is not found: {reason}.") from None
    private = [address for address in found if not is_public(address)]
    if private or not found:
        raise _refused(
            url, f"Its host {host} is at {private[0] if private else 'no address'}, not at a public address."
        )
    return found[0]


def is_public(address: str) -> bool:
    """Whether a numeric IPv4 or IPv6 address is on the public internet. An IPv6 address that stands for an IPv4 address
    is public if that is. Addresses of tunnels (6to4, Teredo) are not."""
    ip = ipaddress.ip_address(address)
    if ip.version == 6:
        inner = ipaddress.ip_address(int(ip) & 0xFFFFFFFF) if ip in _NAT64 else ip.ipv4_mapped
        if inner is not None:
            return is_public(str(inner))
        if ip.is_site_local or ip.sixtofour or ip.teredo:
            return False
    special = ip.is_loopback or ip.is_link_local or ip.is_multicast or ip.is_reserved or ip.is_unspecified
    return ip.is_global and not (ip.is_private or special)


def _resolve(host: str, port: int) -> list[str]:
    return list(dict.fromkeys(found[4][0] for found in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)))


def _connect(address: str, port: int, seconds: float) -> socket.socket:
    return socket.create_connection((address, port), timeout=seconds)


def _encrypted(raw: socket.socket, host: str) -> socket.socket:
    return ssl.create_default_context().wrap_socket(raw, server_hostname=host)


def _end(watched: socket.socket) -> None:
    try:
        watched.shutdown(socket.SHUT_RDWR)
    except OSError:
        pass  # the connection is already closed


def _refused(url: str, why: str) -> UserError:
    return UserError(
        f"The web address {shorten(url)} cannot be opened.", why, "Download the image, and give the path of its file."
    )
