from .core.registry import Registry as Registry
from .parameters.validation import ParameterError as ParameterError, Parameters as Parameters, param as param
from .parameters.hyper_params import (
    AgentsParameters as AgentsParameters,
    HyperParameters as HyperParameters,
    register_parameters as register_parameters,
)
from .parameters.settings import ExperimentSettings as ExperimentSettings
from .runs.trackers import Tracker as Tracker, register_tracker as register_tracker
from .runs.run import Run as Run
from .runs.store import RunStore as RunStore, find_run as find_run, runs as runs
from .runs.base_run import BaseRunParameters as BaseRunParameters
from .protocols.handler import (
    CommonProtocolParameters as CommonProtocolParameters,
    DeterministicSingleVerifierProtocolHandler as DeterministicSingleVerifierProtocolHandler,
    ProtocolHandler as ProtocolHandler,
    SingleVerifierProtocolHandler as SingleVerifierProtocolHandler,
    build_protocol_handler as build_protocol_handler,
    register_protocol_handler as register_protocol_handler,
)
from .protocols.named import (
    DebateProtocolParameters as DebateProtocolParameters,
    MnipProtocolParameters as MnipProtocolParameters,
    NipProtocolParameters as NipProtocolParameters,
)
from .protocols.zero_knowledge import ZkProtocolParameters as ZkProtocolParameters
from .language_models.chat import (
    ChatModel as ChatModel,
    ChatReply as ChatReply,
    ChatRequest as ChatRequest,
    Sampling as Sampling,
    register_chat_model as register_chat_model,
)
from .language_models.budget import (
    Chat as Chat,
    Ledger as Ledger,
    SpendingLimitReached as SpendingLimitReached,
    build_chat as build_chat,
)
from .language_models.fine_tuning import (
    FineTuningParameters as FineTuningParameters,
    LoraParameters as LoraParameters,
    register_fine_tuner as register_fine_tuner,
)
from .data.dataset import DatasetParameters as DatasetParameters
from .data.code import CodeValidationParameters as CodeValidationParameters
from .agents.parts import (
    AgentParameters as AgentParameters,
    AlternatingPeriodicUpdateSchedule as AlternatingPeriodicUpdateSchedule,
    ConstantUpdateSchedule as ConstantUpdateSchedule,
    ContiguousPeriodicUpdateSchedule as ContiguousPeriodicUpdateSchedule,
    LrFactors as LrFactors,
    RandomAgentParameters as RandomAgentParameters,
)
from .agents.prompts import PromptParameters as PromptParameters
from .agents.text_agent import PureTextAgentParameters as PureTextAgentParameters
from .agents.networks import HeadParameters as HeadParameters
from .agents.pretrained import (
    PretrainedModel as PretrainedModel,
    register_pretrained_model as register_pretrained_model,
)
from .agents.shared_models import PureTextSharedModelGroup as PureTextSharedModelGroup
from .scenarios.scenario import register_scenario as register_scenario
from .scenarios.build import (
    ScenarioInstance as ScenarioInstance,
    build_scenario_instance as build_scenario_instance,
)
from .scenarios.text import TextScenario as TextScenario
from .scenarios.code_validation import CodeValidationAgentParameters as CodeValidationAgentParameters
from .scenarios.graph_isomorphism import GraphIsomorphismAgentParameters as GraphIsomorphismAgentParameters
from .scenarios.image_classification import (
    ImageClassificationAgentParameters as ImageClassificationAgentParameters,
    ImageClassificationParameters as ImageClassificationParameters,
)
from .scenarios.parity import ParityAgentParameters as ParityAgentParameters
from .training.game_gradients import SpgParameters as SpgParameters
from .training.trainer import register_trainer as register_trainer
from .training.rl import RlTrainerParameters as RlTrainerParameters
from .training.message_probe import (
    MessageRegressionParameters as MessageRegressionParameters,
    register_message_regressor as register_message_regressor,
)
from .training.ppo import (
    CommonPpoParameters as CommonPpoParameters,
    VanillaPpoParameters as VanillaPpoParameters,
)
from .training.supervised import SoloAgentParameters as SoloAgentParameters
from .training.reinforce import ReinforceParameters as ReinforceParameters
from .text_training.trainer import TextRlParameters as TextRlParameters
from .text_training.expert_iteration import PureTextEiParameters as PureTextEiParameters
from .text_training.malt import PureTextMaltParameters as PureTextMaltParameters
from .analysis.transcripts import Transcripts as Transcripts
from .analysis.evaluation import Evaluation as Evaluation, evaluate as evaluate
from .analysis.comparison import Comparison as Comparison, compare as compare
from .analysis.transcript_judge import (
    analyse as analyse,
    register_rollout_analyser as register_rollout_analyser,
)
from .experiments.presets import preset as preset, presets as presets
from .experiments.run import (
    Result as Result,
    prepare_experiment as prepare_experiment,
    resume_experiment as resume_experiment,
    run_experiment as run_experiment,
)
from .experiments.reproduction import reproduce as reproduce
from .experiments.sweep import run_all as run_all
from .builder.replay import TranscriptBrowser as TranscriptBrowser
