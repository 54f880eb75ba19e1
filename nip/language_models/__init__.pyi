from .chat import (
    ChatError as ChatError,
    ChatModel as ChatModel,
    ChatReply as ChatReply,
    ChatRequest as ChatRequest,
    ReplyStore as ReplyStore,
    Sampling as Sampling,
    ScriptedModel as ScriptedModel,
    in_turn as in_turn,
    kept_reply as kept_reply,
    recorded as recorded,
    register_chat_model as register_chat_model,
)
from .budget import (
    Chat as Chat,
    Ledger as Ledger,
    SpendingLimitReached as SpendingLimitReached,
    build_chat as build_chat,
)
from .fine_tuning import (
    FineTuningParameters as FineTuningParameters,
    LoraParameters as LoraParameters,
    register_fine_tuner as register_fine_tuner,
)
