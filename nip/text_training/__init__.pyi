from .trainer import TextRlParameters as TextRlParameters
from .expert_iteration import PureTextEiParameters as PureTextEiParameters
from .malt import PureTextMaltParameters as PureTextMaltParameters
