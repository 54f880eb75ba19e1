from .game_gradients import SpgParameters as SpgParameters
from .trainer import Trainer as Trainer, register_trainer as register_trainer
from .rl import RlTrainer as RlTrainer, RlTrainerParameters as RlTrainerParameters
from .message_probe import (
    MessageRegressionParameters as MessageRegressionParameters,
    register_message_regressor as register_message_regressor,
)
from .ppo import (
    CommonPpoParameters as CommonPpoParameters,
    VanillaPpoParameters as VanillaPpoParameters,
    VanillaPpoTrainer as VanillaPpoTrainer,
)
from .supervised import SoloAgentParameters as SoloAgentParameters
from .reinforce import ReinforceParameters as ReinforceParameters
