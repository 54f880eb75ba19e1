from .scenario import Scenario as Scenario, register_scenario as register_scenario
from .build import ScenarioInstance as ScenarioInstance, build_scenario_instance as build_scenario_instance
from .text import TextScenario as TextScenario
from .code_validation import CodeValidationAgentParameters as CodeValidationAgentParameters
from .graph_isomorphism import GraphIsomorphismAgentParameters as GraphIsomorphismAgentParameters
from .image_classification import (
    ImageClassificationAgentParameters as ImageClassificationAgentParameters,
    ImageClassificationParameters as ImageClassificationParameters,
)
from .parity import ParityAgentParameters as ParityAgentParameters
