from .parts import (
    Agent as Agent,
    AgentParameters as AgentParameters,
    AgentPart as AgentPart,
    AlternatingPeriodicUpdateSchedule as AlternatingPeriodicUpdateSchedule,
    ConstantUpdateSchedule as ConstantUpdateSchedule,
    ConstantValueHead as ConstantValueHead,
    ContiguousPeriodicUpdateSchedule as ContiguousPeriodicUpdateSchedule,
    DIMENSIONS as DIMENSIONS,
    LrFactors as LrFactors,
    PartContext as PartContext,
    RandomAgentParameters as RandomAgentParameters,
    RandomBody as RandomBody,
    RandomPolicyHead as RandomPolicyHead,
    UpdateSchedule as UpdateSchedule,
    WholeAgent as WholeAgent,
    substate as substate,
    with_dimensions as with_dimensions,
)
from .prompts import PromptParameters as PromptParameters
from .text_agent import PureTextAgentParameters as PureTextAgentParameters, TextAgent as TextAgent
from .combined import (
    CombinedBody as CombinedBody,
    CombinedPolicyHead as CombinedPolicyHead,
    CombinedValueHead as CombinedValueHead,
    CombinedWhole as CombinedWhole,
)
from .networks import (
    HeadParameters as HeadParameters,
    PolicyHead as PolicyHead,
    SoloHead as SoloHead,
    ValueHead as ValueHead,
)
from .pretrained import (
    PretrainedModel as PretrainedModel,
    pretrained_models as pretrained_models,
    register_pretrained_model as register_pretrained_model,
)
from .shared_models import PureTextSharedModelGroup as PureTextSharedModelGroup
