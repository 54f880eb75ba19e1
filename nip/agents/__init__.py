"""Stages 4 to 6: parts, networks, pretrained models, LLM agents, shared models, combination, checkpoints"""

import lazy_loader

COMPONENTS = ["parts", "prompts", "text_agent"]  # Modules that register something

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
