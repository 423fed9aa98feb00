"""Mass editing of facts in any supported causal language model; knows nothing of sources, databases or schedules."""

from editor.adapter import write_peft_adapter
from editor.base import write_base
from editor.calibration import Calibration, calibrate
from editor.checkpoint import write_version
from editor.errors import (
    AdapterImpossible,
    CovarianceTooSmall,
    EditorError,
    Interrupted,
    ModelUnavailable,
    NumericalFailure,
    RequestInvalid,
    SettingsInvalid,
    UnsupportedModel,
)
from editor.fluency import continuations, ngram_entropy, repetition
from editor.insertion import Fit
from editor.language_model import LanguageModel, load_language_model
from editor.memit import Memit, WeightUpdate
from editor.ordinary_text import TextSource, file_text, ordinary_text
from editor.preparation import Preparation, prepare
from editor.probing import Score, greedy_answers, is_answer, natural_stop, scores
from editor.progress import Progress, silent
from editor.reading import Reading, perplexity, readings
from editor.requests import EditRequest, check_request, fill
from editor.settings import MemitSettings, settings_for
from editor.trials import KnownFact
from editor.value_cache import ValueCache

__all__ = [
    "AdapterImpossible",
    "Calibration",
    "CovarianceTooSmall",
    "EditRequest",
    "EditorError",
    "Fit",
    "Interrupted",
    "KnownFact",
    "LanguageModel",
    "Memit",
    "MemitSettings",
    "ModelUnavailable",
    "NumericalFailure",
    "Preparation",
    "Progress",
    "Reading",
    "RequestInvalid",
    "Score",
    "SettingsInvalid",
    "TextSource",
    "UnsupportedModel",
    "ValueCache",
    "WeightUpdate",
    "calibrate",
    "check_request",
    "continuations",
    "file_text",
    "fill",
    "greedy_answers",
    "is_answer",
    "load_language_model",
    "natural_stop",
    "ngram_entropy",
    "ordinary_text",
    "perplexity",
    "prepare",
    "readings",
    "repetition",
    "scores",
    "settings_for",
    "silent",
    "write_base",
    "write_peft_adapter",
    "write_version",
]
