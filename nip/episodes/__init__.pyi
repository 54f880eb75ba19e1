from .environment import Environment as Environment
from .rollouts import load_rollouts as load_rollouts, save_rollouts as save_rollouts
from .statistics import confidence_interval as confidence_interval
