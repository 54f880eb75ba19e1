from .handler import (
    ACCEPT as ACCEPT,
    CommonProtocolParameters as CommonProtocolParameters,
    DeterministicSingleVerifierProtocolHandler as DeterministicSingleVerifierProtocolHandler,
    NO_DECISION as NO_DECISION,
    ProtocolHandler as ProtocolHandler,
    REJECT as REJECT,
    SingleVerifierProtocolHandler as SingleVerifierProtocolHandler,
    build_protocol_handler as build_protocol_handler,
    register_protocol_handler as register_protocol_handler,
)
from .messages import (
    MessageSpace as MessageSpace,
    TextSpace as TextSpace,
    Transcript as Transcript,
    Turn as Turn,
)
from .named import (
    AdpProtocol as AdpProtocol,
    DebateProtocol as DebateProtocol,
    DebateProtocolParameters as DebateProtocolParameters,
    MerlinArthurProtocol as MerlinArthurProtocol,
    MnipProtocol as MnipProtocol,
    MnipProtocolParameters as MnipProtocolParameters,
    MultiChannelTestProtocol as MultiChannelTestProtocol,
    NipProtocol as NipProtocol,
    NipProtocolParameters as NipProtocolParameters,
    SoloVerifierProtocol as SoloVerifierProtocol,
    TwoProverParameters as TwoProverParameters,
    TwoProverProtocol as TwoProverProtocol,
)
from .zero_knowledge import ZkProtocolParameters as ZkProtocolParameters
