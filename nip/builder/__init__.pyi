from .replay import TranscriptBrowser as TranscriptBrowser
from .app import (
    Builder as Builder,
    LANGUAGES as LANGUAGES,
    Loader as Loader,
    PAGES as PAGES,
    FormText as FormText,
    hyper_params_from as hyper_params_from,
    script as script,
)
