__version__ = "2.0.0"

from importlib import import_module

_MODULES = {
    "registry": ["Registry"],
    "settings": ["ExperimentSettings"],
    "tracking": ["RunStore", "Run", "Tracker", "register_tracker"],
    "run_store": ["runs", "find_run"],
    "parameters": ["HyperParameters", "AgentsParameters", "ParameterError", "Parameters", "param", "register_parameters"],
    "code_data": ["CodeValidationParameters"],
    "base_run": ["BaseRunParameters"],
    "protocols": [
        "CommonProtocolParameters", "NipProtocolParameters", "DebateProtocolParameters", "MnipProtocolParameters",
        "ProtocolHandler", "SingleVerifierProtocolHandler", "DeterministicSingleVerifierProtocolHandler",
        "register_protocol_handler", "build_protocol_handler",
    ],
    "zero_knowledge": ["ZkProtocolParameters"],
    "data": ["DatasetParameters"],
    "agents": [
        "LrFactors", "ConstantUpdateSchedule", "ContiguousPeriodicUpdateSchedule", "AlternatingPeriodicUpdateSchedule",
        "AgentParameters", "RandomAgentParameters",
    ],
    "networks": ["HeadParameters"],
    "prompts": ["PromptParameters"],
    "text_agents": ["PureTextAgentParameters"],
    "language_models": ["ChatModel", "ChatReply", "ChatRequest", "Sampling", "register_chat_model"],
    "spending": ["Chat", "Ledger", "SpendingLimitReached", "build_chat"],
    "code_validation": ["CodeValidationAgentParameters"],
    "text_scenario": ["TextScenario"],
    "fine_tuning": ["FineTuningParameters", "LoraParameters", "register_fine_tuner"],
    "shared_models": ["PureTextSharedModelGroup"],
    "scenario": ["ScenarioInstance", "build_scenario_instance", "register_scenario"],
    "parity": ["ParityAgentParameters"],
    "pretrained": ["PretrainedModel", "register_pretrained_model"],
    "image_classification": ["ImageClassificationParameters", "ImageClassificationAgentParameters"],
    "graph_isomorphism": ["GraphIsomorphismAgentParameters"],
    "trainer": ["register_trainer"],
    "rl": ["RlTrainerParameters"],
    "ppo": ["CommonPpoParameters", "VanillaPpoParameters"],
    "message_regression": ["MessageRegressionParameters", "register_message_regressor"],
    "reinforce": ["ReinforceParameters"],
    "stackelberg": ["SpgParameters"],
    "solo": ["SoloAgentParameters"],
    "text_rl": ["TextRlParameters"],
    "expert_iteration": ["PureTextEiParameters"],
    "malt": ["PureTextMaltParameters"],
    "evaluation": ["evaluate", "Evaluation"],
    "comparison": ["compare", "Comparison"],
    "run": ["run_experiment", "resume_experiment", "prepare_experiment", "preset", "presets", "Result"],
    "reproduction": ["reproduce"],
    "sweep": ["run_all"],
}
_HOME = {name: module for module, names in _MODULES.items() for name in names}
__all__ = list(_HOME)


def __getattr__(name):
    "Names of the public interface are imported when they are first asked for, so that `import nip` is light"
    if name not in _HOME:
        raise AttributeError(f"module 'nip' has no attribute {name!r}")
    return getattr(import_module(f"nip.{_HOME[name]}"), name)


def __dir__():
    return sorted([*globals(), *__all__])
