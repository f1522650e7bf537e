"""Why no request could be made to a server, or no whole response came: addresses, proxies, certificates.

What reaches a network is imported where it is used, as most commands ask nothing.
"""

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass

from agent.lab.chat_reply import Reply, TokenUsage


@dataclass(frozen=True)
class Address:
    """OPENAI_BASE_URL, in the parts that a request and a message need."""

    base: str
    query: str  # Azure has one
    host: str
    asked: str  # to show: without the password that a URL may hold, and without the query

    @classmethod
    def parse(cls, url: str) -> "Address":
        base, _, query = url.partition("?")
        shown = re.sub(r"//[^/]*@", "//", base).rstrip("/")
        host = re.search(r"//([^/]+)", shown)
        return cls(base, query, host[1] if host else "OPENAI_BASE_URL", f"{shown}/chat/completions")

    @property
    def proxy_variable(self) -> str:
        """The environment variable that names a proxy for this address, or an empty string."""
        from urllib.request import proxy_bypass

        scheme = self.base.partition(":")[0].lower()
        names = (f"{scheme}_proxy", f"{scheme.upper()}_PROXY", "all_proxy", "ALL_PROXY")
        given = next((name for name in names if os.environ.get(name)), "")
        return "" if given and proxy_bypass(self.host) else given


def unusable(error: Exception, address: Address) -> Reply:
    """Return the failure of settings by which no client can be made."""
    import ssl

    variable = address.proxy_variable
    if isinstance(error, ImportError):
        reason = f"{variable or 'a proxy variable'} names a SOCKS proxy, for which the package socksio is missing"
        return Reply("request", reason, "install it, or name an HTTP proxy")
    if isinstance(error, FileNotFoundError):
        return Reply("request", "SSL_CERT_FILE or SSL_CERT_DIR names what does not exist", "correct or unset it")
    if isinstance(error, ssl.SSLError):
        return Reply("request", f"the file SSL_CERT_FILE names holds no certificates: {error}", "correct or unset it")
    if isinstance(error, ValueError) and variable:
        return Reply("request", f"{variable} names no proxy that can be used: {error}", f"correct or unset {variable}")
    return unsendable(error)


def unsendable(error: BaseException) -> Reply:
    """Return the failure of an address to which nothing can be sent."""
    return Reply("request", f"no request could be made: {error}", "check OPENAI_BASE_URL")


def no_response(error: BaseException, address: Address, timeout: float, tokens_in: int, max_tokens: int) -> Reply:
    """Describe why no whole response came, and estimate what it may have cost."""
    import ssl

    import httpx2

    if isinstance(error, httpx2.UnsupportedProtocol | httpx2.LocalProtocolError):
        return unsendable(error)
    certificates = (cause for cause in _causes(error) if isinstance(cause, ssl.SSLCertVerificationError))
    if untrusted := next(certificates, None):
        reason = f"the certificate of {address.host} is not trusted ({untrusted.verify_message})"
        return Reply("request", reason, "set SSL_CERT_FILE to a file that holds it, or that of its authority")
    unsent = isinstance(error, httpx2.ConnectError | httpx2.ConnectTimeout | httpx2.ProxyError)
    variable = address.proxy_variable if unsent else ""
    whom = f"the proxy that {variable} names" if variable else address.host
    usage = TokenUsage() if unsent else TokenUsage(tokens_in=tokens_in, estimated=True)
    if isinstance(error, httpx2.TimeoutException | TimeoutError):
        # A model that was reached has been writing all this while, and that is paid for.
        usage = usage if unsent else usage.model_copy(update={"tokens_out": max_tokens})
        remedy = f"check or unset {variable}" if variable else "check the server, or try again later"
        return Reply("timeout", f"no whole answer from {whom} within {timeout:g} s", remedy, usage=usage, wait=0)
    remedy = f"check or unset {variable}, or name the host in NO_PROXY" if variable else ""
    remedy = remedy or "check the network and OPENAI_BASE_URL"
    return Reply("connection", f"no answer from {whom}: {error}", remedy, usage=usage, wait=0)


def _causes(error: BaseException) -> Iterator[BaseException]:
    cause: BaseException | None = error
    while cause is not None:
        yield cause
        cause = cause.__cause__ or cause.__context__
