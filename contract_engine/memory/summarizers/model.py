"""The summarizer that asks a language model."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

from contract_engine.memory.circuit_breaker import CircuitBreaker
from contract_engine.memory.daemon import in_daemon
from contract_engine.memory.errors import CircuitOpenError, ConfigurationError, ModelUnavailableError
from contract_engine.memory.summarizers.chat_model import ChatMessages, ModelAnswer, completion, model_name
from contract_engine.memory.summarizers.extractive import ExtractiveSummarizer
from contract_engine.memory.summarizers.form import read, written
from contract_engine.memory.summarizers.gate import GateSettings, Part, Verdict, clipped, has_lost_facts, judge
from contract_engine.memory.summarizers.model_stats import ACCEPTED, FAILED, REJECTED, ModelStats, Outcome, Tally
from contract_engine.memory.summarizers.prompt import Rendered, SummaryPrompt
from contract_engine.memory.summarizers.request import Facts, FactsRequest, Rejected, SummaryRequest
from contract_engine.memory.summarizers.transcript import Turn, parts, shown

logger = logging.getLogger(__name__)

T = TypeVar("T")

THREAD = "contract-memory-gate"
BREAKER_FAILURES = 5
BREAKER_RECOVERY_SECONDS = 60.0
MIN_ROOM_TOKENS = 256
"""Less room than this for messages is a window that was set too small."""
WINDOW_MARGIN = 0.05
"""What is kept free of the window: models count tokens each in their own way."""
BEFORE_SHARE = 0.25
"""What earlier notes may take of the window at most; of more, the best are shown."""
OWN_SHARE = 0.95
"""The last request ends after this share of the deadline, so that the breaker hears of it as of any other failure."""


class ModelSummarizer:
    """Has a language model write the facts of messages, and lets nothing of a bad answer through.

    ``model`` is :class:`OpenAIChat`, or any callable or object with one method, sync or async (see :func:`completion`).
    ``window_tokens`` is what it can read and write together; a longer span is asked about in parts. One request may
    take ``timeout_seconds`` and is tried up to ``attempts`` times, with full jitter between: a random wait of up to
    ``backoff_seconds``, doubled with each attempt up to ``max_backoff_seconds``, after what a server asks to wait. A
    whole write, parts and waits included, ends after ``deadline_seconds``. ``failures``: exceptions of a callable that
    mean the model is away, besides ``OSError`` and :class:`ModelUnavailableError`; any other is passed on.

    :meth:`write` answers None where the model failed, and :class:`Rejected` where the gate turned its answer down, or
    its server the messages; :meth:`stats` tells why. After five failures in a row ``breaker`` rejects calls for a
    minute; refused configuration (400, 401, 404) is logged once and not counted there. One instance serves any number
    of threads and event loops.
    """

    def __init__(
        self,
        model: object,
        *,
        prompt: SummaryPrompt | None = None,
        name: str | None = None,
        window_tokens: int = 8192,
        max_answer_tokens: int = 2048,
        timeout_seconds: float = 30.0,
        attempts: int = 3,
        deadline_seconds: float = 90.0,
        backoff_seconds: float = 0.5,
        max_backoff_seconds: float = 10.0,
        gate: GateSettings | None = None,
        failures: tuple[type[Exception], ...] = (),
        breaker: CircuitBreaker | None = None,
        jitter: Callable[[float, float], float] = random.uniform,
    ) -> None:
        self._complete = completion(model)
        self.prompt = _instance("prompt", SummaryPrompt() if prompt is None else prompt, SummaryPrompt)
        self.gate = _instance("gate", GateSettings() if gate is None else gate, GateSettings)
        self.name = model_name(model) if name is None else _text("name", name)
        self.window_tokens = _whole("window_tokens", window_tokens, 512)
        self.max_answer_tokens = _whole("max_answer_tokens", max_answer_tokens, 32)
        if max_answer_tokens > window_tokens // 2:
            raise ConfigurationError("max_answer_tokens", f"expected at most half of window_tokens ({window_tokens})")
        self.timeout_seconds = _seconds("timeout_seconds", timeout_seconds)
        self.attempts = _whole("attempts", attempts, 1)
        self.deadline_seconds = _seconds("deadline_seconds", deadline_seconds)
        self.backoff_seconds = _seconds("backoff_seconds", backoff_seconds)
        self.max_backoff_seconds = _seconds("max_backoff_seconds", max_backoff_seconds)
        self._away: tuple[type[Exception], ...] = (OSError, *_exceptions("failures", failures))
        self.breaker = breaker or CircuitBreaker(
            BREAKER_FAILURES, BREAKER_RECOVERY_SECONDS, name="summarizer", counts=_says_model_is_away
        )
        self._jitter = jitter
        self._tally = Tally()
        self._has_told = False

    def stats(self) -> ModelStats:
        """Return what has been counted so far."""
        return self._tally.stats(
            model=self.name, prompt_hash=self.prompt.prompt_hash, breaker=self.breaker.get_state().value
        )

    async def write(self, request: FactsRequest) -> Facts | Rejected | None:
        """Return the facts of ``request``, at most ``max_tokens`` of them, in the form of a summary.

        None where the model failed or took too long, :class:`Rejected` where it was turned down, or did not take the
        messages: never a part of an answer.
        """
        self._tally.add(running=1)
        outcome = Outcome(FAILED, "unexpected")
        try:
            async with asyncio.timeout(self.deadline_seconds):
                facts = await self._facts(request, _Spent(time.monotonic() + OWN_SHARE * self.deadline_seconds))
            if isinstance(facts, Facts):
                outcome = Outcome(ACCEPTED)
                self._has_told = False
                return facts
            outcome = Outcome(REJECTED, facts.reason)
            logger.info("an answer of model %s was turned down: %s", self.name, facts.reason)
            return facts
        except CircuitOpenError:
            outcome = Outcome(FAILED, "breaker_open")
        except ModelUnavailableError as exc:
            if exc.kind == "content":
                outcome = Outcome(REJECTED, exc.kind)
                logger.info("model %s does not take these messages: %s", self.name, exc)
                return Rejected(exc.kind)
            outcome = Outcome(FAILED, exc.kind)
            self._tell(exc)
        except TimeoutError:
            outcome = Outcome(FAILED, "deadline")
            logger.warning("model %s did not answer within %g s", self.name, self.deadline_seconds)
        except asyncio.CancelledError:
            outcome = Outcome(FAILED, "cancelled")
            raise
        finally:
            self._tally.end(outcome)
        return None

    def _tell(self, exc: ModelUnavailableError) -> None:
        """Log a failure; one that waiting does not cure only once until an answer was good again."""
        if exc.kind != "configuration":
            logger.warning("model %s wrote nothing: %s", self.name, exc)
        elif not self._has_told:
            self._has_told = True
            logger.error("model %s refuses us until its settings are changed: %s", self.name, exc)

    async def _facts(self, request: FactsRequest, spent: _Spent) -> Facts | Rejected:
        before, chunks = await in_daemon(lambda: self._chunks(request), THREAD)
        if not chunks:
            return Rejected("none")
        texts = []
        for chunk, max_tokens in chunks:
            verdict = await self._ask_about(chunk, max_tokens, before, request, spent)
            # There may well be nothing worth noting; whether that is true shows in the whole.
            if verdict.reason and verdict.reason != "none":
                return Rejected(verdict.reason)
            spent.dropped += verdict.dropped
            texts.append(verdict.text)
        whole = await in_daemon(lambda: self._joined(texts, request), THREAD)
        if whole.reason:
            return Rejected(whole.reason)
        self._tally.add(dropped=spent.dropped)
        return Facts(whole.text, self.name, self.prompt.prompt_hash, spent.tokens_in, spent.tokens_out)

    def _chunks(self, request: FactsRequest) -> tuple[str, list[tuple[list[Turn], int]]]:
        """Return what is shown of before, and the parts that fit into the window, each with its share of the budget."""
        before = clipped(request.before, int(self.window_tokens * BEFORE_SHARE), request.count_tokens)
        frame = self._rendered("", before, request, request.max_tokens, is_again=True)
        used = sum(request.count_tokens(message["content"]) for message in frame.messages) + self.max_answer_tokens
        room = int(self.window_tokens * (1 - WINDOW_MARGIN)) - used
        if room < MIN_ROOM_TOKENS:
            raise ModelUnavailableError(
                "configuration", f"{room} tokens are left for messages; set a larger window_tokens"
            )
        found = parts(request.messages, request.times, max_tokens=room, count_tokens=request.count_tokens)
        sizes = [max(1, request.count_tokens(shown(part))) for part in found]
        shares = [max(1, request.max_tokens * size // sum(sizes)) for size in sizes]
        return before, list(zip(found, shares, strict=True))

    def _joined(self, texts: Sequence[str], request: FactsRequest) -> Verdict:
        """Join the answers in their order, and judge the whole."""
        text = written([unit for part in texts for unit in read(part)])
        if request.count_tokens(text) > request.max_tokens:
            text = clipped(text, request.max_tokens, request.count_tokens)
        baseline = ExtractiveSummarizer(readable=True).summarize(
            SummaryRequest(
                previous="",
                messages=request.messages,
                times=request.times,
                max_tokens=request.max_tokens,
                count_tokens=request.count_tokens,
            )
        )
        if has_lost_facts(text, baseline, self.gate):
            return Verdict("", "lost_facts")
        return Verdict(text, "" if text else "none")

    def _rendered(
        self, messages: str, before: str, request: FactsRequest, max_tokens: int, *, is_again: bool
    ) -> Rendered:
        return self.prompt.render(
            messages=messages,
            before=before,
            instructions=request.instructions,
            max_tokens=max_tokens,
            is_again=is_again,
        )

    async def _ask_about(
        self, chunk: Sequence[Turn], max_tokens: int, before: str, request: FactsRequest, spent: _Spent
    ) -> Verdict:
        """Ask about one part and judge the answer; one that is far too long is asked for once more."""
        verdict = Verdict("", "over_budget")
        for is_again in (False, True):
            rendered = self._rendered(shown(chunk), before, request, max_tokens, is_again=is_again)
            answer = await self._ask(rendered.messages, request.count_tokens, spent)
            part = Part(
                turns=chunk,
                max_tokens=max_tokens,
                count_tokens=request.count_tokens,
                before=before,
                instructions=request.instructions,
                prompt=self.prompt.own_texts,
                boundary=rendered.boundary,
                is_cut=answer.is_cut,
            )
            verdict = await in_daemon(partial(judge, answer.text, part, self.gate), THREAD)
            if verdict.reason != "over_budget":
                break
        return verdict

    async def _ask(self, messages: ChatMessages, count_tokens: Callable[[str], int], spent: _Spent) -> ModelAnswer:
        """Send one request until it is answered, the attempts are used up, or the deadline is nearer than the wait."""
        failure: ModelUnavailableError | None = None
        for attempt in range(self.attempts):
            if failure is not None:
                wait = (failure.retry_after or 0.0) + self._jitter(
                    0.0, min(self.max_backoff_seconds, self.backoff_seconds * 2.0 ** (attempt - 1))
                )
                if not failure.is_transient or wait >= spent.deadline - time.monotonic():
                    raise failure
                await asyncio.sleep(wait)
            try:
                self._tally.add(requests=1, retries=int(failure is not None))
                answer = await self.breaker.call_async(self._request, messages, spent.deadline)
            except CircuitOpenError:
                self._tally.add(requests=-1, retries=-int(failure is not None))
                raise failure or CircuitOpenError(self.breaker.name, 0.0) from None
            except ModelUnavailableError as exc:
                failure = exc
                continue
            tokens_in = answer.tokens_in
            if tokens_in is None:
                tokens_in = sum(count_tokens(message["content"]) for message in messages)
            tokens_out = count_tokens(answer.text) if answer.tokens_out is None else answer.tokens_out
            spent.tokens_in += tokens_in
            spent.tokens_out += tokens_out
            self._tally.add(tokens_in=tokens_in, tokens_out=tokens_out)
            return answer
        assert failure is not None, "there is at least one attempt"
        raise failure

    async def _request(self, messages: ChatMessages, deadline: float) -> ModelAnswer:
        """Send one request, once. The time limit lies in here, so that the breaker sees it as a failure."""
        seconds = min(self.timeout_seconds, deadline - time.monotonic())
        try:
            async with asyncio.timeout(seconds):
                return await self._complete(messages, max_tokens=self.max_answer_tokens)
        except ModelUnavailableError:
            raise
        except TimeoutError as exc:
            kind = "timeout" if seconds == self.timeout_seconds else "deadline"
            raise ModelUnavailableError(kind, f"no answer within {max(0.0, seconds):.1f} s") from exc
        except self._away as exc:
            raise ModelUnavailableError("connection", type(exc).__name__) from exc


@dataclass(slots=True)
class _Spent:
    """What one write has cost so far, and until when it may go on, on the monotonic clock."""

    deadline: float
    tokens_in: int = 0
    tokens_out: int = 0
    dropped: int = 0


def _says_model_is_away(exc: BaseException) -> bool:
    return not (isinstance(exc, ModelUnavailableError) and exc.kind in ("configuration", "content"))


def _whole(field: str, value: object, least: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value < 2**31:
        raise ConfigurationError(field, f"expected a whole number from {least} to 2,147,483,647, got {value!r}")
    return value


def _seconds(field: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 10**6:
        raise ConfigurationError(field, f"expected a number of seconds above 0, got {value!r}")
    return float(value)


def _text(field: str, value: object) -> str:
    if not isinstance(value, str) or not value.strip():
        raise ConfigurationError(field, "expected a text that is not empty")
    return value


def _exceptions(field: str, value: object) -> tuple[type[Exception], ...]:
    kinds = value if isinstance(value, tuple) else (value,)
    found = tuple(kind for kind in kinds if isinstance(kind, type) and issubclass(kind, Exception))
    if len(found) < len(kinds):
        raise ConfigurationError(field, "expected a tuple of exception types")
    return found


def _instance(field: str, value: object, kind: type[T]) -> T:
    if not isinstance(value, kind):
        raise ConfigurationError(field, f"expected {kind.__name__}, got {type(value).__name__}")
    return value
