"""Where Redis is: what a URL says of it, and which node of a Cluster serves which slot. No connection is made here."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal
from urllib.parse import parse_qsl, quote, unquote, urlencode, urlsplit

from redis.crc import key_slot

from contract_engine.memory._effects import Command
from contract_engine.memory._runtime.redis_steps import Address
from contract_engine.memory.errors import ConfigurationError

SLOTS = 16384
REDIS_PORT, SENTINEL_PORT = 6379, 26379

_KEYLESS = frozenset({"PING", "INFO", "SCAN"})
_FORMS = {
    "cluster": "redis+cluster://user:password@host:port,host:port/?options",
    "sentinel": "redis+sentinel://user:password@host:port,host:port/service/0?options",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Deployment:
    """Several servers behind one URL: the nodes of a Cluster, or the Sentinels that watch ``service``."""

    kind: Literal["cluster", "sentinel"]
    scheme: str
    login: str
    seeds: tuple[Address, ...]
    service: str
    path: str
    options: str
    sentinel_login: str

    def url_of(self, address: Address) -> str:
        """Return the URL of one server for redis-py."""
        login, path = (self.sentinel_login, "") if address.is_sentinel else (self.login, self.path)
        return f"{self.scheme}://{login}{address}{path}{self.options}"


def deployment(url: str) -> Deployment | None:
    """Return what the URL names, None where it is one server; refuse what is no such URL, without quoting it."""
    scheme, _, form = url.partition("://")[0].lower().partition("+")
    if not form:
        return None
    if form not in _FORMS or scheme not in ("redis", "rediss"):
        raise ConfigurationError("redis_url", f"scheme '{scheme}+{form}' is not one of redis+cluster, redis+sentinel")
    try:
        parts = urlsplit(url)
        login, at, hosts = parts.netloc.rpartition("@")
        options = dict(parse_qsl(parts.query, strict_parsing=bool(parts.query)))
        sentinel_login = _login(options.pop("sentinel_username", ""), options.pop("sentinel_password", ""))
        is_sentinel = form == "sentinel"
        port = SENTINEL_PORT if is_sentinel else REDIS_PORT
        seeds = tuple(_address(host, port, is_sentinel=is_sentinel) for host in hosts.split(","))
        service, database = _path(parts.path, is_sentinel=is_sentinel)
    except ValueError as exc:
        raise ConfigurationError("redis_url", f"not of the form {_FORMS[form]}") from exc
    return Deployment(
        kind="sentinel" if is_sentinel else "cluster",
        scheme=scheme,
        login=login + at,
        seeds=seeds,
        service=service,
        path=f"/{database}",
        options=f"?{urlencode(options)}" if options else "",
        sentinel_login=sentinel_login,
    )


def _login(user: str, password: str) -> str:
    return f"{quote(user, safe='')}:{quote(password, safe='')}@" if user or password else ""


def _address(text: str, default_port: int, *, is_sentinel: bool) -> Address:
    parts = urlsplit(f"//{text}")
    if not parts.hostname:
        raise ValueError(text)
    return Address(parts.hostname, parts.port or default_port, is_sentinel)


def _path(path: str, *, is_sentinel: bool) -> tuple[str, int]:
    """Return the service and the database; a Cluster has neither but database 0."""
    words = [unquote(word) for word in path.split("/") if word]
    if not is_sentinel:
        if words not in ([], ["0"]):
            raise ValueError(path)
        return "", 0
    if len(words) not in (1, 2):
        raise ValueError(path)
    return words[0], int(words[1]) if len(words) == 2 else 0


class SlotMap:
    """Who serves which slot, as one node told it, and as redirections have corrected it since."""

    def __init__(self, reply: Sequence[Any], told_by: Address) -> None:
        self._owners: list[Address | None] = [None] * SLOTS
        nodes: dict[Address, None] = {}
        for first, last, *servers in reply:
            addresses = [_node(server, told_by) for server in servers]
            nodes.update(dict.fromkeys(addresses))
            self._owners[first : last + 1] = [addresses[0]] * (last + 1 - first)
        self.nodes = tuple(nodes)
        """Primaries and replicas: all who can be asked for the map."""

    @property
    def primaries(self) -> tuple[Address, ...]:
        """Everybody who serves a slot."""
        return tuple(dict.fromkeys(owner for owner in self._owners if owner is not None))

    def owner(self, slot: int) -> Address | None:
        """Return who serves a slot."""
        return self._owners[slot]

    def move(self, slot: int, owner: Address) -> None:
        """Take in what a redirection said of one slot."""
        self._owners[slot] = owner


def _node(server: Sequence[Any], told_by: Address) -> Address:
    host, port = server[0], server[1]
    # A node that does not know its own name leaves it out: it means the one it was asked by.
    return Address(host.decode() if host else told_by.host, int(port))


def slot_of(commands: Iterable[Command]) -> int | None:
    """Return the slot of the first key; all keys of a call share one. None where there is no key."""
    for command in commands:
        words = command.words
        if command.script is not None:
            key = words[1] if words[0] else None
        else:
            key = None if words[0] in _KEYLESS or len(words) < 2 else words[1]
        if key is not None:
            return int(key_slot(key if isinstance(key, bytes) else key.encode()))
    return None
