"""The two runtimes: each runs a flow and performs the effects it yields."""

from __future__ import annotations

import asyncio
import time
from contextvars import copy_context
from functools import partial
from time import perf_counter
from typing import Any, TypeVar

from contract_engine.memory._effects import (
    Compute,
    Flow,
    LegacyCall,
    Pause,
    Query,
    RedisCall,
    Scan,
    Spawn,
    Summarize,
    WriteFacts,
)
from contract_engine.memory._observed import Observed
from contract_engine.memory._runtime.background import AsyncBackground, Background
from contract_engine.memory._runtime.checkup import AsyncCheckup, Checks, Checkup
from contract_engine.memory._runtime.database import AsyncDatabase, Database
from contract_engine.memory._runtime.legacy_calls import call_legacy, call_legacy_async
from contract_engine.memory._runtime.observing import observed_effect, observed_flow
from contract_engine.memory._runtime.redis_transport import AsyncRedisTransport, RedisTransport
from contract_engine.memory.circuit_breaker import CircuitBreaker, redis_circuit_breaker
from contract_engine.memory.config import MemoryConfig
from contract_engine.memory.daemon import run_in_own_loop
from contract_engine.memory.errors import ConfigurationError, MemoryServiceError
from contract_engine.memory.hooks import observers
from contract_engine.memory.summarizers import ExtractiveSummarizer, FactsWriter, Summarizer

T = TypeVar("T")


def breaker_for(config: MemoryConfig, *, is_shared: bool) -> CircuitBreaker:
    """Return the breaker of a manager or store: the one of the process for those that are set up from its environment.

    Others have their own, since they may talk to another Redis.
    """
    if not is_shared:
        return CircuitBreaker(config.breaker_failure_threshold, config.breaker_recovery_seconds, name="redis")
    redis_circuit_breaker.configure(config.breaker_failure_threshold, config.breaker_recovery_seconds)
    return redis_circuit_breaker


def database_breaker_for(config: MemoryConfig, name: str = "postgres") -> CircuitBreaker:
    """Return a breaker to stand in front of PostgreSQL, or of a part of what is asked there."""
    return CircuitBreaker(config.breaker_failure_threshold, config.database_breaker_recovery_seconds, name=name)


def _no_database() -> ConfigurationError:
    return ConfigurationError("database_url", "this call needs a database; set DATABASE_URL")


class Runtime:
    """Performs effects by blocking. Constructing it opens nothing; one instance serves any number of threads."""

    def __init__(
        self,
        config: MemoryConfig,
        *,
        breaker: CircuitBreaker,
        summarizer: Summarizer | None = None,
        facts_writer: FactsWriter | None = None,
        database_breaker: CircuitBreaker | None = None,
    ) -> None:
        self.breaker = breaker
        self.database_breaker = database_breaker or database_breaker_for(config)
        self._summarizer = summarizer or ExtractiveSummarizer(readable=config.readable_summaries)
        self._facts_writer = facts_writer
        self._redis = RedisTransport(
            config.redis_url, timeout=config.redis_timeout_seconds, pool_size=config.redis_pool_size, breaker=breaker
        )
        self._database = (
            Database(
                config.database_url,
                timeout=config.database_timeout_seconds,
                pool_size=config.database_pool_size,
                breaker=self.database_breaker,
                optional_breaker=database_breaker_for(config, "recall"),
            )
            if config.database_url
            else None
        )
        self.background = Background()
        self._checkup: Checkup[Any] = Checkup(partial(self.run, is_told=False))

    def check(self, checks: Checks[T]) -> T:
        """Return the report of a round of health checks; see :class:`Checkup`."""
        report: T = self._checkup.look(checks)
        return report

    def run(self, flow: Flow[T], *, is_told: bool = True) -> T:
        """Run a flow to its end and return its answer.

        ``is_told``: whoever listens hears of it; a check of the servers' health is no operation of anybody.
        """
        if observers.is_active and is_told:
            return self._run_observed(flow)
        try:
            effect = next(flow)
            while True:
                try:
                    answer = self._perform(effect)
                except MemoryServiceError as exc:
                    effect = flow.throw(exc)
                else:
                    effect = flow.send(answer)
        except StopIteration as stop:
            result: T = stop.value
            return result
        finally:
            flow.close()  # one that was interrupted notes at once what it has begun

    def _run_observed(self, flow: Flow[T]) -> T:
        """:meth:`run` where somebody listens: in full, since that is to cost next to nothing."""
        operation = observed_flow(flow)
        has_spans = observers.has_spans
        whole = observers.begin(operation.operation, operation.backend) if has_spans else None
        step: Observed | None = None
        is_over = False
        begun = started = perf_counter()
        try:
            effect = next(flow)
            while True:
                step, part = observed_effect(effect), None
                if has_spans and step is not None:
                    part = observers.begin(step.operation, step.backend)
                started = perf_counter()
                try:
                    answer = self._perform(effect)
                except MemoryServiceError as exc:
                    if step is not None:
                        step.failed(started, part)
                        step = None
                    effect = flow.throw(exc)
                else:
                    if step is not None:
                        step.ended(started, part, answer)
                        step = None
                    effect = flow.send(answer)
        except StopIteration as stop:
            result: T = stop.value
            is_over = True
            operation.ended(begun, whole, result)
            return result
        finally:
            flow.close()
            if not is_over:
                if step is not None:  # it was interrupted in the middle of it
                    step.failed(started, part)
                operation.failed(begun, whole)

    def _perform(self, effect: Any) -> Any:
        kind = type(effect)
        if kind is RedisCall:
            return self._redis.call(effect)
        if kind is Spawn:
            # What it begins belongs to the operation that asked for it; a thread does not know that by itself.
            run = copy_context().run
            return self.background.start(lambda: run(self.run, effect.flow()), effect.name, is_slow=effect.is_slow)
        if kind is Summarize:
            return self._summarizer.summarize(effect.request)
        if kind is WriteFacts:
            writer = None if self.background.is_closing else self._facts_writer
            return writer and run_in_own_loop(lambda: writer.write(effect.request), "contract-memory-writer")
        if kind is Compute:
            return effect.work()
        if kind is Pause:
            return time.sleep(effect.seconds)
        if kind is LegacyCall:
            return call_legacy(effect)
        if kind is Scan:
            return self._redis.scan(effect.pattern)
        if self._database is None:
            raise _no_database()
        return self._database.query(effect) if kind is Query else self._database.transaction(effect.body)

    def close(self) -> None:
        """Finish background work and close every connection; a later call opens them again."""
        self.background.close()
        self._redis.close()
        if self._database is not None:
            self._database.close()


class AsyncRuntime:
    """Performs effects by awaiting. Connections belong to the event loop that first used them.

    When that loop has been closed (a script that calls ``asyncio.run`` twice), new ones are made for the next loop;
    while it is alive, use from another loop is refused.
    """

    def __init__(
        self,
        config: MemoryConfig,
        *,
        breaker: CircuitBreaker,
        summarizer: Summarizer | None = None,
        facts_writer: FactsWriter | None = None,
        database_breaker: CircuitBreaker | None = None,
    ) -> None:
        self.breaker = breaker
        self.database_breaker = database_breaker or database_breaker_for(config)
        self._recall_breaker = database_breaker_for(config, "recall")
        self._config = config
        self._summarizer = summarizer or ExtractiveSummarizer(readable=config.readable_summaries)
        self._facts_writer = facts_writer
        self._loop: asyncio.AbstractEventLoop | None = None
        self._redis = self._new_redis()
        self._database = self._new_database()
        self.background = AsyncBackground()
        self._checkup: AsyncCheckup[Any] = AsyncCheckup(partial(self.run, is_told=False))

    async def check(self, checks: Checks[T]) -> T:
        """Return the report of a round of health checks; see :class:`AsyncCheckup`."""
        loop = asyncio.get_running_loop()
        if loop is not self._loop:
            self._adopt(loop)
        report: T = await self._checkup.look(checks)
        return report

    def _new_redis(self) -> AsyncRedisTransport:
        config = self._config
        return AsyncRedisTransport(
            config.redis_url,
            timeout=config.redis_timeout_seconds,
            pool_size=config.redis_pool_size,
            breaker=self.breaker,
        )

    def _new_database(self) -> AsyncDatabase | None:
        config = self._config
        if not config.database_url:
            return None
        return AsyncDatabase(
            config.database_url,
            timeout=config.database_timeout_seconds,
            pool_size=config.database_pool_size,
            breaker=self.database_breaker,
            optional_breaker=self._recall_breaker,
        )

    async def run(self, flow: Flow[T], *, is_told: bool = True) -> T:
        """See :meth:`Runtime.run`."""
        loop = asyncio.get_running_loop()
        if loop is not self._loop:
            self._adopt(loop)
        if observers.is_active and is_told:
            return await self._run_observed(flow)
        try:
            effect = next(flow)
            while True:
                try:
                    answer = await self._perform(effect)
                except MemoryServiceError as exc:
                    effect = flow.throw(exc)
                else:
                    effect = flow.send(answer)
        except StopIteration as stop:
            result: T = stop.value
            return result
        finally:
            flow.close()

    async def _run_observed(self, flow: Flow[T]) -> T:
        """See :meth:`Runtime._run_observed`."""
        operation = observed_flow(flow)
        has_spans = observers.has_spans
        whole = observers.begin(operation.operation, operation.backend) if has_spans else None
        step: Observed | None = None
        is_over = False
        begun = started = perf_counter()
        try:
            effect = next(flow)
            while True:
                step, part = observed_effect(effect), None
                if has_spans and step is not None:
                    part = observers.begin(step.operation, step.backend)
                started = perf_counter()
                try:
                    answer = await self._perform(effect)
                except MemoryServiceError as exc:
                    if step is not None:
                        step.failed(started, part)
                        step = None
                    effect = flow.throw(exc)
                else:
                    if step is not None:
                        step.ended(started, part, answer)
                        step = None
                    effect = flow.send(answer)
        except StopIteration as stop:
            result: T = stop.value
            is_over = True
            operation.ended(begun, whole, result)
            return result
        finally:
            flow.close()
            if not is_over:
                if step is not None:  # it was interrupted in the middle of it
                    step.failed(started, part)
                operation.failed(begun, whole)

    def _adopt(self, loop: asyncio.AbstractEventLoop) -> None:
        if self._loop is not None:
            if not self._loop.is_closed():
                raise ConfigurationError(
                    "event loop", "this manager is in use on another one; make one manager per loop"
                )
            self._redis, self._database, self.background = self._new_redis(), self._new_database(), AsyncBackground()
            self._checkup = AsyncCheckup(partial(self.run, is_told=False))
        self._loop = loop

    async def _perform(self, effect: Any) -> Any:
        kind = type(effect)
        if kind is RedisCall:
            return await self._redis.call(effect)
        if kind is Spawn:
            return self.background.start(lambda: self.run(effect.flow()), effect.name, is_slow=effect.is_slow)
        if kind is Summarize:
            return await asyncio.to_thread(self._summarizer.summarize, effect.request)
        if kind is WriteFacts:
            if self._facts_writer is None or self.background.is_closing:
                return None
            return await self._facts_writer.write(effect.request)
        if kind is Compute:
            return await asyncio.to_thread(effect.work)
        if kind is Pause:
            return await asyncio.sleep(effect.seconds)
        if kind is LegacyCall:
            return await call_legacy_async(effect)
        if kind is Scan:
            return await self._redis.scan(effect.pattern)
        if self._database is None:
            raise _no_database()
        if kind is Query:
            return await self._database.query(effect)
        return await self._database.transaction(effect.body)

    async def close(self) -> None:
        """Finish background work and close every connection; a later call opens them again."""
        await self.background.close()
        await self._checkup.close()
        await self._redis.close()
        if self._database is not None:
            await self._database.close()
