from .presets import preset as preset, presets as presets
from .run import (
    Result as Result,
    prepare_experiment as prepare_experiment,
    resume_experiment as resume_experiment,
    run_experiment as run_experiment,
)
from .reproduction import reproduce as reproduce
from .sweep import run_all as run_all
