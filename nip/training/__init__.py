"""Stage 9: trainers of networks"""

import lazy_loader

COMPONENTS = ["rl", "message_probe", "ppo", "reinforce", "stackelberg", "supervised"]  # Modules that register something

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
