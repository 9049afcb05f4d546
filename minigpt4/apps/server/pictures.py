"""Pictures: the address in a request → the bytes of an encoded image.

``data:`` addresses hold them. Others are fetched only if that is allowed, and only from public
addresses: clients must not reach the server's own network through it.
"""

import asyncio
import base64
import binascii
import ipaddress
import re
import socket
import ssl
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import httpx

from minigpt4.errors import DataError, one_line, shown

_DATA = re.compile(r"data:image/[\w.+-]+(?:;[\w.+-]+=[\w.+-]*)*;base64,", re.ASCII | re.IGNORECASE)
_REDIRECTS = 3
_GLOBAL_UNICAST = ipaddress.IPv6Network("2000::/3")


def read_data_url(url: str) -> bytes:
    """Return the bytes in ``data:image/png;base64,…``; raise a DataError for anything else."""
    found = _DATA.match(url)
    if not found:
        raise DataError('must begin with "data:image/…;base64,"')
    try:
        return base64.b64decode(url[found.end() :], validate=True)
    except (binascii.Error, ValueError) as error:
        raise DataError(f"the base64 is broken ({one_line(error)})") from error


def is_public(address: str) -> bool:
    """Return whether an IP address is on the internet, and does not wrap one of IPv4."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address) and (
        ip not in _GLOBAL_UNICAST or ip.sixtofour or ip.teredo
    ):
        return False
    return ip.is_global and not (ip.is_multicast or ip.is_reserved or "%" in address)


async def resolve(host: str, port: int) -> list[str]:
    """Return all IP addresses of a host, the preferred one first; decimal, octal … are read too."""
    loop = asyncio.get_running_loop()
    found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return [str(address[0]) for *_, address in found]


@dataclass
class Fetcher:
    """Fetches images by their address, through no proxy."""

    seconds: float  # for one image, redirects included
    max_bytes: int  # of one image
    resolve: Callable[[str, int], Awaitable[list[str]]] = resolve
    allowed: Callable[[str], bool] = is_public
    certificates: ssl.SSLContext = field(
        default_factory=lambda: httpx.create_ssl_context(trust_env=False)
    )

    async def fetch(self, url: str) -> bytes:
        """Return the bytes at an http(s) address; raise a DataError if that fails."""
        try:
            return await asyncio.wait_for(self._follow(url), self.seconds)
        except (TimeoutError, asyncio.TimeoutError) as error:
            raise DataError(f"nothing came within {self.seconds:g} seconds") from error
        except (httpx.HTTPError, httpx.InvalidURL, OSError, ValueError) as error:
            raise DataError(f"cannot be fetched ({one_line(error, 100)})") from error

    async def _follow(self, address: str) -> bytes:
        url = httpx.URL(address)
        client = httpx.AsyncClient(verify=self.certificates, trust_env=False, timeout=self.seconds)
        async with client:
            for _ in range(_REDIRECTS + 1):
                request = await self._request(client, url)
                response = await client.send(request, stream=True, follow_redirects=False)
                try:
                    if response.has_redirect_location:
                        url = url.join(response.headers["location"])
                        continue
                    return await self._read(response)
                finally:
                    await response.aclose()
        raise DataError(f"leads to more than {_REDIRECTS} other addresses in turn")

    async def _request(self, client: httpx.AsyncClient, url: httpx.URL) -> httpx.Request:
        """Return a request to the IP address that was checked: its name may change its meaning.

        The name is sent along: the host needs it, and its certificate is checked against it.
        """
        if url.scheme not in ("http", "https") or not url.host or url.userinfo:
            raise DataError("must be an http or https address, without a password in it")
        host = url.raw_host.decode("ascii")
        addresses = await self.resolve(host, url.port or (443 if url.scheme == "https" else 80))
        if not addresses or not all(map(self.allowed, addresses)):
            raise DataError("its host is not a public one; such hosts are never asked")
        return client.build_request(
            "GET",
            url.copy_with(host=addresses[0]),
            headers={"Host": url.netloc.decode("ascii"), "Accept-Encoding": "identity"},
            extensions={"sni_hostname": host},
        )

    async def _read(self, response: httpx.Response) -> bytes:
        if response.status_code != 200:
            raise DataError(f"its host replies {response.status_code}")
        content = bytearray()
        async for chunk in response.aiter_raw():
            content += chunk
            if len(content) > self.max_bytes:
                raise DataError(f"is larger than {self.max_bytes:,} bytes")
        return bytes(content)


async def read_picture(url: str, fetcher: Fetcher | None) -> bytes:
    """Return the bytes of an image, from the address itself or, with a fetcher, from its host."""
    if url[:5].lower() == "data:":
        return await asyncio.to_thread(read_data_url, url)
    if fetcher is None:
        raise DataError(
            f"{shown(url, 60)} is not fetched: send the picture itself, as "
            '"data:image/…;base64,…", or start the server with --allow-urls'
        )
    return await fetcher.fetch(url)
