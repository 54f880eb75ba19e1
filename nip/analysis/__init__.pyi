from .transcripts import Transcripts as Transcripts
from .evaluation import Evaluation as Evaluation, evaluate as evaluate
from .comparison import Comparison as Comparison, compare as compare
from .transcript_judge import analyse as analyse, register_rollout_analyser as register_rollout_analyser
