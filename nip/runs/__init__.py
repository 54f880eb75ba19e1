"""The record of a run: its folder, the store, trackers, earlier runs as a base"""

import lazy_loader

COMPONENTS = ["wandb", "local_trackers", "base_run"]  # Modules that register something

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
