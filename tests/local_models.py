"""Models that run here: each answers an agent's one question in its own way, and remembers what it was asked."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from contract_engine.working_memory import ILLMInput


class NotingModel:
    """Adds what was said to the memory as it was, a line each: a working memory that loses nothing."""

    def __init__(self) -> None:
        self.asked: list[ILLMInput] = []
        self.threads: set[int] = set()

    def chat(self, request: ILLMInput) -> dict[str, Any]:
        self.threads.add(threading.get_ident())
        self.asked.append(request)
        return {"llm_response": noted(request)}


class AsyncNotingModel(NotingModel):
    """The same, awaited; it lets others go on before it answers."""

    async def chat(self, request: ILLMInput) -> str:  # type: ignore[override]
        self.asked.append(request)
        await asyncio.sleep(0.001)
        return noted(request)


class Answering:
    """Answers what it is told to, whatever it is asked; a callable is called, and may raise."""

    def __init__(self, answer: object) -> None:
        self._answer = answer

    async def chat(self, request: ILLMInput) -> Any:
        return self._answer(request) if callable(self._answer) else self._answer


class BlockingAnswering(Answering):
    """The same in a method that blocks."""

    def chat(self, request: ILLMInput) -> Any:
        return self._answer(request) if callable(self._answer) else self._answer


def noted(request: ILLMInput) -> str:
    """Return the memory of a request with what was said as its last line."""
    memory, _, said = request.user_message.partition("## What has just been said\n")
    memory = memory.removeprefix("## The memory as it is\n").partition("## What was said before")[0].strip()
    lines = [line for line in memory.splitlines() if line.startswith("- ")]
    return "\n".join([*lines, f"- {said}"])


def raising(exc: BaseException) -> Callable[[ILLMInput], object]:
    """Return an answer that is an exception."""

    def answer(_: ILLMInput) -> object:
        raise exc

    return answer


@dataclass(frozen=True)
class ILLMConfig:
    """What programs hand to a client of a provider."""

    model: str


class OpenAIClient(NotingModel):
    """Stands for a provider's client where the internet is not to be asked; made from the same settings."""

    def __init__(self, config: ILLMConfig) -> None:
        super().__init__()
        self.config = config
