"""Summarizers: what turns the messages that leave the buffer into a text that stays.

What asks a language model is imported when it is asked for: most programs have none, and need not wait for it to start.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from contract_engine.memory.summarizers.extractive import ExtractiveSummarizer
from contract_engine.memory.summarizers.model_stats import CountedWriter, ModelStats
from contract_engine.memory.summarizers.phrases import ReadableText
from contract_engine.memory.summarizers.request import (
    Facts,
    FactsRequest,
    FactsWriter,
    Rejected,
    Summarizer,
    SummaryRequest,
)

if TYPE_CHECKING:
    from contract_engine.memory.summarizers.chat_model import ModelAnswer
    from contract_engine.memory.summarizers.gate import GateSettings
    from contract_engine.memory.summarizers.model import ModelSummarizer
    from contract_engine.memory.summarizers.openai_chat import OpenAIChat
    from contract_engine.memory.summarizers.prompt import SummaryPrompt

__all__ = [
    "CountedWriter",
    "ExtractiveSummarizer",
    "Facts",
    "FactsRequest",
    "FactsWriter",
    "GateSettings",
    "ModelAnswer",
    "ModelStats",
    "ModelSummarizer",
    "OpenAIChat",
    "ReadableText",
    "Rejected",
    "Summarizer",
    "SummaryPrompt",
    "SummaryRequest",
]

_LATE = {
    "GateSettings": "gate",
    "ModelAnswer": "chat_model",
    "ModelSummarizer": "model",
    "OpenAIChat": "openai_chat",
    "SummaryPrompt": "prompt",
}


def __getattr__(name: str) -> Any:
    if name in _LATE:
        return getattr(import_module(f"{__name__}.{_LATE[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
