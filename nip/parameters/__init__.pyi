from .validation import (
    ParameterError as ParameterError,
    Parameters as Parameters,
    UnknownParameter as UnknownParameter,
    param as param,
)
from .serialization import as_yaml as as_yaml, read_value as read_value, write_value as write_value
from .hyper_params import (
    AgentsParameters as AgentsParameters,
    HyperParameters as HyperParameters,
    agent_parameters as agent_parameters,
    build_agent as build_agent,
    changed as changed,
    chat_models as chat_models,
    parameter_groups as parameter_groups,
    protocol_handlers as protocol_handlers,
    register_parameters as register_parameters,
    scenarios as scenarios,
    trainers as trainers,
)
from .settings import ExperimentSettings as ExperimentSettings
